/*
 * Memory operands that cross from one page into another, whose frames are not neighbours. Each operation runs on a
 * contiguous buffer and on the split one with the same bytes: results must be equal. With the second page missing or
 * read-only the fault is precise and nothing is written (SDM vol. 3, 4.7, 6.5; vol. 1, 4.1.1).
 */
#include "guest.h"

struct regs {
	u64 ax, bx, cx, dx;
	u64 flags;
	u8 x[32]; /* xmm0/ymm0 */
};

struct op {
	const char *name;
	unsigned size;
	bool writes;
	bool store_only; /* reads nothing: a fault of a read-only page is the only one */
	void (*fn)(struct regs *r, void *p);
	unsigned align; /* 0: any */
};

#define OP(name, text)                                                                                             \
	static void name(struct regs *r, void *p)                                                                  \
	{                                                                                                          \
		asm volatile("movups 40(%0), %%xmm0; mov (%0), %%rax; mov 8(%0), %%rbx; mov 16(%0), %%rcx;"        \
			     "mov 24(%0), %%rdx; push 32(%0); popf\n" text "\n"                                    \
			     "mov %%rax, (%0); mov %%rbx, 8(%0); mov %%rcx, 16(%0); mov %%rdx, 24(%0);"            \
			     "pushf; pop 32(%0); movups %%xmm0, 40(%0)"                                            \
			     ::"S"(r), "D"(p) : "rax", "rbx", "rcx", "rdx", "r8", "r9", "memory", "cc");           \
	}

