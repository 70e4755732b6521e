/*
 * Every exception of 64-bit and compatibility mode with its error code, saved rip and cr2. SDM vol. 3, chapter 6; vol. 2 for
 * each instruction.
 */
#include "guest.h"

#define NONCANON 0x8000000000000000ul

CODE(u_int3, "int3");
CODE(u_hlt, "hlt");
CODE(u_cli, "cli");
CODE(u_int20, "int $0x20");
CODE(u_in, "in $0x60, %al");
CODE(u_rdmsr, "mov $0xc0000080, %ecx; rdmsr");
CODE(u_cr0, "mov %cr0, %rax");
CODE(u_dr7, "mov %db7, %rax");
CODE(u_lgdt, "lgdt (%rdi)");
CODE(u_ltr, "ltr %di");
CODE(u_invlpg, "invlpg (%rdi)");
CODE(u_wbinvd, "wbinvd");
CODE(u_clts, "clts");
CODE(u_lmsw, "lmsw %di");
CODE(u_swapgs, "swapgs");
CODE(u_rdtsc, "rdtsc");
CODE(u_int3_slow, ".byte 0xcd, 3");
CODE(u_load, "movb (%rdi), %al");
CODE(u_load4, "movl (%rdi), %eax");
CODE(u_movaps, "movaps (%rdi), %xmm0");
CODE(u_mov_ds, "mov %edi, %ds");
CODE(u_mov_ss, "mov %edi, %ss");
CODE32(c_into, ".byte 0xb0, 0x7f; .byte 0x04, 0x01; into");
CODE32(c_into_no, "xorl %eax, %eax; into");
CODE32(c_bound, "movl $5, %eax; bound %eax, (%edi)");
CODE32(c_aam0, ".byte 0xd4, 0x00");
CODE32(c_int3, "int3");
CODE32(c_syscall64_op, ".byte 0x0f, 0x0b");
CODE32(c_limit, "movl %ss:(%edi), %eax");

static void faults_div(void)
{
	u32 zero = 0;

	TRAP(asm volatile("xor %%edx, %%edx; mov $1, %%eax; " MARK "divl %0" ::"m"(zero) : "eax", "edx"));
	check_trap(EXC_DE, 0, "div by zero");
	check_mark("div by zero");
	TRAP(asm volatile("mov $2, %%edx; mov $1, %%eax; mov $2, %%ecx; " MARK "divl %%ecx" ::: "eax", "ecx", "edx"));
	check_trap(EXC_DE, 0, "div overflow");
	TRAP(asm volatile("mov $0x80000000, %%eax; cltd; mov $-1, %%ecx; idivl %%ecx" ::: "eax", "ecx", "edx"));
	check_trap(EXC_DE, 0, "idiv overflow");
	TRAP(asm volatile("mov $0x100, %%eax; mov $1, %%cl; divb %%cl" ::: "eax", "ecx"));
	check_trap(EXC_DE, 0, "div8 overflow");
	TRAP(asm volatile("mov $1, %%edx; xor %%eax, %%eax; mov $1, %%ecx; divq %%rcx" ::: "eax", "ecx", "edx"));
	check_trap(EXC_DE, 0, "div64 overflow");
}

