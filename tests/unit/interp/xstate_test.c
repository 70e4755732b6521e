/*
 * XSAVE family, FXSAVE and the x87 environment: what the routines write and load, against the CPU's own instructions
 * run on the same state. Pointers (FIP, FDP) are zero in ours by design.
 */
#include "fixture.h"

#include <cpuid.h>

#define AREA 0x20000

static uint8_t image[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
static uint8_t mine[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
static uint8_t keep[XSAVE_AREA_SIZE] __attribute__((aligned(64)));

/* With the state of `image` loaded, run `insn` (operand in rdi, mask in edx:eax), store all state in `after`. */
#define ON_CPU(name, insn)                                                                                             \
	static void name(uint8_t *area, uint64_t mask, uint8_t *after)                                                 \
	{                                                                                                              \
		__asm__ volatile("mov $-1, %%eax; mov $-1, %%edx; xsave64 (%[keep]); xrstor64 (%[image]); mov "        \
				 "%[mask], %%rax; mov %[mask], %%rdx;"                                                 \
				 "shr $32, %%rdx; " insn                                                               \
				 "; mov $-1, %%eax; mov $-1, %%edx; xsave64 (%[after]); xrstor64 (%[keep])"            \
				 :                                                                                     \
				 : [keep] "r"(keep), [image] "r"(image), [mask] "r"(mask), [after] "r"(after),         \
				   "D"(area)                                                                           \
				 : "rax", "rdx", "memory", "cc");                                                      \
	}
ON_CPU(cpu_xsave, "xsave64 (%%rdi)")
ON_CPU(cpu_xsaveopt, "xsaveopt64 (%%rdi)")
ON_CPU(cpu_xsavec, "xsavec64 (%%rdi)")
ON_CPU(cpu_xrstor, "xrstor64 (%%rdi)")
ON_CPU(cpu_fxsave, "fxsave64 (%%rdi)")
ON_CPU(cpu_fxrstor, "fxrstor64 (%%rdi)")
ON_CPU(cpu_fnstenv, "fnstenv (%%rdi)")
ON_CPU(cpu_fnstenv16, "data16 fnstenv (%%rdi)")
ON_CPU(cpu_fldenv, "fldenv (%%rdi)")
ON_CPU(cpu_fnsave, "fnsave (%%rdi)")
ON_CPU(cpu_frstor, "frstor (%%rdi)")

typedef void cpu_fn(uint8_t *area, uint64_t mask, uint8_t *after);

static uint64_t host_xcr0(void)
{
	uint32_t lo, hi;

	__asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

/* Random register contents in the standard format, with random components in their initial state. */
static void random_image(uint64_t xcr0)
{
	for (unsigned i = 0; i < sizeof(image); i += 8)
		put_le64(image + i, rnd());
	memset(image + 416, 0, 160);
	put_le16(image, 0x37f);			       /* FCW: everything masked */
	put_le16(image + 2, rnd() & 0x7f7f & ~0x8080); /* FSW */
	image[5] = 0;
	put_le16(image + 6, 0);
	memset(image + 8, 0, 16);
	put_le32(image + 24, rnd() % 3 ? 0x1f80 : 0x1f80 | (rnd() & 0x603f));
	put_le32(image + 28, 0);
	for (unsigned i = 0; i < 8; i++)
		memset(image + 32 + 16 * i + 10, 0, 6);
	put_le64(image + 512, rnd() & xcr0);
}

/* The routines' vCPU in the same state, as the engine would have stored it. */
static void same_state(struct rig *r, uint64_t xcr0)
{
	uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0};
	uint8_t scratch[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0};

	rig_long(r, 0);
	r->v.s.cr4 |= CR4_OSXSAVE | CR4_OSFXSR;
	r->v.s.xcr0 = xcr0;
	cpu_xsave(scratch, 0, after);
	memcpy(r->v.s.xsave, after, sizeof(after));
	/* what is in its initial state may hold anything there */
	for (unsigned i = 160; i < 416; i++) {
		if (!(get_le64(after + 512) & 2))
			r->v.s.xsave[i] = (uint8_t)rnd();
	}
}

/*
 * A context switch between loading the state and storing it may make a component count as used that was initial, and
 * XSAVEOPT then writes it: a difference counts when it shows every time.
 */
#define ATTEMPTS 4

/* Compare stores by the CPU and by us over the same old bytes. */
static void compare_store(struct rig *r, cpu_fn *cpu, const uint8_t *bytes, unsigned len, uint64_t xcr0, bool state_too)
{
	uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0}, old[XSAVE_AREA_SIZE];
	uint64_t mask = rnd() % 4 ? rnd() : ~UINT64_C(0), start = r->v.s.rip;

	random_image(xcr0);
	for (unsigned i = 0; i < sizeof(mine); i++)
		mine[i] = (uint8_t)rnd();
	memset(mine + 512, 0, 64);
	put_le64(mine + 512, rnd() & xcr0);
	memcpy(old, mine, sizeof(old));
	for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
		same_state(r, xcr0);
		memcpy(mine, old, sizeof(mine));
		memcpy(rig_mem(r, AREA), old, sizeof(old));
		cpu(mine, mask, after);
		r->v.s.rip = start;
		r->v.s.gpr[R_AX] = mask & UINT32_MAX;
		r->v.s.gpr[R_DX] = mask >> 32;
		r->v.s.gpr[R_DI] = AREA;
		assert_true(rig_run(r, bytes, len));
		if (!memcmp(rig_mem(r, AREA), mine, sizeof(mine)))
			break;
	}
	assert_memory_equal(rig_mem(r, AREA), mine, sizeof(mine));
	if (state_too) {
		assert_int_equal(get_le64(r->v.s.xsave + 512) & 1, 1);
		assert_memory_equal(r->v.s.xsave, after, 6);
		assert_memory_equal(r->v.s.xsave + 32, after + 32, 128);
	}
}

