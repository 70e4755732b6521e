/* Selectors and descriptor tables: LAR, LSL, VERR, VERW, ARPL, LLDT, LTR, SLDT, STR, LGDT, SGDT ... (SDM vol. 2). */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

/*
 * Look a selector up for LAR, LSL, VERR, VERW: a reason to refuse is found = false, not a fault. A page fault is
 * (returns false).
 */
static bool look_up(struct vcpu *v, uint16_t sel, struct desc *d, bool *found)
{
	bool ldt = sel & 4;
	uint64_t base = ldt ? v->s.ldt.base : v->s.gdt.base;
	uint32_t limit = ldt ? v->s.ldt.limit : v->s.gdt.limit;

	*found = false;
	if (sel_null(sel) || (ldt && (v->s.ldt.attr & SEG_UNUSABLE)) || (sel & 0xfff8u) + 7 > limit)
		return true;
	d->la = base + (sel & 0xfff8u);
	*found = true;
	return sys_read(v, d->la, &d->raw, 8);
}

/* CPL and RPL may see it: always for conforming code. */
static bool visible(const struct vcpu *v, uint16_t sel, const struct desc *d)
{
	if (desc_is_code(d) && desc_conforming(d))
		return true;
	return desc_dpl(d) >= cpu_cpl(&v->s) && desc_dpl(d) >= (sel & 3u);
}

static bool result_zf(struct vcpu *v, const struct insn *in, bool zf)
{
	v->s.rflags = zf ? v->s.rflags | FL_ZF : v->s.rflags & ~FL_ZF;
	return retire(v, in);
}

/*
 * The descriptor that LAR and LSL look at: *ok when it is visible and a segment's, or one of the system types given by
 * the mask. False: the instruction faults.
 */
static bool inspect(struct vcpu *v, const struct insn *in, uint16_t types, uint64_t *sel, struct desc *d, bool *ok)
{
	bool found;

	if (!protected_not_v86(v))
		return vcpu_raise_ud(v);
	if (!op_read(v, in, 2, sel) || !look_up(v, *sel, d, &found))
		return false;
	*ok = found && visible(v, *sel, d) && (desc_s(d) || (types & BIT(desc_type(d))));
	return true;
}

ROUTINE(lar)
{
	/* System types with access rights: legacy 1-5, 9, b, c; long mode 2, 9, b, c. */
	uint16_t types = cpu_long_mode(&v->s) ? 0x1a04 : 0x1a3e;
	uint64_t sel;
	struct desc d;
	bool ok;

	if (!inspect(v, in, types, &sel, &d, &ok))
		return false;
	if (!ok)
		return result_zf(v, in, false);
	gpr_set(v, in->reg, in->osz, (d.raw >> 32) & (in->osz == 2 ? 0xff00 : 0xffff00));
	return result_zf(v, in, true);
}

ROUTINE(lsl)
{
	/* System types with a limit: legacy 1, 2, 3, 9, b; long mode 2, 9, b. */
	uint16_t types = cpu_long_mode(&v->s) ? 0x0a04 : 0x0a0e;
	struct cpu_seg seg;
	uint64_t sel;
	struct desc d;
	bool ok;

	if (!inspect(v, in, types, &sel, &d, &ok))
		return false;
	if (!ok)
		return result_zf(v, in, false);
	desc_to_seg(&d, sel, &seg);
	gpr_set(v, in->reg, in->osz, seg.limit);
	return result_zf(v, in, true);
}

static bool verify(struct vcpu *v, const struct insn *in, bool write)
{
	uint64_t sel;
	struct desc d;
	bool found, ok;

	if (!protected_not_v86(v))
		return vcpu_raise_ud(v);
	if (!op_read(v, in, 2, &sel) || !look_up(v, sel, &d, &found))
		return false;
	ok = found && desc_s(&d) && visible(v, sel, &d);
	if (ok && write)
		ok = (desc_type(&d) & 10) == 2;
	else if (ok)
		ok = (desc_type(&d) & 10) != 8;
	return result_zf(v, in, ok);
}

ROUTINE(verr) { return verify(v, in, false); }
ROUTINE(verw) { return verify(v, in, true); }

ROUTINE(arpl)
{
	uint64_t dst, src = v->s.gpr[in->reg] & 3;
	gva_t la = 0;

	if (!protected_not_v86(v))
		return vcpu_raise_ud(v);
	if (in->mod == 3) {
		dst = gpr_get(v, in->rm, 2);
	} else if (!op_linear(v, in, 2, true, &la) || !mmu_probe_write(v, la, 2, 0) ||
		   !mem_read(v, la, 2, &dst, MMU_READ)) {
		return false;
	}
	if ((dst & 3) >= src)
		return result_zf(v, in, false);
	dst = (dst & ~UINT64_C(3)) | src;
	if (in->mod == 3)
		gpr_set(v, in->rm, 2, dst);
	else if (!mem_write(v, la, 2, dst, MMU_WRITE))
		return false;
	return result_zf(v, in, true);
}

