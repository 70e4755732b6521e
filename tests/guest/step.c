/*
 * Single step (EFLAGS.TF), instruction breakpoints, MOV DR. SDM vol. 3, 17.2, 17.3. Data breakpoints: watch.c.
 */
#include "guest.h"

#define DR6_INIT 0xffff0ff0ul
#define DR6_BS BIT(14)
#define DR6_BD BIT(13)

CODE(u_plain, "nop; inc %eax; jmp 1f; ud2; 1: call 2f; jmp 3f; 2: ret; 3: push %rax; pop %rbx");
CODE(u_movs, "mov $3, %ecx; rep movsb; nop; rep movsb");
CODE(u_movss, "mov %edi, %ss; nop; nop");
CODE32(c_popss, "push %ss; pop %ss; nop; nop");
CODE(u_popf_off, "nop; push %rdi; popf; nop; nop");
CODE(u_popf_on, "push %rdi; popf; nop; nop");
CODE(u_iret, "iretq; 1: nop");
CODE(u_after, "nop; nop");
CODE(u_syscall, "nop; syscall; nop");
CODE(u_int3, "nop; int3; nop");
CODE(u_ud2, "nop; ud2");
CODE(u_cpuid, "cpuid; rdtsc; nop");
CODE(u_loop, "mov $3, %ecx; 1: dec %ecx; jnz 1b");
CODE(u_pushf, "pushf; pop %rax; nop");

#define MAX_LOG 64
struct hit {
	ulong ip, cs, dr6, flags;
};
static struct hit hits[MAX_LOG];
static unsigned nhits;
static bool set_rf;

static bool on_db(struct frame *f)
{
	if (nhits < MAX_LOG)
		hits[nhits++] = (struct hit){f->ip, f->cs, read_dr6(), f->flags};
	write_dr6(DR6_INIT);
	if (set_rf && (hits[nhits ? nhits - 1 : 0].dr6 & 0xf))
		f->flags |= FL_RF;
	return true;
}

static int stepped(struct frame *f)
{
	nhits = 0;
	write_dr6(DR6_INIT);
	trap_hook[EXC_DB] = on_db;
	run_frame(f);
	trap_hook[EXC_DB] = NULL;
	return trap.vector;
}

/* The single-step traps of user code came at these offsets. */
static void expect(const char *name, const void *fn, const u8 *offsets, unsigned n)
{
	bool good = nhits == n;

	check_eq(nhits, n, "%s: traps", name);
	for (unsigned i = 0; i < n && i < nhits; i++)
		if (hits[i].ip != user_ptr(fn) + offsets[i]) {
			check_eq(hits[i].ip, user_ptr(fn) + offsets[i], "%s: trap %u", name, i);
			good = false;
		} else if ((hits[i].dr6 & ~DR6_INIT) != DR6_BS) {
			check_eq(hits[i].dr6, DR6_INIT | DR6_BS, "%s: DR6 of trap %u", name, i);
			good = false;
		}
	check(good, "%s", name);
}
#define STEP(name, fn, frame, ...)                                   \
	do {                                                         \
		static const u8 offsets[] = {__VA_ARGS__};           \
		(frame).flags |= FL_TF;                              \
		stepped(&(frame));                                   \
		check_trap(VEC_EXIT, 0, name " ends");               \
		expect(name, fn, offsets, sizeof(offsets));          \
	} while (0)

