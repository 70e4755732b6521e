#include "engine/soft/interp/interp_int.h"

#include <string.h>

static ROUTINE(nop) { return retire(v, in); }
static ROUTINE(ud) { return vcpu_raise_ud(v); }

static ROUTINE(lea)
{
	gpr_set(v, in->reg, in->osz, insn_mem_offset(in, v->s.gpr, next_rip(v, in)));
	return retire(v, in);
}

/* clang-format off */
static bool (*const routine[INSN_KIND_COUNT])(struct vcpu *v, const struct insn *in) = {
	[INSN_NATIVE] = i_ud, /* not the interpreter's; an escape to here must not run anything */
	[INSN_NOP] = i_nop, [INSN_LEA] = i_lea,
	[INSN_JMP_REL] = i_jmp_rel, [INSN_JCC] = i_jcc, [INSN_CALL_REL] = i_call_rel, [INSN_RET] = i_ret, [INSN_RET_IMM] = i_ret,
	[INSN_JMP_IND] = i_jmp_ind, [INSN_CALL_IND] = i_call_ind, [INSN_JCXZ] = i_jcxz, [INSN_LOOP] = i_loop, [INSN_LOOPE] = i_loop,
	[INSN_LOOPNE] = i_loop, [INSN_CALL_FAR_PTR] = i_far_ptr, [INSN_JMP_FAR_PTR] = i_far_ptr, [INSN_CALL_FAR_IND] = i_far_ind,
	[INSN_JMP_FAR_IND] = i_far_ind, [INSN_RETF] = i_retf, [INSN_RETF_IMM] = i_retf, [INSN_IRET] = i_iret,
	[INSN_INT] = i_int, [INSN_INT3] = i_int3, [INSN_INT1] = i_int1, [INSN_INTO] = i_into,
	[INSN_SYSCALL] = i_syscall, [INSN_SYSRET] = i_sysret, [INSN_SYSENTER] = i_sysenter, [INSN_SYSEXIT] = i_sysexit, [INSN_UD] = i_ud,
	[INSN_PUSH_R] = i_push_r, [INSN_PUSH_IMM] = i_push_imm, [INSN_PUSH_M] = i_push_m, [INSN_POP_R] = i_pop_r, [INSN_POP_M] = i_pop_m,
	[INSN_PUSH_SEG] = i_push_seg, [INSN_POP_SEG] = i_pop_seg, [INSN_PUSHA] = i_pusha, [INSN_POPA] = i_popa, [INSN_PUSHF] = i_pushf,
	[INSN_POPF] = i_popf, [INSN_ENTER] = i_enter, [INSN_LEAVE] = i_leave,
	[INSN_MOVS] = i_movs, [INSN_STOS] = i_stos, [INSN_LODS] = i_lods, [INSN_SCAS] = i_scas, [INSN_CMPS] = i_cmps, [INSN_INS] = i_ins,
	[INSN_OUTS] = i_outs, [INSN_XLAT] = i_xlat, [INSN_MASKMOV] = i_maskmov, [INSN_CLZERO] = i_clzero,
	[INSN_IN_IMM] = i_in, [INSN_OUT_IMM] = i_out, [INSN_IN_DX] = i_in, [INSN_OUT_DX] = i_out,
	[INSN_MOV_RM_SEG] = i_mov_rm_seg, [INSN_MOV_SEG_RM] = i_mov_seg_rm, [INSN_LOAD_FAR] = i_load_far, [INSN_LAR] = i_lar,
	[INSN_LSL] = i_lsl, [INSN_VERR] = i_verr, [INSN_VERW] = i_verw, [INSN_ARPL] = i_arpl,
	[INSN_HLT] = i_hlt, [INSN_CLI] = i_cli, [INSN_STI] = i_sti, [INSN_CLTS] = i_clts, [INSN_LGDT] = i_lgdt, [INSN_LIDT] = i_lgdt,
	[INSN_SGDT] = i_sgdt, [INSN_SIDT] = i_sgdt, [INSN_LLDT] = i_lldt, [INSN_SLDT] = i_sldt, [INSN_LTR] = i_ltr, [INSN_STR] = i_str,
	[INSN_SMSW] = i_smsw, [INSN_LMSW] = i_lmsw, [INSN_MOV_R_CR] = i_mov_r_cr, [INSN_MOV_CR_R] = i_mov_cr_r,
	[INSN_MOV_R_DR] = i_mov_r_dr, [INSN_MOV_DR_R] = i_mov_dr_r, [INSN_INVLPG] = i_invlpg, [INSN_INVPCID] = i_invpcid,
	[INSN_INVD] = i_wbinvd, [INSN_WBINVD] = i_wbinvd, [INSN_RDMSR] = i_rdmsr, [INSN_WRMSR] = i_wrmsr, [INSN_RDPMC] = i_rdpmc,
	[INSN_RDTSC] = i_rdtsc, [INSN_RDTSCP] = i_rdtscp, [INSN_CPUID] = i_cpuid, [INSN_SWAPGS] = i_swapgs,
	[INSN_RDFSBASE] = i_rdbase, [INSN_RDGSBASE] = i_rdbase, [INSN_WRFSBASE] = i_wrbase, [INSN_WRGSBASE] = i_wrbase,
	[INSN_RDPID] = i_rdpid, [INSN_XGETBV] = i_xgetbv, [INSN_XSETBV] = i_xsetbv, [INSN_CLAC] = i_clac, [INSN_STAC] = i_stac,
	[INSN_MONITOR] = i_monitor, [INSN_MWAIT] = i_mwait, [INSN_VMCALL] = i_vmcall, [INSN_VMMCALL] = i_vmcall,
	[INSN_RSM] = i_ud /* never in SMM */, [INSN_RDPKRU] = i_rdpkru, [INSN_WRPKRU] = i_wrpkru,
	[INSN_XSAVE] = i_xsave, [INSN_XSAVEOPT] = i_xsave, [INSN_XSAVEC] = i_xsavec, [INSN_XSAVES] = i_xsavec, [INSN_XRSTOR] = i_xrstor,
	[INSN_XRSTORS] = i_xrstor, [INSN_FXSAVE] = i_fxsave, [INSN_FXRSTOR] = i_fxrstor, [INSN_FNSTENV] = i_fnstenv,
	[INSN_FLDENV] = i_fldenv, [INSN_FNSAVE] = i_fnsave, [INSN_FRSTOR] = i_frstor,
	[INSN_BT_MEM] = i_bt_mem, [INSN_VSIB] = i_vsib, [INSN_BOUND] = i_bound,
	[INSN_DAA] = i_daa, [INSN_DAS] = i_das, [INSN_AAA] = i_aaa, [INSN_AAS] = i_aas, [INSN_AAM] = i_aam, [INSN_AAD] = i_aad,
	[INSN_SALC] = i_salc,
};
/* clang-format on */

