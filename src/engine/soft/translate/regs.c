/*
 * Where guest r9-r11 are, from instruction to instruction of a block: in memory (v.s.gpr), or cached in the host's register
 * of the same number, clean or dirty. Cached, an instruction names them as it is; the registers that nothing is cached
 * in are the scratch registers of memory accesses.
 *
 * An instruction is prepared before its host code begins: its operands are loaded, and the scratch registers that it is given
 * have nothing dirty in them. So host code may be started again after a fault: what is dirty then (insn_map.dirty) is
 * untouched, and so are the operands. Instructions with too many operands for that, and all rare ones, work on memory: everything is stored and
 * forgotten before them, and they use T0-T2 as they like.
 */
#include "engine/soft/translate/trans_int.h"

#include <string.h>

static unsigned bit_of(int gpr)
{
	return gpr >= T2 && gpr <= T0 ? 1u << (gpr - T2) : 0;
}

void trans_spill(struct trans *t, unsigned mask)
{
	for (unsigned i = 0; i < 3; i++)
		if (t->dirty & mask & (1u << i))
			e_store_gs(&t->e, T2 + i, GS_GPR((int)(T2 + i)));
	t->dirty &= (uint8_t)~mask;
}

void trans_forget(struct trans *t)
{
	trans_spill(t, 7);
	t->last.valid = false; /* T0-T2 may be used for anything now */
	t->reuse = false;
	t->cached = 0;
	t->direct = false;
	t->ra = T1;
	t->re = T0;
	t->rx = T2;
}

/* The operands of one instruction that are r9-r11, as masks. */
struct demand {
	unsigned read, write; /* write: fully overwritten, and last of all */
	unsigned scratch;     /* registers needed beside */
	bool check;           /* one more is welcome */
	bool reuse;           /* memory operand as looked up before */
};

/* Forms that overwrite their whole 64-bit register. */
static bool writes_all(const struct insn *in)
{
	if (in->osz < 4 || in->enc != ENC_LEGACY)
		return false;
	if (in->map == 0)
		return in->op == 0x8b || in->op == 0x89 || in->op == 0x8d || (in->op >= 0xb8 && in->op <= 0xbf) || in->op == 0xc7 || in->op == 0x63;
	return in->map == 1 && (in->op == 0xb6 || in->op == 0xb7 || in->op == 0xbe || in->op == 0xbf);
}

static void add_operand(struct demand *d, int gpr, unsigned use, bool all)
{
	if (use == REG_WRITE && all)
		d->write |= bit_of(gpr);
	else if (use)
		d->read |= bit_of(gpr);
}

/* Registers of R that are written have to be dirty afterwards. */
static unsigned written(const struct insn *in)
{
	unsigned w = 0;

	if (in->reg_gpr & REG_WRITE)
		w |= bit_of(in->reg);
	if (in->mem == MEM_NONE && (in->rm_gpr & REG_WRITE))
		w |= bit_of(in->rm);
	if (in->vvvv_gpr & REG_WRITE)
		w |= bit_of(in->vvvv);
	if (in->opreg_gpr & REG_WRITE)
		w |= bit_of(in->opreg);
	return w;
}

/* Choose n scratch registers (and one more for a check if it costs little). False: there are not so many. */
static bool choose(struct trans *t, const struct demand *d)
{
	uint8_t *slot[3] = {&t->ra, &t->re, &t->rx};
	unsigned taken = d->read, want = d->scratch;

	t->ra = t->re = t->rx = NO_REG;
	if (d->scratch == 1)
		slot[1] = &t->rx;
	for (unsigned n = 0; n < want + d->check; n++) {
		unsigned best = 3, best_cost = 9;

		for (unsigned i = 0; i < 3; i++) {
			unsigned m = 1u << (2 - i), cost = t->dirty & m ? 3 : (t->cached & m && !(d->write & m)) || (t->last.valid && (t->last.regs & m)); /* T0 first */

			if (!(taken & m) && cost < best_cost) {
				best = 2 - i;
				best_cost = cost;
			}
		}
		if (best == 3 || (n >= want && best_cost > 1))
			return n >= want;
		taken |= 1u << best;
		*slot[n] = (uint8_t)(T2 + best);
	}
	return true;
}

bool trans_can_reuse(const struct trans *t, const struct insn *in)
{
	return t->mode == MODE_64 && in->kind == INSN_NATIVE && in->asz == 8 && !in->rip_rel && (in->base >= 0 || in->index >= 0) && in->seg != SEG_FS &&
	       in->seg != SEG_GS && !in->mem_masked;
}

unsigned trans_scratch_bits(const struct operand *op)
{
	return bit_of(op->base) | bit_of(op->index);
}

