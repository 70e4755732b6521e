/*
 * One trip through every mode: long, compatibility (32 and 16 bit), protected 32 and 16 bit, real, unreal, and back;
 * with checks of what each mode means. SDM vol. 3, 9.8, 9.9, 20.1.
 */
#include "guest.h"

/* Results of the trip, at RES in low memory. */
struct res {
	u32 cs_compat, cs_compat16, lma_compat, lma_off, cr0_real, seg_write, int40, int40_flags;
	u32 gp_count, gp_ip, de_count, de_ip, bp_count, step_count, ret_far, push16, push32, add16, unreal, limit32;
	u32 movs, scan, wrap_sp, pm16_limit, done, lea16, loop16, jcxz, popf_iopl, of_count, ud_count, ss_count;
};
#define RES 0x7000

extern const u8 trip[], trip_end[];

/* Labels inside the copy at LOW_BASE, and fields of struct res. */
__asm__(
	".macro L name, label\n .set \\name, 0x8000 + (\\label - trip)\n .endm\n"
	".text\n.balign 16\n.code64\n"
	"trip:\n"
	" push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
	" sidt a_idtr64\n"
	" mov %rsp, a_rsp\n"
	" ljmpl *a_far32\n"

	/* --- compatibility mode, 32 bit --- */
	".code32\n"
	"t_c32:\n"
	" mov %cs, %eax; movl %eax, 0x7000+0\n"
	" movl $0xc0000080, %ecx; rdmsr; movl %eax, 0x7000+8\n"
	" ljmp $0x20, $a_c16\n"
	".code16\n"
	"t_c16:\n"
	" mov %cs, %ax; movzwl %ax, %eax; movl %eax, 0x7004\n"
	" ljmpl $0x18, $a_c32b\n"
	".code32\n"
	"t_c32b:\n"
	/* --- protected mode: paging off, long mode off --- */
	" mov %cr0, %eax; andl $0x7fffffff, %eax; mov %eax, %cr0\n"
	" movl $0xc0000080, %ecx; rdmsr; movl %eax, 0x7000+12; andl $~0x100, %eax; wrmsr\n"
	" movl $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss; movl $0x6ff0, %esp\n"
	" pushl $0x11112222; popl %eax; movl %eax, 0x7000+64\n"
	" ljmp $0x20, $a_p16\n"
	/* --- protected mode, 16 bit --- */
	".code16\n"
	"t_p16:\n"
	" movw $0x28, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss; mov %ax, %fs; mov %ax, %gs; movw $0x6ff0, %sp\n"
	" movw %sp, %bx; pushw $0x1234; subw %sp, %bx; movzwl %bx, %ebx; movl %ebx, 0x7000+60; popw %ax\n"
	" lslw %ax, %cx\n"
	" movw $0x28, %ax; lsl %ax, %ecx; movl %ecx, 0x7000+92\n"
	" lidtl a_idtr16\n"
	" mov %cr0, %eax; andb $0xfe, %al; mov %eax, %cr0\n"
	" ljmp $0, $a_real\n"
	/* --- real mode --- */
	"t_real:\n"
	" xorw %ax, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss; mov %ax, %fs; mov %ax, %gs; movw $0x6ff0, %sp\n"
	" mov %cr0, %eax; movl %eax, 0x7000+16\n"
	/* a segment's base is 16 times the selector */
	" movw $0x1234, %ax; mov %ax, %es; movl $0xcafe1234, %es:0x10\n"
	" movw $0x1000, %ax; mov %ax, %ds; movl 0x2350, %eax; xorw %cx, %cx; mov %cx, %ds; mov %cx, %es; movl %eax, 0x7000+20\n"
	/* the interrupt vector table: handlers */
	" movw $a_int40, 0x100; movw $0, 0x102\n"
	" movw $a_gp, 13*4; movw $0, 13*4+2\n"
	" movw $a_gp, 12*4; movw $0, 12*4+2\n"
	" movw $a_de, 0; movw $0, 2\n"
	" movw $a_db, 4; movw $0, 6\n"
	" movw $a_bp, 12; movw $0, 14\n"
	" movw $a_of, 16; movw $0, 18\n"
	" movw $a_ud, 24; movw $0, 26\n"
	" stc; int $0x40; pushfw; popw %ax; movzwl %ax, %eax; movl %eax, 0x7000+28\n"
	/* #GP: a word at offset 0xffff; 3 bytes: a1 ff ff */
	" .byte 0xa1, 0xff, 0xff\n"
	"t_gp_next:\n"
	" nop; nop\n"
	/* #GP: 32-bit address above the limit */
	" movl $0x10000, %ebx; .byte 0x67, 0x8a, 0x03\n" /* mov (%ebx), %al */
	" nop; nop\n"
	" movl 0x7000+32, %eax; movl %eax, 0x7000+76\n"
	/* #DE: a fault: the saved ip is the instruction's */
	" xorw %dx, %dx; movw $1, %ax; xorw %cx, %cx\n"
	"t_div: divw %cx\n"
	" int3; int $3\n"
	" movb $0x7f, %al; addb $1, %al; into\n"
	" ud2\n"
	/* single step over three instructions */
	" pushfw; popw %ax; orw $0x100, %ax; pushw %ax; popfw; nop; nop; pushfw; popw %ax; andw $~0x100, %ax; pushw %ax; popfw\n"
	/* far call and return */
	" lcall $0, $a_far\n"
	/* operand sizes */
	" movl $0xffff, %eax; addw $1, %ax; movl %eax, 0x7000+68\n"
	" movl $0x12345678, %ebx; leaw 0xf000(%bx), %bx; movl %ebx, 0x7000+100\n"
	" movl $0x10003, %ecx; xorl %eax, %eax; 1: incl %eax; loop 1b; movl %eax, 0x7000+104\n"
	" movl $0x10000, %ecx; xorl %eax, %eax; jcxz 1f; incl %eax; 1: movl %eax, 0x7000+108\n"
	/* IOPL and NT may be set in real mode */
	" pushw $0x3002; popfw; pushfw; popw %ax; movzwl %ax, %eax; movl %eax, 0x7000+112; pushw $2; popfw\n"
	/* rep movsb and the wrap of si, di within the segment */
	" movw $0x2000, %ax; mov %ax, %ds; mov %ax, %es; movw $0xfffe, %di; movb $0x5a, %al; movw $4, %cx; cld; rep stosb\n"
	" movl 0, %eax; movzwl %di, %edi; xorw %cx, %cx; mov %cx, %ds; mov %cx, %es; movl %eax, 0x7000+80; movl %edi, 0x7000+84\n"
	/* push at sp = 2 goes to 0, at sp = 0 to 0xfffe (64K stack) */
	" movw $0x3000, %ax; mov %ax, %ss; xorw %sp, %sp; pushw $0x55aa; movzwl %sp, %eax; xorw %cx, %cx; mov %cx, %ss; movw $0x6ff0, %sp; movl %eax, 0x7000+88\n"
	/* --- unreal mode: the hidden limit of DS survives the way back to real mode --- */
	" mov %cr0, %eax; orb $1, %al; mov %eax, %cr0; movw $0x10, %cx; mov %cx, %ds; andb $0xfe, %al; mov %eax, %cr0\n"
	" movl $0x100000, %ebx; .byte 0x67, 0x66, 0x8b, 0x03; movl %eax, 0x7000+72\n"
	" xorw %cx, %cx; mov %cx, %ds\n"
	/* --- back: protected 32, long --- */
	" mov %cr0, %eax; orb $1, %al; mov %eax, %cr0\n"
	" ljmpl $0x18, $a_p32\n"
	"t_int40: movl $0x4040, 0x7000+24; clc; iretw\n"
	"t_gp: incl 0x7000+32; pushw %bp; movw %sp, %bp; pushl %eax; movzwl 2(%bp), %eax; movl %eax, 0x7000+36; popl %eax; addw $3, 2(%bp); popw %bp; iretw\n"
	"t_de: incl 0x7000+40; pushw %bp; movw %sp, %bp; pushl %eax; movzwl 2(%bp), %eax; movl %eax, 0x7000+44; popl %eax; addw $2, 2(%bp); popw %bp; iretw\n"
	"t_db: incl 0x7000+52; iretw\n"
	"t_bp: incl 0x7000+48; iretw\n"
	"t_of: incl 0x7000+116; iretw\n"
	"t_ud: incl 0x7000+120; pushw %bp; movw %sp, %bp; addw $2, 2(%bp); popw %bp; iretw\n"
	"t_far: movl $0x600d, 0x7000+56; lretw\n"
	".code32\n"
	"t_p32:\n"
	" movl $0x10, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss\n"
	" movl $0xc0000080, %ecx; rdmsr; orl $0x100, %eax; wrmsr\n"
	" mov %cr0, %eax; orl $0x80000000, %eax; mov %eax, %cr0\n"
	" ljmp $0x08, $a_long\n"
	".code64\n"
	"t_long:\n"
	" mov a_rsp, %rsp; lidt a_idtr64; xor %eax, %eax; mov %eax, %fs; mov %eax, %gs\n"
	" movl $1, 0x7000+96\n"
	" pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
	" ret\n"
	".balign 8\n"
	"t_rsp: .quad 0\n"
	"t_idtr64: .skip 16\n"
	"t_idtr16: .word 0x3ff; .long 0\n"
	"t_far32: .long a_c32; .word 0x18\n"
	"trip_end:\n"
	"L a_c32, t_c32\nL a_c16, t_c16\nL a_c32b, t_c32b\nL a_p16, t_p16\nL a_real, t_real\nL a_p32, t_p32\nL a_long, t_long\n"
	"L a_int40, t_int40\nL a_gp, t_gp\nL a_de, t_de\nL a_db, t_db\nL a_bp, t_bp\nL a_of, t_of\nL a_ud, t_ud\nL a_far, t_far\n"
	"L a_rsp, t_rsp\nL a_idtr64, t_idtr64\nL a_idtr16, t_idtr16\nL a_far32, t_far32\n"
	"L a_gp_next, t_gp_next\nL a_div, t_div\n"
	".globl t_gp_next, t_div\n");
