/*
 * The chips on a bus of their own, with a clock that stands still until a test moves it, and a record of the up-calls.
 */
#ifndef TEST_IRQ_FIXTURE_H
#define TEST_IRQ_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "irq/irqchip_int.h"

#define FX_CPUS 4
#define FX_TSC_KHZ 2000000 /* the guest's TSC is 2 * ns */

struct fx {
	struct irqchip *c;
	struct bus *bus;
	struct timer_queue q;
	unsigned kicks[FX_CPUS], nmis[FX_CPUS], inits[FX_CPUS], sipis[FX_CPUS];
	uint8_t sipi_vector[FX_CPUS];
};

/* cmocka setup and teardown; *state is the struct fx. */
int fx_setup(void **state);
int fx_teardown(void **state);

int64_t fx_now(void);
/* Move the clock, serving every timer at its very deadline. */
void fx_advance(struct fx *f, int64_t ns);
/* Move the clock at once, then serve the timers: they are late. */
void fx_jump(struct fx *f, int64_t ns);
/* Move the clock and serve nothing. */
void fx_sleep(int64_t ns);
/* Stop the guest's TSC for so long: the host's clock gets ahead of it. */
void fx_delay_tsc(int64_t ns);

static inline void out8(struct fx *f, uint16_t port, uint8_t v) { bus_write(f->bus, BUS_PIO, port, 1, v); }
static inline uint8_t in8(struct fx *f, uint16_t port) { return (uint8_t)bus_read(f->bus, BUS_PIO, port, 1); }
static inline uint32_t rd(struct fx *f, unsigned cpu, unsigned r)
{
	return (uint32_t)lapic_mmio_read(f->c, cpu, r * 16, 4);
}
static inline void wr(struct fx *f, unsigned cpu, unsigned r, uint32_t v) { lapic_mmio_write(f->c, cpu, r * 16, 4, v); }
static inline bool in_reg(struct fx *f, unsigned cpu, unsigned base, uint8_t vector)
{
	return rd(f, cpu, base + vector / 32) & (1u << (vector % 32));
}
static inline void gsi(struct fx *f, unsigned n, bool level)
{
	const struct irq_sink *s = irqchip_sink(f->c);

	s->set_gsi(s->ctx, n, level);
}
/* Software-enable the local APICs. */
static inline void enable_all(struct fx *f)
{
	for (unsigned i = 0; i < FX_CPUS; i++)
		wr(f, i, LAPIC_SVR, 0x1ff);
}
/* Acknowledge, expecting this vector, and check that hint and pending agree. */
#define expect_ack(f, cpu, vector)                                                                                     \
	do {                                                                                                           \
		assert_true(irqchip_hint((f)->c, cpu));                                                                \
		assert_true(irqchip_pending((f)->c, cpu));                                                             \
		assert_int_equal(irqchip_ack((f)->c, cpu), vector);                                                    \
	} while (0)
#define expect_none(f, cpu)                                                                                            \
	do {                                                                                                           \
		assert_false(irqchip_hint((f)->c, cpu));                                                               \
		assert_false(irqchip_pending((f)->c, cpu));                                                            \
		assert_int_equal(irqchip_ack((f)->c, cpu), -1);                                                        \
	} while (0)
/* Like expect_ack, followed by an EOI. */
#define expect_vector(f, cpu, vector)                                                                                  \
	do {                                                                                                           \
		expect_ack(f, cpu, vector);                                                                            \
		wr(f, cpu, LAPIC_EOI, 0);                                                                              \
	} while (0)

#define IRQ_TEST(fn) cmocka_unit_test_setup_teardown(fn, fx_setup, fx_teardown)

#endif
