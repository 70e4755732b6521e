/*
 * Interrupts: 8259 pair, IOAPIC edge and level, local APIC priorities, STI shadow, HLT, NMI blocking. SDM vol. 3, 6.8,
 * 10.6, 10.8; 82093AA; 8259A. Every wait has an end by the TSC.
 */
#include "lib/apic.h"

CODE(u_spin, "nop; nop; nop");

static volatile u32 count[256];
static volatile u32 order[64], norder;
static ulong last_ip[256];
static volatile u32 depth, max_depth;
static void (*volatile in_handler)(unsigned vector);
static bool auto_eoi;

static bool on_irq(struct frame *f)
{
	unsigned v = (unsigned)f->vector;

	count[v]++;
	last_ip[v] = f->ip;
	if (norder < ARRAY_SIZE(order))
		order[norder++] = v;
	if (++depth > max_depth)
		max_depth = depth;
	if (in_handler)
		in_handler(v);
	if (auto_eoi)
		lapic_eoi();
	depth--;
	return true;
}

static void reset_counts(void)
{
	for (int i = 0; i < 256; i++)
		count[i] = 0;
	norder = depth = max_depth = 0;
	in_handler = NULL;
	auto_eoi = true;
}

static void self_ipi(void)
{
	reset_counts();
	lapic_self_ipi(0x60);
	check_eq(lapic_bit(A_IRR, 0x60), 1, "self-IPI waits in IRR with IF=0");
	check_eq(count[0x60], 0, "self-IPI is not delivered with IF=0");
	sti();
	check(wait_for(&count[0x60], 1, WAIT_LONG), "self-IPI is delivered");
	cli();
	check_eq(lapic_bit(A_IRR, 0x60) | lapic_bit(A_ISR, 0x60), 0, "self-IPI: IRR and ISR clear after EOI");
	/* three pending: highest first */
	reset_counts();
	lapic_self_ipi(0x51), lapic_self_ipi(0x71), lapic_self_ipi(0x61);
	sti();
	wait_for(&norder, 3, WAIT_LONG);
	cli();
	check_eq(order[0] << 16 | order[1] << 8 | order[2], 0x716151, "highest vector first");
	check_eq(max_depth, 1, "no nesting with IF=0 in the handlers");
	/* the same vector twice while pending: once more only */
	reset_counts();
	lapic_self_ipi(0x60), lapic_self_ipi(0x60), lapic_self_ipi(0x60);
	sti();
	wait_for(&count[0x60], 2, WAIT_SHORT);
	cli();
	check_eq(count[0x60], 1, "a pending vector is pending once");
	/* all including self */
	reset_counts();
	lapic_write(A_ICR, 0x84062);
	sti();
	check(wait_for(&count[0x62], 1, WAIT_LONG), "IPI to all including self");
	cli();
	/* by physical destination */
	lapic_write(A_ICR2, lapic_read(A_ID));
	lapic_write(A_ICR, 0x4063);
	sti();
	check(wait_for(&count[0x63], 1, WAIT_LONG), "IPI by physical destination");
	cli();
	lapic_write(A_DFR, 0xffffffff);
	lapic_write(A_LDR, 0x02000000);
	lapic_write(A_ICR2, 0x02000000);
	lapic_write(A_ICR, 0x4864);
	sti();
	check(wait_for(&count[0x64], 1, WAIT_LONG), "IPI by logical destination");
	cli();
	check_eq(lapic_read(A_ICR) & BIT(12), 0, "ICR: delivered");
}

