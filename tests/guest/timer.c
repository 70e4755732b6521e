/* The LAPIC timer in one-shot, periodic and TSC-deadline mode, x2APIC mode, and the 8254. SDM vol. 3, 10.5.4, 10.12; 8254. */
#include "lib/apic.h"

static volatile u32 ticks;
static volatile u64 tick_tsc[16];
static bool x2;

static bool on_timer(struct frame *f)
{
	(void)f;
	if (ticks < ARRAY_SIZE(tick_tsc))
		tick_tsc[ticks] = rdtsc();
	ticks++;
	if (x2)
		wrmsr(0x80b, 0);
	else
		lapic_eoi();
	return true;
}

static u32 rd(u32 reg) { return x2 ? (u32)rdmsr(0x800 + reg / 16) : lapic_read(reg); }
static void wr(u32 reg, u32 v)
{
	if (x2)
		wrmsr(0x800 + reg / 16, v);
	else
		lapic_write(reg, v);
}

static void oneshot(const char *m)
{
	ticks = 0;
	wr(A_LVTT, 0x50);
	wr(A_TDCR, 0xb); /* divide by 1 */
	wr(A_TMICT, 1000000);
	u32 a = rd(A_TMCCT);
	check(a <= 1000000, "%s one-shot: the count starts at its initial value", m);
	sti();
	check(wait_for(&ticks, 1, WAIT_LONG), "%s one-shot: fires", m);
	wait_for(&ticks, 2, WAIT_SHORT);
	cli();
	check_eq(ticks, 1, "%s one-shot: fires once", m);
	check_eq(rd(A_TMCCT), 0, "%s one-shot: the count ends at 0", m);
	check_eq(rd(A_TMICT), 1000000, "%s one-shot: the initial count stays", m);
	/* the divider slows it down */
	wr(A_LVTT, LVT_MASKED | 0x50);
	u64 rate[2]; /* counts a million TSC ticks */
	static const u32 div[] = {0xb, 0x3}; /* by 1, by 16 */
	for (int i = 0; i < 2; i++) {
		wr(A_TDCR, div[i]);
		u64 s = rdtsc();
		wr(A_TMICT, 0xffffffff);
		while (rdtsc() - s < 8000000)
			;
		u64 n = 0xffffffff - rd(A_TMCCT);
		rate[i] = n * 1000000 / (rdtsc() - s);
	}
	check(rate[0] > rate[1] * 4 && rate[0] < rate[1] * 64, "%s: divide by 16 (%u, %u)", m, (u32)rate[0], (u32)rate[1]);
	ticks = 0;
	wr(A_TMICT, 1000);
	sti();
	wait_for(&ticks, 1, WAIT_SHORT);
	cli();
	check_eq(ticks, 0, "%s: masked timer", m);
	wr(A_LVTT, 0x50);
	wr(A_TMICT, 0xffffffff);
	wr(A_TMICT, 0);
	check_eq(rd(A_TMCCT), 0, "%s: an initial count of 0 stops it", m);
}

static void periodic(const char *m)
{
	ticks = 0;
	wr(A_TDCR, 0xb);
	wr(A_LVTT, LVT_PERIODIC | 0x50);
	wr(A_TMICT, 2000000);
	sti();
	check(wait_for(&ticks, 6, WAIT_LONG), "%s periodic: fires again and again", m);
	wr(A_LVTT, LVT_MASKED | LVT_PERIODIC | 0x50);
	cli();
	wr(A_TMICT, 0);
	u64 d = tick_tsc[5] - tick_tsc[0];
	check(d > 100000, "%s periodic: five periods take time", m);
	ticks = 0;
	wr(A_LVTT, 0x50);
	wr(A_TMICT, 500000);
	for (int i = 0; i < 3; i++) {
		asm volatile("sti; hlt; cli" ::: "memory");
		if (ticks == 1)
			break;
	}
	check_eq(ticks, 1, "%s: the timer wakes HLT", m);
}

