#include "flowgen_int.h"

/* ---- registers ---- */

unsigned ops_any_reg(void)
{
	unsigned k = below(8), r;

	if (k < 3)
		return 9 + below(3);
	if (k < 5)
		return 8 + below(8);
	do
		r = below(16);
	while (r == SP);
	return r;
}

void ops_wrote(struct gen *g, unsigned r)
{
	g->ptr &= ~BIT_OF(r);
	g->small &= ~BIT_OF(r);
	g->clobber |= BIT_OF(r);
}

unsigned ops_out_reg(struct gen *g)
{
	unsigned r;

	do
		r = ops_any_reg();
	while (g->locked & BIT_OF(r));
	return r;
}

static unsigned any_size(void)
{
	static const uint8_t s[] = {8, 8, 8, 4, 4, 4, 2, 1, 1};

	return s[below(sizeof(s))];
}

/* ---- addresses ---- */

static int32_t data_offset(void)
{
	switch (below(24)) {
	case 0: case 1: case 2:
		return (int32_t)(4096 * (1 + below(2)) - below(72)); /* over a page's end */
	case 3: case 4: case 5:
		return (int32_t)below(3 * 4096 - 64);
	case 6:
		return below(4) ? (int32_t)(3 * 4096 - below(72)) : (int32_t)below(5 * 4096);
	default:
		return (int32_t)(64 * below(3 * 64));
	}
}

void ops_make_ptr(struct gen *g, unsigned r)
{
	unsigned from = ops_any_reg();
	struct mem m = {.base = (int)r, .index = -1};
	struct flow_item *i;
	int32_t at = data_offset();

	switch (below(5)) {
	case 0:
		asm_op(g, 0, 4, 1, 0xb7, r, from, NULL)->keep = true; /* movzx r32, r16 */
		i = asm_op(g, 0, 4, 0, 0x81, 4, r, NULL);
		asm_imm(g, i, below(4) ? 0x1ff8 : below(4) ? 0x1fff : below(4) ? 0x3fff : 0xffff, 4, false);
		i->keep = true;
		m.disp = (int32_t)FLOW_DATA;
		asm_op(g, 0, 8, 0, 0x8d, r, 0, &m)->keep = true;
		break;
	case 1:
		asm_op(g, 0, 1, 1, 0xb6, r, from, NULL)->keep = true; /* movzx r, r8, by 16 bits or more: no flags */
		asm_op(g, 0, 4, 1, 0xb6, r, r, NULL)->keep = true;
		m = (struct mem){.base = -1, .index = (int)r, .scale = 3, .disp = (int32_t)FLOW_DATA + (below(4) ? 8 * (int32_t)below(512) : (int32_t)below(4096))};
		asm_op(g, 0, 8, 0, 0x8d, r, 0, &m)->keep = true;
		break;
	case 2:
		m = (struct mem){.base = -1, .index = -1, .fix = FIX_DATA, .disp = at};
		asm_op(g, 0, 8, 0, 0x8d, r, 0, &m)->keep = true;
		break;
	case 3:
		i = asm_op(g, 0, 8, 0, 0xc7, 0, r, NULL);
		asm_imm(g, i, FLOW_DATA + (uint64_t)at, 4, false);
		i->keep = true;
		break;
	default:
		i = asm_item(g);
		i->keep = true;
		asm_byte(g, i, 0x48 | (r >> 3));
		asm_byte(g, i, 0xb8 | (r & 7));
		asm_imm(g, i, FLOW_DATA + (uint64_t)at, 8, false);
	}
	ops_wrote(g, r);
	g->ptr |= BIT_OF(r);
}

unsigned ops_ptr_reg(struct gen *g)
{
	unsigned r = 0;

	if (!g->ptr || !below(12)) {
		r = ops_out_reg(g);
		ops_make_ptr(g, r);
		return r;
	}
	do
		r = ops_any_reg();
	while (!(g->ptr & BIT_OF(r)));
	return r;
}

static int32_t small_disp(void)
{
	switch (below(8)) {
	case 0:
		return (int32_t)below(200) - 100;
	case 1:
		return (int32_t)below(0x400) - 0x100;
	case 2: case 3:
		return 0;
	default:
		return 8 * ((int32_t)below(12) - 3);
	}
}

