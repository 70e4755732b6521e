/*
 * Gathers and scatters (SDM vol. 2: VPGATHERDD ..., VPSCATTERDD ...). Elements go from the lowest up; a fault leaves
 * the ones before it done, with their mask elements cleared, so that the instruction can be restarted.
 */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

struct vsib {
	bool evex, scatter;
	unsigned elem, index; /* bytes of a data element and of an index */
	unsigned count;
	unsigned data_len, index_len; /* bytes of the registers used */
	uint8_t data[64], idx[64], mask[32];
	uint64_t k; /* elements to do */
};

static bool vsib_allowed(struct vcpu *v, const struct vsib *s, const struct insn *in)
{
	uint64_t need = XS_SSE | XS_AVX | (s->evex ? XS_AVX512 : 0);

	if (!protected_not_v86(v) || !(v->s.cr4 & CR4_OSXSAVE) || (~v->s.xcr0 & need))
		return vcpu_raise_ud(v);
	if (s->evex) {
		if (!in->evex_aaa || in->evex_z || in->evex_b || in->vex_l > 2 ||
		    (!s->scatter && in->reg == (uint8_t)in->index))
			return vcpu_raise_ud(v);
	} else if (in->reg == (uint8_t)in->index || in->reg == in->vvvv || in->vvvv == (uint8_t)in->index) {
		return vcpu_raise_ud(v);
	}
	return !(v->s.cr0 & CR0_TS) || vcpu_raise(v, EXC_NM);
}

static uint64_t kmask_get(struct vcpu *v, unsigned k)
{
	unsigned size, off;

	xs_own(v, XS_OPMASK);
	off = xs_offset(v, 5, &size);
	return get_le64(v->s.xsave + off + 8 * k);
}

static void kmask_set(struct vcpu *v, unsigned k, uint64_t value)
{
	unsigned size, off;

	xs_own(v, XS_OPMASK);
	off = xs_offset(v, 5, &size);
	put_le64(v->s.xsave + off + 8 * k, value);
}

static void read_operands(struct vcpu *v, const struct insn *in, struct vsib *s)
{
	unsigned len = 16u << in->vex_l, wide = s->elem > s->index ? s->elem : s->index;

	s->count = len / wide;
	s->data_len = s->count * s->elem < 16 ? 16 : s->count * s->elem;
	s->index_len = s->count * s->index < 16 ? 16 : s->count * s->index;
	xs_vector_get(v, in->reg, s->data, s->data_len);
	xs_vector_get(v, (uint8_t)in->index, s->idx, s->index_len);
	if (s->evex) {
		s->k = kmask_get(v, in->evex_aaa) & (BIT(s->count) - 1);
		return;
	}
	xs_vector_get(v, in->vvvv, s->mask, s->data_len);
	for (unsigned i = 0; i < s->count; i++)
		s->k |= (uint64_t)(s->mask[(i + 1) * s->elem - 1] >> 7) << i;
}

static uint64_t element_offset(const struct vcpu *v, const struct insn *in, const struct vsib *s, unsigned i)
{
	int64_t index = s->index == 8 ? (int64_t)get_le64(s->idx + 8 * i) : (int32_t)get_le32(s->idx + 4 * i);
	uint64_t off = (uint64_t)index * in->scale + (uint64_t)in->disp + (in->base >= 0 ? v->s.gpr[in->base] : 0);

	return off & mask_bytes(in->asz);
}

static bool element(struct vcpu *v, const struct insn *in, struct vsib *s, unsigned i)
{
	uint8_t *data = s->data + i * s->elem;
	gva_t la;

	if (!seg_linear(v, in->seg, element_offset(v, in, s, i), s->elem, s->scatter, &la))
		return false;
	return s->scatter ? mmu_write(v, la, data, s->elem, MMU_WRITE) : mmu_read(v, la, data, s->elem, MMU_READ);
}

/*
 * Element i faults: the elements before it are done, their mask is 0; the rest of both registers stays as it was (measured:
 * the vector mask is cleared in passing, also where it was not set).
 */
static void suspend(struct vcpu *v, const struct insn *in, const struct vsib *s, unsigned i)
{
	uint8_t reg[64];

	if (!s->scatter) {
		xs_vector_get(v, in->reg, reg, sizeof(reg));
		memcpy(reg, s->data, i * s->elem);
		xs_vector_set(v, in->reg, reg, sizeof(reg));
	}
	if (s->evex) {
		kmask_set(v, in->evex_aaa, kmask_get(v, in->evex_aaa) & ~(BIT(i) - 1));
		return;
	}
	xs_vector_get(v, in->vvvv, reg, sizeof(reg));
	memset(reg, 0, i * s->elem);
	xs_vector_set(v, in->vvvv, reg, sizeof(reg));
}

/* All elements are done: the mask register becomes 0, and what lies above the data. */
static void complete(struct vcpu *v, const struct insn *in, struct vsib *s)
{
	unsigned len = s->count * s->elem;

	if (!s->scatter) {
		memset(s->data + len, 0, sizeof(s->data) - len);
		xs_vector_set(v, in->reg, s->data, s->data_len);
	}
	if (s->evex) {
		kmask_set(v, in->evex_aaa, 0);
		return;
	}
	memset(s->mask, 0, sizeof(s->mask));
	xs_vector_set(v, in->vvvv, s->mask, s->data_len);
}

ROUTINE(vsib)
{
	struct vsib s = {
		.evex = in->enc == ENC_EVEX,
		.scatter = (in->op & 0xf0) == 0xa0,
		.elem = in->vex_w ? 8 : 4,
		.index = (in->op & 1) ? 8 : 4,
	};
	if (!vsib_allowed(v, &s, in))
		return false;
	read_operands(v, in, &s);
	for (unsigned i = 0; i < s.count; i++) {
		if (!(s.k & BIT(i)))
			continue;
		if (!element(v, in, &s, i)) {
			suspend(v, in, &s, i);
			return false;
		}
	}
	complete(v, in, &s);
	return retire(v, in);
}
