/* Every kind of instruction has a routine; condition codes against the CPU. */
#include "fixture.h"

static void every_kind(void **state)
{
	for (unsigned k = 0; k < INSN_KIND_COUNT; k++)
		assert_true(interp_kind_known(k));
	assert_false(interp_kind_known(INSN_KIND_COUNT));
}

#define SETCC(n, cc)                                                                                                   \
	case n:                                                                                                        \
		__asm__ volatile("sub $128, %%rsp; push %1; popf; set" cc " %0; lea 128(%%rsp), %%rsp"                 \
				 : "=q"(r)                                                                             \
				 : "r"(f)                                                                              \
				 : "cc", "memory");                                                                    \
		break;

static bool host_cc(uint64_t f, unsigned cc)
{
	uint8_t r = 0;

	f |= FL_FIXED | FL_IF;
	switch (cc) {
		SETCC(0, "o")
		SETCC(1, "no") SETCC(2, "b") SETCC(3, "ae") SETCC(4, "e") SETCC(5, "ne") SETCC(6, "be") SETCC(7, "a")
			SETCC(8, "s") SETCC(9, "ns") SETCC(10, "p") SETCC(11, "np") SETCC(12, "l") SETCC(13, "ge")
				SETCC(14, "le") SETCC(15, "g")
	}
	return r;
}

static void condition_codes(void **state)
{
	for (unsigned bits = 0; bits < 0x1000; bits++) {
		for (unsigned cc = 0; cc < 16; cc++)
			assert_int_equal(interp_cc(bits & FL_ARITH, cc), host_cc(bits & FL_ARITH, cc));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(every_kind), cmocka_unit_test(condition_codes)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