extern const u8 t_gp_next[], t_div[];

static u32 low(const u8 *label) { return (u32)(LOW_BASE + (ulong)(label - trip)); }

static void round_trip(int n)
{
	volatile struct res *r = (struct res *)RES;

	memset((void *)RES, 0, sizeof(*r));
	memset((void *)0x20000, 0, 16);
	((void (*)(void))LOW_BASE)();
	print("trip %d\n", n);
	check_eq(r->done, 1, "back in long mode");
	check_eq(r->cs_compat, KCS32, "CS in compatibility mode");
	check_eq(r->cs_compat16, KCS16, "CS in 16-bit compatibility mode");
	check_eq(r->lma_compat & (EFER_LME | EFER_LMA), EFER_LME | EFER_LMA, "EFER in compatibility mode");
	check_eq(r->lma_off & (EFER_LME | EFER_LMA), EFER_LME, "CR0.PG=0 clears EFER.LMA");
	check_eq(r->push32, 0x11112222, "protected mode stack");
	check_eq(r->push16, 2, "16-bit push in protected mode");
	check_eq(r->pm16_limit, 0xffff, "LSL of the 16-bit data segment");
	check_eq(r->cr0_real & 1, 0, "CR0.PE in real mode");
	check_eq(r->seg_write, 0xcafe1234, "real-mode segment base");
	check_eq(r->int40, 0x4040, "real-mode INT through the vector table");
	check_eq(r->int40_flags & FL_CF, FL_CF, "real-mode IRET restores the flags");
	check_eq(r->gp_count, 2, "real-mode #GP on limit violations");
	check_eq(r->limit32, 2, "real-mode #GP on a 32-bit address above the limit");
	check_eq(r->de_count, 1, "real-mode #DE");
	check_eq(r->de_ip, low(t_div), "real-mode #DE: ip");
	check_eq(r->bp_count, 2, "real-mode INT3 and INT 3");
	check_eq(r->of_count, 1, "real-mode INTO");
	check_eq(r->ud_count, 1, "real-mode #UD");
	/* nop, nop, pushf, pop, and, push, popf: after each but popf, which clears TF: but the trap of popf itself is due too */
	check_eq(r->step_count, 7, "real-mode single step");
	check_eq(r->ret_far, 0x600d, "real-mode far call");
	check_eq(r->add16, 0, "16-bit add keeps the upper half");
	check_eq(r->lea16, 0x12344678, "16-bit LEA wraps");
	check_eq(r->loop16, 3, "LOOP uses CX");
	check_eq(r->jcxz, 0, "JCXZ looks at CX");
	check_eq(r->popf_iopl & FL_IOPL3, FL_IOPL3, "real-mode POPF sets IOPL");
	check_eq(r->movs & 0xffffff, 0x005a5a, "rep stosb wraps in its segment");
	check_eq(r->scan, 2, "rep stosb wraps di");
	check_eq(r->wrap_sp, 0xfffe, "push wraps sp");
	check_eq(r->unreal, *(u32 *)0x100000, "unreal mode reads above 1 MiB");
}

