/* Segment loads with all checks, seg_linear, instructions about selectors (SDM vol. 2: MOV, LAR, VERR, LTR ...). */
#include "fixture.h"

struct load_case {
	unsigned cpl, rpl;
	uint32_t attr;
	int vector_data, vector_ss; /* -1: loads */
};

#define RW (SEG_P | SEG_S | 2)
#define RO (SEG_P | SEG_S | 0)
#define XO (SEG_P | SEG_S | 8)
#define XR (SEG_P | SEG_S | 10)
#define CONF (SEG_P | SEG_S | 14)

static const struct load_case load_cases[] = {
	{0, 0, RW, -1, -1},
	{0, 0, RO, -1, EXC_GP},
	{0, 0, RW | 4, -1, -1}, /* expand-down */
	{0, 0, XO, EXC_GP, EXC_GP},
	{0, 0, XR, -1, EXC_GP},
	{0, 0, CONF, -1, EXC_GP},
	{0, 0, RW & ~SEG_P, EXC_NP, EXC_SS},
	{0, 0, SEG_P | 2, EXC_GP, EXC_GP},   /* LDT */
	{0, 0, SEG_P | 0xc, EXC_GP, EXC_GP}, /* call gate */
	{0, 3, RW, EXC_GP, EXC_GP},	     /* RPL above DPL */
	{0, 3, RW | A_DPL(3), -1, EXC_GP},
	{0, 0, RW | A_DPL(3), -1, EXC_GP},
	{3, 3, RW | A_DPL(3), -1, -1},
	{3, 0, RW | A_DPL(3), -1, EXC_GP},
	{3, 3, RW, EXC_GP, EXC_GP},
	{3, 3, CONF, -1, EXC_GP}, /* conforming code: always readable */
	{3, 3, XR, EXC_GP, EXC_GP},
	{2, 2, RW | A_DPL(2), -1, -1},
	{2, 1, RW | A_DPL(2), -1, EXC_GP},
	{1, 1, RW | A_DPL(2), -1, EXC_GP},
	{3, 3, (RW | A_DPL(3)) & ~SEG_P, EXC_NP, EXC_SS},
};

static void check_load(struct rig *r, const struct load_case *c, bool ss, bool ldt)
{
	int want = ss ? c->vector_ss : c->vector_data;
	uint16_t sel = (ldt ? 0x24 : FREE) | c->rpl;
	struct cpu_state before;

	rig_prot(r, c->cpl);
	rig_desc(r, sel, 0x12345678, 0x9abcd, c->attr | SEG_DB);
	r->v.s.gpr[R_AX] = 0xffff0000 | sel;
	before = r->v.s;
	if (want < 0) {
		const struct cpu_seg *sg = &r->v.s.seg[ss ? SEG_SS : SEG_ES];

		assert_true(RUN(r, 0x8e, ss ? 0xd0 : 0xc0));
		assert_int_equal(sg->sel, sel);
		assert_int_equal(sg->base, 0x12345678);
		assert_int_equal(sg->limit, 0x9abcd);
		assert_int_equal(sg->attr, c->attr | SEG_DB | 1);
		assert_int_equal(rig_mem(r, (ldt ? LDT : GDT) + (sel & 0xfff8u) + 5)[0] & 1, 1); /* accessed */
		assert_int_equal(r->v.s.shadow_mov_ss, ss);
		assert_int_equal(r->v.s.rip, CODE + 2);
		return;
	}
	assert_false(RUN(r, 0x8e, ss ? 0xd0 : 0xc0));
	assert_fault(r, want, sel & 0xfffc);
	assert_memory_equal(&before, &r->v.s, sizeof(before));
}

static void loads(void **state)
{
	for (unsigned i = 0; i < ARRAY_LEN(load_cases); i++) {
		for (unsigned form = 0; form < 4; form++)
			check_load(*state, &load_cases[i], form & 1, form & 2);
	}
}