static void faults_simple(void)
{
	ulong after;

	TRAP(asm volatile("movq $1f, trap_mark; int3; 1: nop"));
	check_trap(EXC_BP, 0, "int3");
	check_mark("int3 is a trap");
	TRAP(asm volatile("movq $1f, trap_mark; int $3; 1: nop"));
	check_trap(EXC_BP, 0, "int 3");
	check_mark("int 3 is a trap");
	TRAP(asm volatile("int $4"));
	check_trap(EXC_OF, 0, "int 4");
	TRAP(asm volatile("movq $1f, trap_mark; .byte 0xf1; 1: nop"));
	check_trap(EXC_DB, 0, "int1");
	check_mark("int1 is a trap");
	TRAP(asm volatile(MARK "ud2"));
	check_trap(EXC_UD, 0, "ud2");
	check_mark("ud2");
	TRAP(asm volatile(MARK ".byte 0x0f, 0xff, 0xc0"));
	check_trap(EXC_UD, 0, "ud0");
	TRAP(asm volatile(MARK ".byte 0x0f, 0xb9, 0xc0"));
	check_trap(EXC_UD, 0, "ud1");
	/* invalid in 64-bit mode: SDM vol. 2, "Instructions not valid in 64-bit mode" */
	static const u8 inv64[] = {0x06, 0x0e, 0x16, 0x1e, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0xce, 0xd6};
	group_begin("invalid opcodes in 64-bit mode");
	for (unsigned i = 0; i < sizeof(inv64); i++) {
		static u8 code[16] ALIGNED(16);
		memset(code, 0xc3, sizeof(code));
		code[0] = inv64[i];
		TRAP(((void (*)(void))code)());
		group_eq((u64)trap.vector, EXC_UD, "%x", inv64[i]);
		group_eq(trap.f.ip, (ulong)code, "rip %x", inv64[i]);
	}
	group_end();
	/* LOCK on what cannot be locked */
	TRAP(asm volatile(".byte 0xf0, 0x90"));
	check_trap(EXC_UD, 0, "lock nop");
	TRAP(asm volatile(".byte 0xf0, 0x01, 0xc0"));
	check_trap(EXC_UD, 0, "lock add reg");
	TRAP(asm volatile(".byte 0xf0; movl %%eax, (%%rsp)" ::: "memory"));
	check_trap(EXC_UD, 0, "lock mov");
	TRAP(asm volatile(".byte 0xf0; cmpl %%eax, (%%rsp)" ::: "memory"));
	check_trap(EXC_UD, 0, "lock cmp");
	TRAP(asm volatile("mov %%cr1, %%rax" ::: "rax"));
	check_trap(EXC_UD, 0, "mov cr1");
	TRAP(asm volatile(".byte 0x8e, 0xc8")); /* mov cs, eax */
	check_trap(EXC_UD, 0, "mov to cs");
	TRAP(asm volatile(".byte 0x8e, 0xf0")); /* segment register 6 */
	check_trap(EXC_UD, 0, "mov to segment 6");
	TRAP(asm volatile(".byte 0x8d, 0xc0")); /* lea eax, eax */
	check_trap(EXC_UD, 0, "lea of a register");
	/* more than 15 bytes: #GP(0) (SDM vol. 2, 2.3.11) */
	TRAP(asm volatile(MARK ".fill 15, 1, 0x66; nop"));
	check_trap(EXC_GP, 0, "16-byte instruction");
	check_mark("16-byte instruction");
	TRAP(asm volatile(".fill 14, 1, 0x66; nop"));
	check_trap(NO_TRAP, -1, "15-byte instruction");
	/* a vector beyond the IDT limit: #GP(vector * 8 + 2) */
	struct {
		u16 limit;
		ulong base;
	} __attribute__((packed)) old, idtr;
	asm volatile("sidt %0" : "=m"(old));
	idtr = old;
	idtr.limit = 0x90 * 16 - 1;
	asm volatile("lidt %0" ::"m"(idtr));
	TRAP(asm volatile(MARK "int $0x95"));
	asm volatile("lidt %0" ::"m"(old));
	check_trap(EXC_GP, 0x95 * 8 + 2, "int beyond the IDT limit");
	check_mark("int beyond the IDT limit");
	after = read_flags();
	check_eq(after & (FL_TF | FL_NT | FL_IF), 0, "flags clean after traps");
}

