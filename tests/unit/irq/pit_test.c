/* The 8254 and port 0x61, mode by mode as in the data sheet. Channel 2 has a gate; its OUT is bit 5 of port 0x61. */
#include "fixture.h"

#define HZ 1193182

static int64_t start; /* of the tick count below */

/* The clock stands at the beginning of tick n after `start`. */
static void at_tick(struct fx *f, int64_t n)
{
	int64_t at = start + (n * 1000000000 + HZ - 1) / HZ;

	fx_advance(f, at - fx_now());
}

static void begin(void) { start = fx_now(); }
static bool out2(struct fx *f) { return in8(f, 0x61) & 0x20; }
static void gate2(struct fx *f, bool on) { out8(f, 0x61, on); }

/* Control word for both bytes, then the count. */
static void program(struct fx *f, unsigned ch, unsigned mode, bool bcd, uint16_t count)
{
	out8(f, 0x43, (uint8_t)(ch << 6 | 0x30 | mode << 1 | bcd));
	out8(f, (uint16_t)(0x40 + ch), (uint8_t)count);
	out8(f, (uint16_t)(0x40 + ch), (uint8_t)(count >> 8));
	begin();
}

static uint16_t count_of(struct fx *f, unsigned ch)
{
	uint8_t lo;

	out8(f, 0x43, (uint8_t)(ch << 6)); /* counter latch */
	lo = in8(f, (uint16_t)(0x40 + ch));
	return (uint16_t)(lo | in8(f, (uint16_t)(0x40 + ch)) << 8);
}

static uint8_t status_of(struct fx *f, unsigned ch)
{
	out8(f, 0x43, (uint8_t)(0xe0 | 2u << ch));
	return in8(f, (uint16_t)(0x40 + ch));
}

/* Rising edges of channel 0's OUT since the last call, as seen by the PIC (at most one). */
static bool ticked(struct fx *f)
{
	bool irq;

	out8(f, 0x20, 0x0a);
	irq = in8(f, 0x20) & 1;
	if (irq) {
		irqchip_ack(f->c, 0);
		out8(f, 0x20, 0x20);
	}
	return irq;
}

static void mode0(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	program(f, 2, 0, false, 1000);
	assert_false(out2(f));
	assert_int_equal(count_of(f, 2), 1000);
	at_tick(f, 400);
	assert_int_equal(count_of(f, 2), 600);
	at_tick(f, 999);
	assert_int_equal(count_of(f, 2), 1);
	assert_false(out2(f));
	at_tick(f, 1000);
	assert_true(out2(f));
	assert_int_equal(count_of(f, 2), 0);
	at_tick(f, 1001); /* wraps and goes on; OUT stays */
	assert_int_equal(count_of(f, 2), 0xffff);
	at_tick(f, 1000 + 65536 + 5);
	assert_int_equal(count_of(f, 2), 0xfffb);
	assert_true(out2(f));
	/* A new count: OUT falls with its first byte, and the count stands still until the second. */
	out8(f, 0x42, 50);
	assert_false(out2(f));
	at_tick(f, 200000);
	assert_false(out2(f));
	out8(f, 0x42, 0);
	begin();
	at_tick(f, 49);
	assert_false(out2(f));
	at_tick(f, 50);
	assert_true(out2(f));
	/* The gate suspends. */
	program(f, 2, 0, false, 1000);
	at_tick(f, 300);
	gate2(f, false);
	at_tick(f, 5000);
	assert_int_equal(count_of(f, 2), 700);
	assert_false(out2(f));
	gate2(f, true);
	begin();
	at_tick(f, 699);
	assert_false(out2(f));
	at_tick(f, 700);
	assert_true(out2(f));
	/* A count written while the gate is low is loaded and waits. */
	gate2(f, false);
	program(f, 2, 0, false, 10);
	at_tick(f, 100);
	assert_int_equal(count_of(f, 2), 10);
	gate2(f, true);
	begin();
	at_tick(f, 10);
	assert_true(out2(f));
	/* Gate low long after the terminal count (over an hour): still expired, the count still right. */
	program(f, 2, 0, false, 10);
	at_tick(f, INT64_C(5000000000));
	gate2(f, false);
	assert_true(out2(f));
	assert_int_equal(count_of(f, 2), (uint16_t)(10 - INT64_C(5000000000)));
}

