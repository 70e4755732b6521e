/*
 * Sensitive instructions that do not trap in ring 3 (Popek and Goldberg's critical ones): they must behave as on the
 * machine, and fault with CR4.UMIP. SDM vol. 2; vol. 3, 2.5 (UMIP).
 */
#include "guest.h"

CODE(u_sgdt, "sgdt (%rdi)");
CODE(u_sidt, "sidt (%rdi)");
CODE(u_sldt, "mov $-1, %rax; sldt %eax; movw $0, (%rdi); sldt (%rdi)");
CODE(u_str, "mov $-1, %rax; str %ax; movw $0, (%rdi); str (%rdi)");
CODE(u_smsw, "mov $-1, %rax; smsw %rax; mov $-1, %rbx; smsw %bx; smsw (%rdi)");
CODE(u_popf, "push %rdi; popf; pushf; pop %rax");
CODE(u_popfw, "push %rdi; popfw; lea 6(%rsp), %rsp; pushf; pop %rax");
CODE(u_lar, "mov $-1, %eax; lar %edi, %eax; setz %bl; mov $-1, %ecx; lsl %edi, %ecx; setz %dl");
CODE(u_ver, "verr %di; setz %al; verw %di; setz %bl");
CODE(u_sel, "mov %cs, %eax; mov %ss, %ebx; mov %ds, %ecx; mov %es, %edx; push %fs; pop %rsi; push %gs; pop %rdi");
CODE(u_lcs, "lea 1f(%rip), %rax; push $0x43; push %rax; lretq; 1: mov %cs, %ebx");
CODE(u_in, "mov %edi, %edx; in %dx, %al");
CODE(u_out, "mov %edi, %edx; out %eax, %dx");
CODE(u_cli, "cli; pushf; pop %rax; sti; pushf; pop %rbx; cli");
CODE(u_sgdt16, ".byte 0x66; sgdt (%rdi)");
CODE32(c_sgdt, "sgdt (%edi)");
CODE32(c_popf, "push %edi; popfl; pushfl; pop %eax");
CODE32(c_smsw, "mov $-1, %eax; smsw %eax; movl $-1, %ebx; sldt %ebx");

static u8 out[16] ALIGNED(16);

static void tables(void)
{
	struct {
		u16 limit;
		ulong base;
	} __attribute__((packed)) g, i;

	asm volatile("sgdt %0; sidt %1" : "=m"(g), "=m"(i));
	check_eq(g.base, (ulong)gdt, "SGDT: base");
	check_eq(g.limit, 255, "SGDT: limit");
	check_eq(i.base, (ulong)idt, "SIDT: base");
	check_eq(i.limit, 4095, "SIDT: limit");
	memset(out, 0xee, sizeof(out));
	user_run(u_sgdt, user_ptr(out), 0);
	check_trap(VEC_EXIT, 0, "ring 3: SGDT");
	check_eq((u64)memcmp(out, &g, 10), 0, "ring 3: SGDT shows the guest's GDT");
	check_eq(out[10], 0xee, "ring 3: SGDT stores 10 bytes");
	memset(out, 0xee, sizeof(out));
	user_run(u_sgdt16, user_ptr(out), 0);
	check_eq((u64)memcmp(out, &g, 10), 0, "ring 3: the operand-size prefix does not shorten SGDT in 64-bit mode");
	user_run(u_sidt, user_ptr(out), 0);
	check_eq((u64)memcmp(out, &i, 10), 0, "ring 3: SIDT shows the guest's IDT");
	memset(out, 0xee, sizeof(out));
	struct frame f = user_frame(c_sgdt);
	f.cs = UCS32;
	f.di = user_ptr(out);
	run_frame(&f);
	check_eq((u64)memcmp(out, &g, 6), 0, "compat: SGDT");
	check_eq(out[6], 0xee, "compat: SGDT stores 6 bytes");
	gdt_set(SEL_LDT, seg_desc((u32)(ulong)out, 15, 0x82, 0));
	gdt_set(SEL_LDT + 8, 0);
	asm volatile("lldt %w0" ::"r"(SEL_LDT));
	user_run(u_sldt, user_ptr(out), 0);
	check_eq(trap.f.ax, SEL_LDT, "ring 3: SLDT to a 32-bit register");
	check_eq(*(u16 *)out, SEL_LDT, "ring 3: SLDT to memory");
	asm volatile("lldt %w0" ::"r"(0));
	user_run(u_sldt, user_ptr(out), 0);
	check_eq(trap.f.ax, 0, "ring 3: SLDT, null");
	user_run(u_str, user_ptr(out), 0);
	check_eq(trap.f.ax, 0xffffffffffff0000 | SEL_TSS, "ring 3: STR to a 16-bit register");
	check_eq(*(u16 *)out, SEL_TSS, "ring 3: STR to memory");
}

