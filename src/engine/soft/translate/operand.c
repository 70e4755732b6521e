/*
 * Operands of native instructions: memory through the addend table, demoted GPRs through scratch registers, and the
 * re-encoding of the instruction around them.
 *
 * No emitted sequence touches flags. Guest-visible state changes only by the instruction itself, the last that can fault; so
 * the signal handler may restart the instruction from its first host byte.
 */
#include "engine/soft/translate/trans_int.h"

#include <string.h>

static bool demoted(int n) { return n >= T2 && n <= T0; }

unsigned trans_gpr(struct trans *t, unsigned n, unsigned scratch)
{
	if (!demoted((int)n))
		return n;
	e_load_gs(&t->e, scratch, GS_GPR((int)n));
	return scratch;
}

bool trans_mem_is_fast(const struct trans *t, const struct insn *in)
{
	if (in->mem == MEM_NONE || in->mem == MEM_ADDR)
		return true;
	if (in->mem_size > 64 || in->mem_size == 0 || (t->hflags & HF_ALIGN))
		return false;
	if (site_of(t->sv, t->gpa)->gpa == t->gpa && site_of(t->sv, t->gpa)->slow_hits >= SITE_SLOW_HITS)
		return false;
	if (t->mode == MODE_64)
		return true;
	if (in->seg == SEG_CS && in->mem != MEM_READ) /* a code segment is not writable */
		return false;
	return (t->hflags >> (HF_FLATLIM_SHIFT + in->seg)) & 1;
}

static unsigned log2_up(unsigned n)
{
	unsigned l = 0;

	while ((1u << l) < n)
		l++;
	return l;
}

/*
 * An access that crosses a page: its two pages have the same addend when they are neighbours on the host too, with the same
 * rights (no poison equals a neighbour's addend), and then the access may be made. rcx is saved in t->rx. Returns the rel8
 * of the jump to be taken then, with rcx put back and the addend in t->ra; else rcx is what it is.
 */
static uint32_t cross(struct trans *t, unsigned ea, unsigned size)
{
	struct emit *e = &t->e;
	uint32_t same, other, done;

	if (ea == R_CX)
		ea = t->rx;
	e_lea(e, 1, R_CX, (int)ea, -1, 0, (int32_t)size - 1);
	e_pext(e, R_CX, R_CX, GS(mask_page));
	e_load_gs_index(e, R_CX, R_CX, 0);
	e_pext(e, t->ra, ea, GS(mask_page));
	e_load_gs_index(e, t->ra, t->ra, 0);
	e8(e, 0x48); /* not rcx */
	e8(e, 0xf7);
	e8(e, 0xd1);
	e_lea(e, 1, R_CX, R_CX, (int)t->ra, 0, 1);
	same = e_jrcxz(e, 8);
	e8(e, 0xeb); /* jmp */
	e8(e, 0);
	other = e_off(e) - 1;
	e_patch8(e, same);
	e_mov(e, R_CX, t->rx);
	e8(e, 0xeb);
	e8(e, 0);
	done = e_off(e) - 1;
	e_patch8(e, other);
	return done;
}

/*
 * The addend of the page of ea, into t->ra; the access of `size` bytes there must not cross a page. An aligned one cannot: PDEP puts the
 * address's low bits to the top of the table's index, where anything but 0 makes the load's address not canonical.
 * The trap marks the site as misaligned, and its next translation has the exact check, and leaves for the slow path when the
 * access does cross. ea is [base + disp] when it is in t->ra itself. Without a register for the check, the low bits
 * index the check word (soft_int.h).
 */
