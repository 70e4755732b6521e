/*
 * The PC's interrupt chips as the soft engine uses them: local APICs, IOAPIC, 8259 pair, 8254, in one object.
 * Serialized forms equal KVM's (struct kvm_lapic_state, kvm_ioapic_state, kvm_pic_state, kvm_pit_state2).
 *
 * Threads: every call with the machine lock held, except irqchip_hint.
 * Manuals: SDM vol. 3, 10 (APIC); 82093AA; 8259A; 8254.
 */
#ifndef IRQ_IRQCHIP_H
#define IRQ_IRQCHIP_H

#include "base/error.h"
#include "base/timer.h"
#include "bus/bus.h"
#include "irq/irq.h"

struct irqchip;

/* Up-calls to the CPU side, made with the machine lock held. */
struct irqchip_cpu_ops {
	void (*kick)(void *ctx, unsigned cpu); /* irqchip_pending(cpu) may have become true */
	void (*nmi)(void *ctx, unsigned cpu);
	void (*init)(void *ctx, unsigned cpu);
	void (*sipi)(void *ctx, unsigned cpu, uint8_t vector);
	uint64_t (*guest_tsc)(void *ctx, unsigned cpu);
};

struct irqchip_config {
	unsigned ncpus;
	uint32_t tsc_khz; /* of the guest TSC */
	struct timer_queue *timers;
	struct timer_queue *cpu_timers; /* [ncpus], of the LAPICs' timers; NULL: all are in `timers` */
	const struct irqchip_cpu_ops *ops;
	void *ops_ctx;
};

/* Creates all chips and maps IOAPIC (0xfec00000), PIC (0x20, 0xa0, 0x4d0), PIT (0x40-0x43, 0x61) on the bus. */
struct irqchip *irqchip_new(const struct irqchip_config *cfg, struct bus *bus, struct error *err);
/* The mappings stay: the bus may be freed before or after, but not used any more. */
void irqchip_free(struct irqchip *c);
void irqchip_reset(struct irqchip *c);
const struct irq_sink *irqchip_sink(struct irqchip *c);

/*
 * A vector can be delivered to the CPU now, were IF set (LAPIC above PPR, or ExtINT by the PIC). Any thread, no lock:
 * may be stale. kick is called when it turns true.
 */
bool irqchip_hint(const struct irqchip *c, unsigned cpu);
/* The same, exact. */
bool irqchip_pending(struct irqchip *c, unsigned cpu);
/* Acknowledge: the vector (moves IRR to ISR), or -1 when nothing is pending any more. */
int irqchip_ack(struct irqchip *c, unsigned cpu);

/*
 * The LAPIC's registers, as xAPIC MMIO (off 0..0xfff, size 1-8; the engine finds the page from apic_base) and as
 * x2APIC/TSC-deadline MSRs.
 */
uint64_t lapic_mmio_read(struct irqchip *c, unsigned cpu, uint64_t off, unsigned size);
void lapic_mmio_write(struct irqchip *c, unsigned cpu, uint64_t off, unsigned size, uint64_t value);
/* False: #GP. msr is 0x800..0x8ff, 0x6e0 (TSC_DEADLINE). Access rules of the current mode are checked. */
bool lapic_msr_read(struct irqchip *c, unsigned cpu, uint32_t msr, uint64_t *value);
bool lapic_msr_write(struct irqchip *c, unsigned cpu, uint32_t msr, uint64_t value);
/* A message as in the low half of the ICR, to one APIC id; its destination fields are ignored. True: taken. */
bool irqchip_send_ipi(struct irqchip *c, uint32_t dest, uint32_t icr);
/* IA32_APIC_BASE: false is #GP (invalid mode transition). */
uint64_t lapic_base_read(struct irqchip *c, unsigned cpu);
bool lapic_base_write(struct irqchip *c, unsigned cpu, uint64_t value);
/* For loading a saved LAPIC, see below: no rules for transitions; resets the registers. */
void lapic_base_restore(struct irqchip *c, unsigned cpu, uint64_t value);
uint8_t lapic_cr8(struct irqchip *c, unsigned cpu);
void lapic_set_cr8(struct irqchip *c, unsigned cpu, uint8_t cr8);
void lapic_init(struct irqchip *c, unsigned cpu); /* the effect of INIT on the LAPIC */

/*
 * State in KVM's form (the ID and ICR of a LAPIC as without KVM_CAP_X2APIC_API). set returns false when a value is
 * impossible, and then has changed nothing of that chip; register bits that do not exist are dropped.
 *
 * Order of saving: irqchip_get_state, then for each CPU lapic_get_state, then the TSC_DEADLINE MSR: each may deliver what
 * is due. Of loading: chips and CPUs in any order; for each CPU lapic_base_restore, lapic_set_state, TSC_DEADLINE.
 * Times are those of clock_now(): a time that lies in the future (another host's) is taken as now.
 */
struct irqchip_state {
	uint8_t ioapic[216];
	uint8_t pic[2][16];
	uint8_t pit[112];
};
void irqchip_get_state(struct irqchip *c, struct irqchip_state *out);
bool irqchip_set_state(struct irqchip *c, const struct irqchip_state *in);
void lapic_get_state(struct irqchip *c, unsigned cpu, uint8_t regs[1024]);
bool lapic_set_state(struct irqchip *c, unsigned cpu, const uint8_t regs[1024]);

#endif
