/* Every register of the 16550A against the PC16550D data sheet. */
#include "fixture.h"

#include <string.h>

#include "dev/uart.h"

#define BASE 0x3f8
#define GSI 4

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR, FCR = IIR };

struct rig {
	struct fixture f;
	struct chardev chr;
	struct uart *uart;
};

static int setup(void **state)
{
	static struct rig r;
	struct uart_config cfg;

	memset(&r, 0, sizeof(r));
	fixture_init(&r.f);
	cfg = (struct uart_config){
		.bus = r.f.bus, .space = BUS_PIO, .base = BASE, .irq = fixture_line(&r.f, GSI), .chr = &r.chr,
		.timers = &r.f.timers, .name = "uart",
	};
	r.uart = uart_new(&cfg, NULL);
	assert_non_null(r.uart);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	uart_free(r->uart);
	assert_int_equal(pio_in8(&r->f, BASE + SCR), 0xff);
	fixture_fini(&r->f);
	return 0;
}

static uint8_t in(struct rig *r, unsigned reg) { return pio_in8(&r->f, (uint16_t)(BASE + reg)); }
static void out(struct rig *r, unsigned reg, uint8_t v) { pio_out8(&r->f, (uint16_t)(BASE + reg), v); }
static bool line(struct rig *r) { return r->f.level[GSI]; }

static size_t feed(struct rig *r, const char *s)
{
	return r->chr.client.receive(r->chr.client.ctx, (const uint8_t *)s, strlen(s));
}

static void test_reset_state(void **state)
{
	struct rig *r = *state;

	for (int pass = 0; pass < 2; pass++) {
		assert_int_equal(in(r, IER), 0);
		assert_int_equal(in(r, IIR), 0x01);
		assert_int_equal(in(r, LCR), 0);
		assert_int_equal(in(r, MCR), 0);
		assert_int_equal(in(r, LSR), 0x60);
		assert_int_equal(in(r, MSR), 0xb0);
		assert_int_equal(in(r, DATA), 0);
		assert_false(line(r));
		out(r, LCR, 0x80);
		assert_int_equal(in(r, DATA) | in(r, IER) << 8, 12);
		/* Disturb everything for the second pass. */
		out(r, DATA, 0x55);
		out(r, LCR, 0x1b);
		out(r, IER, 0x0f);
		out(r, FCR, 0xc1);
		out(r, MCR, 0x1f);
		out(r, DATA, 'x');
		out(r, SCR, 0x77);
		uart_reset(r->uart);
	}
}

static void test_ier_keeps_four_bits(void **state)
{
	struct rig *r = *state;

	out(r, IER, 0xff);
	assert_int_equal(in(r, IER), 0x0f);
	out(r, IER, 0x05);
	assert_int_equal(in(r, IER), 0x05);
}

static void test_divisor_has_16_bits_behind_dlab(void **state)
{
	struct rig *r = *state;

	out(r, IER, 0x05);
	out(r, LCR, 0x83);
	out(r, DATA, 0x34);
	out(r, IER, 0x12);
	assert_int_equal(in(r, DATA), 0x34);
	assert_int_equal(in(r, IER), 0x12);
	assert_int_equal(r->chr.nout, 0);
	out(r, LCR, 0x03);
	assert_int_equal(in(r, IER), 0x05);
	assert_int_equal(in(r, DATA), 0);
	out(r, LCR, 0x83);
	assert_int_equal(in(r, DATA), 0x34);
	assert_int_equal(in(r, IER), 0x12);
}

static void test_lcr_scr_hold_eight_bits(void **state)
{
	struct rig *r = *state;

	for (unsigned v = 0; v < 256; v++) {
		out(r, LCR, (uint8_t)v);
		assert_int_equal(in(r, LCR), v);
		out(r, SCR, (uint8_t)(v ^ 0xa5));
		assert_int_equal(in(r, SCR), v ^ 0xa5);
	}
}

