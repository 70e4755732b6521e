/*
 * Vector, mask and x87 registers keep what they hold whatever happens between: instructions that a VMM executes for the guest,
 * faults, interrupts, system calls, accesses to devices and to code; on all CPUs at the same time. SDM vol. 1, 13.
 */
#include "apic.h"
#include "guest.h"
#include "smp.h"

#define ROUNDS 40
#define VECTOR 0x50
#define PAGES 64 /* of each CPU's own, from TEST_VA on */
#define XCR0_USED 0xe7u

CODE(u_syscalls, "mov $500, %ebx; 1: syscall; dec %ebx; jnz 1b");
extern const char sys_back[];
__asm__(".text\nsys_back: sysretq\n");

static u32 xcr0, area_size;
static u32 offset[8], size[8]; /* of the components */

struct cpu {
	u8 want[4096] ALIGNED(64), got[4096] ALIGNED(64);
	volatile u64 *pte;
	u64 frames;
	volatile u32 interrupts;
	u32 lost;       /* times that something had changed */
	const char *by; /* after what, first */
	ulong sink;
};
static struct cpu cpus[4];

static unsigned this_cpu(void) { return lapic_read(A_ID) >> 24; }

static void fill(struct cpu *c, u32 seed)
{
	u32 x = seed * 2654435761u + 1;

	memset(c->want, 0, area_size);
	for (unsigned i = 160; i < 416; i++)
		c->want[i] = (x = x * 1664525 + 1013904223) >> 24;
	for (unsigned n = 2; n < 8; n++)
		for (unsigned i = 0; xcr0 >> n & 1 && i < size[n]; i++)
			c->want[offset[n] + i] = (x = x * 1664525 + 1013904223) >> 24;
	for (unsigned st = 0; st < 8; st++) {
		u8 *p = c->want + 32 + 16 * st;

		for (unsigned i = 0; i < 7; i++)
			p[i] = (x = x * 1664525 + 1013904223) >> 24;
		p[7] = 0x80 | st, p[8] = (u8)seed, p[9] = 0x40;
	}
	*(u16 *)c->want = 0x27f;
	c->want[4] = 0xff;
	*(u32 *)(c->want + 24) = 0x5f80;
	*(u64 *)(c->want + 512) = xcr0;
	asm volatile("xrstor64 (%0)" ::"r"(c->want), "a"(xcr0), "d"(0));
}

static bool same(struct cpu *c)
{
	u64 low[2];
	u32 mxcsr;
	u16 fcw;
	bool ok;

	/* as they are, before XSAVE may put anything in order */
	asm volatile("movups %%xmm3, %0; stmxcsr %1; fnstcw %2" : "=m"(low), "=m"(mxcsr), "=m"(fcw));
	ok = !memcmp(low, c->want + 160 + 48, 16) && mxcsr == 0x5f80 && fcw == 0x27f;
	memset(c->got, 0, area_size);
	asm volatile("xsave64 (%0)" ::"r"(c->got), "a"(xcr0), "d"(0) : "memory");
	ok &= !memcmp(c->got, c->want, 6) && !memcmp(c->got + 24, c->want + 24, 4);
	ok &= !memcmp(c->got + 32, c->want + 32, 384);
	for (unsigned n = 2; n < 8; n++)
		ok &= !(xcr0 >> n & 1) || !memcmp(c->got + offset[n], c->want + offset[n], size[n]);
	return ok;
}

/* ---- what may come between ---- */

static void do_cpuid(struct cpu *c, unsigned i) { asm volatile("cpuid" : : "a"(i & 15), "c"(0) : "ebx", "edx"); }
static void do_rdtscp(struct cpu *c, unsigned i) { asm volatile("rdtscp" : : : "eax", "ecx", "edx"); }
static void do_wrmsr(struct cpu *c, unsigned i) { wrmsr(0xc0000100, i * 8); }
static void do_rdmsr(struct cpu *c, unsigned i) { c->sink = rdmsr(0xc0000080); }
static void do_cr3(struct cpu *c, unsigned i) { flush_tlb(); }
static void do_invlpg(struct cpu *c, unsigned i) { invlpg(TEST_VA + i * PAGE); }
static void do_selector(struct cpu *c, unsigned i) { asm volatile("mov %%ds, %0" : "=m"(*(u16 *)&c->sink)); }
static void do_port(struct cpu *c, unsigned i) { outb(0x80, (u8)i); }
static void do_mmio(struct cpu *c, unsigned i) { c->sink = lapic_read(A_VERSION); }
static void do_breakpoint(struct cpu *c, unsigned i) { asm volatile("int3"); }
static ulong own(struct cpu *c, unsigned page) { return TEST_VA + ((ulong)(c - cpus) * PAGES + page) * PAGE; }

static void do_fault(struct cpu *c, unsigned i)
{
	pte_set(&c->pte[8 + i], 0);
	invlpg(own(c, 8 + i));
	*(volatile u32 *)own(c, 8 + i) = i; /* on_fault maps it */
}

static void do_interrupt(struct cpu *c, unsigned i)
{
	u32 before = c->interrupts;

	lapic_self_ipi(VECTOR);
	asm volatile("sti");
	for (u64 t = rdtsc(); c->interrupts == before && rdtsc() - t < WAIT_LONG;)
		cpu_relax();
	asm volatile("cli");
}

