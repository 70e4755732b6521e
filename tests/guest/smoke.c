/* What every engine must do, also a KVM that emulates guest ring 0: traps of ring 0 and 3, paging, CPUID, MSRs, strings. */
#include "guest.h"

CODE(u_hlt, "mov $0x1234, %eax; add %rdi, %rax; hlt");

int guest_main(void)
{
	u32 zero = 0;
	u8 *a = page_alloc(), *b = page_alloc();

	TRAP(asm volatile(MARK "ud2"));
	check_trap(EXC_UD, 0, "ud2");
	check_mark("ud2");
	TRAP(asm volatile("xor %%edx, %%edx; mov $1, %%eax; divl %0" ::"m"(zero) : "eax", "edx"));
	check_trap(EXC_DE, 0, "div by zero");
	TRAP(*(volatile u8 *)(TEST_VA + 7) = 1);
	check_trap(EXC_PF, PF_W, "write to nothing");
	check_eq(trap.cr2, TEST_VA + 7, "write to nothing: cr2");
	TRAP(rdmsr(0x2fff));
	check_trap(EXC_GP, 0, "unknown MSR");
	a[5] = 1, b[5] = 2;
	map_page(TEST_VA, (ulong)a | PTE_P | PTE_W, 1);
	check_eq(*(volatile u8 *)(TEST_VA + 5), 1, "mapped page");
	map_page(TEST_VA, (ulong)b | PTE_P, 1);
	check_eq(*(volatile u8 *)(TEST_VA + 5), 2, "remapped page");
	TRAP(*(volatile u8 *)TEST_VA = 1);
	check_trap(EXC_PF, PF_P | PF_W, "read-only page");
	memset(a, 0x5a, PAGE);
	memcpy(b, a, PAGE);
	check_eq((u64)memcmp(a, b, PAGE), 0, "memory");
	user_run(u_hlt, 0x1000, 0);
	check_trap(EXC_GP, 0, "ring 3: hlt");
	check_eq(trap.f.ax, 0x2234, "ring 3: rax");
	check_eq(trap.f.cs, UCS, "ring 3: cs");
	check_eq(cpuid(1, 0).d & 1, 1, "CPUID: FPU");
	check_eq(rdmsr(MSR_EFER) & (EFER_LMA | EFER_LME), EFER_LMA | EFER_LME, "EFER");
	return 0;
}