static void tpr(void)
{
	reset_counts();
	lapic_write(A_TPR, 0x60);
	lapic_self_ipi(0x65);
	sti();
	wait_for(&count[0x65], 1, WAIT_SHORT);
	check_eq(count[0x65], 0, "TPR class 6 holds vector 0x65 back");
	lapic_self_ipi(0x70);
	check(wait_for(&count[0x70], 1, WAIT_LONG), "TPR class 6 lets vector 0x70 through");
	check_eq(lapic_read(A_PPR), 0x60, "PPR with nothing in service is TPR");
	check_eq(read_cr8(), 6, "CR8 shows TPR 7:4");
	cli();
	write_cr8(5);
	check_eq(lapic_read(A_TPR), 0x50, "CR8 writes TPR 7:4, clears 3:0");
	/* lowering CR8 delivers at once: before the next instruction */
	write_cr8(15);
	sti();
	asm volatile("movq $1f, trap_mark; mov %0, %%cr8; 1: nop; nop" ::"r"(0ul) : "memory");
	check(wait_for(&count[0x65], 1, WAIT_LONG), "lowering CR8 delivers");
	check_eq(last_ip[0x65], trap_mark, "lowering CR8 delivers before the next instruction");
	cli();
	check_eq(read_cr8(), 0, "CR8 reads 0");
}

static void nest(unsigned v)
{
	if (v != 0x50 || depth != 1)
		return;
	check_eq(lapic_read(A_PPR), 0x50, "PPR in the handler of 0x50");
	check_eq(lapic_bit(A_ISR, 0x50), 1, "ISR in the handler of 0x50");
	lapic_self_ipi(0x41);
	lapic_self_ipi(0x90);
	sti();
	wait_for(&count[0x90], 1, WAIT_LONG);
	wait_for(&count[0x41], 1, WAIT_SHORT);
	cli();
	check_eq(count[0x90], 1, "a higher class nests");
	check_eq(count[0x41], 0, "a lower class waits for EOI");
}

static void nesting(void)
{
	reset_counts();
	in_handler = nest;
	lapic_self_ipi(0x50);
	sti();
	wait_for(&count[0x41], 1, WAIT_LONG);
	cli();
	check_eq(count[0x41], 1, "the lower class comes after EOI");
	check_eq(order[0] << 16 | order[1] << 8 | order[2], 0x509041, "order of nesting");
	check_eq(max_depth, 2, "nesting depth");
}

static void shadows(void)
{
	reset_counts();
	lapic_self_ipi(0x60);
	asm volatile("movq $1f, trap_mark; sti; mov %%eax, %%eax; 1: nop; nop; nop; cli" ::: "memory");
	check_eq(count[0x60], 1, "STI, one instruction, then the interrupt");
	check_eq(last_ip[0x60], trap_mark, "STI shadow: rip");
	reset_counts();
	lapic_self_ipi(0x60);
	asm volatile("sti; cli; nop; nop" ::: "memory");
	check_eq(count[0x60], 0, "STI, CLI lets nothing in");
	/* POPF has no shadow */
	asm volatile("movq $1f, trap_mark; push %0; popf; 1: nop; nop; cli" ::"r"(FL_IF | FL_FIXED) : "memory", "cc");
	check_eq(count[0x60], 1, "POPF that sets IF");
	check_eq(last_ip[0x60], trap_mark, "POPF has no shadow: rip");
	/* STI; HLT with something pending: wakes up after HLT */
	reset_counts();
	lapic_self_ipi(0x60);
	asm volatile("movq $1f, trap_mark; sti; hlt; 1: nop; cli" ::: "memory");
	check_eq(count[0x60], 1, "STI, HLT");
	check_eq(last_ip[0x60], trap_mark, "STI, HLT: rip after HLT");
	/* MOV SS holds interrupts for one instruction: CR8 is lowered, then MOV SS, both in the STI and MOV SS shadows */
	reset_counts();
	lapic_self_ipi(0x60);
	u32 ss = KDS;
	asm volatile("mov %0, %%ss; sti; nop; nop; cli" ::"r"(ss) : "memory");
	check_eq(count[0x60], 1, "MOV SS, STI");
	/* IRET that sets IF: no shadow */
	reset_counts();
	lapic_self_ipi(0x60);
	asm volatile("movq $1f, trap_mark; mov %%rsp, %%rcx; pushq $0x10; pushq %%rcx; pushq $0x202; pushq $0x08; pushq $1f; iretq; 1: nop; cli" ::: "rcx", "memory");
	check_eq(count[0x60], 1, "IRET that sets IF");
	check_eq(last_ip[0x60], trap_mark, "IRET that sets IF: rip");
	/* ring 3 with IF=1: before the first instruction */
	reset_counts();
	lapic_self_ipi(0x60);
	struct frame f = user_frame(u_spin);
	f.flags |= FL_IF;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "ring 3 with a pending interrupt");
	check_eq(count[0x60], 1, "ring 3 with a pending interrupt: delivered");
	check_eq(last_ip[0x60], user_ptr(u_spin), "ring 3 with a pending interrupt: rip");
}