static void null_and_outside(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->v.s.gpr[R_AX] = 3;
	assert_true(RUN(r, 0x8e, 0xd8)); /* mov ds, ax */
	assert_true(r->v.s.seg[SEG_DS].attr & SEG_UNUSABLE);
	assert_false(RUN(r, 0x8b, 0x03)); /* native: the interpreter refuses to run it */
	assert_fault_noerr(r, EXC_UD);
	assert_false(RUN(r, 0xd7)); /* xlat through a null DS */
	assert_fault(r, EXC_GP, 0);
	r->v.s.gpr[R_AX] = 0;
	assert_false(RUN(r, 0x8e, 0xd0)); /* mov ss, 0 */
	assert_fault(r, EXC_GP, 0);
	r->v.s.gpr[R_AX] = 0x1000; /* beyond the GDT */
	assert_false(RUN(r, 0x8e, 0xc0));
	assert_fault(r, EXC_GP, 0x1000);
	r->v.s.gpr[R_AX] = 0x104; /* beyond the LDT */
	assert_false(RUN(r, 0x8e, 0xc0));
	assert_fault(r, EXC_GP, 0x104);
	r->v.s.ldt.attr = SEG_UNUSABLE;
	r->v.s.gpr[R_AX] = 0x24;
	assert_false(RUN(r, 0x8e, 0xc0));
	assert_fault(r, EXC_GP, 0x24);

	/* 64-bit mode: SS may be null outside ring 3, with RPL = CPL */
	rig_long(r, 0);
	r->v.s.gpr[R_AX] = 0;
	assert_true(RUN(r, 0x8e, 0xd0));
	assert_int_equal(cpu_cpl(&r->v.s), 0);
	r->v.s.gpr[R_AX] = 1;
	assert_false(RUN(r, 0x8e, 0xd0));
	rig_long(r, 3);
	r->v.s.gpr[R_AX] = 3;
	assert_false(RUN(r, 0x8e, 0xd0));
	assert_fault(r, EXC_GP, 0);
}

/* A null FS clears its base; a page fault on the descriptor is a #PF of the supervisor. */
static void fs_base_and_gdt_fault(void **state)
{
	struct rig *r = *state;

	rig_long(r, 3);
	r->v.s.seg[SEG_FS].base = 0x123456789000;
	r->v.s.gpr[R_AX] = 0;
	assert_true(RUN(r, 0x8e, 0xe0));
	assert_int_equal(r->v.s.seg[SEG_FS].base, 0);
	r->mmu.page[GDT >> PAGE_SHIFT] = PAGE_FAULTS;
	r->v.s.gpr[R_AX] = DATA3;
	assert_false(RUN(r, 0x8e, 0xe0));
	assert_fault(r, EXC_PF, 0);
	assert_int_equal(r->v.s.cr2, GDT + (DATA3 & 0xfff8));
}

static void real_mode(void **state)
{
	struct rig *r = *state;

	rig_real(r);
	r->v.s.seg[SEG_DS].limit = UINT32_MAX; /* "unreal" */
	r->v.s.gpr[R_AX] = 0x1234;
	assert_true(RUN(r, 0x8e, 0xd8));
	assert_int_equal(r->v.s.seg[SEG_DS].base, 0x12340);
	assert_int_equal(r->v.s.seg[SEG_DS].limit, UINT32_MAX);
}

struct linear_case {
	uint32_t attr, limit;
	uint64_t off;
	unsigned len;
	bool write, ok;
};

static const struct linear_case linear_cases[] = {
	{RW, 0xfff, 0xffc, 4, true, true},
	{RW, 0xfff, 0xffd, 4, false, false},
	{RW, 0xfff, 0xfff, 1, false, true},
	{RW, 0xfff, 0xfffffffe, 4, false, false},
	{RO, 0xfff, 0, 4, false, true},
	{RO, 0xfff, 0, 4, true, false},
	{XO, 0xfff, 0, 4, false, false},
	{XR, 0xfff, 0, 4, false, true},
	{XR, 0xfff, 0, 4, true, false},
	{RW | 4, 0xfff, 0xfff, 1, true, false},
	{RW | 4, 0xfff, 0x1000, 1, true, true},
	{RW | 4, 0xfff, 0xfffe, 2, true, true},
	{RW | 4, 0xfff, 0xffff, 2, true, false},
	{RW | 4 | SEG_DB, 0xfff, 0xffff, 2, true, true},
	{RW | 4 | SEG_DB, 0xfff, 0xfffffffc, 4, true, true},
	{RW | 4 | SEG_DB, 0xfff, 0xfffffffd, 4, true, false},
	{RW | SEG_UNUSABLE, 0xfff, 0, 1, false, false},
	{RW, UINT32_MAX, 0xfffffffc, 4, true, true},
};

static void linear(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	for (unsigned i = 0; i < ARRAY_LEN(linear_cases); i++) {
		const struct linear_case *c = &linear_cases[i];

		for (unsigned seg = SEG_SS; seg <= SEG_DS; seg++) {
			gva_t la = 0;

			r->v.s.seg[seg] = (struct cpu_seg){.base = 0xfffff000, .limit = c->limit, .attr = c->attr};
			assert_int_equal(seg_linear(&r->v, seg, c->off, c->len, c->write, &la), c->ok);
			if (c->ok)
				assert_int_equal(la, (uint32_t)(0xfffff000 + c->off));
			else
				assert_fault(r, seg == SEG_SS ? EXC_SS : EXC_GP, 0);
		}
	}
}

