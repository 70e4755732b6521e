/*
 * The ways by which a PC's software resets it: the reset control register (port 0xcf9, PIIX/ICH9 13.7.5), the keyboard
 * controller's pulse (port 0x64, command 0xfe) and the fast reset of port 0x92.
 *
 * There is no keyboard controller: its status reads 0xff, so that drivers find none. Port 0x92 keeps the A20 bit for
 * the guest to read; addresses are never masked.
 * Port 0xcf9 lies inside PCI's configuration ports: the host bridge claims 0xcf8-0xcff and calls reset_cf9_*.
 * Threads: machine lock held; so is it when the callback runs (it must only take note).
 */
#ifndef DEV_RESET_H
#define DEV_RESET_H

#include "bus/bus.h"

#define RESET_PORT 0xcf9  /* for the FADT's RESET_REG ... */
#define RESET_VALUE 0x06  /* ... and RESET_VALUE */

struct reset;

/* Claims ports 0x60, 0x64 and 0x92. */
struct reset *reset_new(struct bus *bus, void (*on_reset)(void *ctx), void *ctx, struct error *err);
void reset_free(struct reset *r);
void reset_reset(struct reset *r);

uint8_t reset_cf9_read(const struct reset *r);
void reset_cf9_write(struct reset *r, uint8_t value);

#endif
