/* Registers, priorities and timer of one local APIC. */
#include "fixture.h"

#define MSR(r) (0x800u + (r))
#define TSC_DEADLINE 0x6e0u
#define EN BIT(11)
#define EXTD BIT(10)

static void to_x2apic(struct fx *f, unsigned cpu)
{
	assert_true(lapic_base_write(f->c, cpu, lapic_base_read(f->c, cpu) | EXTD));
}

static void reset_values(void **state)
{
	struct fx *f = *state;

	for (unsigned cpu = 0; cpu < FX_CPUS; cpu++) {
		assert_int_equal(lapic_base_read(f->c, cpu), 0xfee00800 | (cpu == 0 ? 0x100 : 0));
		assert_int_equal(rd(f, cpu, LAPIC_ID), cpu << 24);
		assert_int_equal(rd(f, cpu, LAPIC_VERSION), 0x50014);
		assert_int_equal(rd(f, cpu, LAPIC_DFR), 0xffffffff);
		assert_int_equal(rd(f, cpu, LAPIC_SVR), 0xff);
		assert_int_equal(rd(f, cpu, LAPIC_LVT_LINT0), cpu == 0 ? 0x700 : 0x10000);
		for (unsigned r = 0; r < LAPIC_REGS; r++) {
			if (r == LAPIC_ID || r == LAPIC_VERSION || r == LAPIC_DFR || r == LAPIC_SVR ||
			    r == LAPIC_LVT_LINT0)
				continue;
			assert_int_equal(rd(f, cpu, r), r >= LAPIC_LVT_TIMER && r <= LAPIC_LVT_ERROR ? 0x10000 : 0);
		}
		expect_none(f, cpu);
	}
}

/* Table 10-1: what is left of all ones, and of zero, in each register (software-enabled). */
static void xapic_write_masks(void **state)
{
	static const struct {
		unsigned r;
		uint32_t ones, zeros;
	} masks[] = {
		{LAPIC_ID, 0x01000000, 0x01000000}, /* read-only here */
		{LAPIC_VERSION, 0x50014, 0x50014},
		{LAPIC_TPR, 0xff, 0},
		{LAPIC_APR, 0, 0},
		{LAPIC_EOI, 0, 0},
		{LAPIC_RRD, 0, 0},
		{LAPIC_LDR, 0xff000000, 0},
		{LAPIC_DFR, 0xffffffff, 0x0fffffff},
		{LAPIC_ISR, 0, 0},
		{LAPIC_ISR + 7, 0, 0},
		{LAPIC_TMR, 0, 0},
		{LAPIC_TMR + 7, 0, 0},
		{LAPIC_IRR, 0, 0},
		{LAPIC_IRR + 7, 0, 0},
		{LAPIC_ESR, 0, 0},
		{LAPIC_ICR2, 0xff000000, 0},
		{LAPIC_LVT_TIMER, 0x700ff, 0},
		{LAPIC_LVT_THERMAL, 0x107ff, 0},
		{LAPIC_LVT_PERF, 0x107ff, 0},
		{LAPIC_LVT_LINT0, 0x1a7ff, 0},
		{LAPIC_LVT_LINT1, 0x1a7ff, 0},
		{LAPIC_LVT_ERROR, 0x100ff, 0},
		{LAPIC_TMCCT, 0, 0},
		{LAPIC_TMICT, 0xffffffff, 0},
		{LAPIC_TDCR, 0xb, 0},
		{LAPIC_SVR, 0x3ff, 0},
	};
	struct fx *f = *state;

	wr(f, 1, LAPIC_SVR, 0x1ff);
	for (size_t i = 0; i < ARRAY_LEN(masks); i++) {
		wr(f, 1, masks[i].r, 0xffffffff);
		assert_int_equal(rd(f, 1, masks[i].r), masks[i].ones);
		wr(f, 1, masks[i].r, 0);
		assert_int_equal(rd(f, 1, masks[i].r), masks[i].zeros);
	}
	wr(f, 1, LAPIC_PPR, 0xff);
	assert_int_equal(rd(f, 1, LAPIC_PPR), 0);
	/* ICR: delivery status and reserved bits read 0. (What it sends is an ExtINT, which does nothing.) */
	wr(f, 1, LAPIC_ICR2, 0x77000000);
	wr(f, 1, LAPIC_ICR, 0xfff3ffff);
	assert_int_equal(rd(f, 1, LAPIC_ICR), 0xcffff & ~0x3000 & ~0xc0000);
}

