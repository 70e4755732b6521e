/*
 * Between queue.c and its engines.
 *
 * Locking: `lock` covers all lists and counters; no I/O is done with it held. Each request is in `active` from when it starts
 * until it is done, and in at most one of the other lists.
 */
#ifndef BACKEND_BLOCK_QUEUE_INT_H
#define BACKEND_BLOCK_QUEUE_INT_H

#include <pthread.h>

#include "backend/block/queue.h"
#include "base/bucket.h"

#define QUEUE_WORKERS 4

struct queue_ring;

struct block_queue {
	struct block_queue_config cfg;
	struct block *block;
	pthread_mutex_t lock;
	pthread_cond_t work;  /* ready, or stop */
	pthread_cond_t clock; /* the timer's deadline changed, or stop */
	pthread_cond_t idle;  /* nactive fell to 0 */
	struct block_request_list throttled; /* in order of arrival; wait for a bucket */
	struct block_request_list blocked;   /* wait for a range */
	struct block_request_list ready;     /* wait for a worker */
	struct block_request_list active;
	struct block_request_list held;      /* failed; wait for a retry */
	struct block_request_list done;
	unsigned nactive, nheld, nready, nexclusive; /* exclusive: of active and blocked */
	unsigned nworkers, nidle;
	pthread_t workers[QUEUE_WORKERS], timer;
	bool has_timer, stop, cancel;
	struct bucket ops, bytes;
	int64_t retry_at;    /* TIMER_NEVER: no automatic retry */
	int held_error;
	int64_t quiet_until;
	struct queue_ring *ring; /* NULL: workers only */

	/* Of the submitter's: work in its own thread. */
	int64_t budget;      /* ns left of this batch */
	int64_t slow_until[BLOCK_OPS];
	bool no_nowait;      /* the host's file system has no RWF_NOWAIT reads */
	int64_t flush_took;
	uint64_t dirty;      /* bytes written since the last flush began */

	struct block_queue_status status;
	char error[256];
};

/* All of the request, by the format's own calls; may block. */
int queue_execute(struct block_queue *q, struct block_request *r);
/* With the lock held: account for the result, hold, or put it where reap finds it. True: call cfg.notify, without the lock. */
bool queue_finish(struct block_queue *q, struct block_request *r, int result);
/* Hand to the workers. Lock held. */
void queue_ready(struct block_queue *q, struct block_request *r);
/* A write's result is known. */
void queue_dirtied(struct block_queue *q, const struct block_request *r);
/* Lock held. */
void queue_wake_timer(struct block_queue *q);
bool queue_thread(pthread_t *t, void *(*fn)(void *), void *arg);

/* NULL: the host has no io_uring for us. */
struct queue_ring *queue_ring_new(struct block_queue *q);
void queue_ring_free(struct queue_ring *ring);
/* Lock held. False: cannot be done so (or the ring is full); otherwise it is on its way with the next commit. */
bool queue_ring_submit(struct queue_ring *ring, struct block_request *r);
void queue_ring_commit(struct queue_ring *ring);
/* Lock held: finish what has completed. True: notify. */
bool queue_ring_reap(struct queue_ring *ring);
/* What a commit could not send off: the timer tries again. */
bool queue_ring_unsent(const struct queue_ring *ring);

#endif