static void faults_gate(void)
{
	/* gate not present: #NP(vector*8+2); wrong type: #GP; null selector: #GP(EXT); SDM vol. 3, 6.12, 6.13, 6.14 */
	idt_stub(0x90, 0x0e, 0);
	TRAP(asm volatile(MARK "int $0x90"));
	check_trap(EXC_NP, 0x90 * 8 + 2, "int through a not-present gate");
	check_mark("int through a not-present gate");
	idt_stub(0x90, 0x85, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, 0x90 * 8 + 2, "int through a task gate");
	idt_stub(0x90, 0x86, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, 0x90 * 8 + 2, "int through a 16-bit gate");
	struct gate g = idt[0x91];
	idt_set(0x90, 0x1000, 0, 0x8e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, 0, "int to a null selector");
	idt_set(0x90, 0x1000, KDS, 0x8e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, KDS, "int to a data segment");
	idt_set(0x90, 0x1000, KCS32, 0x8e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, KCS32, "int to a 32-bit code segment");
	idt_set(0x90, 0x1000, 0x1f8, 0x8e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, 0x1f8, "int to a selector beyond the GDT");
	gdt_set(SEL_FREE, gdt[KCS / 8] & ~BIT64(47));
	idt_set(0x90, 0x1000, SEL_FREE, 0x8e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_NP, SEL_FREE, "int to a not-present code segment");
	idt[0x90] = g;
	user_run(u_int20, 0, 0);
	check_trap(EXC_GP, 0x20 * 8 + 2, "ring 3: int with gate DPL 0");
	user_run(u_int3, 0, 0);
	check_trap(EXC_BP, 0, "ring 3: int3 with gate DPL 3");
	idt_stub(EXC_BP, 0x8e, 0);
	user_run(u_int3, 0, 0);
	check_trap(EXC_GP, 3 * 8 + 2, "ring 3: int3 with gate DPL 0");
	check_eq(trap.f.ip, user_ptr(u_int3), "ring 3: int3 with gate DPL 0: rip");
	user_run(u_int3_slow, 0, 0);
	check_trap(EXC_GP, 3 * 8 + 2, "ring 3: int 3 with gate DPL 0");
	idt_stub(EXC_BP, 0xee, 0);
}

static void ring3_privileged(void)
{
	static const struct {
		const char *name, *code;
	} t[] = {
		{"hlt", u_hlt}, {"cli", u_cli}, {"in", u_in}, {"rdmsr", u_rdmsr}, {"mov cr0", u_cr0}, {"mov dr7", u_dr7},
		{"lgdt", u_lgdt}, {"ltr", u_ltr}, {"invlpg", u_invlpg}, {"wbinvd", u_wbinvd}, {"clts", u_clts},
		{"lmsw", u_lmsw}, {"swapgs", u_swapgs},
	};
	static u64 mem[2];

	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		user_run(t[i].code, user_ptr(mem), 0);
		check_trap(EXC_GP, 0, "ring 3: %s", t[i].name);
	}
	write_cr4(read_cr4() | CR4_TSD);
	user_run(u_rdtsc, 0, 0);
	check_trap(EXC_GP, 0, "ring 3: rdtsc with CR4.TSD");
	TRAP(rdtsc());
	check_trap(NO_TRAP, -1, "ring 0: rdtsc with CR4.TSD");
	write_cr4(read_cr4() & ~CR4_TSD);
	user_run(u_rdtsc, 0, 0);
	check_trap(VEC_EXIT, 0, "ring 3: rdtsc without CR4.TSD");
}

