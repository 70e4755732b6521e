/*
 * Device registers through every form of instruction that compilers and kernels use. The register is the LAPIC timer's
 * initial count (32 bits, read/write, no side effect with the timer masked); each operation must do what it does to RAM.
 */
#include "lib/apic.h"

CODE(u_dev, "movl (%rdi), %eax; movl %esi, (%rdi)");

struct regs {
	u64 ax, cx, dx, bx, flags, x;
};

#define REG (LAPIC + A_TMICT)

#define OP(name, text)                                                                                             \
	static void name(struct regs *r, ulong p)                                                                  \
	{                                                                                                          \
		asm volatile("movq 40(%0), %%xmm0; mov (%0), %%rax; mov 8(%0), %%rcx; mov 16(%0), %%rdx;"          \
			     "mov 24(%0), %%rbx; push 32(%0); popf\n" text "\n"                                    \
			     "mov %%rax, (%0); mov %%rcx, 8(%0); mov %%rdx, 16(%0); mov %%rbx, 24(%0);"            \
			     "pushf; pop 32(%0); movq %%xmm0, 40(%0)"                                              \
			     ::"S"(r), "D"(p) : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "memory", "cc");    \
	}
/* every one twice: also as a fault of a hot site */
#define OPS(X)                                                                                                     \
	X(mov_load, "movl (%%rdi), %%eax") X(mov_load_cx, "movl (%%rdi), %%ecx") X(mov_store, "movl %%ebx, (%%rdi)")    \
	X(mov_imm, "movl $0x12345678, (%%rdi)") X(mov_index, "mov $4, %%ecx; movl -16(%%rdi, %%rcx, 4), %%edx")      \
	X(add_mem, "addl %%eax, (%%rdi)") X(add_reg, "addl (%%rdi), %%eax") X(add_imm, "addl $0x1000, (%%rdi)")      \
	X(add_imm8, "addl $-3, (%%rdi)") X(adc_mem, "adcl %%ebx, (%%rdi)") X(sbb_reg, "sbbl (%%rdi), %%edx")         \
	X(sub_mem, "subl %%ecx, (%%rdi)") X(or_mem, "orl %%eax, (%%rdi)") X(and_mem, "andl $0xff00ff, (%%rdi)")       \
	X(xor_mem, "xorl %%edx, (%%rdi)") X(xor_reg, "xorl (%%rdi), %%edx") X(cmp_mem, "cmpl %%eax, (%%rdi)")        \
	X(cmp_imm, "cmpl $5, (%%rdi)") X(test_mem, "testl %%eax, (%%rdi)") X(test_imm, "testl $0x80000000, (%%rdi)") \
	X(inc, "incl (%%rdi)") X(dec, "decl (%%rdi)") X(not_, "notl (%%rdi)") X(neg, "negl (%%rdi)")                 \
	X(shl, "shll $3, (%%rdi)") X(sar_cl, "mov $5, %%ecx; sarl %%cl, (%%rdi)") X(rcl, "rcll $1, (%%rdi)")         \
	X(shld, "shldl $7, %%eax, (%%rdi)") X(xchg, "xchgl %%eax, (%%rdi)") X(xadd, "xaddl %%ebx, (%%rdi)")          \
	X(lxadd, "lock xaddl %%ebx, (%%rdi)") X(lor, "lock orl $1, (%%rdi)") X(ldec, "lock decl (%%rdi)")            \
	X(cmpxchg_eq, "movl (%%rdi), %%eax; lock cmpxchgl %%ebx, (%%rdi)") X(cmpxchg_ne, "cmpxchgl %%ebx, (%%rdi)")   \
	X(bt, "btl $3, (%%rdi)") X(bts, "btsl $31, (%%rdi)") X(lbtr, "lock btrl $2, (%%rdi)")                        \
	X(imul2, "imull (%%rdi), %%eax") X(imul3, "imull $100, (%%rdi), %%ecx") X(mul, "mull (%%rdi)")               \
	X(div, "xor %%edx, %%edx; divl (%%rdi)") X(cmov_t, "cmp %%eax, %%eax; cmovel (%%rdi), %%edx")                \
	X(cmov_f, "cmp %%eax, %%eax; cmovnel (%%rdi), %%edx") X(bsf, "bsfl (%%rdi), %%ecx")                          \
	X(movslq, "movslq (%%rdi), %%rax") X(rip_like, "mov %%rdi, %%r8; movl (%%r8), %%r9d; mov %%r9, %%rax")         \
	X(movd_load, "movd (%%rdi), %%xmm0") X(movss_load, "movss (%%rdi), %%xmm0") X(movss_store, "movss %%xmm0, (%%rdi)") \
	X(movd_store, "movd %%xmm0, (%%rdi)") X(cvt, "cvtsi2sdl (%%rdi), %%xmm0")                                     \
	X(movsl_from, "mov %%rsi, %%r8; mov %%rdi, %%r9; mov %%rdi, %%rsi; lea 8(%%r8), %%rdi; movsl; mov %%r8, %%rsi; mov %%r9, %%rdi; movl 8(%%rsi), %%ecx") \
	X(movsl_to, "mov %%rsi, %%r8; mov %%rdi, %%r9; movsl; mov %%r8, %%rsi; mov %%r9, %%rdi")                      \
	X(rep_movsl, "mov %%rsi, %%r8; mov %%rdi, %%r9; mov $1, %%ecx; rep movsl; mov %%r8, %%rsi; mov %%r9, %%rdi")  \
	X(stosl, "mov %%rdi, %%r9; stosl; mov %%r9, %%rdi") X(rep_stosl, "mov %%rdi, %%r9; mov $1, %%ecx; rep stosl; mov %%r9, %%rdi") \
	X(lodsl, "mov %%rsi, %%r8; mov %%rdi, %%rsi; lodsl; mov %%r8, %%rsi") X(scasl, "mov %%rdi, %%r9; scasl; mov %%r9, %%rdi") \
	X(cmpsl, "mov %%rsi, %%r8; mov %%rdi, %%r9; cmpsl; mov %%r8, %%rsi; mov %%r9, %%rdi")                          \
	X(fild, "fninit; fildl (%%rdi); fistpl (%%rsi); movl (%%rsi), %%eax") X(fist, "fninit; fldpi; fistpl (%%rdi)")     \
	X(fadd, "fninit; fld1; fiaddl (%%rdi); fistpl (%%rsi); movl (%%rsi), %%eax") X(movnti, "movnti %%ebx, (%%rdi)")
