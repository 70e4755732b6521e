/*
 * The local APIC: xAPIC and x2APIC. Manual: SDM vol. 3, 10. Version and LVT count are those of KVM (0x50014: no CMCI,
 * no EOI broadcast suppression); the timer runs at 1 GHz before the divider, like KVM's.
 *
 * The ID is read-only and equals the CPU's index. Like KVM, the boot CPU comes out of reset with LINT0 as ExtINT, so
 * that a guest that never programs the APIC is served by the PIC, as firmware would have arranged it.
 */
#include "irq/irqchip_int.h"

#include <string.h>

#define VERSION 0x50014u
#define BASE_ADDR 0xfee00000u
#define BASE_BSP BIT(8)
#define BASE_EXTD BIT(10)
#define BASE_EN BIT(11)
#define BASE_RESERVED (~(BIT(52) - 1) | 0x2ff)

#define SVR_ENABLED BIT(8)
#define LVT_MASKED BIT(16)
#define LVT_LEVEL BIT(15)
#define LVT_REMOTE_IRR BIT(14)
#define LVT_STATUS BIT(12)

/* ESR (10.5.3) */
#define ESR_SEND_VECTOR BIT(5)
#define ESR_RECEIVE_VECTOR BIT(6)
#define ESR_REGISTER BIT(7)

#define ICR_LOGICAL BIT(11)
#define ICR_STATUS BIT(12)
#define ICR_ASSERT BIT(14)
#define ICR_LEVEL BIT(15)
#define ICR_WRITABLE 0xccfffu

enum timer_mode { TIMER_ONE_SHOT, TIMER_PERIODIC, TIMER_DEADLINE, TIMER_RESERVED };

/* How each register may be accessed in xAPIC and in x2APIC mode; bits that a write sets; read-only bits it may hold. */
#define XR 1u
#define XW 2u
#define X2R 4u
#define X2W 8u
#define RO (XR | X2R)
#define RW (XR | XW | X2R | X2W)
/* clang-format off */
static const struct reg_rule {
	uint8_t access;
	uint32_t writable, ignored;
} rules[LAPIC_REGS] = {
	[LAPIC_ID] = {RO | XW}, /* writes are ignored */
	[LAPIC_VERSION] = {RO | XW},
	[LAPIC_TPR] = {RW, 0xff},
	[LAPIC_APR] = {XR},
	[LAPIC_PPR] = {RO},
	[LAPIC_EOI] = {XW | X2W},
	[LAPIC_RRD] = {XR},
	[LAPIC_LDR] = {RO | XW, 0xff000000},
	[LAPIC_DFR] = {XR | XW, 0xf0000000},
	[LAPIC_SVR] = {RW, 0x3ff},
	[LAPIC_ISR] = {RO}, {RO}, {RO}, {RO}, {RO}, {RO}, {RO}, {RO},
	[LAPIC_TMR] = {RO}, {RO}, {RO}, {RO}, {RO}, {RO}, {RO}, {RO},
	[LAPIC_IRR] = {RO}, {RO}, {RO}, {RO}, {RO}, {RO}, {RO}, {RO},
	[LAPIC_ESR] = {RW},
	[LAPIC_ICR] = {RW, ICR_WRITABLE, ICR_STATUS},
	[LAPIC_ICR2] = {XR | XW, 0xff000000},
	[LAPIC_LVT_TIMER] = {RW, 0x700ff, LVT_STATUS},
	[LAPIC_LVT_THERMAL] = {RW, 0x107ff, LVT_STATUS},
	[LAPIC_LVT_PERF] = {RW, 0x107ff, LVT_STATUS},
	[LAPIC_LVT_LINT0] = {RW, 0x1a7ff, LVT_STATUS | LVT_REMOTE_IRR},
	[LAPIC_LVT_LINT1] = {RW, 0x1a7ff, LVT_STATUS | LVT_REMOTE_IRR},
	[LAPIC_LVT_ERROR] = {RW, 0x100ff, LVT_STATUS},
	[LAPIC_TMICT] = {RW, 0xffffffff},
	[LAPIC_TMCCT] = {RO},
	[LAPIC_TDCR] = {RW, 0xb},
	[LAPIC_SELF_IPI] = {X2W, 0xff},
};
/* clang-format on */

