/* Exception and interrupt stubs; trap_arm (as setjmp), trap_unwind, trap_return. struct frame: guest.h. */
	.text
	.macro STUB n
	.balign 16
	.if !((\n == 8) || (\n >= 10 && \n <= 14) || (\n == 17) || (\n == 21) || (\n == 29) || (\n == 30))
	pushq $0
	.endif
	pushq $\n
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
	pushq %rax
	pushq %rcx
	pushq %rdx
	pushq %rbx
	pushq %rbp
	pushq %rsi
	pushq %rdi
	pushq %r8
	pushq %r9
	pushq %r10
	pushq %r11
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	cld
	movq %rsp, %rdi
	movq %rsp, %rbx
	andq $-16, %rsp
	call trap_dispatch
	movq %rbx, %rdi

	.globl trap_return
trap_return:
	movq %rdi, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %r11
	popq %r10
	popq %r9
	popq %r8
	popq %rdi
	popq %rsi
	popq %rbp
	popq %rbx
	popq %rdx
	popq %rcx
	popq %rax
	addq $16, %rsp
	iretq

	.globl trap_arm
trap_arm:
	movq (%rsp), %rax
	movq %rax, trap_buf
	movq %rsp, trap_buf + 8
	movq %rbx, trap_buf + 16
	movq %rbp, trap_buf + 24
	movq %r12, trap_buf + 32
	movq %r13, trap_buf + 40
	movq %r14, trap_buf + 48
	movq %r15, trap_buf + 56
	movl $1, trap_armed
	movl $-1, trap
	xorl %eax, %eax
	ret

/* Back to where trap_arm was called, by IRET (which also unmasks NMI), with clean flags and segments. */
	.globl trap_unwind
trap_unwind:
	movl $0x3b, %eax
	movl %eax, %ds
	movl %eax, %es
	movq trap_buf + 8, %rdx
	addq $8, %rdx
	movq trap_buf + 16, %rbx
	movq trap_buf + 24, %rbp
	movq trap_buf + 32, %r12
	movq trap_buf + 40, %r13
	movq trap_buf + 48, %r14
	movq trap_buf + 56, %r15
	pushq $0x10
	pushq %rdx
	pushq $2
	pushq $0x08
	pushq trap_buf
	movl $1, %eax
	iretq

	.bss
	.balign 8
trap_buf:
	.skip 64
	.section .note.GNU-stack, "", @progbits
