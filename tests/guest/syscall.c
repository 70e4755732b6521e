/* SYSCALL, SYSRET, SYSENTER, SYSEXIT in long mode. SDM vol. 2; vol. 3, 5.8.7, 5.8.8. AMD and Intel differ where noted. */
#include "guest.h"

#define NONCANON 0x8000000000000000ul

CODE(u_syscall, "mov $0x1234, %ecx; mov $0x5678, %r11d; syscall; mov %cs, %ebx; mov %ss, %edx; pushf; pop %rax");
CODE(u_sysret, "mov %rdi, %rcx; sysretq");
CODE(u_nop, "nop");
CODE32(c_syscall, "syscall; mov %cs, %ebx");
CODE32(c_nop, "mov %cs, %ebx; mov %ss, %edx");
CODE(u_sysenter, "sysenter");
CODE32(c_sysenter, "sysenter");
CODE(u_sysexit, "sysexit");

ulong seen[16]; /* written by the asm below */
extern const char sys_entry[], sys_entry32[], sys_exit_entry[];
__asm__(".text\n"
	"sys_entry: movq %rcx, seen; movq %r11, seen+8; movq %rsp, seen+16; pushq %rax; movq %rsp, seen+24; popq %rax\n"
	"movl %cs, %r12d; movq %r12, seen+32; movl %ss, %r12d; movq %r12, seen+40; pushfq; popq %r12; movq %r12, seen+48\n"
	"sysretq\n"
	"sys_entry32: movq %rcx, seen; movl %cs, %r12d; movq %r12, seen+32; sysretl\n"
	"sys_exit_entry: movq %rsp, seen+16; movl %cs, %eax; movq %rax, seen+32; movl %ss, %eax; movq %rax, seen+40; pushfq; popq seen+48; int $0x80\n");

static void setup(void)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, (u64)KCS << 32 | (u64)(0x30 | 3) << 48);
	wrmsr(MSR_LSTAR, (ulong)sys_entry);
	wrmsr(MSR_CSTAR, (ulong)sys_entry32);
	wrmsr(MSR_SFMASK, FL_IF | FL_DF | FL_TF | FL_NT | FL_AC | FL_CF);
}

static void syscalls(void)
{
	struct frame f = user_frame(u_syscall);

	/* the entry pushes on the user stack, which is mapped at the user's address for ring 0 too */
	f.flags = FL_FIXED | FL_CF | FL_DF | FL_ZF | FL_AC;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "SYSCALL and SYSRETQ");
	check_eq(seen[0], user_ptr(u_syscall) + 13, "SYSCALL: rcx = next rip");
	check_eq(seen[1], FL_FIXED | FL_CF | FL_DF | FL_ZF | FL_AC, "SYSCALL: r11 = rflags");
	check_eq(seen[2], f.sp, "SYSCALL keeps rsp");
	check_eq(seen[4] & 0xffff, KCS, "SYSCALL: cs");
	check_eq(seen[5] & 0xffff, KDS, "SYSCALL: ss");
	check_eq(seen[6] & (FL_CF | FL_DF | FL_ZF | FL_AC | FL_IF), FL_ZF, "SYSCALL clears what SFMASK names");
	check_eq(trap.f.bx & 0xffff, UCS, "SYSRETQ: cs");
	check_eq(trap.f.dx & 0xffff, UDS, "SYSRETQ: ss");
	check_eq(trap.f.ax, FL_FIXED | FL_CF | FL_DF | FL_ZF | FL_AC, "SYSRETQ: flags from r11");
	check_eq(trap.f.cs, UCS, "SYSRETQ: cs in a frame");
	/* SYSCALL ignores the descriptors: CS and SS are flat even if the GDT says otherwise */
	u64 old = gdt[KDS / 8];
	gdt[UDS / 8] = 0;
	f = user_frame(u_syscall);
	gdt[UDS / 8] = 0x00cff3000000ffff;
	run_frame(&f);
	check_eq(gdt[KDS / 8], old, "descriptors unchanged");
	/* flags that SYSRET forces: RF and VM 0 */
	struct {
		ulong ip, flags;
	} in = {user_ptr(u_nop), FL_RF | FL_VM | FL_ID | FL_FIXED | FL_IOPL3};
	TRAP(asm volatile("mov %0, %%rcx; mov %1, %%r11; sysretq" ::"r"(in.ip), "r"(in.flags) : "rcx", "r11"));
	check_trap(VEC_EXIT, 0, "SYSRETQ from ring 0 code");
	check_eq(trap.f.flags, FL_ID | FL_FIXED | FL_IOPL3, "SYSRETQ: RF and VM are cleared");
	TRAP(asm volatile("mov %0, %%rcx; mov $2, %%r11d; sysretl" ::"r"(user_ptr(c_nop) | 0x123400000000ul) : "rcx", "r11"));
	check_trap(VEC_EXIT, 0, "SYSRETL to compatibility mode");
	check_eq(trap.f.bx & 0xffff, UCS32, "SYSRETL: cs");
	check_eq(trap.f.dx & 0xffff, UDS, "SYSRETL: ss");
}

