/*
 * IRET, far returns and call gates in long mode: rings, null and wrong selectors, stacks, flags.
 * SDM vol. 2, IRET/IRETD/IRETQ, RET, CALL; vol. 3, 5.8.
 */
#include "guest.h"

#define NONCANON 0x8000000000000000ul

CODE(u_nop, "nop");
CODE(u_flags, "pushf; pop %rax");
CODE(u_iret, "iretq");
CODE(u_popf, "push %rdi; popf; pushf; pop %rax");
CODE(u_segs, "mov %ds, %eax; mov %es, %ebx; mov %fs, %ecx; mov %gs, %edx");
CODE(u_lcall, "mov %ss, %ebx; lcall *(%rdi); mov %cs, %ecx; mov %ss, %edx");
CODE(u_lret, "lretq");
CODE(k_gate, "");
CODE(u_twice, "int $0x80; int $0x81");
CODE32(c_nop, "nop");
CODE32(c_iret, "mov %esp, %ebx; pushf; push %cs; call 1f; 1: addl $7, (%esp); iretl; nop; nop; mov %esp, %ecx");
CODE32(c_lcall, "lcall *(%edi); mov %cs, %ecx");

/* IRETQ in ring 0 with the given frame; the trap is in `trap`, at MARK when the IRET itself faults. */
static int iretq(ulong ip, ulong cs, ulong flags, ulong sp, ulong ss)
{
	ulong f[5] = {ip, cs, flags, sp, ss};

	return TRAP(asm volatile("mov %0, %%rsp; " MARK "iretq" ::"r"(f) : "memory"));
}

static void fails(int vector, long error, const char *name)
{
	check_trap(vector, error, "%s", name);
	check_eq(trap.f.ip, trap_mark, "%s: rip", name);
	check_eq(trap.f.cs, KCS, "%s: still in ring 0", name);
}

static void errors(void)
{
	ulong ip = user_ptr(u_nop), sp = user_ptr(user_stack + 4096);

	iretq(NONCANON, UCS, FL_FIXED, sp, UDS);
	check_trap(EXC_GP, 0, "non-canonical rip, ring 3");
	if (!cpu_is_amd()) /* AMD's fault may come after the switch (APM vol. 2, 8.2) */
		check_mark("non-canonical rip, ring 3");
	iretq(ip, 0, FL_FIXED, sp, UDS);
	fails(EXC_GP, 0, "null CS");
	iretq(ip, 3, FL_FIXED, sp, UDS);
	fails(EXC_GP, 0, "null CS with RPL 3");
	iretq(ip, UDS, FL_FIXED, sp, UDS);
	fails(EXC_GP, UDS & ~3, "CS = data");
	iretq(ip, 0x203, FL_FIXED, sp, UDS);
	fails(EXC_GP, 0x200, "CS beyond the GDT");
	iretq(ip, KCS | 3, FL_FIXED, sp, UDS);
	fails(EXC_GP, KCS, "CS with DPL 0, RPL 3");
	iretq(ip, UCS & ~3, FL_FIXED, sp, KDS);
	fails(EXC_GP, UCS & ~3, "CS with DPL 3, RPL 0");
	gdt_set(SEL_FREE, gdt[UCS / 8] & ~BIT64(47));
	iretq(ip, SEL_FREE | 3, FL_FIXED, sp, UDS);
	fails(EXC_NP, SEL_FREE, "CS not present");
	gdt_set(SEL_FREE, seg_desc(0, 0xfffff, 0xfb, 0xe));
	iretq(ip, SEL_FREE | 3, FL_FIXED, sp, UDS);
	fails(EXC_GP, SEL_FREE, "CS with L and D");
	iretq(ip, UCS, FL_FIXED, sp, 0);
	fails(EXC_GP, 0, "null SS to ring 3");
	iretq(ip, UCS, FL_FIXED, sp, 3);
	fails(EXC_GP, 0, "null SS (3) to 64-bit ring 3");
	iretq(user_ptr(c_nop), UCS32, FL_FIXED, sp, 3);
	fails(EXC_GP, 0, "null SS to compatibility mode");
	iretq(ip, UCS, FL_FIXED, sp, KDS | 3);
	fails(EXC_GP, KDS, "SS with DPL 0 to ring 3");
	iretq(ip, UCS, FL_FIXED, sp, UDS & ~3);
	fails(EXC_GP, UDS & ~3, "SS with RPL 0 to ring 3");
	iretq(ip, UCS, FL_FIXED, sp, UCS);
	fails(EXC_GP, UCS & ~3, "SS = code");
	gdt_set(SEL_FREE, gdt[UDS / 8] & ~BIT64(47));
	iretq(ip, UCS, FL_FIXED, sp, SEL_FREE | 3);
	fails(EXC_SS, SEL_FREE, "SS not present");
	gdt_set(SEL_FREE, seg_desc(0, 0xfffff, 0xf1, 0xc));
	iretq(ip, UCS, FL_FIXED, sp, SEL_FREE | 3);
	fails(EXC_GP, SEL_FREE, "SS read-only");
	/* NT in long mode: #GP(0) */
	ulong f[5] = {ip, UCS, FL_FIXED, sp, UDS};
	TRAP(asm volatile("mov %0, %%rsp; pushq %1; popfq; " MARK "iretq" ::"r"(f + 0), "r"(FL_NT | FL_FIXED) : "memory"));
	check_trap(EXC_GP, 0, "NT set");
	/* from ring 3 inwards */
	static ulong in[5];
	in[0] = (ulong)k_gate, in[1] = KCS, in[2] = FL_FIXED, in[3] = 0, in[4] = KDS;
	struct frame u = user_frame(u_iret);
	u.sp = user_ptr(in);
	run_frame(&u);
	check_trap(EXC_GP, KCS, "ring 3: IRET to ring 0");
	check_eq(trap.f.cs, UCS, "ring 3: IRET to ring 0: cs");
	u = user_frame(u_lret);
	u.sp = user_ptr(in);
	run_frame(&u);
	check_trap(EXC_GP, KCS, "ring 3: LRET to ring 0");
}

