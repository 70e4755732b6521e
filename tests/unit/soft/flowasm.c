#include "flowgen_int.h"

#define SEGMENT_HARD 512

struct flow_item *asm_item(struct gen *g)
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

void asm_byte(struct gen *g, struct flow_item *i, unsigned b)
{
	i->bytes[i->len++] = (uint8_t)b;
	g->segment_len++;
}

void asm_imm(struct gen *g, struct flow_item *i, uint64_t v, unsigned n, bool is_free)
{
	if (is_free) {
		i->imm_at = i->len;
		i->imm_len = (uint8_t)n;
	}
	for (unsigned k = 0; k < n; k++)
		asm_byte(g, i, (v >> (8 * k)) & 0xff);
}

void asm_fix(struct flow_item *i, enum flow_fix kind, unsigned at, int32_t target)
{
	i->fix = (uint8_t)kind;
	i->fix_at = (uint8_t)at;
	i->target = target;
}

int asm_label(struct gen *g)
{
	if (g->f->nlabels == FLOW_LABELS) {
		g->f->overflow = true;
		return 0;
	}
	return (int)g->f->nlabels++;
}

void asm_place(struct gen *g, int label)
{
	struct flow_item *i = asm_item(g);

	i->target = label;
	i->keep = true;
	g->small = 0;
}

void asm_modrm(struct gen *g, struct flow_item *i, unsigned reg, unsigned rm, const struct mem *m)
{
	unsigned r = (reg & 7) << 3, mod;

	if (!m) {
		asm_byte(g, i, 0xc0 | r | (rm & 7));
		return;
	}
	if (m->fix == FIX_DATA || m->fix == FIX_POOL) {
		asm_byte(g, i, r | 5);
		asm_fix(i, m->fix, i->len, m->disp);
		asm_imm(g, i, 0, 4, false);
		return;
	}
	if (m->base < 0) {
		asm_byte(g, i, r | 4);
		asm_byte(g, i, m->scale << 6 | (m->index < 0 ? 4u : (unsigned)m->index & 7) << 3 | 5);
		if (m->fix)
			asm_fix(i, m->fix, i->len, m->disp);
		asm_imm(g, i, (uint32_t)m->disp, 4, false);
		return;
	}
	mod = m->disp == 0 && (m->base & 7) != 5 ? 0 : m->disp == (int8_t)m->disp && below(8) ? 1 : 2;
	if (m->index >= 0 || (m->base & 7) == 4) {
		asm_byte(g, i, mod << 6 | r | 4);
		asm_byte(g, i, m->scale << 6 | (m->index < 0 ? 4u : (unsigned)m->index & 7) << 3 | ((unsigned)m->base & 7));
	} else {
		asm_byte(g, i, mod << 6 | r | ((unsigned)m->base & 7));
	}
	asm_imm(g, i, (uint32_t)m->disp, mod == 1 ? 1 : mod == 2 ? 4 : 0, false);
}

struct flow_item *asm_op(struct gen *g, unsigned pp, unsigned size, unsigned map, unsigned opcode, unsigned reg, unsigned rm, const struct mem *m)
{
	struct flow_item *i = asm_item(g);
	unsigned rex = size == 8 ? 8 : 0;

	rex |= (reg & 8) >> 1;
	if (m)
		rex |= (m->base >= 8 ? 1u : 0) | (m->index >= 8 ? 2u : 0);
	else
		rex |= (rm & 8) >> 3;
	if (m && m->addr32)
		asm_byte(g, i, 0x67);
	if (pp == 0xf0 && size == 2)
		asm_byte(g, i, 0xf0);
	if (size == 2)
		asm_byte(g, i, 0x66);
	if (pp && !(pp == 0xf0 && size == 2))
		asm_byte(g, i, pp);
	if (rex || (size == 1 && ((reg >= 4 && reg < 8) || (!m && rm >= 4 && rm < 8))) || !below(16))
		asm_byte(g, i, 0x40 | rex);
	if (map)
		asm_byte(g, i, 0x0f);
	if (map == 2)
		asm_byte(g, i, 0x38);
	if (map == 3)
		asm_byte(g, i, 0x3a);
	asm_byte(g, i, opcode);
	asm_modrm(g, i, reg, rm, m);
	return i;
}

struct flow_item *asm_vex(struct gen *g, unsigned pp, unsigned map, unsigned w, unsigned l, unsigned opcode, unsigned reg, unsigned vvvv, unsigned rm,
			     const struct mem *m)
{
	struct flow_item *i = asm_item(g);
	unsigned b = m ? m->base >= 8 : rm >= 8, x = m && m->index >= 8;

	if (m && m->addr32)
		asm_byte(g, i, 0x67);
	asm_byte(g, i, 0xc4);
	asm_byte(g, i, (reg & 8 ? 0u : 0x80) | (x ? 0u : 0x40) | (b ? 0u : 0x20) | map);
	asm_byte(g, i, w << 7 | (~vvvv & 15) << 3 | l << 2 | pp);
	asm_byte(g, i, opcode);
	asm_modrm(g, i, reg, rm, m);
	return i;
}

void asm_plain(struct gen *g, unsigned a, unsigned b, unsigned c)
{
	struct flow_item *i = asm_item(g);

	asm_byte(g, i, a);
	if (b)
		asm_byte(g, i, b);
	if (c)
		asm_byte(g, i, c);
}

/* ---- layout ---- */

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
