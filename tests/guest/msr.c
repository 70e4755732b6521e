/* MSRs and what RDMSR/WRMSR refuse; FS/GS bases in all their forms. SDM vol. 3, 2.8.6, 3.4.4; vol. 4. */
#include "guest.h"

#define NONCANON 0x8000000000000000ul

CODE(u_rdfs, "rdfsbase %rax; wrgsbase %rdi; rdgsbase %rbx; movq %gs:0, %rcx");
CODE(u_rdtscp, "rdtscp; mov %ecx, %ebx");
CODE(u_gsload, "mov %edi, %gs; movq %gs:0, %rax");
CODE(u_rdpid, ".byte 0xf3, 0x0f, 0xc7, 0xf8");

static int rd(u32 m) { return TRAP(rdmsr(m)); }
static int wr(u32 m, u64 v) { return TRAP(wrmsr(m, v)); }

static void unknown(void)
{
	/* numbers that no vendor gives a meaning to */
	static const u32 none[] = {0x2fff, 0x1234567, 0x40000fff, 0x7fffffff, 0x80000000, 0xc0001fff, 0xffffffff};

	for (unsigned i = 0; i < ARRAY_SIZE(none); i++) {
		rd(none[i]);
		check_trap(EXC_GP, 0, "RDMSR of %x", none[i]);
		wr(none[i], 0);
		check_trap(EXC_GP, 0, "WRMSR of %x", none[i]);
	}
	TRAP(asm volatile(MARK "rdmsr" ::"c"(0x2fff) : "eax", "edx"));
	check_mark("RDMSR of an unknown MSR");
}

/* A 64-bit MSR that keeps what is written, and refuses non-canonical addresses. */
static void address_msr(u32 m, const char *name)
{
	u64 old = rdmsr(m);

	wr(m, 0x7f1234567abc);
	check_trap(NO_TRAP, -1, "%s: canonical", name);
	check_eq(rdmsr(m), 0x7f1234567abc, "%s: reads back", name);
	wr(m, 0xffff800000000000);
	check_trap(NO_TRAP, -1, "%s: canonical, upper half", name);
	wr(m, NONCANON);
	check_trap(EXC_GP, 0, "%s: non-canonical", name);
	check_eq(rdmsr(m), 0xffff800000000000, "%s: a refused write changes nothing", name);
	wrmsr(m, old);
}

static void addresses(void)
{
	address_msr(MSR_FS_BASE, "FS_BASE");
	address_msr(MSR_GS_BASE, "GS_BASE");
	address_msr(MSR_KERNEL_GS_BASE, "KERNEL_GS_BASE");
	address_msr(MSR_LSTAR, "LSTAR");
	address_msr(MSR_CSTAR, "CSTAR");
	wr(MSR_STAR, 0x1234567890abcdef);
	check_eq(rdmsr(MSR_STAR), 0x1234567890abcdef, "STAR reads back");
	wr(MSR_SFMASK, 0x257fd5);
	check_eq(rdmsr(MSR_SFMASK) & 0xffffffff, 0x257fd5, "SFMASK reads back");
	if (cpuid(1, 0).d & BIT(11)) {
		wr(0x174, 0x1234);
		check_eq(rdmsr(0x174) & 0xffff, 0x1234, "SYSENTER_CS reads back");
		wr(0x175, 0xffff800012345678);
		check_eq(rdmsr(0x175), 0xffff800012345678, "SYSENTER_ESP reads back");
		wr(0x176, 0x12345678);
		check_eq(rdmsr(0x176), 0x12345678, "SYSENTER_EIP reads back");
		if (!cpu_is_amd()) { /* AMD ignores the upper half or takes any value */
			wr(0x175, NONCANON);
			check_trap(EXC_GP, 0, "SYSENTER_ESP: non-canonical");
		}
	}
}

static void efer(void)
{
	u64 old = rdmsr(MSR_EFER);

	wr(MSR_EFER, old | BIT(1));
	check_trap(EXC_GP, 0, "EFER bit 1");
	wr(MSR_EFER, old | BIT64(63));
	check_trap(EXC_GP, 0, "EFER bit 63");
	wr(MSR_EFER, old | EFER_SCE);
	check_eq(rdmsr(MSR_EFER), old | EFER_SCE, "EFER.SCE");
	wr(MSR_EFER, old & ~EFER_SCE);
	check_eq(rdmsr(MSR_EFER), old & ~EFER_SCE, "EFER.SCE off");
	wrmsr(MSR_EFER, old);
}

