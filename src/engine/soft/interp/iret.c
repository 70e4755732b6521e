/* IRET in all its forms (SDM vol. 2, IRET; APM vol. 3, IRET). */
#include "engine/soft/interp/interp_int.h"

static void set_flags(struct vcpu *v, uint64_t image, unsigned osz, unsigned cpl)
{
	v->s.rflags = flags_merge(v, image, osz, cpl, true);
}

static bool iret_real(struct vcpu *v, const struct frame *f, uint64_t sp)
{
	struct cpu_seg *cs = &v->s.seg[SEG_CS];

	if (f->val[0] > cs->limit)
		return vcpu_raise_gp(v, 0);
	cs->sel = f->val[1];
	cs->base = (uint32_t)cs->sel << 4;
	v->s.rip = f->val[0];
	v->s.gpr[R_SP] = sp;
	/* VM86 at IOPL 3 comes here too: its CPL 3 keeps IOPL. In real mode VIF and VIP stay. */
	if (cpu_is_v86(&v->s)) {
		set_flags(v, f->val[2], f->size, 3);
	} else {
		uint64_t keep = v->s.rflags & (FL_VIF | FL_VIP);

		set_flags(v, f->val[2], f->size, 0);
		v->s.rflags = (v->s.rflags & ~(FL_VIF | FL_VIP)) | keep;
	}
	return true;
}

/* From ring 0 to virtual-8086 mode. sp is above EFLAGS. */
static bool iret_to_v86(struct vcpu *v, const struct frame *f, uint64_t sp)
{
	static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	struct frame more; /* ESP, SS, ES, DS, FS, GS */

	frame_init(&more, 6, 4);
	if (!frame_pop(v, &sp, &more))
		return false;
	if ((uint32_t)f->val[0] > 0xffff)
		return vcpu_raise_gp(v, 0);
	set_flags(v, f->val[2], 4, 0);
	v->s.rflags |= FL_VM;
	v->s.seg[SEG_CS] = seg_v86(f->val[1]);
	for (unsigned i = 0; i < ARRAY_LEN(order); i++)
		v->s.seg[order[i]] = seg_v86(more.val[1 + i]);
	v->s.gpr[R_SP] = more.val[0];
	v->s.rip = (uint32_t)f->val[0];
	mmu_context_changed(v);
	return true;
}

static bool iret_protected(struct vcpu *v, const struct frame *f, uint64_t sp)
{
	unsigned cpl = cpu_cpl(&v->s), osz = f->size;
	bool from64 = cpu_is_64bit(&v->s), to64, outer;
	struct cpu_seg cs, ss = v->s.seg[SEG_SS];
	struct frame tail;

	frame_init(&tail, 2, osz);
	/* 64-bit mode pops SS:RSP always; it lies next to the rest, so one look decides the fault order well enough. */
	if (from64 && !frame_pop(v, &sp, &tail))
		return false;
	if (!seg_return_cs(v, f->val[1], &cs))
		return false;
	outer = (cs.sel & 3u) > cpl;
	to64 = cpu_long_mode(&v->s) && (cs.attr & SEG_L);
	if (outer && !from64 && !frame_pop(v, &sp, &tail))
		return false;
	if ((outer || from64) && !seg_return_ss(v, tail.val[1], cs.sel & 3, to64, &ss))
		return false;
	if (to64 ? !cpu_canonical(f->val[0]) : f->val[0] > cs.limit)
		return vcpu_raise_gp(v, 0);
	set_flags(v, f->val[2], osz, cpl);
	v->s.gpr[R_SP] = outer || from64 ? return_sp(v, tail.val[0], &ss, osz, to64) : sp;
	v->s.seg[SEG_CS] = cs;
	v->s.seg[SEG_SS] = ss;
	v->s.rip = f->val[0];
	if (outer)
		seg_drop_inner(v, cs.sel & 3);
	mmu_context_changed(v);
	return true;
}

ROUTINE(iret)
{
	uint64_t sp = v->s.gpr[R_SP];
	struct frame f;
	bool ok;

	frame_init(&f, 3, in->osz);
	if (cpu_is_v86(&v->s) && iopl(v) < 3)
		return vcpu_raise_gp(v, 0);
	if (protected_not_v86(v) && (v->s.rflags & FL_NT)) {
		if (cpu_long_mode(&v->s))
			return vcpu_raise_gp(v, 0);
		return fatal(v, "hardware task switch (IRET with NT set)");
	}
	v->s.nmi_masked = 0; /* even when the IRET itself faults (SDM vol. 3, 6.7.1) */
	if (!frame_pop(v, &sp, &f))
		return false;
	if (!protected_not_v86(v))
		ok = iret_real(v, &f, sp);
	else if (!cpu_long_mode(&v->s) && (f.val[2] & FL_VM) && in->osz == 4 && cpu_cpl(&v->s) == 0)
		ok = iret_to_v86(v, &f, sp);
	else
		ok = iret_protected(v, &f, sp);
	return ok;
}
