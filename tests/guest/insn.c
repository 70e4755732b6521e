/*
 * Instructions whose translation is easy to get wrong: stack forms that name RSP, bit strings, CMPXCHG8B/16B, ENTER,
 * moffs, address-size overrides, conditional code, faults in the middle. SDM vol. 2.
 */
#include "guest.h"

u64 mem[64] ALIGNED(64); /* named by asm */

static void stack_forms(void)
{
	u64 a, b, c;

	asm volatile("mov %%rsp, %1; push %%rsp; pop %0" : "=r"(a), "=&r"(b));
	check_eq(a, b, "push rsp pushes the old value");
	asm volatile("mov %%rsp, %%rcx; push %1; pop %%rsp; mov %%rsp, %0; mov %%rcx, %%rsp" : "=&r"(a) : "r"(&mem[32]) : "rcx");
	check_eq(a, (ulong)&mem[32], "pop rsp");
	asm volatile("mov %%rsp, %1; push $0x77; popq -32(%%rsp); mov -32(%%rsp), %0; mov %%rsp, %2" : "=&r"(a), "=&r"(b), "=&r"(c)::"memory");
	check_eq(c, b, "pop to memory: rsp");
	check_eq(a, 0x77, "pop to memory through rsp uses the new rsp");
	asm volatile("movq $0x55, -8(%%rsp); mov %%rsp, %1; movq %%rsp, %%rcx; pushq -8(%%rsp); pop %0; mov %%rcx, %%rsp" : "=&r"(a), "=&r"(b)::"rcx", "memory");
	check_eq(a, 0x55, "push of memory below rsp");
	asm volatile("mov %%rsp, %0; pushw $0x1234; mov %%rsp, %1; popw %%cx; movzwl %%cx, %%ecx; mov %%rcx, %2" : "=&r"(a), "=&r"(b), "=&r"(c)::"rcx");
	check_eq(a - b, 2, "pushw");
	check_eq(c, 0x1234, "popw");
	asm volatile("push $-5; pop %0" : "=r"(a));
	check_eq(a, -5ul, "push imm8 is sign-extended");
	asm volatile("push $0x80000000 - 0x100000000; pop %0" : "=r"(a));
	check_eq(a, 0xffffffff80000000, "push imm32 is sign-extended");
	asm volatile("mov %%rsp, %%rcx; call 1f; jmp 2f; 1: ret $24; 2: mov %%rsp, %0; mov %%rcx, %%rsp; sub %%rcx, %0" : "=&r"(a)::"rcx", "memory");
	check_eq(a, 24, "ret 24");
	asm volatile("lea -64(%%rsp), %%rsp; movq $1f, (%%rsp); mov %%rsp, %%rcx; call *(%%rsp); jmp 2f; 1: mov %%rsp, %0; ret; 2: lea 64(%%rsp), %%rsp; sub %%rcx, %0"
		     : "=&r"(a)::"rcx", "memory");
	check_eq(a, (u64)-8, "call through (%%rsp) reads the target before the push");
	asm volatile("push %%rbp; mov %%rsp, %%rcx; mov $0x1111, %%ebp; enter $32, $0; mov %%rsp, %0; mov (%%rbp), %1; leave; mov %%rsp, %2; mov %%rbp, %%rbx; pop %%rbp; sub %%rcx, %0; sub %%rcx, %2"
		     : "=&a"(a), "=&d"(b), "=&S"(c)::"rcx", "rbx", "memory");
	check_eq(a, (u64)-40, "enter 32, 0: rsp");
	check_eq(b, 0x1111, "enter saves rbp");
	check_eq(c, 0, "leave: rsp");
	for (int i = 0; i < 8; i++)
		mem[i] = 0x100 + i;
	asm volatile("push %%rbp; mov %%rsp, %%rcx; mov %3, %%rbp; enter $0, $3; mov %%rsp, %0; mov -8(%%rbp), %1; mov -24(%%rbp), %2; sub %%rbp, %2; mov %%rcx, %%rsp; pop %%rbp; sub %%rcx, %0"
		     : "=&a"(a), "=&d"(b), "=&S"(c) : "D"(&mem[4]) : "rcx", "memory");
	check_eq(a, (u64)-32, "enter 0, 3: rsp");
	check_eq(b, 0x103, "enter 0, 3: first display entry");
	check_eq(c, 0, "enter 0, 3: the last display entry is the frame pointer");
}

