#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VEC_MAX 256u
#define BOUNCE (1 * MIB)

void *qcow2_buffer(size_t len)
{
	void *p;

	return posix_memalign(&p, PAGE_SIZE, align_up(len, PAGE_SIZE)) ? NULL : p;
}

unsigned qcow2_vec_take(struct qcow2_vec *v, uint64_t len, struct iovec *out, unsigned max, uint64_t *got)
{
	unsigned n = 0;

	*got = 0;
	while (len && v->n && n < max) {
		size_t have = v->v->iov_len - v->skip, use = have < len ? have : (size_t)len;

		if (use)
			out[n++] = (struct iovec){(char *)v->v->iov_base + v->skip, use};
		*got += use;
		len -= use;
		v->skip += use;
		if (use == have) {
			v->v++;
			v->n--;
			v->skip = 0;
		}
	}
	return n;
}

void qcow2_vec_fill(struct qcow2_vec *v, const uint8_t *src, uint64_t len)
{
	struct iovec seg;
	uint64_t got;

	for (; len && qcow2_vec_take(v, len, &seg, 1, &got); len -= got) {
		if (src) {
			memcpy(seg.iov_base, src, got);
			src += got;
		} else {
			memset(seg.iov_base, 0, got);
		}
	}
}

void qcow2_vec_copy(struct qcow2_vec *v, uint8_t *dst, uint64_t len)
{
	struct iovec seg;
	uint64_t got;

	for (; len && qcow2_vec_take(v, len, &seg, 1, &got); len -= got) {
		memcpy(dst, seg.iov_base, got);
		dst += got;
	}
}

/* O_DIRECT wants addresses, offset and length aligned. */
static bool aligned(const struct qcow2 *q, uint64_t off, const struct iovec *v, unsigned n)
{
	uint64_t bits = off;

	for (unsigned i = 0; i < n; i++)
		bits |= (uintptr_t)v[i].iov_base | v[i].iov_len;
	return !(bits & (q->align - 1));
}

/* Skip `done` bytes of v. */
static void advance(struct iovec **v, unsigned *n, size_t done)
{
	while (*n && done >= (*v)->iov_len) {
		done -= (*v)->iov_len;
		(*v)++;
		(*n)--;
	}
	if (done) {
		(*v)->iov_base = (char *)(*v)->iov_base + done;
		(*v)->iov_len -= done;
	}
}

static int plain_readv(int fd, uint32_t align, uint64_t off, struct iovec *v, unsigned n)
{
	while (n) {
		ssize_t r = preadv(fd, v, (int)n, (off_t)off);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			break; /* the end */
		off += (uint64_t)r;
		advance(&v, &n, (size_t)r);
		if (n && off & (align - 1))
			break; /* the end in the middle of a sector */
	}
	for (unsigned i = 0; i < n; i++)
		memset(v[i].iov_base, 0, v[i].iov_len);
	return 0;
}

static int plain_writev(struct qcow2 *q, int fd, uint64_t off, struct iovec *v, unsigned n)
{
	int err = 0;

	while (n) {
		ssize_t r = pwritev(fd, v, (int)n, (off_t)off);

		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0) {
			err = r < 0 ? -errno : -EIO;
			break;
		}
		off += (uint64_t)r;
		advance(&v, &n, (size_t)r);
	}
	/* After the write: a flush that began before it does not count. */
	atomic_store_explicit(&q->unsynced, true, memory_order_release);
	return err;
}

static uint64_t vec_len(const struct iovec *v, unsigned n)
{
	uint64_t len = 0;

	for (unsigned i = 0; i < n; i++)
		len += v[i].iov_len;
	return len;
}

/* Through an aligned buffer; sectors written in part are read first, one such write at a time. */
static int bounce(struct qcow2 *q, uint64_t off, struct iovec *v, unsigned n, bool write)
{
	struct qcow2_vec vec = {v, n, 0};
	uint64_t left = vec_len(v, n);
	uint8_t *buf = qcow2_buffer(BOUNCE);
	int r = buf ? 0 : -ENOMEM;

	while (left && !r) {
		uint64_t start = align_down(off, q->align), use = min_u64(left, start + BOUNCE - off);
		uint64_t end = align_up(off + use, q->align);
		struct iovec all = {buf, end - start}, copy = all;
		bool edges = off != start || off + use != end;

		if (write && edges)
			pthread_mutex_lock(&q->rmw_lock);
		if (!write || edges)
			r = plain_readv(q->direct, q->align, start, &copy, 1);
		if (!r && write) {
			qcow2_vec_copy(&vec, buf + (off - start), use);
			copy = all;
			r = plain_writev(q, q->direct, start, &copy, 1);
		} else if (!r) {
			qcow2_vec_fill(&vec, buf + (off - start), use);
		}
		if (write && edges)
			pthread_mutex_unlock(&q->rmw_lock);
		off += use;
		left -= use;
	}
	free(buf);
	return r;
}

