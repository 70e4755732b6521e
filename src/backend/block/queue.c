#include "backend/block/queue.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/block/iov.h"
#include "backend/block/queue_int.h"
#include "base/log.h"
#include "base/timer.h"

#define RETRY_NS INT64_C(1000000000)
#define RECOMMIT_NS INT64_C(10000000)
#define POLL_NS INT64_C(1000000)
#define QUIET_NS INT64_C(10000000000) /* between messages about held requests */

/* A worker looks for a cancel after so many bytes. */
#define SLICE (4 * MIB)
#define SLICE_HOLES (256 * MIB)

/* The submitter's thread: no request larger, no batch longer, and after a slow one none for a while. */
#define INLINE_MAX (1 * MIB)
#define INLINE_BATCH_NS INT64_C(1000000)
#define INLINE_SLOW_NS INT64_C(500000)
#define INLINE_SLOW_NS_PER_KIB 1000
#define INLINE_REST 16
#define INLINE_FLUSH_BYTES (256 * KIB)

bool queue_thread(pthread_t *t, void *(*fn)(void *), void *arg)
{
	sigset_t all, old;
	int r;

	sigfillset(&all); /* signals are other threads' */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(t, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return r == 0;
}

static bool exclusive(const struct block_request *r) { return r->op == BLOCK_DISCARD || r->op == BLOCK_WRITE_ZEROES; }

static bool no_space(int result) { return result == -ENOSPC || result == -EDQUOT || result == -EFBIG; }

/* Execution: in slices, so that a cancel need not wait for gigabytes. */

static int execute_data(struct block_queue *q, struct block_request *r)
{
	struct iovec *part;
	int result = 0;

	if (r->len <= SLICE)
		return r->op == BLOCK_READ ? block_readv(q->block, r->off, r->iov, r->niov)
					   : block_writev(q->block, r->off, r->iov, r->niov);
	part = malloc(r->niov * sizeof(*part));
	if (!part)
		return -ENOMEM;
	for (uint64_t done = 0, n; done < r->len && !result; done += n) {
		unsigned nparts;

		n = min_u64(r->len - done, SLICE);
		nparts = iov_slice(r->iov, r->niov, done, n, part);
		if (__atomic_load_n(&q->cancel, __ATOMIC_RELAXED))
			result = -ECANCELED;
		else if (r->op == BLOCK_READ)
			result = block_readv(q->block, r->off + done, part, nparts);
		else
			result = block_writev(q->block, r->off + done, part, nparts);
	}
	free(part);
	return result;
}

static int execute_range(struct block_queue *q, enum block_op op, const struct block_range *range)
{
	int result = 0;

	for (uint64_t done = 0, n; done < range->len && !result; done += n) {
		n = min_u64(range->len - done, SLICE_HOLES);
		if (__atomic_load_n(&q->cancel, __ATOMIC_RELAXED))
			result = -ECANCELED;
		else if (op == BLOCK_DISCARD)
			result = block_discard(q->block, range->off + done, n);
		else
			result = block_write_zeroes(q->block, range->off + done, n, range->unmap);
	}
	return op == BLOCK_DISCARD && result == -ENOTSUP ? 0 : result;
}

/* Only now: a flush that began before does not cover it. */
void queue_dirtied(struct block_queue *q, const struct block_request *r)
{
	__atomic_fetch_add(&q->dirty, r->len, __ATOMIC_RELEASE);
}

static int execute_flush(struct block_queue *q)
{
	uint64_t dirty = __atomic_exchange_n(&q->dirty, 0, __ATOMIC_ACQ_REL);
	int64_t begin = clock_now();
	int result = block_flush(q->block);

	__atomic_store_n(&q->flush_took, clock_now() - begin, __ATOMIC_RELAXED);
	if (result)
		__atomic_fetch_add(&q->dirty, dirty, __ATOMIC_RELEASE);
	return result;
}

int queue_execute(struct block_queue *q, struct block_request *r)
{
	int result = 0;

	switch (r->op) {
	case BLOCK_READ:
		return execute_data(q, r);
	case BLOCK_FLUSH:
		return execute_flush(q);
	case BLOCK_WRITE:
		result = execute_data(q, r);
		break;
	default:
		for (unsigned i = 0; i < r->nranges && !result; i++)
			result = execute_range(q, r->op, &r->ranges[i]);
		break;
	}
	queue_dirtied(q, r);
	return r->stable && !result ? execute_flush(q) : result;
}

/* In the submitter's thread. */

static bool cheap_flush(const struct block_queue *q)
{
	uint64_t dirty = __atomic_load_n(&q->dirty, __ATOMIC_ACQUIRE);
	int64_t took = __atomic_load_n(&q->flush_took, __ATOMIC_RELAXED);

	return !dirty || q->block->cache == BLOCK_CACHE_UNSAFE || (dirty <= INLINE_FLUSH_BYTES && took && took < INLINE_SLOW_NS);
}

/* Reads that are plain are done only as far as the page cache has them. -EAGAIN: it has not. */
static int read_cached(struct block_queue *q, struct block_request *r)
{
	ssize_t n = preadv2(r->fd, r->iov, (int)r->niov, (off_t)r->host_off, RWF_NOWAIT);

	if (n >= 0)
		return (uint64_t)n == r->len ? 0 : -EAGAIN;
	if (errno == EOPNOTSUPP || errno == EINVAL)
		q->no_nowait = true;
	return -EAGAIN;
}

static bool may_inline(const struct block_queue *q, const struct block_request *r, int64_t now)
{
	if (q->cfg.no_inline || q->budget <= 0 || r->len > INLINE_MAX || now < q->slow_until[r->op])
		return false;
	if (r->op == BLOCK_FLUSH || r->stable)
		return cheap_flush(q);
	return (q->block->cache != BLOCK_CACHE_NONE && !q->block->plain_align) || r->op > BLOCK_WRITE;
}

/* True: r is done, with *result. Without the lock; r is active, so that its range is safe. */
static bool try_inline(struct block_queue *q, struct block_request *r, int *result)
{
	int64_t begin = clock_now(), took;
	bool cached_read = r->op == BLOCK_READ && r->fd >= 0 && !q->no_nowait;

	if (!may_inline(q, r, begin))
		return false;
	*result = cached_read ? read_cached(q, r) : queue_execute(q, r);
	took = clock_now() - begin;
	q->budget -= took;
	/* A cached read cannot wait, only take long. */
	if (!cached_read && took > INLINE_SLOW_NS + (int64_t)(r->len / KIB) * INLINE_SLOW_NS_PER_KIB)
		q->slow_until[r->op] = begin + took * INLINE_REST;
	return !cached_read || *result != -EAGAIN;
}

/* Lists. All with the lock held. */

static bool overlap(const struct block_request *a, const struct block_request *b)
{
	return a->op != BLOCK_FLUSH && b->op != BLOCK_FLUSH && (exclusive(a) || exclusive(b)) && a->off < b->off + b->len &&
	       b->off < a->off + a->len;
}

/* Must r wait for one that is active, or that waits before it? */
static bool conflicts(const struct block_queue *q, const struct block_request *r)
{
	const struct block_request *o;

	if (!q->nexclusive && !exclusive(r))
		return false;
	TAILQ_FOREACH(o, &q->active, active)
		if (overlap(o, r))
			return true;
	TAILQ_FOREACH(o, &q->blocked, link) {
		if (o == r)
			break;
		if (overlap(o, r))
			return true;
	}
	return false;
}

static void *worker(void *arg);

void queue_ready(struct block_queue *q, struct block_request *r)
{
	TAILQ_INSERT_TAIL(&q->ready, r, link);
	q->nready++;
	if (q->nready > q->nidle && q->nworkers < QUEUE_WORKERS && queue_thread(&q->workers[q->nworkers], worker, q))
		q->nworkers++;
	pthread_cond_signal(&q->work);
}

/* Plain bytes of a file, and aligned as it wants them? Then r->fd and host_off say where. */
static void find_plain(struct block_queue *q, struct block_request *r)
{
	const struct block_format *f = q->block->format;
	uint64_t bits;

	r->fd = -1;
	if ((r->op != BLOCK_READ && r->op != BLOCK_WRITE) || !f->plain || !r->len || !range_ok(r->off, r->len, q->block->size) ||
	    (r->op == BLOCK_WRITE && q->block->readonly))
		return;
	if (!f->plain(q->block, r->off, r->len, r->op == BLOCK_WRITE, &r->fd, &r->host_off)) {
		r->fd = -1;
		return;
	}
	bits = r->host_off | r->len;
	for (unsigned i = 0; i < r->niov && q->block->plain_align; i++)
		bits |= (uint64_t)(uintptr_t)r->iov[i].iov_base | r->iov[i].iov_len;
	if (q->block->plain_align && bits & (q->block->plain_align - 1))
		r->fd = -1;
}

/* To io_uring or the workers. */
static void start_async(struct block_queue *q, struct block_request *r)
{
	if (!q->ring || r->stable || r->len > SLICE || r->fd < 0 || !queue_ring_submit(q->ring, r))
		queue_ready(q, r);
}

static void activate(struct block_queue *q, struct block_request *r)
{
	q->nexclusive += exclusive(r);
	TAILQ_INSERT_TAIL(&q->active, r, active);
	q->nactive++;
	find_plain(q, r);
}

/* r has been paid for, and is in no list. */
static bool admit(struct block_queue *q, struct block_request *r)
{
	if (conflicts(q, r)) {
		TAILQ_INSERT_TAIL(&q->blocked, r, link);
		q->nexclusive += exclusive(r);
		return false;
	}
	activate(q, r);
	return true;
}

static bool pay(struct block_queue *q, struct block_request *r, int64_t now)
{
	if (!bucket_open(&q->ops, now) || !bucket_open(&q->bytes, now))
		return false;
	bucket_take(&q->ops, 1, now);
	if (r->op == BLOCK_READ || r->op == BLOCK_WRITE)
		bucket_take(&q->bytes, r->len, now);
	return true;
}

static void unblock(struct block_queue *q)
{
	struct block_request *r, *next;

	for (r = TAILQ_FIRST(&q->blocked); r; r = next) {
		next = TAILQ_NEXT(r, link);
		if (conflicts(q, r))
			continue;
		TAILQ_REMOVE(&q->blocked, r, link);
		q->nexclusive -= exclusive(r);
		activate(q, r);
		start_async(q, r);
	}
}

static bool complete(struct block_queue *q, struct block_request *r, int result)
{
	bool first = TAILQ_EMPTY(&q->done);

	r->result = result;
	TAILQ_INSERT_TAIL(&q->done, r, link);
	return first;
}

static void *timer(void *arg);

void queue_wake_timer(struct block_queue *q)
{
	if (!q->has_timer)
		q->has_timer = queue_thread(&q->timer, timer, q);
	pthread_cond_signal(&q->clock);
}

static bool should_hold(const struct block_queue *q, const struct block_request *r, int result)
{
	if (q->cfg.on_error == BLOCK_ON_ERROR_REPORT || result == -ECANCELED || result == -ENOTSUP || result == -EINVAL || q->cancel)
		return false;
	return q->cfg.on_error == BLOCK_ON_ERROR_PAUSE || no_space(result);
}

static void hold(struct block_queue *q, struct block_request *r, int result)
{
	TAILQ_INSERT_TAIL(&q->held, r, link);
	q->nheld++;
	if (q->held_error != result && clock_now() >= q->quiet_until) {
		q->quiet_until = clock_now() + QUIET_NS;
		log_error("disk %s: %s: requests of the guest wait; %s", q->block->path, strerror(-result),
			  no_space(result) ? "make room, they are tried again each second"
					   : "repair it, then send SIGCONT to try them again");
	}
	q->held_error = result;
	if (no_space(result) && q->retry_at == TIMER_NEVER) {
		q->retry_at = clock_now() + RETRY_NS;
		queue_wake_timer(q);
	}
}

static void succeeded(struct block_queue *q, const struct block_request *r)
{
	q->status.requests[r->op]++;
	q->status.bytes[r->op] += r->len;
	if (!q->held_error || q->nheld || r->op == BLOCK_READ)
		return;
	log_warn("disk %s: goes on", q->block->path);
	q->held_error = 0;
}

static void report(struct block_queue *q, const struct block_request *r, int result)
{
	static const char *const ops[] = {"read", "write", "flush", "discard", "write zeroes"};

	q->status.errors++;
	if (q->error[0])
		return;
	snprintf(q->error, sizeof(q->error), "disk %.128s: %s at %#llx: %s", q->block->path, ops[r->op], (unsigned long long)r->off,
		 strerror(-result));
	log_error("%s (reported to the guest)", q->error);
}

/* What finish does, but for putting it into `done`. True: it is done. */
static bool settle(struct block_queue *q, struct block_request *r, int result)
{
	TAILQ_REMOVE(&q->active, r, active);
	q->nactive--;
	q->nexclusive -= exclusive(r);
	if (!TAILQ_EMPTY(&q->blocked))
		unblock(q);
	if (!q->nactive)
		pthread_cond_broadcast(&q->idle);
	if (result == 0) {
		succeeded(q, r);
	} else if (should_hold(q, r, result)) {
		hold(q, r, result);
		return false;
	} else if (result != -ECANCELED && result != -ENOTSUP) {
		report(q, r, result);
	}
	return true;
}

bool queue_finish(struct block_queue *q, struct block_request *r, int result)
{
	return settle(q, r, result) && complete(q, r, result);
}

/* Threads. */

static void *worker(void *arg)
{
	struct block_queue *q = arg;

	pthread_mutex_lock(&q->lock);
	for (;;) {
		struct block_request *r = TAILQ_FIRST(&q->ready);
		bool notify;
		int result;

		if (!r) {
			if (q->stop)
				break;
			q->nidle++;
			pthread_cond_wait(&q->work, &q->lock);
			q->nidle--;
			continue;
		}
		TAILQ_REMOVE(&q->ready, r, link);
		q->nready--;
		pthread_mutex_unlock(&q->lock);
		result = queue_execute(q, r);
		pthread_mutex_lock(&q->lock);
		notify = queue_finish(q, r, result);
		if (q->ring)
			queue_ring_commit(q->ring); /* what it had blocked */
		if (!notify)
			continue;
		pthread_mutex_unlock(&q->lock);
		q->cfg.notify(q->cfg.ctx);
		pthread_mutex_lock(&q->lock);
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

static void release_throttled(struct block_queue *q, int64_t now)
{
	struct block_request *r;

	while ((r = TAILQ_FIRST(&q->throttled)) && pay(q, r, now)) {
		TAILQ_REMOVE(&q->throttled, r, link);
		if (admit(q, r))
			start_async(q, r);
	}
}

static void release_held(struct block_queue *q)
{
	struct block_request_list list = TAILQ_HEAD_INITIALIZER(list);
	struct block_request *r;

	TAILQ_CONCAT(&list, &q->held, link);
	q->nheld = 0;
	while ((r = TAILQ_FIRST(&list))) {
		TAILQ_REMOVE(&list, r, link);
		if (admit(q, r))
			start_async(q, r);
	}
}

static int64_t deadline(struct block_queue *q, int64_t now)
{
	int64_t at = q->retry_at, ops, bytes;

	if (q->ring && queue_ring_unsent(q->ring) && at > now + RECOMMIT_NS)
		at = now + RECOMMIT_NS;
	if (TAILQ_EMPTY(&q->throttled))
		return at;
	ops = bucket_open_at(&q->ops, now);
	bytes = bucket_open_at(&q->bytes, now);
	ops = ops > bytes ? ops : bytes;
	return ops < at ? ops : at;
}

static void *timer(void *arg)
{
	struct block_queue *q = arg;

	pthread_mutex_lock(&q->lock);
	while (!q->stop) {
		int64_t now = clock_now(), at;

		if (now >= q->retry_at) {
			q->retry_at = TIMER_NEVER;
			release_held(q);
		}
		release_throttled(q, now);
		if (q->ring)
			queue_ring_commit(q->ring);
		at = deadline(q, now);
		if (at == TIMER_NEVER)
			pthread_cond_wait(&q->clock, &q->lock);
		else
			pthread_cond_timedwait(&q->clock, &q->lock, &(struct timespec){at / 1000000000, at % 1000000000});
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

/* Interface. */

struct block_queue *block_queue_new(const struct block_queue_config *c, struct error *err)
{
	struct block_queue *q = calloc(1, sizeof(*q));
	pthread_condattr_t monotonic;

	if (!q) {
		error_set(err, "disk %s: out of memory", c->block->path);
		return NULL;
	}
	q->cfg = *c;
	q->block = c->block;
	q->retry_at = TIMER_NEVER;
	q->budget = INLINE_BATCH_NS;
	q->dirty = 1; /* whoever wrote before us */
	pthread_mutex_init(&q->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&q->work, NULL);
	pthread_cond_init(&q->clock, &monotonic);
	pthread_cond_init(&q->idle, &monotonic);
	pthread_condattr_destroy(&monotonic);
	TAILQ_INIT(&q->throttled);
	TAILQ_INIT(&q->blocked);
	TAILQ_INIT(&q->ready);
	TAILQ_INIT(&q->active);
	TAILQ_INIT(&q->held);
	TAILQ_INIT(&q->done);
	bucket_init(&q->ops, c->iops, 0, clock_now());
	bucket_init(&q->bytes, c->bps, 0, clock_now());
	if (c->engine != BLOCK_ENGINE_THREADS)
		q->ring = queue_ring_new(q);
	q->status.uring = q->ring;
	if (c->engine == BLOCK_ENGINE_URING && !q->ring) {
		error_set(err, "disk %s: this host has no io_uring for us", c->block->path);
		block_queue_free(q);
		return NULL;
	}
	return q;
}

void block_queue_free(struct block_queue *q)
{
	if (!q)
		return;
	block_queue_drain(q);
	pthread_mutex_lock(&q->lock);
	q->stop = true;
	pthread_cond_broadcast(&q->work);
	pthread_cond_broadcast(&q->clock);
	pthread_mutex_unlock(&q->lock);
	for (unsigned i = 0; i < q->nworkers; i++)
		pthread_join(q->workers[i], NULL);
	if (q->has_timer)
		pthread_join(q->timer, NULL);
	if (q->ring)
		queue_ring_free(q->ring);
	pthread_cond_destroy(&q->work);
	pthread_cond_destroy(&q->clock);
	pthread_cond_destroy(&q->idle);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

bool block_queue_submit(struct block_queue *q, struct block_request *r)
{
	bool done = false;
	int result;

	pthread_mutex_lock(&q->lock);
	if (!TAILQ_EMPTY(&q->throttled) || !pay(q, r, clock_now())) {
		TAILQ_INSERT_TAIL(&q->throttled, r, link);
		queue_wake_timer(q);
		pthread_mutex_unlock(&q->lock);
		return false;
	}
	if (admit(q, r)) {
		pthread_mutex_unlock(&q->lock);
		done = try_inline(q, r, &result);
		pthread_mutex_lock(&q->lock);
		if (!done) {
			start_async(q, r);
		} else {
			q->status.inlined++;
			r->result = result;
			done = settle(q, r, result);
		}
	}
	pthread_mutex_unlock(&q->lock);
	return done;
}

void block_queue_commit(struct block_queue *q)
{
	q->budget = INLINE_BATCH_NS;
	if (!q->ring)
		return;
	pthread_mutex_lock(&q->lock);
	queue_ring_commit(q->ring);
	pthread_mutex_unlock(&q->lock);
}

struct block_request *block_queue_reap(struct block_queue *q)
{
	struct block_request *r;

	pthread_mutex_lock(&q->lock);
	r = TAILQ_FIRST(&q->done);
	if (r)
		TAILQ_REMOVE(&q->done, r, link);
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* Lock held. */
static void cancel_list(struct block_queue *q, struct block_request_list *list, bool is_active)
{
	struct block_request *r;

	while ((r = TAILQ_FIRST(list))) {
		TAILQ_REMOVE(list, r, link);
		if (is_active) {
			TAILQ_REMOVE(&q->active, r, active);
			q->nactive--;
		}
		if (is_active || list == &q->blocked)
			q->nexclusive -= exclusive(r);
		complete(q, r, -ECANCELED);
	}
}

/*
 * Wait until nothing is active. Lock held, and the front end's: all threads of the queue may stand before that one, so we do
 * their work.
 */
static void wait_idle(struct block_queue *q)
{
	while (q->nactive) {
		struct block_request *r = TAILQ_FIRST(&q->ready);
		int64_t at = clock_now() + POLL_NS;
		int result;

		if (q->ring)
			queue_ring_reap(q->ring);
		if (r && r == TAILQ_FIRST(&q->ready)) {
			TAILQ_REMOVE(&q->ready, r, link);
			q->nready--;
			pthread_mutex_unlock(&q->lock);
			result = queue_execute(q, r);
			pthread_mutex_lock(&q->lock);
			queue_finish(q, r, result);
		} else if (q->nactive) {
			pthread_cond_timedwait(&q->idle, &q->lock, &(struct timespec){at / 1000000000, at % 1000000000});
		}
	}
}

void block_queue_drain(struct block_queue *q)
{
	pthread_mutex_lock(&q->lock);
	__atomic_store_n(&q->cancel, true, __ATOMIC_RELAXED);
	cancel_list(q, &q->throttled, false);
	cancel_list(q, &q->blocked, false);
	cancel_list(q, &q->held, false);
	q->nheld = 0;
	q->held_error = 0;
	q->retry_at = TIMER_NEVER;
	cancel_list(q, &q->ready, true);
	q->nready = 0;
	wait_idle(q);
	__atomic_store_n(&q->cancel, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&q->lock);
}

void block_queue_retry(struct block_queue *q)
{
	pthread_mutex_lock(&q->lock);
	release_held(q);
	if (q->ring)
		queue_ring_commit(q->ring);
	pthread_mutex_unlock(&q->lock);
}

bool block_queue_resize(struct block_queue *q, uint64_t size, struct error *err)
{
	bool ok;

	if (!q->block->format->resize || q->block->readonly)
		return error_set(err, "disk %s: it cannot be resized", q->block->path);
	pthread_mutex_lock(&q->lock);
	wait_idle(q);
	ok = q->block->format->resize(q->block, size, err);
	pthread_mutex_unlock(&q->lock);
	return ok;
}

void block_queue_status(struct block_queue *q, struct block_queue_status *out)
{
	pthread_mutex_lock(&q->lock);
	*out = q->status;
	out->in_flight = q->nactive;
	out->held = q->nheld;
	out->held_error = q->held_error;
	pthread_mutex_unlock(&q->lock);
}

const char *block_queue_error(struct block_queue *q)
{
	bool any;

	pthread_mutex_lock(&q->lock);
	any = q->error[0];
	pthread_mutex_unlock(&q->lock);
	return any ? q->error : NULL;
}
