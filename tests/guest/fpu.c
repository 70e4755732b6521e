/*
 * x87, SSE and AVX state: save and restore forms, XSAVE's header and areas, masks and exceptions. SDM vol. 1, 8, 10, 13.
 */
#include "guest.h"

static u8 area[4096] ALIGNED(4096), area2[4096] ALIGNED(4096);

static void set_xmm(u64 v) { asm volatile("movq %0, %%xmm0; movlhps %%xmm0, %%xmm0; movaps %%xmm0, %%xmm15" ::"r"(v)); }
static u64 get_xmm0(void)
{
	u64 v;
	asm volatile("movq %%xmm0, %0" : "=r"(v));
	return v;
}
static u64 get_xmm15_hi(void)
{
	u64 v;
	asm volatile("movhps %%xmm15, %0" : "=m"(v));
	return v;
}

static void x87(void)
{
	u16 cw, sw;
	u32 env[7];
	u64 d;
	u8 st[10];

	asm volatile("fninit; fnstcw %0; fnstsw %1" : "=m"(cw), "=m"(sw));
	check_eq(cw, 0x37f, "FCW after FNINIT");
	check_eq(sw, 0, "FSW after FNINIT");
	asm volatile("fldpi; fstpt %0" : "=m"(st));
	static const u8 pi[] = {0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40};
	check_eq((u64)memcmp(st, pi, 10), 0, "fldpi has 64 bits of mantissa");
	asm volatile("fldl2e; fld1; fadd %%st(1), %%st; fstpl %0; fstp %%st" : "=m"(d));
	check_eq(d, 0x40038aa3b295c17f, "x87 add");
	asm volatile("fninit; fld1; fldz; fdivrp; fnstsw %0; fwait" : "=m"(sw));
	check_eq(sw & 0x3f, 4, "masked divide by zero sets ZE");
	asm volatile("fnclex; fnstsw %0" : "=m"(sw));
	check_eq(sw & 0x3f, 0, "fnclex");
	asm volatile("fninit; fld1; fld1; fnstenv %0" : "=m"(env));
	check_eq(env[1] >> 11 & 7, 6, "TOP after two loads");
	check_eq(env[2] & 0xffff, 0x0fff, "tag word after two loads");
	/* #MF is taken at the next waiting instruction */
	u16 unmasked = 0x37b;
	asm volatile("fninit; fldcw %0" ::"m"(unmasked));
	TRAP(asm volatile("fld1; fldz; fdivrp; nop; nop"));
	check_trap(NO_TRAP, -1, "pending x87 error waits");
	TRAP(asm volatile(MARK "fld1"));
	check_trap(EXC_MF, 0, "#MF at the next x87 instruction");
	check_mark("#MF at the next x87 instruction");
	TRAP(asm volatile("fnstsw %0" : "=m"(sw)));
	check_trap(NO_TRAP, -1, "fnstsw does not wait");
	check_eq(sw & 0x80, 0x80, "FSW.ES");
	asm volatile("fninit");
}

static void mxcsr(void)
{
	u32 m;
	float r;

	asm volatile("ldmxcsr %0" ::"m"((u32){0x1f80}));
	asm volatile("stmxcsr %0" : "=m"(m));
	check_eq(m, 0x1f80, "MXCSR");
	asm volatile("movl $0x3f800000, %%eax; movd %%eax, %%xmm0; movl $0x40400000, %%eax; movd %%eax, %%xmm1; divss %%xmm1, %%xmm0; movss %%xmm0, %0"
		     : "=m"(r)::"eax");
	memcpy(&m, &r, 4);
	check_eq(m, 0x3eaaaaab, "1/3, to nearest");
	asm volatile("ldmxcsr %0" ::"m"((u32){0x1f80 | 3 << 13}));
	asm volatile("movl $0x3f800000, %%eax; movd %%eax, %%xmm0; divss %%xmm1, %%xmm0; movss %%xmm0, %0" : "=m"(r)::"eax");
	memcpy(&m, &r, 4);
	check_eq(m, 0x3eaaaaaa, "1/3, toward zero");
	asm volatile("stmxcsr %0" : "=m"(m));
	check_eq(m & 0x3f, 0x20, "PE is sticky");
	asm volatile("ldmxcsr %0" ::"m"((u32){0x1f80}));
}

