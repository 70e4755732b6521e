#include "flowgen.h"

#include <string.h>

#include "native.h"

#define FUNCTIONS 6
#define SEGMENT_SOFT 330 /* a unit is begun before this many bytes; the rest closes what is open */
#define SEGMENT_HARD 512
#define MAX_COST 20000   /* instructions that a function runs, its callees' among them, at most */
#define SP R_SP
#define BIT_OF(r) (1u << (r))

struct function {
	int label, plt; /* plt: a jump through the pool, or -1 */
	uint32_t clobber;
	unsigned cost, ret_imm;
};

struct mem {
	int base, index; /* -1: none */
	unsigned scale;
	int32_t disp;
	uint8_t fix;
	bool addr32;
};

/* Where a break leads to. */
struct exit_point {
	int label, depth;
	uint32_t ptr;
};

struct gen {
	struct flow *f;
	unsigned segment, segment_len, unit, budget, level, cost;
	uint32_t locked; /* not to be written */
	uint32_t ptr;    /* known to point near the data arena */
	uint32_t small;  /* known to be below 256 */
	uint32_t clobber;
	struct mem last; /* operand */
	int depth;       /* bytes on the stack since the function's entry */
	int frame;       /* depth of scratch space there, 0: none */
	bool rbp_frame, is_main, full;
	struct exit_point *exit;
	struct function fn[FUNCTIONS];
	unsigned nfn;
};

/* ---- encoding ---- */

static struct flow_item *new_item(struct gen *g)
{
	struct flow *f = g->f;
	struct flow_item *i;

	if (f->nitems == FLOW_ITEMS) {
		f->overflow = true;
		f->nitems--;
	}
	i = &f->items[f->nitems++];
	*i = (struct flow_item){.segment = (uint8_t)g->segment, .unit = (uint16_t)g->unit};
	g->cost++;
	return i;
}

static void byte(struct gen *g, struct flow_item *i, unsigned b)
{
	i->bytes[i->len++] = (uint8_t)b;
	g->segment_len++;
}

static void imm(struct gen *g, struct flow_item *i, uint64_t v, unsigned n, bool is_free)
{
	if (is_free) {
		i->imm_at = i->len;
		i->imm_len = (uint8_t)n;
	}
	for (unsigned k = 0; k < n; k++)
		byte(g, i, (v >> (8 * k)) & 0xff);
}

static void fix(struct flow_item *i, enum flow_fix kind, unsigned at, int32_t target)
{
	i->fix = (uint8_t)kind;
	i->fix_at = (uint8_t)at;
	i->target = target;
}

static int new_label(struct gen *g)
{
	if (g->f->nlabels == FLOW_LABELS) {
		g->f->overflow = true;
		return 0;
	}
	return (int)g->f->nlabels++;
}

static void place(struct gen *g, int label)
{
	struct flow_item *i = new_item(g);

	i->target = label;
	i->keep = true;
	g->small = 0;
}

static void modrm(struct gen *g, struct flow_item *i, unsigned reg, unsigned rm, const struct mem *m)
{
	unsigned r = (reg & 7) << 3, mod;

	if (!m) {
		byte(g, i, 0xc0 | r | (rm & 7));
		return;
	}
	if (m->fix == FIX_DATA || m->fix == FIX_POOL) {
		byte(g, i, r | 5);
		fix(i, m->fix, i->len, m->disp);
		imm(g, i, 0, 4, false);
		return;
	}
	if (m->base < 0) {
		byte(g, i, r | 4);
		byte(g, i, m->scale << 6 | (m->index < 0 ? 4u : (unsigned)m->index & 7) << 3 | 5);
		if (m->fix)
			fix(i, m->fix, i->len, m->disp);
		imm(g, i, (uint32_t)m->disp, 4, false);
		return;
	}
	mod = m->disp == 0 && (m->base & 7) != 5 ? 0 : m->disp == (int8_t)m->disp && below(8) ? 1 : 2;
	if (m->index >= 0 || (m->base & 7) == 4) {
		byte(g, i, mod << 6 | r | 4);
		byte(g, i, m->scale << 6 | (m->index < 0 ? 4u : (unsigned)m->index & 7) << 3 | ((unsigned)m->base & 7));
	} else {
		byte(g, i, mod << 6 | r | ((unsigned)m->base & 7));
	}
	imm(g, i, (uint32_t)m->disp, mod == 1 ? 1 : mod == 2 ? 4 : 0, false);
}

/* size: 1, 2, 4, 8 bytes of a general operand; pp: a prefix that belongs to the opcode. m or the register rm. */
static struct flow_item *op(struct gen *g, unsigned pp, unsigned size, unsigned map, unsigned opcode, unsigned reg, unsigned rm, const struct mem *m)
{
	struct flow_item *i = new_item(g);
	unsigned rex = size == 8 ? 8 : 0;

	rex |= (reg & 8) >> 1;
	if (m)
		rex |= (m->base >= 8 ? 1u : 0) | (m->index >= 8 ? 2u : 0);
	else
		rex |= (rm & 8) >> 3;
	if (m && m->addr32)
		byte(g, i, 0x67);
	if (pp == 0xf0 && size == 2)
		byte(g, i, 0xf0);
	if (size == 2)
		byte(g, i, 0x66);
	if (pp && !(pp == 0xf0 && size == 2))
		byte(g, i, pp);
	if (rex || (size == 1 && ((reg >= 4 && reg < 8) || (!m && rm >= 4 && rm < 8))) || !below(16))
		byte(g, i, 0x40 | rex);
	if (map)
		byte(g, i, 0x0f);
	if (map == 2)
		byte(g, i, 0x38);
	if (map == 3)
		byte(g, i, 0x3a);
	byte(g, i, opcode);
	modrm(g, i, reg, rm, m);
	return i;
}

