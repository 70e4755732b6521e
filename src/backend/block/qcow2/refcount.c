#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define SCAN_MAX (1u << 20) /* clusters looked at below the end of the file before a new one is put there */

uint64_t qcow2_refcount_max(const struct qcow2 *q)
{
	return q->refcount_order == 6 ? INT64_MAX : (UINT64_C(1) << (1u << q->refcount_order)) - 1;
}

static uint64_t entry_get(const struct qcow2 *q, const uint8_t *p, uint64_t i)
{
	unsigned bits = 1u << q->refcount_order;

	switch (q->refcount_order) {
	case 3: return p[i];
	case 4: return get_be16(p + i * 2);
	case 5: return get_be32(p + i * 4);
	case 6: return get_be64(p + i * 8);
	default: return p[i * bits / 8] >> (i * bits & 7) & ((1u << bits) - 1);
	}
}

static void entry_set(const struct qcow2 *q, uint8_t *p, uint64_t i, uint64_t v)
{
	unsigned bits = 1u << q->refcount_order, shift = (unsigned)(i * bits & 7), mask = (1u << (bits & 7)) - 1;

	switch (q->refcount_order) {
	case 3: p[i] = (uint8_t)v; break;
	case 4: put_be16(p + i * 2, (uint16_t)v); break;
	case 5: put_be32(p + i * 4, (uint32_t)v); break;
	case 6: put_be64(p + i * 8, v); break;
	default:
		p[i * bits / 8] = (uint8_t)((p[i * bits / 8] & ~(mask << shift)) | (unsigned)v << shift);
		break;
	}
}

static uint64_t slice_entries(const struct qcow2 *q) { return (uint64_t)q->rcc.slice_size * 8 >> q->refcount_order; }

/*
 * The slice that has the cluster's refcount; *s is NULL where there is no refcount block. *i: the entry's index; *first: the
 * cluster of entry 0.
 */
static int slice_get(struct qcow2 *q, uint64_t cluster, struct qcow2_slice **s, uint64_t *i, uint64_t *first)
{
	uint64_t block = cluster >> q->rb_bits, in = cluster & (BIT(q->rb_bits) - 1), per = slice_entries(q), off;

	*i = in & (per - 1);
	*first = cluster - *i;
	*s = NULL;
	off = block < q->reft.n ? q->reft.e[block] : 0;
	if (!off)
		return 0;
	if (off & (q->cluster_size - 1) || off >> q->cluster_bits >= q->end)
		return qcow2_mark_corrupt(q, "a refcount block has an impossible offset");
	return qcow2_cache_get(q, &q->rcc, off + in / per * q->rcc.slice_size, s);
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *val)
{
	struct qcow2_slice *s;
	uint64_t i, first;
	int r = slice_get(q, cluster, &s, &i, &first);

	*val = !r && s ? entry_get(q, s->data, i) : 0;
	return r;
}

/* A cluster is free from now on. */
static void note_free(struct qcow2 *q, uint64_t cluster)
{
	q->hint = min_u64(q->hint, cluster);
	if (q->comp_off >> q->cluster_bits == cluster)
		q->comp_off = 0;
}

int qcow2_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t val)
{
	struct qcow2_slice *s;
	uint64_t i, first;
	int r = slice_get(q, cluster, &s, &i, &first);

	if (r)
		return r;
	if (!s || val > qcow2_refcount_max(q))
		return -EIO;
	entry_set(q, s->data, i, val);
	qcow2_cache_dirty(&q->rcc, s);
	if (!val)
		note_free(q, cluster);
	return 0;
}

int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t n, int delta)
{
	uint64_t max = qcow2_refcount_max(q), done = 0;
	int r = 0;

	while (done < n && !r) {
		struct qcow2_slice *s;
		uint64_t i, first;

		r = slice_get(q, cluster + done, &s, &i, &first);
		if (!r && !s)
			r = delta > 0 ? qcow2_refcount_cover(q, cluster + done) : qcow2_mark_corrupt(q, "a cluster in use has no refcount");
		if (r || !s)
			continue;
		for (; done < n && i < slice_entries(q); i++, done++) {
			uint64_t v = entry_get(q, s->data, i);

			if (delta > 0 && v >= max) {
				r = -EOVERFLOW;
				break;
			}
			if (delta < 0 && !v) {
				r = qcow2_mark_corrupt(q, "a cluster in use has refcount 0");
				break;
			}
			v += (uint64_t)(int64_t)delta;
			entry_set(q, s->data, i, v);
			qcow2_cache_dirty(&q->rcc, s);
			if (!v)
				note_free(q, cluster + done);
		}
	}
	if (r && delta > 0 && done)
		qcow2_refcount_add(q, cluster, done, -delta);
	return r;
}

static void punch(struct qcow2 *q, uint64_t cluster, uint64_t n)
{
	if (n)
		(void)!fallocate(q->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(cluster << q->cluster_bits),
				 (off_t)(n << q->cluster_bits)); /* a favour to the host, no more */
}