static uint32_t *reg(struct lapic *l, unsigned r) { return &l->st.regs[4 * r]; }

static uint32_t *pending_errors(struct lapic *l) { return &l->st.regs[4 * LAPIC_ESR + 1]; }

static bool hw_enabled(const struct lapic *l) { return l->st.base & BASE_EN; }
static bool x2apic(const struct lapic *l) { return l->st.base & BASE_EXTD; }
static bool sw_enabled(struct lapic *l) { return *reg(l, LAPIC_SVR) & SVR_ENABLED; }

/* The 256-bit registers ISR, TMR and IRR. */
static void vec_set(struct lapic *l, unsigned base, uint8_t vector)
{
	*reg(l, base + vector / 32) |= 1u << (vector & 31);
}
static void vec_clear(struct lapic *l, unsigned base, uint8_t vector)
{
	*reg(l, base + vector / 32) &= ~(1u << (vector & 31));
}
static bool vec_test(struct lapic *l, unsigned base, uint8_t vector)
{
	return *reg(l, base + vector / 32) & (1u << (vector & 31));
}

static int vec_highest(struct lapic *l, unsigned base)
{
	for (int i = 7; i >= 0; i--) {
		uint32_t w = *reg(l, base + (unsigned)i);

		if (w)
			return i * 32 + 31 - __builtin_clz(w);
	}
	return -1;
}

/* 10.8.3.1 */
static uint32_t priority(struct lapic *l)
{
	uint32_t tpr = *reg(l, LAPIC_TPR);
	int isr = vec_highest(l, LAPIC_ISR);
	uint32_t isrv = isr < 0 ? 0 : (uint32_t)isr & 0xf0;

	return (tpr & 0xf0) >= isrv ? tpr : isrv;
}

/* The vector in IRR that the processor's priority lets through, or -1. */
static int deliverable(struct lapic *l)
{
	int irr = hw_enabled(l) ? vec_highest(l, LAPIC_IRR) : -1;

	return irr >= 0 && ((uint32_t)irr & 0xf0) > (*reg(l, LAPIC_PPR) & 0xf0) ? irr : -1;
}

/* The PIC interrupts this CPU: directly when the APIC is off, else through LINT0 (10.4.3, 10.5.1). */
static bool extint(struct lapic *l)
{
	uint32_t lint0 = *reg(l, LAPIC_LVT_LINT0);

	return l->chip->pic.out && (!hw_enabled(l) || (!(lint0 & LVT_MASKED) && ((lint0 >> 8) & 7) == DM_EXTINT));
}

void lapic_update(struct lapic *l)
{
	struct irqchip *c = l->chip;
	bool pending;

	*reg(l, LAPIC_PPR) = priority(l);
	pending = extint(l) || deliverable(l) >= 0;
	if (pending == atomic_load_explicit(&l->hint, memory_order_relaxed))
		return;
	atomic_store_explicit(&l->hint, pending, memory_order_release);
	if (pending && c->cfg.ops->kick)
		c->cfg.ops->kick(c->cfg.ops_ctx, l->cpu);
}

bool irqchip_hint(const struct irqchip *c, unsigned cpu)
{
	return atomic_load_explicit(&c->lapic[cpu].hint, memory_order_acquire);
}

bool irqchip_pending(struct irqchip *c, unsigned cpu)
{
	struct lapic *l = &c->lapic[cpu];

	return extint(l) || deliverable(l) >= 0;
}

int irqchip_ack(struct irqchip *c, unsigned cpu)
{
	struct lapic *l = &c->lapic[cpu];
	int vector;

	if (extint(l))
		return pic_inta(&c->pic);
	vector = deliverable(l);
	if (vector < 0)
		return -1;
	vec_clear(l, LAPIC_IRR, (uint8_t)vector);
	vec_set(l, LAPIC_ISR, (uint8_t)vector);
	lapic_update(l);
	return vector;
}