static void access_sizes(void **state)
{
	struct fx *f = *state;

	assert_int_equal(lapic_mmio_read(f->c, 0, 0x30, 8), 0x50014);
	assert_int_equal(lapic_mmio_read(f->c, 0, 0x30, 2), 0x14);
	assert_int_equal(lapic_mmio_read(f->c, 0, 0x32, 1), 0x05);
	assert_int_equal(lapic_mmio_read(f->c, 0, 0x34, 4), 0);
	assert_int_equal(lapic_mmio_read(f->c, 0, 0xfff, 8), 0);
	lapic_mmio_write(f->c, 0, 0x80, 1, 0x55);
	lapic_mmio_write(f->c, 0, 0x80, 2, 0x55);
	lapic_mmio_write(f->c, 0, 0x80, 8, 0x55);
	lapic_mmio_write(f->c, 0, 0x82, 4, 0x55);
	lapic_mmio_write(f->c, 0, 0x84, 4, 0x55);
	assert_int_equal(rd(f, 0, LAPIC_TPR), 0);
}

static void base_transitions(void **state)
{
	struct fx *f = *state;
	uint64_t base = 0xfee00000;

	assert_false(lapic_base_write(f->c, 1, base | EXTD)); /* EXTD without EN */
	assert_false(lapic_base_write(f->c, 1, base | EN | 1));
	assert_false(lapic_base_write(f->c, 1, base | EN | BIT(9)));
	assert_false(lapic_base_write(f->c, 1, base | EN | BIT(52)));
	assert_true(lapic_base_write(f->c, 1, 0xfed00000 | EN)); /* moved */
	assert_int_equal(lapic_base_read(f->c, 1), 0xfed00000 | EN);
	wr(f, 1, LAPIC_TPR, 0x30);
	assert_true(lapic_base_write(f->c, 1, base | EN | EXTD));
	assert_int_equal(lapic_cr8(f->c, 1), 3);	    /* registers are kept */
	assert_false(lapic_base_write(f->c, 1, base | EN)); /* x2APIC -> xAPIC */
	assert_int_equal(lapic_base_read(f->c, 1), base | EN | EXTD);
	assert_true(lapic_base_write(f->c, 1, base));
	assert_int_equal(lapic_mmio_read(f->c, 1, 0x30, 4), 0xffffffff); /* off: no registers */
	assert_false(lapic_base_write(f->c, 1, base | EN | EXTD));	 /* disabled -> x2APIC */
	assert_true(lapic_base_write(f->c, 1, base | EN));
	assert_int_equal(rd(f, 1, LAPIC_SVR), 0xff); /* back from disabled: as after reset */
	assert_int_equal(rd(f, 1, LAPIC_LDR), 0);
	/* Loading a state knows no transitions, only modes that exist. */
	lapic_base_restore(f->c, 1, base | EN | EXTD | 1);
	assert_int_equal(lapic_base_read(f->c, 1), base | EN | EXTD);
	lapic_base_restore(f->c, 1, base | EXTD);
	assert_int_equal(lapic_base_read(f->c, 1), base);
	lapic_base_restore(f->c, 1, base | EN);
	assert_int_equal(rd(f, 1, LAPIC_LDR), 0);
}

