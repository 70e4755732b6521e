/*
 * Asynchronous requests to a block, for front ends.
 *
 * A front end submits requests under a lock of its own (the machine lock). What can be done at once without waiting for the
 * host's disk is done in the submitter's thread, as waking another core costs more than the page cache does; the rest goes to
 * io_uring where the block is plain bytes of a file, else to a few worker threads. The front end is told by `notify`, from a
 * thread of the queue and without its lock; it takes its lock and collects with block_queue_reap. So the result of a
 * request is only ever seen under the front end's lock.
 *
 * Order: none between requests in flight, but discards and write-zeroes have their range to themselves. A flush covers what had
 * completed when it was submitted.
 * Ownership: request, vectors and buffers are the front end's, and stay as they are until the request is done. The block is the
 * queue's as long as it lives: nobody else calls it.
 * Threads: submit, commit, reap, drain and resize: under the front end's lock. retry and status: any. free: without the lock.
 */
#ifndef BACKEND_BLOCK_QUEUE_H
#define BACKEND_BLOCK_QUEUE_H

#include <sys/queue.h>

#include "backend/block/block.h"

enum block_op { BLOCK_READ, BLOCK_WRITE, BLOCK_FLUSH, BLOCK_DISCARD, BLOCK_WRITE_ZEROES, BLOCK_OPS };

struct block_range {
	uint64_t off, len;
	bool unmap; /* write zeroes: may give the space back */
};

struct block_request {
	enum block_op op;
	bool stable; /* write, write zeroes: done when it is on stable storage */
	uint64_t off, len; /* discard, write zeroes: all ranges lie in it */
	const struct iovec *iov; /* read, write: len bytes */
	unsigned niov;
	const struct block_range *ranges; /* discard, write zeroes */
	unsigned nranges;
	int result; /* 0 or -errno; -ECANCELED: by block_queue_drain */

	/* The queue's own. */
	TAILQ_ENTRY(block_request) link, active;
	int fd;
	uint64_t host_off;
};

TAILQ_HEAD(block_request_list, block_request);

/* What to do when the host fails a request. */
enum block_on_error {
	BLOCK_ON_ERROR_AUTO,   /* no space: pause; anything else: report */
	BLOCK_ON_ERROR_REPORT, /* to the guest */
	BLOCK_ON_ERROR_PAUSE,  /* hold the request: no space is tried again each second, the rest at block_queue_retry */
};

enum block_engine { BLOCK_ENGINE_AUTO, BLOCK_ENGINE_THREADS, BLOCK_ENGINE_URING };

struct block_queue_config {
	struct block *block;
	uint64_t iops, bps; /* 0: no limit; bursts of what 1/10 s gives */
	enum block_on_error on_error;
	enum block_engine engine; /* AUTO: io_uring where the host has it */
	bool no_inline;           /* for tests: nothing is done in the submitter's thread */
	void (*notify)(void *ctx); /* there is something to reap; once until it has been done */
	void *ctx;
};

struct block_queue_status {
	uint64_t requests[BLOCK_OPS], bytes[BLOCK_OPS]; /* done without error */
	uint64_t inlined; /* of the requests: in the submitter's thread */
	uint64_t errors;
	unsigned in_flight, held;
	int held_error; /* why, -errno; 0: none is held */
	bool uring;
};

struct block_queue;

struct block_queue *block_queue_new(const struct block_queue_config *c, struct error *err);
/* After a drain, and a reap of what it left; the block stays the caller's. NULL: nothing. */
void block_queue_free(struct block_queue *q);

/* True: done at once, with r->result; reap does not return it. False: reap will. */
bool block_queue_submit(struct block_queue *q, struct block_request *r);
/* After a batch of submits: sends it off. */
void block_queue_commit(struct block_queue *q);
/* The next request that is done, or NULL. */
struct block_request *block_queue_reap(struct block_queue *q);
/*
 * Returns when nothing is in flight: requests that have not begun are cancelled, those that have are waited for. All of them are
 * there to be reaped then, without a notify.
 */
void block_queue_drain(struct block_queue *q);
/* Try held requests again. */
void block_queue_retry(struct block_queue *q);
/* Waits for what is in flight; reap afterwards. */
bool block_queue_resize(struct block_queue *q, uint64_t size, struct error *err);
void block_queue_status(struct block_queue *q, struct block_queue_status *out);
/* A host error that was reported to the guest, the first one; NULL: none. Stays valid. */
const char *block_queue_error(struct block_queue *q);

#endif