/* SGDT, SIDT, SLDT, SMSW, STR outside ring 0 while CR4.UMIP is set. */
static bool umip_ok(struct vcpu *v)
{
	return !(v->s.cr4 & CR4_UMIP) || cpu_is_real(&v->s) || cpu_cpl(&v->s) == 0 || vcpu_raise_gp(v, 0);
}

static bool store_sel(struct vcpu *v, const struct insn *in, uint16_t sel)
{
	if (!protected_not_v86(v))
		return vcpu_raise_ud(v);
	return umip_ok(v) && op_write(v, in, in->mod == 3 ? in->osz : 2, sel) && retire(v, in);
}

ROUTINE(sldt) { return store_sel(v, in, v->s.ldt.sel); }
ROUTINE(str) { return store_sel(v, in, v->s.tr.sel); }

ROUTINE(smsw) { return umip_ok(v) && op_write(v, in, in->mod == 3 ? in->osz : 2, v->s.cr0) && retire(v, in); }

/* LLDT, LTR: fetch a system descriptor from the GDT, whole and with its 16-byte form's base in long mode. */
static bool load_system(struct vcpu *v, uint16_t sel, struct desc *d, struct cpu_seg *out)
{
	uint64_t high = 0;

	if (sel & 4)
		return raise_sel(v, EXC_GP, sel, 0);
	if (!desc_fetch(v, sel, EXC_GP, 0, d))
		return false;
	if (cpu_long_mode(&v->s) && !desc_fetch_high(v, sel, EXC_GP, 0, d, &high))
		return false;
	desc_to_seg(d, sel, out);
	out->base |= high << 32;
	if (cpu_long_mode(&v->s) && !cpu_canonical(out->base))
		return raise_sel(v, EXC_GP, sel, 0);
	return true;
}

ROUTINE(lldt)
{
	struct cpu_seg seg;
	struct desc d;
	uint64_t sel;

	if (!protected_not_v86(v))
		return vcpu_raise_ud(v);
	if (!need_cpl0(v) || !op_read(v, in, 2, &sel))
		return false;
	if (sel_null(sel)) {
		v->s.ldt = (struct cpu_seg){.sel = sel, .attr = SEG_UNUSABLE};
		return retire(v, in);
	}
	if (!load_system(v, sel, &d, &seg))
		return false;
	if (desc_s(&d) || desc_type(&d) != 2)
		return raise_sel(v, EXC_GP, sel, 0);
	if (!desc_p(&d))
		return raise_sel(v, EXC_NP, sel, 0);
	v->s.ldt = seg;
	return retire(v, in);
}

ROUTINE(ltr)
{
	struct cpu_seg seg;
	struct desc d;
	uint64_t sel, byte;
	bool done = false;

	if (!protected_not_v86(v))
		return vcpu_raise_ud(v);
	if (!need_cpl0(v) || !op_read(v, in, 2, &sel))
		return false;
	if (sel_null(sel))
		return vcpu_raise_gp(v, 0);
	if (!load_system(v, sel, &d, &seg))
		return false;
	if (desc_s(&d) || !(desc_type(&d) == 9 || (desc_type(&d) == 1 && !cpu_long_mode(&v->s))))
		return raise_sel(v, EXC_GP, sel, 0);
	if (!desc_p(&d))
		return raise_sel(v, EXC_NP, sel, 0);
	byte = (d.raw >> 40) & 0xff;
	for (unsigned tries = 0; tries < CMPXCHG_TRIES && !done; tries++) {
		if (!mmu_cmpxchg(v, d.la + 5, &byte, byte | 2, 1, MMU_SYSTEM, &done))
			return false;
	}
	seg.attr |= 2; /* busy */
	v->s.tr = seg;
	return retire(v, in);
}

ROUTINE(lgdt)
{
	struct cpu_dtr *dtr = in->kind == INSN_LGDT ? &v->s.gdt : &v->s.idt;
	unsigned size = in->mode == MODE_64 ? 10 : 6;
	uint8_t buf[10] = {0};
	uint64_t base;
	gva_t la;

	if (!need_cpl0(v) || !op_linear(v, in, size, false, &la) || !mmu_read(v, la, buf, size, MMU_READ))
		return false;
	base = get_le64(buf + 2);
	if (size == 6 && in->osz == 2)
		base &= 0xffffff;
	if (size == 10 && !cpu_canonical(base))
		return vcpu_raise_gp(v, 0);
	*dtr = (struct cpu_dtr){.base = base, .limit = get_le16(buf)};
	return retire(v, in);
}

ROUTINE(sgdt)
{
	const struct cpu_dtr *dtr = in->kind == INSN_SGDT ? &v->s.gdt : &v->s.idt;
	unsigned size = in->mode == MODE_64 ? 10 : 6;
	uint8_t buf[10];
	gva_t la;

	put_le16(buf, dtr->limit);
	put_le64(buf + 2, dtr->base);
	return umip_ok(v) && op_linear(v, in, size, true, &la) && mmu_write(v, la, buf, size, MMU_WRITE) &&
	       retire(v, in);
}
