/* Far transfers: segments, call gates with parameters, rings, RETF, long mode, SYSCALL and SYSENTER of both vendors. */
#include "fixture.h"

static uint32_t stack32(struct rig *r, unsigned slot) { return get_le32(rig_mem(r, r->v.s.gpr[R_SP] + 4 * slot)); }
static uint64_t stack64(struct rig *r, unsigned slot) { return get_le64(rig_mem(r, r->v.s.gpr[R_SP] + 8 * slot)); }

static void real_far(void **state)
{
	struct rig *r = *state;

	rig_real(r);
	assert_true(RUN(r, 0x9a, 0x34, 0x12, 0x00, 0x20)); /* call 2000:1234 */
	assert_int_equal(r->v.s.seg[SEG_CS].base, 0x20000);
	assert_int_equal(r->v.s.rip, 0x1234);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 4)), 5);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 2)), CODE >> 4);
	assert_true(RUN(r, 0xca, 0x04, 0x00)); /* retf 4 */
	assert_int_equal(r->v.s.seg[SEG_CS].base, CODE);
	assert_int_equal(r->v.s.rip, 5);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 + 4);
	assert_false(RUN(r, 0x66, 0xea, 0, 0, 1, 0, 0, 0x20)); /* beyond 64 KiB */
	assert_fault(r, EXC_GP, 0);
}

struct jump_case {
	unsigned cpl, rpl;
	uint32_t attr;
	int vector;
};

#define CODE_SEG (SEG_P | SEG_S | 0xa)
#define CONF_SEG (SEG_P | SEG_S | 0xe)

static void direct(void **state)
{
	static const struct jump_case c[] = {
		{0, 0, CODE_SEG, -1},
		{0, 3, CODE_SEG, EXC_GP},
		{3, 3, CODE_SEG, EXC_GP},
		{3, 3, CODE_SEG | A_DPL(3), -1},
		{3, 0, CODE_SEG | A_DPL(3), -1},
		{0, 0, CODE_SEG | A_DPL(3), EXC_GP},
		{3, 3, CONF_SEG, -1},
		{0, 0, CONF_SEG | A_DPL(3), EXC_GP},
		{0, 0, CODE_SEG & ~SEG_P, EXC_NP},
		{0, 0, SEG_P | SEG_S | 2, EXC_GP},
		{0, 0, SEG_P | 2, EXC_GP},
		{0, 0, SEG_P | 0xe, EXC_GP},
		{1, 1, CODE_SEG | A_DPL(1), -1},
		{1, 0, CONF_SEG, -1},
	};
	struct rig *r = *state;

	for (unsigned i = 0; i < 2 * ARRAY_LEN(c); i++) {
		const struct jump_case *k = &c[i / 2];
		bool call = i & 1;
		struct cpu_state before;

		rig_prot(r, k->cpl);
		rig_desc(r, FREE, 0, UINT32_MAX, k->attr | SEG_DB | SEG_G);
		before = r->v.s;
		assert_int_equal(RUN(r, call ? 0x9a : 0xea, 0x78, 0x56, 0x34, 0x12, FREE | k->rpl, 0), k->vector < 0);
		if (k->vector >= 0) {
			assert_fault(r, k->vector, FREE);
			assert_memory_equal(&before, &r->v.s, sizeof(before));
			continue;
		}
		assert_int_equal(r->v.s.rip, 0x12345678);
		assert_int_equal(r->v.s.seg[SEG_CS].sel, FREE | k->cpl); /* CPL stays */
		assert_int_equal(cpu_cpl(&r->v.s), k->cpl);
		if (call)
			assert_int_equal(stack32(r, 0), CODE + 7);
	}
}

static void gate_setup(struct rig *r, unsigned cpl, unsigned type, unsigned dpl, unsigned params, uint16_t target)
{
	rig_prot(r, cpl);
	rig_gate(r, GDT + FREE, target, 0x4000, type, dpl, params);
}

static void gate_to_inner(void **state)
{
	struct rig *r = *state;

	gate_setup(r, 3, 0xc, 3, 3, CODE0);
	r->v.s.gpr[R_SP] = STACK3 - 12;
	for (unsigned i = 0; i < 3; i++)
		put_le32(rig_mem(r, STACK3 - 12 + 4 * i), 0x11110000 + i);
	assert_true(RUN(r, 0x9a, 0xff, 0xff, 0xff, 0xff, FREE | 3, 0)); /* the offset does not matter */
	assert_int_equal(r->v.s.rip, 0x4000);
	assert_int_equal(cpu_cpl(&r->v.s), 0);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 28);
	assert_int_equal(stack32(r, 0), CODE + 7);
	assert_int_equal(stack32(r, 1), CODE3);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(stack32(r, 2 + i), 0x11110000 + i);
	assert_int_equal(stack32(r, 5), STACK3 - 12);
	assert_int_equal(stack32(r, 6), DATA3);
	r->v.s.seg[SEG_DS] = (struct cpu_seg){.sel = DATA0, .limit = UINT32_MAX, .attr = A_DATA | SEG_DB | SEG_G};
	assert_true(RUN(r, 0xca, 0x0c, 0x00)); /* retf 12: drops the parameters on both stacks */
	assert_int_equal(cpu_cpl(&r->v.s), 3);
	assert_int_equal(r->v.s.gpr[R_SP], STACK3);
	assert_int_equal(r->v.s.rip, CODE + 7);
	assert_true(r->v.s.seg[SEG_DS].attr & SEG_UNUSABLE);
	assert_false(r->v.s.seg[SEG_ES].attr & SEG_UNUSABLE);
}