static void stacks(void)
{
	ulong mark = 0, sp, ss;

	/* IRETQ pops SS:RSP even when the ring stays: here with a null SS */
	static ulong other[64];
	asm volatile("mov %%rsp, %%rbx; pushq $0; pushq %3; pushfq; pushq $0x08; pushq $1f; iretq; 1: mov %%rsp, %0; mov %%ss, %1;"
		     "mov %%rbx, %%rsp; mov %4, %%ss; movl $1, %k2"
		     : "=&r"(sp), "=&r"(ss), "+&r"(mark)
		     : "r"(other + 32), "r"(KDS)
		     : "rbx", "memory");
	check_eq(mark, 1, "IRETQ to the same ring");
	check_eq(sp, (ulong)(other + 32), "IRETQ to the same ring: rsp");
	check_eq(ss & 0xffff, 0, "IRETQ to the same ring: null ss");
	/* a stack that is not aligned */
	asm volatile("mov %%rsp, %%rbx; lea -3(%%rbx), %%rsp; pushq $0x10; pushq %%rbx; pushfq; pushq $0x08; pushq $1f; iretq; 1: mov %%rsp, %0; mov %%rbx, %%rsp"
		     : "=&r"(sp)::"rbx", "memory");
	check((sp & 7) == 0, "IRETQ with a misaligned frame");
	/* interrupt delivery aligns RSP to 16 (vol. 3, 6.14.2) */
	TRAP(asm volatile("lea 5(%%rsp), %%rsp; sub $4096, %%rsp; ud2" ::: "memory"));
	check_eq((trap.handler_sp + sizeof(struct frame)) & 15, 0, "exception frame aligned to 16");
	/* 32-bit operand: pops 4-byte values */
	static u32 f32[5];
	f32[0] = (u32)user_ptr(u_nop), f32[1] = UCS, f32[2] = FL_FIXED, f32[3] = (u32)user_ptr(user_stack + 4096), f32[4] = UDS;
	TRAP(asm volatile("mov %0, %%rsp; iretl" ::"r"(f32) : "memory"));
	check_trap(VEC_EXIT, 0, "IRETD to ring 3");
	check_eq(trap.f.sp, user_ptr(user_stack + 4096), "IRETD to ring 3: rsp");
	check_eq(trap.f.ip, user_ptr(u_nop) + 3, "IRETD to ring 3: rip");
	f32[1] = UCS32;
	f32[0] = (u32)user_ptr(c_nop);
	TRAP(asm volatile("mov %0, %%rsp; iretl" ::"r"(f32) : "memory"));
	check_trap(VEC_EXIT, 0, "IRETD to compatibility mode");
	check_eq(trap.f.cs, UCS32, "IRETD to compatibility mode: cs");
	/* in compatibility mode IRETD to the same ring leaves ESP's stack */
	struct frame f = user_frame(c_iret);
	f.cs = UCS32;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "compat: IRETD to the same ring");
	check_eq(trap.f.cx, trap.f.bx, "compat: IRETD to the same ring: esp");
}

