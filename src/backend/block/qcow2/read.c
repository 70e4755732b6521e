#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SEGS 256u

/* From the backing file; zeroes behind its end. */
static int read_below(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_vec *v)
{
	struct block *below = q->b->backing;
	uint64_t have = below && off < below->size ? min_u64(len, below->size - off) : 0;

	len -= have;
	while (have) {
		struct iovec seg[SEGS];
		uint64_t got;
		unsigned n = qcow2_vec_take(v, have, seg, SEGS, &got);
		int r = n ? block_readv(below, off, seg, n) : -EINVAL;

		if (r)
			return r;
		off += got;
		have -= got;
	}
	qcow2_vec_fill(v, NULL, len);
	return 0;
}

static int unpack_entry(struct qcow2 *q, uint64_t entry, uint8_t *dst)
{
	uint64_t off;
	uint32_t len;
	uint8_t *src;
	int r;

	qcow2_packed_place(q, entry, &off, &len);
	src = qcow2_buffer(len);
	if (!src)
		return -ENOMEM;
	r = qcow2_pread(q, off, src, len);
	if (!r)
		r = qcow2_unpack(q, src, len, dst);
	free(src);
	return r;
}

/* Bytes [in, in + len) of a compressed cluster. The last one is kept: guests read clusters in pieces. */
static int read_packed(struct qcow2 *q, uint64_t entry, uint64_t in, uint64_t len, struct qcow2_vec *v)
{
	uint8_t *buf = NULL;
	uint64_t gen;
	int r;

	if (len == q->cluster_size && v->n && v->v->iov_len - v->skip >= len) {
		struct iovec seg;

		qcow2_vec_take(v, len, &seg, 1, &gen);
		return unpack_entry(q, entry, seg.iov_base);
	}
	pthread_mutex_lock(&q->comp_lock);
	gen = q->comp_gen;
	r = q->comp_data && q->comp_entry == entry;
	if (r)
		qcow2_vec_fill(v, q->comp_data + in, len);
	pthread_mutex_unlock(&q->comp_lock);
	if (r)
		return 0;
	buf = qcow2_buffer(q->cluster_size);
	r = buf ? unpack_entry(q, entry, buf) : -ENOMEM;
	if (!r) {
		qcow2_vec_fill(v, buf + in, len);
		pthread_mutex_lock(&q->comp_lock);
		if (gen == q->comp_gen) {
			uint8_t *old = q->comp_data;

			q->comp_data = buf;
			q->comp_entry = entry;
			buf = old;
		}
		pthread_mutex_unlock(&q->comp_lock);
	}
	free(buf);
	return r;
}

int qcow2_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	struct qcow2_vec v = {iov, niov, 0};
	struct qcow2 *q = b->state;
	int err = 0;

	while (len && !err) {
		struct qcow2_run r;
		struct qcow2_io io;
		bool host;

		pthread_mutex_lock(&q->lock);
		err = qcow2_lookup(q, off, len, &r);
		host = !err && (r.kind == QCOW2_DATA || r.kind == QCOW2_PACKED);
		if (host)
			qcow2_io_begin(q, &io);
		pthread_mutex_unlock(&q->lock);
		if (err)
			return err;
		if (r.kind == QCOW2_DATA)
			err = qcow2_preadv(q, r.host, &v, r.len);
		else if (r.kind == QCOW2_PACKED)
			err = read_packed(q, r.entry, off & (q->cluster_size - 1), r.len, &v);
		else if (r.kind == QCOW2_UNALLOCATED)
			err = read_below(q, off, r.len, &v);
		else
			qcow2_vec_fill(&v, NULL, r.len);
		if (host) {
			pthread_mutex_lock(&q->lock);
			qcow2_io_end(q, &io);
			pthread_mutex_unlock(&q->lock);
		}
		off += r.len;
		len -= r.len;
	}
	return err;
}
