#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/stat.h>

/*
 * A new L1 table in new clusters, which the header names by one write of a sector. Everything that `e` refers to has its
 * refcounts in memory or on disk already.
 */
int qcow2_l1_switch(struct qcow2 *q, uint64_t size, const uint64_t *e, uint32_t n)
{
	uint64_t off, old = q->l1.off, old_n = qcow2_clusters(q, (uint64_t)q->l1.n * 8);
	struct qcow2_table t;
	int r = qcow2_alloc_exact(q, qcow2_clusters(q, (uint64_t)n * 8), &off);

	if (r)
		return r;
	if (!qcow2_table_init(&t, off, n)) {
		qcow2_table_fini(&t);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < n; i++)
		qcow2_table_set(&t, i, e[i]);
	r = qcow2_table_write(q, &t);
	if (!r)
		r = qcow2_commit_stable(q);
	if (!r)
		r = qcow2_header_l1(q, size, off, n);
	if (r) {
		qcow2_table_fini(&t);
		return r;
	}
	qcow2_table_fini(&q->l1);
	q->l1 = t;
	for (uint32_t i = 0; i < n; i++) {
		if (e[i] & QCOW2_OFFSET)
			qcow2_overlap_add(q, e[i] & QCOW2_OFFSET);
	}
	if (old_n)
		qcow2_free_later(q, old >> q->cluster_bits, old_n, false);
	return qcow2_commit_stable(q);
}

static uint64_t l1_needed(const struct qcow2 *q, uint64_t size)
{
	uint64_t cover = BIT(q->cluster_bits + q->l2_bits);

	return size / cover + (size % cover != 0);
}

static int grow_l1(struct qcow2 *q, uint64_t n)
{
	uint64_t *e = calloc(n, 8);
	int r;

	if (!e)
		return -ENOMEM;
	memcpy(e, q->l1.e, (size_t)q->l1.n * 8);
	r = qcow2_l1_switch(q, q->h.size, e, (uint32_t)n);
	free(e);
	return r;
}

/* New bytes are zeroes, whatever an earlier, larger size or a longer backing file left there. */
static int zero_new(struct block *b, uint64_t old, uint64_t size)
{
	struct qcow2 *q = b->state;
	uint64_t end = align_up(old, q->cluster_size);

	if (b->backing)
		end = max_u64(end, b->backing->size);
	end = min_u64(end, size);
	return end > old ? qcow2_write_zeroes(b, old, end - old, true) : 0;
}

static int grow(struct block *b, uint64_t size)
{
	struct qcow2 *q = b->state;
	uint64_t old = b->size, n = l1_needed(q, size);
	int r = 0;

	pthread_mutex_lock(&q->lock);
	if (n > q->l1.n)
		r = n * 8 > QCOW2_MAX_L1 ? -EFBIG : grow_l1(q, n);
	pthread_mutex_unlock(&q->lock);
	if (r)
		return r;
	b->size = size;
	r = zero_new(b, old, size);
	pthread_mutex_lock(&q->lock);
	if (!r)
		r = qcow2_commit_stable(q);
	if (!r)
		r = qcow2_header_l1(q, size, q->l1.off, q->l1.n);
	if (!r)
		r = qcow2_sync(q);
	if (r)
		b->size = old;
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* Clusters of guest offsets from `from` on, and L2 tables that serve only those, are given back. */
static int drop_from(struct qcow2 *q, uint64_t from)
{
	uint64_t cover = BIT(q->cluster_bits + q->l2_bits), end = (uint64_t)q->l1.n * cover;
	unsigned per = qcow2_slice_entries(q);
	int r;

	for (uint64_t at = from; at < end;) {
		uint64_t slice_end = align_down(at, (uint64_t)per << q->cluster_bits) + ((uint64_t)per << q->cluster_bits);
		struct qcow2_slice *s;
		unsigned i;

		if (!(q->l1.e[at / cover] & QCOW2_OFFSET)) {
			at = align_down(at, cover) + cover;
			continue;
		}
		r = qcow2_l2_writable(q, at, &s, &i);
		if (r)
			return r;
		for (; at < slice_end; at += q->cluster_size, i++) {
			uint64_t bitmap, e = qcow2_slice_entry(q, s, i, &bitmap);

			if (!e && !bitmap)
				continue;
			qcow2_entry_set(q, s, i, (struct qcow2_entry){0, 0});
			qcow2_entry_release(q, e, true);
		}
	}
	r = qcow2_commit_stable(q);
	for (uint64_t k = (from + cover - 1) / cover; !r && k < q->l1.n; k++) {
		uint64_t table = q->l1.e[k] & QCOW2_OFFSET;

		if (!table)
			continue;
		qcow2_table_set(&q->l1, (uint32_t)k, 0);
		qcow2_cache_drop(&q->l2c, table, q->cluster_size);
		qcow2_free_later(q, table >> q->cluster_bits, 1, true);
	}
	return r ? r : qcow2_commit_stable(q);
}

/* The file ends with its last cluster in use. */
static int trim(struct qcow2 *q)
{
	uint64_t end = q->end, v = 0;
	struct stat st;
	int r = qcow2_commit_stable(q); /* refcounts that dropped */

	while (!r && end > 1) {
		r = qcow2_refcount_get(q, end - 1, &v);
		if (r || v)
			break;
		end--;
	}
	if (r || fstat(q->fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size <= end << q->cluster_bits)
		return r;
	if (ftruncate(q->fd, (off_t)(end << q->cluster_bits)) < 0)
		return -errno;
	q->end = end;
	q->size_known = min_u64(q->size_known, end);
	return fdatasync(q->fd) < 0 ? -errno : 0;
}

/* First the header: what lies behind the new end is then only space to win back. */
static int shrink(struct block *b, uint64_t size)
{
	struct qcow2 *q = b->state;
	int r;

	pthread_mutex_lock(&q->lock);
	r = qcow2_commit_stable(q);
	if (!r)
		r = qcow2_header_l1(q, size, q->l1.off, q->l1.n);
	if (!r)
		r = qcow2_sync(q);
	if (!r) {
		b->size = size;
		r = drop_from(q, align_up(size, q->cluster_size));
	}
	if (!r)
		r = trim(q);
	pthread_mutex_unlock(&q->lock);
	return r;
}

bool qcow2_resize(struct block *b, uint64_t size, struct error *err)
{
	struct qcow2 *q = b->state;
	int r;

	if (size > BIT(62) || size & (BLOCK_SECTOR - 1))
		return error_set(err, "disk %s: its new size must be a multiple of 512 bytes, at most 4 EiB", b->path);
	if (q->h.nb_snapshots && q->h.version < 3) {
		error_set(err, "disk %s: a version 2 image with snapshots cannot change its size", b->path);
		return error_hint(err, "delete its snapshots first");
	}
	pthread_mutex_lock(&q->lock);
	r = qcow2_write_begin(q);
	pthread_mutex_unlock(&q->lock);
	if (!r && size != b->size)
		r = size > b->size ? grow(b, size) : shrink(b, size);
	if (r == -EFBIG) {
		error_set(err, "disk %s: too large for clusters of %u bytes", b->path, q->cluster_size);
		return error_hint(err, "convert it to an image with a larger cluster_size");
	}
	return !r || error_set(err, "disk %s: cannot change its size: %s", b->path, strerror(-r));
}
