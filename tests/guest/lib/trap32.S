/* Exception and interrupt stubs; trap_arm (as setjmp), trap_unwind, trap_return. struct frame: guest.h. */
	.text
	.macro STUB n
	.balign 16
	.if !((\n == 8) || (\n >= 10 && \n <= 14) || (\n == 17) || (\n == 21) || (\n == 29) || (\n == 30))
	pushl $0
	.endif
	pushl $\n
	jmp trap_common
	.endm

	.balign 16
	.globl trap_stubs
trap_stubs:
	.altmacro
	.set i, 0
	.rept 256
	STUB %i
	.set i, i + 1
	.endr
	.noaltmacro

trap_common:
	pushal
	pushl %ds
	pushl %es
	pushl %fs
	pushl %gs
	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	cld
	movl %esp, %ebx
	andl $-16, %esp
	subl $12, %esp
	pushl %ebx
	call trap_dispatch
	movl %ebx, %esp
	jmp 1f

	.globl trap_return
trap_return:
	movl 4(%esp), %esp
1:	popl %gs
	popl %fs
	popl %es
	popl %ds
	popal
	addl $8, %esp
	iretl

	.globl trap_arm
trap_arm:
	movl (%esp), %eax
	movl %eax, trap_buf
	movl %esp, trap_buf + 4
	movl %ebx, trap_buf + 8
	movl %ebp, trap_buf + 12
	movl %esi, trap_buf + 16
	movl %edi, trap_buf + 20
	movl $1, trap_armed
	movl $-1, trap
	xorl %eax, %eax
	ret

/* Back to where trap_arm was called, with clean flags and segments. */
	.globl trap_unwind
trap_unwind:
	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %fs
	movl %eax, %gs
	movl %eax, %ss
	movl trap_buf + 4, %esp
	movl trap_buf + 8, %ebx
	movl trap_buf + 12, %ebp
	movl trap_buf + 16, %esi
	movl trap_buf + 20, %edi
	addl $4, %esp
	pushl $2
	pushl $0x08
	pushl trap_buf
	movl $1, %eax
	iretl

	.bss
	.balign 4
trap_buf:
	.skip 24
	.section .note.GNU-stack, "", @progbits