/* An index register in range, made without touching flags. */
static unsigned make_index(struct gen *g)
{
	unsigned r = ops_out_reg(g);

	if ((g->small & BIT_OF(r)) && below(2))
		return r;
	asm_op(g, 0, 1, 1, 0xb6, r, ops_any_reg(), NULL)->keep = true;
	asm_op(g, 0, 4, 1, 0xb6, r, r, NULL)->keep = true;
	ops_wrote(g, r);
	g->small |= BIT_OF(r);
	return r;
}

static bool in_range(const struct gen *g, const struct mem *m)
{
	return (m->base >= 0 || m->index >= 0) && (m->base < 0 || (g->ptr & BIT_OF(m->base))) && (m->index < 0 || (g->small & BIT_OF(m->index)));
}

static struct mem new_mem(struct gen *g, unsigned size)
{
	struct mem m = {.base = -1, .index = -1};
	unsigned k = below(16);

	if (k == 0) {
		m.fix = FIX_DATA;
		m.disp = data_offset();
	} else if (k == 1) {
		m.disp = (int32_t)FLOW_DATA + data_offset();
	} else if (k == 2) {
		m.index = (int)make_index(g);
		m.scale = below(4);
		m.disp = (int32_t)FLOW_DATA + 16 * (int32_t)below(256);
	} else if (k == 3 || k == 4) {
		m.base = (int)ops_ptr_reg(g);
		m.index = (int)make_index(g);
		if (!(g->ptr & BIT_OF(m.base))) { /* it was made the index */
			m.base = -1;
			m.disp = (int32_t)FLOW_DATA;
			return m;
		}
		m.scale = below(4);
		m.disp = small_disp();
	} else if (k < 7 && g->frame && size <= 32) {
		m.base = SP;
		m.disp = g->depth - g->frame + (int32_t)(8 * below(4));
	} else if (k < 9 && g->rbp_frame && g->frame && size <= 32) {
		m.base = R_BP;
		m.disp = -72 + (int32_t)(8 * below(4)); /* see frame_unit */
	} else {
		m.base = (int)ops_ptr_reg(g);
		m.disp = small_disp();
		m.addr32 = !below(24);
	}
	return m;
}

/* Compiled code often uses an operand more than once. */
static struct mem any_mem(struct gen *g, unsigned size)
{
	if (!in_range(g, &g->last) || below(3))
		g->last = new_mem(g, size);
	return g->last;
}

/* ---- straight code ---- */

void ops_alu(struct gen *g)
{
	static const uint8_t ops[] = {0x00, 0x08, 0x10, 0x10, 0x18, 0x18, 0x20, 0x28, 0x30, 0x38, 0x84, 0x88, 0x88, 0x88, 0x86};
	unsigned o = ops[below(sizeof(ops))], size = any_size(), wide = size > 1, r, n;
	bool reads_only = o == 0x38 || o == 0x84;
	struct flow_item *i;
	struct mem m;

	switch (below(6)) {
	case 0: case 1: { /* register, register */
		unsigned a = ops_any_reg(), b = reads_only ? ops_any_reg() : ops_out_reg(g);

		if (o == 0x86) {
			a = ops_out_reg(g);
			ops_wrote(g, a);
		}
		if (size == 1 && b >= 4 && b < 8 && a < 8 && o != 0x86 && !(g->locked & BIT_OF(b - 4))) { /* AH..BH */
			i = asm_item(g);
			asm_byte(g, i, o);
			asm_modrm(g, i, a & 3, b, NULL);
			b -= 4;
		} else {
			asm_op(g, 0, size, 0, o | wide, a, b, NULL);
		}
		if (!reads_only)
			ops_wrote(g, b);
		break;
	}
	case 2: /* load */
		m = any_mem(g, size);
		if (o == 0x84 || o == 0x86) {
			asm_op(g, 0, size, 0, 0x84 | wide, ops_any_reg(), 0, &m);
			break;
		}
		r = ops_out_reg(g);
		asm_op(g, 0, size, 0, o | wide | 2, r, 0, &m);
		if (!reads_only)
			ops_wrote(g, r);
		break;
	case 3: /* store, or read, change and write */
		m = any_mem(g, size);
		r = o == 0x86 ? ops_out_reg(g) : ops_any_reg();
		asm_op(g, o < 0x38 && !below(8) ? 0xf0 : 0, size, 0, o | wide, r, 0, &m);
		if (o == 0x86)
			ops_wrote(g, r);
		break;
	case 4: /* immediate */
		o = below(8);
		n = below(2) && size > 1 ? 1 : size == 8 ? 4 : size;
		r = ops_out_reg(g);
		i = asm_op(g, 0, size, 0, size == 1 ? 0x80 : n == 1 ? 0x83 : 0x81, o, r, NULL);
		asm_imm(g, i, rnd(), n, true);
		if (o != 7)
			ops_wrote(g, r);
		break;
	default:
		m = any_mem(g, size);
		o = below(9);
		n = size == 8 ? 4 : size;
		i = asm_op(g, 0, size, 0, (o == 8 ? 0xc6 : 0x80) | wide, o & 7, 0, &m);
		asm_imm(g, i, rnd(), n, true);
	}
}

