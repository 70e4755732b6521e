/*
 * More than one CPU: start-up, inter-processor interrupts, TLB shootdown, code that another CPU changes, KVM's hypercalls.
 * SDM vol. 3, 4.10.5 (TLB shootdown), 8.4 (start-up), 9.1.3 (cross-modifying code), 10.6 (IPIs).
 */
#include "smp.h"

#include "apic.h"

#define VEC 0x60

static volatile u32 hits[SMP_MAX], nmis[SMP_MAX];
static volatile u32 stop;

static unsigned this_cpu(void) { return lapic_read(A_ID) >> 24; }

static bool on_ipi(struct frame *f)
{
	xadd(&hits[this_cpu()], 1);
	lapic_eoi();
	return true;
}

/* Only ends HLT; may come late. */
static bool on_wake(struct frame *f)
{
	lapic_eoi();
	return true;
}

static bool on_nmi(struct frame *f)
{
	xadd(&nmis[this_cpu()], 1);
	return true;
}

static void clear_hits(void)
{
	for (unsigned i = 0; i < SMP_MAX; i++)
		hits[i] = nmis[i] = 0;
}

static u32 total(volatile u32 *a)
{
	u32 n = 0;

	for (unsigned i = 0; i < ncpus; i++)
		n += a[i];
	return n;
}

/* --- start-up --- */

static void start_up(void)
{
	u32 cs_bad = 0, cr0_bad = 0;

	smp_icr(1, 0x4600 | SMP_VECTOR);
	check(!wait_for(&smp_starts[1], 1, WAIT_SHORT), "no start without INIT");
	check(smp_start(), "%u CPUs start", ncpus);
	for (unsigned i = 1; i < ncpus; i++) {
		cs_bad += smp_cs[i] != SMP_VECTOR << 8;
		cr0_bad += (smp_cr0[i] & 0x8000003f) != 0x10;
	}
	check_eq(cs_bad, 0, "CS is the vector's page");
	check_eq(cr0_bad, 0, "CR0 is real mode's");
	for (unsigned i = 1; i < ncpus; i++)
		smp_icr(i, 0x4600 | SMP_VECTOR);
	check(!wait_for(&smp_starts[1], 2, WAIT_SHORT), "a running CPU ignores a start-up IPI");
	smp_icr(1, 0x4500);
	check(!wait_for(&smp_starts[1], 2, WAIT_SHORT), "INIT stops it");
	smp_icr(1, 0x4600 | SMP_VECTOR);
	check(smp_wait_starts(1, 2), "and it starts again");
}

static u64 mtrr[SMP_MAX], apic_base[SMP_MAX];

static void read_msrs(unsigned cpu, void *arg)
{
	mtrr[cpu] = rdmsr(0x2ff);
	apic_base[cpu] = rdmsr(MSR_APIC_BASE);
}

static void state(void)
{
	u32 bad = 0, base_bad = 0;

	smp_all(read_msrs, NULL);
	for (unsigned i = 1; i < ncpus; i++) {
		bad += mtrr[i] != mtrr[0];
		base_bad += apic_base[i] != (apic_base[0] & ~0x100ull);
	}
	check_eq(bad, 0, "all have the same MTRRs");
	check_eq(base_bad, 0, "only one is the boot CPU");
}

/* --- interrupts --- */

static void listen(unsigned cpu, void *arg)
{
	bool halt = arg;

	sti();
	while (!stop)
		if (halt)
			__asm__ volatile("sti; hlt" ::: "memory");
		else
			cpu_relax();
	cli();
}

static void expect(u32 want, const char *what)
{
	u64 t = rdtsc();

	while (total(hits) + total(nmis) < want && rdtsc() - t < WAIT_LONG)
		cpu_relax();
	t = rdtsc();
	while (rdtsc() - t < WAIT_SHORT / 10)
		;
	check_eq(total(hits) + total(nmis), want, "%s", what);
}