bool interp_exec(struct vcpu *v, const struct insn *in) { return routine[in->kind](v, in); }

bool interp_kind_known(unsigned kind) { return kind < INSN_KIND_COUNT && routine[kind]; }

bool interp_cc(uint64_t f, unsigned cc)
{
	bool r, sf_ne_of = !!(f & FL_SF) != !!(f & FL_OF);

	switch ((cc >> 1) & 7) {
	case 0:
		r = f & FL_OF;
		break;
	case 1:
		r = f & FL_CF;
		break;
	case 2:
		r = f & FL_ZF;
		break;
	case 3:
		r = f & (FL_CF | FL_ZF);
		break;
	case 4:
		r = f & FL_SF;
		break;
	case 5:
		r = f & FL_PF;
		break;
	case 6:
		r = sf_ne_of;
		break;
	default:
		r = sf_ne_of || (f & FL_ZF);
		break;
	}
	return r != (cc & 1);
}

bool mem_read(struct vcpu *v, gva_t la, unsigned size, uint64_t *value, unsigned flags)
{
	*value = 0;
	return mmu_read(v, la, value, size, flags);
}

bool mem_write(struct vcpu *v, gva_t la, unsigned size, uint64_t value, unsigned flags)
{
	return mmu_write(v, la, &value, size, flags);
}

bool sys_read(struct vcpu *v, gva_t la, void *buf, unsigned len)
{
	if (cpu_long_mode(&v->s) && !(cpu_canonical(la) && cpu_canonical(la + len - 1)))
		return vcpu_raise_gp(v, 0);
	return mmu_read(v, la, buf, len, MMU_SYSTEM);
}

bool op_linear(struct vcpu *v, const struct insn *in, unsigned len, bool write, gva_t *la)
{
	return seg_linear(v, in->seg, insn_mem_offset(in, v->s.gpr, next_rip(v, in)), len, write, la);
}

bool op_read(struct vcpu *v, const struct insn *in, unsigned size, uint64_t *value)
{
	gva_t la;

	if (in->mod != 3)
		return op_linear(v, in, size, false, &la) && mem_read(v, la, size, value, MMU_READ);
	*value = in->rm_high8 ? (v->s.gpr[in->rm - 4] >> 8) & 0xff : gpr_get(v, in->rm, size);
	return true;
}

bool op_write(struct vcpu *v, const struct insn *in, unsigned size, uint64_t value)
{
	gva_t la;

	if (in->mod != 3)
		return op_linear(v, in, size, true, &la) && mem_write(v, la, size, value, MMU_WRITE);
	if (in->rm_high8)
		v->s.gpr[in->rm - 4] = (v->s.gpr[in->rm - 4] & ~UINT64_C(0xff00)) | (value & 0xff) << 8;
	else
		gpr_set(v, in->rm, size, value);
	return true;
}
