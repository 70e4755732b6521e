#include "hostile.h"

#include <string.h>

struct gen {
	struct rng *r;
	const struct world *w;
	uint8_t *p, *end;
};

static void b1(struct gen *g, unsigned v)
{
	if (g->p < g->end)
		*g->p++ = (uint8_t)v;
}

static void bytes(struct gen *g, const char *s, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		b1(g, (uint8_t)s[i]);
}
#define B(g, s) bytes(g, s, sizeof(s) - 1)

static void imm(struct gen *g, uint64_t v, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		b1(g, (unsigned)(v >> (8 * i)) & 0xff);
}

static void noise(struct gen *g, unsigned n)
{
	while (n--)
		b1(g, (unsigned)rnd(g->r) & 0xff);
}

/* mov reg, v */
static void set(struct gen *g, unsigned reg, uint64_t v)
{
	if (g->w->bits == 64 && v > UINT32_MAX) {
		b1(g, 0x48 | (reg > 7));
		b1(g, 0xb8 | (reg & 7));
		imm(g, v, 8);
		return;
	}
	if (g->w->bits == 16)
		b1(g, 0x66);
	else if (reg > 7)
		b1(g, 0x41);
	b1(g, 0xb8 | (reg & 7));
	imm(g, v, 4);
}

static uint64_t address(struct gen *g)
{
	struct rng *r = g->r;

	switch (below(r, 16)) {
	case 0: return rnd(r);
	case 1: return rnd(r) & UINT32_MAX;
	case 2: return W_CODE + below(r, W_CODE_LEN);                      /* code */
	case 3: return (UINT64_C(8) + 2 * below(r, 4)) * MIB + W_CODE + below(r, 0x1000); /* by an alias */
	case 4: return W_TABLES + below(r, 0x8000);
	case 5: return 0xfee00000 + 16 * below(r, 0x40);                   /* LAPIC */
	case 6: return 0xfec00000 + 16 * below(r, 4);                      /* IOAPIC */
	case 7: return 0xe0000000 + (below(r, 4) << 12) * 8 + below(r, 0x120); /* ECAM */
	case 8: return 0xc0000000 + below(r, 0x10000);                     /* BARs */
	case 9: return UINT64_C(0xffffffffc0000000) + below(r, 0x10000);
	case 10: return UINT64_C(0x7ffffffffff0) + below(r, 64);           /* the edge of the canonical addresses */
	case 11: return UINT64_C(0xffff7ffffffffff0) + below(r, 64);
	case 12: return UINT64_C(0xffff800000000000) + W_DATA;
	case 13: return (W_DATA + PAGE_SIZE * (1 + below(r, 8))) - below(r, 70); /* page ends */
	case 14: return (UINT64_C(18) + 2 * below(r, 6)) * MIB + below(r, 4096); /* bad table entries */
	default: return W_DATA + below(r, W_DATA_LEN);
	}
}

static unsigned port(struct gen *g)
{
	static const uint16_t ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4d0, 0x4d1, 0x70, 0x71, 0x60, 0x64, 0x92,
					 0xcf8, 0xcfc, 0xcfe, 0x600, 0x604, 0x608, 0x620, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff};

	return below(g->r, 8) ? ports[below(g->r, ARRAY_LEN(ports))] : (unsigned)rnd(g->r) & 0xffff;
}