static void lvt(void)
{
	lapic_write(A_LVTT, 0x12345);
	check_eq(lapic_read(A_LVTT) & 0xff, 0x45, "LVT timer: vector");
	lapic_write(A_LVTT, LVT_MASKED);
	lapic_write(A_SVR, 0xff);
	lapic_write(A_LVTERR, 0x40);
	check_eq(lapic_read(A_LVTERR) & LVT_MASKED, LVT_MASKED, "a disabled APIC keeps its LVT masked");
	lapic_write(A_SVR, 0x1ff);
	check_eq(lapic_read(A_VERSION) & 0xff, lapic_read(A_VERSION) & 0x1f, "version 1xh");
	check((lapic_read(A_VERSION) >> 16 & 0xff) >= 4, "at least 5 LVT entries");
	lapic_init();
}

static bool pic_there(void)
{
	outb(0x21, 0x55);
	bool a = inb(0x21) == 0x55;
	outb(0x21, 0xaa);
	return a && inb(0x21) == 0xaa;
}

static u8 pic_isr;
static void pic_handler(unsigned v)
{
	(void)v;
	outb(0x20, 0x0b);
	pic_isr = inb(0x20);
}

static void pic(void)
{
	if (!pic_there())
		return skip("PIC", "not there");
	reset_counts();
	auto_eoi = false;
	pic_init(0x20, 0x28);
	lapic_write(A_LVT0, 0x700); /* ExtINT */
	in_handler = pic_handler;
	outb(0x21, 0xff);
	pit_oneshot(1000);
	sti();
	wait_for(&count[0x20], 1, WAIT_SHORT);
	check_eq(count[0x20], 0, "masked IRQ 0");
	outb(0x20, 0x0a);
	check_eq(inb(0x20) & 1, 1, "masked IRQ 0 shows in the PIC's IRR");
	outb(0x21, 0xfe);
	check(wait_for(&count[0x20], 1, WAIT_LONG), "unmasked IRQ 0 is delivered");
	check_eq(pic_isr & 1, 1, "the PIC's ISR in the handler");
	pit_oneshot(100);
	wait_for(&count[0x20], 2, WAIT_SHORT);
	check_eq(count[0x20], 1, "no second IRQ 0 before EOI");
	outb(0x20, 0x20);
	check(wait_for(&count[0x20], 2, WAIT_LONG), "it comes after EOI");
	outb(0x20, 0x20);
	/* IRQ 0 goes before IRQ 4 */
	cli();
	reset_counts();
	auto_eoi = false;
	outb(0x21, 0xee);
	uart_irq_on();
	pit_oneshot(10);
	u64 t = rdtsc();
	do
		outb(0x20, 0x0a);
	while ((inb(0x20) & 0x11) != 0x11 && rdtsc() - t < WAIT_LONG);
	outb(0x20, 0x0a);
	u8 irr = inb(0x20);
	sti();
	wait_for(&norder, 1, WAIT_LONG);
	wait_for(&norder, 2, WAIT_SHORT);
	u32 first = norder;
	outb(0x20, 0x20);
	bool second = wait_for(&norder, 2, WAIT_LONG);
	uart_irq_off(); /* nothing is printed while the UART is the source */
	check_eq(irr & 0x11, 0x11, "IRQ 0 and 4 are requested");
	check_eq(order[0], 0x20, "IRQ 0 has priority over IRQ 4");
	check_eq(first, 1, "IRQ 4 waits for EOI of IRQ 0");
	check(second && order[1] == 0x24, "then IRQ 4");
	outb(0x20, 0x20);
	cli();
	outb(0x21, 0xff);
	/* ExtINT ignores TPR only as far as the manual says: it does not go through IRR */
	check_eq(lapic_bit(A_ISR, 0x20), 0, "ExtINT does not enter the LAPIC's ISR");
	lapic_write(A_LVT0, LVT_MASKED);
}