static void mov_imm(struct gen *g)
{
	unsigned r = ops_out_reg(g);
	struct flow_item *i = asm_item(g);

	if (below(2)) {
		if (r > 7)
			asm_byte(g, i, 0x41);
		asm_byte(g, i, 0xb8 | (r & 7));
		asm_imm(g, i, rnd(), 4, true);
	} else {
		asm_byte(g, i, 0x48 | (r >> 3));
		asm_byte(g, i, 0xb8 | (r & 7));
		asm_imm(g, i, below(2) ? rnd() : rnd() >> 40, 8, true);
	}
	ops_wrote(g, r);
}

/* Forms with a destination register and a register or memory source. */
static void two_operand(struct gen *g)
{
	static const struct { uint8_t pp, map, op; } t[] = {
		{0, 1, 0xaf}, {0, 1, 0x40}, {0, 1, 0x42}, {0, 1, 0x44}, {0, 1, 0x4c}, {0, 1, 0x4f}, {0, 1, 0xbc}, {0, 1, 0xbd},
		{0xf3, 1, 0xb8}, {0xf3, 1, 0xbc}, {0xf3, 1, 0xbd}, {0, 1, 0xb6}, {0, 1, 0xbe}, {0, 1, 0xb7}, {0, 1, 0xbf}, {0x66, 2, 0xf6}, {0xf3, 2, 0xf6},
	};
	unsigned k = below(sizeof(t) / sizeof(t[0])), size = below(2) ? 8 : 4, r;
	struct mem m;
	bool mem = below(3) == 0;

	if (mem)
		m = any_mem(g, size);
	r = ops_out_reg(g);
	asm_op(g, t[k].pp, size, t[k].map, t[k].op, r, ops_any_reg(), mem ? &m : NULL);
	ops_wrote(g, r);
	if (below(3) == 0) { /* movsxd */
		r = ops_out_reg(g);
		asm_op(g, 0, 8, 0, 0x63, r, ops_any_reg(), NULL);
		ops_wrote(g, r);
	}
}

static void one_operand(struct gen *g)
{
	unsigned size = any_size(), wide = size > 1, r, k = below(6);
	struct mem m;
	bool mem = below(3) == 0;
	struct flow_item *i;

	if (mem)
		m = any_mem(g, size);
	r = mem ? 0 : ops_out_reg(g);
	switch (k) {
	case 0: /* not, neg */
		asm_op(g, 0, size, 0, 0xf6 | wide, 2 + below(2), r, mem ? &m : NULL);
		break;
	case 1: /* inc, dec */
		asm_op(g, mem && !below(6) ? 0xf0 : 0, size, 0, 0xfe | wide, below(2), r, mem ? &m : NULL);
		break;
	case 2: /* shifts by cl */
		asm_op(g, 0, size, 0, 0xd2 | wide, below(6), r, mem ? &m : NULL);
		break;
	case 3:
		i = asm_op(g, 0, size, 0, 0xc0 | wide, below(6), r, mem ? &m : NULL);
		asm_imm(g, i, rnd(), 1, true);
		break;
	case 4: /* setcc */
		asm_op(g, 0, 1, 1, 0x90 | below(16), 0, r, mem ? &m : NULL);
		break;
	default: /* shld, shrd by cl */
		asm_op(g, 0, size == 1 ? 8 : size, 1, below(2) ? 0xa5 : 0xad, ops_any_reg(), r, mem ? &m : NULL);
	}
	if (!mem)
		ops_wrote(g, r);
}

