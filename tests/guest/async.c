/*
 * Timer interrupts at arbitrary points of long computations: registers, flags, strings, FPU state and self-modified code
 * must be as if nothing had happened. The handler also changes page tables and runs code of its own.
 */
#include "lib/apic.h"

static volatile u32 ticks;
static u8 patch[64] ALIGNED(64);
static u32 rnd = 1;
static ulong alt[2];
static u32 ring3_ticks, in_rep;

static bool on_timer(struct frame *f)
{
	ticks++;
	ring3_ticks += (f->cs & 3) == 3;
	in_rep += *(u8 *)f->ip == 0xf3;
	/* another page table entry, another patched function, other flags */
	map_page(TEST_VA, alt[ticks & 1] | PTE_P | PTE_W, 1);
	patch[0] = 0xb8, patch[5] = 0xc3;
	*(volatile u32 *)(patch + 1) = ticks;
	if (((u32(*)(void))patch)() != ticks)
		group_eq(0, 1, "patched code in the handler");
	lapic_eoi();
	rnd = rnd * 1664525 + 1013904223;
	lapic_write(A_TMICT, 60000 + (rnd >> 13)); /* well above what the handler costs */
	return true;
}

static u64 flags_chain(u32 n)
{
	u64 a = 1, b = 0x9e3779b97f4a7c15, c = 0;

	asm volatile("1: add %1, %0; adc $0, %2; rol $7, %0; rcl $1, %2; sbb %0, %1; bts %2, %1; seto %%al; movzbl %%al, %%eax; add %%rax, %2;"
		     "lea 5(%1, %0, 4), %1; dec %3; jnz 1b"
		     : "+r"(a), "+r"(b), "+r"(c), "+r"(n)::"rax", "cc");
	return a ^ b ^ c;
}

static u64 calls(u32 n)
{
	u64 r;

	asm volatile("xor %0, %0; 1: push %q1; call 2f; pop %%rcx; add %%rcx, %0; dec %1; jnz 1b; jmp 3f; 2: incq 8(%%rsp); ret; 3:"
		     : "=&r"(r), "+r"(n)::"rcx", "memory", "cc");
	return r;
}

static u64 fpu(u32 n)
{
	double d;
	u64 x, y;

	asm volatile("fninit; fld1; fldpi; pxor %%xmm0, %%xmm0; movl $1, %%eax; cvtsi2sd %%eax, %%xmm1; pcmpeqd %%xmm7, %%xmm7;"
		     "1: fadd %%st, %%st(1); fxch; fmul %%st(1), %%st; fxch; fprem; addsd %%xmm1, %%xmm0; sqrtsd %%xmm0, %%xmm2; addsd %%xmm2, %%xmm1;"
		     "psrlq $1, %%xmm7; por %%xmm0, %%xmm7; mulsd %%xmm1, %%xmm0; movsd %%xmm0, %%xmm3; psrlq $12, %%xmm3; psllq $12, %%xmm3; divsd %%xmm1, %%xmm0;"
		     "fstp %%st; fldpi; dec %3; jnz 1b; fstp %%st; fstpl %0; movq %%xmm0, %1; movq %%xmm7, %2"
		     : "=m"(d), "=r"(x), "=r"(y), "+r"(n)::"rax", "cc");
	u64 bits;
	memcpy(&bits, &d, 8);
	return bits ^ x ^ y;
}

static u8 *buf;
static u64 strings(u32 n)
{
	u64 h = 0;

	for (u32 i = 0; i < n; i++) {
		ulong c = 60000, s = (ulong)buf, d = (ulong)buf + 70001;
		asm volatile("rep movsb" : "+c"(c), "+S"(s), "+D"(d)::"memory");
		h = h * 31 + (s - (ulong)buf) + (d - (ulong)buf) + c + buf[70001 + i];
		c = 9000, d = (ulong)buf + 3;
		asm volatile("rep stosq" : "+c"(c), "+D"(d) : "a"(0x0101010101010101 * (i & 0xff)) : "memory");
		h = h * 31 + (d - (ulong)buf) + buf[5000];
		c = 50000, d = (ulong)buf + 100;
		asm volatile("repe scasb" : "+c"(c), "+D"(d) : "a"(i & 0xff) : "memory", "cc");
		h = h * 31 + c + (d - (ulong)buf);
	}
	return h;
}

static u64 smc(u32 n)
{
	static u8 f[64] ALIGNED(64);
	u64 h = 0;

	f[0] = 0x05, f[5] = 0xc3; /* add $imm, %eax; ret */
	for (u32 i = 0; i < n; i++) {
		u32 r = i;
		*(volatile u32 *)(f + 1) = i * 3;
		asm volatile("call *%1" : "+a"(r) : "r"(f) : "memory", "cc");
		h = h * 31 + r;
	}
	return h;
}

CODE(u_work, "1: add %rdi, %rax; rol $3, %rax; adc $5, %rdx; xor %rax, %rdi; push %rax; pop %rbx; dec %rsi; jnz 1b");
static u64 user(u32 n)
{
	struct frame f = user_frame(u_work);

	f.flags |= read_flags() & FL_IF; /* interrupts as in ring 0 */
	f.di = 0x123456789;
	f.si = n;
	run_frame(&f);
	sti();
	return trap.f.ax ^ trap.f.dx ^ trap.f.bx;
}

static u64 mapped(u32 n)
{
	u64 bad = 0;

	/* the handler swaps the two frames; both hold the same words */
	for (u32 i = 0; i < n; i++)
		bad += *(volatile u32 *)(TEST_VA + (i & 1023) * 4) != (i & 1023) * 7;
	return bad;
}

static const struct {
	const char *name;
	u64 (*fn)(u32);
	u32 n;
} work[] = {
	{"flags", flags_chain, 3000000}, {"calls", calls, 1500000}, {"fpu", fpu, 400000}, {"strings", strings, 60},
	{"smc", smc, 30000}, {"ring 3", user, 3000000}, {"remapped page", mapped, 2000000},
};

int guest_main(void)
{
	u64 want[ARRAY_SIZE(work)];

	buf = page_alloc_aligned(0x40000);
	for (int k = 0; k < 2; k++) {
		alt[k] = (ulong)page_alloc();
		for (u32 i = 0; i < 1024; i++)
			((u32 *)alt[k])[i] = i * 7;
	}
	map_page(TEST_VA, alt[0] | PTE_P | PTE_W, 1);
	lapic_init();
	trap_hook[0x50] = on_timer;
	for (unsigned i = 0; i < ARRAY_SIZE(work); i++) {
		memset(buf, 0, 0x40000);
		want[i] = work[i].fn(work[i].n);
		cli();
	}
	lapic_write(A_LVTT, 0x50);
	lapic_write(A_TDCR, 0xb);
	lapic_write(A_TMICT, 5000);
	for (unsigned i = 0; i < ARRAY_SIZE(work); i++) {
		u32 before = ticks;
		memset(buf, 0, 0x40000);
		sti();
		u64 got = work[i].fn(work[i].n);
		cli();
		check_eq(got, want[i], "%s under interrupts", work[i].name);
		check(ticks > before, "%s: interrupts came (%u)", work[i].name, ticks - before);
	}
	check(ring3_ticks > 0, "interrupts in ring 3 (%u)", ring3_ticks);
	for (unsigned i = 0; i < 100 && !in_rep; i++) { /* a fast machine may need more tries */
		memset(buf, 0, 0x40000);
		sti();
		strings(60);
		cli();
	}
	check(in_rep > 0, "interrupts in the middle of REP (%u)", in_rep);
	lapic_write(A_LVTT, LVT_MASKED);
	return 0;
}
