/* The MC146818A and the PC's CMOS bytes. */
#include "fixture.h"

#include <string.h>
#include <time.h>

#include "dev/rtc.h"

#define GSI 8
#define SECOND INT64_C(1000000000)

struct rig {
	struct fixture f;
	struct rtc *rtc;
};

static int setup(void **state)
{
	static struct rig r;
	struct rtc_config cfg;

	fixture_init(&r.f);
	cfg = (struct rtc_config){
		.bus = r.f.bus, .irq = fixture_line(&r.f, GSI), .timers = &r.f.timers, .ram_below_4g = 3 * GIB,
		.ram_above_4g = 5 * GIB + 64 * KIB,
	};
	r.rtc = rtc_new(&cfg, NULL);
	assert_non_null(r.rtc);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	rtc_free(r->rtc);
	fixture_fini(&r->f);
	return 0;
}

static uint8_t get(struct rig *r, uint8_t reg)
{
	pio_out8(&r->f, 0x70, reg);
	return pio_in8(&r->f, 0x71);
}

static void set(struct rig *r, uint8_t reg, uint8_t v)
{
	pio_out8(&r->f, 0x70, reg);
	pio_out8(&r->f, 0x71, v);
}

/* year month day hour minute second, as the registers show them */
static void set_clock(struct rig *r, uint8_t century, uint8_t y, uint8_t mo, uint8_t d, uint8_t h, uint8_t mi,
		      uint8_t s)
{
	uint8_t b = get(r, 0x0b);

	set(r, 0x0b, b | 0x80);
	set(r, 0x32, century);
	set(r, 9, y);
	set(r, 8, mo);
	set(r, 7, d);
	set(r, 4, h);
	set(r, 2, mi);
	set(r, 0, s);
	set(r, 0x0b, b);
}

/* Just after a second of the host began, so that what follows lies in one second. */
static void align(struct rig *r)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	fixture_sleep(&r->f, SECOND - ts.tv_nsec + 5000000);
}

static unsigned bcd(uint8_t v) { return (v >> 4) * 10u + (v & 15); }

static void test_initial_registers(void **state)
{
	struct rig *r = *state;

	assert_int_equal(get(r, 0x0a) & 0x7f, 0x26);
	assert_int_equal(get(r, 0x0b), 0x02);
	assert_int_equal(get(r, 0x0c), 0x00);
	assert_int_equal(get(r, 0x0d), 0x80);
	assert_int_equal(pio_in8(&r->f, 0x70), 0xff);
}

static void test_host_time_in_utc(void **state)
{
	struct rig *r = *state;
	struct tm tm = {0};
	time_t guest, host;

	align(r);
	host = time(NULL);
	tm.tm_year = (int)(bcd(get(r, 0x32)) * 100 + bcd(get(r, 9))) - 1900;
	tm.tm_mon = (int)bcd(get(r, 8)) - 1;
	tm.tm_mday = (int)bcd(get(r, 7));
	tm.tm_hour = (int)bcd(get(r, 4));
	tm.tm_min = (int)bcd(get(r, 2));
	tm.tm_sec = (int)bcd(get(r, 0));
	guest = timegm(&tm);
	assert_in_range(guest, host, host + 1);
	assert_int_equal(get(r, 6), tm.tm_wday + 1);
}

static void test_memory_size_bytes(void **state)
{
	struct rig *r = *state;
	unsigned sum = 0;

	assert_int_equal(get(r, 0x15) | get(r, 0x16) << 8, 640);
	assert_int_equal(get(r, 0x17) | get(r, 0x18) << 8, 0xffff);
	assert_int_equal(get(r, 0x30) | get(r, 0x31) << 8, 0xffff);
	assert_int_equal(get(r, 0x34) | get(r, 0x35) << 8, (3 * GIB - 16 * MIB) / (64 * KIB));
	assert_int_equal(get(r, 0x5b) | get(r, 0x5c) << 8 | get(r, 0x5d) << 16, 5 * GIB / (64 * KIB) + 1);
	for (uint8_t i = 0x10; i <= 0x2d; i++)
		sum += get(r, i);
	assert_int_equal(get(r, 0x2e) << 8 | get(r, 0x2f), sum);
}

static void test_ram_and_nmi_bit(void **state)
{
	struct rig *r = *state;

	assert_false(rtc_nmi_masked(r->rtc));
	for (unsigned i = 0x0e; i < 0x80; i++)
		if (i != RTC_CENTURY)
			set(r, (uint8_t)(i | 0x80), (uint8_t)(i * 3));
	assert_true(rtc_nmi_masked(r->rtc));
	rtc_reset(r->rtc); /* battery-backed */
	assert_false(rtc_nmi_masked(r->rtc));
	for (unsigned i = 0x0e; i < 0x80; i++)
		if (i != RTC_CENTURY)
			assert_int_equal(get(r, (uint8_t)i), (uint8_t)(i * 3));
	set(r, 0x0d, 0x00); /* read-only */
	assert_int_equal(get(r, 0x0d), 0x80);
	set(r, 0x0c, 0xff);
	assert_int_equal(get(r, 0x0c) & 0xf0, 0);
}

