/* Event delivery: IVT, IDT gates, rings, IST, error codes, double and triple faults, VM86 (SDM vol. 3, 6). */
#include "fixture.h"

#define INT32 14
#define TRAP32 15
#define INT16 6

static uint32_t stack32(struct rig *r, unsigned slot) { return get_le32(rig_mem(r, r->v.s.gpr[R_SP] + 4 * slot)); }
static uint64_t stack64(struct rig *r, unsigned slot) { return get_le64(rig_mem(r, r->v.s.gpr[R_SP] + 8 * slot)); }

static bool fault(struct rig *r, uint8_t vector, bool has_error, uint32_t error)
{
	r->v.exc = (struct vcpu_exc){.vector = vector, .has_error = has_error, .error = error};
	return interp_deliver(&r->v, EVENT_EXCEPTION, vector);
}

static void real_mode(void **state)
{
	struct rig *r = *state;

	rig_real(r);
	put_le32(rig_mem(r, 0x21 * 4), 0x12340567);
	r->v.s.rflags = FL_FIXED | FL_IF | FL_TF | FL_AC | FL_CF;
	assert_true(RUN(r, 0xcd, 0x21));
	assert_int_equal(r->v.s.rip, 0x567);
	assert_int_equal(r->v.s.seg[SEG_CS].sel, 0x1234);
	assert_int_equal(r->v.s.seg[SEG_CS].base, 0x12340);
	assert_int_equal(r->v.s.rflags, FL_FIXED | FL_CF);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 6);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 6)), 2);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 4)), CODE >> 4);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 2)), FL_FIXED | FL_IF | FL_TF | FL_CF);
	assert_true(RUN(r, 0xcf));
	assert_int_equal(r->v.s.rip, 2);
	assert_int_equal(r->v.s.seg[SEG_CS].base, CODE);
	assert_int_equal(r->v.s.rflags, FL_FIXED | FL_IF | FL_TF | FL_CF);
	/* no error code in real mode */
	put_le32(rig_mem(r, EXC_GP * 4), 0x00001000);
	assert_true(fault(r, EXC_GP, true, 0));
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 6);
	assert_int_equal(r->v.s.rip, 0x1000);
}

static void real_mode_short_ivt(void **state)
{
	struct rig *r = *state;

	rig_real(r);
	r->v.s.idt.limit = 0x83; /* vector 0x20 is the last */
	assert_false(RUN(r, 0xcd, 0x21));
	assert_int_equal(r->v.exc.vector, EXC_GP);
	assert_int_equal(r->v.s.rip, 0);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
	r->v.s.idt.limit = 0x1f; /* neither #GP nor #DF is there */
	assert_false(fault(r, EXC_GP, true, 0));
	assert_true(r->v.triple_fault);
}

static void ring3_to_ring0(void **state)
{
	struct rig *r = *state;

	for (unsigned type = INT32; type <= TRAP32; type++) {
		rig_prot(r, 3);
		rig_idt(r, 0x80, CODE0, 0x12345678, type, 3, 0);
		r->v.s.rflags = FL_FIXED | FL_IF | FL_TF | FL_NT | FL_CF;
		assert_true(RUN(r, 0xcd, 0x80));
		assert_int_equal(r->v.s.rip, 0x12345678);
		assert_int_equal(cpu_cpl(&r->v.s), 0);
		assert_int_equal(r->v.s.seg[SEG_CS].sel, CODE0);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, DATA0);
		assert_int_equal(r->v.s.rflags, FL_FIXED | FL_CF | (type == TRAP32 ? FL_IF : 0));
		assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 20);
		assert_int_equal(stack32(r, 0), CODE + 2);
		assert_int_equal(stack32(r, 1), CODE3);
		assert_int_equal(stack32(r, 2), FL_FIXED | FL_IF | FL_TF | FL_NT | FL_CF);
		assert_int_equal(stack32(r, 3), STACK3);
		assert_int_equal(stack32(r, 4), DATA3);
		r->v.s.rflags &= ~FL_NT;
		assert_true(RUN(r, 0xcf));
		assert_int_equal(r->v.s.rip, CODE + 2);
		assert_int_equal(cpu_cpl(&r->v.s), 3);
		assert_int_equal(r->v.s.gpr[R_SP], STACK3);
		assert_int_equal(r->v.s.seg[SEG_SS].sel, DATA3);
	}
}

