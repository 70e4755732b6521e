/*
 * Repair, in an order that a crash may end anywhere: refcounts that are too low rise, then COPIED flags follow, then
 * refcounts that are too high drop. What tables refer to is believed; what refers to nowhere is left as it is.
 */
#include "backend/block/qcow2/check_int.h"

#include <errno.h>
#include <stdlib.h>

/* Refcount blocks that are nowhere, or where another one is, are made anew where they are needed. */
static int drop_bad_blocks(struct check *k)
{
	struct qcow2 *q = k->q;
	uint8_t *seen = calloc(k->n / 8 + 1, 1);

	if (!seen)
		return -ENOMEM;
	for (uint32_t i = 0; i < q->reft.n; i++) {
		uint64_t c = q->reft.e[i] >> q->cluster_bits;

		if (!q->reft.e[i])
			continue;
		if (!check_block_ok(k, i) || check_bit(seen, c)) {
			if (check_block_ok(k, i) && k->refs[c] && k->refs[c] < CHECK_REFS_MAX)
				k->refs[c]--;
			qcow2_table_set(&q->reft, i, 0);
			continue;
		}
		check_set(seen, c);
	}
	free(seen);
	return 0;
}

/* Refcounts up (down: false) or down to the count of references. */
static int adjust(struct check *k, bool down)
{
	struct qcow2 *q = k->q;
	uint64_t max = qcow2_refcount_max(q), have;
	int r = 0;

	for (uint64_t c = 0; !r && c < k->n; c++) {
		uint64_t want = k->refs[c];

		r = qcow2_refcount_get(q, c, &have);
		if (r || have == want || (have > want) != down || (want == CHECK_REFS_MAX && have > want) || want > max)
			continue;
		if (!down)
			r = qcow2_refcount_cover(q, c);
		if (!r)
			r = qcow2_refcount_set(q, c, want);
	}
	return r;
}

/* The flag that an entry ought to have; e has a place in the file. */
static uint64_t flagged(struct check *k, uint64_t e)
{
	uint64_t c = (e & QCOW2_OFFSET) >> k->q->cluster_bits;

	if (c >= k->n)
		return e;
	return k->refs[c] == 1 ? e | QCOW2_COPIED : e & ~QCOW2_COPIED;
}

static int flags_in_table(struct check *k, uint64_t table)
{
	struct qcow2 *q = k->q;
	int r = 0;

	for (uint64_t at = table; !r && at < table + q->cluster_size; at += q->l2c.slice_size) {
		struct qcow2_slice *s;

		r = qcow2_cache_get(q, &q->l2c, at, &s);
		for (unsigned i = 0; !r && i < qcow2_slice_entries(q); i++) {
			uint64_t bitmap, e = qcow2_slice_entry(q, s, i, &bitmap), now;

			if (e & QCOW2_OFFSET & (q->cluster_size - 1) && !(e & QCOW2_COMPRESSED))
				continue;
			now = e & QCOW2_COMPRESSED ? e & ~QCOW2_COPIED : e & QCOW2_OFFSET ? flagged(k, e) : e;
			if (now != e)
				qcow2_entry_set(q, s, i, (struct qcow2_entry){now, bitmap});
		}
	}
	return r;
}

static int flags(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = 0;

	for (uint32_t i = 0; !r && i < q->l1.n; i++) {
		uint64_t off = q->l1.e[i] & QCOW2_OFFSET, now = off ? flagged(k, q->l1.e[i]) : 0;

		if (!off || off & (q->cluster_size - 1) || off >> q->cluster_bits >= k->n)
			continue;
		if (now != q->l1.e[i])
			qcow2_table_set(&q->l1, i, now);
		r = flags_in_table(k, off);
	}
	return r;
}

int check_repair(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = drop_bad_blocks(k);

	q->corrupt = false; /* or nothing could be allocated */
	q->barrier = true;
	q->written = true;
	if (!r)
		r = adjust(k, false);
	if (!r)
		r = qcow2_commit_stable(q);
	if (!r)
		r = flags(k);
	if (!r)
		r = qcow2_commit_stable(q);
	if (!r)
		r = adjust(k, true);
	if (!r)
		r = qcow2_commit_stable(q);
	q->hint = 1;
	return r;
}