/* Selector error codes of data segment loads: SDM vol. 2, MOV; vol. 3, 6.13. */
static void seg_loads(void)
{
	u32 big = 0x200;

#define LOAD(seg, sel) TRAP(asm volatile(MARK "mov %0, %%" seg ::"r"((u32)(sel))))
	LOAD("ds", 0);
	check_trap(NO_TRAP, -1, "ds = 0");
	LOAD("es", 3);
	check_trap(NO_TRAP, -1, "es = 3 (null)");
	LOAD("ds", big);
	check_trap(EXC_GP, big, "ds beyond the GDT");
	check_mark("ds beyond the GDT");
	LOAD("fs", SEL_TSS);
	check_trap(EXC_GP, SEL_TSS, "fs = TSS");
	gdt_set(SEL_FREE, gdt[KDS / 8] & ~BIT64(47));
	LOAD("es", SEL_FREE);
	check_trap(EXC_NP, SEL_FREE, "es = not present");
	LOAD("ss", SEL_FREE);
	check_trap(EXC_SS, SEL_FREE, "ss = not present");
	gdt_set(SEL_FREE, seg_desc(0, 0xfffff, 0x99, 0xa)); /* execute-only code */
	LOAD("gs", SEL_FREE);
	check_trap(EXC_GP, SEL_FREE, "gs = execute-only code");
	LOAD("ds", KCS);
	check_trap(NO_TRAP, -1, "ds = readable code");
	LOAD("ss", KCS);
	check_trap(EXC_GP, KCS, "ss = code");
	LOAD("ss", UDS);
	check_trap(EXC_GP, UDS & ~3, "ss = DPL 3 data in ring 0");
	LOAD("ss", KDS | 3);
	check_trap(EXC_GP, KDS, "ss with RPL 3 in ring 0");
	LOAD("ss", 0);
	check_trap(NO_TRAP, -1, "ss = 0 in 64-bit ring 0");
	LOAD("ss", KDS);
	LOAD("ss", 3);
	check_trap(EXC_GP, 0, "ss = 3 in 64-bit ring 0");
	gdt_set(SEL_FREE, seg_desc(0, 0xfffff, 0x91, 0xc)); /* read-only data */
	LOAD("ss", SEL_FREE);
	check_trap(EXC_GP, SEL_FREE, "ss = read-only data");
	LOAD("es", SEL_FREE | 4);
	check_trap(EXC_GP, SEL_FREE | 4, "es in a null LDT");
	LOAD("es", KDS | 3);
	check_trap(EXC_GP, KDS, "ring 0: es = DPL 0 with RPL 3");
	user_run(u_mov_ds, KDS, 0);
	check_trap(EXC_GP, KDS, "ring 3: ds = DPL 0");
	user_run(u_mov_ds, 0x1f8 | 3, 0);
	check_trap(EXC_GP, 0x1f8, "ring 3: error code has no RPL");
	user_run(u_mov_ss, 0, 0);
	check_trap(EXC_GP, 0, "ring 3: ss = 0");
	/* the accessed bit is set by a load */
	gdt_set(SEL_FREE, gdt[KDS / 8] & ~BIT64(40));
	LOAD("es", SEL_FREE);
	check_eq(gdt[SEL_FREE / 8] >> 40 & 1, 1, "accessed bit of a data segment");
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %1, %%gs" ::"r"(UDS), "r"(0));
	/* system segments */
	TRAP(asm volatile("ltr %w0" ::"r"(0)));
	check_trap(EXC_GP, 0, "ltr 0");
	TRAP(asm volatile("ltr %w0" ::"r"(SEL_TSS)));
	check_trap(EXC_GP, SEL_TSS, "ltr of a busy TSS");
	TRAP(asm volatile("ltr %w0" ::"r"(KDS)));
	check_trap(EXC_GP, KDS, "ltr of data");
	u64 tss_lo = gdt[SEL_TSS / 8], tss_hi = gdt[SEL_TSS / 8 + 1];
	gdt_set(SEL_FREE, (tss_lo & ~BIT64(41)) & ~BIT64(47));
	gdt_set(SEL_FREE + 8, tss_hi);
	TRAP(asm volatile("ltr %w0" ::"r"(SEL_FREE)));
	check_trap(EXC_NP, SEL_FREE, "ltr of a not-present TSS");
	TRAP(asm volatile("lldt %w0" ::"r"(KDS)));
	check_trap(EXC_GP, KDS, "lldt of data");
	gdt_set(SEL_FREE, seg_desc(0, 0xff, 0x02, 0));
	gdt_set(SEL_FREE + 8, 0);
	TRAP(asm volatile("lldt %w0" ::"r"(SEL_FREE)));
	check_trap(EXC_NP, SEL_FREE, "lldt not present");
	TRAP(asm volatile("lldt %w0" ::"r"(0)));
	check_trap(NO_TRAP, -1, "lldt 0");
	gdt[SEL_TSS / 8] &= ~BIT64(41); /* not busy: load it anew, whatever the checks above did */
	TRAP(asm volatile("ltr %w0" ::"r"(SEL_TSS)));
	check_trap(NO_TRAP, -1, "ltr of an available TSS");
	check_eq(gdt[SEL_TSS / 8] >> 41 & 1, 1, "ltr sets the busy bit");
}

