/* Control and debug registers, long mode, MSRs, kvm-clock, hypercalls, and who may run what. */
#include "fixture.h"

#include <time.h>
#include <x86intrin.h>

static bool mov_cr(struct rig *r, unsigned cr, uint64_t value)
{
	r->v.s.gpr[R_AX] = value;
	return rig_run(r, (const uint8_t[]){0x0f, 0x22, 0xc0 | cr << 3}, 3);
}

static bool wrmsr(struct rig *r, uint32_t msr, uint64_t value)
{
	r->v.s.gpr[R_CX] = msr;
	r->v.s.gpr[R_AX] = value & UINT32_MAX;
	r->v.s.gpr[R_DX] = value >> 32;
	return RUN(r, 0x0f, 0x30);
}

static void cr0_rules(void **state)
{
	static const struct {
		uint64_t value;
		bool ok;
	} c[] = {
		{CR0_PE | CR0_ET, true},
		{CR0_PG, false},
		{CR0_PE | CR0_NW, false},
		{CR0_PE | CR0_CD | CR0_NW, true},
		{CR0_PE | CR0_CD, true},
		{CR0_PE | CR0_PG, true},
		{0, true},
		{CR0_PE | CR0_PG | CR0_WP | CR0_AM | CR0_NE | CR0_TS | CR0_EM | CR0_MP, true},
	};
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(c); i++) {
		rig_prot(r, 0);
		assert_int_equal(mov_cr(r, 0, c[i].value | 0x1ff80 /* undefined bits are dropped */), c[i].ok);
		if (c[i].ok)
			assert_int_equal(r->v.s.cr0, c[i].value | CR0_ET | ((0x1ff80) & CR0_WP));
		else
			assert_fault(r, EXC_GP, 0);
	}
	rig_long(r, 0);
	assert_false(mov_cr(r, 0, BIT(32) | CR0_PE | CR0_PG));
	assert_false(mov_cr(r, 0, CR0_PE)); /* paging off in 64-bit mode */
	rig_prot(r, 3);
	assert_false(mov_cr(r, 0, CR0_PE));
	assert_fault(r, EXC_GP, 0);
	/* WP flushes, TS need not */
	rig_prot(r, 0);
	r->mmu.flushes = 0;
	assert_true(mov_cr(r, 0, CR0_PE | CR0_TS));
	assert_int_equal(r->mmu.flushes, 0);
	assert_true(mov_cr(r, 0, CR0_PE | CR0_WP));
	assert_int_equal(r->mmu.flushes, 1);
	assert_true(RUN(r, 0x0f, 0x06)); /* clts */
	assert_int_equal(r->v.s.cr0 & CR0_TS, 0);
}

static void lmsw(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->v.s.gpr[R_AX] = CR0_TS;
	assert_true(RUN(r, 0x0f, 0x01, 0xf0)); /* PE stays */
	assert_int_equal(r->v.s.cr0 & 0xf, CR0_PE | CR0_TS);
	rig_real(r);
	r->v.s.gpr[R_AX] = 0xffff;
	assert_true(RUN(r, 0x0f, 0x01, 0xf0));
	assert_int_equal(r->v.s.cr0 & 0xf, 0xf);
}

