/*
 * The bus: guest-physical or port address -> device. Rejects overlap, checks range and width, hands out offsets.
 *
 * Odd guest I/O is not an error: unclaimed or refused reads give all ones, writes are dropped, both are counted.
 * Threads: every access is made with the machine lock held (the engine takes it). Mapping changes likewise.
 */
#ifndef BUS_BUS_H
#define BUS_BUS_H

#include "base/bits.h"
#include "base/error.h"

struct bus;

struct bus_ops {
	/* off is relative to the start of the mapping; size is 1, 2, 4 or 8 and within [min_size, max_size]. */
	uint64_t (*read)(void *dev, uint64_t off, unsigned size);
	void (*write)(void *dev, uint64_t off, unsigned size, uint64_t value);
	unsigned min_size, max_size; /* 0: 1 and 8. A wider access is split into max_size pieces, a narrower one refused */
};

enum bus_space { BUS_MMIO, BUS_PIO };

struct bus_counts {
	uint64_t reads, writes, unclaimed;
};

struct bus *bus_new(void);
void bus_free(struct bus *b);

/* Claim [base, base + len). name is kept by pointer, for diagnostics. Fails on overlap. */
bool bus_map(struct bus *b, enum bus_space space, uint64_t base, uint64_t len, const struct bus_ops *ops, void *dev,
	     const char *name, struct error *err);
/* Move or remove (a PCI BAR that the guest reprograms). Removing what is not mapped is allowed. */
void bus_unmap(struct bus *b, enum bus_space space, uint64_t base);

/* size 1, 2, 4 or 8 (PIO: 1, 2, 4); any alignment; an access over the end of a mapping is refused as a whole. */
uint64_t bus_read(struct bus *b, enum bus_space space, uint64_t addr, unsigned size);
void bus_write(struct bus *b, enum bus_space space, uint64_t addr, unsigned size, uint64_t value);

const struct bus_counts *bus_counts(const struct bus *b);

#endif