static void accept_vector(struct lapic *l, uint8_t vector, bool level)
{
	vec_set(l, LAPIC_IRR, vector);
	if (level)
		vec_set(l, LAPIC_TMR, vector);
	else
		vec_clear(l, LAPIC_TMR, vector);
	lapic_update(l);
}

/* Log an error; the error interrupt's own bad vector is logged only. */
static void log_esr(struct lapic *l, uint32_t bit)
{
	uint32_t lvt = *reg(l, LAPIC_LVT_ERROR);

	*pending_errors(l) |= bit;
	if (lvt & LVT_MASKED)
		return;
	if ((lvt & 0xff) < 16)
		*pending_errors(l) |= ESR_RECEIVE_VECTOR;
	else
		accept_vector(l, lvt & 0xff, false);
}

/* One local APIC takes a message. False: refused. */
static bool accept(struct lapic *l, uint8_t mode, uint8_t vector, bool level)
{
	struct irqchip *c = l->chip;
	const struct irqchip_cpu_ops *ops = c->cfg.ops;

	switch (mode) {
	case DM_FIXED:
	case DM_LOWEST:
		if (!sw_enabled(l))
			return false;
		if (vector < 16) {
			log_esr(l, ESR_RECEIVE_VECTOR);
			return false;
		}
		accept_vector(l, vector, level);
		return true;
	case DM_NMI:
		if (ops->nmi)
			ops->nmi(c->cfg.ops_ctx, l->cpu);
		return true;
	case DM_INIT:
		if (ops->init)
			ops->init(c->cfg.ops_ctx, l->cpu);
		return true;
	case DM_SIPI:
		if (ops->sipi)
			ops->sipi(c->cfg.ops_ctx, l->cpu, vector);
		return true;
	}
	return false; /* SMI (there is no SMM), ExtINT, reserved */
}

/* 10.6.2 */
static bool addressed(struct lapic *l, const struct irq_msg *m)
{
	uint32_t ldr = *reg(l, LAPIC_LDR);

	if (!hw_enabled(l))
		return false;
	if (m->broadcast)
		return true;
	if (!m->logical)
		return m->dest == l->cpu;
	if (x2apic(l)) /* 10.12.10.1: cluster in the upper half, one bit in the lower */
		return ldr >> 16 == m->dest >> 16 && (ldr & m->dest & 0xffff);
	if (m->dest > 0xff)
		return false;
	ldr >>= 24;
	switch (*reg(l, LAPIC_DFR) >> 28) {
	case 0xf:
		return ldr & m->dest;
	case 0x0:
		return (m->dest >> 4 == 0xf || m->dest >> 4 == ldr >> 4) && (ldr & m->dest & 0xf);
	}
	return false;
}

/*
 * The addressed CPU with the lowest priority class that can take the message. Among equals the vector picks, so that
 * different vectors spread.
 */
static struct lapic *lowest(struct irqchip *c, const struct irq_msg *m)
{
	unsigned n = c->cfg.ncpus;
	struct lapic *best = NULL;

	for (unsigned i = 0; i < n; i++) {
		struct lapic *l = &c->lapic[(m->vector + i) % n];

		if (!sw_enabled(l) || !addressed(l, m))
			continue;
		if (!best || (*reg(l, LAPIC_PPR) & 0xf0) < (*reg(best, LAPIC_PPR) & 0xf0))
			best = l;
	}
	return best;
}

bool lapic_deliver(struct irqchip *c, const struct irq_msg *m)
{
	bool taken = false;

	if (m->mode == DM_LOWEST || (m->mode == DM_FIXED && m->redirect)) {
		struct lapic *l = lowest(c, m);

		return l && accept(l, m->mode, m->vector, m->level);
	}
	for (unsigned i = 0; i < c->cfg.ncpus; i++)
		if (addressed(&c->lapic[i], m))
			taken |= accept(&c->lapic[i], m->mode, m->vector, m->level);
	return taken;
}