static bool same_operand(const struct trans *t, const struct insn *in)
{
	const struct looked_up *l = &t->last;

	return l->valid && trans_can_reuse(t, in) && l->base == in->base && l->index == in->index && l->scale == in->scale &&
	       l->disp == in->disp && in->mem_size <= l->size && (in->mem_size & (in->mem_size - 1)) == 0;
}

/* These scratch registers get other values. */
static void forget_last(struct trans *t, unsigned mask)
{
	if (t->last.regs & mask)
		t->last.valid = false;
}

static void use_scratch(struct trans *t)
{
	const uint8_t r[3] = {t->ra, t->re, t->rx};

	for (unsigned i = 0; i < 3; i++) {
		if (r[i] == NO_REG)
			continue;
		trans_spill(t, 1u << (r[i] - T2));
		forget_last(t, 1u << (r[i] - T2));
		t->cached &= (uint8_t)~(1u << (r[i] - T2));
	}
}

static void load_operands(struct trans *t, unsigned mask)
{
	for (unsigned i = 0; i < 3; i++)
		if (mask & ~(unsigned)t->cached & (1u << i)) {
			e_load_gs(&t->e, T2 + i, GS_GPR((int)(T2 + i)));
			forget_last(t, 1u << i);
		}
	t->cached |= (uint8_t)mask;
}

static bool site_misaligned(const struct trans *t)
{
	const struct site *s = site_of(t->sv, t->gpa);

	return s->gpa == t->gpa && s->misaligned;
}

/* What a memory operand of size bytes needs. */
static void memory_demand(const struct trans *t, const struct insn *in, struct demand *d)
{
	bool needs_check = in->mem_size > 1 && (!in->mem_aligned || t->c->misaligned_sse);

	d->read |= bit_of(in->base) | bit_of(in->index);
	if (same_operand(t, in)) {
		d->reuse = true;
		return;
	}
	if (trans_address_fixed(t, in)) {
		d->scratch = 1;
		return;
	}
	d->scratch = trans_address_simple(t, in) ? 1 : 2;
	if (!needs_check)
		return;
	if (site_misaligned(t))
		d->scratch = 3; /* the third saves rcx */
	else
		d->check = true;
}

/* False: not one of those that work with cached registers. */
static bool demand_of(const struct trans *t, const struct insn *in, struct demand *d)
{
	switch (in->kind) {
	case INSN_NOP:
		return true;
	case INSN_LEA:
		if (in->osz < 4 || in->asz < 4)
			return false;
		d->read |= bit_of(in->base) | bit_of(in->index);
		d->write |= bit_of(in->reg);
		return true;
	case INSN_NATIVE:
		if (insn_is_cld_std(in) || (in->mem != MEM_NONE && in->mem != MEM_ADDR && !trans_mem_is_fast(t, in)))
			return false;
		add_operand(d, in->reg, in->reg_gpr, writes_all(in));
		if (in->mem == MEM_NONE)
			add_operand(d, in->rm, in->rm_gpr, writes_all(in));
		add_operand(d, in->vvvv, in->vvvv_gpr, false);
		add_operand(d, in->opreg, in->opreg_gpr, writes_all(in));
		if (in->mem != MEM_NONE)
			memory_demand(t, in, d);
		return in->mem == MEM_NONE || !in->reg_high8;
	case INSN_PUSH_R:
		d->read |= bit_of(in->opreg);
		d->scratch = 1;
		break;
	case INSN_POP_R:
		d->write |= bit_of(in->opreg);
		d->scratch = 1;
		break;
	case INSN_PUSH_IMM:
		d->scratch = 1;
		break;
	default:
		return false;
	}
	d->check = true;
	if (site_misaligned(t)) {
		d->scratch = 3;
		d->check = false;
	}
	return in->osz == 8;
}

void trans_prepare(struct trans *t, const struct insn *in)
{
	struct demand d = {0};

	t->reuse = false;
	if (in->kind == INSN_JCC) {
		trans_spill(t, 7);
		return;
	}
	if (t->mode != MODE_64 || t->irq_poll == 2 || !demand_of(t, in, &d)) {
		trans_forget(t);
		return;
	}
	d.write &= ~d.read;
	if (!choose(t, &d)) {
		trans_forget(t);
		return;
	}
	t->direct = true;
	use_scratch(t);
	load_operands(t, d.read);
	t->reuse = d.reuse;
	if (d.reuse && !t->last.valid) { /* its registers were needed for operands */
		trans_forget(t);
		return;
	}
	t->pending = (uint8_t)(d.write | written(in));
}