static void look_up(struct trans *t, unsigned ea, unsigned base, int32_t disp, unsigned size, bool aligned)
{
	struct emit *e = &t->e;
	struct site *s = site_of(t->sv, t->gpa);
	unsigned log = log2_up(size), a = t->ra, x = t->rx;
	uint32_t ok, done = 0;

	if (size == 1 || aligned) {
		e_pext(e, a, ea, GS(mask_page));
		e_load_gs_index(e, a, a, 0);
		return;
	}
	if (!(s->gpa == t->gpa && s->misaligned)) {
		if (x != NO_REG) {
			e_pdep(e, x, ea, GS(mask_high) + 8 * (int32_t)log);
			e_pext(e, a, ea, GS(mask_page));
			e8(e, 0x65); /* mov a, gs:[x + a * 8] */
			e_op_mem(e, 1, 0x8b, a, (int)x, (int)a, 3, 0);
			return;
		}
		e_pext(e, a, ea, GS(mask_align) + 8 * (int32_t)log);
		e_load_gs_index(e, a, a, -CHECK_OFF);
		if (ea == a)
			e_lea(e, 1, a, (int)base, -1, 0, disp);
		e_pext(e, a, ea, GS(mask_page));
		e_load_gs_index(e, a, a, 0);
		return;
	}
	if (x == NO_REG)
		x = a;
	e_mov(e, x, R_CX);
	e_pext(e, R_CX, ea, GS(mask_fff));
	e_lea(e, 1, R_CX, R_CX, -1, 0, (int32_t)size - 1);
	e_pext(e, R_CX, R_CX, GS(mask_1000));
	ok = e_jrcxz(e, 8);
	if (x != a && ea != a)
		done = cross(t, ea, size);
	e_mov(e, R_CX, x);
	t->ool[t->nool++] = (struct out_of_line){.rel32_at = e_jmp(e), .pc = t->pc, .dirty = t->dirty};
	e_patch8(e, ok);
	e_mov(e, R_CX, x);
	e_pext(e, a, ea, GS(mask_page));
	e_load_gs_index(e, a, a, 0);
	if (done)
		e_patch8(e, done);
}

/* A misaligned operand of an aligned form is #GP by the CPU, but where MXCSR.MM may mask that (AMD APM vol. 2, 11.3.2). */
static bool cpu_checks(const struct trans *t, bool aligned_insn)
{
	return aligned_insn && !t->c->misaligned_sse;
}

/*
 * What the low three bits of a 64-bit register are known to be (trans.residue) comes from an access through it that passed its check.
 */
static bool known_aligned(const struct trans *t, unsigned base, int32_t disp, unsigned size)
{
	return size <= 8 && (size & (size - 1)) == 0 && t->residue[base] != NO_RESIDUE &&
	       ((t->residue[base] + (unsigned)disp) & (size - 1)) == 0;
}

static void learn(struct trans *t, unsigned base, int32_t disp, unsigned size, bool checked)
{
	const struct site *s = site_of(t->sv, t->gpa);

	if (size == 8 && checked && !(s->gpa == t->gpa && s->misaligned))
		t->residue[base] = (0u - (unsigned)disp) & 7;
}

void trans_stack(struct trans *t, unsigned reg, int32_t disp, unsigned size, struct operand *op)
{
	unsigned ea = reg;
	bool aligned;

	if (t->mode != MODE_64) {
		/* the address itself, cut to 32 bits, is the base: it may wrap, and the register's upper half may hold anything */
		e_lea(&t->e, false, T1, (int)reg, -1, 0, disp);
		t->ra = T2;
		t->rx = NO_REG;
		look_up(t, T1, NO_REG, 0, size, false);
		*op = (struct operand){.base = T1, .index = T2};
		trans_forget(t);
		return;
	}
	aligned = known_aligned(t, reg, disp, size);
	if (disp) {
		ea = t->direct && t->re != NO_REG && !aligned ? t->re : t->ra;
		e_lea(&t->e, true, ea, (int)reg, -1, 0, disp);
	}
	look_up(t, ea, reg, disp, size, aligned);
	learn(t, reg, disp, size, !aligned);
	*op = (struct operand){.base = (int)reg, .index = t->ra, .disp = disp};
}

/* The address as a constant; asz truncates. */
static uint64_t fixed_address(const struct trans *t, const struct insn *in)
{
	uint64_t off = in->rip_rel ? t->next + (uint64_t)in->disp : (uint64_t)in->disp;

	return in->asz == 8 ? off : off & mask_bytes(in->asz);
}