static u32 remote_irr;
static void ioapic_level_handler(unsigned v)
{
	if (v != 0x48)
		return;
	if (count[v] == 1)
		remote_irr = ioapic_read(0x10 + 8) >> 14 & 1;
	if (count[v] == 3)
		uart_irq_off();
}

static void ioapic(void)
{
	check_eq(ioapic_read(1) >> 16 & 0xff, 23, "IOAPIC: 24 pins");
	ioapic_write(0x10 + 2 * 9, 0x1a9a5 | LVT_MASKED);
	check_eq(ioapic_read(0x10 + 2 * 9) & ~0x5000u, 0x1a9a5, "IOAPIC: redirection entry reads back, status bits apart");
	ioapic_write(0x10 + 2 * 9, LVT_MASKED);
	/* edge: one interrupt for each rise */
	reset_counts();
	uart_irq_off();
	ioapic_set(4, 0x47);
	sti();
	uart_irq_on(); /* nothing is printed until it is off again */
	bool first = wait_for(&count[0x47], 1, WAIT_LONG);
	wait_for(&count[0x47], 2, WAIT_SHORT);
	u32 n = count[0x47];
	uart_irq_off();
	uart_irq_on();
	bool second = wait_for(&count[0x47], 2, WAIT_LONG);
	cli();
	uart_irq_off();
	check(first, "edge: delivered");
	check_eq(n, 1, "edge: a line that stays up gives one interrupt");
	check(second, "edge: the next rise");
	check_eq(lapic_bit(A_TMR, 0x47), 0, "edge: TMR bit is 0");
	/* masked */
	reset_counts();
	ioapic_set(4, 0x47 | LVT_MASKED);
	sti();
	uart_irq_on();
	wait_for(&count[0x47], 1, WAIT_SHORT);
	uart_irq_off();
	cli();
	check_eq(count[0x47], 0, "masked pin");
	/* level: again after EOI while the line is up */
	reset_counts();
	in_handler = ioapic_level_handler;
	ioapic_set(4, 0x48 | BIT(15));
	sti();
	uart_irq_on();
	first = wait_for(&count[0x48], 3, WAIT_LONG);
	uart_irq_off();
	check(first, "level: again after each EOI");
	check_eq(remote_irr, 1, "level: remote IRR in the handler");
	wait_for(&count[0x48], 4, WAIT_SHORT);
	check_eq(count[0x48], 3, "level: ends with the line");
	cli();
	check_eq(ioapic_read(0x10 + 8) >> 14 & 1, 0, "level: remote IRR clears");
	check_eq(lapic_bit(A_TMR, 0x48), 1, "level: TMR bit is 1");
	/* level and masked while up: comes with unmasking */
	reset_counts();
	in_handler = ioapic_level_handler;
	count[0x48] = 2;
	ioapic_set(4, 0x48 | BIT(15) | LVT_MASKED);
	uart_irq_on();
	ioapic_write(0x10 + 8, 0x48 | BIT(15));
	sti();
	first = wait_for(&count[0x48], 3, WAIT_LONG);
	cli();
	uart_irq_off();
	check(first, "level: unmasking with the line up");
	ioapic_set(4, LVT_MASKED);
	/* the PIT is on pin 2 (or 0) */
	reset_counts();
	ioapic_set(0, 0x49);
	ioapic_set(2, 0x49);
	sti();
	pit_oneshot(500);
	check(wait_for(&count[0x49], 1, WAIT_LONG), "PIT through the IOAPIC");
	cli();
	ioapic_set(0, LVT_MASKED);
	ioapic_set(2, LVT_MASKED);
}

