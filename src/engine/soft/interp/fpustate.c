/*
 * XSAVE family, FXSAVE and FXRSTOR on the vCPU's own XSAVE area (SDM vol. 1, 13; vol. 1, 10.5).
 *
 * s.xsave is in the standard format with the host's layout, which the CPUID table shows. A component whose XSTATE_BV
 * bit is clear is in its initial state whatever its bytes say; MXCSR and its mask are valid always. x87 instruction and
 * data pointers are written as zero: they may be addresses of translated code.
 */
#include "engine/soft/interp/interp_int.h"

#include <string.h>

#define XS_X87_PTRS 8 /* FIP, FCS, FDP, FDS: 16 bytes */
#define XS_MXCSR 24
#define XS_MXCSR_MASK 28
#define XS_ST 32
#define XS_XMM 160
#define XS_LEGACY_END 416
#define XS_EXTENDED 576
#define XCOMP_COMPACTED BIT(63)
#define MXCSR_INIT 0x1f80

struct comp {
	unsigned off, size;
	bool align64;
};

static struct comp comp_of(const struct vcpu *v, unsigned i)
{
	struct cpuid_regs r = cpuid_query(v->cfg->cpuid, &v->s, 0xd, i);
	struct comp c = {.off = r.ebx, .size = r.eax, .align64 = r.ecx & 2};

	if (i < 2 || i > 62 || c.off < XS_EXTENDED || !range_ok(c.off, c.size, XSAVE_AREA_SIZE))
		c.size = 0;
	return c;
}

unsigned xs_offset(const struct vcpu *v, unsigned i, unsigned *size)
{
	struct comp c = comp_of(v, i);

	*size = c.size;
	return c.off;
}

static uint64_t bv_get(const struct vcpu *v) { return get_le64(v->s.xsave + XS_HEADER); }
static void bv_set(struct vcpu *v, uint64_t bv) { put_le64(v->s.xsave + XS_HEADER, bv); }

uint64_t xs_inuse(const struct vcpu *v) { return bv_get(v) & v->s.xcr0; }

static uint32_t mxcsr_mask(const struct vcpu *v)
{
	uint32_t mask = get_le32(v->s.xsave + XS_MXCSR_MASK);

	return mask ? mask : 0xffbf;
}

static void init_x87(struct vcpu *v)
{
	memset(v->s.xsave, 0, XS_MXCSR);
	memset(v->s.xsave + XS_ST, 0, XS_XMM - XS_ST);
	put_le16(v->s.xsave, 0x37f);
}

/* Initial bytes for the components of mask. */
static void init_bytes(struct vcpu *v, uint64_t mask)
{
	if (mask & XS_X87)
		init_x87(v);
	if (mask & XS_SSE)
		memset(v->s.xsave + XS_XMM, 0, XS_LEGACY_END - XS_XMM);
	for (unsigned i = 2; mask >> i; i++) {
		if (mask & BIT(i)) {
			struct comp c = comp_of(v, i);

			memset(v->s.xsave + c.off, 0, c.size);
		}
	}
}

void xs_own(struct vcpu *v, uint64_t mask)
{
	init_bytes(v, mask & ~bv_get(v));
	bv_set(v, bv_get(v) | mask);
}

/* Outside 64-bit mode only the first 8 registers of a component exist. */
static unsigned visible_size(const struct vcpu *v, unsigned i, unsigned size)
{
	if (cpu_is_64bit(&v->s))
		return size;
	if (BIT(i) == XS_HI16_ZMM)
		return 0;
	return (BIT(i) & (XS_SSE | XS_AVX | XS_ZMM_HI256)) ? size / 2 : size;
}

static unsigned xmm_size(const struct vcpu *v) { return visible_size(v, 1, XS_LEGACY_END - XS_XMM); }

/* --- saving --- */

static bool put(struct vcpu *v, gva_t la, unsigned guest_off, unsigned off, unsigned len)
{
	return !len || mmu_write(v, la + guest_off, v->s.xsave + off, len, MMU_WRITE);
}

static bool put_x87(struct vcpu *v, gva_t la)
{
	uint8_t head[XS_MXCSR];

	memcpy(head, v->s.xsave, sizeof(head));
	memset(head + XS_X87_PTRS, 0, 16);
	return mmu_write(v, la, head, sizeof(head), MMU_WRITE) && put(v, la, XS_ST, XS_ST, XS_XMM - XS_ST);
}