/* The way into long mode and back, as an operating system does it. */
static void long_mode(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	assert_true(wrmsr(r, 0xc0000080, EFER_LME | EFER_SCE));
	assert_false(mov_cr(r, 0, r->v.s.cr0 | CR0_PG)); /* PAE is off */
	assert_true(mov_cr(r, 4, CR4_PAE));
	assert_true(mov_cr(r, 0, r->v.s.cr0 | CR0_PG));
	assert_true(cpu_long_mode(&r->v.s));
	assert_false(cpu_is_64bit(&r->v.s));
	assert_false(wrmsr(r, 0xc0000080, EFER_SCE)); /* LME while paging */
	assert_false(mov_cr(r, 4, 0));		      /* PAE in long mode */
	assert_false(mov_cr(r, 4, CR4_PAE | BIT(31)));
	if (r->policy.cr4_allowed & CR4_PCIDE) {
		r->v.s.cr3 = 0x1005;
		assert_false(mov_cr(r, 4, CR4_PAE | CR4_PCIDE)); /* CR3[11:0] */
		r->v.s.cr3 = 0x1000;
		assert_true(mov_cr(r, 4, CR4_PAE | CR4_PCIDE));
		assert_false(mov_cr(r, 0, CR0_PE | CR0_ET)); /* paging off with PCIDE */
		assert_true(mov_cr(r, 4, CR4_PAE));
	}
	assert_true(mov_cr(r, 0, CR0_PE | CR0_ET));
	assert_false(cpu_long_mode(&r->v.s));
	assert_int_equal(r->v.s.efer, EFER_LME | EFER_SCE);
	/* a 16-bit TSS or 64-bit CS while paging comes on */
	r->v.s.tr.attr = SEG_P | 3;
	assert_true(mov_cr(r, 4, CR4_PAE));
	assert_false(mov_cr(r, 0, CR0_PE | CR0_PG));
	r->v.s.tr.attr = SEG_P | 0xb;
	r->v.s.seg[SEG_CS].attr |= SEG_L;
	assert_false(mov_cr(r, 0, CR0_PE | CR0_PG));
}

static void cr3_rules(void **state)
{
	struct rig *r = *state;
	unsigned flushes;

	rig_long(r, 0);
	assert_true(mov_cr(r, 3, 0x12345000));
	assert_false(mov_cr(r, 3, BIT(63) | 0x1000));
	assert_fault(r, EXC_GP, 0);
	assert_false(mov_cr(r, 3, BIT(r->policy.phys_bits)));
	r->v.s.cr4 |= CR4_PCIDE;
	flushes = r->mmu.flushes;
	assert_true(mov_cr(r, 3, BIT(63) | 0x1005));
	assert_int_equal(r->v.s.cr3, 0x1005);
	assert_int_equal(r->mmu.flushes, flushes);
	assert_true(mov_cr(r, 3, 0x1006));
	assert_int_equal(r->mmu.flushes, flushes + 1);
	assert_true(RUN(r, 0x0f, 0x20, 0xd8));
	assert_int_equal(r->v.s.gpr[R_AX], 0x1006);
}

static void pae_pdptes(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	for (unsigned i = 0; i < 4; i++)
		put_le64(rig_mem(r, 0x5020 + 8 * i), 0x10001 + 0x1000 * i);
	assert_true(mov_cr(r, 3, 0x5020));
	assert_true(mov_cr(r, 4, CR4_PAE));
	assert_int_equal(r->v.s.pdpte[0], 0);
	assert_true(mov_cr(r, 0, r->v.s.cr0 | CR0_PG));
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(r->v.s.pdpte[i], 0x10001 + 0x1000 * i);
	put_le64(rig_mem(r, 0x5028), 0x11003); /* R/W is reserved here */
	assert_false(mov_cr(r, 3, 0x5020));
	assert_fault(r, EXC_GP, 0);
	assert_int_equal(r->v.s.pdpte[1], 0x11001);
	put_le64(rig_mem(r, 0x5028), 0x11002); /* not present: anything goes */
	assert_true(mov_cr(r, 3, 0x5020));
	assert_false(mov_cr(r, 3, 0xfffff000)); /* not RAM */
}

static void only_ring_0(void **state)
{
	static const struct {
		uint8_t bytes[4];
		unsigned len;
	} c[] = {
		{{0xf4}, 1},
		{{0x0f, 0x06}, 2},
		{{0x0f, 0x08}, 2},
		{{0x0f, 0x09}, 2},
		{{0x0f, 0x20, 0xc0}, 3},
		{{0x0f, 0x22, 0xd8}, 3},
		{{0x0f, 0x21, 0xc0}, 3},
		{{0x0f, 0x23, 0xf8}, 3},
		{{0x0f, 0x30}, 2},
		{{0x0f, 0x32}, 2},
		{{0x0f, 0x01, 0x17}, 3},
		{{0x0f, 0x01, 0x1f}, 3},
		{{0x0f, 0x01, 0x3f}, 3},
		{{0x0f, 0x01, 0xf0}, 3},
		{{0x0f, 0x01, 0xf8}, 3},
		{{0x0f, 0x00, 0xd0}, 3},
		{{0x0f, 0x00, 0xd8}, 3},
		{{0xfa}, 1},
		{{0xfb}, 1},
		{{0xee}, 1},
		{{0xec}, 1},
	};
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(c); i++) {
		struct cpu_state before;

		rig_long(r, 3);
		r->v.s.tr.limit = 0x67;
		r->v.s.gpr[R_DI] = 0x5000;
		before = r->v.s;
		assert_false(rig_run(r, c[i].bytes, c[i].len));
		assert_fault(r, EXC_GP, 0);
		assert_memory_equal(&before, &r->v.s, sizeof(before));
	}
}