static void test_mcr_keeps_five_bits(void **state)
{
	struct rig *r = *state;

	out(r, MCR, 0xff);
	assert_int_equal(in(r, MCR), 0x1f);
	out(r, MCR, 0x00);
	assert_int_equal(in(r, MCR), 0x00);
}

static void test_lsr_msr_ignore_writes(void **state)
{
	struct rig *r = *state;

	out(r, LSR, 0xff);
	assert_int_equal(in(r, LSR), 0x60);
	out(r, MSR, 0x0f);
	assert_int_equal(in(r, MSR), 0xb0);
}

static void test_iir_shows_fifo(void **state)
{
	struct rig *r = *state;

	out(r, FCR, 0x00);
	assert_int_equal(in(r, IIR), 0x01);
	out(r, FCR, 0x01);
	assert_int_equal(in(r, IIR), 0xc1);
	out(r, FCR, 0xc6); /* without bit 0 nothing is programmed but the FIFO is off */
	assert_int_equal(in(r, IIR), 0x01);
}

static void test_transmit(void **state)
{
	struct rig *r = *state;

	out(r, DATA, 'h');
	out(r, DATA, 0xe9); /* all eight bits even with word length 5 */
	assert_int_equal(in(r, LSR), 0x60);
	assert_int_equal(r->chr.nout, 2);
	assert_memory_equal(r->chr.out, "h\xe9", 2);
}

static void test_thre_interrupt(void **state)
{
	struct rig *r = *state;

	out(r, IER, 0x02); /* enabling it with THR empty raises it */
	assert_true(line(r));
	assert_int_equal(in(r, IIR), 0x02); /* reading the IIR that shows it clears it */
	assert_false(line(r));
	assert_int_equal(in(r, IIR), 0x01);
	out(r, IER, 0x02); /* written again: no new edge */
	assert_false(line(r));
	out(r, DATA, 'a');
	assert_true(line(r));
	unsigned edges = r->f.edges[GSI];
	out(r, DATA, 'b'); /* pulses: an edge-triggered input must see it */
	assert_int_equal(r->f.edges[GSI], edges + 1);
	out(r, IER, 0);
	assert_false(line(r));
	out(r, IER, 0x02);
	assert_true(line(r));
}

static void test_receive_without_fifo(void **state)
{
	struct rig *r = *state;

	out(r, IER, 0x01);
	assert_int_equal(feed(r, "ab"), 1);
	assert_true(line(r));
	assert_int_equal(in(r, IIR), 0x04);
	assert_int_equal(in(r, LSR), 0x61);
	r->chr.resumed = 0;
	assert_int_equal(in(r, DATA), 'a');
	assert_int_equal(r->chr.resumed, 1);
	assert_false(line(r));
	assert_int_equal(in(r, LSR), 0x60);
}

static void test_receive_trigger_levels(void **state)
{
	static const uint8_t levels[] = {1, 4, 8, 14};
	struct rig *r = *state;

	for (unsigned i = 0; i < 4; i++) {
		out(r, FCR, (uint8_t)(i << 6 | 0x07));
		out(r, IER, 0x01);
		for (unsigned n = 1; n <= 16; n++) {
			assert_int_equal(feed(r, "x"), 1);
			assert_int_equal(line(r), n >= levels[i]);
			assert_int_equal(in(r, IIR), n >= levels[i] ? 0xc4 : 0xc1);
		}
		assert_int_equal(feed(r, "x"), 0); /* full: the back end keeps the rest */
		assert_int_equal(in(r, LSR) & 0x02, 0);
		for (unsigned n = 16; n > 0; n--) {
			assert_int_equal(line(r), n >= levels[i]);
			assert_int_equal(in(r, LSR), 0x61);
			assert_int_equal(in(r, DATA), 'x');
		}
		assert_int_equal(in(r, LSR), 0x60);
	}
}