/* A random instruction on [rdi]. */
static void on_rdi(struct gen *g)
{
	static const struct { const char *b; uint8_t n; } ops[] = {
		{"\x8b\x07", 2}, {"\x89\x07", 2}, {"\x88\x07", 2}, {"\x8a\x07", 2}, {"\xf0\x01\x07", 3}, {"\xf0\x0f\xc1\x07", 4},
		{"\x0f\xb1\x07", 3}, {"\xf0\x0f\xc7\x0f", 4}, {"\x0f\x10\x07", 3}, {"\x0f\x11\x07", 3}, {"\x0f\x28\x07", 3},
		{"\x0f\x29\x07", 3}, {"\xc5\xfe\x6f\x07", 4}, {"\xc5\xfe\x7f\x07", 4}, {"\xff\x37", 2}, {"\x8f\x07", 2}, {"\xff\x17", 2},
		{"\xff\x27", 2}, {"\xf3\xaa", 2}, {"\xf3\xab", 2}, {"\xf3\xa4", 2}, {"\xf3\xa5", 2}, {"\xf2\xae", 2}, {"\xf3\xa6", 2},
		{"\xdb\x2f", 2}, {"\xdb\x3f", 2}, {"\xdd\x37", 2}, {"\xdd\x27", 2}, {"\x0f\xae\x07", 3}, {"\x0f\xae\x0f", 3},
		{"\x0f\xae\x27", 3}, {"\x0f\xae\x2f", 3}, {"\x0f\xae\x17", 3}, {"\x0f\xae\x3f", 3}, {"\x0f\x01\x17", 3}, {"\x0f\x01\x1f", 3},
		{"\x0f\x01\x07", 3}, {"\x0f\x01\x0f", 3}, {"\x0f\x01\x3f", 3}, {"\x0f\x01\x37", 3}, {"\x0f\xa3\x07", 3}, {"\x0f\xab\x07", 3},
		{"\xff\x2f", 2}, {"\xff\x1f", 2}, {"\x8e\x1f", 2}, {"\x8e\x17", 2}, {"\x0f\xb2\x27", 3}, {"\x62\x07", 2}, {"\xc8\x10\x00\x1f", 4},
		{"\xc4\xe2\x7d\x8c\x07", 5}, {"\xc4\xe2\x7d\x8e\x07", 5}, {"\x66\x0f\xf7\xc1", 4}, {"\x66\x0f\x38\x82\x07", 5}, {"\x0f\xc7\x37", 3},
		{"\xc4\xe2\x69\x90\x04\x0f", 6}, {"\x6c", 1}, {"\xf3\x6d", 2}, {"\xf3\x6e", 2}, {"\x0f\x18\x07", 3}, {"\xc6\x07\xf4", 3},
	};
	unsigned i = below(g->r, ARRAY_LEN(ops));

	if (g->w->bits == 16)
		b1(g, 0x67);
	if (!below(g->r, 8))
		b1(g, below(g->r, 2) ? 0x64 : 0x65);
	if (ops[i].b[0] != '\xf0' && !below(g->r, 6))
		b1(g, 0x66);
	if (g->w->bits == 64 && !below(g->r, 3) && (ops[i].b[0] & 0xf0) != 0xf0 && (ops[i].b[0] & 0xfe) != 0xc4)
		b1(g, 0x48);
	bytes(g, ops[i].b, ops[i].n);
}

static void memory(struct gen *g)
{
	set(g, R_DI, address(g));
	if (below(g->r, 2))
		set(g, R_SI, address(g));
	if (below(g->r, 3))
		set(g, R_CX, below(g->r, 4) ? below(g->r, 300) : rnd(g->r));
	if (below(g->r, 2))
		set(g, R_AX, below(g->r, 2) ? rnd(g->r) : below(g->r, 256));
	for (unsigned n = 1 + below(g->r, 3); n; n--)
		on_rdi(g);
}

static void ports(struct gen *g)
{
	static const uint8_t ops[] = {0xec, 0xed, 0xee, 0xef, 0xee, 0xef};

	set(g, R_DX, port(g));
	if (below(g->r, 2))
		set(g, R_AX, rnd(g->r));
	if (!below(g->r, 8)) {
		set(g, R_CX, below(g->r, 2) ? below(g->r, 50) : rnd(g->r));
		b1(g, 0xf3);
		b1(g, 0x6c + below(g->r, 4));
		return;
	}
	for (unsigned n = 1 + below(g->r, 3); n; n--)
		b1(g, ops[below(g->r, ARRAY_LEN(ops))]);
}