/* Table 10-6: which MSRs exist, for reading and for writing 0. */
static void x2apic_msrs(void **state)
{
	struct fx *f = *state;
	uint64_t v;

	assert_false(lapic_msr_read(f->c, 1, MSR(LAPIC_ID), &v)); /* not in xAPIC mode */
	assert_false(lapic_msr_write(f->c, 1, MSR(LAPIC_TPR), 0));
	to_x2apic(f, 1);
	for (uint32_t r = 0; r < 0x100; r++) {
		bool vectors = r >= LAPIC_ISR && r < LAPIC_ESR;
		bool lvt = r >= LAPIC_LVT_TIMER && r <= LAPIC_LVT_ERROR;
		bool rw = r == LAPIC_TPR || r == LAPIC_SVR || r == LAPIC_ESR || r == LAPIC_ICR || lvt ||
			  r == LAPIC_TMICT || r == LAPIC_TDCR;
		bool ro = r == LAPIC_ID || r == LAPIC_VERSION || r == LAPIC_PPR || r == LAPIC_LDR || vectors ||
			  r == LAPIC_TMCCT;
		bool wo = r == LAPIC_EOI || r == LAPIC_SELF_IPI;

		assert_int_equal(lapic_msr_read(f->c, 1, MSR(r), &v), rw || ro);
		assert_int_equal(lapic_msr_write(f->c, 1, MSR(r), 0), rw || wo);
	}
	assert_true(lapic_msr_read(f->c, 1, MSR(LAPIC_ID), &v));
	assert_int_equal(v, 1);
	assert_true(lapic_msr_read(f->c, 1, MSR(LAPIC_LDR), &v));
	assert_int_equal(v, 2);
	/* MMIO is gone. */
	assert_int_equal(lapic_mmio_read(f->c, 1, 0x30, 4), 0xffffffff);
	lapic_mmio_write(f->c, 1, 0x80, 4, 0x55);
	assert_int_equal(lapic_cr8(f->c, 1), 0);
}

/* Reserved bits are #GP, one by one. */
static void x2apic_reserved_bits(void **state)
{
	static const struct {
		unsigned r;
		uint64_t allowed;
	} regs[] = {
		{LAPIC_TPR, 0xff},	    {LAPIC_EOI, 0},
		{LAPIC_SVR, 0x3ff},	    {LAPIC_ESR, 0},
		{LAPIC_LVT_TIMER, 0x710ff}, {LAPIC_LVT_THERMAL, 0x117ff},
		{LAPIC_LVT_PERF, 0x117ff},  {LAPIC_LVT_LINT0, 0x1f7ff},
		{LAPIC_LVT_LINT1, 0x1f7ff}, {LAPIC_LVT_ERROR, 0x110ff},
		{LAPIC_TMICT, 0xffffffff},  {LAPIC_TDCR, 0xb},
		{LAPIC_SELF_IPI, 0xff},	    {LAPIC_ICR, 0xffffffff000cdfff},
	};
	struct fx *f = *state;

	to_x2apic(f, 1);
	for (size_t i = 0; i < ARRAY_LEN(regs); i++)
		for (unsigned bit = 0; bit < 64; bit++)
			assert_int_equal(lapic_msr_write(f->c, 1, MSR(regs[i].r), BIT(bit)),
					 (regs[i].allowed & BIT(bit)) != 0);
}