static void test_fifo_keeps_order_over_its_end(void **state)
{
	struct rig *r = *state;
	char c[2] = {0};

	out(r, FCR, 0x07);
	for (unsigned n = 0; n < 100; n++) {
		c[0] = (char)('0' + n % 10);
		feed(r, c);
		c[0]++;
		feed(r, c);
		assert_int_equal(in(r, DATA), '0' + n % 10);
		assert_int_equal(in(r, DATA), '0' + n % 10 + 1);
	}
}

static void test_character_timeout(void **state)
{
	struct rig *r = *state;

	out(r, LCR, 0x83);
	out(r, DATA, 1); /* 115200 baud: four characters take 347 us */
	out(r, IER, 0);
	out(r, LCR, 0x03);
	out(r, FCR, 0x81);
	out(r, IER, 0x01);
	feed(r, "abc");
	assert_false(line(r));
	assert_int_equal(in(r, IIR), 0xc1);
	fixture_sleep(&r->f, 400000);
	assert_true(line(r));
	assert_int_equal(in(r, IIR), 0xcc);
	assert_int_equal(in(r, IIR), 0xcc); /* only reading a character clears it */
	assert_int_equal(in(r, DATA), 'a');
	assert_false(line(r));
	fixture_sleep(&r->f, 400000); /* and it comes again while characters wait */
	assert_true(line(r));
	in(r, DATA);
	in(r, DATA);
	fixture_sleep(&r->f, 400000);
	assert_false(line(r));
}

static void test_fcr_clears_receiver(void **state)
{
	struct rig *r = *state;

	out(r, FCR, 0x01);
	out(r, IER, 0x01);
	feed(r, "abc");
	assert_true(line(r));
	out(r, FCR, 0x03);
	assert_false(line(r));
	assert_int_equal(in(r, LSR), 0x60);
	feed(r, "d");
	out(r, FCR, 0x00); /* so does switching the FIFO off */
	assert_int_equal(in(r, LSR), 0x60);
	assert_int_equal(in(r, IIR), 0x01);
}

static void test_loopback_data(void **state)
{
	struct rig *r = *state;

	out(r, MCR, 0x10);
	out(r, LCR, 0x03);
	out(r, DATA, 0xa7);
	assert_int_equal(r->chr.nout, 0);
	assert_int_equal(in(r, LSR), 0x61);
	assert_int_equal(in(r, DATA), 0xa7);
	out(r, LCR, 0x00); /* five bits */
	out(r, DATA, 0xff);
	assert_int_equal(in(r, DATA), 0x1f);
	assert_int_equal(feed(r, "x"), 0); /* SIN is disconnected */
	r->chr.resumed = 0;
	out(r, MCR, 0x00);
	assert_true(r->chr.resumed > 0);
	assert_int_equal(feed(r, "x"), 1);
}

static void test_overrun(void **state)
{
	struct rig *r = *state;

	out(r, MCR, 0x10);
	out(r, LCR, 0x03);
	out(r, IER, 0x04);
	out(r, DATA, 'a');
	assert_false(line(r));
	out(r, DATA, 'b');
	assert_true(line(r));
	assert_int_equal(in(r, IIR), 0x06);
	assert_int_equal(in(r, LSR), 0x63);
	assert_false(line(r)); /* reading LSR clears it */
	assert_int_equal(in(r, LSR), 0x61);
	assert_int_equal(in(r, DATA), 'b'); /* without FIFO the new one overwrites */
	out(r, FCR, 0x07);
	for (int i = 0; i < 17; i++)
		out(r, DATA, (uint8_t)i);
	assert_int_equal(in(r, LSR), 0x63);
	for (int i = 0; i < 16; i++) /* with FIFO the new one is lost */
		assert_int_equal(in(r, DATA), i);
	assert_int_equal(in(r, LSR), 0x60);
}