static void debug_registers(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	r->v.s.gpr[R_AX] = 0xffffffff;
	assert_true(RUN(r, 0x0f, 0x23, 0xf0)); /* dr6 */
	assert_int_equal(r->v.s.dr[6], 0xffffefff & ~BIT(12));
	r->v.s.gpr[R_AX] = 0xffffffff & ~BIT(13);
	assert_true(RUN(r, 0x0f, 0x23, 0xf8));
	assert_int_equal(r->v.s.dr[7], 0xffff07ff);
	r->v.s.gpr[R_AX] = BIT(32);
	assert_false(RUN(r, 0x0f, 0x23, 0xf8));
	assert_fault(r, EXC_GP, 0);
	assert_true(RUN(r, 0x0f, 0x21, 0xe8)); /* dr5 is dr7 */
	assert_int_equal(r->v.s.gpr[R_AX], 0xffff07ff);
	r->v.s.cr4 |= CR4_DE;
	assert_false(RUN(r, 0x0f, 0x21, 0xe8));
	assert_fault_noerr(r, EXC_UD);
	r->v.s.dr[7] |= BIT(13);
	r->v.s.dr[6] = 0xffff0ff0;
	assert_false(RUN(r, 0x0f, 0x21, 0xc0)); /* general detect */
	assert_fault_noerr(r, EXC_DB);
	assert_int_equal(r->v.s.dr[6], 0xffff2ff0);
}

static void tsc(void **state)
{
	struct rig *r = *state;
	uint64_t before, after, now;

	rig_long(r, 3);
	r->v.s.tsc_offset = 0x123456789a;
	before = __rdtsc() + r->v.s.tsc_offset;
	assert_true(RUN(r, 0x0f, 0x31));
	after = __rdtsc() + r->v.s.tsc_offset;
	assert_in_range(r->v.s.gpr[R_DX] << 32 | r->v.s.gpr[R_AX], before, after);
	r->v.s.cr4 |= CR4_TSD;
	assert_false(RUN(r, 0x0f, 0x31));
	assert_fault(r, EXC_GP, 0);
	rig_long(r, 0);
	assert_true(wrmsr(r, 0x10, 1000));
	assert_int_equal(r->v.s.tsc_adjust, r->v.s.tsc_offset); /* both started at 0 */
	assert_true(msr_read(&r->v, 0x10, &now));
	assert_in_range(now, 1000, 1000 + UINT64_C(1000000000));
	if (cpuid_has(&r->policy, 7, 0, CPUID_EBX, 1)) {
		assert_true(wrmsr(r, 0x3b, 0));
		assert_int_equal(r->v.s.tsc_offset, 0);
	}
	r->v.s.tsc_aux = 0x77;
	if (cpuid_has(&r->policy, 0x80000001, 0, CPUID_EDX, 27)) {
		assert_true(RUN(r, 0x0f, 0x01, 0xf9));
		assert_int_equal(r->v.s.gpr[R_CX], 0x77);
	}
}

