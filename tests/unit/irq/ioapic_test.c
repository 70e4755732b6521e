/* IOAPIC registers, level and edge pins, EOI. */
#include "fixture.h"

#define BASE 0xfec00000u
#define MASKED 0x10000u
#define LEVEL 0x8000u
#define REMOTE_IRR 0x4000u

static uint32_t get(struct fx *f, uint8_t r)
{
	bus_write(f->bus, BUS_MMIO, BASE, 4, r);
	return (uint32_t)bus_read(f->bus, BUS_MMIO, BASE + 0x10, 4);
}

static void set(struct fx *f, uint8_t r, uint32_t v)
{
	bus_write(f->bus, BUS_MMIO, BASE, 4, r);
	bus_write(f->bus, BUS_MMIO, BASE + 0x10, 4, v);
}

static uint32_t low(struct fx *f, unsigned pin) { return get(f, (uint8_t)(0x10 + 2 * pin)); }

static void route(struct fx *f, unsigned pin, uint8_t dest, uint32_t entry)
{
	set(f, (uint8_t)(0x11 + 2 * pin), (uint32_t)dest << 24);
	set(f, (uint8_t)(0x10 + 2 * pin), entry);
}

static void registers(void **state)
{
	struct fx *f = *state;

	assert_int_equal(get(f, 0), 0);
	assert_int_equal(get(f, 1), 0x00170011);
	set(f, 1, 0xffffffff);
	assert_int_equal(get(f, 1), 0x00170011);
	set(f, 0, 0xffffffff);
	assert_int_equal(get(f, 0), 0x0f000000);
	assert_int_equal(get(f, 2), 0x0f000000);
	set(f, 2, 0);
	assert_int_equal(get(f, 2), 0x0f000000);
	for (unsigned pin = 0; pin < 24; pin++) {
		uint8_t r = (uint8_t)(0x10 + 2 * pin);

		assert_int_equal(get(f, r), MASKED);
		assert_int_equal(get(f, r + 1), 0);
		set(f, r, 0xffffffff);
		set(f, r + 1, 0xffffffff);
		assert_int_equal(get(f, r), 0x1afff); /* status and remote IRR are read-only */
		assert_int_equal(get(f, r + 1), 0xff000000);
		set(f, r, MASKED);
		set(f, r + 1, 0);
		assert_int_equal(get(f, r), MASKED);
	}
	for (unsigned r = 3; r < 0x100; r++) {
		if (r >= 0x10 && r < 0x40)
			continue;
		set(f, (uint8_t)r, 0xffffffff);
		assert_int_equal(get(f, (uint8_t)r), 0xffffffff);
	}
	/* IOREGSEL is 8 bits wide and readable; other offsets are nothing. */
	bus_write(f->bus, BUS_MMIO, BASE, 4, 0xabcd1234);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE, 4), 0x34);
	bus_write(f->bus, BUS_MMIO, BASE + 0x40, 4, 0);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE + 0x20, 4), 0);
	bus_write(f->bus, BUS_MMIO, BASE, 8, 0x01);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE + 0x10, 8), 0x00170011);
	assert_int_equal(bus_read(f->bus, BUS_MMIO, BASE + 0x10, 1), 0x11);
}

static void edge(void **state)
{
	struct fx *f = *state;

	enable_all(f);
	wr(f, 0, LAPIC_LVT_LINT0, MASKED); /* the PIC gets the same lines */
	route(f, 5, 1, 0x45);
	gsi(f, 5, true);
	assert_int_equal(low(f, 5), 0x45); /* no remote IRR */
	assert_false(in_reg(f, 1, LAPIC_TMR, 0x45));
	expect_vector(f, 1, 0x45);
	gsi(f, 5, true); /* no new edge */
	expect_none(f, 1);
	gsi(f, 5, false);
	gsi(f, 5, true);
	expect_vector(f, 1, 0x45);
	gsi(f, 5, false);
	/* An edge on a masked pin is lost. */
	route(f, 5, 1, 0x45 | MASKED);
	gsi(f, 5, true);
	route(f, 5, 1, 0x45);
	expect_none(f, 1);
	/* gsi 0 is pin 2, gsi 2 is nothing, pin 0 is open. */
	for (unsigned pin = 0; pin < 24; pin++)
		route(f, pin, 0, 0x40 + pin);
	gsi(f, 2, true);
	expect_none(f, 0);
	gsi(f, 0, true);
	expect_vector(f, 0, 0x42);
	for (unsigned n = 1; n < 24; n++) {
		if (n == 2)
			continue;
		gsi(f, n, false);
		gsi(f, n, true);
		expect_vector(f, 0, (int)(0x40 + n));
	}
	gsi(f, 24, true); /* no such line */
	gsi(f, UINT32_MAX, true);
	expect_none(f, 0);
}

