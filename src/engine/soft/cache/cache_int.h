/*
 * The code cache: one memfd, mapped twice (write here, execute there: never both in one mapping), blocks found by guest
 * address or host address, and dropped by guest page. Blocks are allocated in order and freed all at once.
 *
 * Threads: one cache for all vCPUs. Its lock is held for look-ups, translation, links and dropping; functions named
 * _locked want it held. It comes after the machine lock; under it nobody waits for anything. Running code needs no lock:
 * - the jump caches are read by their own vCPU's translated code. Entries are made by that vCPU; others only empty them,
 *   by one store;
 * - a field of code that is patched lies within an aligned 8 bytes, and is written by one store: a CPU that runs it sees
 *   the old or the new (e_align_field);
 * - a dropped block keeps its bytes until everything is flushed, which stops the world: who runs it comes to its end, and
 *   finds no other dropped block from there. Whatever else comes to lead to blocks must be undone in block_kill_locked and
 *   cache_flush;
 * - blocks[] and map[] grow at their end: the signal handler looks up its own block there without the lock.
 *
 * A page is watched (and protected) before its bytes are read for translation, and whoever writes a page by another way than ram_rw
 * looks at the watch map after its store: either the translation has seen the store, or the writer sees the watch and drops it.
 */
#ifndef ENGINE_SOFT_CACHE_INT_H
#define ENGINE_SOFT_CACHE_INT_H

#include "engine/soft/soft_int.h"

#define BLOCK_HASH_BITS 18 /* so that a full cache has two blocks in a chain */
#define BLOCK_HASH (1u << BLOCK_HASH_BITS)
#define STEP_HASH 4096
#define HOT_HASH 65536
/* Each protected page may split the guest's RAM view into two more mappings; the host's default limit is 65,530. */
#define MAX_PROTECTED 16000

/* Per page of RAM with translated code. */
struct code_page {
	struct block *blocks;
	uint64_t chunks; /* 64-byte chunks that hold translated bytes */
	uint32_t spared; /* writes beside the code that were let through */
	uint32_t nr;     /* in watched[] */
	uint32_t slot;   /* where contexts note the guest address that it is mapped at; 0: none yet. Kept until everything is flushed */
};

struct step_stub {
	uint8_t bytes[16];
	uint8_t len, mode;
	uint32_t host_off;
	struct step_stub *next;
};

/* What was learnt of an instruction's memory operand, by gpa of the instruction (adaptive translation). */
struct site {
	gpa_t gpa;
	uint16_t slow_hits;
	bool misaligned;
};

struct code_cache {
	struct soft_engine *engine;
	atomic_uint lock; /* 0 free, 1 held, 2 held and somebody may wait */
	uint8_t *rw, *rx;
	size_t size, used, prologue_end;
	/* prologue entry points (offsets) */
	uint32_t exit_chain, exit_lookup, exit_slow, exit_step, exit_signal, indirect;

	struct block *hash[BLOCK_HASH];
	struct block *blocks; /* in host order */
	_Atomic uint32_t nblocks;
	uint32_t max_blocks;
	struct link *links;
	uint32_t nlinks, max_links;
	struct insn_map *map;
	uint32_t nmap, max_map;
	struct step_stub *steps[STEP_HASH], *step_pool;
	uint32_t nsteps, max_steps;
	struct code_page *pages; /* by memfd page, lazily touched */
	uint32_t nslots;             /* code slots given */
	uint32_t slot_pages[CODE_SLOTS]; /* RAM page of each */
	uint64_t watched[MAX_PROTECTED + 2]; /* RAM pages, in no order */
	uint32_t nwatched;
	uint32_t flushes;
	struct site sites[4096];
	bool flush_wanted;
	uint8_t hot[HOT_HASH / 8]; /* guest-physical addresses whose code is worth a region, hashed */
	bool all_hot;        /* of tests */
	bool misaligned_sse; /* the host has MXCSR.MM: aligned SSE forms may be told not to fault */
};

/* Page base of a code slot, from GS on. */
#define BASE_FIELD(slot) (-(int32_t)BASE_OFF + 8 * (int32_t)(slot))

/* A lock of our own, as libc's promises nothing about vector registers (vec_save). */
void cache_lock_wait(struct code_cache *c);
void cache_lock_wake(struct code_cache *c);
static inline void cache_lock(struct code_cache *c)
{
	unsigned is_free = 0;

	if (!atomic_compare_exchange_strong_explicit(&c->lock, &is_free, 1, memory_order_acquire, memory_order_relaxed))
		cache_lock_wait(c);
}
static inline void cache_unlock(struct code_cache *c)
{
	if (atomic_exchange_explicit(&c->lock, 0, memory_order_release) == 2)
		cache_lock_wake(c);
}

/* An access by this instruction was misaligned, or needed the slow path (MMIO) `SITE_SLOW_HITS` times: translated so next time. */
#define SITE_SLOW_HITS 3
static inline struct site *site_of(struct soft_vcpu *sv, gpa_t gpa)
{
	struct code_cache *c = sv->cache;

	return &c->sites[(gpa ^ (gpa >> 12)) & (ARRAY_LEN(c->sites) - 1)];
}

static inline unsigned cache_hot_index(gpa_t gpa) { return (unsigned)((gpa * UINT64_C(0x9e3779b97f4a7c15)) >> 48); }
static inline bool cache_is_hot(const struct code_cache *c, gpa_t gpa)
{
	unsigned i = cache_hot_index(gpa);

	return c->all_hot || (c->hot[i >> 3] & (1u << (i & 7)));
}

struct block *cache_lookup_locked(struct code_cache *c, uint64_t pc, gpa_t gpa, uint32_t hflags);
/* Watch and protect the page at gpa, which is about to be read for translation. False: the host refuses; flush. */
bool cache_watch_locked(struct code_cache *c, gpa_t gpa);
/* b's host code, map and fields are complete, its pages watched. */
void cache_insert_locked(struct code_cache *c, struct block *b);
/* Take b out of everything that leads to it. Its host code stays until the next flush: it may be running. */
void block_kill_locked(struct code_cache *c, struct block *b);
void cache_link_locked(struct soft_vcpu *sv, uint32_t link_no, struct block *to);
/* The code slot of the page at gpa. */
uint32_t cache_slot_locked(struct code_cache *c, gpa_t gpa);
/* The guest's code of b is still what was translated. Any thread, no lock. */
bool cache_block_intact(const struct code_cache *c, const struct block *b);
uint32_t cache_code_sum(const uint8_t *code, unsigned len);

#endif