static void bmi(struct gen *g)
{
	unsigned w = below(2), a = ops_out_reg(g), b, pp = 0, o;
	struct mem m;
	bool mem = below(3) == 0;
	static const struct { uint8_t pp, op; } t[] = {{0, 0xf2}, {0, 0xf7}, {1, 0xf7}, {2, 0xf7}, {3, 0xf7}, {2, 0xf5}, {3, 0xf5}, {0, 0xf5}};

	if (mem)
		m = any_mem(g, 8);
	switch (below(3)) {
	case 0: /* mulx */
		a = ops_out_reg(g);
		b = ops_out_reg(g);
		asm_vex(g, 3, 2, w, 0, 0xf6, a, b, ops_any_reg(), mem ? &m : NULL);
		ops_wrote(g, b);
		break;
	case 1: /* rorx */
		a = ops_out_reg(g);
		asm_imm(g, asm_vex(g, 3, 3, w, 0, 0xf0, a, 0, ops_any_reg(), mem ? &m : NULL), rnd(), 1, true);
		break;
	default:
		o = below(sizeof(t) / sizeof(t[0]));
		pp = t[o].pp;
		asm_vex(g, pp, 2, w, 0, t[o].op, a, ops_any_reg(), ops_any_reg(), mem ? &m : NULL);
	}
	ops_wrote(g, a);
}

static void exchange(struct gen *g)
{
	unsigned size = any_size(), wide = size > 1, r = ops_out_reg(g), k = below(4);
	struct mem m = any_mem(g, size);
	bool lock = below(2);

	switch (k) {
	case 0:
		if (g->locked & BIT_OF(R_AX))
			return;
		asm_op(g, lock ? 0xf0 : 0, size, 1, 0xb0 | wide, ops_any_reg(), 0, &m);
		ops_wrote(g, R_AX);
		break;
	case 1:
		r = ops_out_reg(g);
		asm_op(g, lock ? 0xf0 : 0, size, 1, 0xc0 | wide, r, 0, &m);
		ops_wrote(g, r);
		break;
	case 2: /* bit strings: the number in range */
		r = make_index(g);
		if (m.base == (int)r || m.index == (int)r)
			return;
		asm_op(g, 0, size == 1 ? 8 : size, 1, 0xa3 | below(4) << 3, r, 0, &m);
		break;
	default: {
		unsigned b = ops_out_reg(g);

		r = ops_out_reg(g);
		asm_op(g, 0, size, 1, (!(g->locked & BIT_OF(R_AX)) && below(2) ? 0xb0 : 0xc0) | wide, r, b, NULL);
		ops_wrote(g, r);
		ops_wrote(g, b);
		ops_wrote(g, R_AX);
	}
	}
}

static void implicit(struct gen *g)
{
	if (g->locked & (BIT_OF(R_AX) | BIT_OF(R_DX)))
		return;
	switch (below(7)) {
	case 0:
		asm_op(g, 0, below(2) ? 8 : 4, 0, 0xf7, 4 + below(2), ops_any_reg(), NULL); /* mul, imul */
		break;
	case 1:
		asm_plain(g, 0x48, 0x99, 0);
		break;
	case 2:
		asm_plain(g, 0x98 + below(2), 0, 0);
		break;
	case 3:
		asm_plain(g, 0x9f, 0, 0); /* lahf */
		break;
	case 4:
		asm_plain(g, 0x9e, 0, 0);
		break;
	case 5:
		asm_plain(g, below(2) ? 0xf8 : 0xf9, 0, 0);
		break;
	default:
		if (!below(8))
			asm_op(g, 0, below(2) ? 8 : 4, 0, 0xf7, 6 + below(2), ops_any_reg(), NULL); /* div, idiv: often #DE */
		else
			asm_plain(g, 0xf5, 0, 0);
	}
	ops_wrote(g, R_AX);
	ops_wrote(g, R_DX);
}

static void lea(struct gen *g)
{
	struct mem m = {.base = (int)ops_any_reg(), .index = below(2) ? (int)ops_any_reg() : -1, .scale = below(4), .disp = (int32_t)rnd()};
	unsigned r = ops_out_reg(g);

	if (below(2))
		m.disp = small_disp();
	if (!below(4))
		m.base = SP;
	m.addr32 = !below(12);
	asm_op(g, 0, below(4) ? 8 : below(2) ? 4 : 2, 0, 0x8d, r, 0, &m);
	ops_wrote(g, r);
}

