/* FNSTENV, FLDENV, FNSAVE, FRSTOR (SDM vol. 1, 8.1.10). Instruction and data pointers are zero: see fpustate.c. */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

#define FSW_ES BIT(7)
#define FSW_B BIT(15)
#define X87_FCW 0
#define X87_FSW 2
#define X87_FTW 4 /* abridged: a bit for each register that is not empty */
#define X87_FOP 6
#define X87_ST 32
#define ENV_MAX 28

static uint16_t x87_get(const struct vcpu *v, unsigned off) { return get_le16(v->s.xsave + off); }
static void x87_set(struct vcpu *v, unsigned off, uint16_t value) { put_le16(v->s.xsave + off, value); }

static unsigned x87_top(const struct vcpu *v) { return (x87_get(v, X87_FSW) >> 11) & 7; }

/* The area holds the registers as ST(0), ST(1), ...: a new FSW whose TOP differs moves them. */
static void set_fsw(struct vcpu *v, uint16_t fsw)
{
	unsigned delta = (((fsw >> 11) & 7) - x87_top(v)) & 7;
	uint8_t old[128];

	memcpy(old, v->s.xsave + X87_ST, sizeof(old));
	for (unsigned i = 0; i < 8; i++)
		memcpy(v->s.xsave + X87_ST + 16 * i, old + 16 * ((i + delta) & 7), 16);
	x87_set(v, X87_FSW, fsw);
}

uint8_t *x87_mmx(struct vcpu *v, unsigned n) { return v->s.xsave + X87_ST + 16 * ((n - x87_top(v)) & 7); }

void x87_enter_mmx(struct vcpu *v)
{
	set_fsw(v, x87_get(v, X87_FSW) & ~0x3800);
	v->s.xsave[X87_FTW] = 0xff;
}

/* 0 valid, 1 zero, 2 special */
static unsigned tag_of(const uint8_t *st)
{
	uint64_t m = get_le64(st);
	unsigned exp = get_le16(st + 8) & 0x7fff;

	if (exp == 0)
		return m ? 2 : 1;
	return exp == 0x7fff || !(m >> 63) ? 2 : 0;
}

static uint16_t full_tags(const struct vcpu *v)
{
	unsigned top = x87_top(v);
	uint16_t tags = 0;

	for (unsigned i = 0; i < 8; i++) {
		unsigned st = (i - top) & 7;
		unsigned tag = (v->s.xsave[X87_FTW] >> i) & 1 ? tag_of(v->s.xsave + X87_ST + 16 * st) : 3;

		tags |= tag << (2 * i);
	}
	return tags;
}

/* ES and B follow from the exceptions and their masks. */
static void update_es(struct vcpu *v)
{
	uint16_t fsw = x87_get(v, X87_FSW);
	bool pending = fsw & ~x87_get(v, X87_FCW) & 0x3f;

	x87_set(v, X87_FSW, pending ? fsw | FSW_ES | FSW_B : fsw & ~(FSW_ES | FSW_B));
}

/* Returns the length: 14 bytes for 16-bit operands, 28 otherwise. The opcode sits beside FCS, or in the real-mode form
 * beside FIP's top. */
static unsigned env_store(const struct vcpu *v, const struct insn *in, uint8_t *env)
{
	uint16_t fop = x87_get(v, X87_FOP) & 0x7ff, word[7] = {x87_get(v, X87_FCW), x87_get(v, X87_FSW), full_tags(v)};
	bool real = !protected_not_v86(v);

	if (in->osz == 2) {
		if (real)
			word[4] = fop;
		memcpy(env, word, sizeof(word));
		return sizeof(word);
	}
	for (unsigned i = 0; i < 7; i++)
		put_le32(env + 4 * i, word[i]);
	for (unsigned i = 0; i < 3; i++)
		put_le16(env + 4 * i + 2, 0xffff);
	if (real) {
		put_le16(env + 14, 0xffff);
		put_le32(env + 16, fop);
		put_le16(env + 22, 0xffff);
	} else {
		put_le16(env + 18, fop);
		put_le16(env + 26, 0xffff);
	}
	return ENV_MAX;
}