static struct flow_item *vex(struct gen *g, unsigned pp, unsigned map, unsigned w, unsigned l, unsigned opcode, unsigned reg, unsigned vvvv, unsigned rm,
			     const struct mem *m)
{
	struct flow_item *i = new_item(g);
	unsigned b = m ? m->base >= 8 : rm >= 8, x = m && m->index >= 8;

	if (m && m->addr32)
		byte(g, i, 0x67);
	byte(g, i, 0xc4);
	byte(g, i, (reg & 8 ? 0u : 0x80) | (x ? 0u : 0x40) | (b ? 0u : 0x20) | map);
	byte(g, i, w << 7 | (~vvvv & 15) << 3 | l << 2 | pp);
	byte(g, i, opcode);
	modrm(g, i, reg, rm, m);
	return i;
}

static void plain(struct gen *g, unsigned a, unsigned b, unsigned c)
{
	struct flow_item *i = new_item(g);

	byte(g, i, a);
	if (b)
		byte(g, i, b);
	if (c)
		byte(g, i, c);
}

/* ---- registers ---- */

static unsigned any_reg(void)
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

static void wrote(struct gen *g, unsigned r)
{
	g->ptr &= ~BIT_OF(r);
	g->small &= ~BIT_OF(r);
	g->clobber |= BIT_OF(r);
}

