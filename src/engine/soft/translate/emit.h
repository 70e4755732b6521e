/*
 * Host code bytes: the few instruction forms that the translator adds around the guest's own.
 * All write at e->p (the cache's writable view); the caller has made sure of room.
 */
#ifndef ENGINE_SOFT_EMIT_H
#define ENGINE_SOFT_EMIT_H

#include "engine/soft/cache/cache_int.h"

struct emit {
	uint8_t *p;
	uint8_t *base; /* start of the cache's writable view */
};

#define GS(field) ((int32_t)offsetof(struct soft_vcpu, field) - VCPU_OFF)
#define GS_GPR(n) (GS(v.s.gpr) + 8 * (n))

static inline void e8(struct emit *e, unsigned v) { *e->p++ = (uint8_t)v; }
static inline void e32(struct emit *e, uint32_t v) { put_le32(e->p, v); e->p += 4; }
static inline void e64(struct emit *e, uint64_t v) { put_le64(e->p, v); e->p += 8; }
static inline uint32_t e_off(const struct emit *e) { return (uint32_t)(e->p - e->base); }

/* rel32 at cache offset `at` to cache offset `target` */
static inline void e_patch32(struct emit *e, uint32_t at, uint32_t target) { put_le32(e->base + at, target - (at + 4)); }

/* modrm, SIB and displacement of [base + index * 2^scale + disp]; base or index may be -1. The caller emitted REX. */
static inline void e_mem(struct emit *e, unsigned reg, int base, int index, unsigned scale, int32_t disp)
{
	unsigned r = (reg & 7) << 3;

	if (base < 0) {
		e8(e, r | 4);
		e8(e, scale << 6 | (index < 0 ? 4u : (unsigned)index & 7) << 3 | 5);
		e32(e, (uint32_t)disp);
		return;
	}
	unsigned mod = disp == 0 && (base & 7) != 5 ? 0 : disp == (int8_t)disp ? 1 : 2;

	if (index < 0 && (base & 7) != 4) {
		e8(e, mod << 6 | r | ((unsigned)base & 7));
	} else {
		e8(e, mod << 6 | r | 4);
		e8(e, scale << 6 | (index < 0 ? 4u : (unsigned)index & 7) << 3 | ((unsigned)base & 7));
	}
	if (mod == 1)
		e8(e, (uint8_t)disp);
	else if (mod == 2)
		e32(e, (uint32_t)disp);
}

static inline unsigned e_rex(unsigned w, unsigned reg, int base, int index)
{
	return 0x40 | w << 3 | (reg >> 3 & 1) << 2 | (index > 7 ? 2u : 0) | (base > 7 ? 1u : 0);
}

/* op reg, [base + index * 2^scale + disp] with a one-byte opcode; w: 64-bit */
static inline void e_op_mem(struct emit *e, unsigned w, unsigned op, unsigned reg, int base, int index, unsigned scale, int32_t disp)
{
	unsigned rex = e_rex(w, reg, base, index);

	if (rex != 0x40)
		e8(e, rex);
	e8(e, op);
	e_mem(e, reg, base, index, scale, disp);
}

/* op reg, rm (registers) */
static inline void e_op_reg(struct emit *e, unsigned w, unsigned op, unsigned reg, unsigned rm)
{
	unsigned rex = e_rex(w, reg, (int)rm, -1);

	if (rex != 0x40)
		e8(e, rex);
	e8(e, op);
	e8(e, 0xc0 | (reg & 7) << 3 | (rm & 7));
}

static inline void e_mov(struct emit *e, unsigned to, unsigned from)
{
	if (to != from)
		e_op_reg(e, 1, 0x8b, to, from);
}
static inline void e_mov32(struct emit *e, unsigned to, unsigned from) { e_op_reg(e, 0, 0x8b, to, from); }

static inline void e_lea(struct emit *e, unsigned w, unsigned to, int base, int index, unsigned scale, int32_t disp)
{
	e_op_mem(e, w, 0x8d, to, base, index, scale, disp);
}

static inline void e_load_gs(struct emit *e, unsigned to, int32_t off)
{
	e8(e, 0x65);
	e_op_mem(e, 1, 0x8b, to, -1, -1, 0, off);
}
static inline void e_load_gs32(struct emit *e, unsigned to, int32_t off)
{
	e8(e, 0x65);
	e_op_mem(e, 0, 0x8b, to, -1, -1, 0, off);
}
static inline void e_store_gs(struct emit *e, unsigned from, int32_t off)
{
	e8(e, 0x65);
	e_op_mem(e, 1, 0x89, from, -1, -1, 0, off);
}

