/*
 * The io_uring engine of a queue: reads and writes of plain bytes. Submission is under the queue's lock; one thread reaps. What
 * comes back incomplete is done again, from the start, by a worker: all requests may be repeated.
 *
 * Requests belong to the thread that sent them off, and are cancelled when that thread ends; such ones are repeated too.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/block/queue_int.h"

#define ENTRIES 128u
#define IN_RING_MAX 256u /* completions have room for so many */

struct queue_ring {
	struct block_queue *q;
	struct io_uring ring;
	unsigned in_ring, unsent; /* the queue's lock; so has the completion queue's head */
	bool stop;
	pthread_t reaper;
};

static bool has_opcodes(struct io_uring *ring)
{
	struct io_uring_probe *p = io_uring_get_probe_ring(ring);
	bool ok = p && io_uring_opcode_supported(p, IORING_OP_READV) && io_uring_opcode_supported(p, IORING_OP_WRITEV) &&
		  io_uring_opcode_supported(p, IORING_OP_NOP);

	if (p)
		io_uring_free_probe(p);
	return ok && ring->features & IORING_FEAT_NODROP && ring->features & IORING_FEAT_SUBMIT_STABLE;
}

/* Lock held. */
static bool completed(struct queue_ring *ring, struct block_request *r, int res)
{
	struct block_queue *q = ring->q;

	ring->in_ring--;
	if (r->op == BLOCK_WRITE)
		queue_dirtied(q, r);
	if (res >= 0 && (uint64_t)res == r->len)
		return queue_finish(q, r, 0);
	/* Short, cancelled with its thread, or an error: a worker finds out what it is. */
	if (q->cancel)
		return queue_finish(q, r, -ECANCELED);
	queue_ready(q, r);
	return false;
}

bool queue_ring_reap(struct queue_ring *ring)
{
	struct io_uring_cqe *cqe;
	bool notify = false;

	while (io_uring_peek_cqe(&ring->ring, &cqe) == 0) {
		struct block_request *r = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&ring->ring, cqe);
		if (r)
			notify |= completed(ring, r, res);
		else
			ring->stop = true;
	}
	queue_ring_commit(ring);
	return notify;
}

static void *reaper(void *arg)
{
	struct queue_ring *ring = arg;
	struct block_queue *q = ring->q;

	while (!ring->stop) {
		bool notify;

		/* Only waits: the rings are looked at with the lock held. */
		if (syscall(SYS_io_uring_enter, ring->ring.ring_fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
			usleep(1000);
		pthread_mutex_lock(&q->lock);
		notify = queue_ring_reap(ring);
		pthread_mutex_unlock(&q->lock);
		if (notify)
			q->cfg.notify(q->cfg.ctx);
	}
	return NULL;
}

struct queue_ring *queue_ring_new(struct block_queue *q)
{
	struct queue_ring *ring = calloc(1, sizeof(*ring));

	if (!ring || io_uring_queue_init(ENTRIES, &ring->ring, 0) < 0) {
		free(ring);
		return NULL;
	}
	ring->q = q;
	if (has_opcodes(&ring->ring) && queue_thread(&ring->reaper, reaper, ring))
		return ring;
	io_uring_queue_exit(&ring->ring);
	free(ring);
	return NULL;
}

bool queue_ring_submit(struct queue_ring *ring, struct block_request *r)
{
	struct io_uring_sqe *sqe = ring->in_ring < IN_RING_MAX ? io_uring_get_sqe(&ring->ring) : NULL;

	if (!sqe && ring->in_ring < IN_RING_MAX) {
		queue_ring_commit(ring);
		sqe = io_uring_get_sqe(&ring->ring);
	}
	if (!sqe)
		return false;
	if (r->op == BLOCK_READ)
		io_uring_prep_readv(sqe, r->fd, r->iov, r->niov, r->host_off);
	else
		io_uring_prep_writev(sqe, r->fd, r->iov, r->niov, r->host_off);
	io_uring_sqe_set_data(sqe, r);
	ring->in_ring++;
	ring->unsent++;
	return true;
}

void queue_ring_commit(struct queue_ring *ring)
{
	while (ring->unsent) {
		int n = io_uring_submit(&ring->ring);

		if (n > 0)
			ring->unsent -= min_u64(ring->unsent, (unsigned)n);
		else if (n != -EINTR)
			break;
	}
	if (ring->unsent) /* no memory, for the moment */
		queue_wake_timer(ring->q);
}

bool queue_ring_unsent(const struct queue_ring *ring) { return ring->unsent; }

void queue_ring_free(struct queue_ring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->ring); /* all others are done */

	io_uring_prep_nop(sqe);
	io_uring_sqe_set_data(sqe, NULL);
	while (io_uring_submit(&ring->ring) < 0)
		;
	pthread_join(ring->reaper, NULL);
	io_uring_queue_exit(&ring->ring);
	free(ring);
}