static bool put_mxcsr(struct vcpu *v, gva_t la)
{
	uint8_t buf[8];

	put_le32(buf, get_le32(v->s.xsave + XS_MXCSR));
	put_le32(buf + 4, mxcsr_mask(v));
	return mmu_write(v, la + XS_MXCSR, buf, 8, MMU_WRITE);
}

/* End of the area in memory for the components of mask. */
static unsigned area_size(const struct vcpu *v, uint64_t mask, bool compact)
{
	unsigned end = XS_EXTENDED;

	for (unsigned i = 2; mask >> i; i++) {
		struct comp c = {0};

		if (mask & BIT(i))
			c = comp_of(v, i);
		if (!c.size)
			continue;
		if (compact)
			end = (c.align64 ? (unsigned)align_up(end, 64) : end) + c.size;
		else if (c.off + c.size > end)
			end = c.off + c.size;
	}
	return end;
}

/* Offset of component i in an area: c.off, or where a compacted one with these components has it. */
static unsigned offset_in(const struct vcpu *v, uint64_t mask, unsigned i, const struct comp *c, bool compact)
{
	unsigned end;

	if (!compact)
		return c->off;
	end = area_size(v, mask & (BIT(i) - 1), true);
	return c->align64 ? (unsigned)align_up(end, 64) : end;
}

static bool put_extended(struct vcpu *v, gva_t la, uint64_t layout, uint64_t write, bool compact)
{
	for (unsigned i = 2; write >> i; i++) {
		struct comp c;

		if (!(write & BIT(i)))
			continue;
		c = comp_of(v, i);
		if (!put(v, la, offset_in(v, layout, i, &c, compact), c.off, visible_size(v, i, c.size)))
			return false;
	}
	return true;
}

static uint64_t requested(const struct vcpu *v)
{
	return (gpr_get(v, R_AX, 4) | gpr_get(v, R_DX, 4) << 32) & v->s.xcr0;
}

static bool xsave_allowed(struct vcpu *v)
{
	if (!(v->s.cr4 & CR4_OSXSAVE))
		return vcpu_raise_ud(v);
	if (v->s.cr0 & CR0_TS)
		return vcpu_raise(v, EXC_NM);
	return true;
}

static bool xsave_feature(struct vcpu *v, unsigned bit)
{
	return cpuid_has(v->cfg->cpuid, 0xd, 1, CPUID_EAX, bit) || vcpu_raise_ud(v);
}

static bool area_linear(struct vcpu *v, const struct insn *in, unsigned len, unsigned align, bool write, gva_t *la)
{
	if (!op_linear(v, in, len, write, la))
		return false;
	if (*la & (align - 1))
		return vcpu_raise_gp(v, 0);
	return !write || mmu_probe_write(v, *la, len, 0);
}

/* XSAVE, XSAVEOPT: the latter leaves out components in their initial state. */
ROUTINE(xsave)
{
	uint64_t rfbm = requested(v), inuse = xs_inuse(v), write = rfbm, bv;
	gva_t la;

	if (in->kind == INSN_XSAVEOPT && !xsave_feature(v, 0))
		return false;
	if (!xsave_allowed(v) || !area_linear(v, in, area_size(v, rfbm, false), 64, true, &la) ||
	    !mem_read(v, la + XS_HEADER, 8, &bv, MMU_READ))
		return false;
	if (in->kind == INSN_XSAVEOPT)
		write &= inuse;
	init_bytes(v, write & ~bv_get(v));
	bv = (bv & ~rfbm) | (inuse & rfbm);
	if (((write & XS_X87) && !put_x87(v, la)) || ((rfbm & (XS_SSE | XS_AVX)) && !put_mxcsr(v, la)) ||
	    ((write & XS_SSE) && !put(v, la, XS_XMM, XS_XMM, xmm_size(v))) ||
	    !put_extended(v, la, rfbm, write, false) || !mem_write(v, la + XS_HEADER, 8, bv, MMU_WRITE))
		return false;
	return retire(v, in);
}

/* XSAVEC, and XSAVES with IA32_XSS = 0: the compacted format, components in use only. */
ROUTINE(xsavec)
{
	uint64_t rfbm = requested(v), write = xs_inuse(v) & rfbm, header[2];
	gva_t la;

	if (!xsave_feature(v, in->kind == INSN_XSAVES ? 3 : 1) || !xsave_allowed(v))
		return false;
	if (in->kind == INSN_XSAVES && !need_cpl0(v))
		return false;
	if (!area_linear(v, in, area_size(v, rfbm, true), 64, true, &la))
		return false;
	if ((rfbm & XS_SSE) && get_le32(v->s.xsave + XS_MXCSR) != MXCSR_INIT)
		write |= XS_SSE;
	init_bytes(v, write & ~bv_get(v));
	header[0] = write;
	header[1] = XCOMP_COMPACTED | rfbm;
	if (((write & XS_X87) && !put_x87(v, la)) ||
	    ((write & XS_SSE) && (!put_mxcsr(v, la) || !put(v, la, XS_XMM, XS_XMM, xmm_size(v)))) ||
	    !put_extended(v, la, rfbm, write, true) || !mmu_write(v, la + XS_HEADER, header, 16, MMU_WRITE))
		return false;
	return retire(v, in);
}

