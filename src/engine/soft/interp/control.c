/* Control and debug registers, TLB instructions, XCR0 (SDM vol. 3, 2.5, 4 and 17; vol. 2). */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

#define CR0_DEFINED (CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG)
#define CR4_PAGING (CR4_PSE | CR4_PAE | CR4_PGE | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE | CR4_LA57)

static uint64_t phys_reserved(const struct vcpu *v) { return ~(BIT(v->cfg->cpuid->phys_bits) - 1); }

/* PAE paging keeps the four PDPTEs in the CPU (SDM vol. 3, 4.4.1). */
static bool load_pdptes(struct vcpu *v, uint64_t cr3)
{
	uint64_t pdpte[4];
	uint64_t reserved = phys_reserved(v) | 0x1e6;

	vec_save(v);
	if (!ram_read(v->cfg->ram, cr3 & 0xffffffe0, pdpte, sizeof(pdpte)))
		return vcpu_raise_gp(v, 0);
	for (unsigned i = 0; i < 4; i++) {
		if ((pdpte[i] & 1) && (pdpte[i] & reserved))
			return vcpu_raise_gp(v, 0);
	}
	memcpy(v->s.pdpte, pdpte, sizeof(pdpte));
	return true;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
	return (cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA);
}

/* Turning paging on or off switches long mode with it when EFER.LME is set. */
static bool cr0_paging_ok(const struct vcpu *v, uint64_t value)
{
	bool on = value & CR0_PG, was = v->s.cr0 & CR0_PG;

	if (on && !was && (v->s.efer & EFER_LME)) {
		bool tss16 = !(v->s.tr.attr & SEG_UNUSABLE) && (v->s.tr.attr & SEG_P) && !(v->s.tr.attr & 8);

		return (v->s.cr4 & CR4_PAE) && !(v->s.seg[SEG_CS].attr & SEG_L) && !(tss16 && v->s.tr.sel);
	}
	if (!on && was)
		return !cpu_is_64bit(&v->s) && !(v->s.cr4 & CR4_PCIDE);
	return true;
}

static bool cr0_write(struct vcpu *v, uint64_t value)
{
	uint64_t old = v->s.cr0, efer = v->s.efer;

	if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)))
		return vcpu_raise_gp(v, 0);
	value = (value & CR0_DEFINED) | CR0_ET;
	if (!cr0_paging_ok(v, value))
		return vcpu_raise_gp(v, 0);
	if ((old ^ value) & CR0_PG)
		efer = (value & CR0_PG) && (efer & EFER_LME) ? efer | EFER_LMA : efer & ~EFER_LMA;
	if (pae_paging(value, v->s.cr4, efer) && ((old ^ value) & (CR0_PG | CR0_CD | CR0_NW)) &&
	    !load_pdptes(v, v->s.cr3))
		return false;
	v->s.cr0 = value;
	v->s.efer = efer;
	if ((old ^ value) & (CR0_PG | CR0_PE | CR0_WP))
		mmu_flush_all(v);
	mmu_context_changed(v);
	return true;
}

static bool cr3_write(struct vcpu *v, uint64_t value)
{
	bool lm = cpu_long_mode(&v->s), pcide = v->s.cr4 & CR4_PCIDE, keep = false;

	if (lm) {
		keep = pcide && (value & BIT(63));
		if (pcide)
			value &= ~BIT(63);
		if (value & phys_reserved(v))
			return vcpu_raise_gp(v, 0);
	} else {
		value = (uint32_t)value;
		if (pae_paging(v->s.cr0, v->s.cr4, v->s.efer) && !load_pdptes(v, value))
			return false;
	}
	v->s.cr3 = value;
	if (!pcide)
		mmu_flush_nonglobal(v);
	else if (!keep)
		mmu_flush_pcid(v, value & 0xfff);
	mmu_context_changed(v);
	return true;
}