static void msr(struct gen *g)
{
	static const uint32_t msrs[] = {0x10, 0x1b, 0x3b, 0x6e0, 0x174, 0x175, 0x176, 0x1d9, 0x200, 0x250, 0x277, 0x2ff, 0xc0000080,
					0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000103,
					0x4b564d00, 0x4b564d01, 0x11, 0x12, 0x4b564d02, 0x4b564d03, 0x4b564d04, 0x48, 0x179, 0x17a, 0xda0};
	uint32_t n = below(g->r, 3) ? msrs[below(g->r, ARRAY_LEN(msrs))] : 0x800 + below(g->r, 0x40);

	set(g, R_CX, below(g->r, 20) ? n : rnd(g->r));
	set(g, R_AX, below(g->r, 2) ? address(g) & UINT32_MAX : rnd(g->r));
	set(g, R_DX, below(g->r, 3) ? 0 : rnd(g->r));
	B(g, "\x0f\x30");
	if (below(g->r, 2))
		B(g, "\x0f\x32");
}

static void control_register(struct gen *g)
{
	static const uint8_t crs[] = {0, 2, 3, 4, 0, 3, 4};
	unsigned cr = crs[below(g->r, ARRAY_LEN(crs))];

	if (below(g->r, 3) && cr != 2) { /* flip a bit */
		b1(g, 0x0f);
		b1(g, 0x20);
		b1(g, 0xc0 | cr << 3);
		if (g->w->bits == 16)
			b1(g, 0x66);
		B(g, "\x0f\xba\xf8"); /* btc eax, n */
		b1(g, below(g->r, 32));
	} else {
		set(g, R_AX, cr == 3 ? W_TABLES + below(g->r, 16) * 0x1000 + below(g->r, 32) : rnd(g->r) & UINT32_MAX);
	}
	b1(g, 0x0f);
	b1(g, below(g->r, 8) ? 0x22 : 0x23); /* or a debug register */
	b1(g, 0xc0 | cr << 3);
}

static void system_insn(struct gen *g)
{
	static const struct { const char *b; uint8_t n; } ops[] = {
		{"\xfb", 1}, {"\xfa", 1}, {"\xf4", 1}, {"\xfb\xf4", 2}, {"\x9c", 1}, {"\x9d", 1}, {"\xcf", 1}, {"\xcb", 1}, {"\xc3", 1},
		{"\x0f\x05", 2}, {"\x0f\x07", 2}, {"\x0f\x34", 2}, {"\x0f\x35", 2}, {"\xcc", 1}, {"\xf1", 1}, {"\xce", 1}, {"\x0f\x0b", 2},
		{"\x0f\xa2", 2}, {"\x0f\x31", 2}, {"\x0f\x09", 2}, {"\x0f\x08", 2}, {"\x0f\x06", 2}, {"\x0f\x01\xf8", 3}, {"\x0f\x01\xca", 3},
		{"\x0f\x01\xcb", 3}, {"\x0f\x01\xd0", 3}, {"\x0f\x01\xd1", 3}, {"\x0f\x00\xd8", 3}, {"\x0f\x00\xd0", 3}, {"\x8e\xd8", 2},
		{"\x8e\xd0", 2}, {"\x8e\xe0", 2}, {"\x8e\xe8", 2}, {"\x0f\x01\xf0", 3}, {"\x0f\x02\xc0", 3}, {"\x0f\x03\xc0", 3},
		{"\x0f\x33", 2}, {"\x0f\x01\xc8", 3}, {"\x0f\x01\xc9", 3}, {"\x0f\x01\xc1", 3}, {"\xf0\x0f\x0b", 3}, {"\x9b", 1}, {"\xdb\xe3", 2},
		{"\xf3\x0f\xae\xd0", 4}, {"\xf3\x0f\xae\xd8", 4}, {"\x0f\x77", 2}, {"\xc5\xf8\x77", 3}, {"\x60", 1}, {"\x61", 1}, {"\xc9", 1},
		{"\x0f\x01\xee", 3}, {"\x0f\x01\xef", 3}, {"\x48\xcf", 2}, {"\x48\xcb", 2}, {"\x0f\xc7\xf0", 3}, {"\x66\x9d", 2}, {"\xd7", 1},
	};
	unsigned i = below(g->r, ARRAY_LEN(ops));

	if (below(g->r, 3) == 0)
		set(g, R_AX, below(g->r, 2) ? below(g->r, 0x100) : rnd(g->r));
	if (below(g->r, 8) == 0) {
		b1(g, 0xcd);
		noise(g, 1);
		return;
	}
	bytes(g, ops[i].b, ops[i].n);
}