static void msw(void)
{
	ulong cr0 = read_cr0();

	user_run(u_smsw, user_ptr(out), 0);
	check_eq(trap.f.ax, cr0, "ring 3: SMSW to a 64-bit register");
	check_eq(trap.f.bx, 0xffffffffffff0000 | (cr0 & 0xffff), "ring 3: SMSW to a 16-bit register");
	check_eq(*(u16 *)out, cr0 & 0xffff, "ring 3: SMSW to memory");
	write_cr0(cr0 | CR0_TS);
	user_run(u_smsw, user_ptr(out), 0);
	check_eq(trap.f.ax, cr0 | CR0_TS, "ring 3: SMSW shows TS");
	asm volatile("lmsw %w0" ::"r"(0x2)); /* clears TS, MP on; PE stays set */
	check_eq(read_cr0() & 0xf, 0x3, "LMSW: PE cannot be cleared");
	asm volatile("lmsw %w0" ::"r"(0xfff7));
	check_eq(read_cr0(), (cr0 & ~0xful) | 0x7, "LMSW loads the low four bits only");
	write_cr0(cr0 | CR0_TS);
	asm volatile("clts");
	check_eq(read_cr0(), cr0, "CLTS");
	struct frame f = user_frame(c_smsw);
	f.cs = UCS32;
	run_frame(&f);
	check_eq(trap.f.ax & 0xffff, cr0 & 0xffff, "compat: SMSW");
	check_eq(trap.f.bx, 0, "compat: SLDT zero-extends");
}

/* POPF in ring 3: IOPL never, IF only with IOPL 3; VIF, VIP, VM, RF as the manual says. */
static void popf(void)
{
	struct frame f = user_frame(u_popf);
	ulong all = FL_CF | BIT(2) | BIT(4) | FL_ZF | BIT(7) | FL_DF | FL_OF | FL_NT | FL_AC | FL_ID | FL_FIXED;

	f.di = all | FL_IF | FL_IOPL3;
	run_frame(&f);
	check_eq(trap.f.ax, all, "ring 3, IOPL 0: POPF sets neither IF nor IOPL");
	f = user_frame(u_popf);
	f.flags |= FL_IF;
	f.di = FL_FIXED;
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED | FL_IF, "ring 3, IOPL 0: POPF cannot clear IF");
	f = user_frame(u_popf);
	f.flags |= FL_IF | FL_IOPL3;
	f.di = FL_FIXED;
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED | FL_IOPL3, "ring 3, IOPL 3: POPF clears IF, keeps IOPL");
	f = user_frame(u_popf);
	f.di = FL_FIXED | FL_RF | FL_VM | BIT(3) | BIT(5) | BIT(15) | BIT(30);
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED, "ring 3: POPF ignores RF, VM and reserved bits");
	f = user_frame(u_popfw);
	f.flags |= FL_AC | FL_ID;
	f.di = FL_FIXED | FL_CF;
	run_frame(&f);
	check_eq(trap.f.ax, FL_FIXED | FL_CF | FL_AC | FL_ID, "ring 3: 16-bit POPF keeps the upper half");
	f = user_frame(c_popf);
	f.cs = UCS32;
	f.di = all | FL_IF | FL_IOPL3;
	run_frame(&f);
	check_eq(trap.f.ax, all, "compat: POPF");
	write_flags(all | FL_IOPL3);
	ulong got = read_flags();
	write_flags(FL_FIXED);
	check_eq(got, all | FL_IOPL3, "ring 0: POPF sets IOPL");
	f = user_frame(u_cli);
	f.flags |= FL_IOPL3;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "ring 3, IOPL 3: CLI and STI");
	check_eq(trap.f.ax & FL_IF, 0, "ring 3, IOPL 3: CLI");
	check_eq(trap.f.bx & FL_IF, FL_IF, "ring 3, IOPL 3: STI");
}