static void far_transfers(void)
{
	struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p = {0x1000, 0};

#define LJMP() TRAP(asm volatile(MARK "ljmpl *%0" ::"m"(p)))
	LJMP();
	check_trap(EXC_GP, 0, "ljmp to null");
	check_mark("ljmp to null");
	p.sel = KDS;
	LJMP();
	check_trap(EXC_GP, KDS, "ljmp to data");
	p.sel = UCS;
	LJMP();
	check_trap(EXC_GP, UCS & ~3, "ljmp to DPL 3 code");
	p.sel = 0x200;
	LJMP();
	check_trap(EXC_GP, 0x200, "ljmp beyond the GDT");
	gdt_set(SEL_FREE, gdt[KCS / 8] & ~BIT64(47));
	p.sel = SEL_FREE;
	LJMP();
	check_trap(EXC_NP, SEL_FREE, "ljmp to not-present code");
	gdt_set(SEL_FREE, seg_desc(0, 0xfffff, 0x9b, 0xe)); /* L and D both */
	LJMP();
	check_trap(EXC_GP, SEL_FREE, "ljmp to code with L and D");
	p.sel = SEL_TSS;
	LJMP();
	check_trap(EXC_GP, SEL_TSS, "ljmp to a TSS in long mode");
}

static void stack_and_canonical(void)
{
	ulong nc = NONCANON;

	TRAP(asm volatile(MARK "movb (%0), %%al" ::"D"(nc) : "al"));
	check_trap(EXC_GP, 0, "load from a non-canonical address");
	check_mark("load from a non-canonical address");
	TRAP(asm volatile("mov %0, %%rbp; movb (%%rbp), %%al; mov %%rbp, %%rbp" ::"r"(nc) : "al", "rbx"));
	check_trap(EXC_SS, 0, "load through rbp, non-canonical");
	/* measured on the CPU too: all four fault at the branch, with RSP as before it */
	TRAP(asm volatile(MARK "jmp *%0" ::"r"(nc)));
	check_trap(EXC_GP, 0, "jmp to a non-canonical address");
	check_mark("jmp to a non-canonical address");
	ulong sp;
	TRAP(asm volatile("mov %%rsp, %0; " MARK "call *%1" : "=m"(sp) : "r"(nc)));
	check_trap(EXC_GP, 0, "call of a non-canonical address");
	check_mark("call of a non-canonical address");
	check_eq(trap.f.sp, sp, "call of a non-canonical address: rsp");
	TRAP(asm volatile("mov %%rsp, %0; movq $0x08, -8(%%rsp); mov %1, -16(%%rsp); lea -16(%%rsp), %%rsp; " MARK "lretq" : "=m"(sp) : "r"(nc) : "memory"));
	check_trap(EXC_GP, 0, "lret to a non-canonical address");
	check_mark("lret to a non-canonical address");
	TRAP(asm volatile("mov %%rsp, %0; push %1; " MARK "ret" : "=m"(sp) : "r"(nc)));
	check_trap(EXC_GP, 0, "ret to a non-canonical address");
	check_mark("ret to a non-canonical address");
	check_eq(trap.f.sp, sp - 8, "ret to a non-canonical address: rsp");
	/* a push on a non-canonical stack is #SS(0); taken on IST3, as the stack is no use */
	idt_stub(EXC_SS, 0x8e, 3);
	TRAP(asm volatile("mov %0, %%rsp; " MARK "push %%rax" ::"r"(nc)));
	idt_stub(EXC_SS, 0x8e, 0);
	check_trap(EXC_SS, 0, "push with non-canonical rsp");
	check_mark("push with non-canonical rsp");
	check_eq(trap.f.sp, nc, "push with non-canonical rsp: rsp kept");
	TRAP(asm volatile("invlpg (%0)" ::"r"(nc)));
	check_trap(NO_TRAP, -1, "invlpg of a non-canonical address");
	/* the last byte of a canonical half: the access crosses into the hole */
	TRAP(asm volatile("movl (%0), %%eax" ::"D"(0x7ffffffffffeul) : "eax"));
	check_trap(EXC_GP, 0, "load across the canonical boundary");
}