static void send_nmi(void)
{
	lapic_write(A_ICR2, lapic_read(A_ID));
	lapic_write(A_ICR, 0x4400);
}

static u32 seen_inside;
static void nmi_handler(unsigned v)
{
	if (v != EXC_NMI || count[v] > 1)
		return;
	send_nmi();
	wait_for(&count[EXC_NMI], 2, WAIT_SHORT);
	seen_inside = count[EXC_NMI];
}

static void nmi_iret_inside(unsigned v)
{
	if (v != EXC_NMI || count[v] > 1)
		return;
	send_nmi();
	asm volatile("int $0x90" ::: "memory"); /* its IRET ends the blocking: vol. 3, 6.7.1 */
	wait_for(&count[EXC_NMI], 2, WAIT_LONG);
	seen_inside = count[EXC_NMI];
}

static bool on_soft(struct frame *f)
{
	(void)f;
	return true;
}

static void nmi(void)
{
	reset_counts();
	auto_eoi = false;
	send_nmi();
	check(wait_for(&count[EXC_NMI], 1, WAIT_LONG), "NMI is delivered with IF=0");
	reset_counts();
	auto_eoi = false;
	in_handler = nmi_handler;
	send_nmi();
	wait_for(&count[EXC_NMI], 2, WAIT_LONG);
	check_eq(seen_inside, 1, "a second NMI waits while the first is served");
	check_eq(count[EXC_NMI], 2, "and comes after its IRET");
	check_eq(max_depth, 1, "NMI does not nest");
	idt_stub(EXC_NMI, 0x8e, 0); /* nested NMIs may not share an IST stack */
	reset_counts();
	auto_eoi = false;
	in_handler = nmi_iret_inside;
	trap_hook[0x90] = on_soft;
	send_nmi();
	wait_for(&count[EXC_NMI], 2, WAIT_LONG);
	check_eq(seen_inside, 2, "an IRET inside the handler ends the blocking");
	trap_hook[0x90] = on_irq;
	idt_stub(EXC_NMI, 0x8e, 2);
	/* NMI wakes HLT with IF=0 */
	reset_counts();
	auto_eoi = false;
	lapic_self_ipi(0x60);
	in_handler = NULL;
	lapic_write(A_ICR2, lapic_read(A_ID));
	asm volatile("movl $0x4400, %0; nop; nop" : "=m"(*(volatile u32 *)(LAPIC + A_ICR))::"memory");
	check(wait_for(&count[EXC_NMI], 1, WAIT_LONG), "NMI with a maskable interrupt pending");
	check_eq(count[0x60], 0, "the maskable one waits for IF");
	auto_eoi = true;
	sti();
	wait_for(&count[0x60], 1, WAIT_LONG);
	cli();
	check_eq(count[0x60], 1, "and comes with IF");
}

/* Last: an engine that sends it would deliver an exception. */
static void illegal_vector(void)
{
	/* a vector below 16 is an error */
	lapic_write(A_ESR, 0);
	lapic_self_ipi(5);
	lapic_write(A_ESR, 0);
	u32 esr = lapic_read(A_ESR);
	check((esr & 0x60) != 0, "illegal vector in ESR (%x)", esr);
}

int guest_main(void)
{
	for (int v = 0x20; v < 256; v++)
		if (v != VEC_EXIT)
			trap_hook[v] = on_irq;
	trap_hook[EXC_NMI] = on_irq;
	if (pic_there())
		pic_init(0x20, 0x28);
	lapic_init();
	self_ipi();
	tpr();
	nesting();
	shadows();
	lvt();
	pic();
	ioapic();
	nmi();
	illegal_vector();
	return 0;
}