struct lar_case {
	const char *name;
	u64 desc;
	u32 sel; /* 0: SEL_FREE */
	u8 rpl;
	bool lar, lsl, verr, verw; /* valid in ring 3 */
};

static void lar(void)
{
	static const struct lar_case t[] = {
		{"user data", 0x00cff3000000ffff, 0, 3, true, true, true, true},
		{"read-only user data", 0x00cff1000000ffff, 0, 3, true, true, true, false},
		{"kernel data", 0x00cf93000000ffff, 0, 0, false, false, false, false},
		{"user code, readable", 0x00affb000000ffff, 0, 3, true, true, true, false},
		{"user code, execute only", 0x00aff9000000ffff, 0, 3, true, true, false, false},
		{"conforming kernel code", 0x00af9f000000ffff, 0, 3, true, true, true, false},
		{"not present data", 0x00cf73000000ffff, 0, 3, true, true, true, true},
		{"byte-granular data", 0x0040f30000001234, 0, 3, true, true, true, true},
		{"TSS", 0x0000e90000000067, 0, 3, true, true, false, false},
		{"LDT", 0x0000e20000000067, 0, 3, true, true, false, false},
		{"call gate", 0x0000ec0000080000, 0, 3, true, false, false, false},
		{"interrupt gate", 0x0000ee0000080000, 0, 3, false, false, false, false},
		{"16-bit call gate", 0x0000e40000080000, 0, 3, false, false, false, false},
		{"null", 0, 3, 0, false, false, false, false},
		{"beyond the GDT", 0, 0x200, 3, false, false, false, false},
		{"LDT is null", 0, 0x0c, 3, false, false, false, false},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		gdt_set(SEL_FREE, t[i].desc);
		gdt_set(SEL_FREE + 8, 0);
		u32 sel = (t[i].sel ? t[i].sel : SEL_FREE) | t[i].rpl;
		u32 rights = (u32)(t[i].desc >> 32) & 0x00ffff00; /* LAR: bytes 5 and 6 of the descriptor */
		u32 limit = (u32)(t[i].desc & 0xffff) | (u32)(t[i].desc >> 32 & 0xf0000);
		if (t[i].desc & BIT64(55))
			limit = limit << 12 | 0xfff;
		user_run(u_lar, sel, 0);
		check_trap(VEC_EXIT, 0, "LAR, LSL: %s", t[i].name);
		check_eq(trap.f.bx & 1, t[i].lar, "LAR: %s: ZF", t[i].name);
		/* bits 19:16 are undefined */
		check_eq(trap.f.ax & ~0xf0000ul, t[i].lar ? rights & ~0xf0000u : 0xfff0ffff, "LAR: %s", t[i].name);
		check_eq(trap.f.dx & 1, t[i].lsl, "LSL: %s: ZF", t[i].name);
		check_eq(trap.f.cx, t[i].lsl ? limit : 0xffffffff, "LSL: %s", t[i].name);
		user_run(u_ver, sel, 0);
		check_eq(trap.f.ax & 1, t[i].verr, "VERR: %s", t[i].name);
		check_eq(trap.f.bx & 1, t[i].verw, "VERW: %s", t[i].name);
	}
}