/* ICR: 10.6.1; dest is 8 bits wide in xAPIC mode and 32 in x2APIC mode. */
static void send_ipi(struct lapic *l, uint32_t icr, uint32_t dest)
{
	struct irq_msg m = {
		.dest = dest,
		.vector = icr & 0xff,
		.mode = (icr >> 8) & 7,
		.logical = icr & ICR_LOGICAL,
		.level = icr & ICR_LEVEL,
	};
	unsigned shorthand = (icr >> 18) & 3;

	/* A level de-assert is for arbitration IDs only, which do not exist here. */
	if (m.level && !(icr & ICR_ASSERT))
		return;
	if (m.mode <= DM_LOWEST && m.vector < 16) {
		log_esr(l, ESR_SEND_VECTOR);
		return;
	}
	switch (shorthand) {
	case 0:
		m.broadcast = x2apic(l) ? dest == UINT32_MAX : dest == 0xff && !m.logical;
		lapic_deliver(l->chip, &m);
		return;
	case 1:
		accept(l, m.mode, m.vector, m.level);
		return;
	case 2:
		m.broadcast = true;
		lapic_deliver(l->chip, &m);
		return;
	case 3:
		for (unsigned i = 0; i < l->chip->cfg.ncpus; i++)
			if (i != l->cpu && hw_enabled(&l->chip->lapic[i]))
				accept(&l->chip->lapic[i], m.mode, m.vector, m.level);
		return;
	}
}

bool irqchip_send_ipi(struct irqchip *c, uint32_t dest, uint32_t icr)
{
	struct irq_msg m = {.dest = dest, .vector = icr & 0xff, .mode = (icr >> 8) & 7, .level = icr & ICR_LEVEL};

	return lapic_deliver(c, &m);
}

static void eoi(struct lapic *l)
{
	int vector = vec_highest(l, LAPIC_ISR);
	bool level;

	if (vector < 0)
		return;
	level = vec_test(l, LAPIC_TMR, (uint8_t)vector);
	vec_clear(l, LAPIC_ISR, (uint8_t)vector);
	lapic_update(l);
	if (!level)
		return;
	if ((*reg(l, LAPIC_LVT_LINT0) & (LVT_REMOTE_IRR | 0xff)) == (LVT_REMOTE_IRR | (uint32_t)vector)) {
		*reg(l, LAPIC_LVT_LINT0) &= ~LVT_REMOTE_IRR;
		lapic_lint0(l, l->chip->pic.out);
	}
	ioapic_eoi(&l->chip->ioapic, (uint8_t)vector);
}

void lapic_lint0(struct lapic *l, bool level)
{
	uint32_t *lvt = reg(l, LAPIC_LVT_LINT0);
	unsigned mode = (*lvt >> 8) & 7;
	bool level_triggered = mode == DM_FIXED && (*lvt & LVT_LEVEL);

	lapic_update(l); /* ExtINT follows the wire */
	if (!level || !hw_enabled(l) || (*lvt & LVT_MASKED) || (mode != DM_FIXED && mode != DM_NMI && mode != DM_INIT))
		return;
	if (level_triggered && (*lvt & LVT_REMOTE_IRR))
		return;
	if (accept(l, (uint8_t)mode, *lvt & 0xff, level_triggered) && level_triggered)
		*lvt |= LVT_REMOTE_IRR;
}

/* --- the timer (10.5.4) --- */

static enum timer_mode timer_mode(struct lapic *l) { return (*reg(l, LAPIC_LVT_TIMER) >> 17) & 3; }

/* ns per count */
static int64_t divisor(struct lapic *l)
{
	uint32_t d = *reg(l, LAPIC_TDCR);

	return INT64_C(1) << ((((d & 3) | ((d & 8) >> 1)) + 1) & 7);
}

static int64_t period(struct lapic *l)
{
	int64_t ns = *reg(l, LAPIC_TMICT) * divisor(l);

	return ns < IRQCHIP_MIN_PERIOD_NS ? IRQCHIP_MIN_PERIOD_NS : ns;
}

static void timer_stop(struct lapic *l)
{
	l->expiry = TIMER_NEVER;
	timer_cancel(&l->timer);
}