/* Forbidden changes of mode: SDM vol. 2, MOV CR; vol. 3, 9.8.5. */
static void forbidden(void)
{
	TRAP(write_cr0(read_cr0() & ~CR0_PE));
	check_trap(EXC_GP, 0, "PG=1 with PE=0");
	TRAP(write_cr0((read_cr0() | BIT(29)) & ~BIT(30)));
	check_trap(EXC_GP, 0, "NW=1 with CD=0");
	TRAP(write_cr0(read_cr0() | BIT(32)));
	check_trap(EXC_GP, 0, "CR0 bit 32");
	TRAP(write_cr0(read_cr0() & ~CR0_PG));
	check_trap(EXC_GP, 0, "PG=0 in 64-bit mode");
	TRAP(write_cr4(read_cr4() & ~CR4_PAE));
	check_trap(EXC_GP, 0, "PAE=0 in long mode");
	TRAP(write_cr4(read_cr4() | BIT(31)));
	check_trap(EXC_GP, 0, "reserved CR4 bit 31");
	TRAP(write_cr4(read_cr4() | BIT(15)));
	check_trap(EXC_GP, 0, "reserved CR4 bit 15");
	TRAP(wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_LME));
	check_trap(EXC_GP, 0, "EFER.LME changed with paging on");
	TRAP(wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_LMA));
	check((trap.vector == NO_TRAP || trap.vector == EXC_GP) && (rdmsr(MSR_EFER) & EFER_LMA), "EFER.LMA is not software's");
	TRAP(write_cr8(16));
	check_trap(EXC_GP, 0, "reserved CR8 bit");
	TRAP(write_cr8(15); write_cr8(0));
	check_trap(NO_TRAP, -1, "CR8 15, 0");
	write_cr0(read_cr0() & ~BIT(4));
	check_eq(read_cr0() & BIT(4), BIT(4), "CR0.ET is fixed at 1");
}

int guest_main(void)
{
	memcpy((void *)LOW_BASE, trip, (ulong)(trip_end - trip));
	for (int i = 0; i < 3; i++)
		round_trip(i);
	forbidden();
	return 0;
}