static void vector(struct gen *g)
{
	static const struct { uint8_t pp, map, op, mem; } sse[] = {
		{0xf3, 1, 0x6f, 1}, {0xf3, 1, 0x7f, 1}, {0, 1, 0x10, 1}, {0, 1, 0x11, 1}, {0, 1, 0x28, 1}, {0, 1, 0x29, 1}, {0xf3, 1, 0x7e, 1}, {0x66, 1, 0xd6, 1},
		{0xf2, 1, 0x10, 1}, {0xf2, 1, 0x11, 1}, {0x66, 1, 0xfe, 0}, {0x66, 1, 0xef, 0}, {0x66, 2, 0x00, 0}, {0x66, 1, 0xd4, 0}, {0x66, 1, 0x6c, 0},
		{0x66, 1, 0x74, 0}, {0x66, 1, 0x7f, 1}, {0x66, 1, 0xfe, 1},
	};
	static const struct { uint8_t pp, map, op, mem; } avx[] = {
		{2, 1, 0x6f, 1}, {2, 1, 0x7f, 1}, {1, 1, 0xfe, 1}, {1, 1, 0xef, 0}, {1, 1, 0xfe, 0}, {1, 2, 0x00, 1}, {1, 2, 0x59, 1}, {1, 1, 0x74, 1}, {1, 1, 0x6f, 1},
	};
	unsigned k, x = below(16), r;
	struct mem m;

	switch (below(4)) {
	case 0: case 1:
		k = below(sizeof(sse) / sizeof(sse[0]));
		if (sse[k].mem)
			m = any_mem(g, 16);
		asm_op(g, sse[k].pp, 4, sse[k].map, sse[k].op, x, below(16), sse[k].mem ? &m : NULL);
		break;
	case 2:
		k = below(sizeof(avx) / sizeof(avx[0]));
		if (avx[k].mem)
			m = any_mem(g, 32);
		asm_vex(g, avx[k].pp, avx[k].map, 0, below(2), avx[k].op, x, avx[k].op == 0x6f || avx[k].op == 0x7f || avx[k].op == 0x59 ? 0 : below(16), below(16),
		    avx[k].mem ? &m : NULL);
		break;
	default:
		if (below(2)) { /* movq r, xmm; pmovmskb */
			r = ops_out_reg(g);
			if (below(2))
				asm_op(g, 0x66, 8, 1, 0x7e, x, r, NULL);
			else
				asm_op(g, 0x66, 4, 1, 0xd7, r, x, NULL);
			ops_wrote(g, r);
		} else {
			asm_op(g, 0x66, 8, 1, 0x6e, x, ops_any_reg(), NULL);
		}
	}
}

/* Arithmetic on pointers as compilers do it. */
static void pointers(struct gen *g)
{
	unsigned p = ops_ptr_reg(g), q = ops_out_reg(g);
	struct mem m = {.base = (int)p, .index = -1, .disp = small_disp()};
	bool may_write = !(g->locked & BIT_OF(p));
	struct flow_item *i;

	switch (below(6)) {
	case 0:
		asm_op(g, 0, 8, 0, 0x8d, q, 0, &m)->keep = true;
		break;
	case 1:
		asm_op(g, 0, 8, 0, 0x8b, q, p, NULL)->keep = true;
		break;
	case 2:
		asm_op(g, 0, 8, 0, 0x89, p, q, NULL)->keep = true;
		break;
	case 3:
		if (!may_write)
			return;
		i = asm_op(g, 0, 8, 0, 0x83, below(2) ? 0 : 5, p, NULL);
		asm_imm(g, i, below(4) ? 8 * below(6) : below(40), 1, false);
		g->clobber |= BIT_OF(p);
		return;
	case 4:
		if (!may_write)
			return;
		i = asm_op(g, 0, 8, 0, 0x83, 4, p, NULL);
		asm_imm(g, i, below(2) ? 0xf8 : 0xf0, 1, false);
		g->clobber |= BIT_OF(p);
		return;
	default: /* base + another pointer's low bits */
		m.index = (int)make_index(g);
		if (!(g->ptr & BIT_OF(p)))
			return;
		m.scale = 3;
		q = ops_out_reg(g);
		asm_op(g, 0, 8, 0, 0x8d, q, 0, &m)->keep = true;
	}
	ops_wrote(g, q);
	g->ptr |= BIT_OF(q);
}

