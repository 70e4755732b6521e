/* Asynchronous requests: both engines against a model, limits, ranges, pause and retry, drain, flushed data after SIGKILL. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/block/queue.h"
#include "base/log.h"
#include "base/timer.h"

#define SIZE (16 * MIB)
#define SLOTS 64
#define SLOT_BYTES (SIZE / SLOTS)

struct rig {
	char path[64];
	struct block *block;
	struct block_queue *q;
	pthread_mutex_t lock; /* the front end's */
	pthread_cond_t told;
	unsigned notified;
};

static void notify(void *ctx)
{
	struct rig *g = ctx;

	pthread_mutex_lock(&g->lock);
	g->notified++;
	pthread_cond_broadcast(&g->told);
	pthread_mutex_unlock(&g->lock);
}

static void rig_open(struct rig *g, struct block_options o, struct block_queue_config c)
{
	struct error err = {0};
	int fd;

	*g = (struct rig){.lock = PTHREAD_MUTEX_INITIALIZER, .told = PTHREAD_COND_INITIALIZER};
	strcpy(g->path, "/var/tmp/doppel-queue-XXXXXX");
	fd = mkstemp(g->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	close(fd);
	o.path = g->path;
	o.format = "raw";
	g->block = block_open(&o, &err);
	if (!g->block)
		fail_msg("%s", err.msg);
	c.block = g->block;
	c.notify = notify;
	c.ctx = g;
	g->q = block_queue_new(&c, &err);
	if (!g->q) {
		block_close(g->block);
		unlink(g->path);
		skip();
	}
}

static void rig_close(struct rig *g)
{
	pthread_mutex_lock(&g->lock);
	block_queue_drain(g->q);
	while (block_queue_reap(g->q))
		;
	pthread_mutex_unlock(&g->lock);
	block_queue_free(g->q);
	block_close(g->block);
	unlink(g->path);
}

/* Wait until r is done; others that are done meanwhile are forgotten. Lock held. */
static int wait_for(struct rig *g, struct block_request *r)
{
	for (;;) {
		struct block_request *d;

		while ((d = block_queue_reap(g->q)))
			if (d == r)
				return r->result;
		pthread_cond_wait(&g->told, &g->lock);
	}
}

static int run(struct rig *g, struct block_request *r)
{
	int result;

	pthread_mutex_lock(&g->lock);
	if (block_queue_submit(g->q, r)) {
		block_queue_commit(g->q);
		result = r->result;
	} else {
		block_queue_commit(g->q);
		result = wait_for(g, r);
	}
	pthread_mutex_unlock(&g->lock);
	return result;
}

static int data(struct rig *g, enum block_op op, uint64_t off, void *buf, size_t len)
{
	struct iovec iov = {buf, len};
	struct block_request r = {.op = op, .off = off, .len = len, .iov = &iov, .niov = 1};

	return run(g, &r);
}

/*
 * Each slot of the disk has one request in flight; after a write a read must show it. All slots at once, in random order.
 */
struct slot {
	struct block_request r;
	struct iovec iov[3];
	struct block_range range;
	uint8_t *buf, *model;
	bool busy;
};

static void slot_start(struct rig *g, struct slot *s, unsigned index)
{
	uint64_t in = ((uint64_t)rand() % SLOT_BYTES) & ~UINT64_C(511);
	uint64_t len = 512 + ((uint64_t)rand() % (rand() % 8 ? 8192 : SLOT_BYTES) & ~UINT64_C(511));
	int what = rand() % 10;

	len = min_u64(len, SLOT_BYTES - in);
	s->r = (struct block_request){.off = index * SLOT_BYTES + in, .len = len, .iov = s->iov, .niov = 2};
	s->iov[0] = (struct iovec){s->buf, len > 512 ? 512 : 0};
	s->iov[1] = (struct iovec){s->buf + s->iov[0].iov_len, len - s->iov[0].iov_len};
	if (what < 4) {
		s->r.op = BLOCK_READ;
		memset(s->buf, 0x5a, len);
	} else if (what < 8) {
		s->r.op = BLOCK_WRITE;
		s->r.stable = what == 7 && rand() % 16 == 0;
		for (size_t i = 0; i < len; i += 61)
			s->buf[i] = (uint8_t)rand();
		memcpy(s->model + in, s->buf, len);
	} else if (what == 8) {
		s->r.op = BLOCK_WRITE_ZEROES;
		s->range = (struct block_range){s->r.off, len, rand() & 1};
		s->r.ranges = &s->range;
		s->r.nranges = 1;
		memset(s->model + in, 0, len);
	} else {
		s->r.op = BLOCK_FLUSH;
		s->r.len = s->r.niov = 0;
	}
	s->busy = !block_queue_submit(g->q, &s->r);
}

static void slot_check(struct slot *s, unsigned index)
{
	assert_int_equal(s->r.result, 0);
	if (s->r.op == BLOCK_READ)
		assert_memory_equal(s->buf, s->model + (s->r.off - index * SLOT_BYTES), s->r.len);
}

static void model(struct block_options o, struct block_queue_config c, unsigned rounds)
{
	static struct slot slots[SLOTS];
	struct block_queue_status st;
	struct rig g;

	srand(rounds);
	rig_open(&g, o, c);
	for (unsigned i = 0; i < SLOTS; i++) {
		slots[i] = (struct slot){.buf = aligned_alloc(4096, SLOT_BYTES), .model = calloc(1, SLOT_BYTES)};
		memset(slots[i].buf, (int)i, SLOT_BYTES);
	}
	pthread_mutex_lock(&g.lock);
	for (unsigned n = 0, busy = 0; n < rounds || busy;) {
		struct block_request *r;
		unsigned i = (unsigned)rand() % SLOTS;

		if (n < rounds && !slots[i].busy) {
			slot_start(&g, &slots[i], i);
			busy += slots[i].busy;
			if (!slots[i].busy)
				slot_check(&slots[i], i);
			n++;
			if (rand() % 4 == 0)
				block_queue_commit(g.q);
		}
		block_queue_status(g.q, &st);
		while ((r = block_queue_reap(g.q))) {
			struct slot *s = container_of(r, struct slot, r);

			slot_check(s, (unsigned)(s - slots));
			s->busy = false;
			busy--;
		}
		if (n >= rounds || busy == SLOTS) {
			block_queue_commit(g.q);
			if (busy && !st.in_flight)
				continue;
			pthread_mutex_unlock(&g.lock);
			usleep(50);
			pthread_mutex_lock(&g.lock);
		}
	}
	block_queue_status(g.q, &st);
	assert_int_equal(st.in_flight, 0);
	assert_int_equal(st.requests[BLOCK_READ] + st.requests[BLOCK_WRITE] + st.requests[BLOCK_FLUSH] +
			 st.requests[BLOCK_WRITE_ZEROES], rounds);
	assert_int_equal(st.uring, c.engine == BLOCK_ENGINE_URING);
	if (c.no_inline)
		assert_int_equal(st.inlined, 0);
	else if (o.cache != BLOCK_CACHE_NONE)
		assert_true(st.inlined > rounds / 20);
	pthread_mutex_unlock(&g.lock);
	for (unsigned i = 0; i < SLOTS; i++) {
		assert_int_equal(block_read(g.block, i * SLOT_BYTES, slots[i].buf, SLOT_BYTES), 0);
		assert_memory_equal(slots[i].buf, slots[i].model, SLOT_BYTES);
		free(slots[i].buf);
		free(slots[i].model);
	}
	rig_close(&g);
}

static void model_threads(void **state)
{
	model((struct block_options){0}, (struct block_queue_config){.engine = BLOCK_ENGINE_THREADS, .no_inline = true}, 4000);
}

static void model_uring(void **state)
{
	model((struct block_options){0}, (struct block_queue_config){.engine = BLOCK_ENGINE_URING, .no_inline = true}, 4001);
}

static void model_inline(void **state)
{
	model((struct block_options){.cache = BLOCK_CACHE_UNSAFE}, (struct block_queue_config){.engine = BLOCK_ENGINE_THREADS}, 8000);
}

static void model_direct(void **state)
{
	model((struct block_options){.cache = BLOCK_CACHE_NONE}, (struct block_queue_config){.engine = BLOCK_ENGINE_URING}, 2000);
}

static void model_snapshot(void **state)
{
	model((struct block_options){.snapshot = true}, (struct block_queue_config){.engine = BLOCK_ENGINE_URING, .no_inline = true}, 4000);
}

/* 40 requests of 64 KiB at 200 a second, or at 12.8 MB a second: 0.1 s are free, the rest takes 0.1 s. */
static double throttled(uint64_t iops, uint64_t bps)
{
	static uint8_t buf[64 * KIB];
	struct block_request r[40];
	struct iovec iov = {buf, sizeof(buf)};
	struct rig g;
	int64_t begin;

	rig_open(&g, (struct block_options){0}, (struct block_queue_config){.iops = iops, .bps = bps});
	begin = clock_now();
	pthread_mutex_lock(&g.lock);
	for (unsigned i = 0; i < ARRAY_LEN(r); i++) {
		r[i] = (struct block_request){.op = BLOCK_READ, .off = i * sizeof(buf), .len = sizeof(buf), .iov = &iov, .niov = 1};
		block_queue_submit(g.q, &r[i]);
	}
	block_queue_commit(g.q);
	wait_for(&g, &r[ARRAY_LEN(r) - 1]);
	pthread_mutex_unlock(&g.lock);
	rig_close(&g);
	return (double)(clock_now() - begin) / 1e9;
}

static void limits(void **state)
{
	double ops = throttled(200, 0), bytes = throttled(0, 200 * 64 * KIB), both = throttled(100000, 200 * 64 * KIB);

	assert_true(ops > 0.08 && ops < 0.6);
	assert_true(bytes > 0.08 && bytes < 0.6);
	assert_true(both > 0.08 && both < 0.6);
}

/* Discards among writes of the same place: none is lost, all end; what is there after is zeroes or one whole write. */
static void same_range(void **state)
{
	enum { N = 200, LEN = 64 * 1024 };
	static uint8_t bufs[N][LEN], after[LEN];
	struct block_range range = {0, LEN, true};
	struct block_request r[N];
	struct iovec iov[N];
	unsigned left = 0;
	struct rig g;

	rig_open(&g, (struct block_options){0}, (struct block_queue_config){.no_inline = true});
	pthread_mutex_lock(&g.lock);
	for (unsigned i = 0; i < N; i++) {
		memset(bufs[i], (int)i + 1, LEN);
		iov[i] = (struct iovec){bufs[i], LEN};
		if (i % 3)
			r[i] = (struct block_request){.op = BLOCK_WRITE, .len = LEN, .iov = &iov[i], .niov = 1};
		else
			r[i] = (struct block_request){.op = i % 2 ? BLOCK_DISCARD : BLOCK_WRITE_ZEROES, .len = LEN, .ranges = &range,
						      .nranges = 1};
		left += !block_queue_submit(g.q, &r[i]);
	}
	block_queue_commit(g.q);
	while (left) {
		struct block_request *d = block_queue_reap(g.q);

		if (!d) {
			pthread_cond_wait(&g.told, &g.lock);
			continue;
		}
		assert_int_equal(d->result, 0);
		left--;
	}
	pthread_mutex_unlock(&g.lock);
	assert_int_equal(block_read(g.block, 0, after, LEN), 0);
	for (unsigned i = 1; i < LEN; i++)
		assert_int_equal(after[i], after[0]);
	rig_close(&g);
}

static void refusals(void **state)
{
	uint8_t buf[512];
	struct rig g;

	rig_open(&g, (struct block_options){.readonly = true}, (struct block_queue_config){0});
	assert_int_equal(data(&g, BLOCK_WRITE, 0, buf, 512), -EROFS);
	assert_int_equal(data(&g, BLOCK_READ, SIZE, buf, 512), -EINVAL);
	assert_int_equal(data(&g, BLOCK_READ, UINT64_MAX - 511, buf, 512), -EINVAL);
	assert_int_equal(data(&g, BLOCK_READ, SIZE - 512, buf, 512), 0);
	rig_close(&g);
}

/* The process may write no file beyond 8 MiB for a while: such a write is held, and done when it may again. */
static void limit_file(uint64_t max)
{
	struct rlimit l;

	getrlimit(RLIMIT_FSIZE, &l);
	l.rlim_cur = max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static void held_until_room(void **state)
{
	static const enum block_engine engines[] = {BLOCK_ENGINE_THREADS, BLOCK_ENGINE_AUTO};
	static uint8_t buf[64 * KIB], back[64 * KIB];
	struct iovec iov = {buf, sizeof(buf)};

	signal(SIGXFSZ, SIG_IGN);
	memset(buf, 0x77, sizeof(buf));
	for (unsigned i = 0; i < 4; i++) {
		struct block_request r = {.op = BLOCK_WRITE, .off = 12 * MIB, .len = sizeof(buf), .iov = &iov, .niov = 1};
		struct block_queue_status st;
		struct rig g;

		rig_open(&g, (struct block_options){0},
			 (struct block_queue_config){.engine = engines[i % 2], .no_inline = i < 2, .on_error = BLOCK_ON_ERROR_AUTO});
		limit_file(8 * MIB);
		pthread_mutex_lock(&g.lock);
		assert_false(block_queue_submit(g.q, &r));
		block_queue_commit(g.q);
		do {
			usleep(1000);
			block_queue_status(g.q, &st);
		} while (!st.held);
		assert_int_equal(st.held_error, -EFBIG);
		assert_null(block_queue_reap(g.q));
		block_queue_retry(g.q); /* too early */
		do {
			usleep(1000);
			block_queue_status(g.q, &st);
		} while (!st.held);
		limit_file(RLIM_INFINITY);
		if (i)
			block_queue_retry(g.q); /* the first waits for the clock */
		assert_int_equal(wait_for(&g, &r), 0);
		pthread_mutex_unlock(&g.lock);
		assert_int_equal(block_read(g.block, 12 * MIB, back, sizeof(back)), 0);
		assert_memory_equal(buf, back, sizeof(back));
		assert_null(block_queue_error(g.q));
		rig_close(&g);
	}
}

static void reported(void **state)
{
	uint8_t buf[512] = {0};
	struct rig g;

	rig_open(&g, (struct block_options){0}, (struct block_queue_config){.on_error = BLOCK_ON_ERROR_REPORT});
	limit_file(8 * MIB);
	assert_int_equal(data(&g, BLOCK_WRITE, 9 * MIB, buf, 512), -EFBIG);
	limit_file(RLIM_INFINITY);
	assert_non_null(strstr(block_queue_error(g.q), "write at 0x900000"));
	rig_close(&g);
}

/* Drain at any moment: each request comes back once, done or cancelled, and its buffer is not touched after. */
static void drain(void **state)
{
	enum { N = 64, LEN = 128 * 1024 };
	uint8_t *bufs = mmap(NULL, (size_t)N * LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct block_queue_status st;
	struct block_request r[N];
	struct iovec iov[N];
	struct rig g;

	rig_open(&g, (struct block_options){0}, (struct block_queue_config){.no_inline = true, .iops = 20000});
	for (unsigned round = 0; round < 300; round++) {
		unsigned done = 0;

		pthread_mutex_lock(&g.lock);
		for (unsigned i = 0; i < N; i++) {
			iov[i] = (struct iovec){bufs + (size_t)i * LEN, LEN};
			r[i] = (struct block_request){.op = i % 3 ? BLOCK_READ : BLOCK_WRITE, .off = (uint64_t)i * LEN, .len = LEN,
						      .iov = &iov[i], .niov = 1};
			done += block_queue_submit(g.q, &r[i]);
		}
		if (round % 3)
			block_queue_commit(g.q);
		for (unsigned i = 0; i < round % 50; i++)
			sched_yield();
		block_queue_drain(g.q);
		mprotect(bufs, (size_t)N * LEN, PROT_NONE); /* the kernel would fail on it: seen as an error */
		for (struct block_request *d; (d = block_queue_reap(g.q)); done++)
			assert_true(d->result == 0 || d->result == -ECANCELED);
		assert_int_equal(done, N);
		block_queue_status(g.q, &st);
		assert_int_equal(st.in_flight, 0);
		mprotect(bufs, (size_t)N * LEN, PROT_READ | PROT_WRITE);
		pthread_mutex_unlock(&g.lock);
	}
	assert_null(block_queue_error(g.q));
	rig_close(&g);
	munmap(bufs, (size_t)N * LEN);
}

static void resize(void **state)
{
	uint8_t buf[512] = {1};
	struct error err;
	struct rig g;

	rig_open(&g, (struct block_options){0}, (struct block_queue_config){0});
	assert_int_equal(data(&g, BLOCK_WRITE, SIZE, buf, 512), -EINVAL);
	pthread_mutex_lock(&g.lock);
	assert_true(block_queue_resize(g.q, 2 * SIZE, &err));
	pthread_mutex_unlock(&g.lock);
	assert_int_equal(data(&g, BLOCK_WRITE, SIZE, buf, 512), 0);
	rig_close(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(model_threads), cmocka_unit_test(model_uring), cmocka_unit_test(model_inline),
		cmocka_unit_test(model_direct),  cmocka_unit_test(model_snapshot), cmocka_unit_test(limits),
		cmocka_unit_test(same_range),    cmocka_unit_test(refusals),    cmocka_unit_test(held_until_room),
		cmocka_unit_test(reported),      cmocka_unit_test(drain),       cmocka_unit_test(resize),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
