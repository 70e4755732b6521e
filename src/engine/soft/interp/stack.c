/* Stack instructions, and the frames that far transfers and events push and pop (SDM vol. 1, 6). */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

static uint64_t stack_mask(const struct cpu_seg *ss, bool is64)
{
	return is64 ? UINT64_MAX : (ss->attr & SEG_DB) ? UINT32_MAX : UINT16_MAX;
}

/* Upper bits of (E)SP survive in a 16-bit stack; a 32-bit one clears those of RSP. */
static uint64_t sp_merge(uint64_t old, uint64_t value, uint64_t mask)
{
	return mask == UINT16_MAX ? (old & ~mask) | (value & mask) : value & mask;
}

uint64_t stack_add(const struct vcpu *v, uint64_t sp, int64_t delta)
{
	return sp_merge(sp, sp + delta, stack_mask(&v->s.seg[SEG_SS], cpu_is_64bit(&v->s)));
}

static bool stack_linear(struct vcpu *v, const struct cpu_seg *ss, bool is64, uint64_t off, unsigned len, uint32_t err,
			 gva_t *la)
{
	uint64_t last = off + len - 1;
	bool down = protected_not_v86(v) && (ss->attr & 0xc) == 4;
	bool ok;

	if (is64) {
		*la = off;
		ok = cpu_canonical(off) && cpu_canonical(last);
	} else {
		*la = (uint32_t)(ss->base + off);
		ok = down ? off > ss->limit && last <= ((ss->attr & SEG_DB) ? UINT32_MAX : UINT16_MAX)
			  : last <= ss->limit;
		ok = ok && !((ss->attr & SEG_UNUSABLE) && protected_not_v86(v));
	}
	return ok || vcpu_raise_err(v, EXC_SS, err);
}

/* A frame that wraps around the end of a 16- or 32-bit stack goes slot by slot. */
static bool push_wrapped(struct vcpu *v, const struct cpu_seg *ss, uint64_t sp, uint64_t mask, const struct frame *f,
			 unsigned mmu_flags, uint32_t err)
{
	gva_t la[FRAME_MAX];

	for (unsigned i = 0; i < f->n; i++) {
		if (!stack_linear(v, ss, false, (sp - (uint64_t)f->size * (i + 1)) & mask, f->size, err, &la[i]) ||
		    !mmu_probe_write(v, la[i], f->size, mmu_flags))
			return false;
	}
	for (unsigned i = 0; i < f->n; i++) {
		if (!mem_write(v, la[i], f->size, f->val[i], MMU_WRITE | mmu_flags))
			return false;
	}
	return true;
}

bool frame_push(struct vcpu *v, const struct cpu_seg *ss, bool is64, uint64_t *sp, const struct frame *f,
		unsigned mmu_flags, uint32_t ss_error)
{
	uint64_t mask = stack_mask(ss, is64);
	unsigned total = f->n * f->size;
	uint64_t low = (*sp - total) & mask;
	uint8_t buf[FRAME_MAX * 8];
	gva_t la;

	if (low + total - 1 > mask && !is64) {
		if (!push_wrapped(v, ss, *sp, mask, f, mmu_flags, ss_error))
			return false;
	} else {
		for (unsigned i = 0; i < f->n; i++)
			copy_bytes(buf + total - (i + 1) * f->size, &f->val[i], f->size);
		if (!stack_linear(v, ss, is64, low, total, ss_error, &la) ||
		    !mmu_write(v, la, buf, total, MMU_WRITE | mmu_flags))
			return false;
	}
	*sp = sp_merge(*sp, low, mask);
	return true;
}