static void flags(void)
{
	struct frame f = user_frame(u_flags);
	ulong all = FL_CF | FL_ZF | FL_DF | FL_OF | FL_NT | FL_AC | FL_ID | FL_IOPL3 | FL_IF | FL_FIXED;

	f.flags = all | BIT(2) | BIT(4) | BIT(7);
	run_frame(&f);
	check_eq(trap.f.ax, all | BIT(2) | BIT(4) | BIT(7), "IRETQ loads every flag");
	check_eq(trap.f.flags & (FL_NT | FL_IF | FL_DF), FL_NT | FL_IF | FL_DF, "and the exception frame saves them");
	check_eq(read_flags() & (FL_NT | FL_DF | FL_IF), 0, "the gate cleared NT (and IF)");
	f = user_frame(u_flags);
	f.flags = FL_FIXED | FL_VM | BIT(3) | BIT(5) | BIT(15) | BIT(22);
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED, "VM and reserved flags are ignored");
	/* IRETQ by ring 3 with IOPL 0: neither IF nor IOPL change */
	static ulong in[5];
	in[0] = user_ptr(u_flags), in[1] = UCS, in[2] = FL_FIXED | FL_IF | FL_IOPL3, in[3] = user_ptr(user_stack + 8192), in[4] = UDS;
	f = user_frame(u_iret);
	f.sp = user_ptr(in);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "ring 3: IRETQ");
	check_eq(trap.f.ax, FL_FIXED, "ring 3: IRETQ keeps IF and IOPL");
	f.flags = FL_IF | FL_FIXED;
	in[2] = FL_FIXED;
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED | FL_IF, "ring 3: IRETQ cannot clear IF");
	f.flags = FL_IF | FL_IOPL3 | FL_FIXED;
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED | FL_IOPL3, "ring 3 with IOPL 3: IRETQ clears IF");
	/* RF: IRET restores it, PUSHF shows 0 */
	f = user_frame(u_flags);
	f.flags = FL_RF | FL_FIXED;
	run_frame(&f);
	check_eq(trap.f.ax & FL_RF, 0, "PUSHF shows RF as 0");
	/* a fault's frame has RF set, a trap's not (vol. 3, 17.3.1.1) */
	TRAP(asm volatile("ud2"));
	check_eq(trap.f.flags & FL_RF, FL_RF, "RF in the frame of a fault");
	TRAP(asm volatile("int3"));
	check_eq(trap.f.flags & FL_RF, 0, "RF in the frame of a trap");
}

/* Return to ring 3 makes data segments of inner rings null (vol. 2, IRET; vol. 3, 5.8.6). */
static void segments(void)
{
	struct frame f = user_frame(u_segs);

	asm volatile("mov %0, %%ds; mov %1, %%es; mov %0, %%fs; mov %1, %%gs" ::"r"(KDS), "r"(UDS));
	run_frame(&f);
	asm volatile("mov %0, %%ds; mov %0, %%es" ::"r"(UDS));
	check_eq(trap.f.ax & 0xffff, 0, "ds with DPL 0 becomes null");
	check_eq(trap.f.bx & 0xffff, UDS, "es with DPL 3 stays");
	check_eq(trap.f.cx & 0xffff, 0, "fs with DPL 0 becomes null");
	check_eq(trap.f.dx & 0xffff, UDS, "gs with DPL 3 stays");
	asm volatile("mov %0, %%fs; mov %0, %%gs" ::"r"(0));
	/* the ring 0 stack segment after an exception from ring 3 is null */
	static u16 ss_seen;
	user_run(u_nop, 0, 0);
	asm volatile("mov %%ss, %0" : "=m"(ss_seen));
	check_eq(ss_seen, KDS, "IRETQ loaded SS");
}