static void priorities(void **state)
{
	struct fx *f = *state;
	struct irq_msg m = {.broadcast = true};

	enable_all(f);
	for (m.vector = 0x31; m.vector < 0x91; m.vector += 0x20) /* 31 51 71 */
		lapic_deliver(f->c, &m);
	assert_int_equal(f->kicks[0], 1); /* pending all the time */
	expect_ack(f, 0, 0x71);
	assert_int_equal(f->kicks[0], 1); /* not when it turns false */
	assert_true(in_reg(f, 0, LAPIC_ISR, 0x71));
	assert_false(in_reg(f, 0, LAPIC_IRR, 0x71));
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x70);
	expect_none(f, 0);
	/* The same class does not nest, a higher one does. */
	m.vector = 0x7f;
	lapic_deliver(f->c, &m);
	expect_none(f, 0);
	m.vector = 0x80;
	lapic_deliver(f->c, &m);
	expect_ack(f, 0, 0x80);
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x80);
	wr(f, 0, LAPIC_EOI, 0);
	assert_false(in_reg(f, 0, LAPIC_ISR, 0x80));
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x70);
	wr(f, 0, LAPIC_EOI, 0);
	expect_vector(f, 0, 0x7f);
	/* TPR: classes up to its own are held back; PPR takes the whole TPR when it is the higher. */
	wr(f, 0, LAPIC_TPR, 0x53);
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x53);
	expect_none(f, 0);
	assert_int_equal(lapic_cr8(f->c, 0), 5);
	lapic_set_cr8(f->c, 0, 4);
	assert_int_equal(rd(f, 0, LAPIC_TPR), 0x40);
	expect_ack(f, 0, 0x51);
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x50);
	wr(f, 0, LAPIC_EOI, 0);
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x40);
	expect_none(f, 0);
	lapic_set_cr8(f->c, 0, 0);
	expect_vector(f, 0, 0x31);
	wr(f, 0, LAPIC_EOI, 0); /* one too many: nothing in service */
	expect_none(f, 0);
	/* TPR and ISR of the same class: PPR is the TPR. */
	wr(f, 0, LAPIC_ICR, 0x40061);
	expect_ack(f, 0, 0x61);
	wr(f, 0, LAPIC_TPR, 0x65);
	assert_int_equal(rd(f, 0, LAPIC_PPR), 0x65);
	wr(f, 0, LAPIC_TPR, 0);
	wr(f, 0, LAPIC_EOI, 0);
	/* IRR and ISR cannot be written. 16 is the first vector. */
	wr(f, 0, LAPIC_ICR, 0x40010);
	wr(f, 0, LAPIC_IRR, 0);
	expect_ack(f, 0, 0x10);
	wr(f, 0, LAPIC_ISR, 0);
	assert_true(in_reg(f, 0, LAPIC_ISR, 0x10));
}

static void software_disable(void **state)
{
	struct fx *f = *state;
	struct irq_msg m = {.broadcast = true, .vector = 0x40};

	assert_false(lapic_deliver(f->c, &m)); /* disabled after reset: nobody takes it */
	enable_all(f);
	assert_true(lapic_deliver(f->c, &m));
	wr(f, 0, LAPIC_LVT_ERROR, 0x50);
	wr(f, 0, LAPIC_SVR, 0xff);
	assert_int_equal(rd(f, 0, LAPIC_LVT_ERROR), 0x10050); /* masked, and stays so */
	for (unsigned r = LAPIC_LVT_TIMER; r <= LAPIC_LVT_ERROR; r++) {
		wr(f, 0, r, 0x50);
		assert_int_equal(rd(f, 0, r), 0x10050);
	}
	m.vector = 0x41;
	lapic_deliver(f->c, &m);
	expect_vector(f, 0, 0x40); /* what was pending is still served, nothing new comes */
	expect_none(f, 0);
	expect_vector(f, 1, 0x41);
	/* NMI, INIT and SIPI are taken nevertheless. */
	m.mode = DM_NMI;
	lapic_deliver(f->c, &m);
	assert_int_equal(f->nmis[0], 1);
}

static void errors(void **state)
{
	struct fx *f = *state;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_ERROR, 0xe1);
	wr(f, 0, LAPIC_ICR, 0x40000 | 15);	  /* self, illegal vector */
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0); /* shown by a write only */
	expect_vector(f, 0, 0xe1);
	wr(f, 0, LAPIC_ESR, 0);
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0x20);
	wr(f, 0, LAPIC_ESR, 0xff);
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0);
	/* Received illegal vector: from an MSI. */
	assert_false(irq_msi(irqchip_sink(f->c), 0xfee00000, 0x0f));
	expect_vector(f, 0, 0xe1);
	wr(f, 0, LAPIC_ESR, 0);
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0x40);
	/* Reserved registers, read and written. */
	assert_int_equal(rd(f, 0, 0x00), 0);
	expect_vector(f, 0, 0xe1);
	wr(f, 0, 0x2f, 0);
	expect_vector(f, 0, 0xe1);
	assert_int_equal(lapic_mmio_read(f->c, 0, 0xff0, 4), 0);
	expect_vector(f, 0, 0xe1);
	wr(f, 0, LAPIC_ESR, 0);
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0x80);
	/* An illegal error vector is logged and goes nowhere. */
	wr(f, 0, LAPIC_LVT_ERROR, 0x03);
	rd(f, 0, 0x00);
	wr(f, 0, LAPIC_ESR, 0);
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0xc0);
	expect_none(f, 0);
}

