/* Near control flow (SDM vol. 1, 6 and vol. 2: JMP, Jcc, CALL, RET, LOOP). */
#include "engine/soft/interp/interp_int.h"

bool branch_check(struct vcpu *v, uint64_t *target, unsigned osz)
{
	*target &= mask_bytes(osz);
	if (cpu_is_64bit(&v->s) ? cpu_canonical(*target) : *target <= v->s.seg[SEG_CS].limit)
		return true;
	return vcpu_raise_gp(v, 0);
}

static bool branch(struct vcpu *v, uint64_t target, unsigned osz)
{
	if (!branch_check(v, &target, osz))
		return false;
	v->s.rip = target;
	return true;
}

ROUTINE(jmp_rel) { return branch(v, next_rip(v, in) + in->imm, in->osz); }

ROUTINE(jcc) { return interp_cc(v->s.rflags, in->cc) ? i_jmp_rel(v, in) : retire(v, in); }

ROUTINE(jcxz) { return gpr_get(v, R_CX, in->asz) ? retire(v, in) : i_jmp_rel(v, in); }

ROUTINE(loop)
{
	uint64_t count = (v->s.gpr[R_CX] - 1) & mask_bytes(in->asz);
	bool zf = v->s.rflags & FL_ZF;
	bool taken = count && (in->kind == INSN_LOOP || zf == (in->kind == INSN_LOOPE));

	if (!(taken ? i_jmp_rel(v, in) : retire(v, in)))
		return false;
	gpr_set(v, R_CX, in->asz, count);
	return true;
}

static bool call(struct vcpu *v, const struct insn *in, uint64_t target)
{
	if (!branch_check(v, &target, in->osz) || !stack_push(v, in->osz, next_rip(v, in)))
		return false;
	v->s.rip = target;
	return true;
}

ROUTINE(call_rel) { return call(v, in, next_rip(v, in) + in->imm); }

ROUTINE(call_ind)
{
	uint64_t target;

	return op_read(v, in, in->osz, &target) && call(v, in, target);
}

ROUTINE(jmp_ind)
{
	uint64_t target;

	return op_read(v, in, in->osz, &target) && branch(v, target, in->osz);
}

ROUTINE(ret)
{
	struct frame f;
	uint64_t sp = v->s.gpr[R_SP];

	frame_init(&f, 1, in->osz);
	if (!frame_pop(v, &sp, &f) || !branch(v, f.val[0], in->osz))
		return false;
	v->s.gpr[R_SP] = in->kind == INSN_RET_IMM ? stack_add(v, sp, (uint16_t)in->imm) : sp;
	return true;
}
