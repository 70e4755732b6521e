/*
 * Self- and cross-modifying code by one CPU: SDM vol. 3, 9.1.3 and 12.6: the CPU that stores sees its own new code at
 * the next instruction when the linear address is the same; through another address, after a serializing instruction.
 */
#include "guest.h"

static u8 code[4 * 4096] ALIGNED(4096);

static u32 call(const void *p) { return ((u32(*)(void))p)(); }

static void serialize(void) { cpuid(0, 0); }

/* mov $imm, %eax; ret */
static void put_mov(u8 *p, u32 imm)
{
	p[0] = 0xb8;
	memcpy(p + 1, &imm, 4);
	p[5] = 0xc3;
}

static void simple(void)
{
	group_begin("function patched between calls");
	for (u32 i = 0; i < 300; i++) {
		put_mov(code + 64, i * 77);
		group_eq(call(code + 64), i * 77, "%u", i);
	}
	group_end();
	group_begin("one byte of an immediate");
	for (u32 i = 0; i < 64; i++) {
		((volatile u8 *)code)[64 + 1 + (i & 3)] = (u8)i;
		u32 want;
		memcpy(&want, code + 65, 4);
		group_eq(call(code + 64), want, "%u", i);
	}
	group_end();
	group_begin("data in the page of running code");
	for (u32 i = 0; i < 300; i++) {
		((volatile u32 *)code)[512] = i;
		group_eq(call(code + 64), *(volatile u32 *)(code + 65), "%u", i);
		group_eq(((volatile u32 *)code)[512], i, "data %u", i);
	}
	group_end();
}

/* Each way to store: xchg, lock add, movs, stos, SSE, push, cmpxchg16b, 8 bytes over the whole instruction. */
static void stores(void)
{
	u8 *p = code + 256;
	static u8 src[32] ALIGNED(16);
	u32 n;
	ulong a, b, c;

	group_begin("kinds of stores");
#define STORED(name, want) group_eq(call(p), want, name)
	put_mov(p, 1);
	STORED("before", 1);
	n = 2;
	asm volatile("xchgl %0, 1(%1)" : "+r"(n) : "r"(p) : "memory");
	STORED("xchg", 2);
	asm volatile("lock addl $5, 1(%0)" ::"r"(p) : "memory");
	STORED("lock add", 7);
	asm volatile("incb 1(%0)" ::"r"(p) : "memory");
	STORED("inc", 8);
	put_mov(src, 9);
	a = (ulong)src, b = (ulong)p, c = 6;
	asm volatile("rep movsb" : "+S"(a), "+D"(b), "+c"(c)::"memory");
	STORED("rep movsb", 9);
	a = 10, b = (ulong)p + 1, c = 1;
	asm volatile("rep stosl" : "+a"(a), "+D"(b), "+c"(c)::"memory");
	STORED("rep stosl", 10);
	put_mov(src, 11);
	asm volatile("movaps (%0), %%xmm0; movaps %%xmm0, (%1)" ::"r"(src), "r"(p) : "memory");
	STORED("movaps", 11);
	put_mov(src, 12);
	asm volatile("mov %%rsp, %%rdx; lea 8(%1), %%rsp; push (%0); mov %%rdx, %%rsp" ::"r"(src), "r"(p) : "memory", "rdx");
	STORED("push", 12);
	put_mov(src, 13);
	if (cpuid(1, 0).c & BIT(13)) {
		asm volatile("mov (%0), %%rbx; mov 8(%0), %%rcx; mov (%1), %%rax; mov 8(%1), %%rdx; lock cmpxchg16b (%1)" ::"S"(src),
			     "D"(p) : "memory", "rax", "rbx", "rcx", "rdx");
		STORED("cmpxchg16b", 13);
	}
	put_mov(src, 14);
	*(volatile u64 *)p = *(volatile u64 *)src;
	STORED("8-byte mov", 14);
	asm volatile("fildll (%0); fistpll (%1)" ::"r"(src), "r"(p) : "memory");
	STORED("fistp", 14);
	asm volatile("btsl $8, 1(%0)" ::"r"(p) : "memory");
	STORED("bts", 14 | 0x100);
	group_end();
}