static void do_code(struct cpu *c, unsigned i)
{
	volatile u8 *p = (volatile u8 *)own(c, 0);

	p[0] = 0xb8, p[1] = (u8)i, p[2] = p[3] = p[4] = 0, p[5] = 0xc3; /* mov $i, %eax; ret */
	c->sink = ((u32(*)(void))(ulong)p)();
}

static void do_crossing(struct cpu *c, unsigned i) { *(volatile u64 *)(own(c, 2) - 1 - i % 7) = i; }
static void do_split_lock(struct cpu *c, unsigned i) { asm volatile("lock addq $1, (%0)" ::"r"(own(c, 3) - 4) : "memory"); }
static void do_spin(struct cpu *c, unsigned i)
{
	for (unsigned k = 0; k < 1500; k++)
		cpu_relax();
}

static const struct {
	void (*fn)(struct cpu *c, unsigned i);
	const char *name;
} between[] = {
	{do_cpuid, "CPUID"}, {do_rdtscp, "RDTSCP"}, {do_wrmsr, "WRMSR"}, {do_rdmsr, "RDMSR"}, {do_cr3, "MOV CR3"}, {do_invlpg, "INVLPG"},
	{do_selector, "MOV from DS"}, {do_port, "OUT"}, {do_mmio, "MMIO"}, {do_breakpoint, "INT3 and IRET"}, {do_fault, "a page fault"},
	{do_interrupt, "an interrupt"}, {do_code, "a write to code"}, {do_crossing, "an access across pages"}, {do_split_lock, "a split lock"},
	{do_spin, "spinning"},
};

static bool on_fault(struct frame *f)
{
	ulong page = (read_cr2() - TEST_VA) / PAGE;
	struct cpu *c = &cpus[page / PAGES % ARRAY_SIZE(cpus)];

	pte_set(&c->pte[page % PAGES], (c->frames + page % PAGES * PAGE) | PTE_P | PTE_W);
	return true;
}

static bool on_interrupt(struct frame *f)
{
	cpus[this_cpu()].interrupts++;
	lapic_eoi();
	return true;
}

static bool go_on(struct frame *f) { return true; }

static void enable(void)
{
	write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXSAVE);
	asm volatile("xsetbv" ::"a"(xcr0), "d"(0), "c"(0));
}

static void note(struct cpu *c, const char *by)
{
	if (same(c))
		return;
	if (!c->lost++)
		c->by = by;
}

static void run(unsigned cpu, void *arg)
{
	struct cpu *c = &cpus[cpu];

	enable();
	for (unsigned round = 0; round < ROUNDS; round++) {
		for (unsigned b = 0; b < ARRAY_SIZE(between); b++) {
			fill(c, round * 64 + b * 4 + cpu);
			between[b].fn(c, round % 40);
			note(c, between[b].name);
		}
		fill(c, round + 7777);
		for (unsigned b = 0; b < ARRAY_SIZE(between); b++)
			between[(b * 5 + round) % ARRAY_SIZE(between)].fn(c, (round + b) % 40);
		note(c, "all of them");
	}
}

static void user(struct cpu *c)
{
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, (u64)KCS << 32 | (u64)(0x30 | 3) << 48);
	wrmsr(MSR_LSTAR, (ulong)sys_back);
	wrmsr(MSR_SFMASK, FL_IF);
	for (unsigned i = 0; i < 20; i++) {
		struct frame f = user_frame(u_syscalls);

		fill(c, 9000 + i);
		run_frame(&f);
		note(c, "SYSCALL and SYSRET");
	}
}

static void set_up(void)
{
	for (unsigned n = 2; n < 8; n++) {
		struct cpuid r = cpuid(0xd, n);

		size[n] = r.a;
		offset[n] = r.b;
		if (xcr0 >> n & 1 && r.a + r.b > area_size)
			area_size = r.a + r.b;
	}
	for (unsigned k = 0; k < ARRAY_SIZE(cpus); k++) {
		struct cpu *c = &cpus[k];

		c->frames = (ulong)page_alloc_aligned(PAGES * PAGE);
		c->pte = pte_at(read_cr3() & ~0xffful, own(c, 0), 1);
		for (unsigned i = 0; i < PAGES; i++)
			pte_set(&c->pte[i], (c->frames + i * PAGE) | PTE_P | PTE_W);
	}
	trap_hook[EXC_PF] = on_fault;
	trap_hook[EXC_BP] = go_on;
	trap_hook[VECTOR] = on_interrupt;
}

int guest_main(void)
{
	if (!(cpuid(1, 0).c >> 26 & 1)) {
		skip("vector state", "no XSAVE");
		return 0;
	}
	xcr0 = cpuid(0xd, 0).a & XCR0_USED;
	area_size = 576;
	set_up();
	smp_prepare();
	check(smp_start(), "all CPUs start");
	smp_all(run, NULL);
	user(&cpus[0]);
	for (unsigned k = 0; k < ncpus && k < ARRAY_SIZE(cpus); k++)
		check(!cpus[k].lost, "CPU %u keeps its vector state (lost %u times, first by %s)", k, cpus[k].lost, cpus[k].lost ? cpus[k].by : "nothing");
	check_eq(cpus[0].interrupts, 2 * ROUNDS, "interrupts came");
	return 0;
}