/* The offset of the memory operand, or its low half, into `to`, which may be one of its registers. */
static void offset(struct trans *t, const struct insn *in, unsigned to, bool wide)
{
	struct emit *e = &t->e;
	int base = in->base, index = in->index;
	unsigned scale = log2_up(in->scale ? in->scale : 1);
	int32_t disp = (int32_t)in->disp;

	if (in->rip_rel || (base < 0 && index < 0)) {
		if (in->rip_rel && t->slot) {
			trans_pc(t, to, t->next + (uint64_t)in->disp);
			if (!wide)
				e_mov32(e, to, to);
		} else {
			e_mov_imm(e, to, wide ? fixed_address(t, in) : (uint32_t)fixed_address(t, in));
		}
		return;
	}
	if (!t->direct && demoted(base)) {
		e_load_gs(e, T0, GS_GPR(base));
		base = T0;
	}
	if (!t->direct && demoted(index)) {
		e_load_gs(e, T1, GS_GPR(index));
		index = T1;
	}
	if (base < 0 && scale == 0) { /* [index + disp]: shorter as a base */
		base = index;
		index = -1;
	}
	e_lea(e, wide, to, base, index, scale, disp);
	if (in->asz == 2) { /* movzx r32, r16: one of the scratch registers */
		e8(e, 0x45);
		e8(e, 0x0f);
		e8(e, 0xb7);
		e8(e, 0xc0 | (to & 7) << 3 | (to & 7));
	}
}

void trans_offset(struct trans *t, const struct insn *in)
{
	offset(t, in, T0, in->asz == 8);
}

static bool needs_base(const struct trans *t, const struct insn *in)
{
	if (t->mode == MODE_64)
		return in->seg == SEG_FS || in->seg == SEG_GS;
	return !((t->hflags >> (HF_FLAT_SHIFT + in->seg)) & 1);
}

bool trans_address_fixed(const struct trans *t, const struct insn *in)
{
	uint64_t ea;

	if (t->mode != MODE_64 || in->kind == INSN_MASKMOV || in->base >= 0 || in->index >= 0 || needs_base(t, in) || (in->rip_rel && t->slot))
		return false;
	ea = fixed_address(t, in);
	return ea == (uint64_t)(int64_t)(int32_t)ea && (ea & (PAGE_SIZE - 1)) + in->mem_size <= PAGE_SIZE;
}

bool trans_address_simple(const struct trans *t, const struct insn *in)
{
	return t->mode == MODE_64 && in->asz == 8 && in->base >= 0 && in->index < 0 && !in->rip_rel && !needs_base(t, in);
}

void trans_look_up(struct trans *t, const struct insn *in, unsigned size, struct operand *op)
{
	struct emit *e = &t->e;
	/* where a page lies changes no low bits */
	bool fixed = in->rip_rel && t->mode == MODE_64 && in->asz == 8 && (fixed_address(t, in) & (size - 1)) == 0 && (size & (size - 1)) == 0;

	if (needs_base(t, in)) {
		fixed = false;
		e_load_gs(e, t->ra, GS(v.s.seg) + (int32_t)(in->seg * sizeof(struct cpu_seg) + offsetof(struct cpu_seg, base)));
		e_lea(e, t->mode == MODE_64, t->re, (int)t->re, (int)t->ra, 0, 0);
	}
	look_up(t, t->re, NO_REG, 0, size, fixed || cpu_checks(t, in->mem_aligned));
	*op = (struct operand){.base = t->re, .index = t->ra, .free0 = T2, .free1 = 0xff};
}

void trans_operand(struct trans *t, const struct insn *in, struct operand *op)
{
	struct emit *e = &t->e;
	unsigned size = in->mem_size;
	const struct site *s = site_of(t->sv, t->gpa);

	if (t->reuse) {
		*op = t->last.op;
		return;
	}
	if (t->direct && trans_address_fixed(t, in)) {
		uint64_t ea = fixed_address(t, in);

		e_mov_imm(e, t->ra, ((ea & (BIT(48) - 1)) >> PAGE_SHIFT) * 8);
		e8(e, 0x65); /* mov ra, gs:[ra] */
		e_op_mem(e, 1, 0x8b, t->ra, t->ra, -1, 0, 0);
		*op = (struct operand){.base = t->ra, .index = -1, .disp = (int32_t)ea};
		return;
	}
	if (trans_address_simple(t, in) && (t->direct || !demoted(in->base))) {
		unsigned base = (unsigned)in->base, ea = base;
		int32_t disp = (int32_t)in->disp;
		bool by_cpu = cpu_checks(t, in->mem_aligned), aligned = known_aligned(t, base, disp, size);

		if (disp) { /* t->re is there when the site is misaligned */
			ea = t->re != NO_REG && !by_cpu && !aligned ? t->re : t->ra;
			e_lea(e, 1, ea, (int)base, -1, 0, disp);
		}
		look_up(t, ea, base, disp, size, by_cpu || aligned);
		learn(t, base, disp, size, !by_cpu && !aligned);
		*op = (struct operand){.base = (int)base, .index = t->ra, .disp = disp, .free0 = T0, .free1 = T2};
	} else {
		offset(t, in, t->re, in->asz == 8);
		trans_look_up(t, in, size, op);
	}
	if (t->direct && trans_can_reuse(t, in) && !(s->gpa == t->gpa && s->misaligned) && !cpu_checks(t, in->mem_aligned))
		t->last = (struct looked_up){.valid = true, .base = in->base, .index = in->index, .scale = in->scale, .disp = (int32_t)in->disp,
					     .size = size, .op = *op, .regs = (uint8_t)trans_scratch_bits(op)};
}