static void level(void **state)
{
	struct fx *f = *state;

	enable_all(f);
	route(f, 20, 1, 0x54 | LEVEL);
	gsi(f, 20, true);
	assert_int_equal(low(f, 20), 0x54 | LEVEL | REMOTE_IRR);
	assert_true(in_reg(f, 1, LAPIC_TMR, 0x54));
	expect_ack(f, 1, 0x54);
	gsi(f, 20, false);
	gsi(f, 20, true); /* in service: no second interrupt */
	expect_none(f, 1);
	route(f, 20, 1, 0x54 | LEVEL); /* nor by a write of the entry */
	assert_int_equal(low(f, 20), 0x54 | LEVEL | REMOTE_IRR);
	expect_none(f, 1);
	/* The EOI of another vector is not its own. */
	route(f, 21, 1, 0x64 | LEVEL);
	gsi(f, 21, true);
	gsi(f, 21, false);
	expect_vector(f, 1, 0x64);
	assert_int_equal(low(f, 21), 0x64 | LEVEL);
	assert_int_equal(low(f, 20), 0x54 | LEVEL | REMOTE_IRR);
	wr(f, 1, LAPIC_EOI, 0); /* still asserted: again */
	assert_int_equal(low(f, 20), 0x54 | LEVEL | REMOTE_IRR);
	expect_ack(f, 1, 0x54);
	gsi(f, 20, false);
	wr(f, 1, LAPIC_EOI, 0);
	assert_int_equal(low(f, 20), 0x54 | LEVEL);
	expect_none(f, 1);
	/* Masked while asserted: comes with the unmasking. */
	route(f, 20, 1, 0x54 | LEVEL | MASKED);
	gsi(f, 20, true);
	expect_none(f, 1);
	route(f, 20, 1, 0x54 | LEVEL);
	expect_ack(f, 1, 0x54);
	/* Remote IRR is cleared by a switch to edge and back (there is no EOI register in version 0x11). */
	gsi(f, 20, false);
	route(f, 20, 1, 0x54 | MASKED);
	assert_int_equal(low(f, 20), 0x54 | MASKED);
	route(f, 20, 1, 0x54 | LEVEL);
	assert_int_equal(low(f, 20), 0x54 | LEVEL);
	wr(f, 1, LAPIC_EOI, 0);
	/* An EOI of an edge interrupt with the same vector is not broadcast. */
	gsi(f, 20, true);
	expect_ack(f, 1, 0x54);
	wr(f, 0, LAPIC_ICR2, 0);
	wr(f, 0, LAPIC_ICR, 0x54 | BIT(18));
	gsi(f, 20, false);
	expect_vector(f, 0, 0x54);
	assert_int_equal(low(f, 20), 0x54 | LEVEL | REMOTE_IRR);
}

/* A refused level interrupt comes when somebody can take it. */
static void level_refused(void **state)
{
	struct fx *f = *state;

	route(f, 20, 1, 0x54 | LEVEL);
	gsi(f, 20, true);
	assert_int_equal(low(f, 20), 0x54 | LEVEL);
	wr(f, 1, LAPIC_SVR, 0x1ff);
	assert_int_equal(low(f, 20), 0x54 | LEVEL | REMOTE_IRR);
	expect_ack(f, 1, 0x54);
	/* Logical: when the LDR is set. */
	route(f, 21, 0x40, 0x55 | LEVEL | BIT(11));
	gsi(f, 21, true);
	expect_none(f, 1);
	wr(f, 1, LAPIC_EOI, 0);
	gsi(f, 20, false);
	expect_vector(f, 1, 0x54);
	wr(f, 1, LAPIC_LDR, 0x40000000);
	expect_ack(f, 1, 0x55);
	/* An illegal vector is an error at the CPU and no request in service. */
	route(f, 22, 1, 0x05 | LEVEL);
	gsi(f, 22, true);
	assert_int_equal(low(f, 22), 0x05 | LEVEL);
	wr(f, 1, LAPIC_ESR, 0);
	assert_int_equal(rd(f, 1, LAPIC_ESR), 0x40);
}

static void two_pins_one_vector(void **state)
{
	struct fx *f = *state;

	enable_all(f);
	route(f, 18, 0, 0x60 | LEVEL);
	route(f, 19, 0, 0x60 | LEVEL);
	gsi(f, 18, true);
	gsi(f, 19, true);
	expect_ack(f, 0, 0x60);
	gsi(f, 18, false);
	wr(f, 0, LAPIC_EOI, 0); /* ends both; 19 asks again */
	assert_int_equal(low(f, 18), 0x60 | LEVEL);
	assert_int_equal(low(f, 19), 0x60 | LEVEL | REMOTE_IRR);
	expect_ack(f, 0, 0x60);
}

static void modes(void **state)
{
	struct fx *f = *state;

	enable_all(f);
	route(f, 16, 2, DM_NMI << 8);
	gsi(f, 16, true);
	assert_int_equal(f->nmis[2], 1);
	route(f, 17, 2, DM_INIT << 8 | LEVEL); /* level has no meaning here: one per edge */
	gsi(f, 17, true);
	assert_int_equal(f->inits[2], 1);
	wr(f, 2, LAPIC_SVR, 0x1ff);
	assert_int_equal(f->inits[2], 1);
	route(f, 18, 0xff, DM_FIXED << 8 | 0x61);
	gsi(f, 18, true);
	for (unsigned i = 0; i < FX_CPUS; i++)
		expect_vector(f, i, 0x61);
	for (unsigned mode = 2; mode < 8; mode++) { /* SMI, reserved, SIPI, ExtINT */
		if (mode == DM_NMI || mode == DM_INIT)
			continue;
		route(f, 19, 1, mode << 8 | 0x62);
		gsi(f, 19, true);
		gsi(f, 19, false);
		expect_none(f, 1);
		assert_int_equal(f->sipis[1], 0);
	}
	route(f, 20, 0xff, DM_LOWEST << 8 | 0x63);
	gsi(f, 20, true);
	expect_vector(f, 0x63 % FX_CPUS, 0x63);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IRQ_TEST(registers),	       IRQ_TEST(edge),	IRQ_TEST(level), IRQ_TEST(level_refused),
		IRQ_TEST(two_pins_one_vector), IRQ_TEST(modes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