static void deadline(const char *m)
{
	if (!has_deadline())
		return skip("TSC deadline", "not there");
	/* outside the mode the MSR reads 0 and ignores writes */
	wr(A_LVTT, 0x50);
	wrmsr(0x6e0, rdtsc() + 100000);
	check_eq(rdmsr(0x6e0), 0, "%s deadline: 0 in another mode", m);
	wr(A_LVTT, LVT_DEADLINE | 0x50);
	wr(A_TMICT, 1000);
	check_eq(rd(A_TMCCT), 0, "%s deadline: the counters are off", m);
	ticks = 0;
	u64 when = rdtsc() + 3000000;
	wrmsr(0x6e0, when);
	check(rdmsr(0x6e0) == when || rdtsc() >= when, "%s deadline: reads back", m);
	sti();
	check(wait_for(&ticks, 1, WAIT_LONG), "%s deadline: fires", m);
	cli();
	check(tick_tsc[0] >= when, "%s deadline: not too early", m);
	check_eq(rdmsr(0x6e0), 0, "%s deadline: reads 0 afterwards", m);
	ticks = 0;
	wrmsr(0x6e0, rdtsc() - 1000);
	sti();
	check(wait_for(&ticks, 1, WAIT_LONG), "%s deadline in the past: fires at once", m);
	cli();
	ticks = 0;
	wrmsr(0x6e0, rdtsc() + 4000000);
	wrmsr(0x6e0, 0);
	sti();
	wait_for(&ticks, 1, WAIT_SHORT);
	cli();
	check_eq(ticks, 0, "%s deadline: 0 disarms", m);
	/* many short ones, with HLT */
	ticks = 0;
	for (int i = 0; i < 50; i++) {
		wrmsr(0x6e0, rdtsc() + 50000);
		asm volatile("sti; hlt; cli" ::: "memory");
	}
	check_eq(ticks, 50, "%s deadline: 50 waits by HLT", m);
	wr(A_LVTT, LVT_MASKED);
}

static void x2apic(void)
{
	u64 base = rdmsr(MSR_APIC_BASE);

	if (!has_x2apic())
		return skip("x2APIC", "not there");
	TRAP(rdmsr(0x802));
	check_trap(EXC_GP, 0, "x2APIC MSR in xAPIC mode");
	u32 id = lapic_read(A_ID) >> 24;
	wrmsr(MSR_APIC_BASE, base | BIT(10));
	x2 = true;
	check_eq(rdmsr(0x802), id, "x2APIC: id");
	check_eq(rdmsr(0x80d), (id >> 4) << 16 | 1u << (id & 15), "x2APIC: logical id");
	check_eq(rd(A_SVR) & 0x1ff, 0x1ff, "x2APIC: SVR kept");
	TRAP(wrmsr(0x802, 1));
	check_trap(EXC_GP, 0, "x2APIC: the id is read-only");
	TRAP(wrmsr(0x803, 0));
	check_trap(EXC_GP, 0, "x2APIC: the version is read-only");
	TRAP(rdmsr(0x80e));
	check_trap(EXC_GP, 0, "x2APIC: no DFR");
	TRAP(rdmsr(0x831));
	check_trap(EXC_GP, 0, "x2APIC: no ICR high");
	TRAP(rdmsr(0x80b));
	check_trap(EXC_GP, 0, "x2APIC: EOI is write-only");
	TRAP(wrmsr(0x80b, 1));
	check_trap(EXC_GP, 0, "x2APIC: EOI of 1");
	TRAP(wrmsr(0x808, 0x100));
	check_trap(EXC_GP, 0, "x2APIC: reserved TPR bits");
	TRAP(rdmsr(0x804));
	check_trap(EXC_GP, 0, "x2APIC: reserved register");
	ticks = 0;
	wrmsr(0x83f, 0x50);
	sti();
	check(wait_for(&ticks, 1, WAIT_LONG), "x2APIC: SELF IPI");
	cli();
	ticks = 0;
	wrmsr(0x830, (u64)id << 32 | 0x4050);
	sti();
	check(wait_for(&ticks, 1, WAIT_LONG), "x2APIC: ICR");
	cli();
	check_eq(rdmsr(0x830), (u64)id << 32 | 0x4050, "x2APIC: ICR reads back in one MSR");
	oneshot("x2APIC");
	periodic("x2APIC");
	deadline("x2APIC");
	/* modes: x2APIC goes to disabled only (10.12.5) */
	TRAP(wrmsr(MSR_APIC_BASE, base & ~(u64)BIT(10)));
	check_trap(EXC_GP, 0, "x2APIC to xAPIC");
	wrmsr(MSR_APIC_BASE, base & ~(u64)(BIT(10) | BIT(11)));
	check_eq(cpuid(1, 0).d >> 9 & 1, 0, "CPUID.APIC follows the global enable");
	TRAP(wrmsr(MSR_APIC_BASE, base | BIT(10)));
	check_trap(EXC_GP, 0, "disabled to x2APIC");
	wrmsr(MSR_APIC_BASE, base);
	x2 = false;
	check_eq(lapic_read(A_SVR) & 0x1ff, 0xff, "a reenabled APIC is reset");
	lapic_init();
}