static void test_set_clock_and_rollover(void **state)
{
	struct rig *r = *state;

	align(r);
	set_clock(r, 0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x59);
	assert_int_equal(get(r, 0), 0x59);
	fixture_sleep(&r->f, SECOND);
	assert_int_equal(get(r, 0), 0x00);
	assert_int_equal(get(r, 2), 0x00);
	assert_int_equal(get(r, 4), 0x00);
	assert_int_equal(get(r, 7), 0x01);
	assert_int_equal(get(r, 8), 0x01);
	assert_int_equal(get(r, 9), 0x24);
	set_clock(r, 0x20, 0x24, 0x02, 0x29, 0x12, 0x00, 0x00); /* leap day */
	assert_int_equal(get(r, 7), 0x29);
	rtc_reset(r->rtc);
	assert_int_equal(get(r, 7), 0x29);
	assert_int_equal(get(r, 4), 0x12);
	/* Times that do not exist roll over; nothing worse. */
	set_clock(r, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99, 0x99);
	set_clock(r, 0xff, 0xff, 0xff, 0xff, 0x3f, 0xff, 0xff);
	set_clock(r, 0, 0, 0, 0, 0, 0, 0);
	assert_int_equal(get(r, 0), 0);
}

static void test_set_bit_stops_the_clock(void **state)
{
	struct rig *r = *state;

	align(r);
	set(r, 0x0b, 0x92); /* with UIE: SET clears it */
	assert_int_equal(get(r, 0x0b), 0x82);
	set(r, 0, 0x30);
	fixture_sleep(&r->f, SECOND + SECOND / 10);
	assert_int_equal(get(r, 0), 0x30);
	assert_int_equal(get(r, 0x0a) & 0x80, 0);
	set(r, 0x0b, 0x02);
	assert_in_range(get(r, 0), 0x30, 0x31);
}

static void test_formats(void **state)
{
	static const struct { uint8_t hour24, bcd12, bin12;
	} hours[] = {
		{0, 0x12, 12},	  {1, 0x01, 1},	    {9, 0x09, 9},     {11, 0x11, 11},
		{12, 0x92, 0x8c}, {13, 0x81, 0x81}, {23, 0x91, 0x8b},
	};
	struct rig *r = *state;

	align(r);
	for (size_t i = 0; i < ARRAY_LEN(hours); i++) {
		uint8_t h = hours[i].hour24;

		set(r, 0x0b, 0x06); /* binary, 24 h */
		set_clock(r, 20, 23, 11, 30, h, 45, 58);
		assert_int_equal(get(r, 4), h);
		assert_int_equal(get(r, 7), 30);
		assert_int_equal(get(r, 9), 23);
		assert_int_equal(get(r, RTC_CENTURY), 20);
		set(r, 0x0b, 0x02); /* BCD, 24 h */
		assert_int_equal(get(r, 4), h / 10 * 16 + h % 10);
		assert_int_equal(get(r, 7), 0x30);
		assert_int_equal(get(r, 2), 0x45);
		assert_int_equal(get(r, RTC_CENTURY), 0x20);
		set(r, 0x0b, 0x00); /* BCD, 12 h */
		assert_int_equal(get(r, 4), hours[i].bcd12);
		set(r, 0x0b, 0x04); /* binary, 12 h */
		assert_int_equal(get(r, 4), hours[i].bin12);
		set(r, 4, hours[i].bin12);
		set(r, 0x0b, 0x06);
		assert_int_equal(get(r, 4), h);
	}
}

static void test_update_interrupt(void **state)
{
	struct rig *r = *state;

	align(r);
	get(r, 0x0c);
	set(r, 0x0b, 0x12);
	assert_false(r->f.level[GSI]);
	assert_true(timer_queue_deadline(&r->f.timers) - clock_now() < SECOND);
	fixture_sleep(&r->f, SECOND);
	assert_true(r->f.level[GSI]);
	assert_int_equal(get(r, 0x0c) & 0xb0, 0x90); /* PF runs along */
	assert_false(r->f.level[GSI]);
	assert_int_equal(get(r, 0x0c) & 0xb0, 0x00);
	/* The flag comes without the interrupt too, for who polls. */
	set(r, 0x0b, 0x02);
	fixture_sleep(&r->f, SECOND);
	assert_false(r->f.level[GSI]);
	assert_int_equal(get(r, 0x0c) & 0xb0, 0x10);
}

