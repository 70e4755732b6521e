/* PUSHF, POPF, CLI, STI and IRET's flags for every CPL, IOPL and operand size (SDM vol. 2, tables of POPF and IRET). */
#include "fixture.h"

#define ALWAYS (FL_ARITH | FL_TF | FL_DF | FL_NT)
#define DEFINED (ALWAYS | FL_IF | FL_IOPL | FL_RF | FL_VM | FL_AC | FL_VIF | FL_VIP | FL_ID)

/* Which bits POPF takes from the image, as the manual's table says; RF is always cleared, VM, VIF and VIP stay. */
static uint64_t popf_expected(uint64_t old, uint64_t image, unsigned cpl, unsigned level, unsigned osz)
{
	uint64_t out = old & ~FL_RF;
	static const struct {
		uint64_t bit;
		bool wide;
	} plain[] = {{FL_CF, 0}, {FL_PF, 0}, {FL_AF, 0}, {FL_ZF, 0}, {FL_SF, 0}, {FL_TF, 0},
		     {FL_DF, 0}, {FL_OF, 0}, {FL_NT, 0}, {FL_AC, 1}, {FL_ID, 1}};

	for (unsigned i = 0; i < ARRAY_LEN(plain); i++) {
		if (osz > 2 || !plain[i].wide)
			out = (out & ~plain[i].bit) | (image & plain[i].bit);
	}
	if (cpl == 0)
		out = (out & ~FL_IOPL) | (image & FL_IOPL);
	if (cpl <= level)
		out = (out & ~FL_IF) | (image & FL_IF);
	return out | FL_FIXED;
}

static void popf_matrix(void **state)
{
	struct rig *r = *state;

	for (unsigned n = 0; n < 4 * 4 * 2 * 50; n++) {
		unsigned cpl = n & 3, level = (n >> 2) & 3, osz = (n & 16) ? 2 : 4;
		uint64_t old, image = rnd() & UINT32_MAX, expected;

		rig_prot(r, cpl);
		old = ((rnd() & DEFINED & ~(FL_VM | FL_IOPL)) | FL_FIXED) | (uint64_t)level << FL_IOPL_SHIFT;
		r->v.s.rflags = old;
		put_le32(rig_mem(r, r->v.s.gpr[R_SP] - 0x100), image);
		r->v.s.gpr[R_SP] -= 0x100;
		assert_true(osz == 2 ? RUN(r, 0x66, 0x9d) : RUN(r, 0x9d));
		expected = popf_expected(old, image, cpl, level, osz);
		assert_int_equal(r->v.s.rflags, expected);
	}
}

/* The 64-bit image, and what user mode can really do, against the CPU. */
static void popf_user_vs_host(void **state)
{
	struct rig *r = *state;

	for (unsigned n = 0; n < 2000; n++) {
		uint64_t image = rnd() & ~FL_TF & ~FL_AC & ~FL_NT, got;

		__asm__ volatile("sub $128, %%rsp; push %1; popf; pushf; pop %0; push $0x202; popf; add $128, %%rsp"
				 : "=&r"(got)
				 : "r"(image)
				 : "cc", "memory");
		rig_long(r, 3);
		r->v.s.rflags = FL_FIXED | FL_IF;
		put_le64(rig_mem(r, STACK3 - 8), image);
		r->v.s.gpr[R_SP] = STACK3 - 8;
		assert_true(RUN(r, 0x9d));
		assert_int_equal(r->v.s.rflags, got);
		assert_true(RUN(r, 0x9c));
		assert_int_equal(get_le64(rig_mem(r, STACK3 - 8)), got);
	}
}

static void pushf_image(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->v.s.rflags = FL_FIXED | FL_RF | FL_AC | FL_IF;
	assert_true(RUN(r, 0x9c));
	assert_int_equal(get_le32(rig_mem(r, STACK0 - 4)), FL_FIXED | FL_AC | FL_IF);
	assert_true(RUN(r, 0x66, 0x9c));
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 6);
}