static void timer_start(struct lapic *l, int64_t expiry)
{
	l->expiry = expiry;
	timer_arm(&l->timer, expiry);
}

static uint32_t current_count(struct lapic *l)
{
	int64_t left, count;

	if (l->expiry == TIMER_NEVER || timer_mode(l) == TIMER_DEADLINE)
		return 0;
	left = l->expiry - l->chip->clock();
	if (left <= 0 && timer_mode(l) != TIMER_PERIODIC)
		return 0;
	if (left <= 0)
		left = period(l) - -left % period(l);
	count = (left + divisor(l) - 1) / divisor(l);
	return (uint32_t)min_u64((uint64_t)count, *reg(l, LAPIC_TMICT));
}

static void start_count(struct lapic *l, uint32_t count)
{
	int64_t now = l->chip->clock();

	if (!count || timer_mode(l) > TIMER_PERIODIC)
		timer_stop(l);
	else if (timer_mode(l) == TIMER_PERIODIC && count == *reg(l, LAPIC_TMICT))
		timer_start(l, now + period(l));
	else
		timer_start(l, now + count * divisor(l));
}

static uint64_t guest_tsc(struct lapic *l) { return l->chip->cfg.ops->guest_tsc(l->chip->cfg.ops_ctx, l->cpu); }

/* Wait until the guest's TSC reaches the deadline. The farthest wait is 2^61 ns; the timer then waits on. */
static void start_deadline(struct lapic *l)
{
	uint64_t tsc, khz = l->chip->cfg.tsc_khz, delta, ns;

	if (!l->st.tsc_deadline) {
		timer_stop(l);
		return;
	}
	tsc = guest_tsc(l);
	delta = l->st.tsc_deadline > tsc ? l->st.tsc_deadline - tsc : 0;
	if (delta / khz >= BIT(61) / 1000000)
		ns = BIT(61);
	else
		ns = mul_div_u64(delta, 1000000, khz) + (delta ? 1 : 0);
	timer_start(l, l->chip->clock() + (int64_t)ns);
}

static void deliver_lvt_timer(struct lapic *l)
{
	uint32_t lvt = *reg(l, LAPIC_LVT_TIMER);

	if (hw_enabled(l) && !(lvt & LVT_MASKED))
		accept(l, DM_FIXED, lvt & 0xff, false);
}

/* The timer reached 0. A late periodic timer interrupts once and keeps its phase. */
static void timer_fire(void *ctx)
{
	struct lapic *l = ctx;
	int64_t now = l->chip->clock(), late;

	switch (timer_mode(l)) {
	case TIMER_DEADLINE:
		if (guest_tsc(l) < l->st.tsc_deadline) {
			start_deadline(l);
			return;
		}
		l->st.tsc_deadline = 0;
		timer_stop(l);
		break;
	case TIMER_PERIODIC:
		late = now > l->expiry ? now - l->expiry : 0;
		timer_start(l, l->expiry + (late / period(l) + 1) * period(l));
		break;
	default:
		timer_stop(l);
		break;
	}
	deliver_lvt_timer(l);
}

/* --- registers --- */

static void write_lvt_timer(struct lapic *l, uint32_t value)
{
	enum timer_mode old = timer_mode(l);

	*reg(l, LAPIC_LVT_TIMER) = value;
	if (old == timer_mode(l))
		return;
	/*
	 * Between one-shot and periodic the count goes on; periodic mode reloads a count that is 0, so that a periodic
	 * timer with an initial count always runs. To and from TSC-deadline mode the timer is disarmed.
	 */
	if (old <= TIMER_PERIODIC && timer_mode(l) <= TIMER_PERIODIC) {
		if (timer_mode(l) == TIMER_PERIODIC && l->expiry == TIMER_NEVER)
			start_count(l, *reg(l, LAPIC_TMICT));
		return;
	}
	*reg(l, LAPIC_TMICT) = 0;
	l->st.tsc_deadline = 0;
	timer_stop(l);
}

