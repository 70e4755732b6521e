#include "hostile.h"

#include <string.h>

#define PML4 (W_TABLES)
#define PDPT (W_TABLES + 0x1000)
#define PD_LOW (W_TABLES + 0x2000)
#define PD_MMIO (W_TABLES + 0x3000)
#define PD32 (W_TABLES + 0x4000)
#define PDPT_PAE (W_TABLES + 0x5000)
#define PT64 (W_TABLES + 0x6000) /* 4 of them */
#define PT32 (W_TABLES + 0xa000) /* 2 */
#define RWXU 7u
#define LARGE BIT(7)

static void put64(struct ram *ram, gpa_t at, uint64_t v) { ram_write(ram, at, &v, 8); }
static void put32(struct ram *ram, gpa_t at, uint32_t v) { ram_write(ram, at, &v, 4); }

/* Long mode and PAE share the lower levels. */
static void tables64(struct ram *ram)
{
	for (unsigned i = 0; i < 2048; i++)
		put64(ram, PT64 + i * 8, i * PAGE_SIZE | RWXU);
	for (unsigned i = 0; i < 4; i++) {
		put64(ram, PD_LOW + i * 8, (PT64 + i * PAGE_SIZE) | RWXU);
		put64(ram, PD_LOW + (4 + i) * 8, (i * 2 * MIB) | RWXU | LARGE); /* the same RAM again, by large pages */
	}
	put64(ram, PD_LOW + 8 * 8, PT64 | RWXU);                        /* and again by the same table */
	put64(ram, PD_LOW + 9 * 8, (1 * GIB) | RWXU | LARGE);           /* no RAM there */
	put64(ram, PD_LOW + 10 * 8, UINT64_C(0x7fff00000) | RWXU);      /* a table outside RAM */
	put64(ram, PD_LOW + 11 * 8, PD_LOW | RWXU);                     /* itself */
	put64(ram, PD_LOW + 12 * 8, 0xfee00000 | RWXU);                 /* a table in the LAPIC */
	put64(ram, PD_LOW + 13 * 8, 0xe0000000 | RWXU);                 /* in ECAM */
	for (unsigned i = 0; i < 512; i++)
		put64(ram, PD_MMIO + i * 8, (3 * GIB + i * 2 * MIB) | RWXU | LARGE);
	put64(ram, PDPT, PD_LOW | RWXU);
	put64(ram, PDPT + 1 * 8, RWXU | LARGE); /* a page of 1 GiB */
	put64(ram, PDPT + 3 * 8, PD_MMIO | RWXU);
	put64(ram, PDPT + 510 * 8, PD_LOW | RWXU);
	put64(ram, PDPT + 511 * 8, PD_MMIO | RWXU);
	put64(ram, PML4, PDPT | RWXU);
	put64(ram, PML4 + 255 * 8, PDPT | RWXU);
	put64(ram, PML4 + 256 * 8, PDPT | RWXU);
	put64(ram, PML4 + 300 * 8, PML4 | RWXU);
	put64(ram, PML4 + 511 * 8, PDPT | RWXU);
	put64(ram, PDPT_PAE, PD_LOW | 1);
	put64(ram, PDPT_PAE + 8, PD_LOW | 1);
	put64(ram, PDPT_PAE + 16, 0x7fff000 | 1);
	put64(ram, PDPT_PAE + 24, PD_MMIO | 1);
}

static void tables32(struct ram *ram)
{
	for (unsigned i = 0; i < 2048; i++)
		put32(ram, PT32 + i * 4, (uint32_t)(i * PAGE_SIZE | RWXU));
	put32(ram, PD32, PT32 | RWXU);
	put32(ram, PD32 + 4, (PT32 + 0x1000) | RWXU);
	put32(ram, PD32 + 8, (uint32_t)(RWXU | LARGE));
	put32(ram, PD32 + 12, PD32 | RWXU);
	put32(ram, PD32 + 16, 0xfee00000 | RWXU);
	put32(ram, PD32 + 20, 0x7ff00000 | RWXU);
	for (unsigned i = 768; i < 1024; i++)
		put32(ram, PD32 + i * 4, (uint32_t)(i << 22 | RWXU | LARGE));
	put32(ram, PD32 + 1023 * 4, PT32 | RWXU); /* the last page of the address space is RAM */
	put32(ram, PD32 + 1019 * 4, (uint32_t)(1019u << 22 | RWXU | LARGE));
}