static void linear_64(void **state)
{
	struct rig *r = *state;
	gva_t la;

	rig_long(r, 0);
	r->v.s.seg[SEG_DS] = (struct cpu_seg){.base = 0x1000, .limit = 0, .attr = SEG_UNUSABLE};
	r->v.s.seg[SEG_GS].base = 0xffff800000000000;
	assert_true(seg_linear(&r->v, SEG_DS, 0x7fffffffffff, 1, true, &la));
	assert_int_equal(la, 0x7fffffffffff); /* neither base nor limit */
	assert_false(seg_linear(&r->v, SEG_DS, 0x7fffffffffff, 2, true, &la));
	assert_fault(r, EXC_GP, 0);
	assert_false(seg_linear(&r->v, SEG_SS, 0x800000000000, 1, false, &la));
	assert_fault(r, EXC_SS, 0);
	assert_true(seg_linear(&r->v, SEG_GS, 0x10, 8, false, &la));
	assert_int_equal(la, 0xffff800000000010);
	assert_false(seg_linear(&r->v, SEG_GS, 0x7fff00000000, 8, false, &la) && la == 0);
	assert_true(seg_linear(&r->v, SEG_DS, 0xffff800000000000, 8, false, &la));
}

static void lar_lsl_verr(void **state)
{
	static const struct {
		unsigned cpl, rpl;
		uint32_t attr;
		bool lar, lsl, verr, verw;
	} c[] = {
		{0, 0, RW, 1, 1, 1, 1},
		{0, 0, RO, 1, 1, 1, 0},
		{0, 0, XO, 1, 1, 0, 0},
		{0, 0, XR, 1, 1, 1, 0},
		{3, 3, RW, 0, 0, 0, 0},
		{3, 3, CONF, 1, 1, 1, 0},
		{3, 3, RW | A_DPL(3), 1, 1, 1, 1},
		{0, 3, RW, 0, 0, 0, 0},
		{0, 0, SEG_P | 2, 1, 1, 0, 0},
		{0, 0, SEG_P | 0xb, 1, 1, 0, 0},
		{0, 0, SEG_P | 0xc, 1, 0, 0, 0},
		{0, 0, SEG_P | 0xe, 0, 0, 0, 0},
		{0, 0, SEG_P | 5, 1, 0, 0, 0},
		{0, 0, 2 /* not present */, 1, 1, 0, 0},
	};
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(c); i++) {
		bool results[4];

		rig_prot(r, c[i].cpl);
		rig_desc(r, FREE, 0, 0x1234567f | 0xfff, c[i].attr | SEG_G);
		r->v.s.gpr[R_AX] = FREE | c[i].rpl;
		r->v.s.gpr[R_BX] = r->v.s.gpr[R_CX] = 0xdeadbeef;
		for (unsigned k = 0; k < 4; k++) {
			r->v.s.rflags = FL_FIXED;
			assert_true(k == 0   ? RUN(r, 0x0f, 0x02, 0xd8)
				    : k == 1 ? RUN(r, 0x0f, 0x03, 0xc8)
				    : k == 2 ? RUN(r, 0x0f, 0x00, 0xe0)
					     : RUN(r, 0x0f, 0x00, 0xe8));
			results[k] = r->v.s.rflags & FL_ZF;
		}
		assert_int_equal(results[0], c[i].lar);
		assert_int_equal(results[1], c[i].lsl);
		assert_int_equal(results[2], c[i].verr);
		assert_int_equal(results[3], c[i].verw);
		assert_int_equal(r->v.s.gpr[R_BX],
				 c[i].lar ? ((c[i].attr & 0xff) << 8 | 0x800000 | 0x10000) : 0xdeadbeef);
		assert_int_equal(r->v.s.gpr[R_CX], c[i].lsl ? 0x12345fff : 0xdeadbeef);
	}
	r->v.s.gpr[R_AX] = 0xfff8; /* out of the table: no fault */
	assert_true(RUN(r, 0x0f, 0x03, 0xc8));
	assert_false(r->v.s.rflags & FL_ZF);
	rig_real(r);
	assert_false(RUN(r, 0x0f, 0x03, 0xc8));
	assert_fault_noerr(r, EXC_UD);
}