#define STORE(cpu, state_too, ...)                                                                                     \
	compare_store(*state, cpu, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), xcr0,       \
		      state_too)

static void stores(void **state)
{
	uint64_t xcr0 = host_xcr0() & ((struct rig *)*state)->policy.xcr0_allowed;

	for (unsigned i = 0; i < 500; i++) {
		STORE(cpu_xsave, false, 0x48, 0x0f, 0xae, 0x27);
		STORE(cpu_xsaveopt, false, 0x48, 0x0f, 0xae, 0x37);
		STORE(cpu_xsavec, false, 0x48, 0x0f, 0xc7, 0x27);
		STORE(cpu_fxsave, false, 0x48, 0x0f, 0xae, 0x07);
		STORE(cpu_fnstenv, true, 0xd9, 0x37);
		STORE(cpu_fnstenv16, true, 0x66, 0xd9, 0x37);
		STORE(cpu_fnsave, true, 0xdd, 0x37);
	}
}

static void compare_load(struct rig *r, cpu_fn *cpu, const uint8_t *bytes, unsigned len, uint64_t xcr0)
{
	uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0};
	uint8_t want[XSAVE_AREA_SIZE], got[XSAVE_AREA_SIZE];
	uint64_t mask = rnd() % 4 ? rnd() : ~UINT64_C(0);

	same_state(r, xcr0);
	memcpy(rig_mem(r, AREA), mine, sizeof(mine));
	cpu(mine, mask, after);
	r->v.s.gpr[R_AX] = mask & UINT32_MAX;
	r->v.s.gpr[R_DX] = mask >> 32;
	r->v.s.gpr[R_DI] = AREA;
	assert_true(rig_run(r, bytes, len));
	rig_xstate(r, after, xcr0, want);
	rig_xstate(r, r->v.s.xsave, xcr0, got);
	assert_memory_equal(got, want, sizeof(want));
}

#define LOAD(cpu, ...)                                                                                                 \
	compare_load(r, cpu, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}), xcr0)

static void loads(void **state)
{
	struct rig *r = *state;
	uint64_t xcr0 = host_xcr0() & r->policy.xcr0_allowed;
	uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64)));

	for (unsigned i = 0; i < 500; i++) {
		random_image(xcr0);
		memset(mine, 0, sizeof(mine));
		cpu_xsave(mine, ~UINT64_C(0), after);
		put_le64(mine + 512, rnd() & xcr0);
		random_image(xcr0);
		LOAD(cpu_xrstor, 0x48, 0x0f, 0xae, 0x2f);
		random_image(xcr0);
		memset(mine, 0, sizeof(mine));
		cpu_xsavec(mine, rnd(), after);
		random_image(xcr0);
		LOAD(cpu_xrstor, 0x48, 0x0f, 0xae, 0x2f);
		random_image(xcr0);
		memset(mine, 0, sizeof(mine));
		cpu_fxsave(mine, 0, after);
		random_image(xcr0);
		LOAD(cpu_fxrstor, 0x48, 0x0f, 0xae, 0x0f);
		random_image(xcr0);
		memset(mine, 0, sizeof(mine));
		cpu_fnsave(mine, 0, after);
		random_image(xcr0);
		LOAD(cpu_frstor, 0xdd, 0x27);
		put_le16(mine, rnd());
		put_le16(mine + 4, rnd());
		put_le16(mine + 8, rnd());
		random_image(xcr0);
		LOAD(cpu_fldenv, 0xd9, 0x27);
	}
}

