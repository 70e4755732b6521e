/* Multiboot 1 entry, then long mode with the standard map of guest.h. */
	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002, 0x3, -(0x1badb002 + 0x3)

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	movl $boot_stack_top, %esp
	movl $boot_pml4, %eax
	movl %eax, %cr3
	movl $0x620, %eax			/* PAE, OSFXSR, OSXMMEXCPT */
	movl %eax, %cr4
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x900, %eax			/* LME, NXE */
	wrmsr
	movl $0x80010033, %eax			/* PG, WP, NE, ET, MP, PE */
	movl %eax, %cr0
	lgdt boot_gdtr
	ljmp $0x08, $1f
	.code64
1:	movl $0x3b, %eax			/* DS, ES: ring 3's, so that they outlive a return to compatibility mode */
	movl %eax, %ds
	movl %eax, %es
	movl $0x10, %eax
	movl %eax, %ss
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movl $boot_stack_top, %esp
	pushq $0
	popfq
	call guest_start
	ud2

	.data
	.balign 4096
	.globl boot_pml4
boot_pml4:
	.quad boot_pdpt + 7
	.fill 511, 8, 0
boot_pdpt:
	.quad boot_pd_low + 7, 0, boot_pd_user + 7, boot_pd_high + 7
	.fill 508, 8, 0
boot_pd_low:					/* 0..1 GiB: supervisor */
	.set i, 0
	.rept 512
	.quad (i << 21) + 0xe3
	.set i, i + 1
	.endr
boot_pd_user:					/* 2..3 GiB: the same RAM for ring 3 */
	.set i, 0
	.rept 512
	.quad (i << 21) + 0xe7
	.set i, i + 1
	.endr
boot_pd_high:					/* 3..4 GiB: devices */
	.set i, 0
	.rept 512
	.quad 0xc0000000 + (i << 21) + 0xe3
	.set i, i + 1
	.endr
boot_gdtr:
	.word 0xff
	.quad gdt

	.bss
	.balign 16
	.skip 65536
boot_stack_top:
	.section .note.GNU-stack, "", @progbits