static void listeners(bool halt)
{
	const char *how = halt ? "halted" : "running";
	unsigned others = ncpus - 1;

	stop = 0;
	clear_hits();
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, listen, (void *)(ulong)halt);
	sti();
	for (unsigned i = 0; i < ncpus; i++)
		smp_icr(i, 0x4000 | VEC);
	expect(ncpus, "fixed, to each");
	check_eq(hits[ncpus - 1], 1, "the last CPU had one (%s)", how);
	clear_hits();
	smp_icr(0, 0xc4000 | VEC);
	expect(others, "all but self");
	check_eq(hits[0], 0, "not self");
	clear_hits();
	smp_icr(0, 0x84000 | VEC);
	expect(ncpus, "all with self");
	clear_hits();
	smp_icr(0, 0x44000 | VEC);
	expect(1, "self");
	clear_hits();
	smp_icr(0xff, 0x4000 | VEC);
	expect(ncpus, "physical broadcast");
	clear_hits();
	for (unsigned i = 1; i < ncpus; i++)
		smp_icr(i, 0x4400);
	expect(others, "NMI, to each");
	check_eq(total(nmis), others, "were NMIs");
	clear_hits();
	for (unsigned n = 0; n < 100; n++) {
		u32 before = hits[ncpus - 1];

		smp_icr(ncpus - 1, 0x4000 | VEC);
		if (!wait_for(&hits[ncpus - 1], before + 1, WAIT_LONG))
			break;
	}
	check_eq(hits[ncpus - 1], 100, "100 in a row (%s)", how);
	cli();
	stop = 1;
	smp_icr(0, 0xc4000 | (VEC + 3));
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
}

/* Flat model: CPU i has bit i, for the first eight. */
static void set_logical(unsigned cpu, void *arg)
{
	lapic_write(A_DFR, 0xffffffff);
	lapic_write(A_LDR, cpu < 8 ? 1u << (24 + cpu) : 0);
}

static void logical(void)
{
	unsigned mask = (1u << (ncpus < 8 ? ncpus : 8)) - 1;

	smp_all(set_logical, NULL);
	stop = 0;
	clear_hits();
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, listen, NULL);
	smp_icr(mask & 0xaa, 0x4800 | VEC);
	expect((ncpus < 8 ? ncpus : 8) / 2, "logical, to every second");
	clear_hits();
	for (unsigned n = 0; n < 20; n++)
		smp_icr(mask & ~1u, 0x4900 | VEC);
	{
		u64 t = rdtsc();

		while (!total(hits) && rdtsc() - t < WAIT_LONG)
			cpu_relax();
	}
	check(total(hits) >= 1 && total(hits) <= 20, "lowest priority: one takes it, and no more"); /* equal vectors merge */
	stop = 1;
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
}

/* --- TLB --- */

static volatile u32 acks, seen_old, generation;
static u8 *frames[2];

static bool on_shootdown(struct frame *f)
{
	invlpg(TEST_VA);
	xadd(&acks, 1);
	lapic_eoi();
	return true;
}

/* Between two acknowledgements the page holds the generation that was announced before. */
static void reader(unsigned cpu, void *arg)
{
	u32 n = 0;

	sti();
	while (!stop) {
		u32 g = generation;
		u32 v = *(volatile u32 *)TEST_VA;

		if (!(++n & 63)) /* others may want this CPU's host */
			cpu_relax();

		__asm__ volatile("" ::: "memory");
		if (v < g)
			seen_old++;
	}
	cli();
}

static void shootdown(void)
{
	void *pte = pte_at(read_cr3(), TEST_VA, 1);

	frames[0] = page_alloc();
	frames[1] = page_alloc();
	acks = seen_old = generation = stop = 0;
	map_page(TEST_VA, (ulong)frames[0] | PTE_P | PTE_W, 1);
	trap_hook[VEC + 1] = on_shootdown;
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, reader, NULL);
	for (u32 n = 1; n <= 100; n++) {
		u8 *frame = frames[n & 1];

		*(volatile u32 *)frame = n;
		pte_set(pte, (ulong)frame | PTE_P | PTE_W);
		invlpg(TEST_VA);
		acks = 0;
		smp_icr(0, 0xc4000 | (VEC + 1));
		if (!wait_for(&acks, ncpus - 1, WAIT_LONG))
			break;
		generation = n;
	}
	stop = 1;
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
	check_eq(generation, 100, "shootdowns are acknowledged");
	check_eq(seen_old, 0, "nobody reads the old page afterwards");
}