static void page_faults(void)
{
	TRAP(asm volatile(MARK "movb (%0), %%al" ::"r"(TEST_VA) : "al"));
	check_trap(EXC_PF, 0, "read of nothing");
	check_mark("read of nothing");
	check_eq(trap.cr2, TEST_VA, "read of nothing: cr2");
	TRAP(asm volatile("movb $1, (%0)" ::"r"(TEST_VA + 5)));
	check_trap(EXC_PF, PF_W, "write to nothing");
	check_eq(trap.cr2, TEST_VA + 5, "write to nothing: cr2");
	TRAP(((void (*)(void))(TEST_VA + 0x123))());
	check_trap(EXC_PF, PF_I, "fetch from nothing");
	check_eq(trap.cr2, TEST_VA + 0x123, "fetch from nothing: cr2");
	check_eq(trap.f.ip, TEST_VA + 0x123, "fetch from nothing: rip");
	user_run(u_load, TEST_VA, 0);
	check_trap(EXC_PF, PF_U, "ring 3: read of nothing");
	user_run(u_load, 0x100000, 0);
	check_trap(EXC_PF, PF_U | PF_P, "ring 3: read of a supervisor page");
	struct frame f = user_frame(u_load);
	f.ip = 0x100000;
	run_frame(&f);
	check_trap(EXC_PF, PF_U | PF_P | PF_I, "ring 3: fetch from a supervisor page");
	/* an exception of a read-modify-write is a write fault */
	TRAP(asm volatile("addl $1, (%0)" ::"r"(TEST_VA)));
	check_trap(EXC_PF, PF_W, "add to nothing");
	TRAP(asm volatile("xor %%eax, %%eax; mov $1, %%ecx; lock cmpxchgl %%ecx, (%0)" ::"r"(TEST_VA) : "eax", "ecx"));
	check_trap(EXC_PF, PF_W, "cmpxchg on nothing");
}

static void fpu_faults(void)
{
	u32 mxcsr = 0x1f80, cw = 0x37f;
	ulong cr0 = read_cr0();
	static u8 misaligned[64] ALIGNED(16);

	write_cr0(cr0 | CR0_TS);
	TRAP(asm volatile(MARK "fninit"));
	check_trap(EXC_NM, 0, "x87 with CR0.TS");
	check_mark("x87 with CR0.TS");
	TRAP(asm volatile("xorps %xmm0, %xmm0"));
	check_trap(EXC_NM, 0, "SSE with CR0.TS");
	TRAP(asm volatile("fwait"));
	check_trap(EXC_NM, 0, "fwait with CR0.TS and MP");
	write_cr0((cr0 | CR0_TS) & ~CR0_MP);
	TRAP(asm volatile("fwait"));
	check_trap(NO_TRAP, -1, "fwait with CR0.TS, no MP");
	write_cr0((cr0 & ~CR0_TS) | CR0_EM);
	TRAP(asm volatile("fninit"));
	check_trap(EXC_NM, 0, "x87 with CR0.EM");
	TRAP(asm volatile("xorps %xmm0, %xmm0"));
	check_trap(EXC_UD, 0, "SSE with CR0.EM");
	write_cr0(cr0 & ~CR0_TS);
	TRAP(asm volatile("fninit; fldcw %0; fld1; fldz; fdivrp; " MARK "fwait" ::"m"((u32){0x33b})));
	check_trap(EXC_MF, 0, "x87 divide, unmasked");
	asm volatile("fninit; fldcw %0" ::"m"(cw));
	asm volatile("ldmxcsr %0" ::"m"((u32){0x1d80})); /* ZM clear */
	TRAP(asm volatile("xorps %xmm1, %xmm1; movl $0x3f800000, %eax; movd %eax, %xmm0; " MARK "divss %xmm1, %xmm0"));
	check_trap(EXC_XM, 0, "SSE divide, unmasked");
	check_mark("SSE divide, unmasked");
	write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
	TRAP(asm volatile("divss %xmm1, %xmm0"));
	check_trap(EXC_UD, 0, "SSE divide, unmasked, no OSXMMEXCPT");
	write_cr4(read_cr4() | CR4_OSXMMEXCPT);
	asm volatile("ldmxcsr %0" ::"m"(mxcsr));
	TRAP(asm volatile("ldmxcsr %0" ::"m"((u32){0x80001f80})));
	check_trap(EXC_GP, 0, "ldmxcsr with a reserved bit");
	write_cr4(read_cr4() & ~CR4_OSFXSR);
	TRAP(asm volatile("xorps %xmm0, %xmm0"));
	check_trap(EXC_UD, 0, "SSE without CR4.OSFXSR");
	write_cr4(read_cr4() | CR4_OSFXSR);
	TRAP(asm volatile("movaps %%xmm0, (%0)" ::"r"(misaligned + 1) : "memory"));
	check_trap(EXC_GP, 0, "misaligned movaps");
	user_run(u_movaps, user_ptr(misaligned + 4), 0);
	check_trap(EXC_GP, 0, "ring 3: misaligned movaps");
}