static void pat(void)
{
	u64 old = rdmsr(0x277);

	check_eq(old, 0x0007040600070406, "PAT at reset");
	wr(0x277, 0x0100040506070001);
	check_eq(rdmsr(0x277), 0x0100040506070001, "PAT reads back");
	static const u8 bad[] = {2, 3, 8, 0x80};
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		wr(0x277, (old & ~0xff0000ull) | (u64)bad[i] << 16);
		check_trap(EXC_GP, 0, "PAT type %u", bad[i]);
	}
	wrmsr(0x277, old);
}

static void tsc(void)
{
	u64 a = rdtsc(), b = rdtsc();

	check(b >= a, "TSC does not go back");
	wr(0x10, 0x1000000000);
	a = rdtsc();
	check(trap.vector == NO_TRAP && a >= 0x1000000000 && a < 0x1000000000 + 10000000000, "TSC can be written");
	b = rdmsr(0x10);
	check(b >= a && b - a < 10000000000, "RDMSR of the TSC");
	if (cpuid(0x80000001, 0).d & BIT(27)) {
		u32 aux, lo, hi;
		wr(0xc0000103, 0x89abcdef);
		asm volatile("rdtscp" : "=a"(lo), "=d"(hi), "=c"(aux));
		check_eq(aux, 0x89abcdef, "RDTSCP gives TSC_AUX");
		check((lo | (u64)hi << 32) >= b, "RDTSCP gives the TSC");
		user_run(u_rdtscp, 0, 0);
		check_eq(trap.f.bx, 0x89abcdef, "ring 3: RDTSCP");
		if (cpuid(0, 0).a >= 7 && (cpuid(7, 0).c & BIT(22))) {
			user_run(u_rdpid, 0, 0);
			check_eq(trap.f.ax, 0x89abcdef, "ring 3: RDPID");
		}
	}
}

static void fs_gs(void)
{
	static ulong a[4] = {0xa0, 0xa1}, b[4] = {0xb0, 0xb1}, c[4] = {0xc0, 0xc1};
	ulong v, w;

	wrmsr(MSR_FS_BASE, (ulong)a);
	wrmsr(MSR_GS_BASE, (ulong)b);
	wrmsr(MSR_KERNEL_GS_BASE, (ulong)c);
	asm volatile("movq %%fs:8, %0; movq %%gs:8, %1" : "=r"(v), "=r"(w));
	check_eq(v, 0xa1, "load through FS");
	check_eq(w, 0xb1, "load through GS");
	asm volatile("movq %%fs:(%2), %0; lea %%fs:8(%2), %1" : "=&r"(v), "=&r"(w) : "r"(8ul));
	check_eq(v, 0xa1, "load through FS and a register");
	check_eq(w, 16, "LEA ignores the base");
	asm volatile("swapgs; movq %%gs:0, %0" : "=r"(v));
	check_eq(v, 0xc0, "SWAPGS");
	check_eq(rdmsr(MSR_GS_BASE), (ulong)c, "SWAPGS: GS_BASE");
	check_eq(rdmsr(MSR_KERNEL_GS_BASE), (ulong)b, "SWAPGS: KERNEL_GS_BASE");
	/* a negative offset wraps in 64 bits */
	wrmsr(MSR_FS_BASE, (ulong)(a + 1));
	asm volatile("movq %%fs:-8, %0" : "=r"(v));
	check_eq(v, 0xa0, "negative displacement from FS");
	/* addr32: the offset is cut to 32 bits, the base is not */
	wrmsr(MSR_FS_BASE, (ulong)a - 0x1000);
	asm volatile("addr32 movq %%fs:(%k1), %0" : "=r"(v) : "r"(0xffff000000001008ul));
	check_eq(v, 0xa1, "addr32 through FS");
	/* loading a selector loads the base from the descriptor, 32 bits */
	gdt_set(SEL_FREE, seg_desc((u32)(ulong)c, 0xfffff, 0xf3, 0xc));
	wrmsr(MSR_GS_BASE, 0xffff888800000000);
	asm volatile("mov %1, %%gs; movq %%gs:8, %0" : "=r"(v) : "r"(SEL_FREE | 3));
	check_eq(v, 0xc1, "GS from a descriptor");
	check_eq(rdmsr(MSR_GS_BASE), (ulong)c, "GS_BASE after a selector load");
	user_run(u_gsload, SEL_FREE | 3, 0);
	check_trap(EXC_PF, -1, "ring 3: GS from a descriptor points to a supervisor page");
	check_eq(trap.cr2, (ulong)c, "ring 3: GS from a descriptor: address");
	asm volatile("mov %0, %%gs; mov %0, %%fs" ::"r"(0));
	if (cpu_is_amd())
		check(true, "null GS: AMD keeps the base");
	else
		check_eq(rdmsr(MSR_GS_BASE), 0, "null GS: the base is 0 (Intel)");
	/* non-canonical effective address through FS */
	wrmsr(MSR_FS_BASE, 0x7ffffffffff8);
	TRAP(asm volatile("movq %%fs:8, %0" : "=r"(v)));
	check_trap(EXC_GP, 0, "FS base + offset non-canonical");
	wrmsr(MSR_FS_BASE, 0);
	wrmsr(MSR_GS_BASE, 0);
}

