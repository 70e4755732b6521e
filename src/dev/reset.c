#include "dev/reset.h"

#include <stdlib.h>

enum {
	PORT_KBD_DATA = 0x60, PORT_KBD_COMMAND = 0x64, PORT_A = 0x92,
	KBD_PULSE_RESET = 0xfe,
	PORT_A_FAST_RESET = 0x01, PORT_A_A20 = 0x02,
	CF9_SYSTEM = 0x02, CF9_CPU = 0x04, CF9_FULL = 0x08,
};

struct reset_state {
	uint8_t cf9;
	uint8_t port_a;
};

struct reset {
	struct reset_state s;
	struct bus *bus;
	void (*on_reset)(void *ctx);
	void *ctx;
};

uint8_t reset_cf9_read(const struct reset *r) { return r->s.cf9; }

/* A rising CF9_CPU resets; which kind, CF9_SYSTEM says, and both are the same to us. */
void reset_cf9_write(struct reset *r, uint8_t value)
{
	bool rising = value & ~r->s.cf9 & CF9_CPU;

	r->s.cf9 = value & (CF9_SYSTEM | CF9_CPU | CF9_FULL);
	if (rising)
		r->on_reset(r->ctx);
}

static uint64_t none_read(void *dev, uint64_t off, unsigned size) { return 0xff; }
static void none_write(void *dev, uint64_t off, unsigned size, uint64_t value) {}

static void command_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct reset *r = dev;

	if (value == KBD_PULSE_RESET)
		r->on_reset(r->ctx);
}

static uint64_t port_a_read(void *dev, uint64_t off, unsigned size)
{
	const struct reset *r = dev;

	return r->s.port_a;
}

static void port_a_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct reset *r = dev;
	bool rising = value & ~r->s.port_a & PORT_A_FAST_RESET;

	r->s.port_a = value & (PORT_A_A20 | PORT_A_FAST_RESET);
	if (rising)
		r->on_reset(r->ctx);
}

static const struct bus_ops data_ops = {none_read, none_write, 1, 1};
static const struct bus_ops command_ops = {none_read, command_write, 1, 1};
static const struct bus_ops port_a_ops = {port_a_read, port_a_write, 1, 1};

void reset_reset(struct reset *r)
{
	r->s = (struct reset_state){.port_a = PORT_A_A20};
}

struct reset *reset_new(struct bus *bus, void (*on_reset)(void *ctx), void *ctx, struct error *err)
{
	struct reset *r = calloc(1, sizeof(*r));

	if (!r) {
		error_set(err, "reset: out of memory");
		return NULL;
	}
	r->bus = bus;
	r->on_reset = on_reset;
	r->ctx = ctx;
	reset_reset(r);
	if (!bus_map(bus, BUS_PIO, PORT_KBD_DATA, 1, &data_ops, r, "i8042-data", err))
		goto no_data;
	if (!bus_map(bus, BUS_PIO, PORT_KBD_COMMAND, 1, &command_ops, r, "i8042-command", err))
		goto no_command;
	if (!bus_map(bus, BUS_PIO, PORT_A, 1, &port_a_ops, r, "port-92", err))
		goto no_port_a;
	return r;
no_port_a:
	bus_unmap(bus, BUS_PIO, PORT_KBD_COMMAND);
no_command:
	bus_unmap(bus, BUS_PIO, PORT_KBD_DATA);
no_data:
	free(r);
	return NULL;
}

void reset_free(struct reset *r)
{
	if (!r)
		return;
	bus_unmap(r->bus, BUS_PIO, PORT_KBD_DATA);
	bus_unmap(r->bus, BUS_PIO, PORT_KBD_COMMAND);
	bus_unmap(r->bus, BUS_PIO, PORT_A);
	free(r);
}