static void alignment(void)
{
	static u8 buf[64] ALIGNED(16);
	struct frame f = user_frame(u_load4);

	f.di = user_ptr(buf + 1);
	write_cr0(read_cr0() | CR0_AM);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "misaligned load, AM, no AC");
	f = user_frame(u_load4);
	f.di = user_ptr(buf + 1);
	f.flags |= FL_AC;
	run_frame(&f);
	check_trap(EXC_AC, 0, "misaligned load, AM and AC");
	check_eq(trap.f.ip, user_ptr(u_load4), "misaligned load: rip");
	f = user_frame(u_load4);
	f.di = user_ptr(buf + 4);
	f.flags |= FL_AC;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "aligned load, AM and AC");
	write_flags(FL_AC);
	TRAP(asm volatile("movl (%0), %%eax" ::"r"(buf + 1) : "eax"));
	write_flags(0);
	check_trap(NO_TRAP, -1, "ring 0: misaligned load, AM and AC");
	write_cr0(read_cr0() & ~CR0_AM);
	f = user_frame(u_load4);
	f.di = user_ptr(buf + 1);
	f.flags |= FL_AC;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "misaligned load, AC, no AM");
}

static struct frame compat_frame(const void *fn)
{
	struct frame f = user_frame(fn);

	f.cs = UCS32;
	return f;
}

static void compat(void)
{
	static u32 bounds[2] = {1, 4};
	struct frame f = compat_frame(c_into);

	run_frame(&f);
	check_trap(EXC_OF, 0, "compat: into");
	check_eq(trap.f.ip, user_ptr(c_into) + 5, "compat: into is a trap");
	f = compat_frame(c_into_no);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "compat: into without overflow");
	f = compat_frame(c_bound);
	f.di = user_ptr(bounds);
	run_frame(&f);
	check_trap(EXC_BR, 0, "compat: bound");
	bounds[1] = 5;
	f = compat_frame(c_bound);
	f.di = user_ptr(bounds);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "compat: bound in range");
	f = compat_frame(c_aam0);
	run_frame(&f);
	check_trap(EXC_DE, 0, "compat: aam 0");
	f = compat_frame(c_int3);
	run_frame(&f);
	check_trap(EXC_BP, 0, "compat: int3");
	check_eq(trap.f.cs, UCS32, "compat: cs in the frame");
	check_eq(trap.f.ss, UDS, "compat: ss in the frame");
	/* a limit violation of SS in compatibility mode is #SS(0) */
	gdt_set(SEL_FREE, seg_desc(0, 0xfff, 0xf3, 4));
	f = compat_frame(c_limit);
	f.ss = SEL_FREE | 3;
	f.di = 0x1000;
	run_frame(&f);
	check_trap(EXC_SS, 0, "compat: stack limit");
}