/* ---- re-encoding ---- */

struct recode {
	struct trans *t;
	const struct insn *in;
	const uint8_t *bytes;
	struct operand op;
	bool has_mem;
	/* demoted guest GPR -> scratch */
	uint8_t guest[3], scratch[3];
	unsigned n;
	bool high8;        /* reg is AH..BH and goes through T2 */
};

static uint8_t next_scratch(struct recode *r)
{
	struct emit *e = &r->t->e;
	uint8_t s;

	if (!r->has_mem)
		return (uint8_t)(T0 - r->n); /* T0, T1, T2 */
	if (r->op.free0 == 0xff) { /* join ea and addend: frees T1 */
		e_lea(e, 1, T0, r->op.base, r->op.index, 0, r->op.disp);
		r->op = (struct operand){.base = T0, .index = -1, .free0 = T1, .free1 = 0xff};
	}
	s = r->op.free0;
	r->op.free0 = r->op.free1;
	r->op.free1 = 0xff;
	return s;
}

static unsigned subst(struct recode *r, unsigned gpr)
{
	uint8_t s;

	if (r->t->direct || !demoted((int)gpr))
		return gpr;
	for (unsigned i = 0; i < r->n; i++)
		if (r->guest[i] == gpr)
			return r->scratch[i];
	s = next_scratch(r);
	r->guest[r->n] = (uint8_t)gpr;
	r->scratch[r->n++] = s;
	e_load_gs(&r->t->e, s, GS_GPR((int)gpr));
	return s;
}

static void legacy_prefixes(struct recode *r)
{
	const struct insn *in = r->in;
	bool p66 = in->opsize66;

	/* the host decodes with 32-bit operands by default */
	if (in->mode == MODE_16 && in->unit == UNIT_INT && in->pp != 1)
		p66 = !p66;
	if (in->mode == MODE_16 && in->unit == UNIT_X87)
		p66 = false;
	if (p66)
		e8(&r->t->e, 0x66);
	if (in->rep)
		e8(&r->t->e, in->rep);
	if (in->lock)
		e8(&r->t->e, 0xf0);
}

static void opcode_legacy(struct recode *r, unsigned rex, unsigned op)
{
	struct emit *e = &r->t->e;

	if (rex)
		e8(e, rex);
	if (r->in->map)
		e8(e, 0x0f);
	if (r->in->map == 2)
		e8(e, 0x38);
	if (r->in->map == 3)
		e8(e, 0x3a);
	e8(e, op);
}

/* W would widen a GPR operand (or its memory form): outside 64-bit mode it is ignored there. */
static bool ignores_w(const struct insn *in)
{
	if (in->mode == MODE_64)
		return false;
	if (in->vex_gpr || in->reg_gpr || in->rm_gpr || in->vvvv_gpr)
		return true;
	if (in->map == 3) /* also VPCMPESTR*: lengths in eax and edx */
		return in->op == 0x16 || in->op == 0x22 || in->op == 0x60 || in->op == 0x61;
	if (in->map != 1)
		return false;
	if (in->pp == 1)
		return in->op == 0x6e || in->op == 0x7e;
	return in->pp >= 2 && (in->op == 0x2a || in->op == 0x7b);
}