struct gate_case {
	const char *what;
	uint8_t vector;
	bool soft;
	unsigned type, dpl, cpl;
	uint16_t sel;
	uint8_t exc;
	uint32_t error;
};

static const struct gate_case gate_cases[] = {
	{"INT n below the gate's DPL", 0x80, true, INT32, 0, 3, CODE0, EXC_GP, 0x80 * 8 + 2},
	{"an interrupt does not look at the gate's DPL, but at its type", 0x30, false, 0xc, 0, 3, CODE0, EXC_GP,
	 0x30 * 8 + 3},
	{"null selector", 0x80, true, INT32, 3, 3, 0, EXC_GP, 0},
	{"null selector, interrupt", 0x30, false, INT32, 3, 3, 0, EXC_GP, 1},
	{"data segment", 0x80, true, INT32, 3, 3, DATA0, EXC_GP, DATA0},
	{"data segment, interrupt", 0x30, false, INT32, 3, 3, DATA0, EXC_GP, DATA0 + 1},
	{"an outer ring's code", 0x80, true, INT32, 3, 0, CODE3, EXC_GP, CODE3 & 0xfffc},
	{"beyond the GDT", 0x80, true, INT32, 3, 3, 0x1008, EXC_GP, 0x1008},
	{"beyond the IDT", 0xff, true, 0, 3, 3, 0, EXC_GP, 0xff * 8 + 2},
};

static void gate_errors(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(gate_cases); i++) {
		const struct gate_case *c = &gate_cases[i];
		struct cpu_state before;

		rig_prot(r, c->cpl);
		r->v.s.idt.limit = 0xfe * 8 + 7;
		rig_idt(r, c->vector, c->sel, 0x1000, c->type, c->dpl, 0);
		rig_idt(r, EXC_GP, CODE0, 0x2000, INT32, 0, 0);
		before = r->v.s;
		if (c->soft) {
			assert_false(RUN(r, 0xcd, c->vector));
			assert_fault(r, c->exc, c->error);
			assert_memory_equal(&before, &r->v.s, sizeof(before));
		} else {
			/* the fault is delivered in its place, and returns to where the interrupt came */
			assert_true(interp_deliver(&r->v, EVENT_INTERRUPT, c->vector));
			assert_int_equal(r->v.s.rip, 0x2000);
			assert_int_equal(stack32(r, 0), c->error);
			assert_int_equal(stack32(r, 1), CODE);
		}
	}
}

static void not_present(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	rig_idt(r, 0x80, CODE0, 0x1000, INT32, 3, 0);
	rig_mem(r, IDT + 0x80 * 8 + 5)[0] &= 0x7f;
	assert_false(RUN(r, 0xcd, 0x80));
	assert_fault(r, EXC_NP, 0x80 * 8 + 2);
	rig_idt(r, 0x80, FREE, 0x1000, INT32, 3, 0);
	rig_desc(r, FREE, 0, UINT32_MAX, (A_CODE & ~SEG_P) | SEG_DB | SEG_G);
	assert_false(RUN(r, 0xcd, 0x80));
	assert_fault(r, EXC_NP, FREE);
	/* target beyond its segment's limit */
	rig_desc(r, FREE, 0, 0xfff, A_CODE | SEG_DB);
	assert_false(RUN(r, 0xcd, 0x80));
	assert_fault(r, EXC_GP, 0);
}