static void single_step(void)
{
	static u8 src[16], dst[16];
	struct frame f = user_frame(u_plain);

	/* nop 1, inc 2, jmp 2, (ud2 2), call 5, jmp 2, ret 1, push 1, pop 1 */
	STEP("plain code", u_plain, f, 1, 3, 7, 14, 12, 15, 16, 17);
	check_eq(trap.f.flags & FL_TF, FL_TF, "TF in the frame of INT");
	f = user_frame(u_movs);
	f.si = user_ptr(src), f.di = user_ptr(dst);
	STEP("rep movsb", u_movs, f, 5, 5, 5, 7, 8, 10);
	f = user_frame(u_movss);
	f.di = UDS;
	STEP("mov ss holds the trap back", u_movss, f, 3, 4);
	f = user_frame(c_popss);
	f.cs = UCS32;
	STEP("pop ss holds the trap back", c_popss, f, 1, 3, 4);
	f = user_frame(u_popf_off);
	f.di = FL_FIXED;
	STEP("popf that clears TF is trapped itself", u_popf_off, f, 1, 2, 3);
	f = user_frame(u_popf_on);
	f.di = FL_FIXED | FL_TF;
	nhits = 0;
	stepped(&f);
	static const u8 on[] = {3, 4};
	expect("popf that sets TF", u_popf_on, on, 2);
	static ulong in[5];
	in[0] = user_ptr(u_after), in[1] = UCS, in[2] = FL_FIXED | FL_TF, in[3] = user_ptr(user_stack + 8192), in[4] = UDS;
	f = user_frame(u_iret);
	f.sp = user_ptr(in);
	STEP("iret", u_after, f, 0, 1, 2);
	f = user_frame(u_cpuid);
	STEP("cpuid, rdtsc", u_cpuid, f, 2, 4, 5);
	f = user_frame(u_loop);
	STEP("loop", u_loop, f, 5, 7, 5, 7, 5, 7, 9);
	f = user_frame(u_pushf);
	STEP("pushf", u_pushf, f, 1, 2, 3);
	check_eq(trap.f.ax & FL_TF, FL_TF, "pushf shows TF");
	f = user_frame(u_int3);
	f.flags |= FL_TF;
	stepped(&f);
	check_trap(EXC_BP, 0, "int3 with TF");
	check_eq(nhits, 1, "int3 with TF: one trap before it");
	check_eq(trap.f.flags & FL_TF, FL_TF, "int3 with TF: saved flags");
	f = user_frame(u_ud2);
	f.flags |= FL_TF;
	stepped(&f);
	check_trap(EXC_UD, 0, "ud2 with TF");
	check_eq(nhits, 1, "ud2 with TF: one trap before it");
}

extern const char sys_stop[];
__asm__(".text\nsys_stop: nop; nop; int $0x80\n");

static void system_step(void)
{
	struct frame f = user_frame(u_syscall);
	unsigned kernel = 0;

	/* SFMASK clears TF: ring 0 sees no trap */
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, (u64)KCS << 32 | (u64)0x33 << 48);
	wrmsr(MSR_LSTAR, (ulong)sys_stop);
	wrmsr(MSR_SFMASK, FL_TF | FL_IF);
	f.flags |= FL_TF;
	stepped(&f);
	check_trap(VEC_EXIT, 0, "syscall with TF ends in ring 0");
	for (unsigned i = 0; i < nhits; i++)
		kernel += hits[i].cs == KCS && hits[i].ip != (ulong)sys_stop;
	check_eq(kernel, 0, "syscall with SFMASK.TF: ring 0 is not stepped");
	check(nhits >= 1 && hits[0].ip == user_ptr(u_syscall) + 1, "syscall with TF: the instruction before is trapped");
	/* ring 0 code */
	nhits = 0;
	trap_hook[EXC_DB] = on_db;
	asm volatile("pushf; orl $0x100, (%%rsp); popf; nop; cli; mov %%cr0, %%rax; pushf; andl $~0x100, (%%rsp); popf; nop" ::: "rax", "memory", "cc");
	trap_hook[EXC_DB] = NULL;
	check_eq(nhits, 6, "ring 0: traps from popf to popf");
	check_eq(hits[0].cs, KCS, "ring 0: cs");
	check_eq(hits[0].flags & (FL_TF | FL_RF), FL_TF, "ring 0: TF and no RF in the frame of a trap");
	/* MOV SS; INT3: the breakpoint is not stepped */
	u32 ds = KDS;
	TRAP(asm volatile("mov %0, %%ss; int3" ::"r"(ds)));
	check_trap(EXC_BP, 0, "mov ss; int3");
}

