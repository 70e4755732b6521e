/*
 * What devices see of interrupts: lines and messages. The chips behind are either the models in this folder (soft)
 * or the kernel's (kvm); a device cannot tell.
 *
 * GSI numbers 0-15 reach both the 8259 pair and the IOAPIC, 16-23 the IOAPIC only (gsi 0 is IOAPIC pin 2, as on a PC).
 * Threads: called with the machine lock held.
 */
#ifndef IRQ_IRQ_H
#define IRQ_IRQ_H

#include "base/bits.h"

/* Where lines and messages go: implemented by irq/irqchip.c and by engine/kvm. */
struct irq_sink {
	void (*set_gsi)(void *ctx, unsigned gsi, bool level);
	/* An MSI: a write of data to address (SDM vol. 3, 11.11). False: nobody is addressed. */
	bool (*msi)(void *ctx, uint64_t addr, uint32_t data);
	void *ctx;
};

/* One wire of one device. */
struct irq_line {
	const struct irq_sink *sink;
	unsigned gsi;
};

static inline void irq_set(const struct irq_line *l, bool level)
{
	if (l->sink)
		l->sink->set_gsi(l->sink->ctx, l->gsi, level);
}

static inline bool irq_msi(const struct irq_sink *s, uint64_t addr, uint32_t data)
{
	return s && s->msi(s->ctx, addr, data);
}

#endif