static void msr_rules(void **state)
{
	static const struct {
		uint32_t msr;
		uint64_t good, bad;
		bool has_bad;
	} c[] = {
		{0xc0000100, 0x7fffffffffff, 0x800000000000, true},
		{0xc0000101, 0xffff800000000000, 0x8000000000000000, true},
		{0xc0000102, 1, 0x0001000000000000, true},
		{0xc0000082, 0xffffffff81000000, 0x8000000000000000, true},
		{0xc0000084, 0x47700, BIT(32), true},
		{0x277, 0x0007040600070406, 2, true},
		{0x277, 0x0007040600070406, 0x0800000000000000, true},
		{0x2ff, 0xc06, 0x1000, true},
		{0x200, 0x1006, 2, true},
		{0x201, 0xfff00800, 1, true},
		{0x250, 0x0606060606060606, 0x0306060606060606, true},
		{0x26f, 0x0505050505050505, 7, true},
		{0x175, 0xffff800000001000, 0x8000000000000000, true},
		{0x1a0, 0x850089, 0, false},
		{0xc0000081, 0x23001000000000, 0, false},
	};
	struct rig *r = *state;
	uint64_t value;

	rig_long(r, 0);
	for (unsigned i = 0; i < ARRAY_LEN(c); i++) {
		assert_true(wrmsr(r, c[i].msr, c[i].good));
		if (c[i].has_bad) {
			assert_false(wrmsr(r, c[i].msr, c[i].bad));
			assert_fault(r, EXC_GP, 0);
		}
		assert_true(msr_read(&r->v, c[i].msr, &value));
		assert_int_equal(value, c[i].good);
	}
	assert_int_equal(r->v.s.seg[SEG_FS].base, 0x7fffffffffff);
	assert_int_equal(r->v.s.mtrr_fixed[10], 0x0505050505050505);
	/* unknown, and wrong for the vendor */
	assert_false(msr_read(&r->v, 0xdeadbeef, &value));
	assert_false(wrmsr(r, 0x12345, 0));
	assert_false(wrmsr(r, 0xfe, 0)); /* read-only */
	rig_vendor(r, true);
	assert_true(msr_read(&r->v, 0xc0010015, &value));
	assert_false(msr_read(&r->v, 0x3a, &value));
	rig_vendor(r, false);
	assert_false(msr_read(&r->v, 0xc0010015, &value));
	assert_true(msr_read(&r->v, 0x3a, &value));
	/* EFER */
	assert_false(wrmsr(r, 0xc0000080, EFER_LME | EFER_SVME));
	assert_true(wrmsr(r, 0xc0000080, EFER_LME | EFER_NXE)); /* LMA is not the guest's to write */
	assert_int_equal(r->v.s.efer, EFER_LME | EFER_LMA | EFER_NXE);
}

/* No MSR number, and no value, may do more than fault. */
static void msr_hostile(void **state)
{
	struct rig *r = *state;
	uint64_t value;

	rig_long(r, 0);
	for (uint32_t base = 0; base < 4; base++) {
		static const uint32_t from[] = {0, 0x40000000, 0xc0000000, 0x4b564c00};

		for (uint32_t i = 0; i < 0x12000; i++) {
			(void)msr_read(&r->v, from[base] + i, &value);
			(void)msr_write(&r->v, from[base] + i, rnd() >> (rnd() & 63));
		}
	}
	assert_int_equal(r->v.s.efer & EFER_LMA, EFER_LMA);
}

static uint64_t pvclock_ns(const uint8_t *p, uint64_t tsc)
{
	int8_t shift = (int8_t)p[28];
	uint64_t delta = tsc - get_le64(p + 8);

	delta = shift < 0 ? delta >> -shift : delta << shift;
	return get_le64(p + 16) + (uint64_t)((unsigned __int128)delta * get_le32(p + 24) >> 32);
}

