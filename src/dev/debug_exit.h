/*
 * The debug-exit port: a write of v ends the VM with exit status (v << 1) | 1. Reads give all ones.
 * Threads: machine lock held; so is it when the callback runs.
 */
#ifndef DEV_DEBUG_EXIT_H
#define DEV_DEBUG_EXIT_H

#include "bus/bus.h"

#define DEBUG_EXIT_LEN 4

struct debug_exit;

struct debug_exit *debug_exit_new(struct bus *bus, uint16_t port, void (*on_exit)(void *ctx, uint32_t value), void *ctx,
				  struct error *err);
void debug_exit_free(struct debug_exit *d);

#endif