static void mode1(void **state)
{
	struct fx *f = *state;

	program(f, 2, 1, false, 100);
	assert_true(out2(f));
	at_tick(f, 1000); /* no trigger, no pulse */
	assert_true(out2(f));
	gate2(f, true);
	begin();
	assert_false(out2(f));
	at_tick(f, 99);
	assert_false(out2(f));
	at_tick(f, 100);
	assert_true(out2(f));
	/* Retriggerable. */
	gate2(f, false);
	gate2(f, true);
	begin();
	at_tick(f, 60);
	gate2(f, false); /* the level of the gate has no effect */
	assert_false(out2(f));
	assert_int_equal(count_of(f, 2), 40);
	gate2(f, true);
	begin();
	at_tick(f, 99);
	assert_false(out2(f));
	gate2(f, true); /* no edge, no trigger */
	assert_false(out2(f));
	/* A new count waits for the next trigger. */
	out8(f, 0x42, 10);
	out8(f, 0x42, 0);
	assert_int_equal(status_of(f, 2) & 0x40, 0x40); /* null count */
	at_tick(f, 100);
	assert_true(out2(f));
	gate2(f, false);
	gate2(f, true);
	begin();
	assert_int_equal(status_of(f, 2) & 0x40, 0);
	at_tick(f, 9);
	assert_false(out2(f));
	at_tick(f, 10);
	assert_true(out2(f));
	/* A trigger without a count since the control word is nothing. */
	out8(f, 0x43, 0xb2);
	gate2(f, false);
	gate2(f, true);
	assert_true(out2(f));
}

static void mode2(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	program(f, 2, 2, false, 100);
	for (unsigned i = 0; i < 3; i++) {
		at_tick(f, 100 * i + 1);
		assert_int_equal(count_of(f, 2), 99);
		assert_true(out2(f));
		at_tick(f, 100 * i + 98);
		assert_true(out2(f));
		at_tick(f, 100 * i + 99); /* low for the last clock */
		assert_int_equal(count_of(f, 2), 1);
		assert_false(out2(f));
		at_tick(f, 100 * i + 100);
		assert_int_equal(count_of(f, 2), 100);
		assert_true(out2(f));
	}
	/* A new count comes at the end of the period. */
	at_tick(f, 340);
	out8(f, 0x42, 30);
	out8(f, 0x42, 0);
	assert_int_equal(status_of(f, 2) & 0x40, 0x40);
	at_tick(f, 350);
	assert_int_equal(count_of(f, 2), 50);
	at_tick(f, 400);
	assert_int_equal(count_of(f, 2), 30);
	assert_int_equal(status_of(f, 2) & 0x40, 0);
	at_tick(f, 431);
	assert_int_equal(count_of(f, 2), 29);
	gate2(f, true); /* no edge */
	assert_int_equal(count_of(f, 2), 29);
	/* The gate: OUT high at once, no counting; the rising edge reloads. */
	at_tick(f, 429 + 30);
	assert_false(out2(f));
	gate2(f, false);
	assert_true(out2(f));
	at_tick(f, 1000);
	gate2(f, true);
	begin();
	assert_int_equal(count_of(f, 2), 30);
	at_tick(f, 29);
	assert_false(out2(f));
	/* A count written with the gate low. */
	gate2(f, false);
	out8(f, 0x42, 0);
	out8(f, 0x42, 1);
	gate2(f, true);
	begin();
	assert_int_equal(count_of(f, 2), 256);
}