/* The store and the stored-to instruction run in one stream. */
static void same_stream(void)
{
	u32 r;

	group_begin("next instruction patched, no jump");
	for (u32 i = 1; i <= 20; i++) {
		asm volatile("movl %1, 1f+1; 1: movl $0, %%eax; movl %%eax, %0" : "=r"(r) : "r"(i) : "eax", "memory");
		group_eq(r, i, "%u", i);
	}
	group_end();
	group_begin("next instruction patched, after a jump");
	for (u32 i = 1; i <= 20; i++) {
		asm volatile("movl %1, 1f+1; jmp 1f; nop; 1: movl $0, %%eax; movl %%eax, %0" : "=r"(r) : "r"(i) : "eax", "memory");
		group_eq(r, i, "%u", i);
	}
	group_end();
	/* a loop that counts in its own immediate */
	asm volatile("movl $0, 1f+1\n"
		     "1: movl $0, %%eax\n addl $1, %%eax\n movl %%eax, 1b+1\n cmpl $100, %%eax\n jne 1b\n movl %%eax, %0"
		     : "=r"(r)::"eax", "memory", "cc");
	check_eq(r, 100, "loop counting in its own immediate");
	/* an instruction becomes another one: the nop ahead turns into inc ecx */
	asm volatile("xor %%ecx, %%ecx; movw $0xc1ff, 1f; 1: .byte 0x66, 0x90; movl %%ecx, %0; movw $0x9066, 1b"
		     : "=r"(r)::"ecx", "memory", "cc");
	check_eq(r, 1, "nop ahead turned into inc");
	/* rep movsb rewrites what follows it */
	asm volatile("lea 2f(%%rip), %%rsi; lea 1f(%%rip), %%rdi; mov $5, %%ecx; rep movsb\n"
		     "1: movl $1, %%eax\n jmp 3f\n2: movl $0x77, %%eax\n3: movl %%eax, %0"
		     : "=r"(r)::"eax", "ecx", "rsi", "rdi", "memory");
	check_eq(r, 0x77, "rep movsb over the next instruction");
}

static void aliases(void)
{
	u8 *frame = page_alloc(), *other = page_alloc();
	u8 *va1 = (u8 *)TEST_VA, *va2 = (u8 *)TEST_VA + 0x200000 + 0x3000;

	map_page((ulong)va1, (ulong)frame | PTE_P | PTE_W, 1);
	map_page((ulong)va2, (ulong)frame | PTE_P | PTE_W, 1);
	group_begin("store through another address");
	for (u32 i = 0; i < 50; i++) {
		put_mov(i & 1 ? va2 : frame, i);
		serialize();
		group_eq(call(va1), i, "va1 %u", i);
		group_eq(call(va2), i, "va2 %u", i);
	}
	group_end();
	/* one frame run at two addresses: rip-relative results differ */
	static const u8 lea[] = {0x8d, 0x05, 0, 0, 0, 0, 0xc3}; /* lea 0(%rip), %eax; ret */
	memcpy(frame + 128, lea, sizeof(lea));
	serialize();
	check_eq(call(va1 + 128), (ulong)va1 + 134, "rip-relative lea at the first address");
	check_eq(call(va2 + 128), (ulong)va2 + 134, "rip-relative lea at the second address");
	check_eq(call(va1 + 128), (ulong)va1 + 134, "rip-relative lea at the first address again");
	/* the same for a relative call's return address */
	static const u8 getpc[] = {0xe8, 0, 0, 0, 0, 0x58, 0xc3};
	memcpy(frame + 192, getpc, sizeof(getpc));
	serialize();
	check_eq(call(va2 + 192), (ulong)va2 + 197, "return address at the second address");
	check_eq(call(va1 + 192), (ulong)va1 + 197, "return address at the first address");
	/* remapping: other code under the same linear address */
	put_mov(frame, 100);
	put_mov(other, 200);
	serialize();
	group_begin("remapped code page");
	for (u32 i = 0; i < 20; i++) {
		map_page((ulong)va1, (ulong)(i & 1 ? other : frame) | PTE_P | PTE_W, 1);
		group_eq(call(va1), i & 1 ? 200 : 100, "%u", i);
	}
	group_end();
	/* a direct jump from one page to another whose mapping changes */
	u8 *jmp_page = page_alloc();
	map_page((ulong)va1 + 4096, (ulong)jmp_page | PTE_P | PTE_W, 1);
	jmp_page[0] = 0xe9; /* jmp va1 */
	int rel = -4096 - 5;
	memcpy(jmp_page + 1, &rel, 4);
	serialize();
	group_begin("direct jump into a remapped page");
	for (u32 i = 0; i < 20; i++) {
		map_page((ulong)va1, (ulong)(i & 1 ? other : frame) | PTE_P | PTE_W, 1);
		group_eq(call(va1 + 4096), i & 1 ? 200 : 100, "%u", i);
	}
	pte_set(pte_at(read_cr3(), (ulong)va1, 1), 0);
	invlpg((ulong)va1);
	TRAP(call(va1 + 4096));
	group_eq((u64)trap.vector, EXC_PF, "unmapped target");
	group_eq(trap.f.ip, (ulong)va1, "unmapped target: rip");
	group_end();
}