static void write_svr(struct lapic *l, uint32_t value)
{
	*reg(l, LAPIC_SVR) = value;
	if (!(value & SVR_ENABLED))
		for (unsigned r = LAPIC_LVT_TIMER; r <= LAPIC_LVT_ERROR; r++)
			*reg(l, r) |= LVT_MASKED;
	ioapic_resample(&l->chip->ioapic);
}

static void write_tdcr(struct lapic *l, uint32_t value)
{
	uint32_t left = current_count(l);
	bool running = l->expiry != TIMER_NEVER;

	*reg(l, LAPIC_TDCR) = value;
	if (running && timer_mode(l) != TIMER_DEADLINE)
		start_count(l, left ? left : 1);
}

/* value has writable bits only. */
static void write_reg(struct lapic *l, unsigned r, uint32_t value)
{
	if (r >= LAPIC_LVT_TIMER && r <= LAPIC_LVT_ERROR) {
		if (!sw_enabled(l))
			value |= LVT_MASKED;
		value |= *reg(l, r) & LVT_REMOTE_IRR & rules[r].ignored;
	}
	switch (r) {
	case LAPIC_ID:
	case LAPIC_VERSION:
		return;
	case LAPIC_EOI:
		eoi(l);
		return;
	case LAPIC_DFR:
		*reg(l, r) = value | 0x0fffffff;
		ioapic_resample(&l->chip->ioapic);
		return;
	case LAPIC_LDR:
		*reg(l, r) = value;
		ioapic_resample(&l->chip->ioapic);
		return;
	case LAPIC_SVR:
		write_svr(l, value);
		break;
	case LAPIC_ESR: /* any value: shows what was logged since the last write */
		*reg(l, r) = *pending_errors(l);
		*pending_errors(l) = 0;
		return;
	case LAPIC_ICR:
		*reg(l, r) = value;
		send_ipi(l, value, x2apic(l) ? *reg(l, LAPIC_ICR2) : *reg(l, LAPIC_ICR2) >> 24);
		return;
	case LAPIC_LVT_TIMER:
		write_lvt_timer(l, value);
		break;
	case LAPIC_TMICT:
		if (timer_mode(l) == TIMER_DEADLINE)
			return;
		*reg(l, r) = value;
		start_count(l, value);
		return;
	case LAPIC_TDCR:
		write_tdcr(l, value);
		return;
	case LAPIC_SELF_IPI:
		send_ipi(l, value | (1u << 18), 0);
		return;
	default:
		*reg(l, r) = value;
		break;
	}
	lapic_update(l); /* TPR, SVR, LINT0 */
}

static uint32_t read_reg(struct lapic *l, unsigned r)
{
	if (r == LAPIC_TMCCT)
		return current_count(l);
	return *reg(l, r);
}

uint64_t lapic_mmio_read(struct irqchip *c, unsigned cpu, uint64_t off, unsigned size)
{
	struct lapic *l = &c->lapic[cpu];
	uint64_t r = off >> 4;

	if (!hw_enabled(l) || x2apic(l))
		return mask_bytes(size);
	if (r >= LAPIC_REGS || !(rules[r].access & (XR | XW))) {
		log_esr(l, ESR_REGISTER);
		return 0;
	}
	if (!(rules[r].access & XR) || (off & 15) >= 4)
		return 0;
	return ((uint64_t)read_reg(l, (unsigned)r) >> (8 * (off & 3))) & mask_bytes(size);
}

/* Only aligned 32-bit stores are architectural (10.4.1); others are dropped. */
void lapic_mmio_write(struct irqchip *c, unsigned cpu, uint64_t off, unsigned size, uint64_t value)
{
	struct lapic *l = &c->lapic[cpu];
	uint64_t r = off >> 4;

	if (!hw_enabled(l) || x2apic(l) || size != 4 || (off & 15))
		return;
	if (r >= LAPIC_REGS || !(rules[r].access & (XR | XW)))
		log_esr(l, ESR_REGISTER);
	else if (rules[r].access & XW)
		write_reg(l, (unsigned)r, (uint32_t)value & rules[r].writable);
}