static void bad_inner_stack(void **state)
{
	static const struct {
		uint16_t ss;
		uint32_t attr;
		uint8_t exc;
		uint32_t error;
	} c[] = {
		{0, 0, EXC_TS, 0},
		{FREE, A_DATA, 0, 0},
		{FREE | 3, A_DATA, EXC_TS, FREE},
		{FREE, A_DATA | A_DPL(3), EXC_TS, FREE},
		{FREE, A_CODE, EXC_TS, FREE},
		{FREE, SEG_P | SEG_S, EXC_TS, FREE}, /* read-only */
		{FREE, A_DATA & ~SEG_P, EXC_SS, FREE},
		{0x1010, A_DATA, EXC_TS, 0x1010},
	};
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(c); i++) {
		rig_prot(r, 3);
		rig_idt(r, 0x80, CODE0, 0x1000, INT32, 3, 0);
		if (c[i].ss == 0x1010)
			r->v.s.gdt.limit = 0x100f;
		rig_desc(r, FREE, 0, UINT32_MAX, c[i].attr | SEG_DB | SEG_G);
		put_le16(rig_mem(r, TSS + 8), c[i].ss);
		assert_int_equal(RUN(r, 0xcd, 0x80), !c[i].exc);
		if (c[i].exc)
			assert_fault(r, c[i].exc, c[i].error);
	}
	/* TSS too short for the ring-0 stack; with an interrupt EXT is set */
	rig_prot(r, 3);
	rig_idt(r, 0x80, CODE0, 0x1000, INT32, 3, 0);
	rig_idt(r, EXC_TS, CODE0, 0x3000, INT32, 0, 0);
	r->v.s.tr.limit = 8;
	assert_false(RUN(r, 0xcd, 0x80));
	assert_fault(r, EXC_TS, TSS_SEL);
	/* the new stack is too small: #SS with the new selector */
	rig_prot(r, 3);
	rig_desc(r, FREE, 0, 0xf, A_DATA | SEG_DB);
	put_le16(rig_mem(r, TSS + 8), FREE);
	put_le32(rig_mem(r, TSS + 4), 0x10);
	assert_false(RUN(r, 0xcd, 0x80));
	assert_fault(r, EXC_SS, FREE);
}

static void sixteen_bit_gate(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	rig_idt(r, 0x20, CODE0_16, 0x9999abcd, INT16, 0, 0);
	assert_true(interp_deliver(&r->v, EVENT_INTERRUPT, 0x20));
	assert_int_equal(r->v.s.rip, 0xabcd);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 6);
	assert_int_equal(get_le16(rig_mem(r, STACK0 - 6)), CODE & 0xffff);
}

static void error_code_and_rf(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	rig_idt(r, EXC_PF, CODE0, 0x1000, INT32, 0, 0);
	assert_true(fault(r, EXC_PF, true, 2));
	assert_int_equal(stack32(r, 0), 2);
	assert_int_equal(stack32(r, 3), FL_FIXED | FL_RF);
	assert_int_equal(r->v.s.rflags, FL_FIXED);
	/* interrupts push RF as it is, #DB too; #DB clears DR7.GD */
	rig_prot(r, 0);
	rig_idt(r, EXC_DB, CODE0, 0x1000, INT32, 0, 0);
	r->v.s.dr[7] = BIT(13) | 0x400;
	assert_true(fault(r, EXC_DB, false, 0));
	assert_int_equal(stack32(r, 2), FL_FIXED);
	assert_int_equal(r->v.s.dr[7], 0x400);
}

static void nmi(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	rig_idt(r, EXC_NMI, CODE0_64, 0x1000, INT32, 0, 1);
	put_le64(rig_mem(r, TSS + 0x24), 0x7777);
	r->v.s.run_state = CPU_HALTED;
	assert_true(interp_deliver(&r->v, EVENT_NMI, EXC_NMI));
	assert_int_equal(r->v.s.nmi_masked, 1);
	assert_int_equal(r->v.s.run_state, CPU_RUNNING);
	assert_int_equal(r->v.s.gpr[R_SP], 0x7770 - 40);
	assert_int_equal(r->v.s.seg[SEG_SS].sel, DATA0); /* no ring change: SS stays */
	assert_int_equal(stack64(r, 3), STACK0);
	assert_true(RUN(r, 0x48, 0xcf));
	assert_int_equal(r->v.s.nmi_masked, 0);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
	assert_int_equal(r->v.s.rip, CODE);
}