static bool cr4_write(struct vcpu *v, uint64_t value)
{
	uint64_t old = v->s.cr4, diff = old ^ value;
	bool lm = cpu_long_mode(&v->s);

	if (value & ~v->cfg->cpuid->cr4_allowed)
		return vcpu_raise_gp(v, 0);
	if (lm && (!(value & CR4_PAE) || (diff & CR4_LA57)))
		return vcpu_raise_gp(v, 0);
	if ((diff & value & CR4_PCIDE) && (!lm || (v->s.cr3 & 0xfff)))
		return vcpu_raise_gp(v, 0);
	if (pae_paging(v->s.cr0, value, v->s.efer) && (diff & (CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP)) &&
	    !load_pdptes(v, v->s.cr3))
		return false;
	v->s.cr4 = value;
	if (diff & CR4_PAGING)
		mmu_flush_all(v);
	mmu_context_changed(v);
	return true;
}

static uint64_t cr8_read(struct vcpu *v)
{
	if (v->irqchip) {
		machine_lock(v);
		v->s.cr8 = lapic_cr8(v->irqchip, v->index);
		machine_unlock(v);
	}
	return v->s.cr8;
}

static bool cr8_write(struct vcpu *v, uint64_t value)
{
	if (value & ~UINT64_C(15))
		return vcpu_raise_gp(v, 0);
	v->s.cr8 = value;
	if (v->irqchip) {
		machine_lock(v);
		lapic_set_cr8(v->irqchip, v->index, value);
		machine_unlock(v);
	}
	return true;
}

ROUTINE(mov_r_cr)
{
	unsigned size = in->mode == MODE_64 ? 8 : 4;
	uint64_t value;

	if (in->reg != 0 && in->reg != 2 && in->reg != 3 && in->reg != 4 && in->reg != 8)
		return vcpu_raise_ud(v);
	if (!need_cpl0(v))
		return false;
	switch (in->reg) {
	case 0:
		value = v->s.cr0;
		break;
	case 2:
		value = v->s.cr2;
		break;
	case 3:
		value = v->s.cr3;
		break;
	case 4:
		value = v->s.cr4;
		break;
	default:
		value = cr8_read(v);
		break;
	}
	gpr_set(v, in->rm, size, value);
	return retire(v, in);
}

ROUTINE(mov_cr_r)
{
	uint64_t value = gpr_get(v, in->rm, in->mode == MODE_64 ? 8 : 4);
	bool ok = true;

	if (in->reg != 0 && in->reg != 2 && in->reg != 3 && in->reg != 4 && in->reg != 8)
		return vcpu_raise_ud(v);
	if (!need_cpl0(v))
		return false;
	switch (in->reg) {
	case 0:
		ok = cr0_write(v, value);
		break;
	case 2:
		v->s.cr2 = value;
		break;
	case 3:
		ok = cr3_write(v, value);
		break;
	case 4:
		ok = cr4_write(v, value);
		break;
	default:
		ok = cr8_write(v, value);
		break;
	}
	return ok && retire(v, in);
}

/* LMSW sets PE but cannot clear it. */
ROUTINE(lmsw)
{
	uint64_t value;

	if (!need_cpl0(v) || !op_read(v, in, 2, &value))
		return false;
	value = (v->s.cr0 & ~UINT64_C(0xe)) | (value & 0xf);
	return cr0_write(v, value) && retire(v, in);
}

ROUTINE(clts)
{
	if (!need_cpl0(v))
		return false;
	v->s.cr0 &= ~CR0_TS;
	mmu_context_changed(v);
	return retire(v, in);
}

/* --- debug registers --- */

static bool dr_number(struct vcpu *v, const struct insn *in, unsigned *dr)
{
	*dr = in->reg;
	if (*dr > 7)
		return vcpu_raise_ud(v);
	if (*dr == 4 || *dr == 5) {
		if (v->s.cr4 & CR4_DE)
			return vcpu_raise_ud(v);
		*dr += 2;
	}
	if (!need_cpl0(v))
		return false;
	if (v->s.dr[7] & BIT(13)) { /* GD */
		v->s.dr[6] |= BIT(13);
		return vcpu_raise(v, EXC_DB);
	}
	return true;
}

