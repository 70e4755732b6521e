/* Decimal adjustment and SALC (SDM vol. 2). Undefined flags come out clear or from the result. */
#include "engine/soft/interp/interp_int.h"

static void set_al(struct vcpu *v, uint8_t al) { gpr_set(v, R_AX, 1, al); }
static uint8_t al_of(const struct vcpu *v) { return v->s.gpr[R_AX]; }
static uint8_t ah_of(const struct vcpu *v) { return v->s.gpr[R_AX] >> 8; }

/* SF, ZF, PF from an 8-bit result, others as given. */
static bool finish(struct vcpu *v, const struct insn *in, uint8_t r, uint64_t others)
{
	uint64_t f = others;

	if (!r)
		f |= FL_ZF;
	if (r & 0x80)
		f |= FL_SF;
	if (!__builtin_parity(r))
		f |= FL_PF;
	v->s.rflags = (v->s.rflags & ~FL_ARITH) | f;
	return retire(v, in);
}

static bool decimal(struct vcpu *v, const struct insn *in, bool subtract)
{
	uint8_t old = al_of(v), al = old;
	bool cf = v->s.rflags & FL_CF, low = (old & 15) > 9 || (v->s.rflags & FL_AF), high = old > 0x99 || cf,
	     borrow = false;
	uint64_t f = 0;

	if (low) {
		borrow = subtract && old < 6;
		al = subtract ? al - 6 : al + 6;
		f |= FL_AF;
	}
	if (high)
		al = subtract ? al - 0x60 : al + 0x60;
	if (high || borrow)
		f |= FL_CF;
	set_al(v, al);
	return finish(v, in, al, f);
}

ROUTINE(daa) { return decimal(v, in, false); }
ROUTINE(das) { return decimal(v, in, true); }

static bool ascii(struct vcpu *v, const struct insn *in, bool subtract)
{
	uint16_t ax = v->s.gpr[R_AX];
	uint64_t f = 0;

	if ((ax & 15) > 9 || (v->s.rflags & FL_AF)) {
		ax = subtract ? ax - 0x106 : ax + 0x106;
		f = FL_AF | FL_CF;
	}
	gpr_set(v, R_AX, 2, ax & 0xff0f);
	return finish(v, in, ax & 15, f);
}

ROUTINE(aaa) { return ascii(v, in, false); }
ROUTINE(aas) { return ascii(v, in, true); }

ROUTINE(aam)
{
	uint8_t base = in->imm, al = al_of(v);

	if (!base)
		return vcpu_raise(v, EXC_DE);
	gpr_set(v, R_AX, 2, (uint16_t)(al / base) << 8 | al % base);
	return finish(v, in, al % base, 0);
}

ROUTINE(aad)
{
	uint8_t al = al_of(v) + ah_of(v) * (uint8_t)in->imm;

	gpr_set(v, R_AX, 2, al);
	return finish(v, in, al, 0);
}

ROUTINE(salc)
{
	set_al(v, (v->s.rflags & FL_CF) ? 0xff : 0);
	return retire(v, in);
}
