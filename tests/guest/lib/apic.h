/* Interrupt chips as a test needs them: local APIC (xAPIC page), IOAPIC, 8259 pair, 8254; and waiting by the TSC. */
#ifndef APIC_H
#define APIC_H

#include "guest.h"

#define LAPIC 0xfee00000ul
#define IOAPIC 0xfec00000ul
enum {
	A_ID = 0x20, A_VERSION = 0x30, A_TPR = 0x80, A_PPR = 0xa0, A_EOI = 0xb0, A_LDR = 0xd0, A_DFR = 0xe0, A_SVR = 0xf0,
	A_ISR = 0x100, A_TMR = 0x180, A_IRR = 0x200, A_ESR = 0x280, A_ICR = 0x300, A_ICR2 = 0x310, A_LVTT = 0x320, A_LVT0 = 0x350,
	A_LVT1 = 0x360, A_LVTERR = 0x370, A_TMICT = 0x380, A_TMCCT = 0x390, A_TDCR = 0x3e0,
};
#define LVT_MASKED BIT(16)
#define LVT_PERIODIC BIT(17)
#define LVT_DEADLINE BIT(18)
#define WAIT_LONG 5000000000ull /* TSC ticks: some seconds at most */
#define WAIT_SHORT 20000000ull  /* some milliseconds */

static inline u32 lapic_read(u32 reg) { return *(volatile u32 *)(LAPIC + reg); }
static inline void lapic_write(u32 reg, u32 v) { *(volatile u32 *)(LAPIC + reg) = v; }
static inline u32 lapic_bit(u32 reg, unsigned vector) { return lapic_read(reg + (vector >> 5) * 0x10) >> (vector & 31) & 1; }
static inline void lapic_eoi(void) { lapic_write(A_EOI, 0); }
static inline void lapic_self_ipi(unsigned vector) { lapic_write(A_ICR, 0x44000 | vector); }
static inline void lapic_init(void)
{
	lapic_write(A_SVR, 0x1ff);
	lapic_write(A_TPR, 0);
	lapic_write(A_LVTT, LVT_MASKED);
	lapic_write(A_LVTERR, LVT_MASKED);
	lapic_write(A_LVT1, LVT_MASKED);
	lapic_write(A_LVT0, LVT_MASKED);
}

static inline u32 ioapic_read(u32 reg)
{
	*(volatile u32 *)IOAPIC = reg;
	return *(volatile u32 *)(IOAPIC + 0x10);
}
static inline void ioapic_write(u32 reg, u32 v)
{
	*(volatile u32 *)IOAPIC = reg;
	*(volatile u32 *)(IOAPIC + 0x10) = v;
}
static inline void ioapic_set(unsigned pin, u32 low)
{
	ioapic_write(0x10 + 2 * pin, LVT_MASKED);
	ioapic_write(0x11 + 2 * pin, lapic_read(A_ID) & 0xff000000);
	ioapic_write(0x10 + 2 * pin, low);
}

static inline void pic_init(u8 master, u8 slave)
{
	outb(0x20, 0x11), outb(0xa0, 0x11);
	outb(0x21, master), outb(0xa1, slave);
	outb(0x21, 4), outb(0xa1, 2);
	outb(0x21, 1), outb(0xa1, 1);
	outb(0x21, 0xff), outb(0xa1, 0xff);
}

/* Channel 0, mode 0: one interrupt after n of 1193182 a second. */
static inline void pit_oneshot(u16 n)
{
	outb(0x43, 0x30);
	outb(0x40, (u8)n);
	outb(0x40, (u8)(n >> 8));
}

/* The 16550 as an interrupt source: the line goes up when the transmitter is empty and THRI is enabled. */
static inline void uart_irq_on(void)
{
	outb(0x3f8 + 4, 0x0b); /* OUT2 lets the line out */
	outb(0x3f8 + 1, 0x02);
}
static inline void uart_irq_off(void) { outb(0x3f8 + 1, 0); }

/* Wait until *p >= want, interrupts as they are; false after ticks. */
static inline bool wait_for(volatile u32 *p, u32 want, u64 ticks)
{
	u64 t = rdtsc();

	while (*p < want) {
		if (rdtsc() - t > ticks)
			return false;
		cpu_relax();
	}
	return true;
}

#endif