bool lapic_msr_read(struct irqchip *c, unsigned cpu, uint32_t msr, uint64_t *value)
{
	struct lapic *l = &c->lapic[cpu];
	uint32_t r = msr - 0x800;

	if (msr == 0x6e0) {
		*value = l->st.tsc_deadline;
		return true;
	}
	if (!x2apic(l) || msr < 0x800 || r >= LAPIC_REGS || !(rules[r].access & X2R))
		return false;
	*value = read_reg(l, r);
	if (r == LAPIC_ID)
		*value >>= 24;
	if (r == LAPIC_ICR)
		*value |= (uint64_t)*reg(l, LAPIC_ICR2) << 32;
	return true;
}

bool lapic_msr_write(struct irqchip *c, unsigned cpu, uint32_t msr, uint64_t value)
{
	struct lapic *l = &c->lapic[cpu];
	uint32_t r = msr - 0x800;
	uint64_t allowed;

	if (msr == 0x6e0) {
		if (hw_enabled(l) && timer_mode(l) == TIMER_DEADLINE) {
			l->st.tsc_deadline = value;
			start_deadline(l);
		}
		return true;
	}
	if (!x2apic(l) || msr < 0x800 || r >= LAPIC_REGS || !(rules[r].access & X2W))
		return false;
	allowed = rules[r].writable | rules[r].ignored;
	if (r == LAPIC_ICR)
		allowed |= UINT64_C(0xffffffff) << 32;
	if (value & ~allowed)
		return false;
	if (r == LAPIC_ICR)
		*reg(l, LAPIC_ICR2) = (uint32_t)(value >> 32);
	write_reg(l, r, (uint32_t)value & rules[r].writable);
	return true;
}

uint8_t lapic_cr8(struct irqchip *c, unsigned cpu) { return (uint8_t)(*reg(&c->lapic[cpu], LAPIC_TPR) >> 4); }

void lapic_set_cr8(struct irqchip *c, unsigned cpu, uint8_t cr8)
{
	write_reg(&c->lapic[cpu], LAPIC_TPR, (cr8 & 0xfu) << 4);
}

/* --- mode, reset, state --- */

static uint32_t x2apic_ldr(const struct lapic *l) { return ((l->cpu >> 4) << 16) | (1u << (l->cpu & 15)); }

/* 10.4.7.1, 10.12.5.1: registers after power-up, reset and INIT */
static void reset_regs(struct lapic *l)
{
	timer_stop(l);
	memset(l->st.regs, 0, sizeof(l->st.regs));
	l->st.tsc_deadline = 0;
	*reg(l, LAPIC_ID) = l->cpu << 24;
	*reg(l, LAPIC_VERSION) = VERSION;
	*reg(l, LAPIC_DFR) = UINT32_MAX;
	*reg(l, LAPIC_SVR) = 0xff;
	if (x2apic(l))
		*reg(l, LAPIC_LDR) = x2apic_ldr(l);
	for (unsigned r = LAPIC_LVT_TIMER; r <= LAPIC_LVT_ERROR; r++)
		*reg(l, r) = LVT_MASKED;
	if (l->cpu == 0)
		*reg(l, LAPIC_LVT_LINT0) = DM_EXTINT << 8;
	lapic_update(l);
}

void lapic_setup(struct irqchip *c, unsigned cpu)
{
	struct lapic *l = &c->lapic[cpu];

	l->chip = c;
	l->cpu = cpu;
	l->expiry = TIMER_NEVER;
	atomic_init(&l->hint, false);
	timer_init(&l->timer, c->cfg.cpu_timers ? &c->cfg.cpu_timers[cpu] : c->cfg.timers, timer_fire, l);
}

void lapic_reset(struct irqchip *c, unsigned cpu)
{
	c->lapic[cpu].st.base = BASE_ADDR | BASE_EN | (cpu == 0 ? BASE_BSP : 0);
	reset_regs(&c->lapic[cpu]);
}

void lapic_init(struct irqchip *c, unsigned cpu) { reset_regs(&c->lapic[cpu]); }

uint64_t lapic_base_read(struct irqchip *c, unsigned cpu) { return c->lapic[cpu].st.base; }

