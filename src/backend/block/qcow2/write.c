#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* One step of a write: a run of clusters written in place, or given new or unused host clusters. */
struct step {
	uint64_t off, len;   /* guest bytes */
	uint64_t start, end; /* guest bytes with what is copied before and after, to whole (sub)clusters */
	uint64_t host;       /* of the cluster that holds `off`; in place: of `off` itself */
	uint64_t n;          /* clusters */
	bool in_place, fresh; /* fresh: host clusters are new */
	bool zero;           /* they read as zeroes */
	bool head_zero, tail_zero; /* what is to be copied does */
	struct qcow2_alloc alloc;
	struct qcow2_io io;
};

static struct qcow2_entry entry(struct qcow2 *q, struct qcow2_slice *s, unsigned i)
{
	struct qcow2_entry e;

	e.e = qcow2_slice_entry(q, s, i, &e.bitmap);
	return e;
}

/* Has the cluster a host cluster that is its own, whatever is in it? */
static bool owned(struct qcow2_entry e)
{
	return e.e & QCOW2_COPIED && e.e & QCOW2_OFFSET && !(e.e & QCOW2_COMPRESSED);
}

static unsigned sub_of(const struct qcow2 *q, uint64_t off)
{
	return (unsigned)((off & (q->cluster_size - 1)) >> q->sub_bits);
}

static struct qcow2_alloc *conflict(struct qcow2 *q, uint64_t first, uint64_t last)
{
	struct qcow2_alloc *a = q->allocs;

	while (a && (a->last < first || a->first > last))
		a = a->next;
	return a;
}

void qcow2_wait_allocs(struct qcow2 *q, uint64_t first, uint64_t last)
{
	while (conflict(q, first, last))
		pthread_cond_wait(&q->cond, &q->lock);
}

static void alloc_begin(struct qcow2 *q, struct qcow2_alloc *a, uint64_t first, uint64_t n)
{
	*a = (struct qcow2_alloc){first, first + n - 1, q->allocs};
	q->allocs = a;
}

static void alloc_end(struct qcow2 *q, struct qcow2_alloc *a)
{
	struct qcow2_alloc **p = &q->allocs;

	while (*p != a)
		p = &(*p)->next;
	*p = a->next;
	pthread_cond_broadcast(&q->cond);
}

/* Data may go where the L2 table says, if it is in the file and no metadata is there. */
static int check_target(struct qcow2 *q, uint64_t host, uint64_t len)
{
	if ((host + len - 1) >> q->cluster_bits >= q->end || qcow2_overlap(q, host, len))
		return qcow2_mark_corrupt(q, "data lie outside of the file or in its metadata");
	return 0;
}

/* How many bytes from off on can be written where they are. */
static uint64_t in_place_run(struct qcow2 *q, struct qcow2_slice *s, unsigned i, uint64_t off, uint64_t len, uint64_t *host)
{
	uint64_t end = off + len, at = off;

	for (; i < qcow2_slice_entries(q) && at < end; i++) {
		struct qcow2_entry e = entry(q, s, i);
		uint64_t h = (e.e & QCOW2_OFFSET) + (at & (q->cluster_size - 1));

		if (!owned(e) || (at > off && h != *host + (at - off)))
			break;
		if (at == off)
			*host = h;
		do {
			if (qcow2_kind(q, e, sub_of(q, at)) != QCOW2_DATA)
				return at - off;
			at = min_u64(end, align_down(at, BIT(q->sub_bits)) + BIT(q->sub_bits));
		} while (at < end && at & (q->cluster_size - 1));
	}
	return at - off;
}

/* The bounds of what is written, [start, end), around the bytes of the step. e0, e1: first and last cluster's entries. */
static void set_bounds(struct qcow2 *q, struct step *t, struct qcow2_entry e0, struct qcow2_entry e1)
{
	uint64_t sub = BIT(q->sub_bits), last = t->off + t->len;

	/* Leaving a shared or compressed cluster takes along all of it. */
	t->start = align_down(t->off, t->fresh && (e0.e & (QCOW2_OFFSET | QCOW2_COMPRESSED)) ? q->cluster_size : sub);
	t->end = align_up(last, t->fresh && (e1.e & (QCOW2_OFFSET | QCOW2_COMPRESSED)) ? q->cluster_size : sub);
	if (!t->fresh && qcow2_kind(q, e1, sub_of(q, last - 1)) == QCOW2_DATA)
		t->end = last;
}

/* Clusters from entry i on that need a host cluster, at most n. */
static uint64_t fresh_run(struct qcow2 *q, struct qcow2_slice *s, unsigned i, uint64_t n)
{
	uint64_t run = 0;

	while (run < n && i + run < qcow2_slice_entries(q) && !owned(entry(q, s, i + (unsigned)run)))
		run++;
	return run;
}