static void header_checks(void **state)
{
	struct rig *r = *state;
	uint64_t xcr0 = r->policy.xcr0_allowed;

	static const struct {
		unsigned off;
		uint64_t value;
		bool compact;
	} bad[] = {
		{512, BIT(62), false}, {520, 1, false}, {528, 1, false}, {520, BIT(63) | BIT(62), true}, {512, 4, true},
		{528, 1, true},	       {536, 1, true},	{568, 1, true},	 {24, BIT(31), false},
	};
	for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
		struct cpu_state before;

		random_image(xcr0);
		same_state(r, xcr0);
		memset(rig_mem(r, AREA), 0, XSAVE_AREA_SIZE);
		if (bad[i].compact)
			put_le64(rig_mem(r, AREA + 520), BIT(63) | 3);
		put_le64(rig_mem(r, AREA + bad[i].off), bad[i].value);
		r->v.s.gpr[R_AX] = r->v.s.gpr[R_DX] = UINT32_MAX;
		r->v.s.gpr[R_DI] = AREA;
		before = r->v.s;
		assert_false(RUN(r, 0x48, 0x0f, 0xae, 0x2f));
		assert_fault(r, EXC_GP, 0);
		assert_memory_equal(&before, &r->v.s, sizeof(before));
	}
	r->v.s.gpr[R_DI] = AREA + 16;
	assert_false(RUN(r, 0x48, 0x0f, 0xae, 0x27)); /* alignment */
	assert_fault(r, EXC_GP, 0);
	assert_true(RUN(r, 0x48, 0x0f, 0xae, 0x07)); /* FXSAVE: 16 is enough */
	r->v.s.gpr[R_DI] = AREA + 8;
	assert_false(RUN(r, 0x48, 0x0f, 0xae, 0x0f));
	assert_fault(r, EXC_GP, 0);
	r->v.s.gpr[R_DI] = AREA;
	r->v.s.cr0 |= CR0_TS;
	assert_false(RUN(r, 0x48, 0x0f, 0xae, 0x27));
	assert_fault_noerr(r, EXC_NM);
	assert_false(RUN(r, 0xd9, 0x37));
	assert_fault_noerr(r, EXC_NM);
	r->v.s.cr4 &= ~CR4_OSXSAVE;
	assert_false(RUN(r, 0x48, 0x0f, 0xae, 0x27));
	assert_fault_noerr(r, EXC_UD);
	/* XRSTORS takes the compacted format only, in ring 0 only */
	same_state(r, xcr0);
	memset(rig_mem(r, AREA), 0, XSAVE_AREA_SIZE);
	r->v.s.gpr[R_DI] = AREA;
	if (cpuid_has(&r->policy, 0xd, 1, CPUID_EAX, 3)) {
		assert_false(RUN(r, 0x48, 0x0f, 0xc7, 0x1f));
		assert_fault(r, EXC_GP, 0);
		put_le64(rig_mem(r, AREA + 520), BIT(63) | 3);
		assert_true(RUN(r, 0x48, 0x0f, 0xc7, 0x1f));
	}
}

/* The area lies across a page whose second half cannot be written: nothing is. */
static void partial_page(void **state)
{
	struct rig *r = *state;

	random_image(r->policy.xcr0_allowed);
	same_state(r, r->policy.xcr0_allowed);
	r->mmu.page[0x22] = PAGE_READONLY;
	memset(rig_mem(r, 0x21000), 0x11, 0x2000);
	r->v.s.gpr[R_AX] = r->v.s.gpr[R_DX] = UINT32_MAX;
	r->v.s.gpr[R_DI] = 0x22000 - 256;
	assert_false(RUN(r, 0x48, 0x0f, 0xae, 0x27));
	assert_fault(r, EXC_PF, PF_P | PF_W);
	for (unsigned i = 0; i < 0x1000; i++)
		assert_int_equal(rig_mem(r, 0x21000)[i], 0x11);
	r->mmu.page[0x22] = 0;
}

/* Outside 64-bit mode registers 8-15 are neither saved nor loaded. */
static void legacy_registers(void **state)
{
	struct rig *r = *state;
	uint8_t before[XSAVE_AREA_SIZE];

	random_image(r->policy.xcr0_allowed);
	put_le64(image + 512, r->policy.xcr0_allowed);
	same_state(r, r->policy.xcr0_allowed);
	memcpy(before, r->v.s.xsave, sizeof(before));
	rig_mem(r, AREA)[0] = 0;
	r->v.s.seg[SEG_CS] = seg_flat_code(CODE0, 0, false);
	memset(rig_mem(r, AREA), 0x22, XSAVE_AREA_SIZE);
	memset(rig_mem(r, AREA + 512), 0, 64);
	r->v.s.gpr[R_AX] = 7;
	r->v.s.gpr[R_DX] = 0;
	r->v.s.gpr[R_DI] = AREA;
	assert_true(RUN(r, 0x0f, 0xae, 0x27));
	assert_memory_equal(rig_mem(r, AREA + 160), before + 160, 128);
	for (unsigned i = 288; i < 416; i++)
		assert_int_equal(rig_mem(r, AREA + i)[0], 0x22);
	put_le64(rig_mem(r, AREA + 512), 0); /* everything to its initial state */
	assert_true(RUN(r, 0x0f, 0xae, 0x2f));
	for (unsigned i = 160; i < 288; i++)
		assert_int_equal(r->v.s.xsave[i], 0);
	assert_memory_equal(r->v.s.xsave + 288, before + 288, 128);
	assert_true(get_le64(r->v.s.xsave + 512) & XS_SSE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(stores), TEST(loads), TEST(header_checks), TEST(partial_page),
					   TEST(legacy_registers)};
	uint32_t a, b, c, d;

	/* The CPU is the authority: it needs the whole family. */
	__cpuid(1, a, b, c, d);
	if (!(c & bit_OSXSAVE))
		return 77;
	__cpuid_count(0xd, 1, a, b, c, d);
	if ((a & 3) != 3)
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