static void mode3(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	program(f, 2, 3, false, 100);
	for (unsigned i = 0; i < 2; i++) {
		at_tick(f, 100 * i + 10);
		assert_int_equal(count_of(f, 2), 80); /* down by two */
		at_tick(f, 100 * i + 49);
		assert_true(out2(f));
		assert_int_equal(count_of(f, 2), 2);
		at_tick(f, 100 * i + 50);
		assert_false(out2(f));
		assert_int_equal(count_of(f, 2), 100);
		at_tick(f, 100 * i + 99);
		assert_false(out2(f));
		at_tick(f, 100 * i + 100);
		assert_true(out2(f));
	}
	/* Odd: high for (n + 1) / 2, low for (n - 1) / 2; counts are even. */
	program(f, 2, 3, false, 5);
	for (int i = 0; i < 10; i++) {
		static const uint16_t counts[5] = {4, 2, 0, 4, 2};

		at_tick(f, i);
		assert_int_equal(out2(f), i % 5 < 3);
		assert_int_equal(count_of(f, 2), counts[i % 5]);
	}
	/* A new count comes at the end of the half period: here the low half is the new one. */
	program(f, 2, 3, false, 100);
	at_tick(f, 20);
	out8(f, 0x42, 40);
	out8(f, 0x42, 0);
	at_tick(f, 49);
	assert_true(out2(f));
	at_tick(f, 51);
	assert_false(out2(f));
	at_tick(f, 69);
	assert_false(out2(f));
	at_tick(f, 71);
	assert_true(out2(f));
	at_tick(f, 89);
	assert_true(out2(f));
	at_tick(f, 91);
	assert_false(out2(f));
	/* Written in the low half: from the next period. */
	program(f, 2, 3, false, 100);
	at_tick(f, 60);
	out8(f, 0x42, 40);
	out8(f, 0x42, 0);
	at_tick(f, 99);
	assert_false(out2(f));
	at_tick(f, 119);
	assert_true(out2(f));
	at_tick(f, 121);
	assert_false(out2(f));
	/* Mode codes 6 and 7 are 2 and 3. */
	program(f, 2, 7, false, 100);
	assert_int_equal(status_of(f, 2) & 0x0e, 3 << 1);
	program(f, 2, 6, false, 100);
	assert_int_equal(status_of(f, 2) & 0x0e, 2 << 1);
	/* The gate stops it with OUT high. */
	program(f, 2, 3, false, 100);
	at_tick(f, 60);
	gate2(f, false);
	assert_true(out2(f));
	gate2(f, true);
	begin();
	at_tick(f, 49);
	assert_true(out2(f));
	at_tick(f, 50);
	assert_false(out2(f));
}

static void mode4(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	program(f, 2, 4, false, 100);
	at_tick(f, 99);
	assert_true(out2(f));
	at_tick(f, 100); /* one clock low */
	assert_false(out2(f));
	at_tick(f, 101);
	assert_true(out2(f));
	assert_int_equal(count_of(f, 2), 0xffff);
	/* A new count loads at once (software trigger). */
	program(f, 2, 4, false, 100);
	at_tick(f, 50);
	out8(f, 0x42, 200);
	assert_int_equal(out2(f), true);
	out8(f, 0x42, 0);
	begin();
	at_tick(f, 100);
	assert_true(out2(f));
	at_tick(f, 200);
	assert_false(out2(f));
	/* The gate suspends. */
	program(f, 2, 4, false, 100);
	at_tick(f, 30);
	gate2(f, false);
	at_tick(f, 3000);
	gate2(f, true);
	begin();
	at_tick(f, 69);
	assert_true(out2(f));
	at_tick(f, 70);
	assert_false(out2(f));
}

static void mode5(void **state)
{
	struct fx *f = *state;

	program(f, 2, 5, false, 100);
	at_tick(f, 100);
	assert_true(out2(f));
	gate2(f, true);
	begin();
	at_tick(f, 100);
	assert_false(out2(f));
	at_tick(f, 101);
	assert_true(out2(f));
	gate2(f, false);
	gate2(f, true);
	begin();
	at_tick(f, 50);
	gate2(f, false);
	gate2(f, true); /* retrigger */
	begin();
	at_tick(f, 99);
	assert_true(out2(f));
	at_tick(f, 100);
	assert_false(out2(f));
}

static void bcd(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	program(f, 2, 0, true, 0x1234);
	at_tick(f, 235);
	assert_int_equal(count_of(f, 2), 0x0999);
	at_tick(f, 1233);
	assert_false(out2(f));
	at_tick(f, 1234);
	assert_true(out2(f));
	at_tick(f, 1235);
	assert_int_equal(count_of(f, 2), 0x9999);
	/* 0 is 10000. */
	program(f, 2, 2, true, 0);
	assert_int_equal(count_of(f, 2), 0);
	at_tick(f, 1);
	assert_int_equal(count_of(f, 2), 0x9999);
	at_tick(f, 9999);
	assert_false(out2(f));
	assert_int_equal(count_of(f, 2), 1);
	at_tick(f, 10000);
	assert_true(out2(f));
	/* Digits that are none do no harm. */
	program(f, 2, 3, true, 0xffff);
	at_tick(f, 123456);
	count_of(f, 2);
	assert_int_equal(status_of(f, 2) & 1, 1);
}