/* Decides the next step; with clusters to link, it is on q->allocs then. */
static int plan(struct qcow2 *q, uint64_t off, uint64_t len, struct step *t)
{
	uint64_t first = off >> q->cluster_bits, n = ((off + len - 1) >> q->cluster_bits) - first + 1, in = off & (q->cluster_size - 1);
	struct qcow2_slice *s;
	struct qcow2_entry e0, e1;
	struct qcow2_alloc *a;
	unsigned i;
	int r;

	for (;;) {
		*t = (struct step){.off = off, .len = len, .n = 1};
		r = qcow2_write_begin(q);
		if (!r)
			r = qcow2_l2_writable(q, off, &s, &i);
		if (r)
			return r;
		e0 = entry(q, s, i);
		r = qcow2_kind(q, e0, sub_of(q, off));
		if (r < 0)
			return qcow2_mark_corrupt(q, "an L2 entry is impossible");
		t->in_place = owned(e0) && r == QCOW2_DATA;
		if (t->in_place || !conflict(q, first, first))
			break;
		qcow2_wait_allocs(q, first, first);
	}
	if (t->in_place) {
		t->len = in_place_run(q, s, i, off, len, &t->host);
		qcow2_io_begin(q, &t->io);
		r = check_target(q, t->host, t->len);
		if (r)
			qcow2_io_end(q, &t->io);
		return r;
	}
	t->fresh = !owned(e0);
	if (t->fresh) {
		n = fresh_run(q, s, i, n);
		while (n > 1 && (a = conflict(q, first, first + n - 1)))
			n = a->first > first ? a->first - first : 1;
		r = qcow2_alloc_clusters(q, n, &t->host, &t->n, &t->zero);
	} else {
		t->host = e0.e & QCOW2_OFFSET;
		r = check_target(q, t->host, q->cluster_size);
	}
	if (r)
		return r;
	t->len = min_u64(len, (t->n << q->cluster_bits) - in);
	e1 = entry(q, s, i + (unsigned)t->n - 1);
	set_bounds(q, t, e0, e1);
	t->head_zero = qcow2_reads_zero(q, t->start, off - t->start);
	t->tail_zero = qcow2_reads_zero(q, off + t->len, t->end - (off + t->len));
	alloc_begin(q, &t->alloc, first, t->n);
	return 0;
}

/* Guest bytes that are written anew beside those of the request; the disk may end before them. *v is empty when none must be. */
static int copied(struct block *b, uint64_t off, uint64_t len, bool zero, bool skip, struct iovec *v)
{
	uint64_t have = off < b->size ? min_u64(len, b->size - off) : 0;
	struct iovec seg;

	*v = (struct iovec){NULL, 0};
	if (!len || (zero && skip))
		return 0;
	*v = (struct iovec){qcow2_buffer(len), len};
	if (!v->iov_base)
		return -ENOMEM;
	memset(v->iov_base, 0, len);
	seg = (struct iovec){v->iov_base, have};
	return zero || !have ? 0 : qcow2_read(b, off, have, &seg, 1);
}

static int write_data(struct block *b, struct step *t, struct qcow2_vec *v)
{
	struct qcow2 *q = b->state;
	struct iovec head, tail = {NULL, 0};
	uint64_t last = t->off + t->len, base = align_down(t->off, q->cluster_size);
	int r = copied(b, t->start, t->off - t->start, t->head_zero, t->zero, &head);

	if (!r)
		r = copied(b, last, t->end - last, t->tail_zero, t->zero, &tail);
	if (!r)
		r = qcow2_pwritev(q, t->host + (t->off - base) - head.iov_len, v, t->len, &head, &tail);
	free(head.iov_base);
	free(tail.iov_base);
	return r;
}

/* Subclusters of [start, end) that lie in the cluster at guest offset `at`. */
static uint64_t sub_mask(const struct qcow2 *q, uint64_t at, uint64_t start, uint64_t end)
{
	uint64_t lo = start > at ? (start - at) >> q->sub_bits : 0, hi = (min_u64(end, at + q->cluster_size) - at + BIT(q->sub_bits) - 1) >> q->sub_bits;

	return hi >= 32 ? (UINT32_MAX << lo) & UINT32_MAX : (BIT(hi) - 1) & ~(BIT(lo) - 1);
}

