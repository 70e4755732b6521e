/* ACPI fixed hardware (ACPI 6.5, 4.8), reset registers and the debug-exit port. */
#include "fixture.h"

#include <string.h>

#include "dev/acpi_pm.h"
#include "dev/debug_exit.h"
#include "dev/reset.h"

#define PM 0x600
#define GSI 9

static unsigned calls;
static uint32_t last_value;

static void note(void *ctx) { calls++; }

static void note_value(void *ctx, uint32_t value)
{
	calls++;
	last_value = value;
}

struct rig {
	struct fixture f;
	struct acpi_pm *pm;
};

static uint32_t in(struct rig *r, unsigned off, unsigned size)
{
	return (uint32_t)bus_read(r->f.bus, BUS_PIO, PM + off, size);
}
static void out(struct rig *r, unsigned off, unsigned size, uint32_t v)
{
	bus_write(r->f.bus, BUS_PIO, PM + off, size, v);
}
static bool sci(struct rig *r) { return r->f.level[GSI]; }

static int setup_width(void **state, bool wide)
{
	static struct rig r;
	struct acpi_pm_config cfg;

	calls = 0;
	fixture_init(&r.f);
	cfg = (struct acpi_pm_config){
		.bus = r.f.bus, .base = PM, .sci = fixture_line(&r.f, GSI), .timers = &r.f.timers, .timer_32bit = wide,
		.s5_type = 5, .on_power_off = note,
	};
	r.pm = acpi_pm_new(&cfg, NULL);
	assert_non_null(r.pm);
	*state = &r;
	return 0;
}

static int setup(void **state) { return setup_width(state, true); }
static int setup24(void **state) { return setup_width(state, false); }

static int teardown(void **state)
{
	struct rig *r = *state;

	acpi_pm_free(r->pm);
	fixture_fini(&r->f);
	return 0;
}

static void test_pm_timer_rate(void **state)
{
	struct rig *r = *state;
	int64_t t0 = clock_now(), t1;
	uint32_t a = in(r, ACPI_PM_TMR, 4), b;
	uint64_t expected;

	fixture_sleep(&r->f, 100000000);
	b = in(r, ACPI_PM_TMR, 4);
	t1 = clock_now();
	expected = mul_div_u64((uint64_t)(t1 - t0), ACPI_PM_TIMER_HZ, 1000000000);
	assert_in_range(b - a, expected - expected / 50, expected + 1);
	out(r, ACPI_PM_TMR, 4, 0); /* read-only */
	assert_true(in(r, ACPI_PM_TMR, 4) >= b);
	assert_int_equal(in(r, ACPI_PM_TMR + 3, 1), in(r, ACPI_PM_TMR, 4) >> 24);
}

/* The top bit of 24 changes every 2^23 ticks: 2.34 s. */
static void test_pm_timer_overflow(void **state)
{
	struct rig *r = *state;
	int64_t left;

	assert_int_equal(in(r, ACPI_PM_EVT, 2), 0);
	assert_true(timer_queue_deadline(&r->f.timers) == TIMER_NEVER);
	out(r, ACPI_PM_EVT + 2, 2, 0x0001);
	left = timer_queue_deadline(&r->f.timers) - clock_now();
	assert_in_range(left, 1500000000, 2343500000);
	fixture_sleep(&r->f, left - 50000000);
	assert_false(sci(r));
	assert_int_equal(in(r, ACPI_PM_EVT, 2), 0);
	assert_int_equal(in(r, ACPI_PM_TMR, 4) >> 23, 0);
	fixture_sleep(&r->f, 60000000);
	assert_true(sci(r));
	assert_int_equal(in(r, ACPI_PM_EVT, 2), 0x0001);
	assert_int_equal(in(r, ACPI_PM_TMR, 4) >> 23, 1);
	out(r, ACPI_PM_EVT, 2, 0x0001);
	assert_false(sci(r));
	assert_int_equal(in(r, ACPI_PM_EVT, 2), 0);
	assert_in_range(timer_queue_deadline(&r->f.timers) - clock_now(), 1500000000, 2343500000);
	out(r, ACPI_PM_EVT + 2, 2, 0);
	assert_true(timer_queue_deadline(&r->f.timers) == TIMER_NEVER);
}

static void test_power_button(void **state)
{
	struct rig *r = *state;

	acpi_pm_power_button(r->pm);
	assert_false(sci(r)); /* not enabled yet, but remembered */
	assert_int_equal(in(r, ACPI_PM_EVT, 2), 0x0100);
	out(r, ACPI_PM_EVT + 2, 2, 0x0100);
	assert_true(sci(r));
	out(r, ACPI_PM_EVT, 2, 0x0020); /* clearing another changes nothing */
	assert_true(sci(r));
	out(r, ACPI_PM_EVT + 1, 1, 0x01); /* by byte */
	assert_false(sci(r));
	assert_int_equal(in(r, ACPI_PM_EVT, 4), 0x01000000);
	out(r, ACPI_PM_EVT + 2, 2, 0xffff);
	assert_int_equal(in(r, ACPI_PM_EVT + 2, 2), 0x0721); /* bits that exist */
}