static void env_load(struct vcpu *v, const struct insn *in, const uint8_t *env)
{
	unsigned step = in->osz == 2 ? 2 : 4;
	uint16_t tags = get_le16(env + 2 * step);
	uint8_t abridged = 0;

	for (unsigned i = 0; i < 8; i++)
		abridged |= (((tags >> (2 * i)) & 3) != 3) << i;
	xs_own(v, XS_X87);
	x87_set(v, X87_FCW, (get_le16(env) & 0x1f7f) | 0x40);
	set_fsw(v, get_le16(env + step));
	v->s.xsave[X87_FTW] = abridged;
	if (protected_not_v86(v))
		x87_set(v, X87_FOP, step == 4 ? get_le16(env + 18) & 0x7ff : 0);
	else
		x87_set(v, X87_FOP, get_le16(env + 4 * step) & 0x7ff);
	memset(v->s.xsave + 8, 0, 16);
	update_es(v);
}

static bool x87_allowed(struct vcpu *v, const struct insn *in, bool waits)
{
	if (v->s.cr0 & (CR0_EM | CR0_TS))
		return vcpu_raise(v, EXC_NM);
	xs_own(v, XS_X87);
	if (waits && (x87_get(v, X87_FSW) & FSW_ES))
		return vcpu_raise(v, EXC_MF);
	return true;
}

ROUTINE(fnstenv)
{
	uint8_t env[ENV_MAX];
	unsigned len;
	gva_t la;

	if (!x87_allowed(v, in, false))
		return false;
	len = env_store(v, in, env);
	if (!op_linear(v, in, len, true, &la) || !mmu_write(v, la, env, len, MMU_WRITE))
		return false;
	x87_set(v, X87_FCW, x87_get(v, X87_FCW) | 0x3f);
	update_es(v);
	return retire(v, in);
}

ROUTINE(fldenv)
{
	unsigned len = in->osz == 2 ? 14 : ENV_MAX;
	uint8_t env[ENV_MAX];
	gva_t la;

	if (!x87_allowed(v, in, true) || !op_linear(v, in, len, false, &la) || !mmu_read(v, la, env, len, MMU_READ))
		return false;
	env_load(v, in, env);
	return retire(v, in);
}

ROUTINE(fnsave)
{
	uint8_t buf[ENV_MAX + 80];
	unsigned len;
	gva_t la;

	if (!x87_allowed(v, in, false))
		return false;
	len = env_store(v, in, buf);
	for (unsigned i = 0; i < 8; i++, len += 10)
		memcpy(buf + len, v->s.xsave + X87_ST + 16 * i, 10);
	if (!op_linear(v, in, len, true, &la) || !mmu_write(v, la, buf, len, MMU_WRITE))
		return false;
	/* FNINIT: the data registers stay, all are empty */
	set_fsw(v, 0);
	memset(v->s.xsave, 0, 24);
	x87_set(v, X87_FCW, 0x37f);
	return retire(v, in);
}

ROUTINE(frstor)
{
	unsigned env_len = in->osz == 2 ? 14 : ENV_MAX;
	uint8_t buf[ENV_MAX + 80];
	gva_t la;

	if (!x87_allowed(v, in, true) || !op_linear(v, in, env_len + 80, false, &la) ||
	    !mmu_read(v, la, buf, env_len + 80, MMU_READ))
		return false;
	env_load(v, in, buf);
	for (unsigned i = 0; i < 8; i++) {
		memcpy(v->s.xsave + X87_ST + 16 * i, buf + env_len + 10 * i, 10);
		memset(v->s.xsave + X87_ST + 16 * i + 10, 0, 6);
	}
	return retire(v, in);
}