static void bits(void)
{
	u64 r;
	u8 cf;

	memset(mem, 0, sizeof(mem));
	asm volatile("btsq %1, (%2); setc %0" : "=r"(cf) : "r"(64ul * 5 + 3), "r"(mem) : "memory", "cc");
	check_eq(mem[5], 8, "bts with a register reaches other words");
	asm volatile("btsl %0, (%1)" ::"r"(-33), "r"(&mem[10]) : "memory", "cc");
	check_eq(mem[9], BIT64(31), "bts with a negative offset: 32-bit words");
	asm volatile("btrq %1, (%2); setc %0" : "=r"(cf) : "r"(-33ul), "r"(&mem[10]) : "memory", "cc");
	check_eq(cf, 1, "btr with a negative offset: 64-bit words");
	check_eq(mem[9], 0, "btr cleared it");
	asm volatile("lock btsw %w0, (%1)" ::"r"(-1), "r"(&mem[10]) : "memory", "cc");
	check_eq(mem[9] >> 63, 1, "lock bts, 16-bit words");
	TRAP(asm volatile("btl %0, (%1)" ::"r"(8 * 4096), "r"(TEST_VA - 4096)));
	check_trap(EXC_PF, 0, "bt reaching an unmapped page");
	asm volatile("mov $0x1122, %%ecx; bsf %1, %%rcx; mov %%rcx, %0" : "=r"(r) : "r"(0x100ul) : "rcx", "cc");
	check_eq(r, 8, "bsf");
	asm volatile("bsr %1, %0" : "=r"(r) : "r"(0xf00ul) : "cc");
	check_eq(r, 11, "bsr");
	asm volatile("mov $0x1234567890abcdef, %%rax; shldw $4, %%ax, %%ax; mov %%rax, %0" : "=r"(r)::"rax", "cc");
	check_eq(r, 0x1234567890abdefc, "shldw keeps the upper bits");
}

static void exchange(void)
{
	u64 a, d;
	u8 zf;

	mem[0] = 0x1111222233334444;
	a = 0x33334444, d = 0x11112222;
	asm volatile("lock cmpxchg8b (%3); setz %2" : "+a"(a), "+d"(d), "=q"(zf) : "S"(mem), "b"(0x55), "c"(0x66) : "memory", "cc");
	check_eq(zf, 1, "cmpxchg8b, equal");
	check_eq(mem[0], 0x6600000055, "cmpxchg8b stores");
	a = 1, d = 2;
	asm volatile("cmpxchg8b (%3); setz %2" : "+a"(a), "+d"(d), "=q"(zf) : "S"(mem), "b"(7), "c"(8) : "memory", "cc");
	check_eq(zf, 0, "cmpxchg8b, different");
	check_eq(a | d << 32, 0x6600000055, "cmpxchg8b loads edx:eax");
	check_eq(mem[0], 0x6600000055, "cmpxchg8b leaves memory");
	if (cpuid(1, 0).c & BIT(13)) {
		mem[0] = 1, mem[1] = 2;
		a = 1, d = 2;
		asm volatile("lock cmpxchg16b (%3); setz %2" : "+a"(a), "+d"(d), "=q"(zf) : "S"(mem), "b"(3ul), "c"(4ul) : "memory", "cc");
		check_eq(zf, 1, "cmpxchg16b, equal");
		check(mem[0] == 3 && mem[1] == 4, "cmpxchg16b stores");
		asm volatile("lock cmpxchg16b (%3); setz %2" : "+a"(a), "+d"(d), "=q"(zf) : "S"(mem), "b"(5ul), "c"(6ul) : "memory", "cc");
		check(!zf && a == 3 && d == 4, "cmpxchg16b, different");
		TRAP(asm volatile("lock cmpxchg16b 8(%0)" ::"S"(mem) : "memory", "rax", "rdx"));
		check_trap(EXC_GP, 0, "cmpxchg16b, misaligned");
	}
	mem[0] = 0xffffffff00000005;
	a = 0xdeadbeef00000005;
	asm volatile("cmpxchgl %2, (%1)" : "+a"(a) : "S"(mem), "r"(9) : "memory", "cc");
	check_eq(mem[0], 0xffffffff00000009, "cmpxchg, 32 bit: memory");
	check_eq(a, 0xdeadbeef00000005, "cmpxchg, 32 bit, equal: rax is kept");
	a = 0xdeadbeef00000001;
	asm volatile("cmpxchgl %2, (%1)" : "+a"(a) : "S"(mem), "r"(9) : "memory", "cc");
	check_eq(a, 9, "cmpxchg, 32 bit, different: rax is zero-extended");
	a = 0x1111111111111111;
	mem[0] = 5;
	asm volatile("xaddb %b0, (%1)" : "+r"(a) : "S"(mem) : "memory", "cc");
	check_eq(a, 0x1111111111111105, "xadd, 8 bit");
	check_eq(mem[0], 0x16, "xadd, 8 bit: memory");
}