static bool save_ss(struct frame *f)
{
	f->ax = 0;
	asm volatile("mov %%ss, %w0" : "+r"(f->ax));
	return true;
}

static void inner_ss(void)
{
	struct frame f = user_frame(u_nop);

	trap_hook[VEC_EXIT] = save_ss;
	f.ax = 0x1234;
	/* int $0x80, back with rax = the handler's SS, then int $0x81 ends it */
	idt_stub(0x81, 0xee, 0);
	f = user_frame(u_twice);
	run_frame(&f);
	trap_hook[VEC_EXIT] = NULL;
	check_trap(0x81, 0, "back from a handler");
	check_eq(trap.f.ax, 0, "SS is null in ring 0 after a ring change");
}

static void far_returns(void)
{
	ulong f[4] = {user_ptr(u_nop), UCS, user_ptr(user_stack + 4096), UDS};

	TRAP(asm volatile("mov %0, %%rsp; lretq" ::"r"(f) : "memory"));
	check_trap(VEC_EXIT, 0, "LRETQ to ring 3");
	check_eq(trap.f.sp, user_ptr(user_stack + 4096), "LRETQ to ring 3: rsp");
	ulong g[8] = {user_ptr(u_nop), UCS, 0, 0, user_ptr(user_stack + 4096), UDS};
	TRAP(asm volatile("mov %0, %%rsp; lretq $16" ::"r"(g) : "memory"));
	check_trap(VEC_EXIT, 0, "LRETQ 16 to ring 3");
	check_eq(trap.f.sp, user_ptr(user_stack + 4096) + 16, "LRETQ 16 to ring 3: rsp skips the parameters on both stacks");
	f[1] = 0;
	TRAP(asm volatile("mov %0, %%rsp; " MARK "lretq" ::"r"(f) : "memory"));
	check_trap(EXC_GP, 0, "LRETQ to null");
	check_mark("LRETQ to null");
	f[1] = UDS;
	TRAP(asm volatile("mov %0, %%rsp; lretq" ::"r"(f) : "memory"));
	check_trap(EXC_GP, UDS & ~3, "LRETQ to data");
	f[1] = UCS;
	f[3] = 0;
	TRAP(asm volatile("mov %0, %%rsp; lretq" ::"r"(f) : "memory"));
	check_trap(EXC_GP, 0, "LRETQ to ring 3 with null SS");
	u32 r;
	asm volatile("pushq $0x08; lea 1f(%%rip), %%rax; pushq %%rax; movl $0, %0; lretq; movl $1, %0; 1: addl $2, %0" : "=&r"(r)::"rax", "memory");
	check_eq(r, 2, "LRETQ in ring 0");
}

/* 64-bit call gates: vol. 3, 5.8.3.1, 5.8.5.1. */
static void set_gate(ulong target, u16 sel, u8 access)
{
	gdt_set(SEL_FREE, (target & 0xffff) | (u64)sel << 16 | (u64)access << 40 | (u64)(target >> 16 & 0xffff) << 48);
	gdt_set(SEL_FREE + 8, target >> 32);
}

