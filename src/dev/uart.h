/*
 * A 16550A UART (National Semiconductor PC16550D data sheet) on eight ports or bytes of MMIO.
 *
 * Ownership: bus, chardev and timers outlive the device; uart_new becomes the chardev's client.
 * Threads: every call with the machine lock held. Nothing blocks.
 */
#ifndef DEV_UART_H
#define DEV_UART_H

#include "backend/char/chardev.h"
#include "base/timer.h"
#include "bus/bus.h"
#include "irq/irq.h"

#define UART_LEN 8

struct uart;

struct uart_config {
	struct bus *bus;
	enum bus_space space;
	uint64_t base;
	struct irq_line irq;
	struct chardev *chr; /* NULL: nothing connected */
	struct timer_queue *timers;
	const char *name;
};

struct uart *uart_new(const struct uart_config *cfg, struct error *err);
void uart_free(struct uart *u);
void uart_reset(struct uart *u);

#endif