static void test_control(void **state)
{
	struct rig *r = *state;

	assert_int_equal(in(r, ACPI_PM_CNT, 2), 0x0001); /* always in ACPI mode */
	out(r, ACPI_PM_CNT, 2, 0x0000);
	assert_int_equal(in(r, ACPI_PM_CNT, 2), 0x0001);
	out(r, ACPI_PM_CNT, 2, 0x1402); /* SLP_TYP alone */
	assert_int_equal(in(r, ACPI_PM_CNT, 2), 0x1403);
	assert_int_equal(calls, 0);
	out(r, ACPI_PM_CNT, 2, 0x2c00); /* another state */
	assert_int_equal(calls, 0);
	assert_int_equal(in(r, ACPI_PM_CNT, 2), 0x0c01); /* SLP_EN reads 0 */
	out(r, ACPI_PM_CNT, 2, 0x3400);
	assert_int_equal(calls, 1);
	out(r, ACPI_PM_CNT + 1, 1, 0x34);
	assert_int_equal(calls, 2);
}

static void test_gpe(void **state)
{
	struct rig *r = *state;

	acpi_pm_gpe(r->pm, 1);
	acpi_pm_gpe(r->pm, 31);
	assert_int_equal(in(r, ACPI_PM_GPE0, 4), 0x80000002);
	assert_false(sci(r));
	out(r, ACPI_PM_GPE0 + 4, 1, 0x02);
	assert_true(sci(r));
	out(r, ACPI_PM_GPE0, 1, 0x02);
	assert_false(sci(r));
	assert_int_equal(in(r, ACPI_PM_GPE0, 4), 0x80000000);
	out(r, ACPI_PM_GPE0 + 7, 1, 0x80);
	assert_true(sci(r));
	acpi_pm_gpe(r->pm, 32);
	acpi_pm_reset(r->pm);
	assert_false(sci(r));
	assert_int_equal(in(r, ACPI_PM_GPE0, 4) | in(r, ACPI_PM_GPE0 + 4, 4), 0);
	assert_int_equal(in(r, ACPI_PM_GPE0 + 2, 4), 0xffffffff); /* no register lies across words */
}

static void test_reset_register(void **state)
{
	struct fixture f;
	struct reset *r;

	fixture_init(&f);
	calls = 0;
	r = reset_new(f.bus, note, NULL, NULL);
	assert_non_null(r);
	reset_cf9_write(r, 0x02);
	assert_int_equal(calls, 0);
	reset_cf9_write(r, 0x06);
	assert_int_equal(calls, 1);
	assert_int_equal(reset_cf9_read(r), 0x06);
	reset_cf9_write(r, 0x06); /* only a rising bit resets */
	assert_int_equal(calls, 1);
	reset_reset(r);
	assert_int_equal(reset_cf9_read(r), 0);
	reset_cf9_write(r, 0xf4);
	assert_int_equal(calls, 2);
	/* i8042: none there, but the pulse works */
	assert_int_equal(pio_in8(&f, 0x64), 0xff);
	assert_int_equal(pio_in8(&f, 0x60), 0xff);
	pio_out8(&f, 0x64, 0xd1);
	pio_out8(&f, 0x60, 0xfe);
	assert_int_equal(calls, 2);
	pio_out8(&f, 0x64, 0xfe);
	assert_int_equal(calls, 3);
	/* port A */
	assert_int_equal(pio_in8(&f, 0x92), 0x02);
	pio_out8(&f, 0x92, 0x00);
	assert_int_equal(pio_in8(&f, 0x92), 0x00);
	assert_int_equal(calls, 3);
	pio_out8(&f, 0x92, 0x03);
	assert_int_equal(calls, 4);
	reset_free(r);
	assert_int_equal(pio_in8(&f, 0x92), 0xff);
	fixture_fini(&f);
}

static void test_debug_exit(void **state)
{
	struct fixture f;
	struct debug_exit *d;

	fixture_init(&f);
	calls = 0;
	d = debug_exit_new(f.bus, 0xf4, note_value, NULL, NULL);
	assert_non_null(d);
	assert_int_equal(bus_read(f.bus, BUS_PIO, 0xf4, 4), 0xffffffff);
	pio_out8(&f, 0xf4, 0x21);
	assert_int_equal(calls, 1);
	assert_int_equal(last_value, 0x21);
	bus_write(f.bus, BUS_PIO, 0xf4, 4, 0x12345678);
	assert_int_equal(last_value, 0x12345678);
	pio_out8(&f, 0xf5, 1);
	assert_int_equal(calls, 2);
	debug_exit_free(d);
	pio_out8(&f, 0xf4, 1);
	assert_int_equal(calls, 2);
	fixture_fini(&f);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_pm_timer_rate), cmocka_unit_test_setup_teardown(test_pm_timer_overflow, setup24, teardown),
		T(test_power_button), T(test_control), T(test_gpe), cmocka_unit_test(test_reset_register),
		cmocka_unit_test(test_debug_exit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