static void stack(struct gen *g)
{
	if (!below(g->r, 3))
		set(g, R_SP, below(g->r, 4) ? address(g) : below(g->r, 16));
	for (unsigned n = 1 + below(g->r, 4); n; n--) {
		static const uint8_t ops[] = {0x50, 0x53, 0x58, 0x5b, 0x9c, 0x6a, 0xc9, 0x55, 0x5d, 0x54, 0x5c};
		unsigned op = ops[below(g->r, ARRAY_LEN(ops))];

		b1(g, op);
		if (op == 0x6a)
			noise(g, 1);
	}
}

static void jump(struct gen *g)
{
	switch (below(g->r, 6)) {
	case 0: /* short, either way, often into the middle of something */
		b1(g, 0xeb);
		noise(g, 1);
		break;
	case 1:
		b1(g, 0x70 | below(g->r, 16));
		noise(g, 1);
		break;
	case 2: /* to a random address */
		set(g, R_AX, below(g->r, 2) ? W_CODE + below(g->r, W_CODE_LEN) : address(g));
		b1(g, 0xff);
		b1(g, below(g->r, 2) ? 0xe0 : 0xd0);
		break;
	case 3: /* within the first KiB, by an alias of the page */
		set(g, R_AX, (UINT64_C(8) + 2 * below(g->r, 5)) * MIB + W_CODE + below(g->r, 0x400));
		B(g, "\xff\xe0");
		break;
	case 4:
		b1(g, 0xe0 + below(g->r, 4));
		noise(g, 1);
		break;
	default:
		b1(g, below(g->r, 2) ? 0xe8 : 0xe9);
		imm(g, (uint64_t)((int64_t)below(g->r, 0x1000) - 0x800), g->w->bits == 16 ? 2 : 4);
		break;
	}
}

/* A page-table entry or a descriptor becomes something else; sometimes the TLB is told. */
static void table_write(struct gen *g)
{
	uint64_t v = below(g->r, 3) ? ((uint64_t)below(g->r, 0x900) << 12 | (rnd(g->r) & 0x1e7)) : rnd(g->r);

	set(g, R_DI, below(g->r, 4) ? W_TABLES + 8 * below(g->r, 0x1800) : W_GDT + 8 * below(g->r, 0x800));
	set(g, R_AX, v);
	if (g->w->bits == 64)
		b1(g, 0x48);
	if (g->w->bits == 16)
		b1(g, 0x67);
	B(g, "\x89\x07");
	if (below(g->r, 2)) {
		set(g, R_DI, address(g));
		if (g->w->bits == 16)
			b1(g, 0x67);
		B(g, "\x0f\x01\x3f");
	}
}

static void lapic(struct gen *g)
{
	static const struct { uint16_t reg; uint32_t value; } writes[] = {
		{0x3e0, 0xb}, {0x320, 0x20040}, {0x380, 1}, {0x380, 2}, {0x320, 0x40}, {0x320, 0x40040}, {0xf0, 0x1ff}, {0xf0, 0xff}, {0x80, 0},
		{0x300, 0x44040}, {0x300, 0x44400}, {0x300, 0x84040}, {0x300, 0x500}, {0x300, 0x600}, {0xb0, 0}, {0x350, 0x700}, {0x360, 0x400},
		{0x310, 0}, {0xd0, 0xff000000}, {0xe0, 0xffffffff}, {0x370, 0x41},
	};
	unsigned i = below(g->r, ARRAY_LEN(writes));

	set(g, R_DI, 0xfee00000u + writes[i].reg);
	set(g, R_AX, below(g->r, 4) ? writes[i].value : rnd(g->r));
	if (g->w->bits == 16)
		B(g, "\x67\x66");
	B(g, "\x89\x07");
}