static void gates(void)
{
	static struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p = {0x12345678, SEL_FREE | 3};
	static ulong seen[8];
	extern const char k_entry[];

	asm volatile("jmp 9f\n"
		     "k_entry: pushq %%rax; movq 8(%%rsp), %%rax; movq %%rax, %0; movq 16(%%rsp), %%rax; movq %%rax, 8+%0;"
		     "movq 24(%%rsp), %%rax; movq %%rax, 16+%0; movq 32(%%rsp), %%rax; movq %%rax, 24+%0; movq %%rsp, 32+%0;"
		     "mov %%ss, %%eax; movq %%rax, 40+%0; mov %%cs, %%eax; movq %%rax, 48+%0; popq %%rax\n"
		     "lretq\n9:" : "=m"(seen)::"memory");
	set_gate((ulong)k_entry, KCS, 0xec);
	struct frame f = user_frame(u_lcall);
	f.di = user_ptr(&p);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "call gate from ring 3 and LRETQ");
	check_eq(trap.f.cx & 0xffff, UCS, "call gate: cs after the return");
	check_eq(trap.f.dx & 0xffff, UDS, "call gate: ss after the return");
	check_eq(trap.f.sp, f.sp, "call gate: rsp after the return");
	check_eq(seen[0], user_ptr(u_lcall) + 4, "call gate: return rip on the stack");
	check_eq(seen[1], UCS, "call gate: return cs");
	check_eq(seen[2], f.sp, "call gate: old rsp");
	check_eq(seen[3], UDS, "call gate: old ss");
	check_eq(seen[4], (ulong)ring0_stack + sizeof(ring0_stack) - 40, "call gate: RSP0");
	check_eq(seen[5] & 0xffff, 0, "call gate: null SS in ring 0");
	check_eq(seen[6] & 0xffff, KCS, "call gate: cs in ring 0");
	f = user_frame(c_lcall);
	f.cs = UCS32;
	f.di = user_ptr(&p);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "call gate from compatibility mode");
	check_eq(trap.f.cx & 0xffff, UCS32, "call gate from compatibility mode: cs after the return");

#define CALL_GATE(name, vec, err) (f = user_frame(u_lcall), f.di = user_ptr(&p), run_frame(&f), check_trap(vec, err, name))
	set_gate((ulong)k_entry, KCS, 0x8c);
	CALL_GATE("call gate with DPL 0 from ring 3", EXC_GP, SEL_FREE);
	check_eq(trap.f.ip, user_ptr(u_lcall) + 2, "call gate with DPL 0: rip");
	set_gate((ulong)k_entry, KCS, 0x6c);
	CALL_GATE("call gate not present", EXC_NP, SEL_FREE);
	set_gate((ulong)k_entry, 0, 0xec);
	CALL_GATE("call gate to null", EXC_GP, 0);
	set_gate((ulong)k_entry, KDS, 0xec);
	CALL_GATE("call gate to data", EXC_GP, KDS);
	set_gate((ulong)k_entry, KCS32, 0xec);
	CALL_GATE("call gate to 32-bit code", EXC_GP, KCS32);
	set_gate((ulong)k_entry, KCS, 0xe4);
	CALL_GATE("16-bit call gate in long mode", EXC_GP, SEL_FREE);
	set_gate((ulong)k_entry, KCS, 0xec);
	gdt[SEL_FREE / 8 + 1] |= 0x5ull << 40; /* type bits of the second half must be 0 */
	CALL_GATE("call gate with a type in its upper half", EXC_GP, SEL_FREE);
	set_gate(NONCANON, KCS, 0xec);
	CALL_GATE("call gate to a non-canonical address", EXC_GP, 0);
	/* conforming code: runs at the caller's ring */
	extern const char conform[];
	asm volatile("jmp 9f\nconform: mov %%cs, %%eax; lretq\n9:" ::: "memory");
	gdt_set(SEL_FREE, seg_desc(0, 0xfffff, 0x9f, 0xa));
	p.off = (u32)user_ptr(conform);
	p.sel = SEL_FREE;
	f = user_frame(u_lcall);
	f.di = user_ptr(&p);
	f.sp -= 64;
	run_frame(&f);
	/* lcall with a 32-bit offset pushed 4-byte values; LRETQ pops 8-byte ones: only the entry is checked */
	check_eq(trap.f.ax & 0xffff, SEL_FREE | 3, "conforming code runs in ring 3");
}

int guest_main(void)
{
	errors();
	stacks();
	flags();
	segments();
	inner_ss();
	far_returns();
	gates();
	return 0;
}