/* --- restoring --- */

static bool header_ok(const struct vcpu *v, const struct insn *in, const uint64_t h[8])
{
	bool compact = h[1] & XCOMP_COMPACTED;
	uint64_t format = h[1] & ~XCOMP_COMPACTED, other = h[2];

	if (!compact)
		return in->kind == INSN_XRSTOR && !h[1] && !h[2] && !(h[0] & ~v->s.xcr0);
	for (unsigned i = 3; i < 8; i++)
		other |= h[i];
	return cpuid_has(v->cfg->cpuid, 0xd, 1, CPUID_EAX, 1) && !(format & ~v->s.xcr0) && !(h[0] & ~format) && !other;
}

/* Take component i (or its initial state when from is NULL) over. */
static void take(struct vcpu *v, unsigned i, unsigned off, unsigned size, const uint8_t *from)
{
	unsigned part = visible_size(v, i, size);

	if (!from && part == size) {
		memset(v->s.xsave + off, 0, size);
		bv_set(v, bv_get(v) & ~BIT(i));
	} else if (part) {
		xs_own(v, BIT(i));
		if (from)
			memcpy(v->s.xsave + off, from, part);
		else
			memset(v->s.xsave + off, 0, part);
	}
}

static void take_x87(struct vcpu *v, const uint8_t *from)
{
	init_x87(v);
	if (!from) {
		bv_set(v, bv_get(v) & ~XS_X87);
		return;
	}
	memcpy(v->s.xsave, from, XS_X87_PTRS);
	memcpy(v->s.xsave + XS_ST, from + XS_ST, XS_XMM - XS_ST);
	bv_set(v, bv_get(v) | XS_X87);
}

/* Read the extended components of mask from memory into image, which has the standard layout. */
static bool get_extended(struct vcpu *v, gva_t la, uint64_t layout, uint64_t mask, bool compact, uint8_t *image)
{
	for (unsigned i = 2; mask >> i; i++) {
		struct comp c;

		if (!(mask & BIT(i)))
			continue;
		c = comp_of(v, i);
		if (c.size && !mmu_read(v, la + offset_in(v, layout, i, &c, compact), image + c.off, c.size, MMU_READ))
			return false;
	}
	return true;
}

static void commit(struct vcpu *v, uint64_t rfbm, uint64_t bv, const uint8_t *image)
{
	if (rfbm & XS_X87)
		take_x87(v, (bv & XS_X87) ? image : NULL);
	if (rfbm & XS_SSE)
		take(v, 1, XS_XMM, XS_LEGACY_END - XS_XMM, (bv & XS_SSE) ? image + XS_XMM : NULL);
	for (unsigned i = 2; rfbm >> i; i++) {
		struct comp c;

		if (!(rfbm & BIT(i)))
			continue;
		c = comp_of(v, i);
		take(v, i, c.off, c.size, (bv & BIT(i)) ? image + c.off : NULL);
	}
	if (rfbm & XS_PKRU)
		mmu_context_changed(v);
}

ROUTINE(xrstor)
{
	uint64_t rfbm = requested(v), h[8], layout;
	uint8_t image[XSAVE_AREA_SIZE];
	bool compact, load_mxcsr;
	uint32_t mxcsr = MXCSR_INIT;
	gva_t la;

	if (in->kind == INSN_XRSTORS && !xsave_feature(v, 3))
		return false;
	if (!xsave_allowed(v) || (in->kind == INSN_XRSTORS && !need_cpl0(v)))
		return false;
	if (!area_linear(v, in, XS_EXTENDED, 64, false, &la) || !mmu_read(v, la + XS_HEADER, h, 64, MMU_READ))
		return false;
	if (!header_ok(v, in, h))
		return vcpu_raise_gp(v, 0);
	compact = h[1] & XCOMP_COMPACTED;
	layout = compact ? h[1] & ~XCOMP_COMPACTED : rfbm;
	/* The end may lie beyond the segment. */
	if (!op_linear(v, in, area_size(v, compact ? layout : rfbm & h[0], compact), false, &la))
		return false;
	if (!mmu_read(v, la, image, XS_LEGACY_END, MMU_READ) ||
	    !get_extended(v, la, layout, rfbm & h[0], compact, image))
		return false;
	load_mxcsr = compact ? rfbm & XS_SSE : rfbm & (XS_SSE | XS_AVX);
	if (!compact || (h[0] & XS_SSE))
		mxcsr = get_le32(image + XS_MXCSR);
	if (load_mxcsr && (mxcsr & ~mxcsr_mask(v)))
		return vcpu_raise_gp(v, 0);
	if (load_mxcsr)
		put_le32(v->s.xsave + XS_MXCSR, mxcsr);
	commit(v, rfbm, h[0], image);
	return retire(v, in);
}