static void addressing(void)
{
	u64 a, b;

	mem[0] = 0xabcdef;
	mem[3] = 0x333;
	/* moffs64 and its 32-bit form */
	asm volatile("movabs mem, %%rax; mov %%rax, %0" : "=r"(a)::"rax");
	check_eq(a, 0xabcdef, "mov moffs64");
	asm volatile(".byte 0x67, 0xa1; .long 0x100000; mov %%eax, %k0" : "=r"(a)::"rax");
	check_eq(a, *(u32 *)0x100000, "mov moffs32");
	/* addr32: base + index wraps at 32 bits */
	asm volatile("addr32 movq (%k1, %k2, 8), %0" : "=r"(a) : "r"(0xffff00000000ul + (ulong)mem - 16), "r"(0xffffffff00000002ul));
	check_eq(a, 0xabcdef, "addr32 ignores the upper halves");
	asm volatile("addr32 lea -16(%k1), %0" : "=r"(a) : "r"(8ul));
	check_eq(a, 0xfffffff8, "addr32 lea is zero-extended");
	asm volatile("leal -16(%1), %k0" : "=r"(a) : "r"(8ul));
	check_eq(a, 0xfffffff8, "32-bit lea is zero-extended");
	b = 0x1122334455667788;
	asm volatile("leaw 0x7fff(%1), %w0" : "+r"(b) : "r"(0x18001ul));
	check_eq(b, 0x1122334455660000, "16-bit lea keeps the upper bits");
	/* rip-relative with addr32, and with an immediate after the displacement */
	asm volatile("movl $0x11223344, mem+8(%%rip)" ::: "memory");
	check_eq(mem[1] & 0xffffffff, 0x11223344, "rip-relative with an immediate");
	asm volatile("cmpb $0x44, mem+8(%%rip); sete %b0; movzbl %b0, %k0" : "=r"(a)::"cc");
	check_eq(a, 1, "rip-relative compare");
	asm volatile("lea 1f(%%rip), %0; 1:" : "=r"(a));
	asm volatile("lea 1f(%%eip), %0; 1:" : "=r"(b));
	check(a < b && b < a + 64, "rip-relative lea with addr32");
	asm volatile("mov $0x1234, %%ecx; xor %%eax, %%eax; mov $3, %%ah; mov %%ah, %%cl; mov %%rcx, %0" : "=r"(a)::"rax", "rcx");
	check_eq(a, 0x1203, "AH as a source");
	asm volatile("lea mem(%%rip), %%rbx; mov $24, %%eax; xlat; movzbl %%al, %k0" : "=r"(a)::"rax", "rbx");
	check_eq(a, 0x33, "xlat");
	/* LOOP and JRCXZ with an address-size prefix use ECX */
	asm volatile("mov $0xf00000002, %%rcx; xor %k0, %k0; 1: inc %k0; addr32 loop 1b; mov %%rcx, %1" : "=&r"(a), "=r"(b)::"rcx", "cc");
	check_eq(a, 2, "addr32 loop counts ECX");
	check_eq(b, 0, "addr32 loop zero-extends");
	asm volatile("mov $0xf00000000, %%rcx; mov $1, %k0; jecxz 1f; mov $2, %k0; 1:" : "=r"(a)::"rcx");
	check_eq(a, 1, "jecxz");
	asm volatile("mov $0xf00000000, %%rcx; mov $1, %k0; jrcxz 1f; mov $2, %k0; 1:" : "=r"(a)::"rcx");
	check_eq(a, 2, "jrcxz");
}

