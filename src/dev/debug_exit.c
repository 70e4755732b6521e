#include "dev/debug_exit.h"

#include <stdlib.h>

struct debug_exit {
	struct bus *bus;
	uint16_t port;
	void (*on_exit)(void *ctx, uint32_t value);
	void *ctx;
};

static uint64_t debug_exit_read(void *dev, uint64_t off, unsigned size) { return mask_bytes(size); }

static void debug_exit_write(void *dev, uint64_t off, unsigned size, uint64_t value)
{
	struct debug_exit *d = dev;

	if (off == 0)
		d->on_exit(d->ctx, (uint32_t)value);
}

static const struct bus_ops debug_exit_ops = {debug_exit_read, debug_exit_write, 1, 4};

struct debug_exit *debug_exit_new(struct bus *bus, uint16_t port, void (*on_exit)(void *ctx, uint32_t value), void *ctx,
				  struct error *err)
{
	struct debug_exit *d = calloc(1, sizeof(*d));

	if (!d) {
		error_set(err, "debug-exit: out of memory");
		return NULL;
	}
	*d = (struct debug_exit){bus, port, on_exit, ctx};
	if (!bus_map(bus, BUS_PIO, port, DEBUG_EXIT_LEN, &debug_exit_ops, d, "debug-exit", err)) {
		free(d);
		return NULL;
	}
	return d;
}

void debug_exit_free(struct debug_exit *d)
{
	if (!d)
		return;
	bus_unmap(d->bus, BUS_PIO, d->port);
	free(d);
}