static void syscall_errors(void)
{
	user_run(u_sysret, user_ptr(u_nop), 0);
	check_trap(EXC_GP, 0, "SYSRET in ring 3");
	TRAP(asm volatile("mov %0, %%rcx; mov $2, %%r11d; " MARK "sysretq" ::"r"(NONCANON) : "rcx", "r11"));
	check_trap(EXC_GP, 0, "SYSRETQ to a non-canonical address");
	/* Intel faults in ring 0 (rip = SYSRET), AMD in ring 3 at the target (APM vol. 3, SYSRET) */
	if (cpu_is_amd())
		check(trap.f.cs == UCS || trap.f.ip == trap_mark, "SYSRETQ to a non-canonical address: where (AMD)");
	else
		check_eq(trap.f.cs, KCS, "SYSRETQ to a non-canonical address: ring 0 (Intel)");
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_SCE);
	user_run(u_syscall, 0, 0);
	check_trap(EXC_UD, 0, "SYSCALL without EFER.SCE");
	TRAP(asm volatile("sysretq"));
	check_trap(EXC_UD, 0, "SYSRET without EFER.SCE");
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	struct frame f = user_frame(c_syscall);
	f.cs = UCS32;
	run_frame(&f);
	if (cpu_is_amd()) {
		check_trap(VEC_EXIT, 0, "SYSCALL in compatibility mode (AMD)");
		check_eq(seen[0], user_ptr(c_syscall) + 2, "SYSCALL in compatibility mode: rcx");
		check_eq(seen[4] & 0xffff, KCS, "SYSCALL in compatibility mode: cs");
		check_eq(trap.f.bx & 0xffff, UCS32, "SYSRETL: cs");
	} else {
		check_trap(EXC_UD, 0, "SYSCALL in compatibility mode (Intel)");
	}
	TRAP(wrmsr(MSR_LSTAR, NONCANON));
	check_trap(EXC_GP, 0, "LSTAR must be canonical");
	TRAP(wrmsr(MSR_CSTAR, NONCANON));
	check_trap(EXC_GP, 0, "CSTAR must be canonical");
}

static void sysenter(void)
{
	struct frame f = user_frame(u_sysenter);

	if (!(cpuid(1, 0).d & BIT(11)))
		return skip("SYSENTER", "no SEP");
	if (cpu_is_amd()) { /* APM vol. 3: SYSENTER and SYSEXIT are illegal in long mode */
		run_frame(&f);
		check_trap(EXC_UD, 0, "SYSENTER in 64-bit mode (AMD)");
		f = user_frame(c_sysenter);
		f.cs = UCS32;
		run_frame(&f);
		check_trap(EXC_UD, 0, "SYSENTER in compatibility mode (AMD)");
		TRAP(asm volatile("sysexit"));
		check_trap(EXC_UD, 0, "SYSEXIT in 64-bit mode (AMD)");
		return;
	}
	wrmsr(0x174, 0);
	run_frame(&f);
	check_trap(EXC_GP, 0, "SYSENTER with a null CS");
	wrmsr(0x174, SYSENTER_CS);
	wrmsr(0x175, (ulong)ring0_stack + 8192);
	wrmsr(0x176, (ulong)sys_exit_entry);
	f = user_frame(u_sysenter);
	f.flags = FL_IF | FL_FIXED | FL_ZF;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "SYSENTER from 64-bit mode");
	check_eq(trap.f.cs, SYSENTER_CS, "SYSENTER: cs");
	check_eq(seen[2], (ulong)ring0_stack + 8192, "SYSENTER: rsp");
	check_eq(seen[5] & 0xffff, SYSENTER_CS + 8, "SYSENTER: ss");
	check_eq(seen[6] & (FL_IF | FL_ZF), FL_ZF, "SYSENTER clears IF");
	f = user_frame(c_sysenter);
	f.cs = UCS32;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "SYSENTER from compatibility mode");
	TRAP(asm volatile("mov %0, %%rdx; mov %1, %%rcx; sysexitq" ::"r"(user_ptr(u_nop)), "r"(user_ptr(user_stack + 4096)) : "rcx", "rdx"));
	check_trap(VEC_EXIT, 0, "SYSEXIT to 64-bit mode");
	check_eq(trap.f.cs, SYSENTER_CS + 32 + 3, "SYSEXIT: cs");
	check_eq(trap.f.ss, SYSENTER_CS + 40 + 3, "SYSEXIT: ss");
	TRAP(asm volatile("mov %0, %%rdx; mov %1, %%rcx; sysexitl" ::"r"(user_ptr(c_nop)), "r"(user_ptr(user_stack + 4096)) : "rcx", "rdx"));
	check_trap(VEC_EXIT, 0, "SYSEXIT to compatibility mode");
	check_eq(trap.f.cs, SYSENTER_CS + 16 + 3, "SYSEXIT to compatibility mode: cs");
	user_run(u_sysexit, 0, 0);
	check_trap(EXC_GP, 0, "SYSEXIT in ring 3");
}

int guest_main(void)
{
	setup();
	/* SYSCALL enters on the user's stack pointer: ring 0 sees it only because SMAP is off */
	syscalls();
	syscall_errors();
	sysenter();
	return 0;
}
