/* Segments and their descriptors: checks, hidden parts, loads (SDM vol. 3, 3.4 and 5; APM vol. 2, 4). */
#include "engine/soft/interp/interp_int.h"


static bool raise_limit(struct vcpu *v, unsigned seg) { return vcpu_raise_err(v, seg == SEG_SS ? EXC_SS : EXC_GP, 0); }

static bool limit_ok(const struct cpu_seg *sg, uint64_t off, unsigned len)
{
	uint64_t last = off + len - 1;

	if ((sg->attr & (SEG_S | 0xc)) == (SEG_S | 0x4)) /* expand-down data */
		return off > sg->limit && last <= ((sg->attr & SEG_DB) ? UINT32_MAX : UINT16_MAX);
	return last <= sg->limit;
}

bool seg_linear(struct vcpu *v, unsigned seg, uint64_t off, unsigned len, bool write, gva_t *la)
{
	const struct cpu_seg *sg = &v->s.seg[seg];

	if (cpu_is_64bit(&v->s)) {
		*la = off + (seg >= SEG_FS ? sg->base : 0);
		return (cpu_canonical(*la) && cpu_canonical(*la + len - 1)) || raise_limit(v, seg);
	}
	off = (uint32_t)off;
	*la = (uint32_t)(sg->base + off);
	if (!protected_not_v86(v)) /* real and virtual-8086: any type is readable and writable */
		return off + len - 1 <= sg->limit || raise_limit(v, seg);
	if (sg->attr & SEG_UNUSABLE)
		return raise_limit(v, seg);
	if (sg->attr & 8 ? write || !(sg->attr & 2) : write && !(sg->attr & 2))
		return raise_limit(v, seg);
	return limit_ok(sg, off, len) || raise_limit(v, seg);
}

bool desc_fetch(struct vcpu *v, uint16_t sel, uint8_t vector, unsigned ext, struct desc *d)
{
	bool ldt = sel & 4;
	uint64_t base = ldt ? v->s.ldt.base : v->s.gdt.base;
	uint32_t limit = ldt ? v->s.ldt.limit : v->s.gdt.limit;

	if ((ldt && (v->s.ldt.attr & SEG_UNUSABLE)) || (sel & 0xfff8u) + 7 > limit)
		return raise_sel(v, vector, sel, ext);
	d->la = base + (sel & 0xfff8u);
	return sys_read(v, d->la, &d->raw, 8);
}

bool desc_fetch_high(struct vcpu *v, uint16_t sel, uint8_t vector, unsigned ext, const struct desc *d, uint64_t *high)
{
	uint32_t limit = (sel & 4) ? v->s.ldt.limit : v->s.gdt.limit;

	if ((sel & 0xfff8u) + 15 > limit)
		return raise_sel(v, vector, sel, ext);
	return sys_read(v, d->la + 8, high, 8);
}

bool desc_set_accessed(struct vcpu *v, struct desc *d)
{
	uint64_t byte = (d->raw >> 40) & 0xff;
	bool done = false;

	/* Bounded: a table in a device's registers may read as something else each time. */
	for (unsigned tries = 0; tries < CMPXCHG_TRIES && !done && !(byte & 1); tries++) {
		if (!mmu_cmpxchg(v, d->la + 5, &byte, byte | 1, 1, MMU_SYSTEM, &done))
			return false;
	}
	d->raw |= BIT(40);
	return true;
}

void desc_to_seg(const struct desc *d, uint16_t sel, struct cpu_seg *out)
{
	uint64_t r = d->raw;
	uint32_t limit = (r & 0xffff) | ((r >> 32) & 0xf0000);

	*out = (struct cpu_seg){
		.sel = sel,
		.attr = (r >> 40) & 0xf0ff,
		.base = ((r >> 16) & 0xffffff) | ((r >> 32) & 0xff000000),
		.limit = (r & BIT(55)) ? limit << 12 | 0xfff : limit,
	};
}

struct cpu_seg seg_flat_code(uint16_t sel, unsigned dpl, bool is64)
{
	return (struct cpu_seg){.sel = sel,
				.limit = UINT32_MAX,
				.attr = (is64 ? SEG_L : SEG_DB) | SEG_G | SEG_P | SEG_S | 0xb | dpl << SEG_DPL_SHIFT};
}

struct cpu_seg seg_flat_stack(uint16_t sel, unsigned dpl)
{
	return (struct cpu_seg){
		.sel = sel, .limit = UINT32_MAX, .attr = SEG_DB | SEG_G | SEG_P | SEG_S | 0x3 | dpl << SEG_DPL_SHIFT};
}

struct cpu_seg seg_v86(uint16_t sel)
{
	return (struct cpu_seg){.sel = sel, .base = (uint32_t)sel << 4, .limit = 0xffff, .attr = 0xf3};
}

struct cpu_seg seg_null_ss(unsigned dpl)
{
	return (struct cpu_seg){.sel = dpl, .attr = SEG_UNUSABLE | dpl << SEG_DPL_SHIFT};
}

/* A null selector into a data segment: some AMD CPUs keep the base of FS and GS (CPUID 8000_0021 EAX bit 6 clear). */
static void load_null(struct vcpu *v, unsigned seg, uint16_t sel)
{
	bool keep = seg >= SEG_FS && vendor_amd(v) && !cpuid_has(v->cfg->cpuid, 0x80000021, 0, CPUID_EAX, 6);

	v->s.seg[seg] = (struct cpu_seg){.sel = sel, .base = keep ? v->s.seg[seg].base : 0, .attr = SEG_UNUSABLE};
}

