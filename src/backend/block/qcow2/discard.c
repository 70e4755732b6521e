/* Discard and zeroing: L2 entries change, host clusters are given back. */
#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum mode { DISCARD, ZERO_KEEP, ZERO_UNMAP };

#define ALL_SUBS UINT64_C(0xffffffff)
#define WRITE_CHUNK (1 * MIB)

/* A run of guest bytes to be dealt with in one way. */
struct span {
	uint64_t off, len;
	enum mode mode;
};

/* Would the backing file show through at guest offset `at`? */
static bool shows_below(const struct qcow2 *q, uint64_t at) { return q->b->backing && at < q->b->backing->size; }

static struct qcow2_entry zero_entry(const struct qcow2 *q, uint64_t host)
{
	return q->extended ? (struct qcow2_entry){host, ALL_SUBS << 32} : (struct qcow2_entry){host | QCOW2_ZERO, 0};
}

/* A whole cluster. Returns 1 and what the entry becomes, 0: nothing to do, -ENOTSUP: zeroes must be written. */
static int whole(const struct qcow2 *q, struct qcow2_entry old, enum mode mode, bool below, struct qcow2_entry *e)
{
	bool v3 = q->h.version >= 3, packed = old.e & QCOW2_COMPRESSED, host = !packed && old.e & QCOW2_OFFSET;

	if (!packed && !host) {
		bool plain = q->extended ? old.bitmap >> 32 == ALL_SUBS : old.e & QCOW2_ZERO;

		if (mode == DISCARD || !below || plain)
			return 0;
		*e = zero_entry(q, 0);
		return v3 ? 1 : -ENOTSUP;
	}
	if (mode == ZERO_KEEP && host) {
		*e = zero_entry(q, old.e & (QCOW2_OFFSET | QCOW2_COPIED));
		return v3 ? 1 : -ENOTSUP;
	}
	if (!below) {
		*e = (struct qcow2_entry){0, 0};
		return 1;
	}
	*e = zero_entry(q, 0);
	return v3 ? 1 : mode == DISCARD ? 0 : -ENOTSUP;
}

/* Some subclusters of a cluster. */
static int partly(const struct qcow2 *q, struct qcow2_entry old, enum mode mode, uint64_t mask, struct qcow2_entry *e)
{
	if (old.e & QCOW2_COMPRESSED)
		return mode == DISCARD ? 0 : -ENOTSUP;
	if (mode == DISCARD)
		mask &= old.bitmap;
	*e = (struct qcow2_entry){old.e, (old.bitmap & ~mask) | mask << 32};
	if (mode != ZERO_KEEP && !(e->bitmap & ALL_SUBS))
		e->e = 0; /* nothing left in it */
	return e->e != old.e || e->bitmap != old.bitmap;
}

/* The subclusters (bit 0: the cluster, without extended L2) of the cluster at `at` that lie wholly in [off, end). */
static uint64_t whole_subs(const struct qcow2 *q, uint64_t at, uint64_t off, uint64_t end)
{
	uint64_t sub = BIT(q->sub_bits), lo = align_up(max_u64(off, at), sub) - at, hi = min_u64(end, at + q->cluster_size) - at;

	if (end < q->b->size || at + hi != q->b->size) /* the last one ends with the disk */
		hi = align_down(hi, sub);
	lo >>= q->sub_bits;
	hi = (hi + sub - 1) >> q->sub_bits;
	return hi > lo ? (BIT(hi) - 1) & ~(BIT(lo) - 1) : 0;
}

static uint64_t full_mask(const struct qcow2 *q, uint64_t at)
{
	return whole_subs(q, at, at, at + q->cluster_size);
}

static int change(const struct qcow2 *q, struct qcow2_entry old, const struct span *p, uint64_t at, struct qcow2_entry *e)
{
	uint64_t mask = whole_subs(q, at, p->off, p->off + p->len);

	if (!mask)
		return p->mode == DISCARD ? 0 : -ENOTSUP;
	if (mask == full_mask(q, at))
		return whole(q, old, p->mode, shows_below(q, at), e);
	return partly(q, old, p->mode, mask, e);
}

static struct qcow2_entry entry(struct qcow2 *q, struct qcow2_slice *s, unsigned i)
{
	struct qcow2_entry e = {0, 0};

	if (s)
		e.e = qcow2_slice_entry(q, s, i, &e.bitmap);
	return e;
}

/*
 * The clusters of p in one slice of an L2 table, from its first on, as long as they can be dealt with by their entries.
 * *done: bytes of p that are dealt with; -ENOTSUP with *done 0: the first cluster's part must be written.
 */