static uint64_t descriptor(uint64_t base, uint64_t limit, uint64_t attr)
{
	return (limit & 0xffff) | (base & 0xffffff) << 16 | (attr & 0xff) << 40 | (limit >> 16 & 15) << 48 | (attr >> 12 & 15) << 52 |
	       (base >> 24 & 0xff) << 56;
}

static void gdt(struct rng *r, struct ram *ram)
{
	static const uint64_t fixed[] = {
		0,
		0xa09b, 0xc093, 0xc09b, /* 08 code64, 10 data, 18 code32, ring 0 */
		0xa0fb, 0xc0f3, 0xc0fb, /* 20, 28, 30: the same of ring 3 */
		0x009b,                 /* 38 code16 */
	};

	for (unsigned i = 1; i < ARRAY_LEN(fixed); i++)
		put64(ram, W_GDT + i * 8, descriptor(0, fixed[i] == 0x009b ? 0xffff : 0xfffff, fixed[i]));
	put64(ram, W_GDT + 0x40, descriptor(W_TSS, 0x2067, 0x89));
	put64(ram, W_GDT + 0x48, 0);
	put64(ram, W_GDT + 0x50, descriptor(W_LDT, 0xff, 0x82));
	put64(ram, W_GDT + 0x58, 0);
	put64(ram, W_GDT + 0x60, descriptor(W_TSS + 0x800, 0x67, 0x89)); /* a task of 32 bits, if anyone jumps there */
	for (unsigned at = 0x70; at < 0x800; at += 8) {
		uint64_t d = rnd(r);

		if (below(r, 2)) /* a gate to something that runs */
			d = (W_CODE & 0xffff) | (uint64_t)(below(r, 2) ? 0x08 : 0x18) << 16 | (uint64_t)(below(r, 32)) << 32 |
			    (uint64_t)(0x84 | below(r, 4) << 5 | below(r, 8) << 0) << 40 | (uint64_t)(W_CODE >> 16) << 48;
		put64(ram, W_GDT + at, d);
	}
	for (unsigned at = 0; at < 0x100; at += 8)
		put64(ram, W_LDT + at, below(r, 2) ? descriptor(rnd(r), rnd(r), 0xc092 | (rnd(r) & 0x6f)) : rnd(r));
}

static bool has_error(unsigned v)
{
	return v == 8 || (v >= 10 && v <= 14) || v == 17 || v == 21 || v == 29 || v == 30;
}

/* Handlers: step over the instruction, or not; for interrupts an EOI. */
static void stub(struct rng *r, struct ram *ram, const struct world *w, unsigned v)
{
	static const uint8_t eoi64[] = {0xc7, 0x04, 0x25, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0, 0x48, 0xcf};
	static const uint8_t eoi32[] = {0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0, 0, 0, 0, 0xcf};
	static const uint8_t eoi16[] = {0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf};
	uint8_t skip = w->storm ? 0 : v == 1 || v == 3 || v == 4 ? 0 : (uint8_t)(1 + below(r, 3)), b[16] = {0};
	unsigned n = 0, bits = w->mode == WORLD_LONG || w->mode == WORLD_COMPAT ? 64 : w->mode == WORLD_REAL ? 16 : 32;

	if (v >= 32) {
		if (bits == 64)
			memcpy(b, eoi64, sizeof(eoi64));
		else if (bits == 32)
			memcpy(b, eoi32, sizeof(eoi32));
		else
			memcpy(b, eoi16, sizeof(eoi16));
	} else if (bits == 16) {
		static const uint8_t s[] = {0x55, 0x89, 0xe5, 0x83, 0x46, 0x02, 0, 0x5d, 0xcf};

		memcpy(b, s, sizeof(s));
		b[6] = skip;
	} else {
		if (has_error(v)) {
			if (bits == 64)
				b[n++] = 0x48;
			b[n++] = 0x83;
			b[n++] = 0xc4;
			b[n++] = (uint8_t)(bits / 8);
		}
		if (bits == 64)
			b[n++] = 0x48;
		b[n++] = 0x83;
		b[n++] = 0x04;
		b[n++] = 0x24;
		b[n++] = skip;
		if (bits == 64)
			b[n++] = 0x48;
		b[n++] = 0xcf;
	}
	ram_write(ram, W_STUBS + v * 16, b, 16);
}