/* mov to, gs:[index * 8 + off] */
static inline void e_load_gs_index(struct emit *e, unsigned to, unsigned index, int32_t off)
{
	e8(e, 0x65);
	e_op_mem(e, 1, 0x8b, to, -1, (int)index, 3, off);
}

static inline void e_mov_imm(struct emit *e, unsigned to, uint64_t v)
{
	if (v <= UINT32_MAX) {
		if (to > 7)
			e8(e, 0x41);
		e8(e, 0xb8 | (to & 7));
		e32(e, (uint32_t)v);
	} else if ((int64_t)v == (int32_t)v) {
		e8(e, 0x48 | (to > 7));
		e8(e, 0xc7);
		e8(e, 0xc0 | (to & 7));
		e32(e, (uint32_t)v);
	} else {
		e8(e, 0x48 | (to > 7));
		e8(e, 0xb8 | (to & 7));
		e64(e, v);
	}
}

/* BMI2 on 64 bits, mask in memory at gs:off. pp: 2 PEXT, 3 PDEP */
static inline void e_bmi_gs(struct emit *e, unsigned pp, unsigned to, unsigned from, int32_t off)
{
	e8(e, 0x65);
	e8(e, 0xc4);
	e8(e, (to > 7 ? 0 : 0x80) | 0x60 | 2);
	e8(e, 0x80 | (~from & 15) << 3 | pp);
	e8(e, 0xf5);
	e_mem(e, to, -1, -1, 0, off);
}
static inline void e_pext(struct emit *e, unsigned to, unsigned from, int32_t mask) { e_bmi_gs(e, 2, to, from, mask); }
static inline void e_pdep(struct emit *e, unsigned to, unsigned from, int32_t mask) { e_bmi_gs(e, 3, to, from, mask); }

static inline void e_rorx(struct emit *e, unsigned to, unsigned from, unsigned n)
{
	e8(e, 0xc4);
	e8(e, (to > 7 ? 0 : 0x80) | 0x40 | (from > 7 ? 0 : 0x20) | 3);
	e8(e, 0x80 | 0x78 | 3);
	e8(e, 0xf0);
	e8(e, 0xc0 | (to & 7) << 3 | (from & 7));
	e8(e, n);
}

/*
 * Fill up with prefixes that do nothing (CS), or no-operations, so that the 4-byte field which begins `before` bytes from here
 * lies within an aligned 8 bytes: it may be patched while others run it (AMD APM vol. 2, 7.6.1).
 */
static inline void e_align_field(struct emit *e, unsigned before, uint8_t fill)
{
	while (((e_off(e) + before) & 7) > 4)
		e8(e, fill);
}
#define FILL_PREFIX 0x2e
#define FILL_NOP 0x90

/* jmp/jcc rel32 with the target to be patched; returns the offset of rel32 */
static inline uint32_t e_jmp(struct emit *e)
{
	e8(e, 0xe9);
	e32(e, 0);
	return e_off(e) - 4;
}
static inline void e_jmp_to(struct emit *e, uint32_t target) { e_patch32(e, e_jmp(e), target); }
static inline uint32_t e_jcc(struct emit *e, unsigned cc)
{
	e8(e, 0x0f);
	e8(e, 0x80 | cc);
	e32(e, 0);
	return e_off(e) - 4;
}
/* The same, to be patched while it runs. */
static inline uint32_t e_jmp_link(struct emit *e)
{
	e_align_field(e, 1, FILL_PREFIX);
	return e_jmp(e);
}
static inline uint32_t e_jcc_link(struct emit *e, unsigned cc)
{
	e_align_field(e, 2, FILL_PREFIX);
	return e_jcc(e, cc);
}
/* jrcxz rel8 (asz 4: jecxz); returns the offset of rel8 */
static inline uint32_t e_jrcxz(struct emit *e, unsigned asz)
{
	if (asz == 4)
		e8(e, 0x67);
	e8(e, 0xe3);
	e8(e, 0);
	return e_off(e) - 1;
}
static inline void e_patch8(struct emit *e, uint32_t at) { e->base[at] = (uint8_t)(e_off(e) - (at + 1)); }

/* mov dword gs:[off], imm32 / mov qword gs:[off], simm32 */
static inline void e_store_gs_imm(struct emit *e, int32_t off, uint32_t v)
{
	e8(e, 0x65);
	e8(e, 0x48);
	e8(e, 0xc7);
	e_mem(e, 0, -1, -1, 0, off);
	e32(e, v);
}
static inline void e_jmp_gs(struct emit *e, int32_t off)
{
	e8(e, 0x65);
	e8(e, 0xff);
	e_mem(e, 4, -1, -1, 0, off);
}

#endif