static unsigned out_reg(struct gen *g)
{
	unsigned r;

	do
		r = any_reg();
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

static void make_ptr(struct gen *g, unsigned r)
{
	unsigned from = any_reg();
	struct mem m = {.base = (int)r, .index = -1};
	struct flow_item *i;
	int32_t at = data_offset();

	switch (below(5)) {
	case 0:
		op(g, 0, 4, 1, 0xb7, r, from, NULL)->keep = true; /* movzx r32, r16 */
		i = op(g, 0, 4, 0, 0x81, 4, r, NULL);
		imm(g, i, below(4) ? 0x1ff8 : below(4) ? 0x1fff : below(4) ? 0x3fff : 0xffff, 4, false);
		i->keep = true;
		m.disp = (int32_t)FLOW_DATA;
		op(g, 0, 8, 0, 0x8d, r, 0, &m)->keep = true;
		break;
	case 1:
		op(g, 0, 1, 1, 0xb6, r, from, NULL)->keep = true; /* movzx r, r8, by 16 bits or more: no flags */
		op(g, 0, 4, 1, 0xb6, r, r, NULL)->keep = true;
		m = (struct mem){.base = -1, .index = (int)r, .scale = 3, .disp = (int32_t)FLOW_DATA + (below(4) ? 8 * (int32_t)below(512) : (int32_t)below(4096))};
		op(g, 0, 8, 0, 0x8d, r, 0, &m)->keep = true;
		break;
	case 2:
		m = (struct mem){.base = -1, .index = -1, .fix = FIX_DATA, .disp = at};
		op(g, 0, 8, 0, 0x8d, r, 0, &m)->keep = true;
		break;
	case 3:
		i = op(g, 0, 8, 0, 0xc7, 0, r, NULL);
		imm(g, i, FLOW_DATA + (uint64_t)at, 4, false);
		i->keep = true;
		break;
	default:
		i = new_item(g);
		i->keep = true;
		byte(g, i, 0x48 | (r >> 3));
		byte(g, i, 0xb8 | (r & 7));
		imm(g, i, FLOW_DATA + (uint64_t)at, 8, false);
	}
	wrote(g, r);
	g->ptr |= BIT_OF(r);
}

static unsigned ptr_reg(struct gen *g)
{
	unsigned r = 0;

	if (!g->ptr || !below(12)) {
		r = out_reg(g);
		make_ptr(g, r);
		return r;
	}
	do
		r = any_reg();
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
	unsigned r = out_reg(g);

	if ((g->small & BIT_OF(r)) && below(2))
		return r;
	op(g, 0, 1, 1, 0xb6, r, any_reg(), NULL)->keep = true;
	op(g, 0, 4, 1, 0xb6, r, r, NULL)->keep = true;
	wrote(g, r);
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
		m.base = (int)ptr_reg(g);
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
		m.base = (int)ptr_reg(g);
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

static void alu(struct gen *g)
{
	static const uint8_t ops[] = {0x00, 0x08, 0x10, 0x10, 0x18, 0x18, 0x20, 0x28, 0x30, 0x38, 0x84, 0x88, 0x88, 0x88, 0x86};
	unsigned o = ops[below(sizeof(ops))], size = any_size(), wide = size > 1, r, n;
	bool reads_only = o == 0x38 || o == 0x84;
	struct flow_item *i;
	struct mem m;

	switch (below(6)) {
	case 0: case 1: { /* register, register */
		unsigned a = any_reg(), b = reads_only ? any_reg() : out_reg(g);

		if (o == 0x86) {
			a = out_reg(g);
			wrote(g, a);
		}
		if (size == 1 && b >= 4 && b < 8 && a < 8 && o != 0x86 && !(g->locked & BIT_OF(b - 4))) { /* AH..BH */
			i = new_item(g);
			byte(g, i, o);
			modrm(g, i, a & 3, b, NULL);
			b -= 4;
		} else {
			op(g, 0, size, 0, o | wide, a, b, NULL);
		}
		if (!reads_only)
			wrote(g, b);
		break;
	}
	case 2: /* load */
		m = any_mem(g, size);
		if (o == 0x84 || o == 0x86) {
			op(g, 0, size, 0, 0x84 | wide, any_reg(), 0, &m);
			break;
		}
		r = out_reg(g);
		op(g, 0, size, 0, o | wide | 2, r, 0, &m);
		if (!reads_only)
			wrote(g, r);
		break;
	case 3: /* store, or read, change and write */
		m = any_mem(g, size);
		r = o == 0x86 ? out_reg(g) : any_reg();
		op(g, o < 0x38 && !below(8) ? 0xf0 : 0, size, 0, o | wide, r, 0, &m);
		if (o == 0x86)
			wrote(g, r);
		break;
	case 4: /* immediate */
		o = below(8);
		n = below(2) && size > 1 ? 1 : size == 8 ? 4 : size;
		r = out_reg(g);
		i = op(g, 0, size, 0, size == 1 ? 0x80 : n == 1 ? 0x83 : 0x81, o, r, NULL);
		imm(g, i, rnd(), n, true);
		if (o != 7)
			wrote(g, r);
		break;
	default:
		m = any_mem(g, size);
		o = below(9);
		n = size == 8 ? 4 : size;
		i = op(g, 0, size, 0, (o == 8 ? 0xc6 : 0x80) | wide, o & 7, 0, &m);
		imm(g, i, rnd(), n, true);
	}
}

static void mov_imm(struct gen *g)
{
	unsigned r = out_reg(g);
	struct flow_item *i = new_item(g);

	if (below(2)) {
		if (r > 7)
			byte(g, i, 0x41);
		byte(g, i, 0xb8 | (r & 7));
		imm(g, i, rnd(), 4, true);
	} else {
		byte(g, i, 0x48 | (r >> 3));
		byte(g, i, 0xb8 | (r & 7));
		imm(g, i, below(2) ? rnd() : rnd() >> 40, 8, true);
	}
	wrote(g, r);
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
	r = out_reg(g);
	op(g, t[k].pp, size, t[k].map, t[k].op, r, any_reg(), mem ? &m : NULL);
	wrote(g, r);
	if (below(3) == 0) { /* movsxd */
		r = out_reg(g);
		op(g, 0, 8, 0, 0x63, r, any_reg(), NULL);
		wrote(g, r);
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
	r = mem ? 0 : out_reg(g);
	switch (k) {
	case 0: /* not, neg */
		op(g, 0, size, 0, 0xf6 | wide, 2 + below(2), r, mem ? &m : NULL);
		break;
	case 1: /* inc, dec */
		op(g, mem && !below(6) ? 0xf0 : 0, size, 0, 0xfe | wide, below(2), r, mem ? &m : NULL);
		break;
	case 2: /* shifts by cl */
		op(g, 0, size, 0, 0xd2 | wide, below(6), r, mem ? &m : NULL);
		break;
	case 3:
		i = op(g, 0, size, 0, 0xc0 | wide, below(6), r, mem ? &m : NULL);
		imm(g, i, rnd(), 1, true);
		break;
	case 4: /* setcc */
		op(g, 0, 1, 1, 0x90 | below(16), 0, r, mem ? &m : NULL);
		break;
	default: /* shld, shrd by cl */
		op(g, 0, size == 1 ? 8 : size, 1, below(2) ? 0xa5 : 0xad, any_reg(), r, mem ? &m : NULL);
	}
	if (!mem)
		wrote(g, r);
}

static void bmi(struct gen *g)
{
	unsigned w = below(2), a = out_reg(g), b, pp = 0, o;
	struct mem m;
	bool mem = below(3) == 0;
	static const struct { uint8_t pp, op; } t[] = {{0, 0xf2}, {0, 0xf7}, {1, 0xf7}, {2, 0xf7}, {3, 0xf7}, {2, 0xf5}, {3, 0xf5}, {0, 0xf5}};

	if (mem)
		m = any_mem(g, 8);
	switch (below(3)) {
	case 0: /* mulx */
		a = out_reg(g);
		b = out_reg(g);
		vex(g, 3, 2, w, 0, 0xf6, a, b, any_reg(), mem ? &m : NULL);
		wrote(g, b);
		break;
	case 1: /* rorx */
		a = out_reg(g);
		imm(g, vex(g, 3, 3, w, 0, 0xf0, a, 0, any_reg(), mem ? &m : NULL), rnd(), 1, true);
		break;
	default:
		o = below(sizeof(t) / sizeof(t[0]));
		pp = t[o].pp;
		vex(g, pp, 2, w, 0, t[o].op, a, any_reg(), any_reg(), mem ? &m : NULL);
	}
	wrote(g, a);
}

static void exchange(struct gen *g)
{
	unsigned size = any_size(), wide = size > 1, r = out_reg(g), k = below(4);
	struct mem m = any_mem(g, size);
	bool lock = below(2);

	switch (k) {
	case 0:
		if (g->locked & BIT_OF(R_AX))
			return;
		op(g, lock ? 0xf0 : 0, size, 1, 0xb0 | wide, any_reg(), 0, &m);
		wrote(g, R_AX);
		break;
	case 1:
		r = out_reg(g);
		op(g, lock ? 0xf0 : 0, size, 1, 0xc0 | wide, r, 0, &m);
		wrote(g, r);
		break;
	case 2: /* bit strings: the number in range */
		r = make_index(g);
		if (m.base == (int)r || m.index == (int)r)
			return;
		op(g, 0, size == 1 ? 8 : size, 1, 0xa3 | below(4) << 3, r, 0, &m);
		break;
	default: {
		unsigned b = out_reg(g);

		r = out_reg(g);
		op(g, 0, size, 1, (!(g->locked & BIT_OF(R_AX)) && below(2) ? 0xb0 : 0xc0) | wide, r, b, NULL);
		wrote(g, r);
		wrote(g, b);
		wrote(g, R_AX);
	}
	}
}

static void implicit(struct gen *g)
{
	if (g->locked & (BIT_OF(R_AX) | BIT_OF(R_DX)))
		return;
	switch (below(7)) {
	case 0:
		op(g, 0, below(2) ? 8 : 4, 0, 0xf7, 4 + below(2), any_reg(), NULL); /* mul, imul */
		break;
	case 1:
		plain(g, 0x48, 0x99, 0);
		break;
	case 2:
		plain(g, 0x98 + below(2), 0, 0);
		break;
	case 3:
		plain(g, 0x9f, 0, 0); /* lahf */
		break;
	case 4:
		plain(g, 0x9e, 0, 0);
		break;
	case 5:
		plain(g, below(2) ? 0xf8 : 0xf9, 0, 0);
		break;
	default:
		if (!below(8))
			op(g, 0, below(2) ? 8 : 4, 0, 0xf7, 6 + below(2), any_reg(), NULL); /* div, idiv: often #DE */
		else
			plain(g, 0xf5, 0, 0);
	}
	wrote(g, R_AX);
	wrote(g, R_DX);
}

static void lea(struct gen *g)
{
	struct mem m = {.base = (int)any_reg(), .index = below(2) ? (int)any_reg() : -1, .scale = below(4), .disp = (int32_t)rnd()};
	unsigned r = out_reg(g);

	if (below(2))
		m.disp = small_disp();
	if (!below(4))
		m.base = SP;
	m.addr32 = !below(12);
	op(g, 0, below(4) ? 8 : below(2) ? 4 : 2, 0, 0x8d, r, 0, &m);
	wrote(g, r);
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
		op(g, sse[k].pp, 4, sse[k].map, sse[k].op, x, below(16), sse[k].mem ? &m : NULL);
		break;
	case 2:
		k = below(sizeof(avx) / sizeof(avx[0]));
		if (avx[k].mem)
			m = any_mem(g, 32);
		vex(g, avx[k].pp, avx[k].map, 0, below(2), avx[k].op, x, avx[k].op == 0x6f || avx[k].op == 0x7f || avx[k].op == 0x59 ? 0 : below(16), below(16),
		    avx[k].mem ? &m : NULL);
		break;
	default:
		if (below(2)) { /* movq r, xmm; pmovmskb */
			r = out_reg(g);
			if (below(2))
				op(g, 0x66, 8, 1, 0x7e, x, r, NULL);
			else
				op(g, 0x66, 4, 1, 0xd7, r, x, NULL);
			wrote(g, r);
		} else {
			op(g, 0x66, 8, 1, 0x6e, x, any_reg(), NULL);
		}
	}
}

/* Arithmetic on pointers as compilers do it. */
static void pointers(struct gen *g)
{
	unsigned p = ptr_reg(g), q = out_reg(g);
	struct mem m = {.base = (int)p, .index = -1, .disp = small_disp()};
	bool may_write = !(g->locked & BIT_OF(p));
	struct flow_item *i;

	switch (below(6)) {
	case 0:
		op(g, 0, 8, 0, 0x8d, q, 0, &m)->keep = true;
		break;
	case 1:
		op(g, 0, 8, 0, 0x8b, q, p, NULL)->keep = true;
		break;
	case 2:
		op(g, 0, 8, 0, 0x89, p, q, NULL)->keep = true;
		break;
	case 3:
		if (!may_write)
			return;
		i = op(g, 0, 8, 0, 0x83, below(2) ? 0 : 5, p, NULL);
		imm(g, i, below(4) ? 8 * below(6) : below(40), 1, false);
		g->clobber |= BIT_OF(p);
		return;
	case 4:
		if (!may_write)
			return;
		i = op(g, 0, 8, 0, 0x83, 4, p, NULL);
		imm(g, i, below(2) ? 0xf8 : 0xf0, 1, false);
		g->clobber |= BIT_OF(p);
		return;
	default: /* base + another pointer's low bits */
		m.index = (int)make_index(g);
		if (!(g->ptr & BIT_OF(p)))
			return;
		m.scale = 3;
		q = out_reg(g);
		op(g, 0, 8, 0, 0x8d, q, 0, &m)->keep = true;
	}
	wrote(g, q);
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
		make_ptr(g, R_SI);
	if (o == 0xa4) { /* one physical page at two addresses: fast strings need not see that source and destination overlap */
		near.disp = (int32_t)below(3 * 4096) - 4096;
		op(g, 0, 8, 0, 0x8d, R_DI, 0, &near)->keep = true;
		g->ptr |= BIT_OF(R_DI);
	} else if (!(g->ptr & BIT_OF(R_DI)) || below(2)) {
		make_ptr(g, R_DI);
	}
	if (below(2)) {
		op(g, 0, 1, 1, 0xb6, R_CX, any_reg(), NULL)->keep = true;
		op(g, 0, 4, 1, 0xb6, R_CX, R_CX, NULL)->keep = true;
	} else {
		i = new_item(g);
		byte(g, i, 0xb9);
		imm(g, i, below(48), 4, false);
		i->keep = true;
	}
	if (std)
		plain(g, 0xfd, 0, 0);
	i = new_item(g);
	if (size == 1)
		byte(g, i, 0x66);
	if (rep)
		byte(g, i, below(2) ? 0xf3 : 0xf2);
	if (size == 3)
		byte(g, i, 0x48);
	byte(g, i, o | (size != 0));
	if (std)
		plain(g, 0xfc, 0, 0);
	g->clobber |= uses | BIT_OF(R_AX);
	g->ptr &= ~(BIT_OF(R_CX) | BIT_OF(R_AX));
	g->small &= ~(uses | BIT_OF(R_AX));
}

static void flags_image(struct gen *g)
{
	unsigned r = out_reg(g);
	struct flow_item *i;

	plain(g, 0x9c, 0, 0);
	i = new_item(g);
	if (r > 7)
		byte(g, i, 0x41);
	byte(g, i, 0x58 | (r & 7));
	wrote(g, r);
}

/* A store to an immediate of this program. */
static void self_modify(struct gen *g)
{
	unsigned size = below(3) ? 4 : 1;
	struct mem m = {.base = -1, .index = -1, .fix = FIX_DATA};
	struct flow_item *i = op(g, 0, size, 0, 0x88 | (size > 1), any_reg(), 0, &m);

	i->fix = FIX_SMC;
	i->target = -(int)size;
}

/* ---- shapes ---- */

static void body(struct gen *g, unsigned n);

static void jcc(struct gen *g, unsigned cc, int label)
{
	struct flow_item *i = new_item(g);

	if (below(2)) {
		byte(g, i, 0x70 | cc);
		fix(i, FIX_REL8, i->len, label);
		imm(g, i, 0, 1, false);
		return;
	}
	byte(g, i, 0x0f);
	byte(g, i, 0x80 | cc);
	fix(i, FIX_REL32, i->len, label);
	imm(g, i, 0, 4, false);
}

static void branch32(struct gen *g, unsigned opcode, int label)
{
	struct flow_item *i = new_item(g);

	byte(g, i, opcode);
	fix(i, FIX_REL32, i->len, label);
	imm(g, i, 0, 4, false);
}

static void short_branch(struct gen *g, unsigned opcode, int label)
{
	struct flow_item *i = new_item(g);

	if (!below(12) && opcode >= 0xe0)
		byte(g, i, 0x67);
	byte(g, i, opcode);
	fix(i, FIX_REL8, i->len, label);
	imm(g, i, 0, 1, false);
}

static void keep_last(struct gen *g) { g->f->items[g->f->nitems - 1].keep = true; }

static void push(struct gen *g, unsigned r)
{
	struct flow_item *i = new_item(g);

	i->keep = true;
	if (r > 7)
		byte(g, i, 0x41);
	byte(g, i, 0x50 | (r & 7));
	g->depth += 8;
}

static void pop(struct gen *g, unsigned r)
{
	struct flow_item *i = new_item(g);

	i->keep = true;
	if (r > 7)
		byte(g, i, 0x41);
	byte(g, i, 0x58 | (r & 7));
	g->depth -= 8;
}

/* rsp += n: flags stay, or not */
static void move_sp(struct gen *g, int32_t n)
{
	struct mem m = {.base = SP, .index = -1, .disp = n};
	struct flow_item *i;

	if (below(2)) {
		op(g, 0, 8, 0, 0x8d, SP, 0, &m);
	} else {
		i = op(g, 0, 8, 0, n < 0 && n > -128 && below(2) ? 0x83 : 0x81, n < 0 ? 5 : 0, SP, NULL);
		imm(g, i, (uint64_t)(n < 0 ? -n : n), i->bytes[i->len - 2] == 0x83 ? 1 : 4, false);
	}
	keep_last(g);
	g->depth -= n;
}

static void skip(struct gen *g)
{
	int over = new_label(g), end;
	uint32_t ptr = g->ptr;

	if (below(2))
		alu(g);
	ptr = g->ptr;
	if (!below(8))
		short_branch(g, 0xe3, over);
	else
		jcc(g, below(16), over);
	body(g, 1 + below(4));
	if (below(3) == 0) { /* else */
		uint32_t then = g->ptr;

		end = new_label(g);
		branch32(g, 0xe9, end);
		place(g, over);
		g->ptr = ptr;
		body(g, 1 + below(3));
		place(g, end);
		g->ptr &= then;
		return;
	}
	place(g, over);
	g->ptr &= ptr;
}

static void loop(struct gen *g)
{
	int top = new_label(g), cond = new_label(g), out = new_label(g);
	unsigned kind = below(4), r = kind == 3 ? R_CX : out_reg(g), cost = g->cost, count, walk = 16, each;
	uint32_t locked = g->locked, ptr;
	struct exit_point *outer = g->exit, here;
	struct flow_item *init, *i;
	struct mem counter = {.base = SP, .index = -1};
	bool in_memory = kind == 2, enter_below = below(4) == 0;
	unsigned depth_unit = g->unit;

	if (g->locked & BIT_OF(r))
		return;
	if (below(2)) { /* a pointer that goes on with each turn */
		walk = ptr_reg(g);
		if (g->locked & BIT_OF(walk) || walk == r)
			walk = 16;
	}
	init = new_item(g);
	if (in_memory) {
		byte(g, init, 0x68);
		imm(g, init, 0, 4, false);
		init->keep = true;
		g->depth += 8;
	} else {
		if (r > 7)
			byte(g, init, 0x41);
		byte(g, init, 0xb8 | (r & 7));
		imm(g, init, 0, 4, false);
		wrote(g, r);
		g->locked |= BIT_OF(r);
	}
	/* what stays a pointer through the loop is not written in it */
	for (unsigned k = 0; k < 16; k++)
		if ((g->ptr & BIT_OF(k)) && __builtin_popcount(g->locked) < 8 && below(2))
			g->locked |= BIT_OF(k);
	if (walk < 16)
		g->locked |= BIT_OF(walk);
	g->ptr &= g->locked;
	ptr = g->ptr;
	here = (struct exit_point){.label = out, .depth = g->depth, .ptr = ptr};
	g->exit = &here;
	if (enter_below)
		branch32(g, 0xe9, cond);
	place(g, top);
	body(g, 1 + below(5));
	g->unit = depth_unit;
	if (walk < 16) {
		i = op(g, 0, 8, 0, 0x83, below(4) ? 0 : 5, walk, NULL);
		imm(g, i, below(3) ? 8 * (1 + below(8)) : below(70), 1, false);
		g->clobber |= BIT_OF(walk);
	}
	g->ptr &= ptr;
	if (enter_below)
		place(g, cond);
	switch (kind) {
	case 0:
		op(g, 0, below(2) ? 8 : 4, 0, 0xff, 1, r, NULL);
		jcc(g, 5, top);
		break;
	case 1: /* no flags but at the end */
		counter = (struct mem){.base = (int)r, .index = -1, .disp = -1};
		op(g, 0, 8, 0, 0x8d, r, 0, &counter);
		op(g, 0, 8, 0, 0x85, r, r, NULL);
		jcc(g, 5, top);
		break;
	case 2:
		i = op(g, 0, 8, 0, 0x83, 5, 0, &counter);
		imm(g, i, 1, 1, false);
		jcc(g, 0xf, top);
		break;
	default:
		short_branch(g, 0xe2, top);
	}
	place(g, out);
	g->ptr &= here.ptr;
	g->exit = outer;
	g->locked = locked;
	if (in_memory)
		move_sp(g, 8);
	each = g->cost - cost + 1;
	count = 1 + below(below(4) ? 12 : 60);
	if (count * each > MAX_COST / 4)
		count = each > MAX_COST / 4 ? 1 : MAX_COST / 4 / each;
	g->cost = cost + count * each;
	put_le32(init->bytes + init->len - 4, count);
}

static int pool_slots(struct gen *g, unsigned n)
{
	if (g->f->npool + n > FLOW_POOL)
		return -1;
	g->f->npool += n;
	return (int)(g->f->npool - n);
}

static void set_slot(struct gen *g, int slot, int label)
{
	g->f->pool[slot] = label;
	g->f->pool_alias[slot] = !below(4);
}

/* The address of a label in r. */
static void address(struct gen *g, unsigned r, int label)
{
	struct mem m = {.base = -1, .index = -1, .fix = FIX_DATA};
	struct flow_item *i;

	if (below(2)) {
		i = op(g, 0, 8, 0, 0x8d, r, 0, &m);
		i->fix = FIX_REL32;
		i->target = label;
	} else {
		i = new_item(g);
		byte(g, i, 0x48 | (r >> 3));
		byte(g, i, 0xb8 | (r & 7));
		fix(i, FIX_ABS64, i->len, label);
		imm(g, i, 0, 8, false);
	}
	i->keep = true;
	wrote(g, r);
}

static void call(struct gen *g)
{
	struct function *fn;
	uint32_t save;
	unsigned r, nargs;
	struct mem m = {.base = -1, .index = -1, .fix = FIX_POOL};
	int slot;

	if (!g->nfn)
		return;
	fn = &g->fn[below(g->nfn)];
	if (g->cost + fn->cost > MAX_COST / 2)
		return;
	save = fn->clobber & g->locked & ~BIT_OF(SP);
	nargs = fn->ret_imm / 8;
	for (r = 0; r < 16; r++)
		if (save & BIT_OF(r))
			push(g, r);
	for (unsigned k = 0; k < nargs; k++)
		push(g, any_reg());
	switch (below(6)) {
	case 0:
		r = out_reg(g);
		address(g, r, fn->label);
		op(g, 0, 4, 0, 0xff, 2, r, NULL);
		break;
	case 1:
		slot = pool_slots(g, 1);
		if (slot < 0) {
			branch32(g, 0xe8, fn->label);
			break;
		}
		set_slot(g, slot, fn->label);
		m.disp = slot;
		op(g, 0, 4, 0, 0xff, 2, 0, &m);
		break;
	case 2:
		branch32(g, 0xe8, fn->plt >= 0 ? fn->plt : fn->label);
		break;
	default:
		branch32(g, 0xe8, fn->label);
	}
	keep_last(g);
	g->depth -= 8 * (int)nargs;
	for (r = 16; r-- > 0;)
		if (save & BIT_OF(r))
			pop(g, r);
	g->small = 0;
	g->ptr &= ~(fn->clobber & ~save);
	g->clobber |= fn->clobber;
	g->cost += fn->cost;
}

static void computed_jump(struct gen *g)
{
	int to = new_label(g), end, slot;
	unsigned r = out_reg(g), n = 4;
	struct mem m = {.base = -1, .index = -1, .fix = FIX_POOL};
	uint32_t ptr, after = UINT32_MAX;

	switch (below(4)) {
	case 0:
		address(g, r, to);
		op(g, 0, 4, 0, 0xff, 4, r, NULL);
		keep_last(g);
		break;
	case 1:
		address(g, r, to);
		push(g, r);
		if (below(2))
			alu(g);
		plain(g, 0xc3, 0, 0);
		keep_last(g);
		g->depth -= 8;
		break;
	case 2:
		slot = pool_slots(g, 1);
		if (slot < 0)
			break;
		set_slot(g, slot, to);
		m.disp = slot;
		op(g, 0, 4, 0, 0xff, 4, 0, &m);
		keep_last(g);
		break;
	default: /* a table */
		slot = pool_slots(g, n);
		if (slot < 0)
			break;
		imm(g, op(g, 0, 4, 0, 0x83, 4, r, NULL), n - 1, 1, false);
		keep_last(g);
		wrote(g, r);
		m = (struct mem){.base = -1, .index = (int)r, .scale = 3, .fix = FIX_POOL32, .disp = slot};
		op(g, 0, 4, 0, 0xff, 4, 0, &m);
		keep_last(g);
		end = to;
		ptr = g->ptr;
		for (unsigned k = 0; k < n; k++) {
			int label = new_label(g);

			set_slot(g, slot + (int)k, label);
			place(g, label);
			g->ptr = ptr;
			body(g, 1 + below(2));
			after &= g->ptr;
			branch32(g, 0xe9, end);
			keep_last(g);
		}
		place(g, end);
		g->ptr = after & ptr;
		return;
	}
	/* what is jumped over */
	if (below(2)) {
		ptr = g->ptr;
		body(g, 1);
		g->ptr &= ptr;
	}
	place(g, to);
}

static void get_pc(struct gen *g)
{
	int next = new_label(g);
	unsigned r = out_reg(g);

	branch32(g, 0xe8, next);
	keep_last(g);
	place(g, next);
	g->depth += 8;
	pop(g, r);
	wrote(g, r);
}

static void saved(struct gen *g)
{
	unsigned r[4], n = 1 + below(4);

	for (unsigned k = 0; k < n; k++) {
		r[k] = any_reg();
		push(g, r[k]);
	}
	body(g, 1 + below(3));
	while (n--) {
		unsigned to = g->locked & BIT_OF(r[n]) || !below(8) ? out_reg(g) : r[n];

		pop(g, to);
		wrote(g, to);
	}
}

static void frame(struct gen *g)
{
	uint32_t locked = g->locked;
	int old = g->frame;
	bool old_rbp = g->rbp_frame, rbp = !(g->locked & BIT_OF(R_BP)) && !old_rbp && below(2), by_enter = rbp && !below(4);
	struct flow_item *i;

	if (rbp && by_enter) {
		i = new_item(g);
		byte(g, i, 0xc8);
		imm(g, i, 72, 2, false);
		imm(g, i, 0, 1, false);
		i->keep = true;
		g->depth += 80;
	} else {
		if (rbp) {
			push(g, R_BP);
			op(g, 0, 8, 0, 0x89, SP, R_BP, NULL)->keep = true;
		}
		move_sp(g, -72);
	}
	if (rbp) {
		g->locked |= BIT_OF(R_BP);
		wrote(g, R_BP);
		g->rbp_frame = true;
	}
	g->frame = g->depth; /* 72 bytes from there; rbp - 72 if there is one */
	body(g, 2 + below(4));
	if (rbp) {
		plain(g, 0xc9, 0, 0);
		keep_last(g);
		g->depth -= 80;
	} else {
		move_sp(g, 72);
	}
	g->frame = old;
	g->rbp_frame = old_rbp;
	g->locked = locked;
	if (rbp)
		g->ptr &= ~BIT_OF(R_BP);
}

static void misaligned_stack(struct gen *g)
{
	int n = below(2) ? 4 : 1 + (int)below(7), frame_was = g->frame;

	move_sp(g, -n);
	body(g, 1 + below(3));
	move_sp(g, n);
	g->frame = frame_was;
}

/* A branch to where nothing can be fetched: not canonical, not mapped, not executable. */
static void wild_branch(struct gen *g)
{
	int over = new_label(g);
	unsigned r = out_reg(g), kind = below(3);
	struct flow_item *i;
	uint64_t to = below(3) ? FLOW_CODE + (below(2) ? 0x800000 + below(0x10000) : FLOW_CODE_PAGES * 4096) : FLOW_DATA + below(4096);

	if (kind && below(2)) /* the engine's CALL has stored the return address by then, below rsp */
		to = (rnd() | BIT(47)) & ~BIT(63);
	if (below(4))
		jcc(g, below(16), over);
	i = new_item(g);
	i->keep = true;
	byte(g, i, 0x48 | (r >> 3));
	byte(g, i, 0xb8 | (r & 7));
	imm(g, i, to, 8, false);
	wrote(g, r);
	if (kind == 2) {
		push(g, r);
		plain(g, below(2) ? 0xc3 : 0xf2, 0, 0);
		if (g->f->items[g->f->nitems - 1].bytes[0] == 0xf2)
			byte(g, &g->f->items[g->f->nitems - 1], 0xc3);
		g->depth -= 8;
	} else {
		op(g, 0, 4, 0, 0xff, 2 + 2 * kind, r, NULL);
	}
	keep_last(g);
	place(g, over);
}

/* Out of the loop, or out of all. */
static void leave_early(struct gen *g)
{
	int over;

	if (g->exit && g->exit->depth == g->depth && below(4)) {
		g->exit->ptr &= g->ptr;
		jcc(g, below(16), g->exit->label);
		return;
	}
	if (!g->is_main && g->rbp_frame)
		return;
	if (!below(24)) {
		wild_branch(g);
		return;
	}
	if (g->is_main && below(4))
		return;
	over = new_label(g);
	jcc(g, below(16), over);
	if (g->is_main) {
		plain(g, 0xf4, 0, 0);
	} else if (g->depth == 0 && !g->fn[g->nfn].ret_imm) {
		plain(g, 0xc3, 0, 0);
	}
	place(g, over);
}

/* Go on elsewhere. */
static void change_segment(struct gen *g)
{
	int to;

	if (g->f->nsegments == FLOW_SEGMENTS) {
		g->full |= g->segment_len > SEGMENT_SOFT;
		return;
	}
	to = new_label(g);
	branch32(g, 0xe9, to);
	keep_last(g);
	g->segment = g->f->nsegments++;
	g->segment_len = 0;
	place(g, to);
}

static void unit(struct gen *g)
{
	unsigned k = below(64);

	g->unit = ++g->f->nunits;
	if (g->level < 4 && k < 20) {
		g->level++;
		if (k < 5)
			skip(g);
		else if (k < 8)
			loop(g);
		else if (k < 11)
			call(g);
		else if (k < 13)
			computed_jump(g);
		else if (k < 15)
			saved(g);
		else if (k < 17)
			frame(g);
		else if (k < 18)
			misaligned_stack(g);
		else
			leave_early(g);
		g->level--;
		return;
	}
	switch (k % 20) {
	case 0: case 1: case 2: case 3: case 4:
		alu(g);
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
			make_ptr(g, out_reg(g));
		break;
	default:
		if (g->f->smc && below(2))
			self_modify(g);
		else if (below(3) == 0)
			get_pc(g);
		else
			alu(g);
	}
}

static void body(struct gen *g, unsigned n)
{
	unsigned outer = g->unit;

	while (n-- && g->budget && !g->full) {
		g->budget--;
		if (g->segment_len > SEGMENT_SOFT || !below(40))
			change_segment(g);
		if (g->full)
			break;
		unit(g);
	}
	g->unit = outer;
}

static void function(struct gen *g, bool is_main)
{
	struct function *fn = &g->fn[g->nfn];
	struct mem m = {.base = -1, .index = -1, .fix = FIX_POOL};
	struct flow_item *i;
	int slot;

	if (g->f->nsegments < FLOW_SEGMENTS) {
		g->segment = g->f->nsegments++;
		g->segment_len = 0;
	}
	g->locked = BIT_OF(SP);
	g->ptr = g->small = g->clobber = g->cost = g->unit = 0;
	g->last = (struct mem){.base = -1, .index = -1};
	g->depth = g->frame = 0;
	g->is_main = is_main;
	g->rbp_frame = g->full = false;
	g->exit = NULL;
	g->budget = is_main ? 8 + below(60) : 2 + below(20);
	*fn = (struct function){.label = new_label(g), .plt = -1, .ret_imm = is_main || below(4) ? 0 : 8 * (1 + below(2))};
	place(g, fn->label);
	if (!is_main && !below(4))
		plain(g, 0xf3, 0x0f, 0x1e), byte(g, &g->f->items[g->f->nitems - 1], 0xfa);
	body(g, 1000);
	if (is_main) {
		plain(g, 0xf4, 0, 0);
	} else if (fn->ret_imm) {
		i = new_item(g);
		byte(g, i, 0xc2);
		imm(g, i, fn->ret_imm, 2, false);
	} else {
		plain(g, 0xc3, 0, 0);
	}
	keep_last(g);
	fn->clobber = g->clobber;
	fn->cost = g->cost;
	if (is_main)
		return;
	slot = pool_slots(g, 1);
	if (slot >= 0) {
		fn->plt = new_label(g);
		place(g, fn->plt);
		set_slot(g, slot, fn->label);
		m.disp = slot;
		op(g, 0, 4, 0, 0xff, 4, 0, &m);
		keep_last(g);
	}
	g->nfn++;
}

/* Half pages in a random order; those that end at a page's end may run over it. */
static void lay_out(struct flow *f)
{
	unsigned half[FLOW_SEGMENTS];

	for (unsigned i = 0; i < FLOW_SEGMENTS; i++)
		half[i] = i;
	for (unsigned i = FLOW_SEGMENTS - 1; i; i--) {
		unsigned k = below(i + 1), t = half[i];

		half[i] = half[k];
		half[k] = t;
	}
	for (unsigned i = 0; i < FLOW_SEGMENTS; i++)
		f->segment_at[i] = half[i] * 2048 + (half[i] & 1 ? (below(3) ? 2047 - below(300) : below(2048)) : 512 + below(1024));
	f->pool_at = 4 * 4096 + 1024 + below(2000);
}

void flow_generate(struct flow *f)
{
	struct gen g = {.f = f};
	unsigned n = below(FUNCTIONS);

	f->nitems = f->nlabels = f->npool = f->nunits = f->nsegments = 0;
	f->overflow = false;
	memset(f->dropped, 0, sizeof(f->dropped));
	f->smc = !below(6);
	lay_out(f);
	for (unsigned i = 0; i < n; i++)
		function(&g, false);
	function(&g, true);
	f->entry = g.fn[g.nfn].label;
	/* what self-modifying stores lead to */
	for (unsigned i = 0; i < f->nitems; i++) {
		struct flow_item *it = &f->items[i];
		int size = -it->target;

		for (unsigned tries = 0; it->fix == FIX_SMC && it->target < 0 && tries < 200; tries++) {
			unsigned k = tries < 30 ? i + 1 + below(30) : below(f->nitems);

			if (k < f->nitems && f->items[k].imm_len >= size)
				it->target = (int32_t)k;
		}
	}
}

static bool emitted(const struct flow *f, const struct flow_item *i)
{
	return !f->dropped[i->unit] || i->keep;
}

static uint64_t value(const struct flow *f, const struct flow_item *i)
{
	uint64_t end = FLOW_CODE + i->at + i->len;

	switch (i->fix) {
	case FIX_REL8: {
		int64_t d = (int64_t)f->label_at[i->target] - i->at - i->len;

		return d == (int8_t)d ? (uint64_t)d : 0; /* too far: it leads to the next instruction */
	}
	case FIX_REL32:
		return f->label_at[i->target] - (uint64_t)i->at - i->len;
	case FIX_ABS64:
		return FLOW_CODE + f->label_at[i->target] + (!f->smc && (i->at & 3) == 1 ? FLOW_ALIAS : 0);
	case FIX_DATA:
		return FLOW_DATA + (uint64_t)(int64_t)i->target - end;
	case FIX_POOL:
		return FLOW_CODE + f->pool_at + 8 * (uint64_t)i->target - end;
	case FIX_POOL32:
		return FLOW_CODE + f->pool_at + 8 * (uint64_t)i->target;
	default:
		if (i->target >= 0 && emitted(f, &f->items[i->target]))
			return FLOW_CODE + f->items[i->target].at + f->items[i->target].imm_at - end;
		return FLOW_DATA - end;
	}
}

bool flow_assemble(struct flow *f, uint8_t *code)
{
	static const uint8_t size[] = {[FIX_REL8] = 1, [FIX_REL32] = 4, [FIX_ABS64] = 8, [FIX_DATA] = 4, [FIX_POOL] = 4, [FIX_POOL32] = 4, [FIX_SMC] = 4};
	uint32_t at[FLOW_SEGMENTS];

	if (f->overflow)
		return false;
	memset(code, 0xf4, FLOW_CODE_PAGES * 4096);
	memcpy(at, f->segment_at, sizeof(at));
	for (unsigned k = 0; k < f->nitems; k++) {
		struct flow_item *i = &f->items[k];

		i->at = at[i->segment];
		if (!i->len)
			f->label_at[i->target] = i->at;
		else if (emitted(f, i))
			at[i->segment] += i->len;
	}
	for (unsigned s = 0; s < f->nsegments; s++)
		if (at[s] - f->segment_at[s] > SEGMENT_HARD)
			return false;
	for (unsigned k = 0; k < f->nitems; k++) {
		const struct flow_item *i = &f->items[k];
		uint64_t v;

		if (!i->len || !emitted(f, i))
			continue;
		memcpy(code + i->at, i->bytes, i->len);
		if (!i->fix)
			continue;
		v = value(f, i);
		memcpy(code + i->at + i->fix_at, &v, size[i->fix]);
	}
	for (unsigned k = 0; k < f->npool; k++) {
		uint64_t v = FLOW_CODE + f->label_at[f->pool[k]] + (f->pool_alias[k] && !f->smc ? FLOW_ALIAS : 0);

		memcpy(code + f->pool_at + 8 * k, &v, 8);
	}
	return true;
}

void flow_mutate(const struct flow *f, uint8_t *code)
{
	for (unsigned k = 0; k < f->nitems; k++) {
		const struct flow_item *i = &f->items[k];

		if (i->imm_len && emitted(f, i) && !below(3))
			code[i->at + i->imm_at + below(i->imm_len)] = (uint8_t)rnd();
	}
}