/* Doorbells of virtio-rng (its BAR is the first one), and its common configuration. */
static void virtio(struct gen *g)
{
	set(g, R_DI, 0xc0000000u + (below(g->r, 3) ? 0x3000 : below(g->r, 0x40)));
	set(g, R_AX, below(g->r, 4));
	if (g->w->bits == 16)
		b1(g, 0x67);
	if (below(g->r, 2))
		b1(g, 0x66);
	B(g, "\x89\x07");
}

static void biased_noise(struct gen *g)
{
	if (below(g->r, 2))
		b1(g, (uint8_t)"\x66\xf2\xf3\xf0\x67\x65\x64\x48"[below(g->r, 8)]);
	switch (below(g->r, 5)) {
	case 0: b1(g, 0x0f); break;
	case 1: B(g, "\x0f\x38"); break;
	case 2: b1(g, 0xc4); b1(g, 0xe0 | (1 + below(g->r, 3))); break;
	case 3: b1(g, 0x62); b1(g, 0xf0 | (1 + below(g->r, 3))); noise(g, 1); break;
	default: break;
	}
	noise(g, 2 + below(g->r, 5));
}

void gen_code(struct rng *r, const struct world *w, uint8_t *buf, unsigned len)
{
	static void (*const parts[])(struct gen *) = {
		memory, memory, memory, ports, msr, control_register, system_insn, system_insn, stack, jump, jump, table_write, lapic, virtio,
		biased_noise, biased_noise,
	};
	struct gen g = {.r = r, .w = w, .p = buf, .end = buf + len};

	if (!below(r, 8)) { /* nothing but noise */
		noise(&g, len);
		return;
	}
	while (g.p < g.end) {
		if (below(r, 12))
			parts[below(r, ARRAY_LEN(parts))](&g);
		else
			noise(&g, 1 + below(r, 8));
	}
}

/* ---- loops ---- */

static void far_from_polls(struct gen *g)
{
	/* In flat modes: a loop over the end of the address space, both halves of it forward. Its page is W_CODE by an alias. */
	set(g, R_DI, g->w->bits == 64 ? UINT64_C(0xffffffffffffffff) : 0xffffffff);
	B(g, "\xff\xe7");
}