#define DEFINE(name, text) OP(name, text)
OPS(DEFINE)
static const struct {
	const char *name;
	void (*fn)(struct regs *, ulong);
} ops[] = {
#define ROW(name, text) {#name, name},
	OPS(ROW)
};

/* Undefined flags are left out: a RAM run of the same instruction on the same CPU need not agree in them. */
static ulong flag_mask(const char *name)
{
	static const char *const undefined[] = {"shl", "sar_cl", "rcl", "shld", "imul2", "imul3", "mul", "div", "bsf", "bt", "bts", "lbtr"};

	for (unsigned i = 0; i < ARRAY_SIZE(undefined); i++) {
		const char *a = undefined[i], *b = name;
		while (*a && *a == *b)
			a++, b++;
		if (!*a && !*b)
			return FL_CF;
	}
	return 0x8d5;
}

static void forms(void)
{
	static volatile u32 ram ALIGNED(64);
	static const u32 values[] = {0x80000123, 0x00012345, 0xfffffffe};

	for (unsigned i = 0; i < ARRAY_SIZE(ops); i++) {
		char name[40] = "mmio ";
		unsigned n = 5;
		for (const char *s = ops[i].name; *s && n < sizeof(name) - 1; s++)
			name[n++] = *s;
		group_begin(name);
		for (unsigned k = 0; k < 4 * ARRAY_SIZE(values); k++) { /* often enough for a site to be retranslated */
			struct regs a = {0x1111111180000123, 0x2222222200000003, 0x33333333, 0x4444444455555555, FL_FIXED | FL_CF, 0x3fc00000}, b = a;
			u32 v = values[k % ARRAY_SIZE(values)];
			ram = v;
			ops[i].fn(&a, (ulong)&ram);
			lapic_write(A_TMICT, v);
			ops[i].fn(&b, REG);
			group_eq(lapic_read(A_TMICT), ram, "register, %x", v);
			group_eq(b.ax, a.ax, "rax, %x", v);
			group_eq(b.cx, a.cx, "rcx, %x", v);
			group_eq(b.dx, a.dx, "rdx, %x", v);
			group_eq(b.bx, a.bx, "rbx, %x", v);
			group_eq(b.x, a.x, "xmm0, %x", v);
			group_eq((b.flags ^ a.flags) & flag_mask(ops[i].name), 0, "flags, %x", v);
		}
		group_end();
	}
}

/* One instruction, RAM and device in turn: a retranslated site must still work for RAM. */
static void mixed(void)
{
	static volatile u32 ram[16];
	volatile u32 *p[3] = {&ram[3], (volatile u32 *)REG, &ram[9]};

	group_begin("one site, RAM and device");
	for (u32 i = 0; i < 300; i++) {
		volatile u32 *q = p[i % 3];
		*q = i;
		asm volatile("addl $7, (%0)" ::"r"(q) : "memory", "cc");
		group_eq(*q, i + 7, "%u", i);
	}
	group_end();
}