/* Dirty bits: cleared by one while the others write. Who wrote after the shootdown has set it again. */
static void writer(unsigned cpu, void *arg)
{
	sti();
	while (!stop) {
		xadd((volatile u32 *)TEST_VA, 1);
		cpu_relax();
	}
	cli();
}

static void dirty(void)
{
	volatile u64 *pte = pte_at(read_cr3(), TEST_VA, 1);
	u32 lost = 0, n, sum;

	stop = 0;
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, writer, NULL);
	for (n = 0; n < 100; n++) {
		u64 e;

		acks = 0;
		__asm__ volatile("lock andq %1, %0" : "+m"(*pte) : "r"(~(u64)(PTE_D | PTE_A)) : "cc");
		invlpg(TEST_VA);
		smp_icr(0, 0xc4000 | (VEC + 1));
		if (!wait_for(&acks, ncpus - 1, WAIT_LONG))
			break;
		sum = *(volatile u32 *)frames[0];
		while (*(volatile u32 *)frames[0] == sum)
			cpu_relax();
		e = *pte;
		lost += (e & (PTE_D | PTE_A)) != (PTE_D | PTE_A);
	}
	stop = 1;
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
	check_eq(n, 100, "dirty bits cleared 100 times");
	check_eq(lost, 0, "a later write sets it again");
}

/* --- code --- */

static u8 code[8 * 4096] ALIGNED(4096);

static u32 call(const void *p) { return ((u32(*)(void))p)(); }

static void put_mov(u8 *p, u32 imm)
{
	p[0] = 0xb8;
	memcpy(p + 1, &imm, 4);
	p[5] = 0xc3;
}

static volatile u32 patched, wrong, calls;

static bool on_sync(struct frame *f)
{
	cpuid(0, 0);
	xadd(&acks, 1);
	lapic_eoi();
	return true;
}

/* Values only grow, and after a synchronization none is older than what was announced. */
static void caller(unsigned cpu, void *arg)
{
	u32 last = 0, n = 0;

	sti();
	while (!stop) {
		u32 g = patched, v = call(arg);

		if (v < g || v < last)
			wrong++;
		last = v;
		if (!(++n & 15)) {
			xadd(&calls, 16);
			cpu_relax();
		}
	}
	cli();
}

static void cross_modify(void)
{
	u8 *p = code + 64 + 3; /* the immediate is aligned */

	trap_hook[VEC + 2] = on_sync;
	patched = wrong = stop = calls = 0;
	put_mov(p, 0);
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, caller, p);
	for (u32 n = 1; n <= 100; n++) {
		*(volatile u32 *)(p + 1) = n;
		acks = 0;
		smp_icr(0, 0xc4000 | (VEC + 2));
		if (!wait_for(&acks, ncpus - 1, WAIT_LONG))
			break;
		patched = n;
	}
	stop = 1;
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
	check_eq(patched, 100, "100 synchronizations");
	check_eq(wrong, 0, "patched code is run by all afterwards");
	check(calls > 0, "it was called meanwhile");
}

/* As Linux patches: INT3 over the first byte, the rest, then the first byte; who meets the INT3 waits. */
static volatile u32 bp_hits;

static bool on_bp(struct frame *f)
{
	xadd(&bp_hits, 1);
	f->ip -= 1;
	return true;
}

static void sync_all(void)
{
	acks = 0;
	smp_icr(0, 0xc4000 | (VEC + 2));
	wait_for(&acks, ncpus - 1, WAIT_LONG);
}

static void text_poke(void)
{
	u8 *p = code + 4096 - 3; /* over a page end */

	trap_hook[EXC_BP] = on_bp;
	patched = wrong = stop = calls = bp_hits = 0;
	put_mov(p, 0);
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, caller, p);
	for (u32 n = 1; n <= 40; n++) {
		*(volatile u8 *)p = 0xcc;
		sync_all();
		memcpy(p + 1, &n, 4);
		sync_all();
		*(volatile u8 *)p = 0xb8;
		sync_all();
		patched = n;
	}
	stop = 1;
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
	trap_hook[EXC_BP] = NULL;
	check_eq(wrong, 0, "INT3 patching: each sees the new code (%u met the INT3)", bp_hits);
}

