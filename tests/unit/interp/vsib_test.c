/* Gathers, scatters, masked stores, bit strings and BOUND against the CPU's own, and their behaviour on faults. */
#include "fixture.h"

#include <cpuid.h>
#include <sys/mman.h>

#define AREA 0x20000
#define AREA_LEN 0x8000
#define MIDDLE 0x4000

static uint8_t host_area[AREA_LEN];
static uint8_t image[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
static uint8_t keep[XSAVE_AREA_SIZE] __attribute__((aligned(64)));

/* With `image` loaded and rsi = rdi = the middle of the area, run the instruction and store the state in after. */
static void on_cpu(const uint8_t *bytes, unsigned len, uint8_t *after)
{
	uint8_t *code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(code, MAP_FAILED);
	memcpy(code, bytes, len);
	code[len] = 0xc3;
	__asm__ volatile("sub $128, %%rsp; mov $-1, %%eax; mov $-1, %%edx; xsave64 (%[keep]); xrstor64 (%[image]); "
			 "call *%[code];"
			 "xsave64 (%[after]); xrstor64 (%[keep]); add $128, %%rsp"
			 :
			 : [keep] "r"(keep), [image] "r"(image), [after] "r"(after), [code] "r"(code),
			   "S"(host_area + MIDDLE), "D"(host_area + MIDDLE)
			 : "rax", "rdx", "memory", "cc");
	munmap(code, PAGE_SIZE);
}

struct vsib_case {
	uint8_t op;
	bool evex, wide;
	unsigned l, dst, index, mask, scale;
};

static unsigned encode(const struct vsib_case *c, uint8_t *b)
{
	unsigned n = 0;

	if (c->evex) {
		b[n++] = 0x62;
		b[n++] =
			((c->dst & 8) ? 0 : 0x80) | ((c->index & 8) ? 0 : 0x40) | 0x20 | ((c->dst & 16) ? 0 : 0x10) | 2;
		b[n++] = (c->wide ? 0x80 : 0) | 0x7d;
		b[n++] = c->l << 5 | ((c->index & 16) ? 0 : 8) | c->mask;
	} else {
		b[n++] = 0xc4;
		b[n++] = ((c->dst & 8) ? 0 : 0x80) | ((c->index & 8) ? 0 : 0x40) | 0x20 | 2;
		b[n++] = (c->wide ? 0x80 : 0) | (~c->mask & 15) << 3 | c->l << 2 | 1;
	}
	b[n++] = c->op;
	b[n++] = 0x80 | (c->dst & 7) << 3 | 4;
	b[n++] = c->scale << 6 | (c->index & 7) << 3 | 6;
	put_le32(b + n, (uint32_t)(rnd() % 64));
	return n + 4;
}

static uint64_t xcr0_of(struct rig *r) { return r->policy.xcr0_allowed; }

static void random_state(struct rig *r, const struct vsib_case *c)
{
	unsigned isize = (c->op & 1) ? 8 : 4;
	uint8_t idx[64];

	memset(image, 0, sizeof(image));
	put_le16(image, 0x37f);
	put_le32(image + 24, 0x1f80);
	put_le64(image + 512, xcr0_of(r));
	for (unsigned i = 160; i < 416; i += 8)
		put_le64(image + i, rnd());
	for (unsigned i = 576; i < XSAVE_AREA_SIZE; i += 8)
		put_le64(image + i, rnd());
	rig_long(r, 3);
	r->v.s.cr4 |= CR4_OSXSAVE | CR4_OSFXSR;
	r->v.s.xcr0 = xcr0_of(r);
	memcpy(r->v.s.xsave, image, sizeof(image));
	for (unsigned i = 0; i < 64; i += isize) {
		int64_t index = (int64_t)(rnd() % 0x600) - 0x300;

		memcpy(idx + i, &index, isize);
	}
	xs_vector_set(&r->v, c->index, idx, c->evex ? 64 : 32);
	memcpy(image, r->v.s.xsave, sizeof(image));
	for (unsigned i = 0; i < AREA_LEN; i++)
		host_area[i] = (uint8_t)rnd();
	memcpy(rig_mem(r, AREA), host_area, AREA_LEN);
	r->v.s.gpr[R_SI] = r->v.s.gpr[R_DI] = AREA + MIDDLE;
}

static void same_result(struct rig *r, const uint8_t *after)
{
	uint8_t want[XSAVE_AREA_SIZE], got[XSAVE_AREA_SIZE];

	rig_xstate(r, after, xcr0_of(r), want);
	rig_xstate(r, r->v.s.xsave, xcr0_of(r), got);
	assert_memory_equal(got + 160, want + 160, XSAVE_AREA_SIZE - 160);
	assert_memory_equal(rig_mem(r, AREA), host_area, AREA_LEN);
}

static struct vsib_case random_case(bool evex, bool scatter)
{
	struct vsib_case c;
	unsigned regs = evex ? 32 : 16;

	do {
		c = (struct vsib_case){.op = (scatter ? 0xa0 : 0x90) + rnd() % 4,
				       .evex = evex,
				       .wide = rnd() & 1,
				       .l = rnd() % (evex ? 3 : 2),
				       .dst = rnd() % regs,
				       .index = rnd() % regs,
				       .mask = evex ? 1 + rnd() % 7 : rnd() % 16,
				       .scale = rnd() % 4};
	} while (c.dst == c.index || (!evex && (c.mask == c.dst || c.mask == c.index)));
	return c;
}

static void compare(struct rig *r, bool evex, bool scatter)
{
	struct vsib_case c = random_case(evex, scatter);
	uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0}, bytes[16];
	unsigned len = encode(&c, bytes);

	random_state(r, &c);
	on_cpu(bytes, len, after);
	assert_true(rig_run(r, bytes, len));
	assert_int_equal(r->v.s.rip, CODE + len);
	same_result(r, after);
}