OP(ld2, "movw (%%rdi), %%ax")
OP(ld4, "movl (%%rdi), %%eax")
OP(ld8, "movq (%%rdi), %%rax")
OP(movzx2, "movzwl (%%rdi), %%eax")
OP(movsx4, "movslq (%%rdi), %%rax")
OP(movbe4, "movbe (%%rdi), %%eax")
OP(st2, "movw %%ax, (%%rdi)")
OP(st4, "movl %%eax, (%%rdi)")
OP(st8, "movq %%rax, (%%rdi)")
OP(sti8, "movq $0x12345678, (%%rdi)")
OP(add4, "addl %%eax, (%%rdi)")
OP(add8r, "addq (%%rdi), %%rax")
OP(sbb8, "sbbq %%rbx, (%%rdi)")
OP(inc2, "incw (%%rdi)")
OP(not8, "notq (%%rdi)")
OP(neg4, "negl (%%rdi)")
OP(shl8, "shlq %%cl, (%%rdi)")
OP(rcr4, "rcrl $3, (%%rdi)")
OP(shld8, "shldq %%cl, %%rax, (%%rdi)")
OP(bts4, "btsl $30, (%%rdi)")
OP(btc8, "and $63, %%rcx; btcq %%rcx, (%%rdi)")
OP(xchg8, "xchgq %%rax, (%%rdi)")
OP(xchg2, "xchgw %%ax, (%%rdi)")
OP(xadd4, "xaddl %%eax, (%%rdi)")
OP(lxadd8, "lock xaddq %%rax, (%%rdi)")
OP(linc4, "lock incl (%%rdi)")
OP(lor8, "lock orq %%rax, (%%rdi)")
OP(cmpxchg4, "movl (%%rdi), %%eax; cmpxchgl %%ebx, (%%rdi)")
OP(cmpxchg4f, "cmpxchgl %%ebx, (%%rdi)")
OP(lcmpxchg8, "movq (%%rdi), %%rax; lock cmpxchgq %%rbx, (%%rdi)")
OP(cmpxchg8b, "movl (%%rdi), %%eax; movl 4(%%rdi), %%edx; lock cmpxchg8b (%%rdi)")
OP(mul8, "mulq (%%rdi)")
OP(div4, "xor %%edx, %%edx; divl (%%rdi)")
OP(imul4, "imull $77, (%%rdi), %%eax")
OP(push8, "pushq (%%rdi); pop %%rax")
OP(pop8, "push %%rax; popq (%%rdi)")
OP(pushstk, "mov %%rsp, %%r8; lea 8(%%rdi), %%rsp; pushq %%rax; mov %%r8, %%rsp")
OP(popstk, "mov %%rsp, %%r8; mov %%rdi, %%rsp; popq %%rax; mov %%r8, %%rsp")
OP(callm, "jmp 2f; 1: incq %%rax; ret; 2: pushq $1b; popq (%%rdi); callq *(%%rdi)")
OP(movsd_, "movsd (%%rdi), %%xmm0")
OP(stsd, "movsd %%xmm0, (%%rdi)")
OP(stss, "movss %%xmm0, (%%rdi)")
OP(movups, "movups (%%rdi), %%xmm0")
OP(stups, "movups %%xmm0, (%%rdi)")
OP(stdqu, "movdqu %%xmm0, (%%rdi)")
OP(movhps, "movhps (%%rdi), %%xmm0")
OP(sthps, "movhps %%xmm0, (%%rdi)")
OP(lddqu, "lddqu (%%rdi), %%xmm0")
OP(cvtsi, "cvtsi2sdl (%%rdi), %%xmm0")
OP(fld8, "fninit; fldl (%%rdi); fstpl (%%rsi)")
OP(fld10, "fninit; fldt (%%rdi); fstpt (%%rsi); movq $0, 16(%%rsi)")
OP(fst10, "fninit; fldpi; fstpt (%%rdi)")
OP(fist8, "fninit; fldpi; fistpll (%%rdi)")
OP(fst4, "fninit; fldpi; fstps (%%rdi)")
OP(fnstenv, "fninit; fnstenv (%%rdi); movl $0, 12(%%rdi)")
OP(movnti8, "movnti %%rax, (%%rdi)")
OP(setmem_movs, "mov %%rsi, %%r8; mov %%rdi, %%r9; movsq; mov %%r8, %%rsi; mov %%r9, %%rdi")
OP(lods8, "mov %%rsi, %%r8; mov %%rdi, %%rsi; lodsq; mov %%r8, %%rsi")
OP(vmovups, "vmovups (%%rdi), %%ymm0; vmovups %%ymm0, 40(%%rsi); vzeroupper; movups 40(%%rsi), %%xmm0")
OP(vstups, "vmovups 40(%%rsi), %%ymm0; vmovups %%ymm0, (%%rdi); vzeroupper")
OP(vpaddd, "vmovups 40(%%rsi), %%ymm0; vpaddd (%%rdi), %%ymm0, %%ymm0; vmovups %%ymm0, 40(%%rsi); vzeroupper; movups 40(%%rsi), %%xmm0")
OP(fxsave, "fxsave64 (%%rdi)")
OP(sgdt10, "sgdt (%%rdi)")

#define RD(fn, size) {#fn, size, false, false, fn, 0}
#define WR(fn, size) {#fn, size, true, false, fn, 0}
#define ST(fn, size) {#fn, size, true, true, fn, 0}
static const struct op ops[] = {
	RD(ld2, 2), RD(ld4, 4), RD(ld8, 8), RD(movzx2, 2), RD(movsx4, 4), ST(st2, 2), ST(st4, 4), ST(st8, 8), ST(sti8, 8),
	WR(add4, 4), RD(add8r, 8), WR(sbb8, 8), WR(inc2, 2), WR(not8, 8), WR(neg4, 4), WR(shl8, 8), WR(rcr4, 4), WR(shld8, 8),
	WR(bts4, 4), WR(btc8, 8), WR(xchg8, 8), WR(xchg2, 2), WR(xadd4, 4), WR(lxadd8, 8), WR(linc4, 4), WR(lor8, 8),
	WR(cmpxchg4, 4), WR(cmpxchg4f, 4), WR(lcmpxchg8, 8), WR(cmpxchg8b, 8), RD(mul8, 8), RD(div4, 4), RD(imul4, 4),
	RD(push8, 8), ST(pop8, 8), ST(pushstk, 8), RD(popstk, 8), ST(callm, 8), RD(movsd_, 8), ST(stsd, 8), ST(stss, 4), RD(movups, 16),
	ST(stups, 16), ST(stdqu, 16), RD(movhps, 8), ST(sthps, 8), RD(cvtsi, 4), RD(fld8, 8), RD(fld10, 10), ST(fst10, 10),
	ST(fist8, 8), ST(fst4, 4), ST(fnstenv, 28), ST(movnti8, 8), ST(setmem_movs, 8), RD(lods8, 8), ST(sgdt10, 10),
	{"fxsave", 512, true, true, fxsave, 16},
};
static const struct op op_lddqu = RD(lddqu, 16), op_movbe = RD(movbe4, 4);
static const struct op avx_ops[] = {RD(vmovups, 32), ST(vstups, 32), RD(vpaddd, 32)};