ROUTINE(mov_r_dr)
{
	unsigned dr;

	if (!dr_number(v, in, &dr))
		return false;
	gpr_set(v, in->rm, in->mode == MODE_64 ? 8 : 4, v->s.dr[dr]);
	return retire(v, in);
}

ROUTINE(mov_dr_r)
{
	uint64_t value = gpr_get(v, in->rm, in->mode == MODE_64 ? 8 : 4);
	unsigned dr;

	if (!dr_number(v, in, &dr))
		return false;
	if (dr >= 6 && value >> 32)
		return vcpu_raise_gp(v, 0);
	if (dr == 6)
		value = (value & 0xe00f) | 0xffff0ff0;
	else if (dr == 7)
		value = (value & 0xffff23ff) | 0x400;
	v->s.dr[dr] = value;
	mmu_context_changed(v);
	return retire(v, in);
}

/* --- TLB --- */

ROUTINE(invlpg)
{
	uint64_t off = insn_mem_offset(in, v->s.gpr, next_rip(v, in));
	gva_t la;

	if (!need_cpl0(v))
		return false;
	if (cpu_is_64bit(&v->s))
		la = off + (in->seg >= SEG_FS ? v->s.seg[in->seg].base : 0);
	else
		la = (uint32_t)(off + v->s.seg[in->seg].base);
	if (!cpu_long_mode(&v->s) || cpu_canonical(la))
		mmu_flush_page(v, la);
	return retire(v, in);
}

ROUTINE(invpcid)
{
	uint64_t type = gpr_get(v, in->reg, in->mode == MODE_64 ? 8 : 4), d[2];
	gva_t la;

	if (!cpuid_has(v->cfg->cpuid, 7, 0, CPUID_EBX, 10) || cpu_is_real(&v->s))
		return vcpu_raise_ud(v);
	if (!need_cpl0(v) || !op_linear(v, in, 16, false, &la) || !mmu_read(v, la, d, 16, MMU_READ))
		return false;
	if (type > 3)
		return vcpu_raise_gp(v, 0);
	if (type < 2 && ((d[0] >> 12) || (!(v->s.cr4 & CR4_PCIDE) && d[0])))
		return vcpu_raise_gp(v, 0);
	switch (type) {
	case 0:
		if (!cpu_canonical(d[1]))
			return vcpu_raise_gp(v, 0);
		mmu_flush_page_pcid(v, d[1], d[0]);
		break;
	case 1:
		mmu_flush_pcid(v, d[0]);
		break;
	case 2:
		mmu_flush_all(v);
		break;
	case 3:
		mmu_flush_nonglobal(v);
		break;
	}
	return retire(v, in);
}

/* --- XCR0 --- */

ROUTINE(xgetbv)
{
	uint32_t index = v->s.gpr[R_CX];
	uint64_t value = v->s.xcr0;

	if (!(v->s.cr4 & CR4_OSXSAVE))
		return vcpu_raise_ud(v);
	if (index > 1 || (index == 1 && !cpuid_has(v->cfg->cpuid, 0xd, 1, CPUID_EAX, 2)))
		return vcpu_raise_gp(v, 0);
	if (index == 1)
		value = xs_inuse(v);
	gpr_set(v, R_AX, 4, value);
	gpr_set(v, R_DX, 4, value >> 32);
	return retire(v, in);
}

ROUTINE(xsetbv)
{
	uint64_t value = gpr_get(v, R_AX, 4) | gpr_get(v, R_DX, 4) << 32;

	if (!(v->s.cr4 & CR4_OSXSAVE))
		return vcpu_raise_ud(v);
	if (!need_cpl0(v))
		return false;
	if ((uint32_t)v->s.gpr[R_CX] != 0 || (value & ~v->cfg->cpuid->xcr0_allowed) || !(value & XS_X87) ||
	    ((value & XS_AVX) && !(value & XS_SSE)) ||
	    ((value & XS_AVX512) && ((value & XS_AVX512) != XS_AVX512 || !(value & XS_AVX))))
		return vcpu_raise_gp(v, 0);
	v->s.xcr0 = value;
	mmu_context_changed(v);
	return retire(v, in);
}