static void gate_286(void **state)
{
	struct rig *r = *state;

	gate_setup(r, 3, 4, 3, 1, CODE0);
	r->v.s.gpr[R_SP] = STACK3 - 2;
	put_le16(rig_mem(r, STACK3 - 2), 0xabcd);
	assert_true(RUN(r, 0x9a, 0, 0, 0, 0, FREE | 3, 0));
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 10);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 10)), (CODE + 7) & 0xffff);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 6)), 0xabcd);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 2)), DATA3);
}

static void gate_checks(void **state)
{
	struct rig *r = *state;

	gate_setup(r, 3, 0xc, 0, 0, CODE0); /* gate DPL below CPL */
	assert_false(RUN(r, 0x9a, 0, 0, 0, 0, FREE | 3, 0));
	assert_fault(r, EXC_GP, FREE);
	gate_setup(r, 3, 0xc, 3, 0, CODE0); /* JMP cannot change the ring */
	assert_false(RUN(r, 0xea, 0, 0, 0, 0, FREE | 3, 0));
	assert_fault(r, EXC_GP, CODE0);
	gate_setup(r, 3, 0xc, 3, 0, CONF0); /* but reaches conforming code */
	assert_true(RUN(r, 0xea, 0, 0, 0, 0, FREE | 3, 0));
	assert_int_equal(r->v.s.seg[SEG_CS].sel, CONF0 | 3);
	gate_setup(r, 3, 0xc, 3, 0, 0);
	assert_false(RUN(r, 0x9a, 0, 0, 0, 0, FREE | 3, 0));
	assert_fault(r, EXC_GP, 0);
	gate_setup(r, 0, 0xc, 3, 0, CODE3); /* outward */
	assert_false(RUN(r, 0x9a, 0, 0, 0, 0, FREE, 0));
	assert_fault(r, EXC_GP, CODE3 & 0xfffc);
	gate_setup(r, 3, 0xc, 3, 0, CODE0);
	rig_mem(r, GDT + FREE + 5)[0] &= 0x7f;
	assert_false(RUN(r, 0x9a, 0, 0, 0, 0, FREE | 3, 0));
	assert_fault(r, EXC_NP, FREE);
	gate_setup(r, 3, 0xc, 3, 0, CODE0);
	put_le16(rig_mem(r, TSS + 8), 0);
	assert_false(RUN(r, 0x9a, 0, 0, 0, 0, FREE | 3, 0));
	assert_fault(r, EXC_TS, 0);
	rig_prot(r, 0);
	assert_false(RUN(r, 0xea, 0, 0, 0, 0, TSS_SEL, 0));
	assert_non_null(r->v.fatal);
	r->v.fatal = NULL;
}

static void long_mode_gate(void **state)
{
	struct rig *r = *state;

	for (unsigned compat = 0; compat < 2; compat++) {
		rig_long(r, 3);
		if (compat)
			r->v.s.seg[SEG_CS] = (struct cpu_seg){
				.sel = CODE3, .limit = UINT32_MAX, .attr = A_CODE | SEG_DB | SEG_G | A_DPL(3)};
		rig_gate(r, GDT + FREE, CODE0_64, 0x12345678, 0xc, 3, 5 /* ignored */);
		put_le64(rig_mem(r, GDT + FREE + 8), 0xffff8000);
		put_le32(rig_mem(r, 0x5000), 0);
		put_le16(rig_mem(r, 0x5004), FREE | 3);
		r->v.s.gpr[R_DI] = 0x5000;
		assert_true(RUN(r, 0xff, 0x1f)); /* call far [rdi] */
		assert_int_equal(r->v.s.rip, 0xffff800012345678);
		assert_int_equal(cpu_cpl(&r->v.s), 0);
		assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 32);
		assert_int_equal(stack64(r, 0), CODE + 2);
		assert_int_equal(stack64(r, 3), DATA3);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, 0);
		assert_true(RUN(r, 0x48, 0xcb)); /* retfq */
		assert_int_equal(cpu_cpl(&r->v.s), 3);
		assert_int_equal(r->v.s.rip, CODE + 2);
		assert_int_equal(r->v.s.gpr[R_SP], STACK3);
	}
	/* 32-bit target, or an upper half with a type */
	rig_gate(r, GDT + FREE, CODE0, 0, 0xc, 3, 0);
	put_le64(rig_mem(r, GDT + FREE + 8), 0);
	assert_false(RUN(r, 0xff, 0x1f));
	assert_fault(r, EXC_GP, CODE0);
	put_le64(rig_mem(r, GDT + FREE + 8), 0x10000000000);
	assert_false(RUN(r, 0xff, 0x1f));
	assert_fault(r, EXC_GP, FREE);
}