unsigned gen_storm(struct rng *r, const struct world *w, uint8_t *buf)
{
	static const struct { const char *b; uint8_t n; } loops[] = {
		{"\xeb\xfe", 2}, {"\xfa\xeb\xfe", 3}, {"\xfa\xf4\xeb\xfd", 4}, {"\xfb\xf4\xeb\xfd", 4}, {"\xfb\xeb\xfe", 3},
		{"\x9c\xeb\xfd", 3},             /* pushf for ever */
		{"\x50\xeb\xfd", 3}, {"\x58\xeb\xfd", 3},
		{"\x0f\x0b", 2}, {"\xcc\xeb\xfd", 3}, {"\xf1\xeb\xfd", 3}, {"\xcd\x80\xeb\xfc", 4},
		{"\x6a\xff\x9d\xeb\xfb", 5},     /* popf of all flags, TF among them */
		{"\x68\x46\x03\x00\x00\x9d\xeb\xf8", 8},
		{"\xf3\xa4\xeb\xfc", 4}, {"\xf3\xaa\xeb\xfc", 4}, {"\xf3\xac\xeb\xfc", 4}, {"\xf3\x6c\xeb\xfc", 4}, {"\xf3\x6e\xeb\xfc", 4},
		{"\xf2\xae\xeb\xfc", 4}, {"\xf3\xa6\xeb\xfc", 4},
		{"\x0f\x20\xd8\x0f\x22\xd8\xeb\xf8", 8},     /* mov cr3 */
		{"\x0f\x09\xeb\xfc", 4}, {"\x0f\xa2\xeb\xfc", 4}, {"\x0f\x30\xeb\xfc", 4}, {"\x0f\x31\xeb\xfc", 4},
		{"\x0f\x01\x3f\xeb\xfb", 5},                 /* invlpg */
		{"\x89\x07\x0f\x01\x3f\xeb\xf9", 7},
		{"\x8b\x07\x81\xc7\x00\x00\x20\x00\xeb\xf6", 10}, /* another table page each time */
		{"\x8b\x07\x05\x01\x00\x00\x00\x89\x07\xeb\xf5", 11},
		{"\xff\x07\xeb\xfc", 4},
		{"\xe2\xfe\xeb\xfc", 4}, {"\xe3\xfe\xeb\xfc", 4}, {"\xe0\xfe\xeb\xfc", 4},
		{"\xff\xe0", 2}, {"\xff\xd0", 2}, {"\xc3", 1}, {"\xcf", 1}, {"\xcb", 1}, {"\xff\x27", 2}, {"\xff\x2f", 2},
		{"\xee\xeb\xfd", 3}, {"\xec\xeb\xfd", 3}, {"\xef\xeb\xfd", 3},
		{"\x0f\x23\xf8\x8b\x07\x89\x07\xeb\xf7", 9}, /* mov dr7 */
		{"\xdb\xe3\xd9\x2f\xd9\xee\xd8\xf0\x9b\xeb\xf5", 11},
		{"\xc8\x00\x00\x1f\xeb\xfa", 6}, {"\x0f\xae\x27\x0f\xae\x2f\xeb\xf8", 8}, {"\x0f\x05\xeb\xfc", 4}, {"\x0f\x34\xeb\xfc", 4},
	};
	struct gen g = {.r = r, .w = w, .p = buf, .end = buf + 256};
	unsigned i = below(r, ARRAY_LEN(loops)), n = 0;

	for (unsigned reg = 0; reg < 8; reg++)
		if (reg != R_SP || !below(r, 4))
			set(&g, reg, reg == R_DX ? port(&g) : reg == R_CX ? rnd(r) : address(&g));
	if (below(r, 3) == 0) { /* with a timer as fast as it goes */
		static const uint32_t timer[][2] = {{0xf0, 0x1ff}, {0x3e0, 0xb}, {0x320, 0x20040}, {0x380, 1}};

		for (unsigned t = 0; t < 4; t++) {
			set(&g, R_BX, 0xfee00000u + timer[t][0]);
			set(&g, R_AX, timer[t][1]);
			if (w->bits == 16)
				B(&g, "\x67\x66");
			B(&g, "\x89\x03");
		}
		b1(&g, 0xfb);
	}
	if (w->bits != 16 && !below(r, 12)) {
		far_from_polls(&g);
		return (unsigned)(g.p - buf);
	}
	if (!below(r, 4)) { /* writes to its own code: inc byte [its first byte] or the like, then the loop */
		set(&g, R_DI, W_CODE + (uint64_t)(g.p - buf) + below(r, 16) + (below(r, 2) ? 8 * MIB : 0));
		n = (unsigned)(g.p - buf);
		if (w->bits == 16)
			b1(&g, 0x67);
		B(&g, "\x80\x07");
		noise(&g, 1);
		noise(&g, below(r, 3));
		b1(&g, 0xeb);
		b1(&g, (uint8_t)(n - (unsigned)(g.p + 1 - buf)));
		return (unsigned)(g.p - buf);
	}
	bytes(&g, loops[i].b, loops[i].n);
	b1(&g, 0xe9);
	imm(&g, (uint64_t)(buf - (g.p + (w->bits == 16 ? 2 : 4))), w->bits == 16 ? 2 : 4);
	return (unsigned)(g.p - buf);
}
