/* Start of application processors: SDM vol. 3, 8.4.4 (MP initialization protocol), 10.6. */
#include "smp.h"

#include "apic.h"

unsigned ncpus;
volatile u32 smp_starts[SMP_MAX], smp_cs[SMP_MAX], smp_cr0[SMP_MAX];
u8 smp_stacks[SMP_MAX][8192] ALIGNED(4096);
static struct work {
	smp_fn *volatile fn;
	void *arg;
} ALIGNED(64) work[SMP_MAX];
extern const char tramp[], tramp_end[];
void smp_main(unsigned cpu, u32 cs, u32 cr0);

__asm__(".text\n.code16\n.globl tramp\n"
	"tramp:\n cli\n movw %cs, %bx\n movl %cr0, %ebp\n xorw %ax, %ax\n movw %ax, %ds\n"
	" lgdtl (tramp_gdtr - tramp + 0x8000)\n"
	" movl $boot_pml4, %eax\n movl %eax, %cr3\n movl $0x620, %eax\n movl %eax, %cr4\n"
	" movl $0xc0000080, %ecx\n rdmsr\n orl $0x900, %eax\n wrmsr\n"
	" movl $0x80010033, %eax\n movl %eax, %cr0\n ljmpl $0x08, $tramp64\n"
	"tramp_gdtr: .word 0xff\n .long gdt\n"
	".globl tramp_end\ntramp_end:\n"
	".code64\n"
	"tramp64:\n movl $0x3b, %eax\n movl %eax, %ds\n movl %eax, %es\n movl $0x10, %eax\n movl %eax, %ss\n"
	" xorl %eax, %eax\n movl %eax, %fs\n movl %eax, %gs\n movl %ebx, %esi\n"
	" movl $1, %eax\n cpuid\n shrl $24, %ebx\n movl %ebx, %edi\n movl %ebp, %edx\n"
	" leal 1(%rdi), %eax\n shll $13, %eax\n leaq smp_stacks(%rax), %rsp\n"
	" lidt tramp_idtr\n call smp_main\n ud2\n"
	".data\ntramp_idtr: .word 0xfff\n .quad idt\n.text\n");

void smp_icr(u32 dest, u32 low)
{
	lapic_write(A_ICR2, dest << 24);
	lapic_write(A_ICR, low);
}

/* Leaf 0xb: logical processors of the package. */
static unsigned count_cpus(void)
{
	struct cpuid r = {0};

	if (cpuid(0, 0).a >= 0xb)
		r = cpuid(0xb, 1);
	if (!(r.b & 0xffff))
		r.b = cpuid(1, 0).b >> 16 & 0xff;
	return (r.b & 0xffff) ? (r.b & 0xffff) : 1;
}

void smp_prepare(void)
{
	ncpus = count_cpus();
	memcpy((void *)(SMP_VECTOR << 12), tramp, (size_t)(tramp_end - tramp));
	idt_stub(EXC_NMI, 0x8e, 0);
	lapic_init();
}

void smp_main(unsigned cpu, u32 cs, u32 cr0)
{
	struct work *w = &work[cpu];

	lapic_init();
	w->fn = NULL;
	smp_cs[cpu] = cs & 0xffff;
	smp_cr0[cpu] = cr0;
	xadd(&smp_starts[cpu], 1);
	for (;;) {
		while (!w->fn)
			cpu_relax();
		w->fn(cpu, w->arg);
		__asm__ volatile("" ::: "memory");
		w->fn = NULL;
	}
}

bool smp_wait_starts(unsigned cpu, u32 want) { return wait_for(&smp_starts[cpu], want, WAIT_LONG * 4); }

bool smp_start(void)
{
	bool ok = true;

	smp_icr(0, 0xc4500);
	smp_icr(0, 0xc4600 | SMP_VECTOR);
	smp_icr(0, 0xc4600 | SMP_VECTOR);
	for (unsigned i = 1; i < ncpus; i++)
		ok &= smp_wait_starts(i, 1);
	return ok;
}

void smp_run(unsigned cpu, smp_fn *fn, void *arg)
{
	smp_wait(cpu);
	work[cpu].arg = arg;
	__asm__ volatile("" ::: "memory");
	work[cpu].fn = fn;
}

bool smp_done(unsigned cpu) { return !work[cpu].fn; }

void smp_wait(unsigned cpu)
{
	while (!smp_done(cpu))
		cpu_relax();
}

void smp_all(smp_fn *fn, void *arg)
{
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, fn, arg);
	fn(0, arg);
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
}

void barrier_wait(struct barrier *b, unsigned n)
{
	u32 phase = b->phase;

	if (xadd(&b->count, 1) == n - 1) {
		b->count = 0;
		__asm__ volatile("" ::: "memory");
		b->phase = phase + 1;
		return;
	}
	while (b->phase == phase)
		cpu_relax();
}