static void cross_page(void)
{
	u8 *a = page_alloc(), *hole = page_alloc(), *b = page_alloc();
	u8 *va = (u8 *)TEST_VA + 0x10000;
	u32 n;

	(void)hole;
	map_page((ulong)va, (ulong)a | PTE_P | PTE_W, 1);
	map_page((ulong)va + 4096, (ulong)b | PTE_P | PTE_W, 1);
	group_begin("instruction across two pages");
	for (u32 k = 1; k <= 5; k++) {
		u8 *p = va + 4096 - k;
		for (u32 i = 0; i < 4; i++) {
			put_mov(p, 0x01010101 * i + k);
			group_eq(call(p), 0x01010101 * i + k, "%u bytes in the first page, %u", k, i);
		}
		/* patch only the second page, through its frame */
		if (k < 5) {
			b[4 - k] ^= 0x55;
			serialize();
			memcpy(&n, p + 1, 4);
			group_eq(call(p), n, "second page patched, %u bytes in the first", k);
			a[4096 - 1] ^= k > 1 ? 0x33 : 0;
			serialize();
			memcpy(&n, p + 1, 4);
			group_eq(call(p), n, "first page patched, %u bytes in the first", k);
		}
	}
	group_end();
	/* the second page goes away: #PF(I/D) with cr2 = its start, rip = the instruction */
	group_begin("instruction into a missing page");
	for (u32 k = 1; k <= 5; k++) {
		u8 *p = va + 4096 - k;
		map_page((ulong)va + 4096, (ulong)b | PTE_P | PTE_W, 1);
		put_mov(p, 42);
		group_eq(call(p), 42, "%u", k);
		map_page((ulong)va + 4096, 0, 1);
		TRAP(call(p));
		group_eq((u64)trap.vector, EXC_PF, "vector %u", k);
		group_eq(trap.f.error, PF_I, "error %u", k);
		group_eq(trap.cr2, (ulong)va + 4096, "cr2 %u", k);
		group_eq(trap.f.ip, (ulong)(k < 5 ? p : va + 4096), "rip %u", k);
	}
	group_end();
	/* an instruction that ends with the page does not touch the next one */
	va[4095] = 0xc3;
	TRAP(call(va + 4095));
	check_trap(NO_TRAP, -1, "ret as the last byte before a missing page");
	put_mov(va + 4096 - 6, 3);
	TRAP(check_eq(call(va + 4096 - 6), 3, "mov, ret before a missing page"));
	check_trap(NO_TRAP, -1, "mov, ret before a missing page: no trap");
	/* another frame for the second page */
	map_page((ulong)va + 4096, (ulong)b | PTE_P | PTE_W, 1);
	put_mov(va + 4096 - 3, 0x11223344);
	check_eq(call(va + 4096 - 3), 0x11223344, "second page: first frame");
	memcpy(hole, b, 4096);
	hole[0] = 0x55;
	map_page((ulong)va + 4096, (ulong)hole | PTE_P | PTE_W, 1);
	check_eq(call(va + 4096 - 3), 0x11553344, "second page: another frame");
}

/* The same bytes in 64-bit and in compatibility mode; the same page in ring 0 and ring 3. */
static void modes(void)
{
	static const u8 inc[] = {0x48, 0xff, 0xc0, 0xcd, 0x80}; /* 64-bit: inc %rax; 32-bit: dec %eax, inc %eax; int $0x80 */
	u8 *p = code + 512;
	struct frame f;

	memcpy(p, inc, sizeof(inc));
	group_begin("same bytes in two modes");
	for (int i = 0; i < 6; i++) {
		f = user_frame(p);
		f.cs = i & 1 ? UCS32 : UCS;
		f.ax = 0xffffffff;
		run_frame(&f);
		group_eq((u64)trap.vector, VEC_EXIT, "%d", i);
		group_eq(trap.f.ax, i & 1 ? 0xffffffff : 0x100000000, "rax %d", i);
	}
	group_end();
	group_begin("same code in two rings");
	static const u8 cs[] = {0x8c, 0xc8, 0xcd, 0x80}; /* mov %cs, %eax; int $0x80 */
	memcpy(p, cs, sizeof(cs));
	for (int i = 0; i < 4; i++) {
		if (i & 1) {
			user_run(p, 0, 0);
		} else {
			TRAP(call(p));
		}
		group_eq((u64)trap.vector, VEC_EXIT, "%d", i);
		group_eq(trap.f.ax, i & 1 ? UCS : KCS, "cs %d", i);
	}
	group_end();
	/* ring 3 patches its own code */
	static const u8 self[] = {0x89, 0x77, 0x04, 0xb8, 0, 0, 0, 0, 0xcd, 0x80}; /* mov %esi, 4(%rdi); mov $0, %eax; int $0x80 */
	memcpy(p, self, sizeof(self));
	group_begin("ring 3 patches its own stream");
	for (u32 i = 1; i < 6; i++) {
		user_run(p, user_ptr(p), i * 3);
		group_eq(trap.f.ax, i * 3, "%u", i);
	}
	group_end();
}

int guest_main(void)
{
	simple();
	stores();
	same_stream();
	aliases();
	cross_page();
	modes();
	return 0;
}