/* The checks are those of a return to the current privilege level. */
static bool load_ss(struct vcpu *v, uint16_t sel)
{
	return seg_return_ss(v, sel, cpu_cpl(&v->s), cpu_is_64bit(&v->s), &v->s.seg[SEG_SS]);
}

bool seg_load(struct vcpu *v, unsigned seg, uint16_t sel)
{
	struct desc d;

	if (cpu_is_v86(&v->s)) {
		v->s.seg[seg] = seg_v86(sel);
		return true;
	}
	if (cpu_is_real(&v->s)) { /* the hidden limit and type stay: "unreal" mode works */
		v->s.seg[seg].sel = sel;
		v->s.seg[seg].base = (uint32_t)sel << 4;
		v->s.seg[seg].attr &= ~SEG_UNUSABLE;
		return true;
	}
	if (seg == SEG_SS)
		return load_ss(v, sel);
	if (sel_null(sel)) {
		load_null(v, seg, sel);
		return true;
	}
	if (!desc_fetch(v, sel, EXC_GP, 0, &d))
		return false;
	if (!desc_s(&d) || (desc_type(&d) & 0xa) == 8) /* system, or execute-only code */
		return raise_sel(v, EXC_GP, sel, 0);
	if ((desc_type(&d) & 0xc) != 0xc && ((sel & 3u) > desc_dpl(&d) || cpu_cpl(&v->s) > desc_dpl(&d)))
		return raise_sel(v, EXC_GP, sel, 0);
	if (!desc_p(&d))
		return raise_sel(v, EXC_NP, sel, 0);
	if (!desc_set_accessed(v, &d))
		return false;
	desc_to_seg(&d, sel, &v->s.seg[seg]);
	return true;
}

void seg_drop_inner(struct vcpu *v, unsigned cpl)
{
	static const uint8_t data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

	for (unsigned i = 0; i < ARRAY_LEN(data); i++) {
		struct cpu_seg *sg = &v->s.seg[data[i]];
		bool conforming = (sg->attr & 0xc) == 0xc;

		/* A null one stays as it is: its base may be a live FS or GS base. */
		if (!(sg->attr & SEG_UNUSABLE) && !conforming && ((sg->attr >> SEG_DPL_SHIFT) & 3) < cpl)
			load_null(v, data[i], 0);
	}
}

bool seg_return_cs(struct vcpu *v, uint16_t sel, struct cpu_seg *out)
{
	unsigned rpl = sel & 3;
	struct desc d;

	if (sel_null(sel))
		return vcpu_raise_gp(v, 0);
	if (!desc_fetch(v, sel, EXC_GP, 0, &d))
		return false;
	if (!desc_is_code(&d) || rpl < cpu_cpl(&v->s) ||
	    (desc_conforming(&d) ? desc_dpl(&d) > rpl : desc_dpl(&d) != rpl))
		return raise_sel(v, EXC_GP, sel, 0);
	if (cpu_long_mode(&v->s) && desc_l(&d) && desc_d(&d))
		return raise_sel(v, EXC_GP, sel, 0);
	if (!desc_p(&d))
		return raise_sel(v, EXC_NP, sel, 0);
	if (!desc_set_accessed(v, &d))
		return false;
	desc_to_seg(&d, sel, out);
	return true;
}

bool seg_return_ss(struct vcpu *v, uint16_t sel, unsigned cpl, bool to64, struct cpu_seg *out)
{
	struct desc d;

	if (sel_null(sel)) {
		if (!to64 || cpl == 3 || (sel & 3u) != cpl)
			return vcpu_raise_gp(v, 0);
		*out = seg_null_ss(cpl);
		return true;
	}
	if (!desc_fetch(v, sel, EXC_GP, 0, &d))
		return false;
	if ((sel & 3u) != cpl || !desc_is_stack(&d) || desc_dpl(&d) != cpl)
		return raise_sel(v, EXC_GP, sel, 0);
	if (!desc_p(&d))
		return raise_sel(v, EXC_SS, sel, 0);
	if (!desc_set_accessed(v, &d))
		return false;
	desc_to_seg(&d, sel, out);
	return true;
}

/* --- MOV Sreg and LDS/LES/LSS/LFS/LGS --- */

ROUTINE(mov_rm_seg)
{
	uint16_t sel = v->s.seg[in->seg_reg].sel;

	return op_write(v, in, in->mod == 3 ? in->osz : 2, sel) && retire(v, in);
}

ROUTINE(mov_seg_rm)
{
	uint64_t sel;

	if (!op_read(v, in, 2, &sel) || !seg_load(v, in->seg_reg, sel))
		return false;
	if (in->seg_reg == SEG_SS)
		v->s.shadow_mov_ss = 1;
	return retire(v, in);
}

ROUTINE(load_far)
{
	/* AMD has no 64-bit offset here: REX.W reads m16:32. */
	unsigned size = in->osz == 8 && vendor_amd(v) ? 4 : in->osz;
	uint8_t buf[10] = {0};
	uint64_t off = 0;
	gva_t la;

	if (!op_linear(v, in, size + 2, false, &la) || !mmu_read(v, la, buf, size + 2, MMU_READ))
		return false;
	copy_bytes(&off, buf, size);
	if (!seg_load(v, in->seg_reg, get_le16(buf + size)))
		return false;
	gpr_set(v, in->reg, in->osz, off);
	return retire(v, in);
}
