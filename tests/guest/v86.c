/* Virtual-8086 mode: addressing, IOPL rules, traps out of it and back. SDM vol. 3, 20.2, 20.3. */
#include "guest.h"

/* Code at 0x1000:0, data at 0x2000, stack at 0x3000:0xfff0. */
#define CODE_SEG 0x1000
static struct frame start(const u8 *code, ulong n, unsigned iopl)
{
	struct frame f = {0};

	memset((void *)(CODE_SEG * 16ul), 0xf4, 256); /* hlt: #GP */
	memcpy((void *)(CODE_SEG * 16ul), code, n);
	f.ip = 0;
	f.cs = CODE_SEG;
	f.flags = FL_FIXED | FL_VM | (ulong)iopl << 12;
	f.sp = 0xfff0;
	f.ss = 0x3000;
	f.v_ds = 0x2000;
	f.v_es = 0x2100;
	f.v_fs = 0x2200;
	f.v_gs = 0x2300;
	f.ds = f.es = f.fs = f.gs = KDS;
	return f;
}
#define RUN(iopl, ...)                                           \
	({                                                       \
		static const u8 code[] = {__VA_ARGS__};          \
		struct frame f_ = start(code, sizeof(code), iopl); \
		run_frame(&f_);                                  \
	})

int guest_main(void)
{
	/* mov ax, 0x1234; mov [0x10], ax; hlt */
	RUN(3, 0xb8, 0x34, 0x12, 0xa3, 0x10, 0x00, 0xf4);
	check_trap(EXC_GP, 0, "hlt in VM86");
	check_eq(trap.f.ip, 6, "hlt in VM86: ip");
	check_eq(trap.f.flags & FL_VM, FL_VM, "VM in the saved flags");
	check_eq(trap.f.cs, CODE_SEG, "cs of VM86 in the frame");
	check_eq(trap.f.ss, 0x3000, "ss of VM86 in the frame");
	check_eq(trap.f.v_ds & 0xffff, 0x2000, "ds of VM86 in the frame");
	check_eq(trap.f.v_gs & 0xffff, 0x2300, "gs of VM86 in the frame");
	check_eq(trap.f.ds & 0xffff, 0, "data segments are null after a trap out of VM86");
	check_eq(*(volatile u16 *)0x20010, 0x1234, "segment bases in VM86");
	check_eq(trap.f.ax & 0xffff, 0x1234, "ax");
	/* push cs; pop ds; mov ax, ds; es:[0] byte; hlt */
	*(volatile u8 *)0x21005 = 0x77;
	RUN(3, 0x0e, 0x1f, 0x8c, 0xd8, 0x26, 0x8a, 0x1e, 0x05, 0x00, 0xf4);
	check_eq(trap.f.ax & 0xffff, CODE_SEG, "segment loads need no descriptor");
	check_eq(trap.f.bx & 0xff, 0x77, "es override");
	/* IOPL 3: cli, sti, pushf, popf run; IOPL 0: #GP */
	RUN(3, 0xfa, 0x9c, 0x58, 0xf4);
	check_trap(EXC_GP, 0, "IOPL 3: cli, pushf");
	check_eq(trap.f.ip, 3, "IOPL 3: ran to hlt");
	RUN(0, 0xfa);
	check_trap(EXC_GP, 0, "IOPL 0: cli");
	check_eq(trap.f.ip, 0, "IOPL 0: cli: ip");
	RUN(0, 0x9c);
	check_trap(EXC_GP, 0, "IOPL 0: pushf");
	RUN(0, 0x9d);
	check_trap(EXC_GP, 0, "IOPL 0: popf");
	RUN(0, 0xcd, 0x21);
	check_trap(EXC_GP, 0, "IOPL 0: int 0x21");
	RUN(0, 0xcf);
	check_trap(EXC_GP, 0, "IOPL 0: iret");
	RUN(0, 0xcc);
	check_trap(EXC_BP, 0, "IOPL 0: int3 is not sensitive to IOPL");
	RUN(3, 0xcd, 0x80);
	check_trap(VEC_EXIT, 0, "IOPL 3: int through the IDT");
	check_eq(trap.f.ip, 2, "IOPL 3: int: ip");
	/* ports go by the bitmap, whatever IOPL is */
	RUN(3, 0xe4, 0x80);
	check_trap(EXC_GP, 0, "in with no bitmap");
	/* real-mode call, ret, loop, string */
	RUN(3, 0xb9, 0x03, 0x00, 0x31, 0xc0, 0x40, 0xe2, 0xfd, 0xe8, 0x01, 0x00, 0xf4, 0x40, 0xc3); /* mov cx,3; xor ax,ax; L: inc ax; loop L; call +1; hlt; inc ax; ret */
	check_eq(trap.f.ax & 0xffff, 4, "loop and call");
	check_eq(trap.f.sp & 0xffff, 0xfff0, "sp after call and ret");
	/* limits: a word at 0xffff */
	RUN(3, 0xa1, 0xff, 0xff);
	check_trap(EXC_GP, 0, "word at offset 0xffff");
	/* 32-bit operand: 66 b8 imm32; address above 64 KiB: 67 */
	RUN(3, 0x66, 0xb8, 0x78, 0x56, 0x34, 0x12, 0x66, 0xbb, 0x00, 0x00, 0x01, 0x00, 0x67, 0x8a, 0x03);
	check_trap(EXC_GP, 0, "address above 64 KiB");
	check_eq(trap.f.ax, 0x12345678, "32-bit operand");
	/* privileged and protected-mode instructions */
	RUN(3, 0x0f, 0x20, 0xc0);
	check_trap(EXC_GP, 0, "mov eax, cr0");
	RUN(3, 0x0f, 0x00, 0xc8);
	check_trap(EXC_UD, 0, "str is not recognized");
	RUN(3, 0x0f, 0x02, 0xc0);
	check_trap(EXC_UD, 0, "lar is not recognized");
	RUN(3, 0x63, 0xc0);
	check_trap(EXC_UD, 0, "arpl is not recognized");
	RUN(3, 0x0f, 0x01, 0xe0, 0xf4); /* smsw ax */
	check_eq(trap.f.ax & 1, 1, "smsw shows PE");
	RUN(3, 0x31, 0xc9, 0xf7, 0xf1);
	check_trap(EXC_DE, 0, "div by zero");
	check_eq(trap.f.ip, 2, "div by zero: ip");
	/* popf cannot change VM, IOPL */
	RUN(3, 0xb8, 0x02, 0x00, 0x50, 0x9d, 0xf4);
	check_eq(trap.f.flags & (FL_VM | FL_IOPL3), FL_VM | FL_IOPL3, "popf keeps VM and IOPL");
	/* IRET to VM86 is by ring 0 only: NT and CPL 3 tried from ring 3 leave VM clear */
	/* paging: a VM86 page fault is a user access */
	paging_init(PAGING_32);
	map_page(0x80000000, 0xe7, 2);
	RUN(3, 0xf4);
	check_trap(EXC_PF, PF_P | PF_U, "VM86 runs with user rights");
	return 0;
}