static void kvm_clock(void **state)
{
	struct rig *r = *state;
	uint64_t tsc1 = 0x10000000000, tsc2 = tsc1 + UINT64_C(2000000) * 1000 * 5 /* 5 s at 2 GHz */, wall, now;
	const uint8_t *p = rig_mem(r, 0x5000), *w = rig_mem(r, 0x6000);
	struct timespec ts;

	rig_long(r, 0);
	assert_true(wrmsr(r, 0x4b564d01, 0x5001));
	assert_int_equal(get_le32(p) & 1, 0);
	assert_int_not_equal(get_le32(p), 0);
	assert_int_equal(p[29], 1); /* stable */
	assert_in_range(pvclock_ns(p, tsc2) - pvclock_ns(p, tsc1), 5000000000 - 10, 5000000000 + 10);
	/* the guest writes its TSC: time goes on */
	now = pvclock_ns(p, __rdtsc() + r->v.s.tsc_offset);
	assert_true(wrmsr(r, 0x10, 12345));
	assert_in_range(pvclock_ns(p, __rdtsc() + r->v.s.tsc_offset) - now, 0, 1000000000);
	/* wall clock + system time = now */
	assert_true(wrmsr(r, 0x4b564d00, 0x6000));
	clock_gettime(CLOCK_REALTIME, &ts);
	wall = get_le32(w + 4) * UINT64_C(1000000000) + get_le32(w + 8) + pvclock_ns(p, __rdtsc() + r->v.s.tsc_offset);
	assert_in_range(wall, (uint64_t)(ts.tv_sec - 1) * 1000000000, (uint64_t)(ts.tv_sec + 1) * 1000000000);
	/* old numbers; pages that are not RAM, or lie across two, are left alone */
	assert_true(wrmsr(r, 0x12, 0x7001));
	assert_int_equal(rig_mem(r, 0x7000)[29], 1);
	assert_true(wrmsr(r, 0x12, UINT64_MAX));
	memset(rig_mem(r, 0x7ff0), 0, 32);
	assert_true(wrmsr(r, 0x12, 0x7ff1));
	assert_int_equal(rig_mem(r, 0x7ff0)[0], 0);
	assert_true(wrmsr(r, 0x11, UINT64_MAX - 4));
}

static void hypercalls(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	r->v.s.gpr[R_AX] = 1;
	assert_true(RUN(r, 0x0f, 0x01, 0xd9));
	assert_int_equal(r->v.s.gpr[R_AX], 0);
	r->v.s.gpr[R_AX] = 1234;
	assert_true(RUN(r, 0x0f, 0x01, 0xc1));
	assert_int_equal(r->v.s.gpr[R_AX], (uint64_t)-1000);
	rig_prot(r, 3);
	r->v.s.gpr[R_AX] = 1;
	assert_true(RUN(r, 0x0f, 0x01, 0xc1));
	assert_int_equal(r->v.s.gpr[R_AX], (uint32_t)-1);
}

static void small_ones(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	assert_true(RUN(r, 0xf4));
	assert_int_equal(r->v.s.run_state, CPU_HALTED);
	assert_int_equal(r->v.s.rip, CODE + 1);
	rig_long(r, 0);
	r->v.s.seg[SEG_GS].base = 1;
	r->v.s.kernel_gs_base = 2;
	assert_true(RUN(r, 0x0f, 0x01, 0xf8)); /* swapgs */
	assert_int_equal(r->v.s.seg[SEG_GS].base, 2);
	assert_int_equal(r->v.s.kernel_gs_base, 1);
	assert_false(RUN(r, 0xf3, 0x0f, 0xae, 0xc8)); /* rdgsbase, CR4.FSGSBASE clear */
	assert_fault_noerr(r, EXC_UD);
	r->v.s.cr4 |= CR4_FSGSBASE;
	assert_true(RUN(r, 0xf3, 0x48, 0x0f, 0xae, 0xc8));
	assert_int_equal(r->v.s.gpr[R_AX], 2);
	r->v.s.gpr[R_AX] = 0x800000000000;
	assert_false(RUN(r, 0xf3, 0x48, 0x0f, 0xae, 0xd8)); /* wrgsbase rax */
	assert_fault(r, EXC_GP, 0);
	assert_true(RUN(r, 0xf3, 0x0f, 0xae, 0xd8)); /* wrgsbase eax: 32 bits */
	assert_int_equal(r->v.s.seg[SEG_GS].base, 0);
	assert_true(RUN(r, 0x0f, 0x01, 0xcb)); /* stac */
	assert_true(r->v.s.rflags & FL_AC);
	assert_true(RUN(r, 0x0f, 0x01, 0xca));
	assert_false(r->v.s.rflags & FL_AC);
	rig_long(r, 3);
	assert_false(RUN(r, 0x0f, 0x01, 0xcb));
	assert_fault_noerr(r, EXC_UD);
	assert_false(RUN(r, 0x0f, 0x01, 0xc8)); /* monitor: hidden by CPUID */
	assert_fault_noerr(r, EXC_UD);
	assert_false(RUN(r, 0x0f, 0x01, 0xee)); /* rdpkru */
	assert_fault_noerr(r, EXC_UD);
	assert_false(RUN(r, 0x0f, 0x0b));
	assert_fault_noerr(r, EXC_UD);
	r->v.s.gpr[R_AX] = 0x40000000;
	assert_true(RUN(r, 0x0f, 0xa2));
	assert_int_equal(r->v.s.gpr[R_BX], 0x4b4d564b);
}