static int slice_step(struct qcow2 *q, const struct span *p, uint64_t *done)
{
	uint64_t cs = q->cluster_size, end = p->off + p->len, at = align_down(p->off, cs), from = at;
	uint64_t cover = (uint64_t)qcow2_slice_entries(q) << q->cluster_bits, stop = min_u64(end, align_down(at, cover) + cover);
	struct qcow2_slice *s;
	struct qcow2_entry e;
	unsigned i, k;
	bool any = false;
	int r = qcow2_l2_existing(q, at, &s, &i);

	if (r)
		return r;
	if (!s && (p->mode == DISCARD || !shows_below(q, at))) { /* no L2 table, and all is zero */
		cover = BIT(q->cluster_bits + q->l2_bits);
		*done = min_u64(end, align_down(at, cover) + cover) - p->off;
		return 0;
	}
	for (k = i; at < stop; at += cs, k++) {
		r = change(q, entry(q, s, k), p, at, &e);
		if (r < 0)
			break;
		any |= r > 0;
	}
	stop = min_u64(at, end);
	*done = stop > p->off ? stop - p->off : 0;
	if (!*done)
		return r;
	r = any ? qcow2_l2_writable(q, from, &s, &i) : 0;
	for (at = from, k = i; any && !r && at < stop; at += cs, k++) {
		struct qcow2_entry old = entry(q, s, k);

		if (change(q, old, p, at, &e) <= 0)
			continue;
		qcow2_entry_set(q, s, k, e);
		if (old.e & QCOW2_COMPRESSED || (e.e & QCOW2_OFFSET) != (old.e & QCOW2_OFFSET))
			qcow2_entry_release(q, old.e, true);
	}
	return r;
}

/* Zeroes that no entry can express, if there are not zeroes already. */
static int write_zeroes_plain(struct block *b, uint64_t off, uint64_t len)
{
	struct qcow2 *q = b->state;
	uint8_t *buf;
	bool zero;
	int r = 0;

	pthread_mutex_lock(&q->lock);
	zero = qcow2_reads_zero(q, off, len);
	pthread_mutex_unlock(&q->lock);
	if (zero)
		return 0;
	buf = qcow2_buffer(min_u64(len, WRITE_CHUNK));
	if (!buf)
		return -ENOMEM;
	memset(buf, 0, min_u64(len, WRITE_CHUNK));
	while (len && !r) {
		struct iovec v = {buf, min_u64(len, WRITE_CHUNK)};

		r = qcow2_write(b, off, v.iov_len, &v, 1);
		off += v.iov_len;
		len -= v.iov_len;
	}
	free(buf);
	return r;
}

static int run(struct block *b, struct span p)
{
	struct qcow2 *q = b->state;
	int r = 0;

	while (p.len && !r) {
		uint64_t cover = (uint64_t)qcow2_slice_entries(q) << q->cluster_bits, done = 0;
		uint64_t stop = min_u64(p.off + p.len, align_down(p.off, cover) + cover);

		pthread_mutex_lock(&q->lock);
		qcow2_wait_allocs(q, p.off >> q->cluster_bits, (stop - 1) >> q->cluster_bits);
		r = qcow2_write_begin(q);
		if (!r)
			r = slice_step(q, &p, &done);
		pthread_mutex_unlock(&q->lock);
		if (r == -ENOTSUP) {
			done = min_u64(p.off + p.len, align_down(p.off, q->cluster_size) + q->cluster_size) - p.off;
			r = write_zeroes_plain(b, p.off, done);
		}
		p.off += done;
		p.len -= done;
	}
	return r;
}

int qcow2_discard(struct block *b, uint64_t off, uint64_t len)
{
	return run(b, (struct span){off, len, DISCARD});
}

/* Whole (sub)clusters by their entries; the bytes before and after them are written. */
int qcow2_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct qcow2 *q = b->state;
	uint64_t sub = BIT(q->sub_bits), end = off + len, start = min_u64(align_up(off, sub), end), stop = align_down(end, sub);
	int r = 0;

	if (end == b->size)
		stop = end;
	stop = max_u64(stop, start);
	if (start > off)
		r = write_zeroes_plain(b, off, start - off);
	if (!r && stop > start)
		r = run(b, (struct span){start, stop - start, may_unmap ? ZERO_UNMAP : ZERO_KEEP});
	if (!r && end > stop)
		r = write_zeroes_plain(b, stop, end - stop);
	return r;
}