/* A page in the way: elements below the fault are done and unmasked; once it is gone the rest follows. */
static void compare_with_fault(struct rig *r, bool evex, bool scatter)
{
	struct vsib_case c = random_case(evex, scatter);
	uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0}, bytes[16];
	unsigned len = encode(&c, bytes), faults = 0;

	random_state(r, &c);
	on_cpu(bytes, len, after);
	for (unsigned p = AREA >> PAGE_SHIFT; p < (AREA + AREA_LEN) >> PAGE_SHIFT; p++)
		r->mmu.page[p] = PAGE_FAULTS;
	while (!rig_run(r, bytes, len)) {
		assert_int_equal(r->v.exc.vector, EXC_PF);
		assert_int_equal(r->v.s.rip, CODE);
		assert_in_range(r->v.s.cr2, AREA, AREA + AREA_LEN - 1);
		r->mmu.page[r->v.s.cr2 >> PAGE_SHIFT] = 0;
		assert_true(++faults <= AREA_LEN / PAGE_SIZE);
	}
	memset(r->mmu.page, 0, sizeof(r->mmu.page));
	same_result(r, after);
}

static void avx2_gathers(void **state)
{
	for (unsigned i = 0; i < 2000; i++) {
		compare(*state, false, false);
		compare_with_fault(*state, false, false);
	}
}

static void avx512(void **state)
{
	if ((xcr0_of(*state) & XS_AVX512) != XS_AVX512)
		skip();
	for (unsigned i = 0; i < 2000; i++) {
		compare(*state, true, false);
		compare(*state, true, true);
		compare_with_fault(*state, true, false);
		compare_with_fault(*state, true, true);
	}
}

static void refused(void **state)
{
	struct rig *r = *state;
	struct vsib_case c = random_case(false, false);
	uint8_t bytes[16];
	unsigned len;

	random_state(r, &c);
	c.mask = c.dst;
	len = encode(&c, bytes);
	if (insn_decode(bytes, len, MODE_64, &r->in) == DECODE_OK) {
		assert_false(interp_exec(&r->v, &r->in));
		assert_fault_noerr(r, EXC_UD);
	}
	c = random_case(false, false);
	len = encode(&c, bytes);
	r->v.s.cr0 |= CR0_TS;
	assert_false(rig_run(r, bytes, len));
	assert_fault_noerr(r, EXC_NM);
	r->v.s.xcr0 = 3;
	assert_false(rig_run(r, bytes, len));
	assert_fault_noerr(r, EXC_UD);
}

