/*
 * Disks of NBD servers, through libnbd. The path is the URI.
 *
 * Up to four connections where the server allows it (NBD_FLAG_CAN_MULTI_CONN), else one; a call takes one that is free. A connection
 * that broke, or did not answer in time, is closed, made anew and the request sent again, once. Writes that the server had
 * confirmed but not flushed may be lost with it: then the next flush fails.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "backend/block/block.h"
#include "backend/block/iov.h"
#include "base/timer.h"

#define CONNECTIONS 4
#define REQUEST_MAX (4 * MIB) /* servers take 32 MiB at least */
#define ZERO_MAX (256 * MIB)
#define ANSWER_MS 30000

struct connection {
	struct nbd_handle *h; /* NULL: to be made */
	bool busy;
};

struct nbd {
	char *uri;
	bool readonly, trim, zero, flush;
	pthread_mutex_t lock;
	pthread_cond_t freed;
	unsigned n;
	struct connection c[CONNECTIONS];
	atomic_bool dirty, lost; /* written since the last flush; and that went with a connection */
};

static struct nbd_handle *connect_uri(const char *uri)
{
	struct nbd_handle *h = nbd_create();

	/* No URI that starts programs or reads other people's files. */
	if (h && nbd_set_uri_allow_transports(h, LIBNBD_ALLOW_TRANSPORT_TCP | LIBNBD_ALLOW_TRANSPORT_UNIX) == 0 &&
	    nbd_connect_uri(h, uri) == 0)
		return h;
	nbd_close(h);
	return NULL;
}

static bool fail(const char *uri, const char *why, const char *hint, struct error *err)
{
	error_set(err, "disk %s: %s", uri, why);
	return error_hint(err, "%s", hint);
}

static bool examine(struct block *b, struct nbd *n, struct error *err)
{
	struct nbd_handle *h = n->c[0].h;
	int64_t size = nbd_get_size(h);

	if (size <= 0)
		return fail(n->uri, "the export is empty", "", err);
	if (nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM) > BLOCK_SECTOR)
		return fail(n->uri, "the server takes no requests as small as 512 bytes", "", err);
	if (!b->readonly && nbd_is_read_only(h) != 0)
		return fail(n->uri, "the export is read-only", "open it read-only (,ro)", err);
	b->size = (uint64_t)size;
	n->trim = nbd_can_trim(h) == 1;
	n->zero = nbd_can_zero(h) == 1;
	n->flush = nbd_can_flush(h) == 1;
	n->n = nbd_can_multi_conn(h) == 1 ? CONNECTIONS : 1;
	return true;
}

static bool nbd_fmt_open(struct block *b, const struct block_options *o, struct error *err)
{
	struct nbd *n = calloc(1, sizeof(*n));

	if (n)
		n->uri = strdup(o->path);
	if (!n || !n->uri) {
		free(n);
		return error_set(err, "disk %s: out of memory", o->path);
	}
	b->state = n;
	pthread_mutex_init(&n->lock, NULL);
	pthread_cond_init(&n->freed, NULL);
	n->c[0].h = connect_uri(o->path);
	if (!n->c[0].h)
		return fail(o->path, nbd_get_error(), "is the server up, and the name right? As in nbd://host:10809/export", err);
	return examine(b, n, err);
}

static void nbd_fmt_close(struct block *b)
{
	struct nbd *n = b->state;

	if (!n)
		return;
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		if (n->c[i].h)
			nbd_shutdown(n->c[i].h, 0);
		nbd_close(n->c[i].h);
	}
	pthread_cond_destroy(&n->freed);
	pthread_mutex_destroy(&n->lock);
	free(n->uri);
	free(n);
}

/* A free connection, made already if there is one. */
static struct connection *take(struct nbd *n)
{
	struct connection *found = NULL;

	pthread_mutex_lock(&n->lock);
	while (!found) {
		for (unsigned i = 0; i < n->n; i++)
			if (!n->c[i].busy && (!found || (n->c[i].h && !found->h)))
				found = &n->c[i];
		if (!found)
			pthread_cond_wait(&n->freed, &n->lock);
	}
	found->busy = true;
	pthread_mutex_unlock(&n->lock);
	return found;
}

static void give(struct nbd *n, struct connection *c)
{
	pthread_mutex_lock(&n->lock);
	c->busy = false;
	pthread_cond_signal(&n->freed);
	pthread_mutex_unlock(&n->lock);
}

enum op { OP_READ, OP_WRITE, OP_FLUSH, OP_TRIM, OP_ZERO, OP_ZERO_NO_HOLE };

static int64_t send_request(struct nbd_handle *h, enum op op, void *buf, uint64_t len, uint64_t off)
{
	switch (op) {
	case OP_READ: return nbd_aio_pread(h, buf, len, off, NBD_NULL_COMPLETION, 0);
	case OP_WRITE: return nbd_aio_pwrite(h, buf, len, off, NBD_NULL_COMPLETION, 0);
	case OP_FLUSH: return nbd_aio_flush(h, NBD_NULL_COMPLETION, 0);
	case OP_TRIM: return nbd_aio_trim(h, len, off, NBD_NULL_COMPLETION, 0);
	case OP_ZERO: return nbd_aio_zero(h, len, off, NBD_NULL_COMPLETION, 0);
	case OP_ZERO_NO_HOLE: return nbd_aio_zero(h, len, off, NBD_NULL_COMPLETION, LIBNBD_CMD_FLAG_NO_HOLE);
	}
	return -1;
}