/* To compatibility mode and back. */
static void mode_switch(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	r->v.s.gpr[R_DI] = 0x5000;
	put_le32(rig_mem(r, 0x5000), 0x2000);
	put_le16(rig_mem(r, 0x5004), CODE0);
	assert_true(RUN(r, 0xff, 0x2f)); /* jmp far [rdi] */
	assert_int_equal(vcpu_mode(&r->v), MODE_32);
	assert_true(RUN(r, 0xea, 0, 0x30, 0, 0, CODE0_64, 0));
	assert_int_equal(vcpu_mode(&r->v), MODE_64);
	assert_int_equal(r->v.s.rip, 0x3000);
	rig_desc(r, FREE, 0, UINT32_MAX, A_CODE | SEG_L | SEG_DB | SEG_G);
	put_le16(rig_mem(r, 0x5004), FREE);
	assert_false(RUN(r, 0xff, 0x2f)); /* L and D */
	assert_fault(r, EXC_GP, FREE);
}

/* IRET from 64-bit mode to a 16-bit stack keeps the upper half of ESP. */
static void iret_to_16bit_stack(void **state)
{
	struct rig *r = *state;
	uint64_t frame[5] = {0x1000, CODE3, FL_FIXED, 0x5678, FREE | 3};

	rig_long(r, 0);
	rig_desc(r, FREE, 0, 0xffff, A_DATA | A_DPL(3));
	r->v.s.gpr[R_SP] = 0x27000;
	memcpy(rig_mem(r, 0x27000), frame, sizeof(frame));
	assert_true(RUN(r, 0x48, 0xcf));
	assert_int_equal(r->v.s.gpr[R_SP], 0x25678);
	/* RETF too; the parameters are dropped from SP alone */
	rig_long(r, 0);
	rig_desc(r, FREE, 0, 0xffff, A_DATA | A_DPL(3));
	r->v.s.gpr[R_SP] = 0x27000;
	memcpy(rig_mem(r, 0x27000), frame, 16);
	memcpy(rig_mem(r, 0x27018), frame + 3, 16);
	assert_true(RUN(r, 0x48, 0xca, 0x08, 0x00));
	assert_int_equal(r->v.s.gpr[R_SP], 0x25680);
	assert_int_equal(cpu_cpl(&r->v.s), 3);
	/* same ring, 64-bit: SS:RSP are popped too, and may be null */
	rig_long(r, 0);
	frame[1] = CODE0_64;
	frame[3] = 0x123456789a;
	frame[4] = 0;
	memcpy(rig_mem(r, STACK0 - 64), frame, sizeof(frame));
	r->v.s.gpr[R_SP] = STACK0 - 64;
	assert_true(RUN(r, 0x48, 0xcf));
	assert_int_equal(r->v.s.gpr[R_SP], 0x123456789a);
	assert_true(r->v.s.seg[SEG_SS].attr & SEG_UNUSABLE);
	/* NT in long mode */
	r->v.s.rflags |= FL_NT;
	assert_false(RUN(r, 0x48, 0xcf));
	assert_fault(r, EXC_GP, 0);
	/* a return address that is not canonical */
	rig_long(r, 0);
	frame[0] = 0x800000000000;
	memcpy(rig_mem(r, STACK0 - 64), frame, sizeof(frame));
	r->v.s.gpr[R_SP] = STACK0 - 64;
	assert_false(RUN(r, 0x48, 0xcf));
	assert_fault(r, EXC_GP, 0);
	/* NT in protected mode wants a task switch */
	rig_prot(r, 0);
	r->v.s.rflags |= FL_NT;
	assert_false(RUN(r, 0xcf));
	assert_non_null(r->v.fatal);
	r->v.fatal = NULL;
}

