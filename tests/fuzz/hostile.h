/*
 * A hostile guest, made from a seed: what hostile_fuzz.c (the driver) and hostile_gen.c (code) and hostile_world.c (tables and
 * state) share.
 */
#ifndef HOSTILE_H
#define HOSTILE_H

#include "base/bits.h"
#include "cpu/state.h"
#include "mem/ram.h"

struct rng {
	uint64_t state;
};

static inline uint64_t rnd(struct rng *r)
{
	uint64_t z = (r->state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}
static inline unsigned below(struct rng *r, unsigned n) { return (unsigned)(rnd(r) % n); }

#define HOSTILE_RAM (256 * MIB)

/* Where things are in guest-physical memory. */
enum {
	W_GDT = 0x1000, W_LDT = 0x1800, W_IDT = 0x2000, W_TSS = 0x3000, W_STUBS = 0x6000, W_STACKS = 0x8000, W_STACKS_END = 0xf000,
	W_TABLES = 0x10000, W_TABLES_END = 0x1f000, W_CODE = 0x20000, W_CODE_LEN = 0x10000, W_DATA = 0x30000, W_DATA_LEN = 0x10000,
	W_RINGS = 0x40000, W_LOW = 0x800000 /* mapped by 4 KiB pages */
};

enum world_mode { WORLD_REAL, WORLD_FLAT32, WORLD_PAGED32, WORLD_PAE, WORLD_V86, WORLD_COMPAT, WORLD_LONG, WORLD_MODES };

struct world {
	enum world_mode mode;
	unsigned bits; /* of code: 16, 32, 64 */
	unsigned cpl;
	bool wild_tables; /* random page tables and descriptor tables */
	bool storm;       /* handlers return to the instruction that faulted */
};

/* Fill RAM with tables and handlers and make the state; code is at W_CODE. */
void world_make(struct rng *r, struct ram *ram, struct world *w, struct cpu_state *s);

/* Fill [buf, buf + len) with code for the world. */
void gen_code(struct rng *r, const struct world *w, uint8_t *buf, unsigned len);
/* One of a list of loops that a guest may never leave; writes at buf, returns its length. */
unsigned gen_storm(struct rng *r, const struct world *w, uint8_t *buf);

#endif
