/* Far JMP, CALL and RETF: segments, call gates, rings (SDM vol. 3, 5.8; APM vol. 2, 4.11). */
#include "engine/soft/interp/interp_int.h"


struct far_op {
	uint16_t sel;
	uint64_t off;
	unsigned osz;
	bool call;
	uint64_t ret; /* return address */
};

struct gate {
	uint16_t sel;
	uint64_t off;
	unsigned size;	 /* 2, 4, 8 */
	unsigned params; /* words of size bytes copied from the outer stack */
};

/* Field of the current TSS; beyond its limit #TS. */
static bool tss_read(struct vcpu *v, unsigned off, void *buf, unsigned len, unsigned ext)
{
	if (off + len - 1 > v->s.tr.limit)
		return raise_sel(v, EXC_TS, v->s.tr.sel, ext);
	return sys_read(v, v->s.tr.base + off, buf, len);
}

bool tss_stack(struct vcpu *v, unsigned dpl, unsigned ext, uint16_t *ss, uint64_t *sp)
{
	uint8_t buf[8];

	*ss = dpl;
	if (cpu_long_mode(&v->s))
		return tss_read(v, 4 + 8 * dpl, sp, 8, ext);
	if (v->s.tr.attr & 8) {
		if (!tss_read(v, 4 + 8 * dpl, buf, 6, ext))
			return false;
		*sp = get_le32(buf);
		*ss = get_le16(buf + 4);
		return true;
	}
	if (!tss_read(v, 2 + 4 * dpl, buf, 4, ext))
		return false;
	*sp = get_le16(buf);
	*ss = get_le16(buf + 2);
	return true;
}

bool tss_ist(struct vcpu *v, unsigned ist, unsigned ext, uint64_t *sp)
{
	return tss_read(v, 0x24 + 8 * (ist - 1), sp, 8, ext);
}

bool inner_ss(struct vcpu *v, uint16_t sel, unsigned dpl, unsigned ext, struct cpu_seg *out)
{
	struct desc d;

	if (sel_null(sel))
		return raise_sel(v, EXC_TS, sel, ext);
	if (!desc_fetch(v, sel, EXC_TS, ext, &d))
		return false;
	if ((sel & 3u) != dpl || desc_dpl(&d) != dpl || !desc_is_stack(&d))
		return raise_sel(v, EXC_TS, sel, ext);
	if (!desc_p(&d))
		return raise_sel(v, EXC_SS, sel, ext);
	if (!desc_set_accessed(v, &d))
		return false;
	desc_to_seg(&d, sel, out);
	return true;
}

/* The target's offset against its own segment. */
static bool target_ok(struct vcpu *v, const struct cpu_seg *cs, uint64_t off)
{
	bool to64 = cpu_long_mode(&v->s) && (cs->attr & SEG_L);

	return (to64 ? cpu_canonical(off) : off <= cs->limit) || vcpu_raise_gp(v, 0);
}

static bool push_return(struct vcpu *v, const struct far_op *op, uint64_t *sp)
{
	struct frame f;

	frame_init(&f, 0, op->osz);
	frame_add(&f, v->s.seg[SEG_CS].sel);
	frame_add(&f, op->ret);
	return frame_push(v, &v->s.seg[SEG_SS], cpu_is_64bit(&v->s), sp, &f, 0, 0);
}

/* To cs:off in the same ring. */
static bool far_same(struct vcpu *v, const struct far_op *op, const struct cpu_seg *cs, uint64_t off)
{
	uint64_t sp = v->s.gpr[R_SP];

	if (!target_ok(v, cs, off) || (op->call && !push_return(v, op, &sp)))
		return false;
	v->s.gpr[R_SP] = sp;
	v->s.seg[SEG_CS] = *cs;
	v->s.rip = off;
	mmu_context_changed(v);
	return true;
}

static bool far_real(struct vcpu *v, const struct far_op *op)
{
	struct cpu_seg cs = v->s.seg[SEG_CS];

	cs.sel = op->sel;
	cs.base = (uint32_t)op->sel << 4;
	return far_same(v, op, &cs, op->off);
}

static bool far_code(struct vcpu *v, const struct far_op *op, struct desc *d)
{
	unsigned cpl = cpu_cpl(&v->s);
	struct cpu_seg cs;

	if (desc_conforming(d) ? desc_dpl(d) > cpl : (op->sel & 3u) > cpl || desc_dpl(d) != cpl)
		return raise_sel(v, EXC_GP, op->sel, 0);
	if (cpu_long_mode(&v->s) && desc_l(d) && desc_d(d))
		return raise_sel(v, EXC_GP, op->sel, 0);
	if (!desc_p(d))
		return raise_sel(v, EXC_NP, op->sel, 0);
	if (!desc_set_accessed(v, d))
		return false;
	desc_to_seg(d, (op->sel & 0xfffc) | cpl, &cs);
	return far_same(v, op, &cs, op->off);
}

