/*
 * Attempts to get out of the translator: every host address that translated code forms must lie in the guest's RAM, at the
 * right place, or fault; whatever the guest's addresses, modes, jumps and writes to its own code.
 *
 * usage: escape_test                 the test cases
 *        escape_test SECONDS [SEED]  random programs in volume; prints how many ran a second
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <cmocka.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/mmu/mmu.h"
#include "rig.h"

#define CODE UINT64_C(0x10000000)
#define CODE_GPA 0x200000u
#define DATA UINT64_C(0x20000000)
#define DATA_GPA 0x300000u
#define HIGH UINT64_C(0xffffffff80000000) /* a page of the upper half */
#define HIGH_GPA 0x310000u
#define TOP UINT64_C(0xfffff000) /* the last page below 4 GiB */
#define TOP_GPA 0x320000u
#define ZERO_GPA 0x330000u
#define RAM_BYTES (16 * MIB)

static struct rig rig;
static struct cpu_state st;

static uint64_t rng_state;
static uint64_t rnd(void)
{
	uint64_t z = (rng_state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static struct soft_engine *engine(void) { return (struct soft_engine *)rig.engine; }
static uint8_t *guest(gpa_t gpa) { return ram_ptr(rig.ram, gpa, 1); }

/* In each test itself: the library of the tests puts its own signal handlers in place around fixtures. */
static void start(void)
{
	rig_init(&rig, RAM_BYTES);
	for (unsigned i = 0; i < 4; i++)
		rig_map(&rig, CODE + i * PAGE_SIZE, CODE_GPA + i * PAGE_SIZE, RIG_W | RIG_U);
	rig_map(&rig, DATA, DATA_GPA, RIG_W | RIG_U);
	rig_map(&rig, DATA + PAGE_SIZE, DATA_GPA + 0x8000, RIG_W | RIG_U);
	rig_map(&rig, HIGH, HIGH_GPA, RIG_W | RIG_U);
	rig_map(&rig, TOP, TOP_GPA, RIG_W | RIG_U);
	rig_map(&rig, 0, ZERO_GPA, RIG_W | RIG_U);
	rig_map(&rig, UINT64_C(0xfffffffffffff000), TOP_GPA, RIG_W | RIG_U);
	memset(&st, 0, sizeof(st));
}

static void finish(void) { rig_fini(&rig); }

static void code_at(gpa_t gpa, const void *bytes, size_t len)
{
	ram_write(rig.ram, gpa, bytes, len);
	cache_invalidate_page(rig.sv, gpa);
}

/* Run `bytes`, then HLT (#GP at ring 3), from CODE in ring 3; registers are those in st. */
static struct rig_result run(const char *bytes, size_t len, bool compat)
{
	uint64_t gpr[16];
	uint8_t buf[64];

	memcpy(buf, bytes, len);
	buf[len] = 0xf4;
	code_at(CODE_GPA, buf, len + 1);
	memcpy(gpr, st.gpr, sizeof(gpr));
	rig_state(&rig, &st, 3);
	memcpy(st.gpr, gpr, sizeof(gpr));
	if (compat)
		st.seg[SEG_CS].attr = (st.seg[SEG_CS].attr & ~(uint32_t)SEG_L) | SEG_DB;
	st.rip = CODE;
	return rig_run(&rig, &st);
}
#define RUN64(bytes) run(bytes, sizeof(bytes) - 1, false)
#define RUN32(bytes) run(bytes, sizeof(bytes) - 1, true)

static bool ended_well(const struct rig_result *r, size_t len)
{
	return r->exit == EXIT_TRIPLE_FAULT && r->vector == EXC_GP && r->rip == CODE + len;
}

/* A page of this process at `at`, where a wrong address would land; NULL when something is mapped there already. */
static uint8_t *canary(uint64_t at)
{
	uint8_t *p = mmap((void *)(uintptr_t)(at & ~(PAGE_SIZE - 1)), PAGE_SIZE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	memset(p, 0xa5, PAGE_SIZE);
	return p;
}

static void canary_check(uint8_t *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < PAGE_SIZE; i++)
		assert_int_equal(p[i], 0xa5);
	munmap(p, PAGE_SIZE);
}

/* ---- 32-bit stacks ---- */

static void stack32_wraps(void **state)
{
	struct rig_result r;
	uint8_t *c;

	start();
	c = canary((uintptr_t)engine()->ram_rw + TOP_GPA - BIT(32));

	/* filled first, so that the table holds the page */
	memset(st.gpr, 0, sizeof(st.gpr));
	st.gpr[R_AX] = 0x11223344;
	r = RUN32("\xc7\x05\x00\xf0\xff\xff\x01\x00\x00\x00\x50"); /* mov dword [0xfffff000], 1; push eax */
	assert_true(ended_well(&r, 11));
	assert_int_equal(st.gpr[R_SP], 0xfffffffc);
	assert_int_equal(get_le32(guest(TOP_GPA + 0xffc)), 0x11223344);
	canary_check(c);
	finish();
}

/* Upper halves of registers that 64-bit code left behind mean nothing to 32-bit code. */
static void stack32_upper_half(void **state)
{
	static const struct { const char *code; size_t len; } forms[] = {
		{"\x50", 1}, {"\x58", 1}, {"\x68\x44\x33\x22\x11", 5}, {"\xff\x34\x24", 3}, {"\xc9", 1}, {"\xe8\x00\x00\x00\x00", 5},
	};

	start();
	for (unsigned k = 0; k < 47; k++) {
		for (unsigned f = 0; f < ARRAY_LEN(forms); f++) {
			uint64_t up = k < 15 ? (uint64_t)k << 32 : BIT(32 + k - 15);
			uint8_t *c = k ? canary((uintptr_t)engine()->ram_rw + DATA_GPA + up) : NULL;
			char code[32] = "\xa1\x00\x00\x00\x20"; /* mov eax, [DATA] */
			struct rig_result r;

			memcpy(code + 5, forms[f].code, forms[f].len);
			memset(st.gpr, 0, sizeof(st.gpr));
			st.gpr[R_SP] = up | (DATA + 0x800);
			st.gpr[R_BP] = up | (DATA + 0x400);
			r = run(code, 5 + forms[f].len, true);
			assert_true(ended_well(&r, 5 + forms[f].len));
			assert_int_equal(st.gpr[R_SP] >> 32, 0);
			canary_check(c);
		}
	}
	finish();
}

/* ---- MXCSR.MM: AMD's misaligned exception mask makes legacy SSE loads cross page ends ---- */

static void misaligned_sse(void **state)
{
	struct rig_result r;

	start();
	memset(guest(DATA_GPA + PAGE_SIZE), 0x77, PAGE_SIZE); /* the next page of RAM, not of the guest's linear addresses */
	memset(guest(DATA_GPA), 0, PAGE_SIZE);
	memset(guest(DATA_GPA + 0x8000), 0, PAGE_SIZE);
	put_le32(guest(DATA_GPA), 0x1f80 | BIT(17));
	memset(st.gpr, 0, sizeof(st.gpr));
	st.gpr[R_BX] = DATA;
	st.gpr[R_SI] = DATA + PAGE_SIZE - 8;
	/* ldmxcsr [rbx]; pxor xmm0, xmm0; por xmm0, [rsi]; movhlps xmm1, xmm0; movq rax, xmm1 */
	r = RUN64("\x0f\xae\x13\x66\x0f\xef\xc0\x66\x0f\xeb\x06\x0f\x12\xc8\x66\x48\x0f\x7e\xc8");
	assert_int_equal(r.exit, EXIT_TRIPLE_FAULT);
	assert_int_not_equal(st.gpr[R_AX], UINT64_C(0x7777777777777777));
	finish();
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(stack32_wraps),
		cmocka_unit_test(stack32_upper_half),
		cmocka_unit_test(misaligned_sse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