static void cli_sti(void **state)
{
	struct rig *r = *state;

	for (unsigned n = 0; n < 16; n++) {
		unsigned cpl = n & 3, level = n >> 2;
		bool ok = cpl <= level;

		rig_prot(r, cpl);
		r->v.s.rflags = FL_FIXED | (uint64_t)level << FL_IOPL_SHIFT;
		assert_int_equal(RUN(r, 0xfb), ok);
		assert_int_equal(!!(r->v.s.rflags & FL_IF), ok);
		assert_int_equal(r->v.s.shadow_sti, ok);
		if (!ok)
			assert_fault(r, EXC_GP, 0);
		r->v.s.shadow_sti = 0;
		r->v.s.rflags |= FL_IF;
		assert_int_equal(RUN(r, 0xfb), ok);
		assert_int_equal(r->v.s.shadow_sti, 0); /* IF was set already */
		assert_int_equal(RUN(r, 0xfa), ok);
		assert_int_equal(!(r->v.s.rflags & FL_IF), ok);
	}
}

static void v86_flags(void **state)
{
	struct rig *r = *state;

	for (unsigned level = 0; level < 4; level++) {
		bool ok = level == 3;

		rig_v86(r, level);
		assert_int_equal(RUN(r, 0x9c), ok);
		put_le16(rig_mem(r, 0x1020 + 0x6ffe), 0x3fd7 & ~FL_IOPL); /* SS:SP */
		assert_int_equal(RUN(r, 0x9d), ok);
		assert_true(r->v.s.rflags & FL_VM);
		assert_int_equal(iopl(&r->v), level); /* IOPL does not change in VM86 */
		rig_v86(r, level);
		assert_int_equal(RUN(r, 0xfa), ok);
		assert_int_equal(RUN(r, 0xfb), ok);
		assert_int_equal(RUN(r, 0xcf), ok); /* iret */
		if (!ok)
			assert_fault(r, EXC_GP, 0);
	}
}

/* IRET within a ring and to ring 3: which flags change depends on the CPL before. */
static uint64_t iret_expected(uint64_t old, uint64_t image, unsigned cpl, unsigned level, unsigned osz)
{
	uint64_t change = ALWAYS | (osz > 2 ? FL_RF | FL_AC | FL_ID : 0);

	if (cpl <= level)
		change |= FL_IF;
	if (cpl == 0)
		change |= FL_IOPL | (osz > 2 ? FL_VIF | FL_VIP : 0);
	return (old & ~change) | (image & change) | FL_FIXED;
}

static void iret_matrix(void **state)
{
	struct rig *r = *state;

	for (unsigned n = 0; n < 4 * 4 * 2 * 2 * 30; n++) {
		unsigned cpl = n & 3, level = (n >> 2) & 3, osz = (n & 16) ? 2 : 4, to = (n & 32) ? 3 : cpl;
		uint64_t old, image = rnd() & UINT32_MAX & ~FL_VM;
		uint8_t *frame;

		rig_prot(r, cpl);
		rig_desc(r, FREE, 0, UINT32_MAX, A_CODE | SEG_DB | SEG_G | A_DPL(to));
		rig_desc(r, FREE + 8, 0, UINT32_MAX, A_DATA | SEG_DB | SEG_G | A_DPL(to));
		old = (rnd() & DEFINED & ~(FL_VM | FL_IOPL | FL_NT)) | FL_FIXED | (uint64_t)level << FL_IOPL_SHIFT;
		r->v.s.rflags = old;
		r->v.s.nmi_masked = 1;
		frame = rig_mem(r, r->v.s.gpr[R_SP] -= 0x100);
		for (unsigned i = 0; i < 5; i++) {
			uint32_t slot[] = {0x4321, FREE | to, image, 0x7654, (FREE + 8) | to};

			memcpy(frame + i * osz, &slot[i], osz);
		}
		assert_true(osz == 2 ? RUN(r, 0x66, 0xcf) : RUN(r, 0xcf));
		assert_int_equal(r->v.s.rflags, iret_expected(old, image, cpl, level, osz));
		assert_int_equal(r->v.s.rip, 0x4321);
		assert_int_equal(cpu_cpl(&r->v.s), to);
		assert_int_equal(r->v.s.nmi_masked, 0);
		assert_int_equal(r->v.s.gpr[R_SP], to != cpl ? 0x7654 : (cpl ? STACK3 : STACK0) - 0x100 + 3 * osz);
		if (to != cpl) /* ring-0..2 data segments are gone */
			assert_int_equal(!!(r->v.s.seg[SEG_DS].attr & SEG_UNUSABLE), 1);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(popf_matrix), TEST(popf_user_vs_host), TEST(pushf_image),
					   TEST(cli_sti),     TEST(v86_flags),	       TEST(iret_matrix)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