static void long_mode(void **state)
{
	struct rig *r = *state;

	rig_long(r, 3);
	rig_idt(r, EXC_GP, CODE0_64, 0xffff800012345678, INT32, 0, 0);
	put_le64(rig_mem(r, TSS + 4), STACK0 + 7); /* aligned down to 16 */
	r->v.s.rflags = FL_FIXED | FL_IF;
	assert_true(fault(r, EXC_GP, true, 0x1234));
	assert_int_equal(r->v.s.rip, 0xffff800012345678);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 48);
	assert_int_equal(stack64(r, 0), 0x1234);
	assert_int_equal(stack64(r, 1), CODE);
	assert_int_equal(stack64(r, 2), CODE3_64);
	assert_int_equal(stack64(r, 3), FL_FIXED | FL_IF | FL_RF);
	assert_int_equal(stack64(r, 4), STACK3);
	assert_int_equal(stack64(r, 5), DATA3);
	assert_int_equal(r->v.s.seg[SEG_SS].sel, 0);
	assert_true(r->v.s.seg[SEG_SS].attr & SEG_UNUSABLE);
	assert_int_equal(cpu_cpl(&r->v.s), 0);
	r->v.s.gpr[R_SP] += 8;
	r->v.s.seg[SEG_FS] = (struct cpu_seg){.base = 0x7f0000000000,
					      .attr = SEG_UNUSABLE}; /* a live FS base under a null selector */
	assert_true(RUN(r, 0x48, 0xcf));
	assert_int_equal(cpu_cpl(&r->v.s), 3);
	assert_int_equal(r->v.s.rip, CODE);
	assert_int_equal(r->v.s.gpr[R_SP], STACK3);
	assert_int_equal(r->v.s.rflags, FL_FIXED | FL_IF | FL_RF);
	assert_int_equal(r->v.s.seg[SEG_FS].base, 0x7f0000000000);
	/* a handler in 32-bit code is refused */
	rig_long(r, 0);
	rig_idt(r, 0x40, CODE0, 0x1000, INT32, 0, 0);
	rig_idt(r, EXC_GP, CODE0_64, 0x1000, INT32, 0, 0);
	assert_true(interp_deliver(&r->v, EVENT_INTERRUPT, 0x40));
	assert_int_equal(stack64(r, 0), CODE0 + 1);
}

static void double_and_triple(void **state)
{
	/* first, second (how the handler's gate is broken), result: vector delivered, 0 shutdown */
	static const struct {
		uint8_t first;
		bool first_error;
		uint8_t second;
		uint8_t delivered;
	} c[] = {
		{EXC_GP, true, EXC_NP, EXC_DF},	 {EXC_DE, false, EXC_GP, EXC_DF}, {EXC_PF, true, EXC_NP, EXC_DF},
		{EXC_PF, true, EXC_PF, EXC_DF},	 {EXC_UD, false, EXC_NP, EXC_NP}, {EXC_GP, true, EXC_PF, EXC_PF},
		{EXC_BP, false, EXC_GP, EXC_GP}, {EXC_DF, true, EXC_NP, 0},	  {EXC_DF, true, EXC_PF, 0},
	};
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(c); i++) {
		rig_prot(r, 3);
		r->v.triple_fault = false;
		r->mmu.page[STACK0 / PAGE_SIZE - 1] = 0;
		for (unsigned vec = 0; vec < 32; vec++)
			rig_idt(r, vec,
				vec == EXC_DF || vec == EXC_PF || vec == EXC_NP || vec == EXC_GP ? CONF0 : CODE0,
				0x1000 + vec, INT32, 0, 0);
		/* handlers in a conforming segment run on the ring-3 stack; the others need the ring-0 one */
		switch (c[i].second) {
		case EXC_NP:
			rig_mem(r, IDT + c[i].first * 8 + 5)[0] &= 0x7f;
			break;
		case EXC_GP:
			rig_mem(r, IDT + c[i].first * 8 + 5)[0] = 0x80;
			break;
		case EXC_PF:
			rig_idt(r, c[i].first, CODE0, 0x1000, INT32, 0, 0);
			r->mmu.page[STACK0 / PAGE_SIZE - 1] = PAGE_FAULTS;
			if (c[i].delivered != c[i].first)
				rig_idt(r, c[i].delivered ? c[i].delivered : EXC_PF, CONF0, 0x1000 + c[i].delivered,
					INT32, 0, 0);
			break;
		}
		assert_int_equal(fault(r, c[i].first, c[i].first_error, 0), c[i].delivered != 0);
		assert_int_equal(r->v.triple_fault, c[i].delivered == 0);
		if (c[i].delivered)
			assert_int_equal(r->v.s.rip, 0x1000 + c[i].delivered);
		r->mmu.page[STACK0 / PAGE_SIZE - 1] = 0;
	}
}

