/*
 * What the chips of this folder share. One struct per chip; its `st` member is the guest-visible state, in the very
 * layout of KVM's serialized form (so that saving it is a copy), the rest are host handles and derived values.
 *
 * Wiring: gsi n -> PIC pin n (n < 16) and IOAPIC pin n; gsi 0 -> IOAPIC pin 2; gsi 2 does not exist (cascade); IOAPIC
 * pin 0 is open. PIC INTR -> LINT0 of every CPU. PIT channel 0 -> gsi 0.
 */
#ifndef IRQ_IRQCHIP_INT_H
#define IRQ_IRQCHIP_INT_H

#include <stdatomic.h>

#include "irq/irqchip.h"

#define IRQCHIP_MAX_CPUS 255
/* Periodic timers run no faster than this, whatever the guest asks for. */
#define IRQCHIP_MIN_PERIOD_NS 20000

/* Delivery modes (SDM vol. 3, 10.5.1, 10.6.1): the same code in LVT, ICR, redirection entry and MSI. */
enum {
	DM_FIXED = 0,
	DM_LOWEST = 1,
	DM_SMI = 2,
	DM_NMI = 4,
	DM_INIT = 5,
	DM_SIPI = 6,
	DM_EXTINT = 7,
};

/* An interrupt message on its way to the local APICs. */
struct irq_msg {
	uint32_t dest;
	uint8_t vector;
	uint8_t mode;
	bool broadcast; /* dest is the sender's "all" */
	bool logical;
	bool level;    /* trigger mode */
	bool redirect; /* MSI redirection hint: to one of the addressed */
};

/* Register numbers are the MMIO offset / 16 and the x2APIC MSR number - 0x800 (SDM vol. 3, tables 10-1 and 10-6). */
enum lapic_reg {
	LAPIC_ID = 0x02,
	LAPIC_VERSION = 0x03,
	LAPIC_TPR = 0x08,
	LAPIC_APR = 0x09,
	LAPIC_PPR = 0x0a,
	LAPIC_EOI = 0x0b,
	LAPIC_RRD = 0x0c,
	LAPIC_LDR = 0x0d,
	LAPIC_DFR = 0x0e,
	LAPIC_SVR = 0x0f,
	LAPIC_ISR = 0x10,
	LAPIC_TMR = 0x18,
	LAPIC_IRR = 0x20,
	LAPIC_ESR = 0x28,
	LAPIC_ICR = 0x30,
	LAPIC_ICR2 = 0x31,
	LAPIC_LVT_TIMER = 0x32,
	LAPIC_LVT_THERMAL = 0x33,
	LAPIC_LVT_PERF = 0x34,
	LAPIC_LVT_LINT0 = 0x35,
	LAPIC_LVT_LINT1 = 0x36,
	LAPIC_LVT_ERROR = 0x37,
	LAPIC_TMICT = 0x38,
	LAPIC_TMCCT = 0x39,
	LAPIC_TDCR = 0x3e,
	LAPIC_SELF_IPI = 0x3f,
	LAPIC_REGS = 0x40,
};

/*
 * regs is KVM's struct kvm_lapic_state: register r at word 4 * r. The ID register holds id << 24 and ICR is split in
 * two words in x2APIC mode too (KVM's form without KVM_CAP_X2APIC_API). The unused word after ESR holds the errors
 * since the last ESR write. base and tsc_deadline are MSRs and are saved with the CPU's.
 */
struct lapic_state {
	uint32_t regs[256];
	uint64_t base;
	uint64_t tsc_deadline;
};

struct lapic {
	struct lapic_state st;
	struct irqchip *chip;
	unsigned cpu;
	struct timer timer;
	int64_t expiry; /* when the timer reaches 0, ns; TIMER_NEVER: it does not run */
	atomic_bool hint;
};

/* struct kvm_ioapic_state */
#define IOAPIC_PINS 24
#define IOAPIC_BASE 0xfec00000u
struct ioapic_state {
	uint64_t base_address;
	uint32_t ioregsel;
	uint32_t id;
	uint32_t irr; /* the level of each pin */
	uint32_t pad;
	uint64_t redir[IOAPIC_PINS];
};

struct ioapic {
	struct ioapic_state st;
	struct irqchip *chip;
};

