/* Data and I/O breakpoints (DR7.RWn = 1, 2, 3): SDM vol. 3, 17.2.4, 17.2.5. They are traps: rip is the next instruction's. */
#include "guest.h"

#define DR6_INIT 0xffff0ff0ul

static u8 area[64] ALIGNED(64);
static unsigned n;
static ulong ip, dr6;

static bool on_db(struct frame *f)
{
	n++;
	ip = f->ip;
	dr6 = read_dr6();
	write_dr6(DR6_INIT);
	return true;
}

static void arm(ulong addr, unsigned rw, unsigned len_code)
{
	n = 0;
	write_dr6(DR6_INIT);
	write_dr7(0x400);
	write_dr0(addr);
	write_dr7(0x400 | 1 | rw << 16 | len_code << 18);
}

#define RUN(text) (n = 0, ({ asm volatile("movq $1f, trap_mark; " text "; 1: nop" ::"r"(area) : "memory", "rax", "rcx", "rsi", "rdi"); }))

static void hit(const char *name, unsigned want)
{
	check_eq(n, want, "%s: hits", name);
	if (n && want) {
		check_eq(ip, trap_mark, "%s: rip", name);
		check_eq(dr6, DR6_INIT | 1, "%s: DR6", name);
	}
}

int guest_main(void)
{
	trap_hook[EXC_DB] = on_db;
	arm((ulong)area + 8, 1, 0);
	RUN("movb $1, 8(%0)");
	hit("1-byte write watch", 1);
	RUN("movb 8(%0), %%al");
	hit("1-byte write watch, read", 0);
	RUN("movb $1, 9(%0)");
	hit("1-byte write watch, next byte", 0);
	RUN("movl $1, 5(%0)");
	hit("1-byte write watch, overlapped by 4 bytes", 1);
	RUN("movq $1, (%0)");
	hit("1-byte write watch, 8 bytes below", 0);
	RUN("incl 8(%0)");
	hit("write watch, read-modify-write", 1);
	RUN("lock incl 8(%0)");
	hit("write watch, locked", 1);
	RUN("mov %0, %%rdi; add $8, %%rdi; mov $1, %%ecx; rep stosb");
	check_eq(n, 1, "write watch, rep stosb: hits"); /* rip: after the iteration, maybe still the same instruction */
	RUN("lea 16(%0), %%rcx; xchg %%rcx, %%rsp; push %%rcx; xchg %%rcx, %%rsp; nop");
	check_eq(n, 1, "write watch, push: hits");
	arm((ulong)area + 8, 3, 3);
	RUN("movb 15(%0), %%al");
	hit("4-byte read/write watch, beyond", 0);
	RUN("movb 11(%0), %%al");
	hit("4-byte read/write watch, read of its last byte", 1);
	RUN("movb $0, 8(%0)");
	hit("4-byte read/write watch, write", 1);
	RUN("movups 4(%0), %%xmm0");
	hit("4-byte read/write watch, SSE", 1);
	arm((ulong)area + 16, 1, 2);
	RUN("movb $0, 23(%0)");
	hit("8-byte write watch", 1);
	arm((ulong)area + 18, 1, 1);
	RUN("movw $0, 18(%0)");
	hit("2-byte write watch", 1);
	if (cpuid(1, 0).d & BIT(2)) {
		write_cr4(read_cr4() | CR4_DE);
		arm(0x80, 2, 0);
		RUN("out %%al, $0x80");
		hit("I/O breakpoint", 1);
		RUN("out %%al, $0x81");
		hit("I/O breakpoint, another port", 0);
		write_cr4(read_cr4() & ~CR4_DE);
	}
	/* an access that faults triggers no trap */
	write_dr7(0x400);
	arm(TEST_VA, 1, 0);
	TRAP(*(volatile u8 *)TEST_VA = 1);
	check_trap(EXC_PF, PF_W, "watched address that faults");
	check_eq(n, 0, "watched address that faults: hits");
	write_dr7(0x400);
	return 0;
}
