/* Small privileged and critical instructions (SDM vol. 2; APM vol. 3). */
#include "engine/soft/interp/interp_int.h"

#include <x86intrin.h>

ROUTINE(hlt)
{
	if (!need_cpl0(v))
		return false;
	v->s.run_state = CPU_HALTED;
	return retire(v, in);
}

/* CLI and STI: IOPL decides (SDM vol. 2); CPUID hides VME, so there is no virtual IF. */
static bool if_allowed(struct vcpu *v)
{
	if (cpu_is_real(&v->s) || cpu_cpl(&v->s) <= iopl(v))
		return true;
	return vcpu_raise_gp(v, 0);
}

ROUTINE(cli)
{
	if (!if_allowed(v))
		return false;
	v->s.rflags &= ~FL_IF;
	return retire(v, in);
}

ROUTINE(sti)
{
	if (!if_allowed(v))
		return false;
	if (!(v->s.rflags & FL_IF))
		v->s.shadow_sti = 1;
	v->s.rflags |= FL_IF;
	return retire(v, in);
}

ROUTINE(wbinvd) { return need_cpl0(v) && retire(v, in); }

ROUTINE(rdmsr)
{
	uint64_t value;

	if (!need_cpl0(v))
		return false;
	if (!msr_read(v, v->s.gpr[R_CX], &value))
		return vcpu_raise_gp(v, 0);
	gpr_set(v, R_AX, 4, value);
	gpr_set(v, R_DX, 4, value >> 32);
	return retire(v, in);
}

ROUTINE(wrmsr)
{
	if (!need_cpl0(v))
		return false;
	if (!msr_write(v, v->s.gpr[R_CX], gpr_get(v, R_AX, 4) | gpr_get(v, R_DX, 4) << 32))
		return vcpu_raise_gp(v, 0);
	return retire(v, in);
}

/* CPUID shows no performance counters but the four that AMD has always had: they stand at 0. */
ROUTINE(rdpmc)
{
	if (!(v->s.cr4 & CR4_PCE) && !need_cpl0(v))
		return false;
	if (!vendor_amd(v) || (uint32_t)v->s.gpr[R_CX] >= 4)
		return vcpu_raise_gp(v, 0);
	gpr_set(v, R_AX, 4, 0);
	gpr_set(v, R_DX, 4, 0);
	return retire(v, in);
}

static bool tsc_allowed(struct vcpu *v) { return !(v->s.cr4 & CR4_TSD) || need_cpl0(v); }

static void tsc_read(struct vcpu *v)
{
	uint64_t tsc = __rdtsc() + v->s.tsc_offset;

	gpr_set(v, R_AX, 4, tsc);
	gpr_set(v, R_DX, 4, tsc >> 32);
}

ROUTINE(rdtsc)
{
	if (!tsc_allowed(v))
		return false;
	tsc_read(v);
	return retire(v, in);
}

ROUTINE(rdtscp)
{
	if (!cpuid_has(v->cfg->cpuid, 0x80000001, 0, CPUID_EDX, 27))
		return vcpu_raise_ud(v);
	if (!tsc_allowed(v))
		return false;
	tsc_read(v);
	gpr_set(v, R_CX, 4, v->s.tsc_aux);
	return retire(v, in);
}

ROUTINE(rdpid)
{
	if (!cpuid_has(v->cfg->cpuid, 7, 0, CPUID_ECX, 22))
		return vcpu_raise_ud(v);
	gpr_set(v, in->rm, in->mode == MODE_64 ? 8 : 4, (uint32_t)v->s.tsc_aux);
	return retire(v, in);
}

ROUTINE(cpuid)
{
	struct cpuid_regs r = cpuid_query(v->cfg->cpuid, &v->s, v->s.gpr[R_AX], v->s.gpr[R_CX]);

	gpr_set(v, R_AX, 4, r.eax);
	gpr_set(v, R_BX, 4, r.ebx);
	gpr_set(v, R_CX, 4, r.ecx);
	gpr_set(v, R_DX, 4, r.edx);
	return retire(v, in);
}