static void fxsave(void)
{
	u8 *p = area;

	memset(p, 0, 512);
	asm volatile("fninit; fld1");
	set_xmm(0x1122334455667788);
	asm volatile("fxsave64 (%0)" ::"r"(p) : "memory");
	check_eq(*(u16 *)p, 0x37f, "FXSAVE: FCW");
	check_eq(*(u16 *)(p + 2) >> 11 & 7, 7, "FXSAVE: TOP");
	check_eq(p[4], 0x80, "FXSAVE: abridged tags");
	check_eq(*(u32 *)(p + 24), 0x1f80, "FXSAVE: MXCSR");
	check_eq(*(u64 *)(p + 32), 0x8000000000000000, "FXSAVE: ST0");
	check_eq(*(u64 *)(p + 160), 0x1122334455667788, "FXSAVE: XMM0");
	check_eq(*(u64 *)(p + 160 + 240 + 8), 0x1122334455667788, "FXSAVE: XMM15");
	set_xmm(0);
	asm volatile("fninit; fxrstor64 (%0)" ::"r"(p) : "memory");
	check_eq(get_xmm0(), 0x1122334455667788, "FXRSTOR: XMM0");
	check_eq(get_xmm15_hi(), 0x1122334455667788, "FXRSTOR: XMM15");
	TRAP(asm volatile("fxsave64 (%0)" ::"r"(p + 8) : "memory"));
	check_trap(EXC_GP, 0, "FXSAVE, misaligned");
	*(u32 *)(p + 24) = 0xffff0000;
	TRAP(asm volatile("fxrstor64 (%0)" ::"r"(p) : "memory"));
	check_trap(EXC_GP, 0, "FXRSTOR with reserved MXCSR bits");
	write_cr0(read_cr0() | CR0_TS);
	TRAP(asm volatile("fxsave64 (%0)" ::"r"(p) : "memory"));
	check_trap(EXC_NM, 0, "FXSAVE with CR0.TS");
	write_cr0(read_cr0() & ~CR0_TS);
}

#define XSAVE(insn, p, mask) asm volatile(insn " (%0)" ::"r"(p), "a"((u32)(mask)), "d"(0) : "memory")

