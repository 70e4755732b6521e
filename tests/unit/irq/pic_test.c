/* The 8259A pair: every command word, priorities, cascade, level pins, and how INTR reaches a CPU. */
#include "fixture.h"

#define M 0x20
#define S 0xa0
#define MASK_ALL_BUT(n) ((uint8_t) ~(1u << (n)))

/* ICW1-4 of one chip; ICW4 says what. */
static void init(struct fx *f, uint16_t port, uint8_t base, uint8_t icw4)
{
	out8(f, port, 0x11);
	out8(f, port + 1, base);
	out8(f, port + 1, port == M ? 4 : 2);
	out8(f, port + 1, icw4);
}

static void init_both(struct fx *f)
{
	init(f, M, 0x20, 0x01);
	init(f, S, 0x28, 0x01);
}

static uint8_t irr(struct fx *f, uint16_t port)
{
	out8(f, port, 0x0a);
	return in8(f, port);
}

static uint8_t isr(struct fx *f, uint16_t port)
{
	out8(f, port, 0x0b);
	return in8(f, port);
}

static void pulse(struct fx *f, unsigned n)
{
	gsi(f, n, true);
	gsi(f, n, false);
}

static void initialization(void **state)
{
	struct fx *f = *state;

	out8(f, M + 1, 0x5a);
	assert_int_equal(in8(f, M + 1), 0x5a);
	/* ICW1 clears mask, service, special mask and the request latches of edge pins; the vector's low bits are the
	 * pin. */
	pulse(f, 3);
	assert_int_equal(irr(f, M), 0x08);
	init(f, M, 0x37, 0x01);
	assert_int_equal(in8(f, M + 1), 0);
	assert_int_equal(in8(f, M), 0); /* status read selects IRR */
	assert_int_equal(isr(f, M), 0);
	pulse(f, 3);
	expect_ack(f, 0, 0x33);
	init(f, M, 0x20, 0x01);
	assert_int_equal(isr(f, M), 0);
	/* Without ICW4: three words, then OCW1. All that ICW4 sets is off. */
	init(f, M, 0x20, 0x13); /* SFNM, AEOI */
	out8(f, M, 0x10);
	out8(f, M + 1, 0x40);
	out8(f, M + 1, 0x04);
	out8(f, M + 1, 0xf7);
	assert_int_equal(in8(f, M + 1), 0xf7);
	pulse(f, 3);
	expect_ack(f, 0, 0x43);
	assert_int_equal(isr(f, M), 0x08);
	/* Single: no ICW3. */
	out8(f, M, 0x13);
	out8(f, M + 1, 0x48);
	out8(f, M + 1, 0x01);
	out8(f, M + 1, 0xab);
	assert_int_equal(in8(f, M + 1), 0xab);
	out8(f, M, 0x12);
	out8(f, M + 1, 0x48);
	out8(f, M + 1, 0xcd);
	assert_int_equal(in8(f, M + 1), 0xcd);
	/* A line that stays high through ICW1 makes no edge (edge-sense reset). */
	gsi(f, 4, true);
	init(f, M, 0x20, 0x01);
	gsi(f, 4, true);
	assert_int_equal(irr(f, M), 0);
	gsi(f, 4, false);
	gsi(f, 4, true);
	assert_int_equal(irr(f, M), 0x10);
}

static void fully_nested(void **state)
{
	struct fx *f = *state;

	init_both(f);
	pulse(f, 5);
	pulse(f, 3);
	assert_int_equal(irr(f, M), 0x28);
	expect_ack(f, 0, 0x23);
	assert_int_equal(irr(f, M), 0x20);
	assert_int_equal(isr(f, M), 0x08);
	expect_none(f, 0); /* 5 is lower */
	pulse(f, 3);
	expect_none(f, 0); /* equal */
	pulse(f, 1);
	expect_ack(f, 0, 0x21);
	assert_int_equal(isr(f, M), 0x0a);
	out8(f, M, 0x20); /* non-specific: the highest, 1 */
	assert_int_equal(isr(f, M), 0x08);
	out8(f, M, 0x63); /* specific 3 */
	expect_ack(f, 0, 0x23);
	out8(f, M, 0x20);
	expect_ack(f, 0, 0x25);
	out8(f, M, 0x20);
	out8(f, M, 0x20); /* nothing in service: nothing */
	expect_none(f, 0);
	/* OCW1 holds back, and lets go later. */
	out8(f, M + 1, 0x80);
	pulse(f, 7);
	expect_none(f, 0);
	assert_int_equal(irr(f, M), 0x80);
	out8(f, M + 1, 0);
	expect_ack(f, 0, 0x27);
}