static void breakpoints(void)
{
	struct frame f;
	static const u8 loop3[] = {5, 5, 5};

	write_dr0(user_ptr(u_loop) + 5);
	write_dr7(0x400 | 1);
	f = user_frame(u_loop);
	set_rf = true;
	stepped(&f);
	check_trap(VEC_EXIT, 0, "instruction breakpoint ends");
	check_eq(nhits, 3, "instruction breakpoint in a loop: hits");
	for (unsigned i = 0; i < nhits && i < 3; i++) {
		check_eq(hits[i].ip, user_ptr(u_loop) + loop3[i], "instruction breakpoint %u is a fault", i);
		check_eq(hits[i].dr6, DR6_INIT | 1, "instruction breakpoint %u: DR6", i);
		check_eq(hits[i].flags & FL_RF, 0, "instruction breakpoint %u: RF is not set by the CPU", i);
	}
	/* RF in the frame suppresses it once */
	write_dr0(user_ptr(u_loop));
	f = user_frame(u_loop);
	f.flags |= FL_RF;
	stepped(&f);
	check_eq(nhits, 0, "RF suppresses an instruction breakpoint");
	f = user_frame(u_loop);
	stepped(&f);
	check_eq(nhits, 1, "no RF: it hits");
	/* disabled, and another register with the global enable */
	write_dr7(0x400);
	stepped(&f);
	check_eq(nhits, 0, "disabled breakpoint");
	write_dr3(user_ptr(u_loop));
	write_dr7(0x400 | BIT(7));
	f = user_frame(u_loop);
	stepped(&f);
	check_eq(nhits, 1, "DR3 with G3");
	check_eq(hits[0].dr6 & ~7ul, DR6_INIT | 8, "DR3: DR6"); /* B0 may show its disabled match too (17.2.3) */
	/* both a breakpoint and a step */
	write_dr7(0x400 | BIT(6));
	write_dr3(user_ptr(u_loop) + 5);
	f = user_frame(u_loop);
	f.flags |= FL_TF;
	stepped(&f);
	unsigned bp = 0, ss = 0;
	for (unsigned i = 0; i < nhits; i++) {
		bp += hits[i].dr6 >> 3 & 1;
		ss += hits[i].dr6 >> 14 & 1;
	}
	check_eq(bp, 3, "breakpoint and single step together: breakpoints");
	check_eq(ss, 7, "breakpoint and single step together: steps");
	/* ring 0 */
	set_rf = false;
	write_dr7(0x400);
	extern const char k_bp[];
	write_dr1((ulong)k_bp);
	write_dr7(0x400 | BIT(2));
	TRAP(asm volatile(".globl k_bp\nnop; k_bp: nop; nop"));
	write_dr7(0x400);
	check_trap(EXC_DB, 0, "ring 0: instruction breakpoint");
	check_eq(trap.f.ip, (ulong)k_bp, "ring 0: instruction breakpoint: rip");
	check_eq(read_dr6() & 0xf, 2, "ring 0: instruction breakpoint: DR6");
}

static void registers(void)
{
	write_dr6(0);
	check_eq(read_dr6() & ~(BIT(16) | BIT(11)), DR6_INIT & ~(BIT(16) | BIT(11)), "DR6 reserved bits read as 1");
	write_dr6(DR6_INIT);
	write_dr7(0);
	check_eq(read_dr7(), 0x400, "DR7 bit 10 reads as 1");
	write_dr0(0x123456789abcul);
	write_dr1(1), write_dr2(2), write_dr3(3);
	check_eq(read_dr0(), 0x123456789abc, "DR0");
	check_eq(read_dr1() << 8 | read_dr2() << 4 | read_dr3(), 0x123, "DR1 to DR3");
	TRAP(write_dr7(BIT(32)));
	check_trap(EXC_GP, 0, "DR7 bit 32");
	TRAP(write_dr6(BIT(32)));
	check_trap(EXC_GP, 0, "DR6 bit 32");
	write_cr4(read_cr4() & ~CR4_DE);
	ulong v;
	write_dr6(DR6_INIT | 4);
	TRAP(asm volatile(".byte 0x0f, 0x21, 0xe0" : "=a"(v))); /* mov %db4, %rax */
	check_trap(NO_TRAP, -1, "DR4 without CR4.DE");
	check_eq(v, DR6_INIT | 4, "DR4 is DR6");
	write_cr4(read_cr4() | CR4_DE);
	TRAP(asm volatile(".byte 0x0f, 0x21, 0xe0" : "=a"(v)));
	check_trap(EXC_UD, 0, "DR4 with CR4.DE");
	TRAP(asm volatile(".byte 0x0f, 0x23, 0xe8" ::"a"(0x400))); /* mov %rax, %db5 */
	check_trap(EXC_UD, 0, "DR5 with CR4.DE");
	write_cr4(read_cr4() & ~CR4_DE);
	write_dr6(DR6_INIT);
	/* general detect */
	write_dr7(0x400 | BIT(13));
	TRAP(asm volatile(MARK "mov %%db0, %0" : "=r"(v)));
	check_trap(EXC_DB, 0, "DR7.GD");
	check_mark("DR7.GD is a fault");
	check_eq(read_dr6() & DR6_BD, DR6_BD, "DR6.BD");
	check_eq(read_dr7() & BIT(13), 0, "GD is cleared by the exception");
	write_dr6(DR6_INIT);
}

int guest_main(void)
{
	registers();
	single_step();
	system_step();
	breakpoints();
	write_dr7(0x400);
	return 0;
}