static void access_modes(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	/* LSB only: the other byte is 0. */
	out8(f, 0x43, 0x90);
	out8(f, 0x42, 200);
	begin();
	assert_int_equal(in8(f, 0x42), 200);
	at_tick(f, 10);
	assert_int_equal(in8(f, 0x42), 190);
	assert_int_equal(in8(f, 0x42), 190);
	out8(f, 0x43, 0x80);
	at_tick(f, 20);
	assert_int_equal(in8(f, 0x42), 190); /* latched */
	assert_int_equal(in8(f, 0x42), 180);
	/* MSB only. */
	out8(f, 0x43, 0xa0);
	out8(f, 0x42, 2);
	begin();
	at_tick(f, 1);
	assert_int_equal(in8(f, 0x42), 1);
	at_tick(f, 512);
	assert_true(out2(f));
	/* Both: LSB first, each read live. */
	program(f, 2, 0, false, 0x1234);
	assert_int_equal(in8(f, 0x42), 0x34);
	assert_int_equal(in8(f, 0x42), 0x12);
	/* Reading and writing have pointers of their own. */
	assert_int_equal(in8(f, 0x42), 0x34);
	out8(f, 0x42, 0x78);
	out8(f, 0x42, 0x56);
	assert_int_equal(in8(f, 0x42), 0x56);
	/* A control word puts both back. */
	in8(f, 0x42);
	out8(f, 0x42, 0x11);
	program(f, 2, 0, false, 0x4321);
	assert_int_equal(in8(f, 0x42), 0x21);
	/* The control register itself reads as nothing. */
	assert_int_equal(in8(f, 0x43), 0xff);
}

static void latch_and_read_back(void **state)
{
	struct fx *f = *state;

	gate2(f, true);
	program(f, 2, 0, false, 1000);
	out8(f, 0x43, 0x80);
	at_tick(f, 100);
	out8(f, 0x43, 0x80); /* the first latch holds until it is read */
	assert_int_equal(in8(f, 0x42), 1000 & 0xff);
	assert_int_equal(in8(f, 0x42), 1000 >> 8);
	assert_int_equal(count_of(f, 2), 900);
	/* Read-back of count and status of two channels: status comes first. */
	program(f, 0, 2, false, 5000);
	out8(f, 0x43, 0xc0 | 0x0a);
	at_tick(f, 500);
	assert_int_equal(in8(f, 0x42), 0x30 | 0x00); /* OUT low, loaded, both bytes, mode 0 */
	assert_int_equal(in8(f, 0x42), 900 & 0xff);
	assert_int_equal(in8(f, 0x42), 900 >> 8);
	assert_int_equal(in8(f, 0x40), 0x80 | 0x30 | 0x04);
	assert_int_equal(in8(f, 0x40), 5000 & 0xff);
	assert_int_equal(in8(f, 0x40), 5000 >> 8);
	/* Count only, status only. */
	out8(f, 0x43, 0xd0 | 0x02);
	at_tick(f, 600);
	assert_int_equal(in8(f, 0x40), 4500 & 0xff);
	assert_int_equal(in8(f, 0x40), 4500 >> 8);
	assert_int_equal(status_of(f, 0), 0xb4);
	/* Null count: from the control word until the count is loaded. */
	out8(f, 0x43, 0xb0);
	assert_int_equal(status_of(f, 2), 0x70);
	out8(f, 0x42, 1);
	out8(f, 0x42, 0);
	assert_int_equal(status_of(f, 2), 0x30);
	/* A control word drops a latch that was not read. */
	out8(f, 0x43, 0x80);
	program(f, 2, 0, false, 0x0777);
	assert_int_equal(in8(f, 0x42), 0x77);
	/* The reserved read-back bit and no channel: nothing happens. */
	out8(f, 0x43, 0xc0);
	assert_int_equal(in8(f, 0x42), 0x07);
}

static void port61(void **state)
{
	struct fx *f = *state;
	uint8_t refresh;
	unsigned toggles = 0;

	out8(f, 0x61, 0xff);
	assert_int_equal(in8(f, 0x61) & 0xcf, 0x0f); /* bits 0-3 are kept, 6 and 7 are status */
	out8(f, 0x61, 0);
	assert_int_equal(in8(f, 0x61) & 0xcf, 0);
	refresh = in8(f, 0x61) & 0x10;
	for (unsigned i = 0; i < 100; i++) {
		fx_advance(f, 15085);
		if ((in8(f, 0x61) & 0x10) != refresh)
			toggles++;
		refresh = in8(f, 0x61) & 0x10;
	}
	assert_int_equal(toggles, 100);
}

