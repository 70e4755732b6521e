/*
 * What check.c (finding) and repair.c share. `refs` counts the references that tables have to each host cluster, up to
 * 65535, which then stands for "that or more".
 */
#ifndef BACKEND_BLOCK_QCOW2_CHECK_INT_H
#define BACKEND_BLOCK_QCOW2_CHECK_INT_H

#include "backend/block/qcow2/qcow2_int.h"

#define CHECK_REFS_MAX 65535u

struct check_table {
	uint64_t off;
	uint32_t weight; /* L1 entries that refer to it */
	bool active;
};

struct check {
	struct qcow2 *q;
	struct block_check *out;
	uint64_t n;       /* clusters of the file */
	uint16_t *refs;
	uint8_t *meta;    /* a bit: metadata lie in the cluster */
	uint8_t *copied, *uncopied; /* a bit: an active table refers to it with, or without COPIED */
	struct check_table *l2;
	size_t nl2, cap;
	uint32_t lines;   /* reported */
	uint64_t copied_wrong, bad_blocks;
};

static inline bool check_bit(const uint8_t *map, uint64_t i) { return map[i / 8] >> (i & 7) & 1; }
static inline void check_set(uint8_t *map, uint64_t i) { map[i / 8] |= (uint8_t)(1u << (i & 7)); }

void check_say(struct check *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Refcount block `idx` as the file has it, into buf (a cluster); false: there is none that is usable. */
bool check_block_ok(struct check *k, uint32_t idx);

/* repair.c; the findings are in k. Counts what it fixed in k->out. */
int check_repair(struct check *k);

#endif
