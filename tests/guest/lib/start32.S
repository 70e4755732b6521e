/* Multiboot 1 entry for images that stay in 32-bit protected mode, paging off. */
	.section .multiboot, "a"
	.balign 4
	.long 0x1badb002, 0x3, -(0x1badb002 + 0x3)

	.text
	.globl _start
_start:
	cli
	cld
	movl $boot_stack_top, %esp
	movl $0x600, %eax			/* OSFXSR, OSXMMEXCPT */
	movl %eax, %cr4
	movl $0x00010033, %eax			/* WP, NE, ET, MP, PE */
	movl %eax, %cr0
	lgdt boot_gdtr
	ljmp $0x08, $1f
1:	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl %eax, %fs
	movl %eax, %gs
	pushl $0
	popfl
	call guest_start
	ud2

	.data
boot_gdtr:
	.word 0xff
	.long gdt

	.bss
	.balign 16
	.skip 65536
boot_stack_top:
	.section .note.GNU-stack, "", @progbits