static void xsave(void)
{
	u64 *hdr = (u64 *)(area + 512);
	struct cpuid d0, d1;

	if (!has_xsave())
		return skip("XSAVE", "not there");
	TRAP(XSAVE("xsave64", area, 3));
	check_trap(EXC_UD, 0, "XSAVE without CR4.OSXSAVE");
	write_cr4(read_cr4() | CR4_OSXSAVE);
	u32 xcr0 = has_avx() ? 7 : 3;
	asm volatile("xsetbv" ::"a"(xcr0), "d"(0), "c"(0));
	d0 = cpuid(0xd, 0), d1 = cpuid(0xd, 1);
	check_eq(d0.b, has_avx() ? 832 : 576, "CPUID.0d: size for XCR0");
	check_eq(d0.a & xcr0, xcr0, "CPUID.0d: XCR0 bits");
	memset(area, 0, sizeof(area));
	set_xmm(0xaaaabbbbccccdddd);
	asm volatile("fninit; fld1");
	XSAVE("xsave64", area, 3);
	check_eq(hdr[0] & 3, 3, "XSAVE: XSTATE_BV");
	check_eq(*(u64 *)(area + 160), 0xaaaabbbbccccdddd, "XSAVE: XMM0");
	set_xmm(1);
	XSAVE("xrstor64", area, 3);
	check_eq(get_xmm0(), 0xaaaabbbbccccdddd, "XRSTOR: XMM0");
	/* a component whose bit is 0 is set to its initial state; one not asked for stays */
	hdr[0] = 1;
	set_xmm(5);
	XSAVE("xrstor64", area, 1);
	check_eq(get_xmm0(), 5, "XRSTOR leaves what is not asked for");
	XSAVE("xrstor64", area, 3);
	check_eq(get_xmm0(), 0, "XRSTOR initializes");
	hdr[0] = 3;
	/* XSAVE of some components only touches those */
	memset(area2, 0xcc, sizeof(area2));
	memset(area2 + 512, 0, 64);
	set_xmm(9);
	XSAVE("xsave64", area2, 1);
	check_eq(*(u64 *)(area2 + 160), 0xcccccccccccccccc, "XSAVE of x87 leaves the XMM area");
	check_eq(*(u64 *)(area2 + 512) & 2, 0, "XSAVE of x87: XSTATE_BV");
	/* header errors */
	hdr[1] = 1; /* XCOMP_BV bit 0, not compact */
	TRAP(XSAVE("xrstor64", area, 3));
	check_trap(EXC_GP, 0, "XRSTOR with a bad XCOMP_BV");
	hdr[1] = 0;
	hdr[0] = 3 | BIT64(62);
	TRAP(XSAVE("xrstor64", area, 3));
	check_trap(EXC_GP, 0, "XRSTOR with a bit beyond XCR0");
	hdr[0] = 3;
	hdr[2] = 1; /* bytes 23:8 must be 0 (vol. 1, 13.8.1) */
	TRAP(XSAVE("xrstor64", area, 3));
	check_trap(EXC_GP, 0, "XRSTOR with a reserved header byte");
	hdr[2] = 0;
	TRAP(XSAVE("xsave64", area + 32, 3));
	check_trap(EXC_GP, 0, "XSAVE, misaligned");
	write_cr0(read_cr0() | CR0_TS);
	TRAP(XSAVE("xsave64", area, 3));
	check_trap(EXC_NM, 0, "XSAVE with CR0.TS");
	write_cr0(read_cr0() & ~CR0_TS);
	if (d1.a & BIT(0)) {
		memset(area2, 0, sizeof(area2));
		set_xmm(0x1234567812345678);
		XSAVE("xsaveopt64", area2, 3);
		check_eq(*(u64 *)(area2 + 160), 0x1234567812345678, "XSAVEOPT: XMM0");
		set_xmm(0);
		XSAVE("xrstor64", area2, 3);
		check_eq(get_xmm0(), 0x1234567812345678, "XSAVEOPT and XRSTOR");
	}
	if (d1.a & BIT(1)) {
		memset(area2, 0, sizeof(area2));
		set_xmm(0x77);
		XSAVE("xsavec64", area2, xcr0);
		check_eq(((u64 *)(area2 + 512))[1] >> 63, 1, "XSAVEC: compacted");
		check_eq(*(u64 *)(area2 + 160), 0x77, "XSAVEC: XMM0");
		set_xmm(0);
		XSAVE("xrstor64", area2, xcr0);
		check_eq(get_xmm0(), 0x77, "XSAVEC and XRSTOR");
	}
	if (d1.a & BIT(2)) {
		u32 lo;
		asm volatile("xgetbv" : "=a"(lo) : "c"(1) : "edx");
		check((lo & ~xcr0) == 0, "XGETBV 1: in-use bits are among XCR0");
	}
	if (d1.a & BIT(3)) {
		memset(area2, 0, sizeof(area2));
		wrmsr(0xda0, 0);
		set_xmm(0x88);
		TRAP(XSAVE("xsaves64", area2, xcr0));
		check_trap(NO_TRAP, -1, "XSAVES");
		set_xmm(0);
		TRAP(XSAVE("xrstors64", area2, xcr0));
		check_trap(NO_TRAP, -1, "XRSTORS");
		check_eq(get_xmm0(), 0x88, "XSAVES and XRSTORS");
		((u64 *)(area2 + 512))[1] = 0; /* XRSTORS wants the compacted form */
		TRAP(XSAVE("xrstors64", area2, xcr0));
		check_trap(EXC_GP, 0, "XRSTORS of the standard form");
	}
}

