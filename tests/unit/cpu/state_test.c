/* Reset and INIT state against SDM vol. 3, table 9-1; the TSC's frequency against the wall clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "cpu/cpuid.h"
#include "cpu/state.h"

static void check_start(const struct cpu_state *s)
{
	assert_int_equal(s->rip, 0xfff0);
	assert_int_equal(s->rflags, 2);
	assert_true(s->seg[SEG_CS].sel == 0xf000 && s->seg[SEG_CS].base == 0xffff0000 &&
		    s->seg[SEG_CS].limit == 0xffff);
	assert_int_equal(s->seg[SEG_CS].attr, 0x9b);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		if (i != SEG_CS)
			assert_true(s->seg[i].sel == 0 && s->seg[i].base == 0 && s->seg[i].limit == 0xffff &&
				    s->seg[i].attr == 0x93);
	assert_true(s->ldt.attr == 0x82 && s->tr.attr == 0x8b && s->tr.limit == 0xffff);
	assert_true(s->gdt.base == 0 && s->gdt.limit == 0xffff && s->idt.base == 0 && s->idt.limit == 0xffff);
	assert_true(s->cr2 == 0 && s->cr3 == 0 && s->cr4 == 0 && s->efer == 0);
	assert_true(s->dr[0] == 0 && s->dr[6] == 0xffff0ff0 && s->dr[7] == 0x400);
	assert_true(cpu_is_real(s) && cpu_cpl(s) == 0);
	assert_true(s->exc_pending == 0 && s->int_pending == 0 && s->nmi_pending == 0);
}

static void test_reset(void **state)
{
	static struct cpu_state s;

	(void)state;
	memset(&s, 0xa5, sizeof(s));
	cpu_state_reset(&s, 0);
	check_start(&s);
	assert_int_equal(s.version, CPU_STATE_VERSION);
	assert_int_equal(s.run_state, CPU_RUNNING);
	assert_int_equal(s.cr0, 0x60000010);
	assert_int_equal(s.xcr0, 1);
	assert_int_equal(s.apic_base, 0xfee00900);
	assert_int_equal(s.pat, 0x0007040600070406);
	assert_int_equal(get_le16(s.xsave), 0x40);
	assert_int_equal(get_le32(s.xsave + 24), 0x1f80);
	assert_int_equal(s.gpr[R_DX], 0x600);
	cpu_state_reset(&s, 3);
	assert_int_equal(s.run_state, CPU_WAIT_INIT);
	assert_int_equal(s.apic_base, 0xfee00800);
	assert_int_equal(s.apic_id, 3);
}

static void test_init(void **state)
{
	static struct cpu_state s;

	(void)state;
	for (uint32_t id = 0; id < 2; id++) {
		cpu_state_reset(&s, id);
		s.cr0 = CR0_PE | CR0_PG | CR0_CD | CR0_WP;
		s.cr4 = CR4_PAE;
		s.efer = EFER_LME | EFER_LMA;
		s.gpr[R_AX] = s.rip = s.star = s.mtrr_def_type = s.tsc_adjust = s.pat = s.xcr0 = 7;
		s.exc_pending = s.nmi_pending = s.nmi_masked = 1;
		memset(s.xsave, 0x11, 512);
		cpu_state_init(&s);
		check_start(&s);
		assert_int_equal(s.cr0, 0x40000010);
		assert_int_equal(s.gpr[R_AX], 0);
		assert_true(s.mtrr_def_type == 7 && s.tsc_adjust == 7 && s.pat == 7 && s.xcr0 == 7 && s.star == 7);
		assert_true(s.xsave[0] == 0x11 && s.xsave[511] == 0x11);
		assert_int_equal(s.run_state, id == 0 ? CPU_RUNNING : CPU_WAIT_SIPI);
		assert_int_equal(s.apic_id, id);
	}
}

static void test_tsc(void **state)
{
	struct timespec a, b, nap = {.tv_nsec = 50000000};
	uint64_t t0, t1;
	uint32_t khz = tsc_khz_measure();
	double want;

	(void)state;
	assert_true(khz > 500000 && khz < 8000000);
	clock_gettime(CLOCK_MONOTONIC_RAW, &a);
	t0 = __rdtsc();
	nanosleep(&nap, NULL);
	clock_gettime(CLOCK_MONOTONIC_RAW, &b);
	t1 = __rdtsc();
	want = (double)(t1 - t0) / ((double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6);
	assert_true(want / khz > 0.995 && want / khz < 1.005);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reset),
		cmocka_unit_test(test_init),
		cmocka_unit_test(test_tsc),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