static void other(void)
{
	ulong r;
	struct frame f;

	/* write-only, read-only and sparse registers */
	u32 version = lapic_read(A_VERSION);
	lapic_write(A_VERSION, ~version);
	check_eq(lapic_read(A_VERSION), version, "a read-only register ignores writes");
	lapic_write(A_EOI, 0);
	check(true, "EOI with nothing in service");
	/* IOAPIC: index and window, 32 bit; a byte write of the index */
	*(volatile u32 *)IOAPIC = 1;
	check_eq(*(volatile u32 *)(IOAPIC + 0x10) >> 16 & 0xff, 23, "IOAPIC version");
	ioapic_write(0x10, LVT_MASKED | 0x33);
	asm volatile("movl $0x10, (%1); orl $0x40, 0x10(%1); movl 0x10(%1), %k0" : "=r"(r) : "r"(IOAPIC) : "memory", "cc");
	check_eq(r & 0x100ff, LVT_MASKED | 0x73, "or to the IOAPIC window");
	ioapic_write(0x10, LVT_MASKED);
	/* device pages obey page permissions, and faults come before the access */
	map_page(TEST_VA, LAPIC | PTE_P, 1);
	lapic_write(A_TMICT, 77);
	check_eq(*(volatile u32 *)(TEST_VA + A_TMICT), 77, "device page at another address");
	TRAP(*(volatile u32 *)(TEST_VA + A_TMICT) = 78);
	check_trap(EXC_PF, PF_P | PF_W, "device page, read-only");
	check_eq(lapic_read(A_TMICT), 77, "device page, read-only: no write");
	TRAP(asm volatile("incl (%0)" ::"r"(TEST_VA + A_TMICT) : "memory", "cc"));
	check_trap(EXC_PF, PF_P | PF_W, "device page, read-only: inc");
	map_page(TEST_VA, LAPIC | PTE_P | PTE_W | PTE_U, 1);
	f = user_frame(u_dev);
	f.di = TEST_VA + A_TMICT;
	f.si = 99;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "ring 3: device page");
	check_eq(trap.f.ax, 77, "ring 3: device page: load");
	check_eq(lapic_read(A_TMICT), 99, "ring 3: device page: store");
	/* movs between RAM and device where the other operand faults: nothing happens */
	map_page(TEST_VA, 0, 1);
	TRAP(asm volatile("movsl" ::"S"(TEST_VA), "D"(REG) : "memory"));
	check_trap(EXC_PF, 0, "movs from a hole to a device");
	check_eq(lapic_read(A_TMICT), 99, "movs from a hole to a device: no write");
	/* nothing there: reads all ones, writes are dropped */
	map_page(TEST_VA, 0xfed80000 | PTE_P | PTE_W, 1);
	TRAP(asm volatile("movl $1, (%1); movl (%1), %k0" : "=&r"(r) : "r"(TEST_VA + 0x40) : "memory"));
	check_trap(NO_TRAP, -1, "an address with no device");
	/* beyond RAM and devices, through a page table: the same */
	map_page(TEST_VA, 0xf000000000 | PTE_P | PTE_W, 1);
	if (cpu_phys_bits() >= 40) {
		TRAP(asm volatile("movl $1, (%1); movl (%1), %k0" : "=&r"(r) : "r"(TEST_VA) : "memory"));
		check_trap(NO_TRAP, -1, "an address far beyond RAM");
		check_eq(r, 0xffffffff, "an address far beyond RAM reads all ones");
	}
	/* ports: every width, and strings of port 0x80 */
	asm volatile("out %%al, $0x80; out %%ax, $0x80; out %%eax, $0x80" ::"a"(0));
	asm volatile("inb $0x64, %%al" : "=a"(r));
	u8 in[8];
	asm volatile("rep insb" ::"D"(in), "c"(8ul), "d"(0x3fd) : "memory");
	check(in[0] & 0x20, "rep insb of the UART's LSR");
	static const char text[] = "(rep outsb)\n";
	const char *s = text;
	ulong n = sizeof(text) - 1;
	asm volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(0x3f8) : "memory");
	check_eq(n, 0, "rep outsb");
}

int guest_main(void)
{
	lapic_init();
	lapic_write(A_TDCR, 3);
	/* the count runs down to 0 without an interrupt: the timer is masked; the initial count stays */
	forms();
	mixed();
	other();
	return 0;
}