/* --- FXSAVE, FXRSTOR --- */

static bool fx_allowed(struct vcpu *v) { return !(v->s.cr0 & (CR0_EM | CR0_TS)) || vcpu_raise(v, EXC_NM); }

ROUTINE(fxsave)
{
	gva_t la;

	if (!fx_allowed(v) || !area_linear(v, in, 512, 16, true, &la))
		return false;
	init_bytes(v, (XS_X87 | XS_SSE) & ~bv_get(v));
	return put_x87(v, la) && put_mxcsr(v, la) && put(v, la, XS_XMM, XS_XMM, xmm_size(v)) && retire(v, in);
}

ROUTINE(fxrstor)
{
	uint8_t image[512];
	gva_t la;

	if (!fx_allowed(v) || !area_linear(v, in, 512, 16, false, &la) || !mmu_read(v, la, image, 512, MMU_READ))
		return false;
	if (get_le32(image + XS_MXCSR) & ~mxcsr_mask(v))
		return vcpu_raise_gp(v, 0);
	memcpy(v->s.xsave + XS_MXCSR, image + XS_MXCSR, 4);
	commit(v, XS_X87 | XS_SSE, XS_X87 | XS_SSE, image);
	return retire(v, in);
}

/* --- registers, for the other routines --- */

void xs_vector_get(struct vcpu *v, unsigned n, uint8_t *out, unsigned len)
{
	unsigned size, base;

	if (n >= 16) {
		xs_own(v, XS_HI16_ZMM);
		base = xs_offset(v, 7, &size);
		memcpy(out, v->s.xsave + base + 64 * (n - 16), len);
		return;
	}
	xs_own(v, XS_SSE);
	memcpy(out, v->s.xsave + XS_XMM + 16 * n, 16);
	if (len > 16) {
		xs_own(v, XS_AVX);
		base = xs_offset(v, 2, &size);
		memcpy(out + 16, v->s.xsave + base + 16 * n, 16);
	}
	if (len > 32) {
		xs_own(v, XS_ZMM_HI256);
		base = xs_offset(v, 6, &size);
		memcpy(out + 32, v->s.xsave + base + 32 * n, 32);
	}
}

void xs_vector_set(struct vcpu *v, unsigned n, const uint8_t *in, unsigned len)
{
	bool avx512 = (v->s.xcr0 & XS_AVX512) == XS_AVX512;
	uint8_t full[64] = {0};
	unsigned size, base;

	memcpy(full, in, len);
	if (n >= 16) {
		xs_own(v, XS_HI16_ZMM);
		base = xs_offset(v, 7, &size);
		memcpy(v->s.xsave + base + 64 * (n - 16), full, 64);
		return;
	}
	xs_own(v, XS_SSE | XS_AVX | (avx512 ? XS_ZMM_HI256 : 0));
	memcpy(v->s.xsave + XS_XMM + 16 * n, full, 16);
	base = xs_offset(v, 2, &size);
	memcpy(v->s.xsave + base + 16 * n, full + 16, 16);
	if (avx512) {
		base = xs_offset(v, 6, &size);
		memcpy(v->s.xsave + base + 32 * n, full + 32, 32);
	}
}

uint32_t xs_pkru_get(const struct vcpu *v)
{
	unsigned size, off = xs_offset(v, 9, &size);

	return size >= 4 && (bv_get(v) & XS_PKRU) ? get_le32(v->s.xsave + off) : 0;
}

void xs_pkru_set(struct vcpu *v, uint32_t value)
{
	unsigned size, off = xs_offset(v, 9, &size);

	if (size < 4)
		return;
	xs_own(v, XS_PKRU);
	put_le32(v->s.xsave + off, value);
}