/* A loop without an exit of its own, that only a change of its code ends. */
static volatile u32 in_loop;

static void looper(unsigned cpu, void *arg)
{
	xadd(&in_loop, 1);
	call(arg);
	xadd(&in_loop, -1u);
}

static void stuck_loop(void)
{
	u8 *p = code + 512;

	for (unsigned n = 0; n < 20; n++) {
		in_loop = 0;
		p[0] = 0xeb; /* jmp self; ret */
		p[1] = 0xfe;
		p[2] = 0xc3;
		for (unsigned i = 1; i < ncpus; i++)
			smp_run(i, looper, p);
		wait_for(&in_loop, ncpus - 1, WAIT_LONG);
		*(volatile u8 *)(p + 1) = 0; /* jmp next */
		for (u64 t = rdtsc(); in_loop && rdtsc() - t < WAIT_LONG;)
			cpu_relax();
		if (in_loop)
			break;
	}
	check_eq(in_loop, 0, "a loop ends when another CPU changes it");
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
}

/* Every CPU changes and calls its own function, all in one page; and counts in that page too. */
static void own_code(unsigned cpu, void *arg)
{
	u8 *p = code + 2 * 4096 + 64 * (cpu & 31);
	volatile u32 *shared = (volatile u32 *)(code + 2 * 4096 + 4092);

	for (u32 n = 0; n < 400; n++) {
		put_mov(p, n * 1000 + cpu);
		if (call(p) != n * 1000 + cpu)
			xadd(&wrong, 1);
		xadd(shared, 1);
	}
}

static void shared_page(void)
{
	wrong = 0;
	*(volatile u32 *)(code + 2 * 4096 + 4092) = 0;
	smp_all(own_code, NULL);
	check_eq(wrong, 0, "each CPU's own changes of code, in one page");
	check_eq(*(volatile u32 *)(code + 2 * 4096 + 4092), 400 * ncpus, "locked counts in a page with code");
}

/* Mapped elsewhere: the same address leads to other code after a shootdown. */
static void remap_code(void)
{
	u8 *a = code + 3 * 4096, *b = code + 4 * 4096;

	patched = wrong = stop = calls = 0;
	put_mov(a + 16, 0);
	map_page(TEST_VA, (ulong)a | PTE_P | PTE_W, 1);
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, caller, (void *)(TEST_VA + 16));
	for (u32 n = 1; n <= 100; n++) {
		u8 *to = n & 1 ? b : a;

		put_mov(to + 16, n);
		map_page(TEST_VA, (ulong)to | PTE_P | PTE_W, 1);
		acks = 0;
		smp_icr(0, 0xc4000 | (VEC + 1));
		if (!wait_for(&acks, ncpus - 1, WAIT_LONG))
			break;
		patched = n;
	}
	stop = 1;
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
	check_eq(patched, 100, "code mapped elsewhere 100 times");
	check_eq(wrong, 0, "the new page's code is run");
}

/* --- time --- */

static volatile u64 latest;
static volatile u32 tsc_lock, backwards;

static void tsc_thread(unsigned cpu, void *arg)
{
	for (unsigned i = 0; i < 2000; i++) {
		u64 t;
		u32 taken = 1;

		while (taken) {
			__asm__ volatile("xchgl %0, %1" : "+r"(taken), "+m"(tsc_lock)::"memory");
			if (taken)
				cpu_relax();
		}
		t = rdtsc();
		if (t < latest)
			backwards++;
		latest = t;
		__asm__ volatile("" ::: "memory");
		tsc_lock = 0;
	}
}

/* --- KVM's hypercalls, where leaf 0x40000001 shows them --- */

static bool amd;

static long hypercall(long nr, ulong a, ulong b, ulong c, ulong d)
{
	long r;

	if (amd)
		__asm__ volatile("vmmcall" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
	else
		__asm__ volatile("vmcall" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d) : "memory");
	return r;
}

static volatile u32 woken;

static void sleeper(unsigned cpu, void *arg)
{
	__asm__ volatile("hlt" ::: "memory"); /* IF = 0: only a kick ends it */
	xadd(&woken, 1);
}