static void selectors(void)
{
	struct frame f = user_frame(u_sel);

	asm volatile("mov %0, %%ds; mov %0, %%es; mov %0, %%fs; mov %1, %%gs" ::"r"(UDS), "r"(3));
	run_frame(&f);
	asm volatile("mov %0, %%ds; mov %0, %%es; mov %1, %%fs; mov %1, %%gs" ::"r"(UDS), "r"(0));
	check_eq(trap.f.ax, UCS, "ring 3: CS shows RPL 3");
	check_eq(trap.f.bx, UDS, "ring 3: SS");
	check_eq(trap.f.cx, UDS, "ring 3: DS");
	check_eq(trap.f.dx, UDS, "ring 3: ES");
	check_eq(trap.f.si, UDS, "ring 3: FS");
	check_eq(trap.f.di, 3, "ring 3: a null selector keeps its RPL");
	user_run(u_lcs, 0, 0);
	check_eq(trap.f.bx, UCS, "ring 3: CS after LRETQ");
}

/* I/O permission bitmap: vol. 1, 19.5.2. */
static void io_bitmap(void)
{
	tss.iomap = offsetof(struct tss, bitmap);
	memset(tss.bitmap, 0xff, sizeof(tss.bitmap));
	tss.bitmap[0x80 / 8] &= (u8)~1;
	gdt_set(SEL_TSS, seg_desc((u32)(ulong)&tss, sizeof(tss) - 1, 0x89, 0));
	asm volatile("ltr %w0" ::"r"(SEL_TSS));
	user_run(u_in, 0x80, 0);
	check_trap(VEC_EXIT, 0, "port allowed by the bitmap");
	user_run(u_in, 0x81, 0);
	check_trap(EXC_GP, 0, "port refused by the bitmap");
	user_run(u_out, 0x80, 0);
	check_trap(EXC_GP, 0, "4-byte access with one byte allowed");
	struct frame f = user_frame(u_in);
	f.di = 0x81;
	f.flags |= FL_IOPL3;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "IOPL 3 needs no bitmap");
	gdt_set(SEL_TSS, seg_desc((u32)(ulong)&tss, offsetof(struct tss, bitmap) + 0x80 / 8, 0x89, 0));
	asm volatile("ltr %w0" ::"r"(SEL_TSS));
	user_run(u_in, 0x80, 0);
	check_trap(EXC_GP, 0, "the byte after the bits is beyond the limit");
	tss.iomap = sizeof(tss);
	user_run(u_in, 0x80, 0);
	check_trap(EXC_GP, 0, "bitmap beyond the limit");
	gdt_set(SEL_TSS, seg_desc((u32)(ulong)&tss, offsetof(struct tss, bitmap) - 1, 0x89, 0));
	asm volatile("ltr %w0" ::"r"(SEL_TSS));
}

static void umip(void)
{
	static const struct {
		const char *name, *code;
	} t[] = {{"SGDT", u_sgdt}, {"SIDT", u_sidt}, {"SLDT", u_sldt}, {"STR", u_str}, {"SMSW", u_smsw}};

	if (!has_umip())
		return skip("UMIP", "not there");
	write_cr4(read_cr4() | CR4_UMIP);
	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		user_run(t[i].code, user_ptr(out), 0);
		check_trap(EXC_GP, 0, "UMIP, ring 3: %s", t[i].name);
	}
	TRAP(asm volatile("sgdt (%0); sidt (%0); sldt %%eax; str %%eax; smsw %%eax" ::"r"(out) : "eax", "memory"));
	check_trap(NO_TRAP, -1, "UMIP, ring 0");
	write_cr4(read_cr4() & ~CR4_UMIP);
}

int guest_main(void)
{
	tables();
	msw();
	popf();
	lar();
	selectors();
	io_bitmap();
	umip();
	return 0;
}