void qcow2_free_now(struct qcow2 *q, uint64_t cluster, uint64_t n, bool give_back)
{
	uint64_t start = cluster, run = 0; /* of clusters that are free now */

	for (uint64_t c = cluster; c < cluster + n; c++) {
		uint64_t v = 1;

		if (qcow2_refcount_add(q, c, 1, -1) || (give_back && qcow2_refcount_get(q, c, &v)))
			v = 1;
		if (!give_back)
			continue;
		if (v == 0) {
			start = run ? start : c;
			run++;
		} else {
			punch(q, start, run);
			run = 0;
		}
	}
	punch(q, start, run);
}

static void grown(struct qcow2 *q, uint64_t end)
{
	q->end = max_u64(q->end, end);
	q->virgin = max_u64(q->virgin, end);
}

/* How many refcount blocks [c, c + n) lacks. */
static uint64_t blocks_missing(const struct qcow2 *q, uint64_t c, uint64_t n)
{
	uint64_t missing = 0;

	for (uint64_t i = c >> q->rb_bits; i <= (c + n - 1) >> q->rb_bits; i++)
		missing += i >= q->reft.n || !q->reft.e[i];
	return missing;
}

/* A copy of the refcount table that has room for block `last`, at clusters that are new; *clusters: how many. */
static int reftable_grow(struct qcow2 *q, uint64_t at, uint64_t clusters)
{
	uint32_t n = (uint32_t)(clusters << (q->cluster_bits - 3));
	struct qcow2_table t;

	if (!qcow2_table_init(&t, at << q->cluster_bits, n)) {
		qcow2_table_fini(&t);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < n; i++)
		qcow2_table_set(&t, i, i < q->reft.n ? q->reft.e[i] : 0);
	if (!q->reft_moved) {
		q->old_reft_off = q->reft.off;
		q->old_reft_clusters = qcow2_clusters(q, (uint64_t)q->reft.n * 8);
	} else { /* nothing on disk refers to it */
		qcow2_free_later(q, q->reft.off >> q->cluster_bits, qcow2_clusters(q, (uint64_t)q->reft.n * 8), false);
	}
	qcow2_table_fini(&q->reft);
	q->reft = t;
	q->reft_moved = true;
	return 0;
}

/*
 * Makes refcount blocks for [c, c + n + what they take themselves), and a bigger refcount table if need be; they are put at
 * c, where no cluster may be in use. *after: the first cluster behind them.
 */
static int extend(struct qcow2 *q, uint64_t c, uint64_t n, uint64_t *after)
{
	uint64_t blocks = 0, table = 0, k, need, r0 = c >> q->rb_bits;
	int r;

	for (;;) { /* until the sum covers itself */
		uint64_t total = n + blocks + table, last;

		last = (c + total - 1) >> q->rb_bits;
		k = blocks_missing(q, c, total);
		need = 0;
		if (last >= q->reft.n)
			need = qcow2_clusters(q, (last + 1 + last / 2) * 8);
		if (need << q->cluster_bits > QCOW2_MAX_REFTABLE) /* without the reserve, perhaps */
			need = qcow2_clusters(q, (last + 1) * 8);
		if (need << q->cluster_bits > QCOW2_MAX_REFTABLE || (c + total) << q->cluster_bits >= QCOW2_MAX_OFFSET)
			return -EFBIG;
		if (k <= blocks && need <= table)
			break;
		blocks = max_u64(k, blocks);
		table = max_u64(need, table);
	}
	if (qcow2_overlap(q, c << q->cluster_bits, (blocks + table) << q->cluster_bits))
		return qcow2_mark_corrupt(q, "metadata lies in a cluster that counts as free");
	r = qcow2_pwrite_zeroes(q, c << q->cluster_bits, blocks << q->cluster_bits);
	if (!r && table)
		r = reftable_grow(q, c + blocks, table);
	if (r)
		return r;
	qcow2_cache_drop(&q->rcc, c << q->cluster_bits, blocks << q->cluster_bits);
	k = 0;
	for (uint64_t i = r0; k < blocks && i < q->reft.n; i++) {
		if (q->reft.e[i])
			continue;
		qcow2_overlap_add(q, (c + k) << q->cluster_bits);
		qcow2_table_set(&q->reft, (uint32_t)i, (c + k) << q->cluster_bits);
		k++;
	}
	grown(q, c + blocks + table);
	*after = c + blocks + table;
	return qcow2_refcount_add(q, c, k + table, 1);
}

/* The first cluster at or after the end from which on no refcount is set, as far as n and its refcount blocks reach. */
static int find_tail(struct qcow2 *q, uint64_t n, uint64_t *out)
{
	uint64_t c = q->end, span = n + 2 * (n >> q->rb_bits) + 2, budget = 16 * SCAN_MAX;

	for (uint64_t x = c; x < c + span; x++) {
		uint64_t v;
		int r = qcow2_refcount_get(q, x, &v);

		if (r)
			return r;
		if (!budget--)
			return qcow2_mark_corrupt(q, "too many refcounts beyond the end of the file");
		if (v)
			c = x + 1;
	}
	*out = c;
	return 0;
}

