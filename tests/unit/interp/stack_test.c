/* Stack instructions: widths, wrap-around, PUSH SP, POP to memory, ENTER, LEAVE; nothing moves on a fault. */
#include "fixture.h"

static void push_sp_and_pop_memory(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	assert_true(RUN(r, 0x54)); /* push esp: the value before */
	assert_int_equal(get_le32(rig_mem(r, STACK0 - 4)), STACK0);
	put_le32(rig_mem(r, STACK0 - 4), 0xabcdef01);
	assert_true(RUN(r, 0x8f, 0x44, 0x24, 0x10)); /* pop [esp + 0x10]: ESP after the pop */
	assert_int_equal(get_le32(rig_mem(r, STACK0 + 0x10)), 0xabcdef01);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
	r->v.s.gpr[R_SP] = STACK0 - 4;
	assert_true(RUN(r, 0x5c)); /* pop esp */
	assert_int_equal(r->v.s.gpr[R_SP], 0xabcdef01);
	/* pop to a page that faults: ESP as before */
	rig_prot(r, 0);
	r->mmu.page[0x20] = PAGE_READONLY;
	r->v.s.gpr[R_AX] = 0x20000;
	assert_false(RUN(r, 0x8f, 0x00));
	assert_fault(r, EXC_PF, PF_P | PF_W);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
	assert_int_equal(r->v.s.cr2, 0x20000);
}

static void sixteen_bit_wrap(void **state)
{
	struct rig *r = *state;

	rig_real(r);
	r->v.s.gpr[R_SP] = 0x12340000;
	r->v.s.gpr[R_AX] = 0xbeef;
	assert_true(RUN(r, 0x50));
	assert_int_equal(r->v.s.gpr[R_SP], 0x1234fffe); /* the upper half stays */
	assert_int_equal(get_le16(rig_mem(r, 0xfffe)), 0xbeef);
	r->v.s.gpr[R_SP] = 1;
	assert_false(RUN(r, 0x50)); /* would lie across the end of the segment */
	assert_fault(r, EXC_SS, 0);
	/* PUSHA over the wrap */
	r->v.s.gpr[R_SP] = 6;
	for (unsigned i = 0; i < 8; i++) {
		if (i != R_SP)
			r->v.s.gpr[i] = 0x1110 + i;
	}
	assert_true(RUN(r, 0x60));
	assert_int_equal(r->v.s.gpr[R_SP], 0xfff6);
	assert_int_equal(get_le16(rig_mem(r, 4)), 0x1110);
	assert_int_equal(get_le16(rig_mem(r, 0)), 0x1112);
	assert_int_equal(get_le16(rig_mem(r, 0xfffe)), 0x1113);
	assert_int_equal(get_le16(rig_mem(r, 0xfffc)), 6);
	assert_int_equal(get_le16(rig_mem(r, 0xfff6)), 0x1117);
	for (unsigned i = 0; i < 8; i++) {
		if (i != R_SP)
			r->v.s.gpr[i] = 0;
	}
	assert_true(RUN(r, 0x61));
	assert_int_equal(r->v.s.gpr[R_SP], 6);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(r->v.s.gpr[i], i == R_SP ? 6 : 0x1110 + i);
}

static void pusha_fault_writes_nothing(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->mmu.page[6] = PAGE_READONLY;
	memset(rig_mem(r, 0x7000), 0x55, 16);
	r->v.s.gpr[R_SP] = 0x7010;
	assert_false(RUN(r, 0x60));
	assert_int_equal(r->v.s.gpr[R_SP], 0x7010);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(rig_mem(r, 0x7000)[i], 0x55);
	r->mmu.page[6] = 0;
}

static void segments(void **state)
{
	struct rig *r = *state;

	for (unsigned amd = 0; amd < 2; amd++) {
		rig_prot(r, 0);
		rig_vendor(r, amd);
		put_le32(rig_mem(r, STACK0 - 4), 0xffffffff);
		assert_true(RUN(r, 0x1e)); /* push ds */
		assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 4);
		assert_int_equal(get_le32(rig_mem(r, STACK0 - 4)), amd ? DATA0 : 0xffff0000 | DATA0);
	}
	assert_true(RUN(r, 0x17)); /* pop ss */
	assert_int_equal(r->v.s.shadow_mov_ss, 1);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
	put_le32(rig_mem(r, STACK0 - 4), 0x1000);
	r->v.s.gpr[R_SP] = STACK0 - 4;
	assert_false(RUN(r, 0x0f, 0xa1)); /* pop fs, bad selector */
	assert_fault(r, EXC_GP, 0x1000);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 - 4);
}

struct host_frame {
	uint64_t rsp, rbp;
	uint8_t mem[1024];
};

/* ENTER of every level and LEAVE on the CPU itself, on a private stack. */
#define HOST_ENTER(level)                                                                                              \
	case level:                                                                                                    \
		__asm__ volatile(                                                                                      \
			"mov %%rsp, %%r12; mov %%rbp, %%r13; mov %2, %%rsp; mov %3, %%rbp; enter $0x28, $" #level      \
			"; mov %%rsp, %0; mov %%rbp, %1; mov %%r12, %%rsp; mov %%r13, %%rbp"                           \
			: "=&r"(sp), "=&r"(bp)                                                                         \
			: "r"(top), "r"(frame)                                                                         \
			: "r12", "r13", "memory", "cc");                                                               \
		break;