/* VEX and EVEX: the payload bytes with R, X, B, vvvv replaced. b, x: base/rm and index extension bits of the new operand. */
static void opcode_vex(struct recode *r, unsigned reg, unsigned rm_hi, unsigned x_hi, unsigned vvvv)
{
	struct emit *e = &r->t->e;
	const struct insn *in = r->in;
	const uint8_t *payload = r->bytes + in->op_off;
	unsigned rx = (reg & 8 ? 0 : 0x80) | (x_hi ? 0 : 0x40) | (rm_hi ? 0 : 0x20);
	unsigned v = in->has_vvvv ? vvvv : 0, no_w = ignores_w(in) ? 0x7f : 0xff;

	if (in->enc == ENC_EVEX) {
		e8(e, 0x62);
		e8(e, (payload[-3] & 0x1f) | rx | (in->mode != MODE_64 ? 0x10 : 0)); /* R' and V' do not count there */
		e8(e, ((payload[-2] & 0x87) | (~v & 15) << 3) & no_w);
		e8(e, payload[-1] | (in->mode != MODE_64 ? 8 : 0));
	} else {
		unsigned wlp = in->enc == ENC_VEX3 ? payload[-1] & 0x87 : payload[-1] & 7;

		e8(e, 0xc4);
		e8(e, rx | in->map);
		e8(e, (wlp | (~v & 15) << 3) & no_w);
	}
	e8(e, in->op);
}

static unsigned moffs_opcode(const struct insn *in)
{
	static const uint8_t op[4] = {0x8a, 0x8b, 0x88, 0x89};

	return op[in->op & 3];
}

static bool is_moffs(const struct insn *in)
{
	return in->enc == ENC_LEGACY && in->map == 0 && in->op >= 0xa0 && in->op <= 0xa3;
}

static void emit_with_modrm(struct recode *r, unsigned reg, unsigned rm, unsigned vvvv, unsigned op)
{
	struct emit *e = &r->t->e;
	const struct insn *in = r->in;
	int index = r->has_mem ? r->op.index : -1;
	bool rm_is_vec = !r->has_mem && !in->rm_gpr;
	int32_t disp = r->op.disp;

	if (in->enc == ENC_LEGACY) {
		unsigned rex = in->rex & 0x48;

		rex |= (reg & 8) >> 1 | (index > 7 ? 2 : 0) | ((r->has_mem ? (unsigned)r->op.base : rm) & 8) >> 3;
		if (rex || in->rex || r->high8)
			rex |= 0x40;
		legacy_prefixes(r);
		opcode_legacy(r, rex, op);
	} else {
		unsigned x = r->has_mem ? index > 7 : (rm_is_vec && (rm & 16) != 0);

		opcode_vex(r, reg, ((r->has_mem ? (unsigned)r->op.base : rm) & 8) != 0, x, vvvv);
	}
	if (!r->has_mem) {
		e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
		return;
	}
	/* EVEX scales disp8: use none or disp32 */
	if (in->enc == ENC_EVEX && disp) {
		bool sib = index >= 0 || (r->op.base & 7) == 4;

		e8(e, 0x80 | (reg & 7) << 3 | (sib ? 4 : (unsigned)r->op.base & 7));
		if (sib)
			e8(e, (index < 0 ? 4u : (unsigned)index & 7) << 3 | ((unsigned)r->op.base & 7));
		e32(e, (uint32_t)disp);
	} else if (in->enc == ENC_EVEX && (r->op.base & 7) == 5) {
		/* rbp/r13 base needs a displacement, and disp8 0 is 0 whatever the scale */
		e_mem(e, reg, r->op.base, index, 0, 0);
	} else {
		e_mem(e, reg, r->op.base, index, 0, disp);
	}
}

static void emit_opreg(struct recode *r)
{
	const struct insn *in = r->in;
	struct emit *e = &r->t->e;
	unsigned reg = subst(r, in->opreg);
	unsigned rex;

	if (in->map == 0 && in->op >= 0x40 && in->op <= 0x4f) { /* INC/DEC r: these bytes are REX here */
		legacy_prefixes(r);
		e8(e, 0xff);
		e8(e, 0xc0 | (in->op & 8) | (reg & 7));
		return;
	}
	rex = (in->rex & 0x48) | (reg & 8) >> 3;
	if (rex || in->rex)
		rex |= 0x40;
	legacy_prefixes(r);
	opcode_legacy(r, rex, (in->op & 0xf8) | (reg & 7));
}

