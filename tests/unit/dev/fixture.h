/*
 * What a device is made from, faked or real, for the tests of this folder: a real bus and timer queue, an interrupt
 * sink that records, and a chardev that is only a pair of buffers.
 */
#ifndef TESTS_UNIT_DEV_FIXTURE_H
#define TESTS_UNIT_DEV_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "backend/char/chardev.h"
#include "base/timer.h"
#include "bus/bus.h"
#include "irq/irq.h"

struct fake_msi {
	uint64_t addr;
	uint32_t data;
};

struct fixture {
	struct bus *bus;
	struct timer_queue timers;
	struct irq_sink sink;
	bool level[32];
	unsigned edges[32]; /* rising */
	struct fake_msi msi[64];
	unsigned nmsi;
};

/* The fake behind the chardev functions. */
struct chardev {
	struct chardev_client client;
	uint8_t out[4096];
	size_t nout;
	unsigned resumed;
};

void fixture_init(struct fixture *f);
void fixture_fini(struct fixture *f);
struct irq_line fixture_line(struct fixture *f, unsigned gsi);
/* Let the host's clock pass ns and run what is due. */
void fixture_sleep(struct fixture *f, int64_t ns);

static inline uint8_t pio_in8(struct fixture *f, uint16_t port) { return (uint8_t)bus_read(f->bus, BUS_PIO, port, 1); }
static inline void pio_out8(struct fixture *f, uint16_t port, uint8_t v) { bus_write(f->bus, BUS_PIO, port, 1, v); }

#endif