static void avx(void)
{
	static u64 in[4] ALIGNED(32) = {1, 2, 3, 4}, out[4] ALIGNED(32);

	if (!has_xsave() || !has_avx())
		return skip("AVX", "not there");
	asm volatile("xsetbv" ::"a"(3), "d"(0), "c"(0));
	TRAP(asm volatile("vmovdqu (%0), %%ymm0" ::"r"(in)));
	check_trap(EXC_UD, 0, "AVX without XCR0.AVX");
	asm volatile("xsetbv" ::"a"(7), "d"(0), "c"(0));
	write_cr4(read_cr4() & ~CR4_OSXSAVE);
	TRAP(asm volatile("vmovdqu (%0), %%ymm0" ::"r"(in)));
	check_trap(EXC_UD, 0, "AVX without CR4.OSXSAVE");
	write_cr4(read_cr4() | CR4_OSXSAVE);
	TRAP(asm volatile("vmovdqu (%0), %%ymm0; vmovdqu %%ymm0, (%1)" ::"r"(in), "r"(out) : "memory"));
	check_trap(NO_TRAP, -1, "AVX");
	check_eq((u64)memcmp(in, out, 32), 0, "AVX load and store");
	/* the upper half over XSAVE */
	memset(area, 0, sizeof(area));
	XSAVE("xsave64", area, 7);
	check_eq(*(u64 *)(area + 576), 3, "XSAVE: upper half of YMM0");
	asm volatile("vzeroall");
	XSAVE("xrstor64", area, 7);
	asm volatile("vmovdqu %%ymm0, (%0)" ::"r"(out) : "memory");
	check_eq((u64)memcmp(in, out, 32), 0, "XRSTOR: YMM0");
	/* a VEX.128 instruction clears the upper half, a legacy SSE one keeps it */
	asm volatile("vmovdqu (%0), %%ymm0; xorps %%xmm1, %%xmm1; movaps %%xmm1, %%xmm0; vmovdqu %%ymm0, (%1)" ::"r"(in), "r"(out) : "memory");
	check_eq(out[2], 3, "legacy SSE keeps the upper half");
	asm volatile("vmovdqu (%0), %%ymm0; vmovdqa %%xmm1, %%xmm0; vmovdqu %%ymm0, (%1)" ::"r"(in), "r"(out) : "memory");
	check_eq(out[2], 0, "VEX.128 clears the upper half");
	TRAP(asm volatile("vmovdqa (%0), %%ymm0" ::"r"((ulong)in + 8)));
	check_trap(EXC_GP, 0, "vmovdqa, misaligned");
	TRAP(asm volatile("vaddps 4(%0), %%xmm1, %%xmm0" ::"r"(in)));
	check_trap(NO_TRAP, -1, "VEX arithmetic needs no alignment");
	TRAP(asm volatile("addps 4(%0), %%xmm0" ::"r"(in)));
	check_trap(EXC_GP, 0, "SSE arithmetic needs alignment");
	write_cr0(read_cr0() | CR0_TS);
	TRAP(asm volatile("vzeroupper"));
	check_trap(EXC_NM, 0, "AVX with CR0.TS");
	write_cr0(read_cr0() & ~CR0_TS);
}

/* State survives traps, ring changes and mode changes. */
CODE(u_sse, "movq %rdi, %xmm3; fld1; fld1; nop; movq %xmm3, %rax");

static void survives(void)
{
	u64 v;
	u16 sw;

	asm volatile("fninit; movq %0, %%xmm7" ::"r"(0x5555666677778888ul));
	user_run(u_sse, 0x99, 0);
	check_eq(trap.f.ax, 0x99, "ring 3: SSE");
	asm volatile("movq %%xmm7, %0; fnstsw %1" : "=r"(v), "=m"(sw));
	check_eq(v, 0x5555666677778888, "XMM7 over a ring change");
	check_eq(sw >> 11 & 7, 6, "x87 TOP over a ring change");
	for (int i = 0; i < 10; i++)
		TRAP(asm volatile("ud2"));
	asm volatile("movq %%xmm7, %0" : "=r"(v));
	check_eq(v, 0x5555666677778888, "XMM7 over traps");
	asm volatile("fninit");
}

int guest_main(void)
{
	x87();
	mxcsr();
	fxsave();
	xsave();
	avx();
	survives();
	return 0;
}