static void cascade(void **state)
{
	struct fx *f = *state;

	init_both(f);
	pulse(f, 12);
	assert_int_equal(irr(f, S), 0x10);
	assert_int_equal(irr(f, M), 0x04);
	expect_ack(f, 0, 0x2c);
	assert_int_equal(isr(f, M), 0x04);
	assert_int_equal(isr(f, S), 0x10);
	/* Within the slave a higher one waits for the master's EOI of its cascade pin. */
	pulse(f, 9);
	expect_none(f, 0);
	pulse(f, 1);
	expect_ack(f, 0, 0x21);
	out8(f, M, 0x20);
	out8(f, M, 0x20);
	expect_ack(f, 0, 0x29);
	out8(f, S, 0x20);
	out8(f, S, 0x20);
	out8(f, M, 0x20);
	assert_int_equal(isr(f, S), 0);
	expect_none(f, 0);
	/* The slave masked at the master, and itself. */
	out8(f, M + 1, 0x04);
	pulse(f, 8);
	expect_none(f, 0);
	out8(f, S + 1, 0x01);
	out8(f, M + 1, 0);
	expect_none(f, 0);
	out8(f, S + 1, 0);
	expect_ack(f, 0, 0x28);
}

/* SFNM: a higher request of the slave interrupts the slave's own service; others keep their place. */
static void special_fully_nested(void **state)
{
	struct fx *f = *state;

	init(f, M, 0x20, 0x11);
	init(f, S, 0x28, 0x01);
	pulse(f, 12);
	expect_ack(f, 0, 0x2c);
	pulse(f, 3);
	expect_none(f, 0); /* IR3 ranks below the slave in service */
	pulse(f, 13);
	expect_none(f, 0); /* lower within the slave */
	pulse(f, 9);
	expect_ack(f, 0, 0x29);
	assert_int_equal(isr(f, S), 0x12);
	/* The mode is the master's: a slave with the bit set treats its own pin 2 like any other. */
	init(f, S, 0x28, 0x11);
	out8(f, M, 0x20);
	pulse(f, 10);
	expect_ack(f, 0, 0x2a);
	pulse(f, 10);
	expect_none(f, 0);
}

static void auto_eoi(void **state)
{
	struct fx *f = *state;

	init(f, M, 0x20, 0x03);
	pulse(f, 3);
	expect_ack(f, 0, 0x23);
	assert_int_equal(isr(f, M), 0);
	/* Rotating: the one served becomes the lowest. */
	out8(f, M, 0x80);
	pulse(f, 1);
	expect_ack(f, 0, 0x21);
	pulse(f, 1);
	pulse(f, 6);
	expect_ack(f, 0, 0x26);
	pulse(f, 0);
	expect_ack(f, 0, 0x20);
	expect_ack(f, 0, 0x21);
	pulse(f, 5);
	expect_ack(f, 0, 0x25); /* now 6 is the highest */
	pulse(f, 0);
	pulse(f, 6);
	expect_ack(f, 0, 0x26);
	expect_ack(f, 0, 0x20);
	pulse(f, 1);
	expect_ack(f, 0, 0x21);
	/* Rotation off: the order stays where it is (2 is the highest now). */
	out8(f, M, 0x00);
	pulse(f, 1);
	pulse(f, 3);
	expect_ack(f, 0, 0x23);
	expect_ack(f, 0, 0x21);
	pulse(f, 1);
	pulse(f, 3);
	expect_ack(f, 0, 0x23);
	expect_ack(f, 0, 0x21);
}