/* The stack frame of a call through a gate to an inner ring. */
static bool inner_frame(struct vcpu *v, const struct far_op *op, const struct gate *g, struct frame *f)
{
	*f = (struct frame){.size = g->size};
	frame_add(f, v->s.seg[SEG_SS].sel);
	frame_add(f, v->s.gpr[R_SP]);
	if (g->params) {
		struct frame params = {.n = g->params, .size = g->size};
		uint64_t sp = v->s.gpr[R_SP];

		if (!frame_pop(v, &sp, &params))
			return false;
		for (unsigned i = g->params; i-- > 0;)
			frame_add(f, params.val[i]);
	}
	frame_add(f, v->s.seg[SEG_CS].sel);
	frame_add(f, op->ret);
	return true;
}

static bool gate_inner(struct vcpu *v, const struct far_op *op, const struct gate *g, struct desc *d)
{
	unsigned dpl = desc_dpl(d);
	bool lm = cpu_long_mode(&v->s);
	struct cpu_seg cs, ss;
	struct frame f;
	uint16_t ss_sel;
	uint64_t sp;

	if (!tss_stack(v, dpl, 0, &ss_sel, &sp))
		return false;
	ss = seg_null_ss(dpl);
	if (!lm && !inner_ss(v, ss_sel, dpl, 0, &ss))
		return false;
	if (!desc_set_accessed(v, d))
		return false;
	desc_to_seg(d, (g->sel & 0xfffc) | dpl, &cs);
	if (!target_ok(v, &cs, g->off) || !inner_frame(v, op, g, &f) ||
	    !frame_push(v, &ss, lm, &sp, &f, MMU_SYSTEM, ss_sel & 0xfffcu))
		return false;
	v->s.seg[SEG_CS] = cs;
	v->s.seg[SEG_SS] = ss;
	v->s.gpr[R_SP] = sp;
	v->s.rip = g->off;
	mmu_context_changed(v);
	return true;
}

static bool gate_read(struct vcpu *v, const struct far_op *op, const struct desc *d, struct gate *g)
{
	uint64_t high;

	*g = (struct gate){
		.sel = d->raw >> 16,
		.off = (d->raw & 0xffff) | ((d->raw >> 32) & 0xffff0000),
		.size = (desc_type(d) & 8) ? 4 : 2,
		.params = (d->raw >> 32) & 31,
	};
	if (g->size == 2)
		g->off &= 0xffff;
	if (!cpu_long_mode(&v->s))
		return true;
	if (!desc_fetch_high(v, op->sel, EXC_GP, 0, d, &high))
		return false;
	if (high & 0x1f0000000000) /* the type of the upper half must be 0 */
		return raise_sel(v, EXC_GP, op->sel, 0);
	g->off |= high << 32;
	g->size = 8;
	g->params = 0;
	return true;
}

static bool far_gate(struct vcpu *v, const struct far_op *op, const struct desc *gate)
{
	unsigned cpl = cpu_cpl(&v->s);
	struct far_op same = *op;
	struct cpu_seg cs;
	struct gate g;
	struct desc d;
	bool bad;

	if (desc_dpl(gate) < cpl || desc_dpl(gate) < (op->sel & 3u))
		return raise_sel(v, EXC_GP, op->sel, 0);
	if (!desc_p(gate))
		return raise_sel(v, EXC_NP, op->sel, 0);
	if (!gate_read(v, op, gate, &g))
		return false;
	if (sel_null(g.sel))
		return vcpu_raise_gp(v, 0);
	if (!desc_fetch(v, g.sel, EXC_GP, 0, &d))
		return false;
	bad = !desc_is_code(&d) || desc_dpl(&d) > cpl || (!op->call && !desc_conforming(&d) && desc_dpl(&d) != cpl);
	if (bad || (cpu_long_mode(&v->s) && (!desc_l(&d) || desc_d(&d))))
		return raise_sel(v, EXC_GP, g.sel, 0);
	if (!desc_p(&d))
		return raise_sel(v, EXC_NP, g.sel, 0);
	if (op->call && !desc_conforming(&d) && desc_dpl(&d) < cpl)
		return gate_inner(v, op, &g, &d);
	if (!desc_set_accessed(v, &d))
		return false;
	desc_to_seg(&d, (g.sel & 0xfffc) | cpl, &cs);
	same.osz = g.size;
	if (op->call && cpu_long_mode(&v->s)) { /* pushes 8 bytes on a 64-bit stack, even from compatibility mode */
		struct frame f;
		uint64_t sp = v->s.gpr[R_SP];

		frame_init(&f, 0, 8);
		frame_add(&f, v->s.seg[SEG_CS].sel);
		frame_add(&f, op->ret);
		if (!target_ok(v, &cs, g.off) || !frame_push(v, &v->s.seg[SEG_SS], true, &sp, &f, 0, 0))
			return false;
		v->s.gpr[R_SP] = sp;
		same.call = false;
	}
	return far_same(v, &same, &cs, g.off);
}