bool frame_pop(struct vcpu *v, uint64_t *sp, struct frame *f)
{
	const struct cpu_seg *ss = &v->s.seg[SEG_SS];
	bool is64 = cpu_is_64bit(&v->s);
	uint64_t mask = stack_mask(ss, is64), low = *sp & mask;
	unsigned total = f->n * f->size;
	uint8_t buf[FRAME_MAX * 8];
	gva_t la;

	for (unsigned i = 0; i < f->n; i++)
		f->val[i] = 0;
	if (low + total - 1 > mask && !is64) {
		for (unsigned i = 0; i < f->n; i++) {
			if (!stack_linear(v, ss, false, (low + (uint64_t)i * f->size) & mask, f->size, 0, &la) ||
			    !mmu_read(v, la, &f->val[i], f->size, MMU_READ))
				return false;
		}
	} else {
		if (!stack_linear(v, ss, is64, low, total, 0, &la) || !mmu_read(v, la, buf, total, MMU_READ))
			return false;
		for (unsigned i = 0; i < f->n; i++)
			copy_bytes(&f->val[i], buf + i * f->size, f->size);
	}
	*sp = sp_merge(*sp, low + total, mask);
	return true;
}

bool stack_push(struct vcpu *v, unsigned size, uint64_t value)
{
	struct frame f;

	frame_init(&f, 0, size);
	frame_add(&f, value);
	return frame_push(v, &v->s.seg[SEG_SS], cpu_is_64bit(&v->s), &v->s.gpr[R_SP], &f, 0, 0);
}

static bool pop_one(struct vcpu *v, unsigned size, uint64_t *sp, uint64_t *value)
{
	struct frame f;

	frame_init(&f, 1, size);
	if (!frame_pop(v, sp, &f))
		return false;
	*value = f.val[0];
	return true;
}

ROUTINE(push_r) { return stack_push(v, in->osz, v->s.gpr[in->opreg]) && retire(v, in); }

ROUTINE(push_imm) { return stack_push(v, in->osz, in->imm) && retire(v, in); }

ROUTINE(push_m)
{
	uint64_t value;

	return op_read(v, in, in->osz, &value) && stack_push(v, in->osz, value) && retire(v, in);
}

ROUTINE(pop_r)
{
	uint64_t sp = v->s.gpr[R_SP], value;

	if (!pop_one(v, in->osz, &sp, &value))
		return false;
	v->s.gpr[R_SP] = sp;
	gpr_set(v, in->opreg, in->osz, value);
	return retire(v, in);
}

/* A destination based on rSP sees it already incremented. */
ROUTINE(pop_m)
{
	uint64_t old = v->s.gpr[R_SP], sp = old, value;

	if (!pop_one(v, in->osz, &sp, &value))
		return false;
	v->s.gpr[R_SP] = sp;
	if (!op_write(v, in, in->osz, value)) {
		v->s.gpr[R_SP] = old;
		return false;
	}
	return retire(v, in);
}

/* A selector pushed with a wider operand: Intel writes 2 bytes and leaves the rest, AMD zero-extends. */
ROUTINE(push_seg)
{
	uint16_t sel = v->s.seg[in->seg_reg].sel;
	uint64_t sp = stack_add(v, v->s.gpr[R_SP], -(int64_t)in->osz), saved = v->s.gpr[R_SP];

	if (in->osz == 2 || vendor_amd(v))
		return stack_push(v, in->osz, sel) && retire(v, in);
	v->s.gpr[R_SP] = stack_add(v, sp, 2);
	if (!stack_push(v, 2, sel)) {
		v->s.gpr[R_SP] = saved;
		return false;
	}
	return retire(v, in);
}

ROUTINE(pop_seg)
{
	uint64_t sp = v->s.gpr[R_SP], value;

	if (!pop_one(v, in->osz, &sp, &value) || !seg_load(v, in->seg_reg, value))
		return false;
	if (in->seg_reg == SEG_SS)
		v->s.shadow_mov_ss = 1;
	v->s.gpr[R_SP] = sp;
	return retire(v, in);
}

ROUTINE(pusha)
{
	struct frame f;

	frame_init(&f, 8, in->osz);
	for (unsigned i = 0; i < 8; i++)
		f.val[i] = v->s.gpr[i];
	return frame_push(v, &v->s.seg[SEG_SS], false, &v->s.gpr[R_SP], &f, 0, 0) && retire(v, in);
}