static void rotation(void **state)
{
	struct fx *f = *state;

	init_both(f);
	out8(f, M, 0xc4); /* set priority: 4 is the lowest, 5 the highest */
	pulse(f, 4);
	pulse(f, 0);
	pulse(f, 5);
	expect_ack(f, 0, 0x25);
	out8(f, M, 0x20);
	expect_ack(f, 0, 0x20);
	out8(f, M, 0x20);
	expect_ack(f, 0, 0x24);
	out8(f, M, 0xa0); /* rotate on non-specific EOI: 4 the lowest already */
	pulse(f, 6);
	expect_ack(f, 0, 0x26);
	out8(f, M, 0xa0); /* 6 becomes the lowest */
	pulse(f, 6);
	pulse(f, 5);
	pulse(f, 7);
	expect_ack(f, 0, 0x27);
	out8(f, M, 0xe5); /* rotate on specific EOI of 5 (not in service): 5 the lowest; 7 stays in service */
	assert_int_equal(isr(f, M), 0x80);
	expect_ack(f, 0, 0x26);
	out8(f, M, 0x66);
	out8(f, M, 0x67);
	expect_ack(f, 0, 0x25);
	/* 0x40 is no operation. */
	out8(f, M, 0x45);
	assert_int_equal(isr(f, M), 0x20);
}

static void special_mask(void **state)
{
	struct fx *f = *state;

	init_both(f);
	pulse(f, 3);
	expect_ack(f, 0, 0x23);
	pulse(f, 5);
	expect_none(f, 0);
	out8(f, M + 1, 0x08); /* mask the level in service */
	expect_none(f, 0);
	out8(f, M, 0x68); /* special mask mode: lower ones come through */
	expect_ack(f, 0, 0x25);
	out8(f, M, 0x20); /* non-specific EOI leaves the masked level alone */
	assert_int_equal(isr(f, M), 0x08);
	out8(f, M, 0x20);
	assert_int_equal(isr(f, M), 0x08);
	out8(f, M, 0x08); /* ESMM clear: unchanged */
	pulse(f, 6);
	expect_ack(f, 0, 0x26);
	out8(f, M, 0x66);
	out8(f, M, 0x48); /* off */
	pulse(f, 6);
	expect_none(f, 0);
	out8(f, M, 0x63);
	expect_ack(f, 0, 0x26);
}

static void poll(void **state)
{
	struct fx *f = *state;

	init_both(f);
	out8(f, M, 0x0c);
	assert_int_equal(in8(f, M) & 0x80, 0); /* nothing */
	assert_int_equal(in8(f, M), 0);	       /* one read only */
	pulse(f, 6);
	out8(f, M, 0x0c);
	assert_int_equal(in8(f, M), 0x86);
	assert_int_equal(isr(f, M), 0x40); /* the read was the INTA */
	expect_none(f, 0);
	out8(f, M, 0x20);
	pulse(f, 0);
	out8(f, M, 0x0c);
	assert_int_equal(in8(f, M), 0x80);
	out8(f, M, 0x20);
	pulse(f, 13);
	out8(f, S, 0x0c);
	assert_int_equal(in8(f, S), 0x85);
	assert_int_equal(isr(f, S), 0x20);
	assert_int_equal(irr(f, M), 0);
	expect_none(f, 0);
}

static void level_pins(void **state)
{
	struct fx *f = *state;

	out8(f, 0x4d0, 0xff);
	out8(f, 0x4d1, 0xff);
	assert_int_equal(in8(f, 0x4d0), 0xf8);
	assert_int_equal(in8(f, 0x4d1), 0xde);
	assert_int_equal(bus_read(f->bus, BUS_PIO, 0x4d0, 2), 0xdef8);
	bus_write(f->bus, BUS_PIO, 0x4d0, 2, 0x0820); /* 5 and 11 */
	init_both(f);
	gsi(f, 11, true);
	expect_ack(f, 0, 0x2b);
	assert_int_equal(irr(f, S), 0x08); /* the line is still up */
	out8(f, S, 0x20);
	out8(f, M, 0x20);
	expect_ack(f, 0, 0x2b);
	gsi(f, 11, false);
	out8(f, S, 0x20);
	out8(f, M, 0x20);
	expect_none(f, 0);
	/* A write of the register leaves the latches of edge pins alone. */
	gsi(f, 3, true);
	bus_write(f->bus, BUS_PIO, 0x4d0, 2, 0x0820);
	expect_ack(f, 0, 0x23);
	out8(f, M, 0x20);
	/* A request that goes away before INTA was none. */
	gsi(f, 5, true);
	gsi(f, 5, false);
	expect_none(f, 0);
	/* Through ICW1 a level pin keeps asking. */
	gsi(f, 5, true);
	init(f, M, 0x20, 0x01);
	expect_ack(f, 0, 0x25);
	out8(f, M, 0x20);
	out8(f, 0x4d0, 0); /* becomes an edge pin: no edge, no request */
	expect_none(f, 0);
	out8(f, 0x4d0, 0x20);
	expect_ack(f, 0, 0x25);
}