static struct steal {
	u64 steal;
	u32 version, flags;
	volatile u8 preempted;
	u8 rest[47];
} steal[SMP_MAX] ALIGNED(64);

static void steal_on(unsigned cpu, void *arg) { wrmsr(0x4b564d03, (ulong)&steal[cpu] | 1); }

static void note_reader(unsigned cpu, void *arg)
{
	volatile u32 *p = (volatile u32 *)TEST_VA;
	u32 v = *p; /* in the TLB now */

	xadd(&woken, 1);
	__asm__ volatile("hlt" ::: "memory");
	wrong += *p == v;
}

static void paravirt(void)
{
	u32 features = cpuid(0x40000001, 0).a;

	if (cpuid(0x40000000, 0).b != 0x4b4d564b || (features & 0xaa0) != 0xaa0) {
		skip("KVM hypercalls", "not shown");
		return;
	}
	amd = cpu_is_amd();
	check_eq((u64)hypercall(999, 0, 0, 0, 0), (u64)-1000, "an unknown hypercall");
	for (unsigned n = 0; n < 20; n++) {
		woken = 0;
		for (unsigned i = 1; i < ncpus; i++)
			smp_run(i, sleeper, NULL);
		for (unsigned i = 1; i < ncpus; i++)
			hypercall(5, 0, i, 0, 0);
		if (!wait_for(&woken, ncpus - 1, WAIT_LONG))
			break;
	}
	check_eq(woken, ncpus - 1, "KICK_CPU ends HLT");
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);
	clear_hits();
	stop = 0;
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, listen, (void *)1);
	check_eq((u64)hypercall(10, ~1ul, ~0ul, 0, VEC), ncpus - 1 < 127 ? ncpus - 1 : 127, "SEND_IPI counts who took it");
	expect(ncpus - 1, "SEND_IPI");
	check_eq((u64)hypercall(10, 1, 0, 0, VEC | 0x800), (u64)-22, "SEND_IPI to a logical destination");
	stop = 1;
	hypercall(10, ~1ul, ~0ul, 0, VEC + 3);
	for (unsigned i = 1; i < ncpus; i++)
		smp_wait(i);

	check(TRAP(wrmsr(0x4b564d03, 0x21)) == EXC_GP, "steal time: reserved bits");
	smp_all(steal_on, NULL);
	frames[0][0] = 1;
	frames[1][0] = 2;
	map_page(TEST_VA, (ulong)frames[0] | PTE_P | PTE_W, 1);
	woken = wrong = 0;
	for (unsigned i = 1; i < ncpus; i++)
		smp_run(i, note_reader, NULL);
	wait_for(&woken, ncpus - 1, WAIT_LONG);
	map_page(TEST_VA, (ulong)frames[1] | PTE_P | PTE_W, 1);
	for (unsigned i = 1; i < ncpus; i++) {
		u64 t = rdtsc();

		while (!steal[i].preempted && rdtsc() - t < WAIT_LONG)
			cpu_relax();
		check(steal[i].preempted == 1, "CPU %u says that it sleeps", i);
		steal[i].preempted |= 2;
		hypercall(5, 0, i, 0, 0);
		smp_wait(i);
		check_eq(steal[i].preempted & 2, 0, "and has seen the note"); /* it may sleep again */
	}
	check_eq(wrong, 0, "its TLB was flushed as the note asked");
}

int guest_main(void)
{
	smp_prepare();
	if (ncpus < 2) {
		skip("SMP", "one CPU");
		return 0;
	}
	trap_hook[VEC] = on_ipi;
	trap_hook[VEC + 3] = on_wake;
	trap_hook[EXC_NMI] = on_nmi;
	start_up();
	state();
	listeners(false);
	listeners(true);
	logical();
	shootdown();
	map_page(TEST_VA, (ulong)frames[0] | PTE_P | PTE_W, 1);
	dirty();
	cross_modify();
	text_poke();
	stuck_loop();
	shared_page();
	remap_code();
	smp_all(tsc_thread, NULL);
	check_eq(backwards, 0, "the TSC never goes back from CPU to CPU");
	paravirt();
	return 0;
}