static bool far_transfer(struct vcpu *v, const struct far_op *op)
{
	struct desc d;

	if (!protected_not_v86(v))
		return far_real(v, op);
	if (sel_null(op->sel))
		return vcpu_raise_gp(v, 0);
	if (!desc_fetch(v, op->sel, EXC_GP, 0, &d))
		return false;
	if (desc_is_code(&d))
		return far_code(v, op, &d);
	if (desc_s(&d))
		return raise_sel(v, EXC_GP, op->sel, 0);
	switch (desc_type(&d)) {
	case 0xc:
		return far_gate(v, op, &d);
	case 4:
		if (!cpu_long_mode(&v->s))
			return far_gate(v, op, &d);
		break;
	case 1:
	case 5:
	case 9:
		if (cpu_long_mode(&v->s))
			break;
		if (desc_dpl(&d) < cpu_cpl(&v->s) || desc_dpl(&d) < (op->sel & 3u))
			break;
		if (!desc_p(&d))
			return raise_sel(v, EXC_NP, op->sel, 0);
		return fatal(v, "hardware task switch (far jump or call to a task)");
	}
	return raise_sel(v, EXC_GP, op->sel, 0);
}

ROUTINE(far_ptr)
{
	struct far_op op = {.sel = in->imm2,
			    .off = (uint64_t)in->imm & mask_bytes(in->osz),
			    .osz = in->osz,
			    .call = in->kind == INSN_CALL_FAR_PTR,
			    .ret = next_rip(v, in)};

	return far_transfer(v, &op);
}

ROUTINE(far_ind)
{
	/* AMD has no 64-bit offset here: REX.W reads m16:32. */
	unsigned size = in->osz == 8 && vendor_amd(v) ? 4 : in->osz;
	struct far_op op = {.osz = in->osz, .call = in->kind == INSN_CALL_FAR_IND, .ret = next_rip(v, in)};
	uint8_t buf[10] = {0};
	gva_t la;

	if (!op_linear(v, in, size + 2, false, &la) || !mmu_read(v, la, buf, size + 2, MMU_READ))
		return false;
	copy_bytes(&op.off, buf, size);
	op.sel = get_le16(buf + size);
	return far_transfer(v, &op);
}

/* --- RETF --- */

static bool retf_real(struct vcpu *v, const struct frame *f, uint64_t sp)
{
	struct cpu_seg cs = v->s.seg[SEG_CS];

	cs.sel = f->val[1];
	cs.base = (uint32_t)cs.sel << 4;
	if (!target_ok(v, &cs, f->val[0]))
		return false;
	v->s.seg[SEG_CS] = cs;
	v->s.rip = f->val[0];
	v->s.gpr[R_SP] = sp;
	return true;
}

uint64_t return_sp(const struct vcpu *v, uint64_t value, const struct cpu_seg *ss, unsigned osz, bool to64)
{
	if (to64)
		return value & mask_bytes(osz);
	if (ss->attr & SEG_DB)
		return (uint32_t)value;
	return (v->s.gpr[R_SP] & 0xffff0000) | (value & 0xffff);
}

/* To an outer ring: SP and SS lie above the parameters. */
static bool retf_outer(struct vcpu *v, const struct cpu_seg *cs, uint64_t rip, uint64_t sp, unsigned osz, unsigned imm)
{
	struct frame f;
	bool to64 = cpu_long_mode(&v->s) && (cs->attr & SEG_L);
	unsigned cpl = cs->sel & 3;
	struct cpu_seg ss;

	frame_init(&f, 2, osz);
	sp = stack_add(v, sp, imm);
	if (!frame_pop(v, &sp, &f) || !seg_return_ss(v, f.val[1], cpl, to64, &ss) || !target_ok(v, cs, rip))
		return false;
	v->s.seg[SEG_CS] = *cs;
	v->s.seg[SEG_SS] = ss;
	v->s.rip = rip;
	v->s.gpr[R_SP] = stack_add(v, return_sp(v, f.val[0], &ss, osz, to64), imm); /* in the new stack's width */
	seg_drop_inner(v, cpl);
	mmu_context_changed(v);
	return true;
}

ROUTINE(retf)
{
	struct frame f;
	unsigned imm = in->kind == INSN_RETF_IMM ? (uint16_t)in->imm : 0;
	uint64_t sp = v->s.gpr[R_SP];
	struct cpu_seg cs;

	frame_init(&f, 2, in->osz);
	if (!frame_pop(v, &sp, &f))
		return false;
	if (!protected_not_v86(v))
		return retf_real(v, &f, stack_add(v, sp, imm));
	if (!seg_return_cs(v, f.val[1], &cs))
		return false;
	if ((cs.sel & 3u) > cpu_cpl(&v->s))
		return retf_outer(v, &cs, f.val[0], sp, in->osz, imm);
	if (!target_ok(v, &cs, f.val[0]))
		return false;
	v->s.gpr[R_SP] = stack_add(v, sp, imm);
	v->s.seg[SEG_CS] = cs;
	v->s.rip = f.val[0];
	mmu_context_changed(v);
	return true;
}