void lapic_base_restore(struct irqchip *c, unsigned cpu, uint64_t value)
{
	struct lapic *l = &c->lapic[cpu];

	if (!(value & BASE_EN))
		value &= ~BASE_EXTD;
	l->st.base = value & ~BASE_RESERVED;
	reset_regs(l);
}

/* 10.4.3, 10.12.5 (figure 10-27) */
bool lapic_base_write(struct irqchip *c, unsigned cpu, uint64_t value)
{
	struct lapic *l = &c->lapic[cpu];
	bool en = value & BASE_EN, extd = value & BASE_EXTD;

	if (value & BASE_RESERVED)
		return false;
	if (extd && !en)
		return false;
	if (extd && !hw_enabled(l))
		return false; /* disabled -> x2APIC */
	if (!extd && en && x2apic(l))
		return false; /* x2APIC -> xAPIC */
	if (hw_enabled(l) && !en) {
		l->st.base = value;
		reset_regs(l);
		return true;
	}
	if (extd && !x2apic(l)) {
		*reg(l, LAPIC_ICR2) = 0;
		*reg(l, LAPIC_LDR) = x2apic_ldr(l);
	}
	l->st.base = value;
	ioapic_resample(&c->ioapic);
	lapic_update(l);
	return true;
}

void lapic_get_state(struct irqchip *c, unsigned cpu, uint8_t regs[1024])
{
	struct lapic *l = &c->lapic[cpu];

	/* An expiry that was not served yet would be lost: the state holds the count only. */
	if (l->expiry <= c->clock()) {
		timer_cancel(&l->timer);
		timer_fire(l);
	}
	*reg(l, LAPIC_TMCCT) = current_count(l);
	memcpy(regs, l->st.regs, 1024);
	*reg(l, LAPIC_TMCCT) = 0;
}

bool lapic_set_state(struct irqchip *c, unsigned cpu, const uint8_t regs[1024])
{
	struct lapic *l = &c->lapic[cpu];
	uint32_t in[256];
	uint32_t left;

	memcpy(in, regs, sizeof(in));
	if (in[4 * LAPIC_ID] != cpu << 24)
		return false;
	timer_stop(l);
	l->st.tsc_deadline = 0;
	memset(l->st.regs, 0, sizeof(l->st.regs));
	for (unsigned r = 0; r < LAPIC_REGS; r++)
		*reg(l, r) = in[4 * r] & (rules[r].writable | (rules[r].ignored & LVT_REMOTE_IRR));
	for (unsigned r = LAPIC_ISR; r < LAPIC_ESR; r++) /* ISR, TMR, IRR: vectors 0-15 do not exist */
		*reg(l, r) = in[4 * r] & (r & 7 ? UINT32_MAX : 0xffff0000);
	*reg(l, LAPIC_ID) = cpu << 24;
	*reg(l, LAPIC_VERSION) = VERSION;
	*reg(l, LAPIC_DFR) |= 0x0fffffff;
	*reg(l, LAPIC_ESR) = in[4 * LAPIC_ESR] & 0xff;
	*pending_errors(l) = in[4 * LAPIC_ESR + 1] & 0xff;
	*reg(l, LAPIC_SELF_IPI) = 0;
	if (x2apic(l)) {
		*reg(l, LAPIC_LDR) = x2apic_ldr(l);
		*reg(l, LAPIC_ICR2) = in[4 * LAPIC_ICR2];
	}
	if (!sw_enabled(l))
		for (unsigned r = LAPIC_LVT_TIMER; r <= LAPIC_LVT_ERROR; r++)
			if (r != LAPIC_LVT_LINT0) /* of the boot CPU after reset */
				*reg(l, r) |= LVT_MASKED;
	left = (uint32_t)min_u64(in[4 * LAPIC_TMCCT], *reg(l, LAPIC_TMICT));
	if (!left && timer_mode(l) == TIMER_PERIODIC)
		left = *reg(l, LAPIC_TMICT);
	start_count(l, left);
	lapic_update(l);
	return true;
}