/* VBLENDV*: the immediate's upper half is a register, of which there are eight outside 64-bit mode. */
static bool names_register(const struct insn *in)
{
	return in->mode != MODE_64 && in->enc != ENC_LEGACY && in->map == 3 && in->op >= 0x4a && in->op <= 0x4c;
}

void trans_native(struct trans *t, const struct insn *in, const uint8_t *bytes, const struct operand *op)
{
	struct recode r = {.t = t, .in = in, .bytes = bytes, .has_mem = op != NULL};
	struct emit *e = &t->e;
	unsigned reg = in->reg, rm = in->rm, vvvv = in->vvvv, opcode = in->op;

	if (op)
		r.op = *op;
	if (in->enc == ENC_LEGACY && in->map == 0 && in->op == 0x82)
		opcode = 0x80; /* its alias outside 64-bit mode */
	if (is_moffs(in)) {
		reg = R_AX;
		opcode = moffs_opcode(in);
	} else if (in->opreg_gpr) {
		emit_opreg(&r);
		goto imm;
	} else if (!in->has_modrm) {
		unsigned rex = in->rex & 0x48;

		legacy_prefixes(&r);
		if (in->enc == ENC_LEGACY)
			opcode_legacy(&r, in->rex ? rex | 0x40 : 0, in->op);
		else
			opcode_vex(&r, 0, 0, 0, 0); /* vzeroupper */
		goto imm;
	}
	if (op && in->reg_high8) { /* AH..BH cannot be named together with r8-r15: rotate it into T2's low byte */
		r.high8 = true;
		reg = next_scratch(&r);
		e_rorx(e, reg, in->reg - 4u, 8);
	} else if (in->reg_gpr) {
		reg = subst(&r, reg);
	}
	if (!op && in->rm_gpr)
		rm = subst(&r, rm);
	if (in->vvvv_gpr)
		vvvv = subst(&r, vvvv);
	emit_with_modrm(&r, reg, rm, vvvv, opcode);
imm:
	for (unsigned i = 0; i < in->imm_len; i++)
		e8(e, bytes[in->imm_off + i] & (names_register(in) ? 0x7f : 0xff));
	if (r.high8 && (in->reg_gpr & REG_WRITE)) /* only then: CMPXCHG has written AL beside it */
		e_rorx(e, in->reg - 4u, reg, 56);
	for (unsigned i = 0; i < r.n; i++)
		e_store_gs(e, r.scratch[i], GS_GPR(r.guest[i]));
}

/* MASKMOVQ, MASKMOVDQU: the operand is at [rdi]; T0 holds its host address. */
void trans_maskmov(struct trans *t, const struct insn *in, const uint8_t *bytes)
{
	struct recode r = {.t = t, .in = in, .bytes = bytes};
	struct emit *e = &t->e;

	e_op_reg(e, 1, 0x87, T0, R_DI); /* xchg */
	emit_with_modrm(&r, in->reg, in->rm, in->vvvv, in->op);
	e_op_reg(e, 1, 0x87, T0, R_DI);
}

/* LEA writes osz bytes of the offset. */
void trans_lea(struct trans *t, const struct insn *in)
{
	struct emit *e = &t->e;
	unsigned to = in->reg;

	if (t->direct) {
		offset(t, in, to, in->asz == 8 && in->osz == 8);
		return;
	}
	trans_offset(t, in);
	if (in->osz == 2) {
		/* mov r16, T0w keeps the upper bits */
		if (demoted((int)to))
			e_load_gs(e, T2, GS_GPR((int)to));
		e8(e, 0x66);
		e_op_reg(e, 0, 0x8b, demoted((int)to) ? T2 : to, T0);
		if (demoted((int)to))
			e_store_gs(e, T2, GS_GPR((int)to));
		return;
	}
	if (in->osz == 4)
		e_mov32(e, demoted((int)to) ? T0 : to, T0);
	else if (!demoted((int)to))
		e_mov(e, to, T0);
	if (demoted((int)to))
		e_store_gs(e, T0, GS_GPR((int)to));
}
