/* SYSCALL, SYSRET, SYSENTER, SYSEXIT, as the vendor of the CPUID table has them (SDM vol. 2; APM vol. 3). */
#include "engine/soft/interp/interp_int.h"

#define SYSRET_FLAGS UINT64_C(0x3c7fd7)

static void enter(struct vcpu *v, const struct cpu_seg *cs, const struct cpu_seg *ss, uint64_t rip)
{
	v->s.seg[SEG_CS] = *cs;
	v->s.seg[SEG_SS] = *ss;
	v->s.rip = rip;
	mmu_context_changed(v);
}

ROUTINE(syscall)
{
	bool is64 = cpu_is_64bit(&v->s), lm = cpu_long_mode(&v->s);
	uint16_t sel = (v->s.star >> 32) & 0xfffc;
	struct cpu_seg cs = seg_flat_code(sel, 0, lm), ss = seg_flat_stack(sel + 8, 0);
	uint64_t next = next_rip(v, in);

	if (!(v->s.efer & EFER_SCE) || !protected_not_v86(v) || (!is64 && !vendor_amd(v)))
		return vcpu_raise_ud(v);
	if (!lm) { /* AMD only: target in STAR[31:0] */
		v->s.gpr[R_CX] = (uint32_t)next;
		v->s.rflags = (v->s.rflags & ~(FL_IF | FL_VM | FL_RF)) | FL_FIXED;
		enter(v, &cs, &ss, (uint32_t)v->s.star);
		return true;
	}
	v->s.gpr[R_CX] = next;
	v->s.gpr[R_11] = (v->s.rflags | FL_FIXED) & ~FL_RF;
	v->s.rflags = (v->s.rflags & ~(v->s.sfmask | FL_RF)) | FL_FIXED;
	enter(v, &cs, &ss, is64 ? v->s.lstar : v->s.cstar);
	return true;
}

ROUTINE(sysret)
{
	bool is64 = cpu_is_64bit(&v->s), lm = cpu_long_mode(&v->s), amd = vendor_amd(v), to64 = in->osz == 8;
	uint16_t star = v->s.star >> 48;
	struct cpu_seg cs = seg_flat_code(to64 ? (star + 16) | 3 : star | 3, 3, to64),
		       ss = seg_flat_stack((star + 8) | 3, 3);
	uint64_t rip = to64 ? v->s.gpr[R_CX] : (uint32_t)v->s.gpr[R_CX];

	if (!(v->s.efer & EFER_SCE) || !protected_not_v86(v) || (!is64 && !amd))
		return vcpu_raise_ud(v);
	if (!need_cpl0(v))
		return false;
	if (!amd && !cpu_canonical(rip))
		return vcpu_raise_gp(v, 0);
	if (amd) { /* base, limit and attributes of SS stay: a null SS of the kernel shows through */
		ss = v->s.seg[SEG_SS];
		ss.sel = (star + 8) | 3;
		ss.attr |= SEG_DPL;
	}
	if (lm)
		v->s.rflags = (v->s.gpr[R_11] & SYSRET_FLAGS) | FL_FIXED;
	else
		v->s.rflags |= FL_IF;
	enter(v, &cs, &ss, rip);
	return true;
}

ROUTINE(sysenter)
{
	bool lm = cpu_long_mode(&v->s);
	uint16_t sel = v->s.sysenter_cs & 0xfffc;
	struct cpu_seg cs = seg_flat_code(sel, 0, lm), ss = seg_flat_stack(sel + 8, 0);

	if (lm && vendor_amd(v))
		return vcpu_raise_ud(v);
	if (cpu_is_real(&v->s) || !sel)
		return vcpu_raise_gp(v, 0);
	v->s.rflags &= ~(FL_VM | FL_IF | FL_RF);
	v->s.gpr[R_SP] = lm ? v->s.sysenter_esp : (uint32_t)v->s.sysenter_esp;
	enter(v, &cs, &ss, lm ? v->s.sysenter_eip : (uint32_t)v->s.sysenter_eip);
	return true;
}

ROUTINE(sysexit)
{
	bool to64 = in->osz == 8;
	uint16_t sel = v->s.sysenter_cs & 0xfffc;
	struct cpu_seg cs, ss;

	if (cpu_long_mode(&v->s) && vendor_amd(v))
		return vcpu_raise_ud(v);
	if (cpu_is_real(&v->s) || cpu_cpl(&v->s) || !sel)
		return vcpu_raise_gp(v, 0);
	if (to64 && !(cpu_canonical(v->s.gpr[R_DX]) && cpu_canonical(v->s.gpr[R_CX])))
		return vcpu_raise_gp(v, 0);
	cs = seg_flat_code((sel + (to64 ? 32 : 16)) | 3, 3, to64);
	ss = seg_flat_stack((sel + (to64 ? 40 : 24)) | 3, 3);
	v->s.gpr[R_SP] = to64 ? v->s.gpr[R_CX] : (uint32_t)v->s.gpr[R_CX];
	enter(v, &cs, &ss, to64 ? v->s.gpr[R_DX] : (uint32_t)v->s.gpr[R_DX]);
	return true;
}