/* The data are in the file: now the L2 table may say so. */
static int link_clusters(struct qcow2 *q, struct step *t)
{
	uint64_t at = align_down(t->off, q->cluster_size), host = t->host;
	struct qcow2_slice *s;
	unsigned i;
	int r = qcow2_l2_writable(q, t->off, &s, &i);

	if (r)
		return r;
	for (uint64_t k = 0; k < t->n; k++, at += q->cluster_size, host += q->cluster_size) {
		struct qcow2_entry old = entry(q, s, i + (unsigned)k), e = {host | QCOW2_COPIED, 0};

		if (q->extended) {
			uint64_t mask = sub_mask(q, at, t->start, t->end);

			e.bitmap = old.e & QCOW2_COMPRESSED ? mask : (old.bitmap & ~(mask << 32)) | mask;
		}
		qcow2_entry_set(q, s, i + (unsigned)k, e);
		if (t->fresh)
			qcow2_entry_release(q, old.e, false);
	}
	q->barrier = true;
	return 0;
}

static int write_step(struct block *b, uint64_t off, uint64_t len, struct qcow2_vec *v, uint64_t *done)
{
	struct qcow2 *q = b->state;
	struct step t;
	int r;

	pthread_mutex_lock(&q->lock);
	r = plan(q, off, len, &t);
	pthread_mutex_unlock(&q->lock);
	if (r)
		return r;
	*done = t.len;
	if (t.in_place) {
		r = qcow2_pwritev(q, t.host, v, t.len, NULL, NULL);
		pthread_mutex_lock(&q->lock);
		qcow2_io_end(q, &t.io);
		pthread_mutex_unlock(&q->lock);
		return r;
	}
	r = write_data(b, &t, v);
	pthread_mutex_lock(&q->lock);
	if (!r)
		r = link_clusters(q, &t);
	if (r && t.fresh)
		qcow2_free_now(q, t.host >> q->cluster_bits, t.n, false);
	alloc_end(q, &t.alloc);
	pthread_mutex_unlock(&q->lock);
	return r;
}

int qcow2_write(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	struct qcow2_vec v = {iov, niov, 0};
	uint64_t done;
	int r = 0;

	for (; len && !r; off += done, len -= done) {
		done = len;
		r = write_step(b, off, len, &v, &done);
	}
	return r;
}

/* Puts `size` bytes of compressed data to the file and into the L2 table. */
static int write_packed(struct qcow2 *q, uint64_t off, const uint8_t *data, uint32_t size)
{
	unsigned shift = 62 - (q->cluster_bits - 8), i;
	uint64_t host, sectors, cluster = off >> q->cluster_bits;
	struct qcow2_alloc a;
	struct qcow2_slice *s;
	int r;

	pthread_mutex_lock(&q->lock);
	qcow2_wait_allocs(q, cluster, cluster);
	r = qcow2_write_begin(q);
	if (!r)
		r = qcow2_l2_writable(q, off, &s, &i);
	if (!r)
		r = qcow2_alloc_bytes(q, size, &host);
	if (r) {
		pthread_mutex_unlock(&q->lock);
		return r;
	}
	alloc_begin(q, &a, cluster, 1);
	pthread_mutex_unlock(&q->lock);
	sectors = ((host + size - 1) >> 9) - (host >> 9);
	r = host + size > BIT(shift) ? -EFBIG : qcow2_pwrite(q, host, data, size);
	pthread_mutex_lock(&q->lock);
	if (!r)
		r = qcow2_l2_writable(q, off, &s, &i);
	if (!r) {
		struct qcow2_entry old = entry(q, s, i);

		qcow2_entry_set(q, s, i, (struct qcow2_entry){host | QCOW2_COMPRESSED | sectors << shift, 0});
		qcow2_entry_release(q, old.e, false);
		q->barrier = true;
	} else {
		for (uint64_t c = host >> q->cluster_bits; c <= (host + size - 1) >> q->cluster_bits; c++)
			qcow2_free_now(q, c, 1, false);
	}
	alloc_end(q, &a);
	pthread_mutex_unlock(&q->lock);
	return r;
}

int qcow2_write_compressed(struct block *b, uint64_t off, uint64_t len, const void *buf)
{
	struct qcow2 *q = b->state;
	uint8_t *packed = qcow2_buffer(q->cluster_size), *padded = qcow2_buffer(q->cluster_size);
	const uint8_t *src = buf;
	int r = packed && padded ? 0 : -ENOMEM;

	if (off & (q->cluster_size - 1) || (len & (q->cluster_size - 1) && off + len != b->size))
		r = -EINVAL;
	while (len && !r) {
		uint64_t n = min_u64(len, q->cluster_size);
		struct iovec v = {(void *)(uintptr_t)src, n};

		if (n < q->cluster_size) {
			memset(padded, 0, q->cluster_size);
			memcpy(padded, src, n);
		}
		r = qcow2_pack(q, n < q->cluster_size ? padded : src, packed);
		if (r == 0)
			r = qcow2_write(b, off, n, &v, 1);
		else if (r > 0)
			r = write_packed(q, off, packed, (uint32_t)r);
		off += n;
		src += n;
		len -= n;
	}
	free(packed);
	free(padded);
	return r;
}