static void conditions(void)
{
	/* all 16 conditions over all 32 combinations of CF, PF, ZF, SF, OF */
	group_begin("setcc over all flags");
	for (unsigned n = 0; n < 32; n++) {
		bool cf = n & 1, pf = n & 2, zf = n & 4, sf = n & 8, of = n & 16;
		ulong fl = FL_FIXED | (cf ? 1 : 0) | (pf ? 4 : 0) | (zf ? 0x40 : 0) | (sf ? 0x80 : 0) | (of ? 0x800 : 0);
		bool want[16] = {of, !of, cf, !cf, zf, !zf, cf || zf, !(cf || zf), sf, !sf, pf, !pf, sf != of, sf == of,
				 zf || sf != of, !(zf || sf != of)};
		u8 r[16];
#define SET(i, cc) asm volatile("push %1; popf; set" cc " %0" : "=q"(r[i]) : "r"(fl) : "cc")
		SET(0, "o"); SET(1, "no"); SET(2, "c"); SET(3, "nc"); SET(4, "z"); SET(5, "nz"); SET(6, "be"); SET(7, "a");
		SET(8, "s"); SET(9, "ns"); SET(10, "p"); SET(11, "np"); SET(12, "l"); SET(13, "ge"); SET(14, "le"); SET(15, "g");
		for (unsigned i = 0; i < 16; i++)
			group_eq(r[i], want[i], "condition %u, flags %x", i, (u32)fl);
	}
	group_end();
	group_begin("jcc over all flags");
	for (unsigned n = 0; n < 32; n++) {
		ulong fl = FL_FIXED | (n & 1 ? 1 : 0) | (n & 2 ? 4 : 0) | (n & 4 ? 0x40 : 0) | (n & 8 ? 0x80 : 0) | (n & 16 ? 0x800 : 0);
		u32 a, b;
		u8 s;
#define JCC(cc)                                                                                                                       \
	asm volatile("push %2; popf; j" cc " 1f; mov $0, %0; jmp 2f; 1: mov $1, %0; 2: push %2; popf; mov $0, %1; mov $1, %%ecx; " \
		     "push %2; popf; cmov" cc " %%ecx, %1"                                                                          \
		     : "=&r"(a), "=&r"(b) : "r"(fl) : "ecx", "cc");                                                                  \
	asm volatile("push %1; popf; set" cc " %0" : "=q"(s) : "r"(fl) : "cc");                                                      \
	group_eq(a, s, "j" cc " %x", (u32)fl);                                                                                       \
	group_eq(b, s, "cmov" cc " %x", (u32)fl)
		JCC("o"); JCC("no"); JCC("c"); JCC("nc"); JCC("z"); JCC("nz"); JCC("be"); JCC("a");
		JCC("s"); JCC("ns"); JCC("p"); JCC("np"); JCC("l"); JCC("ge"); JCC("le"); JCC("g");
	}
	group_end();
	u64 r = 0x1111111111111111;
	TRAP(asm volatile("xor %%ecx, %%ecx; cmovnzl (%1), %k0" : "+r"(r) : "r"(TEST_VA) : "ecx", "cc"));
	check_trap(EXC_PF, 0, "cmov reads memory even when the condition is false");
	r = 0x1111111111111111;
	asm volatile("xor %%ecx, %%ecx; cmovnzl %%ecx, %k0" : "+r"(r)::"ecx", "cc");
	check_eq(r, 0x11111111, "cmov, 32 bit, false: zero-extended");
	asm volatile("mov $0xd5, %%ah; sahf; lahf; movzbl %%ah, %k0" : "=r"(r)::"rax", "cc");
	check_eq(r, 0xd7, "sahf, lahf");
	asm volatile("stc; cmc; setc %b0; movzbl %b0, %k0" : "=r"(r)::"cc");
	check_eq(r, 0, "cmc");
}