static void fsgsbase(void)
{
	ulong v;

	if (!has_fsgsbase())
		return skip("FSGSBASE", "not there");
	TRAP(asm volatile("rdfsbase %%rax" ::: "rax"));
	check_trap(EXC_UD, 0, "RDFSBASE without CR4.FSGSBASE");
	write_cr4(read_cr4() | CR4_FSGSBASE);
	asm volatile("wrfsbase %0" ::"r"(0x123456789abcul));
	check_eq(rdmsr(MSR_FS_BASE), 0x123456789abc, "WRFSBASE");
	asm volatile("wrfsbase %k0" ::"r"(0x55667788));
	check_eq(rdmsr(MSR_FS_BASE), 0x55667788, "WRFSBASE, 32 bit");
	asm volatile("rdfsbase %0" : "=r"(v));
	check_eq(v, 0x55667788, "RDFSBASE");
	TRAP(asm volatile("wrgsbase %0" ::"r"(NONCANON)));
	check_trap(EXC_GP, 0, "WRGSBASE of a non-canonical address");
	static ulong data[1] ALIGNED(16) = {0x77};
	user_run(u_rdfs, user_ptr(data), 0);
	check_trap(VEC_EXIT, 0, "ring 3: FSGSBASE");
	check_eq(trap.f.ax, 0x55667788, "ring 3: RDFSBASE");
	check_eq(trap.f.bx, user_ptr(data), "ring 3: WRGSBASE, RDGSBASE");
	check_eq(trap.f.cx, 0x77, "ring 3: load through GS");
	write_cr4(read_cr4() & ~CR4_FSGSBASE);
	wrmsr(MSR_FS_BASE, 0);
	wrmsr(MSR_GS_BASE, 0);
}

static void apic_base(void)
{
	u64 old = rdmsr(MSR_APIC_BASE);

	check_eq(old & 0xffffff000, 0xfee00000, "APIC base");
	check_eq(old & (BIT(8) | BIT(11)), BIT(8) | BIT(11), "APIC enabled, BSP");
	wr(MSR_APIC_BASE, old | BIT(0));
	check_trap(EXC_GP, 0, "APIC_BASE reserved bit 0");
	wr(MSR_APIC_BASE, old | BIT64(60));
	check_trap(EXC_GP, 0, "APIC_BASE above MAXPHYADDR");
	wr(MSR_APIC_BASE, (old & ~(u64)BIT(11)) | BIT(10));
	check_trap(EXC_GP, 0, "x2APIC without the global enable");
}

static void xcr(void)
{
	if (!has_xsave())
		return skip("XCR0", "no XSAVE");
	TRAP(asm volatile("xgetbv" ::"c"(0) : "eax", "edx"));
	check_trap(EXC_UD, 0, "XGETBV without CR4.OSXSAVE");
	check_eq(cpuid(1, 0).c >> 27 & 1, 0, "CPUID.OSXSAVE follows CR4: 0");
	write_cr4(read_cr4() | CR4_OSXSAVE);
	check_eq(cpuid(1, 0).c >> 27 & 1, 1, "CPUID.OSXSAVE follows CR4: 1");
	u32 lo, hi;
	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	check_eq(lo, 1, "XCR0 at reset");
#define XSETBV(n, v) TRAP(asm volatile("xsetbv" ::"c"(n), "a"(v), "d"(0)))
	XSETBV(0, 3);
	check_trap(NO_TRAP, -1, "XCR0 = 3");
	XSETBV(0, 2);
	check_trap(EXC_GP, 0, "XCR0 without x87");
	XSETBV(0, 5);
	check_trap(EXC_GP, 0, "XCR0 with AVX, without SSE");
	XSETBV(0, 0x80000001);
	check_trap(EXC_GP, 0, "XCR0 with an unknown bit");
	XSETBV(1, 1);
	check_trap(EXC_GP, 0, "XSETBV of XCR1");
	TRAP(asm volatile("xgetbv" ::"c"(5) : "eax", "edx"));
	check_trap(EXC_GP, 0, "XGETBV of XCR5");
	XSETBV(0, 1);
}

int guest_main(void)
{
	unknown();
	efer();
	addresses();
	pat();
	tsc();
	fs_gs();
	fsgsbase();
	apic_base();
	xcr();
	return 0;
}