static void syscall_sysret(void **state)
{
	struct rig *r = *state;

	for (unsigned amd = 0; amd < 2; amd++) {
		rig_vendor(r, amd);
		rig_long(r, 3);
		r->v.s.star = UINT64_C(0x0023001000000000) | 0x1234;
		r->v.s.lstar = 0xffffffff81000000;
		r->v.s.cstar = 0xffffffff82000000;
		r->v.s.sfmask = FL_IF | FL_TF | FL_DF;
		r->v.s.rflags = FL_FIXED | FL_IF | FL_DF | FL_CF | FL_RF;
		assert_true(RUN(r, 0x0f, 0x05));
		assert_int_equal(r->v.s.rip, 0xffffffff81000000);
		assert_int_equal(r->v.s.gpr[R_CX], CODE + 2);
		assert_int_equal(r->v.s.gpr[R_11], FL_FIXED | FL_IF | FL_DF | FL_CF);
		assert_int_equal(r->v.s.rflags, FL_FIXED | FL_CF);
		assert_int_equal(r->v.s.seg[SEG_CS].sel, 0x10);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, 0x18);
		assert_int_equal(cpu_cpl(&r->v.s), 0);
		assert_true(cpu_is_64bit(&r->v.s));
		assert_true(RUN(r, 0x48, 0x0f, 0x07));
		assert_int_equal(r->v.s.rip, CODE + 2);
		assert_int_equal(r->v.s.seg[SEG_CS].sel, 0x33);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, 0x2b);
		assert_int_equal(cpu_cpl(&r->v.s), 3);
		assert_int_equal(r->v.s.rflags, FL_FIXED | FL_IF | FL_DF | FL_CF);
		assert_false(RUN(r, 0x48, 0x0f, 0x07)); /* CPL 3 */
		assert_fault(r, EXC_GP, 0);
		/* a return address that is not canonical: Intel faults in ring 0, AMD in ring 3 */
		rig_long(r, 0);
		r->v.s.gpr[R_CX] = 0x800000000000;
		assert_int_equal(RUN(r, 0x48, 0x0f, 0x07), amd);
		/* compatibility mode */
		rig_long(r, 3);
		r->v.s.cstar = 0x5555;
		r->v.s.seg[SEG_CS] =
			(struct cpu_seg){.sel = CODE3, .limit = UINT32_MAX, .attr = A_CODE | SEG_DB | SEG_G | A_DPL(3)};
		assert_int_equal(RUN(r, 0x0f, 0x05), amd);
		assert_int_equal(amd ? r->v.s.rip : 0x5555, 0x5555);
		rig_long(r, 3);
		r->v.s.efer &= ~EFER_SCE;
		assert_false(RUN(r, 0x0f, 0x05));
		assert_fault_noerr(r, EXC_UD);
	}
}

static void sysenter_sysexit(void **state)
{
	struct rig *r = *state;

	rig_vendor(r, true);
	rig_long(r, 3);
	assert_false(RUN(r, 0x0f, 0x34));
	assert_fault_noerr(r, EXC_UD);
	rig_vendor(r, false);
	for (unsigned lm = 0; lm < 2; lm++) {
		if (lm)
			rig_long(r, 3);
		else
			rig_prot(r, 3);
		assert_false(RUN(r, 0x0f, 0x34)); /* SYSENTER_CS is 0 */
		assert_fault(r, EXC_GP, 0);
		r->v.s.sysenter_cs = 0x80;
		r->v.s.sysenter_esp = 0xffff800000001000;
		r->v.s.sysenter_eip = 0xffff800000002000;
		r->v.s.rflags |= FL_IF;
		assert_true(RUN(r, 0x0f, 0x34));
		assert_int_equal(r->v.s.rip, lm ? 0xffff800000002000 : 0x2000);
		assert_int_equal(r->v.s.gpr[R_SP], lm ? 0xffff800000001000 : 0x1000);
		assert_int_equal(r->v.s.seg[SEG_CS].sel, 0x80);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, 0x88);
		assert_int_equal(r->v.s.rflags & FL_IF, 0);
		assert_int_equal(cpu_is_64bit(&r->v.s), lm);
		r->v.s.gpr[R_DX] = 0x3000;
		r->v.s.gpr[R_CX] = 0x4000;
		assert_true(lm ? RUN(r, 0x48, 0x0f, 0x35) : RUN(r, 0x0f, 0x35));
		assert_int_equal(r->v.s.rip, 0x3000);
		assert_int_equal(r->v.s.gpr[R_SP], 0x4000);
		assert_int_equal(r->v.s.seg[SEG_CS].sel, lm ? 0xa3 : 0x93);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, lm ? 0xab : 0x9b);
		assert_int_equal(cpu_cpl(&r->v.s), 3);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(real_far),	      TEST(direct),	      TEST(gate_to_inner), TEST(gate_286),
		TEST(gate_checks),    TEST(long_mode_gate),   TEST(mode_switch),   TEST(iret_to_16bit_stack),
		TEST(syscall_sysret), TEST(sysenter_sysexit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