/* 0, the server's -errno, or -ENOTCONN: the connection is of no use any more. */
static int transact(struct nbd_handle *h, enum op op, void *buf, uint64_t len, uint64_t off)
{
	int64_t cookie = send_request(h, op, buf, len, off), until = clock_now() + ANSWER_MS * INT64_C(1000000);

	while (cookie >= 0) {
		int done = nbd_aio_command_completed(h, (uint64_t)cookie);

		if (done == 1)
			return 0;
		if (done < 0 || clock_now() >= until || nbd_poll(h, 1000) < 0)
			break;
	}
	if (cookie < 0 || !nbd_aio_is_ready(h) || clock_now() >= until)
		return -ENOTCONN;
	return nbd_get_errno() ? -nbd_get_errno() : -EIO;
}

static int request(struct block *b, enum op op, void *buf, uint64_t len, uint64_t off)
{
	struct nbd *n = b->state;
	struct connection *c = take(n);
	int r = -ENOTCONN;

	for (unsigned tries = 0; tries < 2 && r == -ENOTCONN; tries++) {
		if (!c->h)
			c->h = connect_uri(n->uri);
		/* It may come back as something else; what it holds is not ours to know. */
		if (!c->h || (uint64_t)nbd_get_size(c->h) != b->size)
			break;
		r = transact(c->h, op, buf, len, off);
		if (r != -ENOTCONN)
			break;
		nbd_close(c->h);
		c->h = NULL;
		if (n->dirty)
			n->lost = true;
	}
	give(n, c);
	return r == -ENOTCONN ? -EIO : r;
}

/* Vectors of more than one element go through a buffer: one request costs less than several. */
static int transfer(struct block *b, enum op op, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	void *bounce = niov > 1 ? malloc(min_u64(len, REQUEST_MAX)) : NULL;
	int r = niov > 1 && !bounce ? -ENOMEM : 0;

	for (uint64_t done = 0, here; !r && done < len; done += here) {
		void *buf = bounce ? bounce : (char *)iov->iov_base + done;

		here = min_u64(len - done, REQUEST_MAX);
		if (bounce && op == OP_WRITE)
			iov_to_buf(iov, niov, done, buf, here);
		r = request(b, op, buf, here, off + done);
		if (bounce && op == OP_READ && !r)
			iov_from_buf(iov, niov, done, buf, here);
	}
	free(bounce);
	return r;
}

static int nbd_fmt_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	return transfer(b, OP_READ, off, len, iov, niov);
}

static int nbd_fmt_write(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	struct nbd *n = b->state;

	n->dirty = true;
	return transfer(b, OP_WRITE, off, len, iov, niov);
}

static int nbd_fmt_flush(struct block *b)
{
	struct nbd *n = b->state;
	bool was = atomic_exchange(&n->dirty, false);
	int r;

	if (atomic_exchange(&n->lost, false))
		return -EIO;
	r = n->flush && b->cache != BLOCK_CACHE_UNSAFE ? request(b, OP_FLUSH, NULL, 0, 0) : 0;
	if (r && was)
		n->dirty = true;
	return r;
}

static int in_pieces(struct block *b, enum op op, uint64_t off, uint64_t len)
{
	int r = 0;

	for (uint64_t here; len && !r; off += here, len -= here) {
		here = min_u64(len, ZERO_MAX);
		r = request(b, op, NULL, here, off);
	}
	return r;
}

static int nbd_fmt_discard(struct block *b, uint64_t off, uint64_t len)
{
	struct nbd *n = b->state;
	int r = n->trim ? in_pieces(b, OP_TRIM, off, len) : 0;

	return r == -ENOTSUP || r == -EOPNOTSUPP ? 0 : r;
}

static int nbd_fmt_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct nbd *n = b->state;
	void *zeroes;
	int r = -ENOTSUP;

	n->dirty = true;
	if (n->zero)
		r = in_pieces(b, may_unmap ? OP_ZERO : OP_ZERO_NO_HOLE, off, len);
	if (r != -ENOTSUP)
		return r;
	zeroes = calloc(1, min_u64(len, REQUEST_MAX));
	if (!zeroes)
		return -ENOMEM;
	r = 0;
	for (uint64_t here; len && !r; off += here, len -= here) {
		here = min_u64(len, REQUEST_MAX);
		r = request(b, OP_WRITE, zeroes, here, off);
	}
	free(zeroes);
	return r;
}

static void nbd_fmt_info(struct block *b, struct block_info *out) { out->allocated = b->size; }

const struct block_format block_nbd = {
	.name = "nbd",
	.open = nbd_fmt_open,
	.close = nbd_fmt_close,
	.read = nbd_fmt_read,
	.write = nbd_fmt_write,
	.flush = nbd_fmt_flush,
	.discard = nbd_fmt_discard,
	.write_zeroes = nbd_fmt_write_zeroes,
	.info = nbd_fmt_info,
};