static void host_enter(struct host_frame *h, unsigned level, unsigned top_off, unsigned bp_off)
{
	uint64_t sp = 0, bp = 0, top = (uintptr_t)h->mem + top_off, frame = (uintptr_t)h->mem + bp_off;

	switch (level) {
		HOST_ENTER(0) HOST_ENTER(1) HOST_ENTER(2) HOST_ENTER(3) HOST_ENTER(7) HOST_ENTER(31)
	}
	h->rsp = sp - (uintptr_t)h->mem;
	h->rbp = bp - (uintptr_t)h->mem;
}

/* Values on the stack that are addresses differ by where the stack lies. */
static uint64_t relative(uint64_t value, uint64_t base) { return value - base < 2048 ? value - base : value; }

static void enter_vs_host(void **state)
{
	static const unsigned levels[] = {0, 1, 2, 3, 7, 31}, bp_offs[] = {1000, 808, 800, 792, 776};
	static struct host_frame h;
	struct rig *r = *state;

	for (unsigned i = 0; i < ARRAY_LEN(levels) * ARRAY_LEN(bp_offs); i++) {
		unsigned level = levels[i % ARRAY_LEN(levels)], bp = bp_offs[i / ARRAY_LEN(levels)];

		for (unsigned j = 0; j < sizeof(h.mem); j += 8)
			put_le64(h.mem + j, rnd() | BIT(63));
		rig_long(r, 3);
		memcpy(rig_mem(r, 0x6000), h.mem, sizeof(h.mem));
		host_enter(&h, level, 800, bp);
		r->v.s.gpr[R_SP] = 0x6000 + 800;
		r->v.s.gpr[R_BP] = 0x6000 + bp;
		assert_true(RUN(r, 0xc8, 0x28, 0x00, level));
		assert_int_equal(r->v.s.gpr[R_SP] - 0x6000, h.rsp);
		assert_int_equal(r->v.s.gpr[R_BP] - 0x6000, h.rbp);
		for (unsigned j = 0; j < sizeof(h.mem); j += 8)
			assert_int_equal(relative(get_le64(rig_mem(r, 0x6000 + j)), 0x6000),
					 relative(get_le64(h.mem + j), (uintptr_t)h.mem));
		assert_true(RUN(r, 0xc9));
		assert_int_equal(r->v.s.gpr[R_SP], 0x6000 + 800);
		assert_int_equal(r->v.s.gpr[R_BP], 0x6000 + bp);
	}
}

static void near_flow(void **state)
{
	struct rig *r = *state;

	rig_prot(r, 0);
	r->v.s.seg[SEG_CS].limit = CODE + 0xfff;
	assert_true(RUN(r, 0xe8, 0x10, 0, 0, 0));
	assert_int_equal(r->v.s.rip, CODE + 0x15);
	assert_int_equal(get_le32(rig_mem(r, STACK0 - 4)), CODE + 5);
	assert_true(RUN(r, 0xc2, 0x08, 0x00));
	assert_int_equal(r->v.s.rip, CODE + 5);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 + 8);
	assert_false(RUN(r, 0xe9, 0x00, 0x10, 0, 0)); /* beyond the limit */
	assert_fault(r, EXC_GP, 0);
	assert_int_equal(r->v.s.rip, CODE + 5);
	assert_false(RUN(r, 0xe8, 0x00, 0x10, 0, 0));
	assert_int_equal(r->v.s.gpr[R_SP], STACK0 + 8);
	r->v.s.gpr[R_CX] = 0xffff0001;
	assert_true(RUN(r, 0x67, 0xe2, 0x10)); /* loop on CX: ends */
	assert_int_equal(r->v.s.gpr[R_CX], 0xffff0000);
	assert_int_equal(r->v.s.rip, CODE + 8);
	assert_true(RUN(r, 0x67, 0xe3, 0x10)); /* jcxz */
	assert_int_equal(r->v.s.rip, CODE + 8 + 3 + 0x10);
	r->v.s.gpr[R_CX] = 2;
	r->v.s.rflags |= FL_ZF;
	assert_true(RUN(r, 0xe0, 0x10)); /* loopne: ZF ends it */
	assert_int_equal(r->v.s.rip, CODE + 0x1b + 2);
	assert_int_equal(r->v.s.gpr[R_CX], 1);
	assert_true(RUN(r, 0x66, 0xeb, 0x00)); /* 16-bit jump truncates */
	assert_int_equal(r->v.s.rip, (CODE + 0x1d + 3) & 0xffff);

	rig_long(r, 0);
	r->v.s.gpr[R_AX] = 0x800000000000;
	assert_false(RUN(r, 0xff, 0xe0)); /* jmp rax, not canonical */
	assert_fault(r, EXC_GP, 0);
	assert_false(RUN(r, 0xff, 0xd0));
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
	put_le64(rig_mem(r, STACK0), 0x800000000000);
	assert_false(RUN(r, 0xc3));
	assert_fault(r, EXC_GP, 0);
	assert_int_equal(r->v.s.gpr[R_SP], STACK0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(push_sp_and_pop_memory), TEST(sixteen_bit_wrap), TEST(pusha_fault_writes_nothing), TEST(segments),
		TEST(enter_vs_host),	      TEST(near_flow)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