static void idt(struct rng *r, struct ram *ram, const struct world *w)
{
	bool wide = w->mode == WORLD_LONG || w->mode == WORLD_COMPAT;

	for (unsigned v = 0; v < 256; v++) {
		uint64_t at = W_STUBS + v * 16, type = 0x8e | (uint64_t)below(r, 2) | (below(r, 2) ? 0x60 : 0);

		stub(r, ram, w, v);
		if (w->mode == WORLD_REAL) {
			put32(ram, v * 4, (uint32_t)at);
			continue;
		}
		if (wide) {
			put64(ram, W_IDT + v * 16, (at & 0xffff) | 0x08 << 16 | (uint64_t)(below(r, 4) ? 1 : below(r, 8)) << 32 | type << 40);
			put64(ram, W_IDT + v * 16 + 8, 0);
		} else {
			put64(ram, W_IDT + v * 8, (at & 0xffff) | 0x18 << 16 | (below(r, 16) ? type : 0x85) << 40);
		}
	}
}

static void tss(struct ram *ram, const struct world *w)
{
	bool wide = w->mode == WORLD_LONG || w->mode == WORLD_COMPAT;

	if (wide) {
		for (unsigned i = 0; i < 3; i++)
			ram_write(ram, W_TSS + 4 + i * 8, &(uint64_t){W_STACKS + 0x1000 * (i + 1)}, 8);
		for (unsigned i = 0; i < 7; i++)
			ram_write(ram, W_TSS + 36 + i * 8, &(uint64_t){W_STACKS + 0x4000 + (i == 0 ? 0 : 0x400 * i)}, 8);
	} else {
		for (unsigned i = 0; i < 3; i++) {
			put32(ram, W_TSS + 4 + i * 8, W_STACKS + 0x1000 * (i + 1));
			put32(ram, W_TSS + 8 + i * 8, 0x10 + i);
		}
	}
	ram_write(ram, W_TSS + 102, &(uint16_t){0x68}, 2);
}

static void segment(struct cpu_seg *s, uint16_t sel, uint64_t base, uint32_t limit, uint32_t attr)
{
	*s = (struct cpu_seg){.sel = sel, .base = base, .limit = limit, .attr = attr};
}

static void segments(const struct world *w, struct cpu_state *s)
{
	uint32_t dpl = w->cpl << 5, ring = w->cpl ? 0x18 : 0;

	if (w->mode == WORLD_REAL || w->mode == WORLD_V86) {
		uint32_t user = w->mode == WORLD_V86 ? 0x60 : 0;

		for (unsigned i = 0; i < SEG_COUNT; i++)
			segment(&s->seg[i], W_DATA >> 4, W_DATA, 0xffff, 0x93 | user);
		segment(&s->seg[SEG_CS], W_CODE >> 4, W_CODE, 0xffff, (user ? 0x93 : 0x9b) | user);
		segment(&s->seg[SEG_SS], W_STACKS >> 4, W_STACKS, 0xffff, 0x93 | user);
		return;
	}
	for (unsigned i = 0; i < SEG_COUNT; i++)
		segment(&s->seg[i], (uint16_t)((0x10 + ring) | w->cpl), 0, UINT32_MAX, 0xc093 | dpl);
	segment(&s->seg[SEG_CS], (uint16_t)(((w->bits == 64 ? 0x08 : 0x18) + ring) | w->cpl), 0, UINT32_MAX,
		(w->bits == 64 ? 0xa09b : w->bits == 16 ? 0x809b : 0xc09b) | dpl);
}

static void control(struct rng *r, const struct world *w, struct cpu_state *s)
{
	s->cr0 = CR0_ET | CR0_NE | (below(r, 2) ? CR0_WP : 0) | (below(r, 4) ? 0 : CR0_AM) | (below(r, 8) ? 0 : CR0_TS);
	s->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_PSE | CR4_PGE | CR4_FSGSBASE | (below(r, 2) ? CR4_SMAP : 0) |
		 (below(r, 8) ? 0 : CR4_VME | CR4_PVI) | (below(r, 8) ? 0 : CR4_TSD);
	s->cr4 &= below(r, 2) ? ~UINT64_C(0) : ~CR4_SMAP;
	s->efer = EFER_SCE | EFER_NXE;
	s->xcr0 = 7;
	if (w->mode != WORLD_REAL)
		s->cr0 |= CR0_PE;
	switch (w->mode) {
	case WORLD_PAGED32:
	case WORLD_V86:
		s->cr0 |= CR0_PG;
		s->cr3 = PD32;
		break;
	case WORLD_PAE:
		s->cr0 |= CR0_PG;
		s->cr4 |= CR4_PAE;
		s->cr3 = PDPT_PAE;
		for (unsigned i = 0; i < 4; i++)
			s->pdpte[i] = i == 3 ? PD_MMIO | 1 : i == 2 ? 0x7fff001 : PD_LOW | 1;
		break;
	case WORLD_COMPAT:
	case WORLD_LONG:
		s->cr0 |= CR0_PG;
		s->cr4 |= CR4_PAE | (below(r, 2) ? CR4_PCIDE : 0);
		s->cr3 = PML4;
		s->efer |= EFER_LME | EFER_LMA;
		break;
	default:
		break;
	}
}