/* No general register is written but those that the description names. */
static bool writes_explicit_only(const struct insn *in)
{
	unsigned op = in->op;

	if (in->enc != ENC_LEGACY)
		return !(in->map == 3 && op >= 0x60 && op <= 0x63); /* VPCMPxSTRI */
	if (in->map == 0)
		return (op < 0x40 && (op & 7) < 4) || op == 0x63 || (op >= 0x80 && op <= 0x8b) || op == 0xc0 || op == 0xc1 || op == 0xc6 ||
		       op == 0xc7 || (op >= 0xd0 && op <= 0xd3) || (op >= 0xb0 && op <= 0xbf) || ((op | 1) == 0xf7 && ((in->modrm >> 3) & 7) < 4) ||
		       (op | 1) == 0xff;
	return in->map == 1 && ((op >= 0x10 && op <= 0x17) || (op >= 0x28 && op <= 0x2f) || (op >= 0x40 && op <= 0x7f) || (op >= 0x90 && op <= 0x9f) ||
				op == 0xaf || op == 0xb6 || op == 0xb7 || (op >= 0xba && op <= 0xbf) || (op >= 0xc8 && op <= 0xfe));
}

/* The residue of the register that in writes, for the few forms that pointers are made with. */
static uint8_t result_residue(const struct trans *t, const struct insn *in)
{
	unsigned group = (in->modrm >> 3) & 7, rm = in->rm;

	if (in->kind != INSN_NATIVE || in->enc != ENC_LEGACY || in->map || in->mem != MEM_NONE || in->osz != 8)
		return NO_RESIDUE;
	if (in->op == 0x89)
		return t->residue[in->reg];
	if (in->op == 0x8b)
		return t->residue[rm];
	if (in->op != 0x81 && in->op != 0x83)
		return NO_RESIDUE;
	if (group == 4 && !(in->imm & 7))
		return 0;
	if ((group != 0 && group != 5) || t->residue[rm] == NO_RESIDUE)
		return NO_RESIDUE;
	return (uint8_t)(t->residue[rm] + (unsigned)(group ? -in->imm : in->imm)) & 7;
}

/* General registers that the instruction may change. */
static unsigned changed_gprs(const struct insn *in)
{
	unsigned m = 0;

	switch (in->kind) {
	case INSN_NOP: case INSN_JCC:
		return 0;
	case INSN_PUSH_R: case INSN_PUSH_IMM:
		return 1u << R_SP;
	case INSN_POP_R:
		return 1u << R_SP | 1u << in->opreg;
	case INSN_LEA:
		return 1u << in->reg;
	case INSN_NATIVE:
		break;
	default:
		return 0xffff;
	}
	if (in->reg_gpr & REG_WRITE)
		m |= 1u << (in->reg_high8 ? in->reg - 4 : in->reg);
	if (in->mem == MEM_NONE && (in->rm_gpr & REG_WRITE))
		m |= 1u << (in->rm_high8 ? in->rm - 4 : in->rm);
	if (in->vvvv_gpr & REG_WRITE)
		m |= 1u << in->vvvv;
	if (in->opreg_gpr & REG_WRITE)
		m |= 1u << in->opreg;
	if (!writes_explicit_only(in))
		m |= 1u << R_AX | 1u << R_CX | 1u << R_DX | 1u << R_BX | 1u << R_SI | 1u << R_DI;
	return m;
}

/* Keep what is known of low bits true over an instruction. */
static void track_residues(struct trans *t, const struct insn *in, unsigned changed)
{
	uint8_t *res = t->residue, r = NO_RESIDUE, sp = res[R_SP];

	if (in->kind == INSN_LEA && in->osz == 8 && trans_address_simple(t, in) && res[in->base] != NO_RESIDUE)
		r = (res[in->base] + (unsigned)in->disp) & 7;
	else if (in->kind == INSN_NATIVE)
		r = result_residue(t, in);
	for (unsigned i = 0; i < 16; i++)
		if (changed & (1u << i))
			res[i] = NO_RESIDUE;
	switch (in->kind) {
	case INSN_LEA:
		res[in->reg] = r;
		break;
	case INSN_NATIVE: /* the forms that have a result_residue write one register, explicitly */
		if (r != NO_RESIDUE)
			res[in->reg_gpr & REG_WRITE ? in->reg : in->rm] = r;
		break;
	case INSN_PUSH_R: case INSN_PUSH_IMM:
		res[R_SP] = in->osz == 8 ? sp : NO_RESIDUE;
		break;
	case INSN_POP_R:
		if (in->opreg != R_SP)
			res[R_SP] = in->osz == 8 ? sp : NO_RESIDUE;
		break;
	default:
		break;
	}
}

void trans_done(struct trans *t, const struct insn *in)
{
	unsigned changed = changed_gprs(in);

	track_residues(t, in, changed);
	if ((t->last.base >= 0 && (changed & (1u << t->last.base))) || (t->last.index >= 0 && (changed & (1u << t->last.index))))
		t->last.valid = false;
	if (!t->direct)
		return;
	forget_last(t, t->pending);
	t->cached |= t->pending;
	t->dirty |= t->pending;
	t->pending = 0;
}