/* TSC ticks of 12288 PIT ticks (10.3 ms) by channel 2, whose gate and output are in port 0x61. 0: it never ended. */
static u64 pit_run(bool *low)
{
	outb(0x61, (inb(0x61) & ~2) | 1);
	outb(0x43, 0xb0); /* channel 2, mode 0 */
	outb(0x42, 0x00), outb(0x42, 0x30);
	u64 s = rdtsc();
	*low = !(inb(0x61) & 0x20);
	while (!(inb(0x61) & 0x20))
		if (rdtsc() - s > WAIT_LONG)
			return 0;
	return rdtsc() - s;
}

static void pit(void)
{
	u64 best = ~0ull;
	bool low = false, ends = true;

	for (int i = 0; i < 12; i++) { /* the shortest: a host that was busy only makes it longer */
		bool l;
		u64 d = pit_run(&l);
		low |= l;
		ends &= d != 0;
		if (d && d < best)
			best = d;
	}
	check(low, "PIT channel 2: output low");
	check(ends, "PIT channel 2: output goes high");
	u32 khz = (u32)(best * 1193 / 12288);
	check(khz > 200000 && khz < 20000000, "TSC by the PIT: %u kHz", khz);
	if (cpuid(0x40000000, 0).a >= 0x40000010 && cpuid(0x40000000, 0).b == 0x4b4d564b) {
		u32 told = cpuid(0x40000010, 0).a;
		check(told && khz > told - told / 10 && khz < told + told / 10, "TSC by the PIT and by CPUID agree within 10 %% (%u kHz)", told);
	}
	/* latch: the count goes down */
	outb(0x43, 0x34); /* channel 0, mode 2 */
	outb(0x40, 0), outb(0x40, 0);
	u32 v[2];
	for (int i = 0; i < 2; i++) {
		outb(0x43, 0x00);
		v[i] = inb(0x40);
		v[i] |= (u32)inb(0x40) << 8;
		for (u64 t = rdtsc(); rdtsc() - t < 100000;)
			;
	}
	check(v[1] != v[0], "PIT channel 0 counts (%x, %x)", v[0], v[1]);
	/* read-back of the status: mode 2, both bytes */
	outb(0x43, 0xe2);
	check_eq(inb(0x40) & 0x3f, 0x34, "PIT read-back status");
}

int guest_main(void)
{
	trap_hook[0x50] = on_timer;
	lapic_init();
	oneshot("xAPIC");
	periodic("xAPIC");
	deadline("xAPIC");
	x2apic();
	pit();
	return 0;
}
