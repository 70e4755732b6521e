#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define FREES_MAX 16384u
#define FREES_BYTES GIB

/* The new refcount table is whole and stable before the header names it; only then the old one is free. */
static int commit_moved_reftable(struct qcow2 *q)
{
	int r = qcow2_sync(q);

	if (!r)
		r = qcow2_header_reftable(q, q->reft.off, (uint32_t)qcow2_clusters(q, (uint64_t)q->reft.n * 8));
	if (!r)
		r = qcow2_sync(q);
	if (r)
		return r;
	q->reft_moved = false;
	qcow2_free_later(q, q->old_reft_off >> q->cluster_bits, q->old_reft_clusters, false);
	return 0;
}

static int commit_refcounts(struct qcow2 *q)
{
	int r = qcow2_cache_write(q, &q->rcc);

	if (r || !q->reft.dirty)
		return r;
	r = qcow2_sync(q);
	if (!r)
		r = qcow2_table_write(q, &q->reft);
	if (!r && q->reft_moved)
		r = commit_moved_reftable(q);
	return r;
}

int qcow2_commit(struct qcow2 *q)
{
	int r;

	if (!q->rcc.ndirty && !q->reft.dirty && !q->l2c.ndirty && !q->l1.dirty)
		return 0;
	if (atomic_load(&q->failed))
		return -EIO;
	r = commit_refcounts(q);
	if (r || (!q->l2c.ndirty && !q->l1.dirty))
		return r;
	if (q->barrier) {
		r = qcow2_sync(q);
		if (r)
			return r;
		q->barrier = false;
	}
	r = qcow2_cache_write(q, &q->l2c);
	return r ? r : qcow2_table_write(q, &q->l1);
}

static void frees_add(struct qcow2 *q, const struct qcow2_free *f)
{
	struct qcow2_free *last = q->nfrees ? &q->frees[q->nfrees - 1] : NULL;

	q->frees_clusters += f->n;
	if (last && last->punch == f->punch && last->cluster + last->n == f->cluster) {
		last->n += f->n;
		last->seq = max_u64(last->seq, f->seq);
		return;
	}
	if (q->nfrees == q->frees_cap) {
		size_t cap = q->frees_cap ? q->frees_cap * 2 : 64;
		struct qcow2_free *p = realloc(q->frees, cap * sizeof(*p));

		if (!p)
			return; /* they are leaked: check --repair finds them */
		q->frees = p;
		q->frees_cap = cap;
	}
	q->frees[q->nfrees++] = *f;
}

void qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t n, bool punch)
{
	frees_add(q, &(struct qcow2_free){cluster, n, q->seq, punch});
}

/* The frees as they are now, for after the next barrier; the lock may be dropped until then. */
struct taken {
	struct qcow2_free *f;
	size_t n;
};

static struct taken frees_take(struct qcow2 *q)
{
	struct taken t = {q->frees, q->nfrees};

	q->frees = NULL;
	q->nfrees = q->frees_cap = 0;
	q->frees_clusters = 0;
	return t;
}

static void frees_apply(struct qcow2 *q, struct taken *t, bool stable)
{
	uint64_t oldest = q->ios.next == &q->ios ? UINT64_MAX : q->ios.next->seq;

	for (size_t i = 0; i < t->n; i++) {
		if (stable && oldest >= t->f[i].seq)
			qcow2_free_now(q, t->f[i].cluster, t->f[i].n, t->f[i].punch);
		else
			frees_add(q, &t->f[i]);
	}
	free(t->f);
}

int qcow2_commit_stable(struct qcow2 *q)
{
	int r = qcow2_commit(q);
	struct taken t;

	if (r)
		return r;
	t = frees_take(q);
	r = qcow2_sync(q);
	frees_apply(q, &t, r == 0);
	return r;
}

int qcow2_flush(struct block *b)
{
	struct qcow2 *q = b->state;
	struct taken t;
	int r;

	if (b->readonly)
		return 0;
	pthread_mutex_lock(&q->lock);
	r = qcow2_commit(q);
	if (r) {
		pthread_mutex_unlock(&q->lock);
		return r;
	}
	t = frees_take(q);
	pthread_mutex_unlock(&q->lock);
	r = qcow2_sync(q);
	if (!t.n)
		return r;
	pthread_mutex_lock(&q->lock);
	frees_apply(q, &t, r == 0);
	pthread_mutex_unlock(&q->lock);
	return r;
}

int qcow2_write_begin(struct qcow2 *q)
{
	int r;

	if (q->b->readonly)
		return -EROFS;
	if (q->corrupt || atomic_load(&q->failed))
		return -EIO;
	if (!q->written && q->h.version >= 3 && q->h.autoclear) {
		r = qcow2_header_features(q, q->h.incompat, 0);
		if (r)
			return r;
	}
	q->written = true;
	if (q->nfrees >= FREES_MAX || q->frees_clusters << q->cluster_bits >= FREES_BYTES)
		return qcow2_commit_stable(q);
	return 0;
}

int qcow2_mark_corrupt(struct qcow2 *q, const char *what)
{
	if (!q->corrupt)
		log_error("disk %s: the image is corrupt (%s): it is not written any more; `doppel disk check --repair` may help",
			  q->b->path, what);
	q->corrupt = true;
	if (!q->b->readonly && q->h.version >= 3 && !(q->h.incompat & QCOW2_INCOMPAT_CORRUPT))
		qcow2_header_features(q, q->h.incompat | QCOW2_INCOMPAT_CORRUPT, q->h.autoclear);
	return -EIO;
}

void qcow2_io_begin(struct qcow2 *q, struct qcow2_io *io)
{
	io->seq = q->seq++;
	io->next = &q->ios;
	io->prev = q->ios.prev;
	io->prev->next = io;
	q->ios.prev = io;
}

void qcow2_io_end(struct qcow2 *q, struct qcow2_io *io)
{
	io->prev->next = io->next;
	io->next->prev = io->prev;
}