static void ldt_and_task(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->v.s.gpr[R_AX] = TSS_SEL;
	assert_true(RUN(r, 0x0f, 0x00, 0xd8)); /* ltr ax */
	assert_int_equal(r->v.s.tr.attr & 0xf, 0xb);
	assert_int_equal(rig_mem(r, GDT + TSS_SEL + 5)[0] & 0xf, 0xb);
	assert_false(RUN(r, 0x0f, 0x00, 0xd8)); /* busy now */
	assert_fault(r, EXC_GP, TSS_SEL);
	r->v.s.gpr[R_AX] = 0;
	assert_false(RUN(r, 0x0f, 0x00, 0xd8));
	assert_fault(r, EXC_GP, 0);
	assert_true(RUN(r, 0x0f, 0x00, 0xd0)); /* lldt 0 */
	assert_true(r->v.s.ldt.attr & SEG_UNUSABLE);
	r->v.s.gpr[R_AX] = LDT_SEL;
	assert_true(RUN(r, 0x0f, 0x00, 0xd0));
	assert_int_equal(r->v.s.ldt.base, LDT);
	r->v.s.gpr[R_AX] = DATA0;
	assert_false(RUN(r, 0x0f, 0x00, 0xd0));
	assert_fault(r, EXC_GP, DATA0);
	rig_prot(r, 3);
	assert_false(RUN(r, 0x0f, 0x00, 0xd0));
	assert_fault(r, EXC_GP, 0);

	/* long mode: 16-byte descriptors with a 64-bit base */
	rig_long(r, 0);
	put_le64(rig_mem(r, GDT + TSS_SEL + 8), 0xffff8000);
	r->v.s.gpr[R_AX] = TSS_SEL;
	assert_true(RUN(r, 0x0f, 0x00, 0xd8));
	assert_int_equal(r->v.s.tr.base, 0xffff800000000000 | TSS);
	rig_desc(r, TSS_SEL, TSS, 0x1ff, SEG_P | 9);
	put_le64(rig_mem(r, GDT + TSS_SEL + 8), 0x8000);
	assert_false(RUN(r, 0x0f, 0x00, 0xd8)); /* not canonical */
	assert_fault(r, EXC_GP, TSS_SEL);
}

static void umip(void **state)
{
	struct rig *r = *state;

	rig_long(r, 3);
	r->v.s.gpr[R_DI] = 0x5000;
	assert_true(RUN(r, 0x0f, 0x01, 0x07)); /* sgdt [rdi] */
	assert_int_equal(get_le16(rig_mem(r, 0x5000)), 0xfff);
	assert_int_equal(get_le64(rig_mem(r, 0x5002)), GDT);
	assert_true(RUN(r, 0x0f, 0x01, 0xe0)); /* smsw eax */
	assert_int_equal(r->v.s.gpr[R_AX], (uint32_t)r->v.s.cr0);
	r->v.s.cr4 |= CR4_UMIP;
	assert_false(RUN(r, 0x0f, 0x01, 0x07));
	assert_fault(r, EXC_GP, 0);
	assert_false(RUN(r, 0x0f, 0x01, 0x0f)); /* sidt */
	assert_false(RUN(r, 0x0f, 0x00, 0xc0)); /* sldt eax */
	assert_false(RUN(r, 0x0f, 0x00, 0xc8)); /* str eax */
	assert_false(RUN(r, 0x0f, 0x01, 0xe0));
	assert_fault(r, EXC_GP, 0);
}

static void arpl_and_lgdt(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 3);
	r->v.s.gpr[R_AX] = 0x11110010;
	r->v.s.gpr[R_CX] = 3;
	assert_true(RUN(r, 0x63, 0xc8)); /* arpl ax, cx */
	assert_int_equal(r->v.s.gpr[R_AX], 0x11110013);
	assert_true(r->v.s.rflags & FL_ZF);
	assert_true(RUN(r, 0x63, 0xc8));
	assert_false(r->v.s.rflags & FL_ZF);

	rig_prot(r, 0);
	memcpy(rig_mem(r, 0x5000), "\xff\x0f\x78\x56\x34\x12", 6);
	r->v.s.gpr[R_DI] = 0x5000;
	assert_true(RUN(r, 0x0f, 0x01, 0x17)); /* lgdt [edi] */
	assert_int_equal(r->v.s.gdt.base, 0x12345678);
	assert_int_equal(r->v.s.gdt.limit, 0xfff);
	assert_true(RUN(r, 0x66, 0x0f, 0x01, 0x1f)); /* o16 lidt: 24 bits of base */
	assert_int_equal(r->v.s.idt.base, 0x345678);
	rig_long(r, 0);
	put_le64(rig_mem(r, 0x5002), 0x800000000000);
	r->v.s.gpr[R_DI] = 0x5000;
	assert_false(RUN(r, 0x0f, 0x01, 0x17));
	assert_fault(r, EXC_GP, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {TEST(loads),	       TEST(null_and_outside), TEST(fs_base_and_gdt_fault),
					   TEST(real_mode),    TEST(linear),	       TEST(linear_64),
					   TEST(lar_lsl_verr), TEST(ldt_and_task),     TEST(umip),
					   TEST(arpl_and_lgdt)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