static void init_keeps_mode(void **state)
{
	struct fx *f = *state;
	uint64_t v;

	to_x2apic(f, 1);
	assert_true(lapic_msr_write(f->c, 1, MSR(LAPIC_SVR), 0x1ff));
	assert_true(lapic_msr_write(f->c, 1, MSR(LAPIC_TPR), 0x20));
	lapic_init(f->c, 1);
	assert_int_equal(lapic_base_read(f->c, 1), 0xfee00000 | EN | EXTD);
	assert_true(lapic_msr_read(f->c, 1, MSR(LAPIC_SVR), &v));
	assert_int_equal(v, 0xff);
	assert_true(lapic_msr_read(f->c, 1, MSR(LAPIC_TPR), &v));
	assert_int_equal(v, 0);
	assert_true(lapic_msr_read(f->c, 1, MSR(LAPIC_LDR), &v));
	assert_int_equal(v, 2);
}

/* --- timer --- */

static void timer_divisors(void **state)
{
	static const uint8_t shift[16] = {[0] = 1, [1] = 2, [2] = 3, [3] = 4, [8] = 5, [9] = 6, [10] = 7, [11] = 0};
	struct fx *f = *state;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_TIMER, 0x40);
	for (unsigned d = 0; d < 16; d++) {
		if (d & 4)
			continue;
		wr(f, 0, LAPIC_TDCR, d);
		wr(f, 0, LAPIC_TMICT, 100000);
		assert_int_equal(rd(f, 0, LAPIC_TMCCT), 100000);
		fx_advance(f, INT64_C(40000) << shift[d]);
		assert_int_equal(rd(f, 0, LAPIC_TMCCT), 60000);
		fx_advance(f, (INT64_C(60000) << shift[d]) - 1);
		assert_int_equal(rd(f, 0, LAPIC_TMCCT), 1);
		expect_none(f, 0);
		fx_advance(f, 1);
		assert_int_equal(rd(f, 0, LAPIC_TMCCT), 0);
		expect_vector(f, 0, 0x40);
		fx_advance(f, INT64_C(1) << 40);
		expect_none(f, 0);
	}
}

static void timer_one_shot_stop_and_divisor_change(void **state)
{
	struct fx *f = *state;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_TIMER, 0x40);
	wr(f, 0, LAPIC_TDCR, 0xb);
	wr(f, 0, LAPIC_TMICT, 1000);
	wr(f, 0, LAPIC_TMICT, 0);
	fx_advance(f, 10000);
	expect_none(f, 0);
	/* The count is kept when the divisor changes. */
	wr(f, 0, LAPIC_TMICT, 1000);
	fx_advance(f, 400);
	wr(f, 0, LAPIC_TDCR, 0x0);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 600);
	fx_advance(f, 1199);
	expect_none(f, 0);
	fx_advance(f, 1);
	expect_vector(f, 0, 0x40);
	wr(f, 0, LAPIC_TDCR, 0xb); /* starts nothing */
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	/* Masked: it counts, and interrupts nobody. */
	wr(f, 0, LAPIC_LVT_TIMER, 0x10040);
	wr(f, 0, LAPIC_TMICT, 1000);
	fx_advance(f, 3000);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 0);
	wr(f, 0, LAPIC_LVT_TIMER, 0x40);
	expect_none(f, 0);
	/* An illegal vector is an error, not an interrupt. */
	wr(f, 0, LAPIC_LVT_TIMER, 0x0f);
	wr(f, 0, LAPIC_TMICT, 1000);
	fx_advance(f, 3000);
	expect_none(f, 0);
	wr(f, 0, LAPIC_ESR, 0);
	assert_int_equal(rd(f, 0, LAPIC_ESR), 0x40);
}

