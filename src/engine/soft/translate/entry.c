/*
 * Into translated code and out of it. The only places where host and guest registers meet.
 *
 * soft_enter saves the callee-saved registers, loads flags and GPRs of the guest, and vector state if it was saved, and jumps to
 * sv->entry; translated code leaves through soft_exit (T0 = rip) or soft_exit_signal, which return from soft_enter with the guest's
 * vector state still in the registers (vec_live). GS base is the context's table already. Guest r9-r11 stay in memory.
 */
#include "engine/soft/soft_int.h"

#define F(field) ((int)offsetof(struct soft_vcpu, field))
#define G(field) ((int)offsetof(struct soft_vcpu, field) - VCPU_OFF)
#define GPR(n) (F(v.s.gpr) + 8 * (n))
#define GGPR(n) (G(v.s.gpr) + 8 * (n))

static const uint32_t host_mxcsr = 0x1f80;

__attribute__((naked)) void soft_enter(struct soft_vcpu *sv)
{
	__asm__ volatile("push %%rbx\n push %%rbp\n push %%r12\n push %%r13\n push %%r14\n push %%r15\n sub $8, %%rsp\n"
			 "mov %%rsp, %c[host_rsp](%%rdi)\n"
			 "cmpb $0, %c[live](%%rdi)\n movb $0, %c[live](%%rdi)\n jne 1f\n"
			 "mov %c[mask](%%rdi), %%eax\n mov %c[mask]+4(%%rdi), %%edx\n"
			 "xrstor64 %c[xsave](%%rdi)\n 1:\n"
			 "push %c[flags](%%rdi)\n popfq\n"
			 "mov %c[r0](%%rdi), %%rax\n mov %c[r1](%%rdi), %%rcx\n mov %c[r2](%%rdi), %%rdx\n mov %c[r3](%%rdi), %%rbx\n"
			 "mov %c[r5](%%rdi), %%rbp\n mov %c[r6](%%rdi), %%rsi\n mov %c[r8](%%rdi), %%r8\n"
			 "mov %c[r12](%%rdi), %%r12\n mov %c[r13](%%rdi), %%r13\n mov %c[r14](%%rdi), %%r14\n mov %c[r15](%%rdi), %%r15\n"
			 "mov %c[step](%%rdi), %%r11\n"
			 "mov %c[r4](%%rdi), %%rsp\n"
			 "mov %c[r7](%%rdi), %%rdi\n"
			 "jmp *%%gs:%c[entry]\n"
			 :
			 : [host_rsp] "i"(F(host_rsp)), [mask] "i"(F(xsave_mask)), [xsave] "i"(F(v.s.xsave)), [flags] "i"(F(run_flags)),
			   [live] "i"(F(v.vec_live)), [r0] "i"(GPR(0)), [r1] "i"(GPR(1)), [r2] "i"(GPR(2)), [r3] "i"(GPR(3)), [r4] "i"(GPR(4)), [r5] "i"(GPR(5)),
			   [r6] "i"(GPR(6)), [r7] "i"(GPR(7)), [r8] "i"(GPR(8)), [r12] "i"(GPR(12)), [r13] "i"(GPR(13)),
			   [r14] "i"(GPR(14)), [r15] "i"(GPR(15)), [step] "i"(F(step_ptr)), [entry] "i"(G(entry)));
}

__attribute__((naked)) void soft_exit(void)
{
	__asm__ volatile("mov %%r11, %%gs:%c[rip]\n"
			 "jmp soft_exit_signal\n"
			 :
			 : [rip] "i"(G(v.s.rip)));
}

__attribute__((naked)) void soft_exit_signal(void)
{
	__asm__ volatile("mov %%rax, %%gs:%c[r0]\n mov %%rcx, %%gs:%c[r1]\n mov %%rdx, %%gs:%c[r2]\n mov %%rbx, %%gs:%c[r3]\n"
			 "mov %%rsp, %%gs:%c[r4]\n mov %%rbp, %%gs:%c[r5]\n mov %%rsi, %%gs:%c[r6]\n mov %%rdi, %%gs:%c[r7]\n"
			 "mov %%r8, %%gs:%c[r8]\n mov %%r12, %%gs:%c[r12]\n mov %%r13, %%gs:%c[r13]\n mov %%r14, %%gs:%c[r14]\n"
			 "mov %%r15, %%gs:%c[r15]\n"
			 "mov %%gs:%c[host_rsp], %%rsp\n"
			 "pushfq\n pop %%gs:%c[flags]\n"
			 "movb $1, %%gs:%c[live]\n"
			 "add $8, %%rsp\n pop %%r15\n pop %%r14\n pop %%r13\n pop %%r12\n pop %%rbp\n pop %%rbx\n ret\n"
			 :
			 : [host_rsp] "i"(G(host_rsp)), [flags] "i"(G(run_flags)), [live] "i"(G(v.vec_live)), [r0] "i"(GGPR(0)), [r1] "i"(GGPR(1)), [r2] "i"(GGPR(2)), [r3] "i"(GGPR(3)),
			   [r4] "i"(GGPR(4)), [r5] "i"(GGPR(5)), [r6] "i"(GGPR(6)), [r7] "i"(GGPR(7)), [r8] "i"(GGPR(8)),
			   [r12] "i"(GGPR(12)), [r13] "i"(GGPR(13)), [r14] "i"(GGPR(14)), [r15] "i"(GGPR(15)));
}

/* Always by the same address: what XRSTOR and XSAVEOPT know of each other (SDM vol. 1, 13.6) hangs on it. */
void soft_vec_save(struct vcpu *v)
{
	struct soft_vcpu *sv = soft_vcpu(v);

	__asm__ volatile("xsaveopt64 %0" : "+m"(sv->v.s.xsave) : "a"((uint32_t)sv->xsave_mask), "d"((uint32_t)(sv->xsave_mask >> 32)));
	__asm__ volatile("ldmxcsr %0" : : "m"(host_mxcsr));
	if (sv->v.s.xsave[512] & 1)
		__asm__ volatile("fninit");
	sv->v.vec_live = false;
}