/* A fault leaves registers and flags as they were. */
static void precise(void)
{
	group_begin("a faulting instruction changes nothing");
#define PRECISE(text)                                                                                                        \
	TRAP(asm volatile("mov $0x1111, %%eax; mov $0x2222, %%ecx; mov $0x3333, %%edx; mov $0x4444, %%ebx; push $0x8d7; popf; " MARK text \
			  ::"D"(TEST_VA) : "rax", "rbx", "rcx", "rdx", "rsi", "memory", "cc"));                                    \
	group_eq((u64)trap.vector, EXC_PF, text);                                                                                  \
	group_eq(trap.f.ip, trap_mark, text " rip");                                                                              \
	group_eq(trap.f.ax << 48 | trap.f.cx << 32 | trap.f.dx << 16 | trap.f.bx, 0x1111222233334444, text " registers");            \
	group_eq(trap.f.flags & 0xfff, 0x8d7, text " flags")
	PRECISE("addl (%%rdi), %%eax");
	PRECISE("adcl %%eax, (%%rdi)");
	PRECISE("xaddl %%eax, (%%rdi)");
	PRECISE("xchgl %%eax, (%%rdi)");
	PRECISE("cmpxchgl %%ecx, (%%rdi)");
	PRECISE("cmpxchg8b (%%rdi)");
	PRECISE("mull (%%rdi)");
	PRECISE("divl (%%rdi)");
	PRECISE("imull $5, (%%rdi), %%ebx");
	PRECISE("shldl $3, %%eax, (%%rdi)");
	PRECISE("btsl %%eax, (%%rdi)");
	PRECISE("bsf (%%rdi), %%eax");
	PRECISE("push (%%rdi)");
	PRECISE("call *(%%rdi)");
	PRECISE("jmp *(%%rdi)");
	PRECISE("incl (%%rdi)");
	PRECISE("negl (%%rdi)");
	PRECISE("setc (%%rdi)");
	PRECISE("popq (%%rdi)");
	PRECISE("movzbl (%%rdi), %%eax");
	PRECISE("comiss (%%rdi), %%xmm0");
	PRECISE("fildl (%%rdi)");
	PRECISE("popcntl (%%rdi), %%eax");
	PRECISE("crc32l (%%rdi), %%eax");
	PRECISE("lock decl (%%rdi)");
	PRECISE("rcll $2, (%%rdi)");
	group_end();
}

static void misc(void)
{
	u32 a = 0, ok;
	ulong v;

	if (cpuid(1, 0).c & BIT(30)) {
		u64 seen = 0;
		for (int i = 0; i < 10; i++) {
			asm volatile("rdrand %0; setc %b1; movzbl %b1, %1" : "=r"(v), "=q"(ok)::"cc");
			seen |= ok ? v : 0;
		}
		check(seen != 0, "rdrand");
	}
	asm volatile("pause; nop; nopl (%%rax, %%rax, 1); nopw 0x7fffffff(%%rax); prefetcht0 (%0); lfence; mfence; sfence; clflush (%1)" ::"r"(TEST_VA), "r"(mem));
	check(true, "hints do not fault");
	TRAP(asm volatile("clflush (%0)" ::"r"(TEST_VA)));
	check_trap(EXC_PF, -1, "clflush of an unmapped page faults");
	asm volatile("rep bsf %1, %0" : "=r"(a) : "r"(0x10) : "cc"); /* tzcnt, or bsf: the same here */
	check_eq(a, 4, "rep bsf");
	TRAP(asm volatile("rdpmc" ::"c"(0x7fffff) : "eax", "edx"));
	check_trap(EXC_GP, 0, "rdpmc of an unknown counter");
	TRAP(asm volatile("wbinvd; invd"));
	check_trap(NO_TRAP, -1, "wbinvd, invd in ring 0");
	TRAP(asm volatile("vmcall"));
	check(trap.vector == NO_TRAP || trap.vector == EXC_UD, "vmcall ends in a hypercall or #UD");
	TRAP(asm volatile("rsm"));
	check_trap(EXC_UD, 0, "rsm outside SMM");
	TRAP(asm volatile("getsec" ::"a"(0)));
	check(trap.vector == EXC_UD || trap.vector == EXC_GP, "getsec without SMX");
	TRAP(asm volatile("monitor" ::"a"(mem), "c"(0), "d"(0)));
	check_eq((u64)trap.vector, (u64)(cpuid(1, 0).c & BIT(3) ? NO_TRAP : EXC_UD), "monitor follows CPUID");
}

int guest_main(void)
{
	stack_forms();
	bits();
	exchange();
	addressing();
	conditions();
	precise();
	misc();
	return 0;
}