static void no_idt_at_all(void **state)
{
	struct rig *r = *state;

	rig_long(r, 0);
	r->v.s.idt.limit = 0;
	assert_false(fault(r, EXC_UD, false, 0));
	assert_true(r->v.triple_fault);
}

static void task_gate(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	rig_idt(r, EXC_DF, TSS_SEL, 0, 5, 0, 0);
	assert_false(fault(r, EXC_DF, true, 0));
	assert_non_null(r->v.fatal);
	assert_false(r->v.triple_fault);
}

static void v86(void **state)
{
	static const uint8_t order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	struct rig *r = *state;

	rig_v86(r, 3);
	rig_idt(r, 0x21, CODE0, 0x1000, INT32, 3, 0);
	assert_true(RUN(r, 0xcd, 0x21));
	assert_int_equal(cpu_cpl(&r->v.s), 0);
	assert_false(r->v.s.rflags & FL_VM);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 36);
	assert_int_equal(stack32(r, 0), 2);
	assert_int_equal(stack32(r, 1), CODE >> 4);
	assert_int_equal(stack32(r, 2), FL_FIXED | FL_VM | FL_IOPL);
	assert_int_equal(stack32(r, 3), 0x7000);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(stack32(r, 4 + i), 0x100 + order[i]);
	assert_true(r->v.s.seg[SEG_DS].attr & SEG_UNUSABLE);
	assert_true(RUN(r, 0xcf));
	assert_true(cpu_is_v86(&r->v.s));
	assert_int_equal(r->v.s.rip, 2);
	assert_int_equal(cpu_cpl(&r->v.s), 3);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(r->v.s.seg[order[i]].sel, 0x100 + order[i]);
		assert_int_equal(r->v.s.seg[order[i]].base, (0x100 + order[i]) * 16);
	}
	/* IOPL below 3: INT n is #GP(0); INT3 is not IOPL-sensitive */
	rig_v86(r, 2);
	rig_idt(r, 3, CODE0, 0x1000, INT32, 3, 0);
	assert_false(RUN(r, 0xcd, 0x21));
	assert_fault(r, EXC_GP, 0);
	assert_true(RUN(r, 0xcc));
	/* a handler outside ring 0 */
	rig_v86(r, 3);
	rig_desc(r, FREE, 0, UINT32_MAX, A_CODE | SEG_DB | SEG_G | A_DPL(3));
	rig_idt(r, 0x22, FREE, 0x1000, INT32, 3, 0);
	assert_false(RUN(r, 0xcd, 0x22));
	assert_fault(r, EXC_GP, FREE);
}

static void int3_into_int1(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	rig_idt(r, 3, CODE0, 0x1000, INT32, 0, 0);
	rig_idt(r, 1, CODE0, 0x1100, INT32, 0, 0);
	rig_idt(r, 4, CODE0, 0x1200, INT32, 3, 0);
	assert_false(RUN(r, 0xcc)); /* DPL 0 */
	assert_fault(r, EXC_GP, 3 * 8 + 2);
	assert_true(RUN(r, 0xf1)); /* INT1 ignores the DPL */
	assert_int_equal(r->v.s.rip, 0x1100);
	rig_prot(r, 3);
	assert_true(RUN(r, 0xce)); /* OF clear */
	assert_int_equal(r->v.s.rip, CODE + 1);
	r->v.s.rflags |= FL_OF;
	assert_true(RUN(r, 0xce));
	assert_int_equal(r->v.s.rip, 0x1200);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(real_mode),
		TEST(real_mode_short_ivt),
		TEST(ring3_to_ring0),
		TEST(gate_errors),
		TEST(not_present),
		TEST(bad_inner_stack),
		TEST(sixteen_bit_gate),
		TEST(error_code_and_rf),
		TEST(nmi),
		TEST(long_mode),
		TEST(double_and_triple),
		TEST(no_idt_at_all),
		TEST(task_gate),
		TEST(v86),
		TEST(int3_into_int1),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