static uint64_t interesting(struct rng *r, const struct world *w)
{
	switch (below(r, 8)) {
	case 0: return rnd(r);
	case 1: return W_CODE + below(r, W_CODE_LEN);
	case 2: return W_TABLES + below(r, 0x8000);
	case 3: return W_STACKS + below(r, 0x4000);
	case 4: return 0xfee00000 + below(r, 0x400);
	case 5: return (W_DATA + PAGE_SIZE) - below(r, 64);
	default: return W_DATA + below(r, W_DATA_LEN);
	}
}

static void wild(struct rng *r, struct ram *ram, struct cpu_state *s)
{
	unsigned n = 1 + below(r, 40);

	for (unsigned i = 0; i < n; i++) {
		uint64_t v = below(r, 3) ? (rnd(r) & UINT64_C(0xffffffffff000)) | (rnd(r) & 0x1ff) | (below(r, 4) ? 0 : BIT(63)) : rnd(r);

		put64(ram, W_TABLES + 8 * below(r, (W_TABLES_END - W_TABLES) / 8), v);
		put64(ram, W_GDT + 8 * below(r, 0x400), v);
		put64(ram, W_TSS + 8 * below(r, 16), v);
	}
	if (!below(r, 4))
		s->gdt.base = rnd(r) >> below(r, 48);
	if (!below(r, 4))
		s->idt.base = rnd(r) >> below(r, 48);
	if (!below(r, 4))
		s->tr.base = rnd(r) >> below(r, 48);
	if (!below(r, 4))
		s->ldt.base = rnd(r) >> below(r, 48);
	if (!below(r, 4))
		s->cr3 = rnd(r) & UINT64_C(0xfffffff000);
}

void world_make(struct rng *r, struct ram *ram, struct world *w, struct cpu_state *s)
{
	cpu_state_reset(s, 0);
	w->mode = (enum world_mode)below(r, WORLD_MODES + 3); /* long mode more often */
	if (w->mode > WORLD_LONG)
		w->mode = WORLD_LONG;
	w->cpl = w->mode == WORLD_V86 ? 3 : w->mode == WORLD_REAL || below(r, 3) ? 0 : 3;
	w->bits = w->mode == WORLD_LONG ? 64 : w->mode == WORLD_REAL || w->mode == WORLD_V86 || !below(r, 6) ? 16 : 32;
	tables64(ram);
	tables32(ram);
	gdt(r, ram);
	tss(ram, w);
	idt(r, ram, w);
	control(r, w, s);
	segments(w, s);
	s->gdt = (struct cpu_dtr){.base = W_GDT, .limit = 0x7ff};
	s->idt = (struct cpu_dtr){.base = w->mode == WORLD_REAL ? 0 : W_IDT, .limit = 0xfff};
	segment(&s->tr, 0x40, W_TSS, 0x2067, 0x8b);
	segment(&s->ldt, 0x50, W_LDT, 0xff, 0x82);
	s->rflags = FL_FIXED | (below(r, 2) ? FL_IF : 0) | (below(r, 4) ? 0 : FL_IOPL) | (w->mode == WORLD_V86 ? FL_VM : 0);
	for (unsigned i = 0; i < 16; i++)
		s->gpr[i] = interesting(r, w);
	s->gpr[R_SP] = w->mode == WORLD_REAL || w->mode == WORLD_V86 ? 0x1000 : W_STACKS + 0x5000;
	s->rip = w->mode == WORLD_REAL || w->mode == WORLD_V86 ? 0 : W_CODE;
	s->star = UINT64_C(0x0018000800000000);
	s->lstar = s->cstar = W_CODE + 0x100;
	s->sysenter_cs = 0x08;
	s->sysenter_eip = W_CODE + 0x200;
	s->sysenter_esp = W_STACKS + 0x1000;
	if (w->wild_tables)
		wild(r, ram, s);
}
