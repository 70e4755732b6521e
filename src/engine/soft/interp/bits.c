/* Memory operands that are not one plain access: bit strings, BOUND, masked stores, CLZERO (SDM vol. 2; APM vol. 3). */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

enum bt_op { BT, BTS, BTR, BTC };

static uint64_t bt_apply(enum bt_op op, uint64_t value, uint64_t bit)
{
	switch (op) {
	case BTS:
		return value | bit;
	case BTR:
		return value & ~bit;
	case BTC:
		return value ^ bit;
	default:
		return value;
	}
}

static bool bt_reg(struct vcpu *v, const struct insn *in, enum bt_op op, unsigned index)
{
	uint64_t value = gpr_get(v, in->rm, in->osz);

	if (op != BT)
		gpr_set(v, in->rm, in->osz, bt_apply(op, value, BIT(index)));
	v->s.rflags = (v->s.rflags & ~FL_CF) | ((value >> index) & 1);
	return retire(v, in);
}

/* The bit lies anywhere: the offset is signed, in units of the operand from the operand's address. */
ROUTINE(bt_mem)
{
	unsigned size = in->osz;
	enum bt_op op = in->op == 0xba ? in->reg & 3 : (in->op >> 3) & 3;
	int64_t index = in->op == 0xba ? (in->imm & 0xff) & (8 * size - 1)
			: size == 8    ? (int64_t)v->s.gpr[in->reg]
			: size == 4    ? (int32_t)v->s.gpr[in->reg]
				       : (int16_t)v->s.gpr[in->reg];
	uint64_t off = insn_mem_offset(in, v->s.gpr, next_rip(v, in)), bit, value;
	bool done = false;
	gva_t la;

	if (in->mod == 3)
		return bt_reg(v, in, op, index & (8 * size - 1));
	off = (off + (uint64_t)((index >> (size == 8 ? 6 : size == 4 ? 5 : 4)) * (int64_t)size)) & mask_bytes(in->asz);
	bit = BIT(index & (8 * size - 1));
	if (!seg_linear(v, in->seg, off, size, op != BT, &la) || (op != BT && !mmu_probe_write(v, la, size, 0)) ||
	    !mem_read(v, la, size, &value, MMU_READ))
		return false;
	for (unsigned tries = 0; op != BT && in->lock && !done; tries++) {
		if (tries == CMPXCHG_TRIES)
			return true; /* the same instruction again, after a look at interrupts */
		if (!mmu_cmpxchg(v, la, &value, bt_apply(op, value, bit), size, MMU_READ, &done))
			return false;
	}
	if (op != BT && !in->lock && !mem_write(v, la, size, bt_apply(op, value, bit), MMU_WRITE))
		return false;
	v->s.rflags = (v->s.rflags & ~FL_CF) | ((value & bit) ? FL_CF : 0);
	return retire(v, in);
}

ROUTINE(bound)
{
	unsigned size = in->osz;
	int64_t index, low, high;
	uint8_t buf[8];
	gva_t la;

	if (!op_linear(v, in, 2 * size, false, &la) || !mmu_read(v, la, buf, 2 * size, MMU_READ))
		return false;
	if (size == 2) {
		index = (int16_t)v->s.gpr[in->reg];
		low = (int16_t)get_le16(buf);
		high = (int16_t)get_le16(buf + 2);
	} else {
		index = (int32_t)v->s.gpr[in->reg];
		low = (int32_t)get_le32(buf);
		high = (int32_t)get_le32(buf + 4);
	}
	return index < low || index > high ? vcpu_raise(v, EXC_BR) : retire(v, in);
}

static bool maskmov_allowed(struct vcpu *v, const struct insn *in, bool mmx)
{
	if (in->enc != ENC_LEGACY) {
		if (!(v->s.cr4 & CR4_OSXSAVE) || (~v->s.xcr0 & (XS_SSE | XS_AVX)) || !protected_not_v86(v))
			return vcpu_raise_ud(v);
	} else if ((v->s.cr0 & CR0_EM) || (!mmx && !(v->s.cr4 & CR4_OSFXSR))) {
		return vcpu_raise_ud(v);
	}
	if (v->s.cr0 & CR0_TS)
		return vcpu_raise(v, EXC_NM);
	if (!mmx)
		return true;
	xs_own(v, XS_X87);
	return !(get_le16(v->s.xsave + 2) & BIT(7)) || vcpu_raise(v, EXC_MF);
}

ROUTINE(maskmov)
{
	bool mmx = in->enc == ENC_LEGACY && in->pp != 1;
	unsigned seg = in->seg_override ? in->seg : SEG_DS, len = mmx ? 8 : 16;
	uint8_t data[16], mask[16];
	gva_t la[16];

	if (!maskmov_allowed(v, in, mmx))
		return false;
	if (mmx) {
		memcpy(data, x87_mmx(v, in->reg & 7), 8);
		memcpy(mask, x87_mmx(v, in->rm & 7), 8);
	} else {
		xs_vector_get(v, in->reg, data, 16);
		xs_vector_get(v, in->rm, mask, 16);
	}
	for (unsigned i = 0; i < len; i++) {
		uint64_t off = (v->s.gpr[R_DI] + i) & mask_bytes(in->asz);

		if ((mask[i] & 0x80) && (!seg_linear(v, seg, off, 1, true, &la[i]) || !mmu_probe_write(v, la[i], 1, 0)))
			return false;
	}
	for (unsigned i = 0; i < len; i++) {
		if ((mask[i] & 0x80) && !mmu_write(v, la[i], &data[i], 1, MMU_WRITE))
			return false;
	}
	if (mmx)
		x87_enter_mmx(v);
	return retire(v, in);
}

ROUTINE(clzero)
{
	unsigned seg = in->seg_override ? in->seg : SEG_DS;
	static const uint8_t zero[64];
	gva_t la;

	if (!cpuid_has(v->cfg->cpuid, 0x80000008, 0, CPUID_EBX, 0))
		return vcpu_raise_ud(v);
	return seg_linear(v, seg, gpr_get(v, R_AX, in->asz) & ~UINT64_C(63), 64, true, &la) &&
	       mmu_write(v, la, zero, 64, MMU_WRITE) && retire(v, in);
}