static void xcr0(void **state)
{
	struct rig *r = *state;
	uint64_t all = r->policy.xcr0_allowed;

	rig_long(r, 0);
	assert_false(RUN(r, 0x0f, 0x01, 0xd0));
	assert_fault_noerr(r, EXC_UD);
	r->v.s.cr4 |= CR4_OSXSAVE;
	for (uint64_t x = 0; x < 0x400; x++) {
		bool avx512 = (x & XS_AVX512) == XS_AVX512;
		bool ok = !(x & ~all) && (x & 1) && (!(x & 4) || (x & 2)) && (!(x & XS_AVX512) || (avx512 && (x & 4)));

		r->v.s.gpr[R_AX] = x;
		r->v.s.gpr[R_DX] = r->v.s.gpr[R_CX] = 0;
		assert_int_equal(RUN(r, 0x0f, 0x01, 0xd1), ok);
		if (ok) {
			r->v.s.gpr[R_AX] = 0;
			assert_true(RUN(r, 0x0f, 0x01, 0xd0));
			assert_int_equal(r->v.s.gpr[R_AX], x);
		}
	}
	r->v.s.gpr[R_CX] = 2;
	assert_false(RUN(r, 0x0f, 0x01, 0xd0));
	assert_fault(r, EXC_GP, 0);
}

static void invalidations(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	r->v.s.gpr[R_DI] = 0x5000;
	r->mmu.flushes = 0;
	assert_true(RUN(r, 0x0f, 0x01, 0x3f)); /* invlpg [rdi] */
	assert_int_equal(r->mmu.flushes, 1);
	r->v.s.gpr[R_DI] = 0x800000000000;
	assert_true(RUN(r, 0x0f, 0x01, 0x3f)); /* not canonical: nothing */
	assert_int_equal(r->mmu.flushes, 1);
	if (!cpuid_has(&r->policy, 7, 0, CPUID_EBX, 10))
		return;
	r->v.s.gpr[R_DI] = 0x5000;
	memset(rig_mem(r, 0x5000), 0, 16);
	for (unsigned type = 0; type < 6; type++) {
		r->v.s.gpr[R_AX] = type;
		assert_int_equal(RUN(r, 0x66, 0x0f, 0x38, 0x82, 0x07), type < 4);
	}
	assert_int_equal(r->mmu.flushes, 5);
	put_le64(rig_mem(r, 0x5000), 1); /* a PCID without CR4.PCIDE */
	r->v.s.gpr[R_AX] = 1;
	assert_false(RUN(r, 0x66, 0x0f, 0x38, 0x82, 0x07));
	assert_fault(r, EXC_GP, 0);
	r->v.s.cr4 |= CR4_PCIDE;
	assert_true(RUN(r, 0x66, 0x0f, 0x38, 0x82, 0x07));
	put_le64(rig_mem(r, 0x5008), 0x800000000000);
	r->v.s.gpr[R_AX] = 0;
	assert_false(RUN(r, 0x66, 0x0f, 0x38, 0x82, 0x07));
	assert_fault(r, EXC_GP, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(cr0_rules),  TEST(lmsw),	     TEST(long_mode),	    TEST(cr3_rules),
		TEST(pae_pdptes), TEST(only_ring_0), TEST(debug_registers), TEST(tsc),
		TEST(msr_rules),  TEST(msr_hostile), TEST(kvm_clock),	    TEST(hypercalls),
		TEST(small_ones), TEST(xcr0),	     TEST(invalidations),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