int qcow2_refcount_cover(struct qcow2 *q, uint64_t cluster)
{
	uint64_t idx = cluster >> q->rb_bits, c, after;
	int r;

	if (idx < q->reft.n && q->reft.e[idx])
		return 0;
	r = find_tail(q, q->reft.n / (q->cluster_size / 8) * 2 + 4, &c);
	if (!r)
		r = extend(q, c, 1, &after);
	if (r || (idx < q->reft.n && q->reft.e[idx]))
		return r;
	if (idx >= q->reft.n)
		return -EIO;
	/* `after` is covered, and free. */
	r = qcow2_pwrite_zeroes(q, after << q->cluster_bits, q->cluster_size);
	if (r)
		return r;
	qcow2_cache_drop(&q->rcc, after << q->cluster_bits, q->cluster_size);
	qcow2_overlap_add(q, after << q->cluster_bits);
	grown(q, after + 1);
	r = qcow2_refcount_add(q, after, 1, 1);
	if (!r)
		qcow2_table_set(&q->reft, (uint32_t)idx, after << q->cluster_bits);
	return r;
}

static int alloc_take(struct qcow2 *q, uint64_t c, uint64_t n)
{
	int r;

	if (qcow2_overlap(q, c << q->cluster_bits, n << q->cluster_bits))
		return qcow2_mark_corrupt(q, "metadata lies in a cluster that counts as free");
	r = qcow2_refcount_add(q, c, n, 1);
	if (!r) {
		q->barrier = true;
		grown(q, c + n);
	}
	return r;
}

int qcow2_alloc_clusters(struct qcow2 *q, uint64_t want, uint64_t *off, uint64_t *got, bool *zero)
{
	uint64_t c = max_u64(q->hint, 1), budget = SCAN_MAX;
	int r;

	for (;;) {
		struct qcow2_slice *s;
		uint64_t i, first, n = 0, per = slice_entries(q);

		if (budget == 0 && c >= q->end)
			return qcow2_mark_corrupt(q, "too many refcounts beyond the end of the file");
		if (budget == 0) {
			c = q->end;
			budget = SCAN_MAX;
		}
		if (c << q->cluster_bits >= QCOW2_MAX_OFFSET)
			return -EFBIG;
		r = slice_get(q, c, &s, &i, &first);
		if (!r && !s) {
			r = qcow2_refcount_cover(q, c);
			if (!r)
				continue;
		}
		if (r)
			return r;
		for (; i < per && budget && entry_get(q, s->data, i); i++)
			budget--;
		c = first + i;
		if (i == per || !budget)
			continue;
		while (i + n < per && n < want && !entry_get(q, s->data, i + n))
			n++;
		*zero = c >= q->virgin;
		if (!*zero && c + n > q->virgin)
			n = q->virgin - c; /* all alike */
		r = alloc_take(q, c, n);
		if (r)
			return r;
		q->hint = c + n;
		*off = c << q->cluster_bits;
		*got = n;
		return 0;
	}
}

int qcow2_alloc_exact(struct qcow2 *q, uint64_t n, uint64_t *off)
{
	uint64_t c;
	int r = find_tail(q, n, &c);

	if (!r && blocks_missing(q, c, n))
		r = extend(q, c, n, &c);
	if (!r)
		r = alloc_take(q, c, n);
	*off = c << q->cluster_bits;
	return r;
}

/* Compressed clusters share host clusters; each counts once for every cluster it touches. */
int qcow2_alloc_bytes(struct qcow2 *q, uint32_t size, uint64_t *off)
{
	uint64_t room = q->comp_off ? q->cluster_size - (q->comp_off & (q->cluster_size - 1)) : 0, c, got, refs = 0;
	bool zero;
	int r = 0;

	if (room) {
		r = qcow2_refcount_get(q, q->comp_off >> q->cluster_bits, &refs);
		if (r)
			return r;
		if (refs >= qcow2_refcount_max(q))
			room = q->comp_off = 0;
	}
	if (room < size) {
		r = qcow2_alloc_clusters(q, 1, &c, &got, &zero);
		if (r)
			return r;
		if (!room || c >> q->cluster_bits != (q->comp_off >> q->cluster_bits) + 1) {
			q->comp_off = c;
			room = 0;
		}
	}
	*off = q->comp_off;
	if (room) {
		r = qcow2_refcount_add(q, q->comp_off >> q->cluster_bits, 1, 1);
		if (r && room < size)
			qcow2_free_now(q, c >> q->cluster_bits, 1, false);
		if (r)
			return r;
	}
	q->barrier = true;
	q->comp_off += size;
	if (!(q->comp_off & (q->cluster_size - 1)))
		q->comp_off = 0;
	return 0;
}