static u8 *lo, *hi; /* frames of the first and second page: hi lies below lo */
static u8 flat[2048] ALIGNED(4096);

static void fill(u8 *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		p[i] = (u8)(0x31 + 29 * i);
}

static void put_split(unsigned k, const u8 *src, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		*(i < k ? lo + 4096 - k + i : hi + i - k) = src[i];
}

static unsigned differ(unsigned k, const u8 *want, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (*(i < k ? lo + 4096 - k + i : hi + i - k) != want[i])
			return i + 1;
	return 0;
}

static struct regs start(void)
{
	struct regs r = {0x1111111122222205, 0x3333333344444444, 0x5555555555555507, 0x77777777, FL_FIXED | FL_CF, {0}};

	fill(r.x, sizeof(r.x));
	return r;
}

/* k bytes of the operand are in the first page. */
static void op_at(const struct op *o, unsigned k)
{
	ulong va = TEST_VA + 4096 - k;
	void *leaf1 = pte_at(read_cr3(), TEST_VA, 1), *leaf2 = pte_at(read_cr3(), TEST_VA + 4096, 1);
	u8 orig[512], *f = flat + 64;
	struct regs a, b;

	fill(orig, o->size);
	if (o->fn == fxsave)
		memset(orig, 0, o->size);
	memcpy(f, orig, o->size);
	put_split(k, orig, o->size);
	a = b = start();
	TRAP(o->fn(&a, f));
	group_eq((u64)trap.vector, (u64)NO_TRAP, "contiguous, %u", k);
	TRAP(o->fn(&b, (void *)va));
	group_eq((u64)trap.vector, (u64)NO_TRAP, "split, %u", k);
	group_eq((u64)memcmp(&a, &b, sizeof(a)), 0, "registers, %u", k);
	group_eq(differ(k, f, o->size), 0, "memory, %u", k);

	/* second page missing, first page missing, second read-only, first read-only */
	for (int c = 0; c < 4; c++) {
		bool second = c == 0 || c == 2, ro = c >= 2;
		if (ro && !o->writes)
			continue;
		put_split(k, orig, o->size);
		void *e = second ? leaf2 : leaf1;
		u64 old = pte_get(e);
		pte_set(e, ro ? old & ~(u64)PTE_W : 0);
		flush_tlb();
		b = start();
		TRAP(o->fn(&b, (void *)va));
		pte_set(e, old);
		flush_tlb();
		group_eq((u64)trap.vector, EXC_PF, "case %d, %u", c, k);
		if (trap.vector == EXC_PF) {
			/* x87 and descriptor images of several parts may be written in any order and part: only scalars and vectors are checked */
			group_eq(trap.cr2 & ~0xffful, second ? TEST_VA + 4096 : TEST_VA, "cr2, case %d, %u", c, k);
			if (second && o->size <= 32 && o->fn != fnstenv)
				group_eq(trap.cr2, TEST_VA + 4096, "exact cr2, case %d, %u", c, k);
			if (ro || o->store_only)
				group_eq(trap.f.error, (ro ? PF_P : 0) | PF_W, "error, case %d, %u", c, k);
			if (o->size <= 32 && o->fn != fnstenv && o->fn != sgdt10 && o->fn != fst10)
				group_eq(differ(k, orig, o->size), 0, "partial write, case %d, %u", c, k);
		}
	}
}