ROUTINE(popa)
{
	struct frame f;
	uint64_t sp = v->s.gpr[R_SP];

	frame_init(&f, 8, in->osz);
	if (!frame_pop(v, &sp, &f))
		return false;
	for (unsigned i = 0; i < 8; i++) {
		if (7 - i != R_SP) /* the saved SP is skipped */
			gpr_set(v, 7 - i, in->osz, f.val[i]);
	}
	v->s.gpr[R_SP] = sp;
	return retire(v, in);
}

ROUTINE(pushf)
{
	if (cpu_is_v86(&v->s) && iopl(v) < 3)
		return vcpu_raise_gp(v, 0);
	return stack_push(v, in->osz, (v->s.rflags | FL_FIXED) & ~(FL_VM | FL_RF)) && retire(v, in);
}

uint64_t flags_merge(const struct vcpu *v, uint64_t image, unsigned osz, unsigned cpl, bool iret)
{
	uint64_t change = FL_ARITH | FL_TF | FL_DF | FL_NT;
	uint64_t rflags = v->s.rflags;

	if (osz > 2)
		change |= FL_AC | FL_ID | (iret ? FL_RF : 0);
	if (cpl == 0)
		change |= FL_IOPL | (iret && osz > 2 ? FL_VIF | FL_VIP : 0);
	if (cpl <= iopl(v))
		change |= FL_IF;
	if (!iret)
		rflags &= ~FL_RF;
	return (rflags & ~change) | (image & change) | FL_FIXED;
}

ROUTINE(popf)
{
	uint64_t sp = v->s.gpr[R_SP], image, old = v->s.rflags;

	if (cpu_is_v86(&v->s) && iopl(v) < 3)
		return vcpu_raise_gp(v, 0);
	if (!pop_one(v, in->osz, &sp, &image))
		return false;
	v->s.gpr[R_SP] = sp;
	v->s.rflags = flags_merge(v, image, in->osz, cpu_is_real(&v->s) ? 0 : cpu_cpl(&v->s), false);
	if ((old ^ v->s.rflags) & FL_AC)
		mmu_context_changed(v);
	return retire(v, in);
}

ROUTINE(enter)
{
	unsigned level = in->imm2 & 31, osz = in->osz;
	bool is64 = in->mode == MODE_64;
	const struct cpu_seg *ss = &v->s.seg[SEG_SS];
	uint64_t mask = stack_mask(ss, is64), bp = v->s.gpr[R_BP], sp = v->s.gpr[R_SP], frame_ptr;
	struct frame f;
	gva_t la;

	frame_init(&f, 0, osz);
	frame_add(&f, bp);
	frame_ptr = (sp - osz) & mask;
	for (unsigned i = 1; i < level; i++) {
		uint64_t off = (bp - (uint64_t)osz * i) & mask, link;

		if (!stack_linear(v, ss, is64, off, osz, 0, &la) || !mem_read(v, la, osz, &link, MMU_READ))
			return false;
		for (unsigned j = 0; j < f.n; j++) { /* a link that this very instruction pushed */
			if (off == ((sp - (uint64_t)osz * (j + 1)) & mask))
				link = f.val[j];
		}
		frame_add(&f, link);
	}
	if (level)
		frame_add(&f, sp_merge(sp, frame_ptr, mask));
	if (!frame_push(v, ss, is64, &sp, &f, 0, 0))
		return false;
	sp = sp_merge(sp, sp - (uint16_t)in->imm, mask);
	/* The new top must be writable (SDM vol. 2, ENTER). */
	if (!stack_linear(v, ss, is64, sp & mask, osz, 0, &la) || !mmu_probe_write(v, la, osz, 0))
		return false;
	gpr_set(v, R_BP, osz, frame_ptr);
	v->s.gpr[R_SP] = sp;
	return retire(v, in);
}

ROUTINE(leave)
{
	uint64_t mask = stack_mask(&v->s.seg[SEG_SS], in->mode == MODE_64);
	uint64_t sp = sp_merge(v->s.gpr[R_SP], v->s.gpr[R_BP], mask), value;

	if (!pop_one(v, in->osz, &sp, &value))
		return false;
	v->s.gpr[R_SP] = sp;
	gpr_set(v, R_BP, in->osz, value);
	return retire(v, in);
}