static void channel0_irq(void **state)
{
	struct fx *f = *state;
	unsigned ticks = 0;

	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER); /* nothing runs after reset */
	/* Mode 2, 100 Hz: 1000 interrupts in 10 s, none of them off by a clock. */
	program(f, 0, 2, false, 11932);
	for (int64_t i = 1; i <= 1000; i++) {
		at_tick(f, 11932 * i - 1);
		assert_false(ticked(f));
		at_tick(f, 11932 * i);
		assert_true(ticked(f));
	}
	/* Late: one interrupt, the phase stays. */
	fx_jump(f, INT64_C(35) * 1000000);
	assert_true(ticked(f));
	at_tick(f, 11932 * 1004 - 1);
	assert_false(ticked(f));
	at_tick(f, 11932 * 1004);
	assert_true(ticked(f));
	/* Mode 3, 65536. */
	program(f, 0, 3, false, 0);
	at_tick(f, 65535);
	assert_false(ticked(f));
	at_tick(f, 65536);
	assert_true(ticked(f));
	at_tick(f, 65536 * 2);
	assert_true(ticked(f));
	/* Mode 0: once. The line goes up at the terminal count. */
	program(f, 0, 0, false, 1000);
	at_tick(f, 999);
	assert_false(ticked(f));
	at_tick(f, 1000);
	assert_true(ticked(f));
	at_tick(f, 1000000);
	assert_false(ticked(f));
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	/* Half of a new count stops it. */
	program(f, 0, 0, false, 1000);
	out8(f, 0x40, 0xff);
	at_tick(f, 10000);
	assert_false(ticked(f));
	/* Mode 4: at the end of the strobe. */
	program(f, 0, 4, false, 1000);
	at_tick(f, 1000);
	assert_false(ticked(f));
	at_tick(f, 1001);
	assert_true(ticked(f));
	/* Modes 1 and 5 wait for a trigger that cannot come. */
	program(f, 0, 1, false, 1000);
	program(f, 0, 5, false, 1000);
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	/* A control word alone stops it. */
	program(f, 0, 2, false, 1000);
	out8(f, 0x43, 0x34);
	assert_int_equal(timer_queue_deadline(&f->q), TIMER_NEVER);
	/* A new rate in the middle: mode 3 takes it after the half period. */
	program(f, 0, 3, false, 10000);
	at_tick(f, 1000);
	out8(f, 0x40, 4000 & 0xff);
	out8(f, 0x40, 4000 >> 8);
	assert_in_range(timer_queue_deadline(&f->q) - start, 4190474,
			4190477); /* tick 5000: one look at it, not many */
	at_tick(f, 5000 + 2000 - 1);
	assert_false(ticked(f));
	at_tick(f, 5000 + 2000 + 1);
	assert_true(ticked(f));
	at_tick(f, 5000 + 6000 + 1);
	assert_true(ticked(f));
	/* The shortest period does not flood the host. */
	program(f, 0, 2, false, 1);
	for (unsigned i = 0; i < 10000; i++) {
		fx_advance(f, 1000);
		ticks += ticked(f);
	}
	assert_in_range(ticks, 480, 500);
	program(f, 0, 3, true, 1);
	fx_advance(f, 1000000);
	assert_true(ticked(f));
}

/* Linux's calibration: channel 2, mode 0, gate up, poll OUT. */
static void calibration(void **state)
{
	struct fx *f = *state;
	int64_t t;

	out8(f, 0x61, (in8(f, 0x61) & ~0x02) | 0x01);
	out8(f, 0x43, 0xb0);
	out8(f, 0x42, 0xff);
	out8(f, 0x42, 0xff);
	t = fx_now();
	while (!(in8(f, 0x61) & 0x20))
		fx_advance(f, 1000);
	assert_in_range(fx_now() - t, 54924000, 54927000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		IRQ_TEST(mode0),	IRQ_TEST(mode1),
		IRQ_TEST(mode2),	IRQ_TEST(mode3),
		IRQ_TEST(mode4),	IRQ_TEST(mode5),
		IRQ_TEST(bcd),		IRQ_TEST(access_modes),
		IRQ_TEST(port61),	IRQ_TEST(latch_and_read_back),
		IRQ_TEST(channel0_irq), IRQ_TEST(calibration),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