static void masked_stores(void **state)
{
	static const struct {
		uint8_t bytes[5];
		unsigned len;
	} c[] = {{{0x66, 0x0f, 0xf7, 0xca}, 4},
		 {{0x66, 0x45, 0x0f, 0xf7, 0xfe}, 5},
		 {{0xc5, 0xf9, 0xf7, 0xca}, 4},
		 {{0x0f, 0xf7, 0xca}, 3}};
	struct rig *r = *state;

	for (unsigned i = 0; i < 1000; i++) {
		uint8_t after[XSAVE_AREA_SIZE] __attribute__((aligned(64))) = {0};
		struct vsib_case none = {.index = 3};

		random_state(r, &none);
		for (unsigned j = 32; j < 160; j += 16)
			put_le64(image + j, rnd());
		put_le16(image + 2, rnd() & 0x3800);
		memcpy(r->v.s.xsave, image, sizeof(image));
		on_cpu(c[i % 4].bytes, c[i % 4].len, after);
		assert_true(rig_run(r, c[i % 4].bytes, c[i % 4].len));
		same_result(r, after);
		assert_memory_equal(r->v.s.xsave + 2, after + 2, 3); /* FSW, FTW */
		for (unsigned j = 32; j < 160; j += 16)
			assert_memory_equal(r->v.s.xsave + j, after + j, 8);
	}
}

/* BT, BTS, BTR, BTC with offsets far outside the operand. */
static void bit_strings(void **state)
{
	static const uint8_t ops[] = {0xa3, 0xab, 0xb3, 0xbb};
	struct rig *r = *state;

	for (unsigned i = 0; i < 4000; i++) {
		uint8_t b[8];
		unsigned n = 0, op = rnd() % 4, size = 2u << (rnd() % 3);
		int64_t index = (int64_t)(rnd() % 60000) - 30000;
		struct host_regs h = {
			.rcx = (uint64_t)index, .rsi = (uintptr_t)host_area + MIDDLE, .rflags = rnd() & FL_ARITH};
		struct vsib_case none = {0};

		random_state(r, &none);
		r->v.s.rflags = FL_FIXED | (h.rflags & FL_ARITH);
		if (op && (rnd() & 1))
			b[n++] = 0xf0;
		if (size == 2)
			b[n++] = 0x66;
		if (size == 8)
			b[n++] = 0x48;
		b[n++] = 0x0f;
		b[n++] = ops[op];
		b[n++] = 0x0e; /* [rsi], rcx */
		r->v.s.gpr[R_CX] = (uint64_t)index;
		host_run(b, n, &h);
		assert_true(rig_run(r, b, n));
		assert_int_equal(r->v.s.rflags & FL_CF, h.rflags & FL_CF);
		assert_int_equal(r->v.s.rflags & FL_ZF, h.rflags & FL_ZF);
		assert_memory_equal(rig_mem(r, AREA), host_area, AREA_LEN);
	}
}

static void bound(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	put_le32(rig_mem(r, 0x5000), (uint32_t)-5);
	put_le32(rig_mem(r, 0x5004), 7);
	r->v.s.gpr[R_DI] = 0x5000;
	for (int i = -8; i < 10; i++) {
		r->v.s.gpr[R_AX] = (uint32_t)i;
		assert_int_equal(RUN(r, 0x62, 0x07), i >= -5 && i <= 7);
		if (i < -5 || i > 7)
			assert_fault_noerr(r, EXC_BR);
	}
}

static void clzero(void **state)
{
	struct rig *r = *state;

	rig_long(r, 3);
	if (!cpuid_has(&r->policy, 0x80000008, 0, CPUID_EBX, 0)) {
		assert_false(RUN(r, 0x0f, 0x01, 0xfc));
		assert_fault_noerr(r, EXC_UD);
		return;
	}
	memset(rig_mem(r, 0x5000), 0xff, 0x100);
	r->v.s.gpr[R_AX] = 0x5079;
	assert_true(RUN(r, 0x0f, 0x01, 0xfc));
	for (unsigned i = 0; i < 0x100; i++)
		assert_int_equal(rig_mem(r, 0x5000)[i], i >= 0x40 && i < 0x80 ? 0 : 0xff);
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(avx2_gathers), TEST(avx512), TEST(refused), TEST(masked_stores),
					   TEST(bit_strings),  TEST(bound),  TEST(clzero)};
	uint32_t a, b, c, d;

	/* The CPU is the authority. */
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2))
		return 77;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