static void timer_periodic(void **state)
{
	struct fx *f = *state;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_TIMER, 0x20040);
	wr(f, 0, LAPIC_TDCR, 0xb);
	wr(f, 0, LAPIC_TMICT, 1000000);
	for (unsigned i = 0; i < 5; i++) {
		fx_advance(f, 999999);
		expect_none(f, 0);
		assert_int_equal(rd(f, 0, LAPIC_TMCCT), 1);
		fx_advance(f, 1);
		assert_int_equal(rd(f, 0, LAPIC_TMCCT), 1000000);
		expect_vector(f, 0, 0x40);
	}
	/* Late by 3.25 periods: one interrupt, and the phase is kept. */
	fx_jump(f, 3250000);
	expect_vector(f, 0, 0x40);
	expect_none(f, 0);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 750000);
	fx_advance(f, 749999);
	expect_none(f, 0);
	fx_advance(f, 1);
	expect_vector(f, 0, 0x40);
	/* Not served yet: the current count is periodic all the same. */
	fx_sleep(2300000);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 700000);
	fx_sleep(700000);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 1000000);
	fx_sleep(300000);
	fx_jump(f, 0);
	expect_vector(f, 0, 0x40);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 700000);
	/* A write of the initial count starts a new period. */
	wr(f, 0, LAPIC_TMICT, 1000000);
	assert_int_equal(timer_queue_deadline(&f->q), fx_now() + 1000000);
	/* To one-shot: the count in progress is the last. */
	wr(f, 0, LAPIC_LVT_TIMER, 0x40);
	fx_advance(f, 1000000);
	expect_vector(f, 0, 0x40);
	fx_advance(f, 10000000);
	expect_none(f, 0);
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	/* Back to periodic with the count at 0: reloaded. */
	wr(f, 0, LAPIC_LVT_TIMER, 0x20040);
	fx_advance(f, 1000000);
	expect_vector(f, 0, 0x40);
	fx_advance(f, 1000000);
	expect_vector(f, 0, 0x40);
}

static void timer_periodic_floor(void **state)
{
	struct fx *f = *state;
	unsigned fired = 0;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_TIMER, 0x20040);
	wr(f, 0, LAPIC_TDCR, 0xb);
	wr(f, 0, LAPIC_TMICT, 1);
	for (unsigned i = 0; i < 1000; i++) {
		fx_advance(f, 1000);
		if (irqchip_ack(f->c, 0) >= 0)
			fired++;
		wr(f, 0, LAPIC_EOI, 0);
		assert_true(rd(f, 0, LAPIC_TMCCT) <= 1);
	}
	assert_int_equal(fired, 1000000 / IRQCHIP_MIN_PERIOD_NS);
}

static void timer_tsc_deadline(void **state)
{
	struct fx *f = *state;
	uint64_t v = 1, tsc = (uint64_t)fx_now() * 2;

	wr(f, 0, LAPIC_SVR, 0x1ff);
	/* Not in deadline mode: writes are ignored. */
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, tsc + 1000));
	assert_true(lapic_msr_read(f->c, 0, TSC_DEADLINE, &v));
	assert_int_equal(v, 0);
	wr(f, 0, LAPIC_TMICT, 1000);
	wr(f, 0, LAPIC_LVT_TIMER, 0x40040); /* the change of mode disarms */
	assert_int_equal(rd(f, 0, LAPIC_TMICT), 0);
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	wr(f, 0, LAPIC_TMICT, 1000); /* ignored in this mode */
	assert_int_equal(rd(f, 0, LAPIC_TMICT), 0);
	assert_int_equal(rd(f, 0, LAPIC_TMCCT), 0);
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, tsc + 2000001));
	assert_true(lapic_msr_read(f->c, 0, TSC_DEADLINE, &v));
	assert_int_equal(v, tsc + 2000001);
	fx_advance(f, 1000000);
	expect_none(f, 0); /* never early */
	fx_advance(f, 1);
	expect_vector(f, 0, 0x40);
	assert_true(lapic_msr_read(f->c, 0, TSC_DEADLINE, &v));
	assert_int_equal(v, 0);
	/* The clocks drift: the TSC decides. */
	tsc = (uint64_t)fx_now() * 2;
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, tsc + 2000000));
	fx_delay_tsc(500);
	fx_advance(f, 1000499);
	expect_none(f, 0);
	fx_advance(f, 3);
	expect_vector(f, 0, 0x40);
	/* In the past: at once. */
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, 1));
	fx_advance(f, 0);
	expect_vector(f, 0, 0x40);
	/* 0 disarms; the far end of time does not overflow. */
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, UINT64_MAX));
	assert_true(timer_queue_deadline(&f->q) > INT64_MAX / 8);
	fx_advance(f, 1000000000);
	expect_none(f, 0);
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, 0));
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	/* Mode 3 is reserved: nothing runs. */
	wr(f, 0, LAPIC_LVT_TIMER, 0x60040);
	wr(f, 0, LAPIC_TMICT, 1000);
	fx_advance(f, 5000);
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, 1));
	fx_advance(f, 5000);
	expect_none(f, 0);
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
}