static void test_break_in_fifo(void **state)
{
	struct rig *r = *state;

	out(r, MCR, 0x10);
	out(r, LCR, 0x03);
	out(r, FCR, 0x07);
	out(r, IER, 0x04);
	out(r, DATA, 'a');
	out(r, LCR, 0x43);
	/* The break waits behind 'a': only the FIFO error bit tells. */
	assert_int_equal(in(r, LSR), 0xe1);
	assert_false(line(r));
	assert_int_equal(in(r, DATA), 'a');
	assert_true(line(r));
	assert_int_equal(in(r, LSR), 0xf9);
	assert_false(line(r));
	assert_int_equal(in(r, LSR), 0x61);
	assert_int_equal(in(r, DATA), 0);
}

static void test_modem_status_in_loopback(void **state)
{
	static const struct { uint8_t mcr, msr; } map[] = {{0x01, 0x20}, {0x02, 0x10}, {0x04, 0x40}, {0x08, 0x80}};
	struct rig *r = *state;

	out(r, MCR, 0x10);
	in(r, MSR);
	for (unsigned i = 0; i < 4; i++) {
		out(r, MCR, 0x10 | map[i].mcr);
		/* RI has no delta on its leading edge. */
		assert_int_equal(in(r, MSR), map[i].msr | (map[i].msr == 0x40 ? 0 : map[i].msr >> 4));
		assert_int_equal(in(r, MSR), map[i].msr);
		out(r, MCR, 0x10);
		assert_int_equal(in(r, MSR), map[i].msr >> 4);
		assert_int_equal(in(r, MSR), 0);
	}
	out(r, IER, 0x08);
	assert_false(line(r));
	out(r, MCR, 0x12);
	assert_true(line(r));
	assert_int_equal(in(r, IIR), 0x00);
	assert_true(line(r)); /* reading IIR does not clear it, reading MSR does */
	in(r, MSR);
	assert_false(line(r));
	out(r, MCR, 0x00); /* back to the peer's lines: CTS stays, DSR and DCD rise */
	assert_int_equal(in(r, MSR), 0xba);
}

static void test_interrupt_priority(void **state)
{
	struct rig *r = *state;

	out(r, MCR, 0x10);
	out(r, LCR, 0x03);
	in(r, MSR);
	out(r, MCR, 0x12); /* DCTS */
	out(r, DATA, 'a');
	out(r, DATA, 'b'); /* overrun, data, THRE */
	out(r, IER, 0x0f);
	assert_int_equal(in(r, IIR), 0x06);
	in(r, LSR);
	assert_int_equal(in(r, IIR), 0x04);
	in(r, DATA);
	assert_int_equal(in(r, IIR), 0x02);
	assert_int_equal(in(r, IIR), 0x00);
	in(r, MSR);
	assert_int_equal(in(r, IIR), 0x01);
	assert_false(line(r));
}

static void test_wide_access_is_split(void **state)
{
	struct rig *r = *state;

	out(r, LCR, 0x1b);
	bus_write(r->f.bus, BUS_PIO, BASE + MCR, 2, 0xff03); /* MCR, then LSR */
	assert_int_equal(in(r, MCR), 0x03);
	assert_int_equal(bus_read(r->f.bus, BUS_PIO, BASE + LCR, 2), 0x031b);
	assert_int_equal(bus_read(r->f.bus, BUS_PIO, BASE + SCR, 2), 0xffff); /* over the end */
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_reset_state), T(test_ier_keeps_four_bits), T(test_divisor_has_16_bits_behind_dlab),
		T(test_lcr_scr_hold_eight_bits), T(test_mcr_keeps_five_bits), T(test_lsr_msr_ignore_writes),
		T(test_iir_shows_fifo), T(test_transmit), T(test_thre_interrupt), T(test_receive_without_fifo),
		T(test_receive_trigger_levels), T(test_fifo_keeps_order_over_its_end), T(test_character_timeout),
		T(test_fcr_clears_receiver), T(test_loopback_data), T(test_overrun), T(test_break_in_fifo),
		T(test_modem_status_in_loopback), T(test_interrupt_priority), T(test_wide_access_is_split),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