ROUTINE(swapgs)
{
	uint64_t base = v->s.seg[SEG_GS].base;

	if (!cpu_is_64bit(&v->s))
		return vcpu_raise_ud(v);
	if (!need_cpl0(v))
		return false;
	v->s.seg[SEG_GS].base = v->s.kernel_gs_base;
	v->s.kernel_gs_base = base;
	return retire(v, in);
}

ROUTINE(rdbase)
{
	unsigned seg = in->kind == INSN_RDFSBASE ? SEG_FS : SEG_GS;

	if (!cpu_is_64bit(&v->s) || !(v->s.cr4 & CR4_FSGSBASE))
		return vcpu_raise_ud(v);
	gpr_set(v, in->rm, in->osz, v->s.seg[seg].base);
	return retire(v, in);
}

ROUTINE(wrbase)
{
	unsigned seg = in->kind == INSN_WRFSBASE ? SEG_FS : SEG_GS;
	uint64_t base = gpr_get(v, in->rm, in->osz);

	if (!cpu_is_64bit(&v->s) || !(v->s.cr4 & CR4_FSGSBASE))
		return vcpu_raise_ud(v);
	if (!cpu_canonical(base))
		return vcpu_raise_gp(v, 0);
	v->s.seg[seg].base = base;
	return retire(v, in);
}

static bool set_ac(struct vcpu *v, const struct insn *in, uint64_t ac)
{
	if (!cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EBX, 20) || (!cpu_is_real(&v->s) && cpu_cpl(&v->s)))
		return vcpu_raise_ud(v);
	v->s.rflags = (v->s.rflags & ~FL_AC) | ac;
	mmu_context_changed(v);
	return retire(v, in);
}

ROUTINE(clac) { return set_ac(v, in, 0); }
ROUTINE(stac) { return set_ac(v, in, FL_AC); }

static bool monitor_allowed(struct vcpu *v)
{
	if (!cpuid_has(v->cfg->cpuid, 1, 0, CPUID_ECX, 3) || (!cpu_is_real(&v->s) && cpu_cpl(&v->s)))
		return vcpu_raise_ud(v);
	return true;
}

ROUTINE(monitor)
{
	uint64_t byte;
	gva_t la;

	if (!monitor_allowed(v))
		return false;
	if ((uint32_t)v->s.gpr[R_CX])
		return vcpu_raise_gp(v, 0);
	return seg_linear(v, in->seg_override ? in->seg : SEG_DS, gpr_get(v, R_AX, in->asz), 1, false, &la) &&
	       mem_read(v, la, 1, &byte, MMU_READ) && retire(v, in);
}

/* CPUID hides the pair, so this is #UD. Under a policy that shows it MWAIT waits for an interrupt, as HLT does. */
ROUTINE(mwait)
{
	if (!monitor_allowed(v))
		return false;
	if ((uint32_t)v->s.gpr[R_CX] & ~1u)
		return vcpu_raise_gp(v, 0);
	v->s.run_state = CPU_HALTED;
	return retire(v, in);
}

static bool pkru_allowed(struct vcpu *v)
{
	if (!(v->s.cr4 & CR4_PKE))
		return vcpu_raise_ud(v);
	return !(uint32_t)v->s.gpr[R_CX] || vcpu_raise_gp(v, 0);
}

ROUTINE(rdpkru)
{
	if (!pkru_allowed(v))
		return false;
	gpr_set(v, R_AX, 4, xs_pkru_get(v));
	gpr_set(v, R_DX, 4, 0);
	return retire(v, in);
}

ROUTINE(wrpkru)
{
	if (!pkru_allowed(v))
		return false;
	if ((uint32_t)v->s.gpr[R_DX])
		return vcpu_raise_gp(v, 0);
	xs_pkru_set(v, v->s.gpr[R_AX]);
	mmu_context_changed(v);
	return retire(v, in);
}