/* struct kvm_pic_state */
struct pic_state {
	uint8_t last_irr; /* the level of each pin */
	uint8_t irr, imr, isr;
	uint8_t priority_add; /* the pin of highest priority */
	uint8_t irq_base;
	uint8_t read_reg_select, poll, special_mask;
	uint8_t init_state; /* 0, or the ICW expected next less one; PIC_SINGLE: there will be no ICW3 */
	uint8_t auto_eoi, rotate_on_auto_eoi, special_fully_nested_mode;
	uint8_t init4; /* an ICW4 will come */
	uint8_t elcr, elcr_mask;
};
#define PIC_SINGLE 0x10

struct pic {
	struct pic_state st[2];
	struct irqchip *chip;
	bool out; /* INTR of the master; derived */
};

/* struct kvm_pit_channel_state */
struct pit_channel {
	uint32_t count; /* as loaded, 1..0x10000; digits when bcd */
	uint16_t latched_count;
	uint8_t count_latched, status_latched, status;
	uint8_t read_state, write_state, write_latch;
	uint8_t rw_mode, mode, bcd, gate;
	int64_t count_load_time; /* ns of clock_now() */
};

/* What KVM's form lacks; kept in its reserved words, where KVM ignores it. All zero means: counting. */
struct pit_extra {
	uint32_t next;	/* PIT_PENDING: the count that will be loaded */
	uint32_t ticks; /* PIT_PAUSED: elapsed ticks; PIT_PENDING while counting: the elapsed ticks when it is loaded */
	uint32_t flags;
};
enum {
	PIT_IDLE = 1,	 /* no count since the control word, or (modes 1, 5) not triggered yet */
	PIT_PENDING = 2, /* a count is written but not loaded */
	PIT_PAUSED = 4,	 /* the gate is low */
};

#define PIT_SPEAKER_ON 0x2u /* KVM_PIT_FLAGS_SPEAKER_DATA_ON */
/* struct kvm_pit_state2 */
struct pit_state {
	struct pit_channel ch[3];
	uint32_t flags;
	struct pit_extra extra[3];
};

struct pit {
	struct pit_state st;
	struct irqchip *chip;
	struct timer timer;
	int64_t edge; /* next rising edge of channel 0's OUT, or TIMER_NEVER */
};

struct irqchip {
	struct irqchip_config cfg;
	struct bus *bus;
	int64_t (*clock)(void); /* clock_now; tests replace it */
	struct irq_sink sink;
	struct ioapic ioapic;
	struct pic pic;
	struct pit pit;
	struct lapic lapic[]; /* APIC id = index */
};

_Static_assert(sizeof(struct ioapic_state) == 216, "struct kvm_ioapic_state");
_Static_assert(sizeof(struct pic_state) == 16, "struct kvm_pic_state");
_Static_assert(sizeof(struct pit_channel) == 24, "struct kvm_pit_channel_state");
_Static_assert(sizeof(struct pit_state) == 112, "struct kvm_pit_state2");

/* lapic.c */
void lapic_setup(struct irqchip *c, unsigned cpu);
void lapic_reset(struct irqchip *c, unsigned cpu);
/* Deliver to all (or, for lowest priority, one) of the addressed. False: nobody took it. */
bool lapic_deliver(struct irqchip *c, const struct irq_msg *m);
/* Bring PPR and the hint up to date with everything they derive from. */
void lapic_update(struct lapic *l);
/* The PIC's INTR, wired to LINT0, changed to level. */
void lapic_lint0(struct lapic *l, bool level);

/* ioapic.c */
bool ioapic_setup(struct ioapic *io, struct error *err);
void ioapic_reset(struct ioapic *io);
void ioapic_set_pin(struct ioapic *io, unsigned pin, bool level);
void ioapic_eoi(struct ioapic *io, uint8_t vector);
/* Offer again what level-triggered pins request: a local APIC may accept now what it refused. */
void ioapic_resample(struct ioapic *io);
bool ioapic_set_state(struct ioapic *io, const struct ioapic_state *st);

/* pic.c */
bool pic_setup(struct pic *p, struct error *err);
void pic_reset(struct pic *p);
void pic_set_pin(struct pic *p, unsigned pin, bool level);
/* INTA: the vector; the spurious one when nothing is requested. */
uint8_t pic_inta(struct pic *p);
bool pic_set_state(struct pic *p, const struct pic_state st[2]);

/* pit.c */
bool pit_setup(struct pit *p, struct error *err);
void pit_reset(struct pit *p);
void pit_get_state(struct pit *p, struct pit_state *st);
bool pit_set_state(struct pit *p, const struct pit_state *st);

#endif