/* Data: by O_DIRECT where it was asked for. */
static int data_readv(struct qcow2 *q, uint64_t off, struct iovec *v, unsigned n)
{
	if (q->direct < 0)
		return plain_readv(q->fd, 1, off, v, n);
	return aligned(q, off, v, n) ? plain_readv(q->direct, q->align, off, v, n) : bounce(q, off, v, n, false);
}

static int data_writev(struct qcow2 *q, uint64_t off, struct iovec *v, unsigned n)
{
	if (q->direct < 0)
		return plain_writev(q, q->fd, off, v, n);
	return aligned(q, off, v, n) ? plain_writev(q, q->direct, off, v, n) : bounce(q, off, v, n, true);
}

int qcow2_pread(struct qcow2 *q, uint64_t off, void *buf, size_t len)
{
	struct iovec v = {buf, len};

	return plain_readv(q->fd, 1, off, &v, len ? 1 : 0);
}

int qcow2_pwrite(struct qcow2 *q, uint64_t off, const void *buf, size_t len)
{
	struct iovec v = {(void *)(uintptr_t)buf, len};

	return plain_writev(q, q->fd, off, &v, len ? 1 : 0);
}

int qcow2_pwrite_slices(struct qcow2 *q, uint64_t off, struct iovec *v, unsigned n)
{
	return plain_writev(q, q->fd, off, v, n);
}

int qcow2_pwrite_zeroes(struct qcow2 *q, uint64_t off, uint64_t len)
{
	size_t chunk = (size_t)min_u64(len, BOUNCE);
	uint8_t *buf = qcow2_buffer(chunk);
	int r = buf ? 0 : -ENOMEM;

	if (buf)
		memset(buf, 0, chunk);
	for (; len && !r; off += chunk, len -= chunk) {
		chunk = (size_t)min_u64(len, chunk);
		r = qcow2_pwrite(q, off, buf, chunk);
	}
	free(buf);
	return r;
}

int qcow2_sync(struct qcow2 *q)
{
	if (atomic_load(&q->failed))
		return -EIO;
	if ((!atomic_exchange(&q->unsynced, false) && !atomic_load(&q->handed_out)) || q->nosync)
		return 0;
	if (fdatasync(q->fd) == 0)
		return 0;
	/* The kernel may have dropped what it could not write: a later success would tell nothing. */
	atomic_store(&q->failed, true);
	return -errno;
}

int qcow2_preadv(struct qcow2 *q, uint64_t off, struct qcow2_vec *v, uint64_t len)
{
	int r = 0;

	while (len && !r) {
		struct iovec seg[VEC_MAX];
		uint64_t got;
		unsigned n = qcow2_vec_take(v, len, seg, VEC_MAX, &got);

		if (!n)
			return -EINVAL;
		r = data_readv(q, off, seg, n);
		off += got;
		len -= got;
	}
	return r;
}

int qcow2_pwritev(struct qcow2 *q, uint64_t off, struct qcow2_vec *v, uint64_t len, const struct iovec *head,
		  const struct iovec *tail)
{
	bool first = true;

	do {
		struct iovec seg[VEC_MAX + 2];
		unsigned n = 0;
		uint64_t got, sum;
		int r;

		if (first && head && head->iov_len)
			seg[n++] = *head;
		first = false;
		n += qcow2_vec_take(v, len, seg + n, VEC_MAX, &got);
		if (len && !got)
			return -EINVAL;
		len -= got;
		if (!len && tail && tail->iov_len)
			seg[n++] = *tail;
		sum = vec_len(seg, n);
		r = data_writev(q, off, seg, n);
		if (r)
			return r;
		off += sum;
	} while (len);
	return 0;
}