static void test_alarm(void **state)
{
	struct rig *r = *state;

	align(r);
	set_clock(r, 0x20, 0x24, 0x06, 0x15, 0x10, 0x29, 0x58);
	set(r, 1, 0x00);
	set(r, 3, 0x30);
	set(r, 5, 0x10);
	get(r, 0x0c);
	set(r, 0x0b, 0x22);
	fixture_sleep(&r->f, SECOND);
	assert_false(r->f.level[GSI]);
	fixture_sleep(&r->f, SECOND);
	assert_true(r->f.level[GSI]);
	assert_int_equal(get(r, 0x0c) & 0xb0, 0xb0);
	assert_false(r->f.level[GSI]);
	/* Every second, by don't-care codes. */
	set(r, 1, 0xc0);
	set(r, 3, 0xff);
	set(r, 5, 0xc7);
	fixture_sleep(&r->f, SECOND);
	assert_true(r->f.level[GSI]);
	get(r, 0x0c);
	/* One that never comes: no timer runs for it. */
	set(r, 1, 0x61);
	assert_true(timer_queue_deadline(&r->f.timers) == TIMER_NEVER);
}

static void test_periodic(void **state)
{
	struct rig *r = *state;
	int64_t first;
	unsigned n = 0;

	/* RS 15 is 2 Hz, 6 is 1024 Hz, 3 is 8192 Hz, and 1 and 2 repeat 8 and 9 (256 and 128 Hz). */
	static const struct { uint8_t rate; int64_t ns; } rates[] = {
		{15, SECOND / 2}, {6, SECOND / 1024}, {3, SECOND / 8192}, {1, SECOND / 256}, {2, SECOND / 128},
	};

	for (size_t i = 0; i < ARRAY_LEN(rates); i++) {
		set(r, 0x0a, 0x20 | rates[i].rate);
		get(r, 0x0c);
		set(r, 0x0b, 0x42);
		assert_in_range(timer_queue_deadline(&r->f.timers) - clock_now() + SECOND, 0, rates[i].ns + SECOND);
		first = timer_queue_deadline(&r->f.timers);
		fixture_sleep(&r->f, first - clock_now() + 100000);
		assert_true(r->f.level[GSI]);
		get(r, 0x0c);
		assert_int_equal((timer_queue_deadline(&r->f.timers) - first) % rates[i].ns, 0);
		set(r, 0x0b, 0x02);
	}
	set(r, 0x0a, 0x26);
	get(r, 0x0c);
	set(r, 0x0b, 0x42);
	for (int64_t end = clock_now() + SECOND / 4; clock_now() < end;) {
		fixture_sleep(&r->f, 100000);
		if (r->f.level[GSI]) {
			assert_int_equal(get(r, 0x0c) & 0xc0, 0xc0);
			n++;
		}
	}
	assert_in_range(n, 64, 257);
	set(r, 0x0a, 0x20); /* rate 0: off */
	get(r, 0x0c);
	assert_true(timer_queue_deadline(&r->f.timers) == TIMER_NEVER);
}

static void test_uip(void **state)
{
	struct rig *r = *state;
	bool seen = false;

	align(r);
	assert_int_equal(get(r, 0x0a) & 0x80, 0);
	/* The window is two milliseconds wide: a busy host may need several seconds to catch it. */
	for (int i = 0; i < 10 && !seen; i++) {
		struct timespec ts;
		uint8_t before;

		clock_gettime(CLOCK_REALTIME, &ts);
		fixture_sleep(&r->f, SECOND - ts.tv_nsec - 4000000);
		before = get(r, 0);
		for (int64_t end = clock_now() + 10000000; clock_now() < end && !seen;)
			seen = get(r, 0x0a) & 0x80;
		while (get(r, 0x0a) & 0x80)
			;
		if (seen)
			assert_int_not_equal(get(r, 0), before); /* it fell because the second changed */
		else
			align(r);
	}
	assert_true(seen);
}

static void test_reset_pin(void **state)
{
	struct rig *r = *state;

	set(r, 0x0b, 0x7a);
	fixture_sleep(&r->f, SECOND / 10);
	assert_true(r->f.level[GSI]);
	rtc_reset(r->rtc);
	assert_false(r->f.level[GSI]);
	assert_int_equal(get(r, 0x0b), 0x02);
	assert_true(timer_queue_deadline(&r->f.timers) == TIMER_NEVER);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_initial_registers),
		T(test_host_time_in_utc),
		T(test_memory_size_bytes),
		T(test_ram_and_nmi_bit),
		T(test_set_clock_and_rollover),
		T(test_set_bit_stops_the_clock),
		T(test_formats),
		T(test_update_interrupt),
		T(test_alarm),
		T(test_periodic),
		T(test_uip),
		T(test_reset_pin),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