static void timer_x2apic_and_disable(void **state)
{
	struct fx *f = *state;
	uint64_t v;

	to_x2apic(f, 0);
	assert_true(lapic_msr_write(f->c, 0, MSR(LAPIC_SVR), 0x1ff));
	assert_true(lapic_msr_write(f->c, 0, MSR(LAPIC_LVT_TIMER), 0x40));
	assert_true(lapic_msr_write(f->c, 0, MSR(LAPIC_TDCR), 0xb));
	assert_true(lapic_msr_write(f->c, 0, MSR(LAPIC_TMICT), 5000));
	fx_advance(f, 2000);
	assert_true(lapic_msr_read(f->c, 0, MSR(LAPIC_TMCCT), &v));
	assert_int_equal(v, 3000);
	fx_advance(f, 3000);
	expect_ack(f, 0, 0x40);
	assert_true(lapic_msr_write(f->c, 0, MSR(LAPIC_EOI), 0));
	assert_true(lapic_msr_write(f->c, 0, MSR(LAPIC_TMICT), 5000));
	assert_true(lapic_base_write(f->c, 0, 0xfee00000)); /* off: the timer is gone */
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	assert_true(lapic_msr_write(f->c, 0, TSC_DEADLINE, 1));
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
}

static void set_up_errors(void **state)
{
	struct fx *f = *state;
	struct irqchip_config cfg = f->c->cfg;
	struct error err = {0};

	cfg.ncpus = 0;
	assert_null(irqchip_new(&cfg, f->bus, &err));
	cfg.ncpus = 256;
	assert_null(irqchip_new(&cfg, f->bus, &err));
	assert_non_null(strstr(err.msg, "256 CPUs"));
	cfg.ncpus = 1;
	cfg.tsc_khz = 0;
	assert_null(irqchip_new(&cfg, f->bus, &err));
	assert_non_null(strstr(err.msg, "TSC"));
	cfg.tsc_khz = 1;
	assert_null(irqchip_new(&cfg, f->bus, &err)); /* the bus has them already */
	assert_non_null(strstr(err.msg, "overlaps"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IRQ_TEST(set_up_errors),
		IRQ_TEST(reset_values),
		IRQ_TEST(xapic_write_masks),
		IRQ_TEST(access_sizes),
		IRQ_TEST(base_transitions),
		IRQ_TEST(x2apic_msrs),
		IRQ_TEST(x2apic_reserved_bits),
		IRQ_TEST(priorities),
		IRQ_TEST(software_disable),
		IRQ_TEST(errors),
		IRQ_TEST(init_keeps_mode),
		IRQ_TEST(timer_divisors),
		IRQ_TEST(timer_one_shot_stop_and_divisor_change),
		IRQ_TEST(timer_periodic),
		IRQ_TEST(timer_periodic_floor),
		IRQ_TEST(timer_tsc_deadline),
		IRQ_TEST(timer_x2apic_and_disable),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