/* A fault while delivering a fault: SDM vol. 3, table 6-5. */
static void nested(void)
{
	/* #NP while delivering #GP (contributory, contributory): #DF(0), on IST1 */
	idt_stub(EXC_GP, 0x0e, 0);
	TRAP(asm volatile("movb (%0), %%al" ::"D"(NONCANON) : "al"));
	idt_stub(EXC_GP, 0x8e, 0);
	check_trap(EXC_DF, 0, "#GP, then #NP: #DF");
	check(trap.handler_sp - (ulong)ist_stack[0] < sizeof(ist_stack[0]), "#DF runs on IST1");
	/* benign #UD, then #NP: served serially, #NP(6 * 8 + 2 + EXT) */
	idt_stub(EXC_UD, 0x0e, 0);
	TRAP(asm volatile(MARK "ud2"));
	idt_stub(EXC_UD, 0x8e, 0);
	check_trap(EXC_NP, EXC_UD * 8 + 3, "#UD, then #NP: #NP with EXT");
	check_mark("#UD, then #NP");
	/* #PF, then #NP: #DF */
	idt_stub(EXC_PF, 0x0e, 0);
	TRAP(asm volatile("movb (%0), %%al" ::"r"(TEST_VA) : "al"));
	idt_stub(EXC_PF, 0x8e, 0);
	check_trap(EXC_DF, 0, "#PF, then #NP: #DF");
	/* #PF on the stack while delivering #PF: #DF; cr2 is the second fault's */
	TRAP(asm volatile("mov %0, %%rsp; movb (%1), %%al" ::"r"(TEST_VA + 0x2000), "r"(TEST_VA) : "al"));
	check_trap(EXC_DF, 0, "#PF, then #PF: #DF");
	check_eq(trap.cr2 & ~0xfful, TEST_VA + 0x1f00, "#PF, then #PF: cr2");
	/* #UD, then #PF on its stack: served serially */
	idt_stub(EXC_PF, 0x8e, 3);
	TRAP(asm volatile("mov %0, %%rsp; ud2" ::"r"(TEST_VA + 0x2000)));
	check_trap(EXC_PF, PF_W, "#UD, then #PF: #PF");
	/* #GP, then #PF: served serially too (contributory, then page fault) */
	TRAP(asm volatile("mov %0, %%rsp; movb (%1), %%al" ::"r"(TEST_VA + 0x2000), "D"(NONCANON) : "al"));
	idt_stub(EXC_PF, 0x8e, 0);
	check_trap(EXC_PF, PF_W, "#GP, then #PF: #PF");
	/* a handler outside the canonical range: #GP(0) from the delivery; serial after #UD */
	idt_set(EXC_UD, NONCANON, KCS, 0x8e, 0);
	TRAP(asm volatile("ud2"));
	idt_stub(EXC_UD, 0x8e, 0);
	check_trap(EXC_GP, -1, "#UD to a non-canonical handler: #GP");
	/* non-canonical stack in the TSS: #SS(0) with EXT (vol. 3, 6.12.1.3) */
	idt_stub(EXC_SS, 0x8e, 3);
	tss.rsp[0] = NONCANON;
	user_run(u_hlt, 0, 0);
	tss.rsp[0] = (ulong)ring0_stack + sizeof(ring0_stack);
	idt_stub(EXC_SS, 0x8e, 0);
	check_trap(EXC_DF, 0, "ring 3 #GP, then #SS for RSP0: #DF");
}

int guest_main(void)
{
	faults_div();
	faults_simple();
	faults_gate();
	ring3_privileged();
	seg_loads();
	far_transfers();
	stack_and_canonical();
	page_faults();
	fpu_faults();
	alignment();
	compat();
	nested();
	return 0;
}
