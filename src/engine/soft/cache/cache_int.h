/*
 * The code cache: one memfd, mapped twice (write here, execute there: never both in one mapping), blocks found by guest
 * address or host address, and dropped by guest page. Blocks are allocated in order and freed all at once.
 */
#ifndef ENGINE_SOFT_CACHE_INT_H
#define ENGINE_SOFT_CACHE_INT_H

#include "engine/soft/soft_int.h"

#define BLOCK_HASH 65536
#define STEP_HASH 4096
#define SEEN_HASH 65536

/* Per page of RAM with translated code. */
struct code_page {
	struct block *blocks;
	uint64_t chunks; /* 64-byte chunks that hold translated bytes */
	uint32_t spared; /* writes beside the code that were let through */
};

/*
 * A page of guest addresses with code, mapped to a guest-physical page, has a number. Each context's ITLB holds the numbers
 * of the mappings known to be in force; a jump to another page compares. So a TLB flush drops nothing but ITLB entries:
 * blocks and chains live on, and work again when the page proves to be mapped as before.
 */
struct mapping {
	uint64_t page, gpa_page;
	uint32_t id; /* 0: free; never given twice */
};
#define MAPPINGS 131072 /* hash table, at most half full */

struct step_stub {
	uint8_t bytes[16];
	uint8_t len, mode;
	uint32_t host_off;
	struct step_stub *next;
};

struct code_cache {
	struct soft_engine *engine;
	uint8_t *rw, *rx;
	size_t size, used, prologue_end;
	/* prologue entry points (offsets) */
	uint32_t exit_chain, exit_lookup, exit_slow, exit_step, exit_signal, indirect;

	struct block *hash[BLOCK_HASH];
	struct block *blocks; /* in host order */
	uint32_t nblocks, max_blocks;
	struct link *links;
	uint32_t nlinks, max_links;
	struct insn_map *map;
	uint32_t nmap, max_map;
	struct step_stub *steps[STEP_HASH], *step_pool;
	uint32_t nsteps, max_steps;
	struct code_page *pages; /* by memfd page, lazily touched */
	uint32_t protected_pages;
	struct mapping *mappings;
	uint32_t nmappings, next_mapping;
	uint8_t seen[SEEN_HASH / 8]; /* linear pages with code, hashed: false positives only cost a flush */
	bool flush_wanted;
	bool misaligned_sse; /* the host has MXCSR.MM: aligned SSE forms may be told not to fault */
};

uint32_t cache_mapping(struct code_cache *c, uint64_t page, uint64_t gpa_page);

#endif