static void string(struct gen *g)
{
	static const uint8_t ops[] = {0xa4, 0xa4, 0xaa, 0xaa, 0xa6, 0xae, 0xac};
	unsigned o = ops[below(sizeof(ops))], size = below(4);
	uint32_t uses = BIT_OF(R_SI) | BIT_OF(R_DI) | BIT_OF(R_CX);
	bool std = !below(12), rep = below(4);
	struct mem near = {.base = R_SI, .index = -1};
	struct flow_item *i;

	if (g->locked & (uses | BIT_OF(R_AX)))
		return;
	if (!(g->ptr & BIT_OF(R_SI)) || below(2))
		ops_make_ptr(g, R_SI);
	if (o == 0xa4) { /* one physical page at two addresses: fast strings need not see that source and destination overlap */
		near.disp = (int32_t)below(3 * 4096) - 4096;
		asm_op(g, 0, 8, 0, 0x8d, R_DI, 0, &near)->keep = true;
		g->ptr |= BIT_OF(R_DI);
	} else if (!(g->ptr & BIT_OF(R_DI)) || below(2)) {
		ops_make_ptr(g, R_DI);
	}
	if (below(2)) {
		asm_op(g, 0, 1, 1, 0xb6, R_CX, ops_any_reg(), NULL)->keep = true;
		asm_op(g, 0, 4, 1, 0xb6, R_CX, R_CX, NULL)->keep = true;
	} else {
		i = asm_item(g);
		asm_byte(g, i, 0xb9);
		asm_imm(g, i, below(48), 4, false);
		i->keep = true;
	}
	if (std)
		asm_plain(g, 0xfd, 0, 0);
	i = asm_item(g);
	if (size == 1)
		asm_byte(g, i, 0x66);
	if (rep)
		asm_byte(g, i, below(2) ? 0xf3 : 0xf2);
	if (size == 3)
		asm_byte(g, i, 0x48);
	asm_byte(g, i, o | (size != 0));
	if (std)
		asm_plain(g, 0xfc, 0, 0);
	g->clobber |= uses | BIT_OF(R_AX);
	g->ptr &= ~(BIT_OF(R_CX) | BIT_OF(R_AX));
	g->small &= ~(uses | BIT_OF(R_AX));
}

static void flags_image(struct gen *g)
{
	unsigned r = ops_out_reg(g);
	struct flow_item *i;

	asm_plain(g, 0x9c, 0, 0);
	i = asm_item(g);
	if (r > 7)
		asm_byte(g, i, 0x41);
	asm_byte(g, i, 0x58 | (r & 7));
	ops_wrote(g, r);
}

/* A store to an immediate of this program. */
static void self_modify(struct gen *g)
{
	unsigned size = below(3) ? 4 : 1;
	struct mem m = {.base = -1, .index = -1, .fix = FIX_DATA};
	struct flow_item *i = asm_op(g, 0, size, 0, 0x88 | (size > 1), ops_any_reg(), 0, &m);

	i->fix = FIX_SMC;
	i->target = -(int)size;
}

void ops_straight(struct gen *g)
{
	switch (below(20)) {
	case 0: case 1: case 2: case 3: case 4:
		ops_alu(g);
		break;
	case 5: case 6:
		pointers(g);
		break;
	case 7: case 8:
		two_operand(g);
		break;
	case 9: case 10:
		one_operand(g);
		break;
	case 11:
		bmi(g);
		break;
	case 12:
		exchange(g);
		break;
	case 13:
		implicit(g);
		break;
	case 14:
		lea(g);
		break;
	case 15: case 16:
		vector(g);
		break;
	case 17:
		mov_imm(g);
		break;
	case 18:
		if (below(2))
			string(g);
		else if (below(3) == 0)
			flags_image(g);
		else
			ops_make_ptr(g, ops_out_reg(g));
		break;
	default:
		if (g->f->smc && below(2))
			self_modify(g);
		else
			ops_alu(g);
	}
}