/* LINT0 as ExtINT; the APIC off; LINT0 as a vector of its own. */
static void wires(void **state)
{
	struct fx *f = *state;

	init_both(f);
	/* Out of reset: CPU 0 by ExtINT, the others not at all. */
	pulse(f, 3);
	assert_int_equal(f->kicks[0], 1);
	expect_none(f, 1);
	lapic_set_cr8(f->c, 0, 15); /* ExtINT does not look at priorities */
	expect_ack(f, 0, 0x23);
	out8(f, M, 0x20);
	lapic_set_cr8(f->c, 0, 0);
	/* The LAPIC off: straight to the CPU. */
	wr(f, 0, LAPIC_LVT_LINT0, 0x10700);
	pulse(f, 3);
	expect_none(f, 0);
	assert_true(lapic_base_write(f->c, 0, 0xfee00100));
	expect_ack(f, 0, 0x23);
	out8(f, M, 0x20);
	assert_true(lapic_base_write(f->c, 0, 0xfee00900));
	/* ExtINT goes first. */
	wr(f, 0, LAPIC_SVR, 0x1ff);
	wr(f, 0, LAPIC_LVT_LINT0, 0x00700);
	wr(f, 0, LAPIC_ICR, 0x400f0);
	pulse(f, 4);
	expect_ack(f, 0, 0x24);
	expect_vector(f, 0, 0xf0);
	out8(f, M, 0x20);
	/* Fixed, edge: INTR's rising edge is a vector; nobody does INTA. */
	wr(f, 0, LAPIC_LVT_LINT0, 0x00055);
	pulse(f, 4);
	expect_vector(f, 0, 0x55);
	assert_int_equal(isr(f, M), 0);
	expect_none(f, 0);
	out8(f, M + 1, 0x10); /* INTR falls */
	wr(f, 0, LAPIC_LVT_LINT0, 0x00400);
	out8(f, M + 1, 0); /* and rises */
	assert_int_equal(f->nmis[0], 1);
	/* Fixed, level: again after EOI while INTR is up; remote IRR shows. */
	out8(f, M + 1, 0xff);
	wr(f, 0, LAPIC_LVT_LINT0, 0x08056);
	out8(f, M + 1, 0);
	assert_int_equal(rd(f, 0, LAPIC_LVT_LINT0), 0x0c056);
	expect_vector(f, 0, 0x56);
	expect_ack(f, 0, 0x56);
	out8(f, M + 1, 0xff);
	wr(f, 0, LAPIC_EOI, 0);
	expect_none(f, 0);
	assert_int_equal(rd(f, 0, LAPIC_LVT_LINT0), 0x08056);
}

static void spurious(void **state)
{
	struct fx *f = *state;

	init_both(f);
	assert_int_equal(pic_inta(&f->c->pic), 0x27);
	assert_int_equal(isr(f, M), 0);
	/* The slave's request vanishes with INTR up: here INTR falls with it, so there is no spurious 15 either. */
	out8(f, 0x4d1, 0x08);
	gsi(f, 11, true);
	gsi(f, 11, false);
	assert_int_equal(irqchip_ack(f->c, 0), -1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IRQ_TEST(initialization), IRQ_TEST(fully_nested),
		IRQ_TEST(cascade),	  IRQ_TEST(special_fully_nested),
		IRQ_TEST(auto_eoi),	  IRQ_TEST(rotation),
		IRQ_TEST(special_mask),	  IRQ_TEST(poll),
		IRQ_TEST(level_pins),	  IRQ_TEST(wires),
		IRQ_TEST(spurious),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
