/*
 * Is there metadata at a place? The header and the tables that lie in one piece are compared; L2 tables and refcount blocks
 * are looked up in a filter of 2^20 bits first, as they are many. A bit that is set says "perhaps": then the tables that
 * refer to them are searched.
 */
#include "backend/block/qcow2/qcow2_int.h"

#define FILTER_BITS 20

static uint64_t hash(uint64_t cluster) { return cluster * UINT64_C(0x9e3779b97f4a7c15) >> (64 - FILTER_BITS); }

void qcow2_overlap_add(struct qcow2 *q, uint64_t off)
{
	uint64_t h = hash(off >> q->cluster_bits);

	q->filter[h / 64] |= BIT(h & 63);
}

static bool meets(const struct qcow2 *q, uint64_t off, uint64_t len, uint64_t t, uint64_t tlen)
{
	return tlen && off < align_up(t + tlen, q->cluster_size) && t < off + len;
}

static bool listed(const struct qcow2_table *t, uint64_t mask, uint64_t off)
{
	for (uint32_t i = 0; i < t->n; i++) {
		if ((t->e[i] & mask) == off)
			return true;
	}
	return false;
}

bool qcow2_overlap(struct qcow2 *q, uint64_t off, uint64_t len)
{
	if (off < q->cluster_size || meets(q, off, len, q->l1.off, (uint64_t)q->l1.n * 8) ||
	    meets(q, off, len, q->reft.off, (uint64_t)q->reft.n * 8) ||
	    meets(q, off, len, q->h.snapshots_off, qcow2_snapshots_bytes(q)))
		return true;
	for (uint32_t i = 0; i < q->h.nb_snapshots; i++) {
		if (meets(q, off, len, q->snapshots[i].l1_off, (uint64_t)q->snapshots[i].l1_size * 8))
			return true;
	}
	for (uint64_t c = align_down(off, q->cluster_size); c < off + len; c += q->cluster_size) {
		uint64_t h = hash(c >> q->cluster_bits);

		if (q->filter[h / 64] & BIT(h & 63) &&
		    (listed(&q->l1, QCOW2_OFFSET, c) || listed(&q->reft, ~UINT64_C(511), c)))
			return true;
	}
	return false;
}