static void run_op(const struct op *o)
{
	char name[32] = "cross ";
	unsigned n = 6;

	for (const char *s = o->name; *s && n < sizeof(name) - 1; s++)
		name[n++] = *s;
	group_begin(name);
	if (o->align)
		for (unsigned k = o->align; k < 400; k += o->align * 5) /* FXSAVE: 416.. is not written */
			op_at(o, k);
	else
		for (unsigned k = 1; k < o->size; k++)
			op_at(o, k);
	group_end();
}

/* The upper ring-0 frame of an IRET, and an LGDT operand, across the boundary. */
static void system_ops(void)
{
	struct {
		u16 limit;
		ulong base;
	} __attribute__((packed)) g;
	ulong got;

	asm volatile("sgdt %0" : "=m"(g));
	put_split(5, (u8 *)&g, sizeof(g));
	TRAP(asm volatile("lgdt (%0); mov %1, %%es" ::"r"(TEST_VA + 4096 - 5), "r"(KDS)));
	check_trap(NO_TRAP, -1, "lgdt across pages");
	map_page(TEST_VA + 4096, 0, 1);
	TRAP(asm volatile("lgdt (%0)" ::"r"(TEST_VA + 4096 - 5)));
	check_trap(EXC_PF, 0, "lgdt into a missing page");
	check_eq(trap.cr2, TEST_VA + 4096, "lgdt into a missing page: cr2");
	/* iret whose frame ends in a missing page: nothing is loaded */
	ulong *f = (ulong *)(TEST_VA + 4096 - 24);
	u64 frame[3];
	memset(frame, 0, sizeof(frame));
	frame[0] = 0x1234;
	frame[1] = KCS;
	frame[2] = FL_FIXED;
	put_split(24, (u8 *)frame, 24);
	TRAP(asm volatile("mov %%rsp, %%rbx; mov %0, %%rsp; iretq" ::"r"(f) : "rbx"));
	check_trap(EXC_PF, 0, "iret with its frame's end in a missing page");
	check_eq(trap.cr2, TEST_VA + 4096, "iret with its frame's end in a missing page: cr2");
	check_eq(trap.f.sp, (ulong)f, "iret with its frame's end in a missing page: rsp");
	map_page(TEST_VA + 4096, (ulong)hi | PTE_P | PTE_W, 1);
	/* exception frame pushed across the boundary */
	TRAP(asm volatile("mov %0, %%rsp; ud2" ::"r"(TEST_VA + 4096 + 16)));
	check_trap(EXC_UD, 0, "exception frame across pages");
	check_eq(trap.f.sp, TEST_VA + 4096 + 16, "exception frame across pages: rsp");
	asm volatile("mov %%rsp, %%rdx; mov %1, %%rsp; movq $0x777, %%rax; enter $16, $0; mov (%%rbp), %0; leave; mov %%rdx, %%rsp"
		     : "=r"(got)
		     : "r"(TEST_VA + 4096 + 4)
		     : "rax", "rdx", "memory");
	check(got != 0x777, "enter and leave across pages");
}

int guest_main(void)
{
	idt_stub(EXC_PF, 0x8e, 3); /* rsp itself is an operand */
	hi = page_alloc();
	page_alloc();
	lo = page_alloc();
	map_page(TEST_VA, (ulong)lo | PTE_P | PTE_W, 1);
	map_page(TEST_VA + 4096, (ulong)hi | PTE_P | PTE_W, 1);
	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++)
		run_op(&ops[i]);
	if (cpuid(1, 0).c & BIT(0))
		run_op(&op_lddqu);
	if (cpuid(1, 0).c & BIT(22))
		run_op(&op_movbe);
	if (has_xsave() && has_avx() && has_leaf7b(5)) {
		write_cr4(read_cr4() | CR4_OSXSAVE);
		asm volatile("xsetbv" ::"a"(7), "d"(0), "c"(0));
		for (unsigned i = 0; i < ARRAY_SIZE(avx_ops); i++)
			run_op(&avx_ops[i]);
	} else {
		skip("cross AVX", "no AVX2");
	}
	system_ops();
	return 0;
}
