#include "backend/block/copy.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (2 * MIB)	     /* of work; a multiple of every cluster size */
#define ZERO_RUN (256 * KIB) /* of a source, and longer: not read */
#define FINE 4096u	     /* raw targets: zeroes looked for in such pieces */
#define THREADS_MIN 4u	     /* some wait for the disk while others compute */
#define THREADS_MAX 16u

/* What is known of one side from the map: [.., end) is all zero or all data. */
struct side {
	struct block *b;
	uint64_t end;
	bool zero;
};

struct pool {
	struct block_job *job;
	struct side sides[2]; /* a copy has one source, a comparison two */
	unsigned nsides;
	struct block *dst;
	bool compress;
	uint64_t size, grain; /* chunks begin and end at multiples of grain */
	pthread_mutex_t lock; /* all below */
	pthread_cond_t cond;
	uint64_t pos, done;
	unsigned running;
	bool quit;
	uint64_t differ; /* the first difference found */
	int error;
	struct block *culprit;
	bool writing; /* the culprit's operation */
	uint64_t error_at;
};

static void fail(struct pool *p, int error, struct block *b, bool writing, uint64_t at)
{
	pthread_mutex_lock(&p->lock);
	if (!p->error) {
		p->error = error;
		p->culprit = b;
		p->writing = writing;
		p->error_at = at;
	}
	p->quit = true;
	pthread_mutex_unlock(&p->lock);
}

static bool all_zero(const uint8_t *p, size_t n)
{
	size_t i = 0;

	for (; i + 64 <= n; i += 64) {
		uint64_t v[8];

		memcpy(v, p + i, 64);
		if (v[0] | v[1] | v[2] | v[3] | v[4] | v[5] | v[6] | v[7])
			return false;
	}
	for (; i < n; i++)
		if (p[i])
			return false;
	return true;
}

/* ---- handing out work; with the lock held ---- */

static int look(struct side *s, uint64_t pos)
{
	struct block_extent e;
	int r;

	if (pos < s->end)
		return 0;
	if (pos >= s->b->size) {
		s->zero = true;
		s->end = UINT64_MAX;
		return 0;
	}
	r = block_map(s->b, pos, s->b->size - pos, &e);
	s->zero = e.kind == EXTENT_ZERO || e.kind == EXTENT_UNALLOCATED;
	s->end = r ? 0 : pos + e.len;
	return r;
}

/* Is [pos, *end) zero on all sides? *end: as far as the answer holds. */
static int zero_at(struct pool *p, uint64_t pos, bool *zero, uint64_t *end)
{
	*zero = true;
	*end = p->size;
	for (unsigned i = 0; i < p->nsides; i++) {
		int r = look(&p->sides[i], pos);

		if (r) {
			p->error = r;
			p->culprit = p->sides[i].b;
			p->error_at = pos;
			p->quit = true;
			return r;
		}
		*zero &= p->sides[i].zero;
		*end = min_u64(*end, p->sides[i].end);
	}
	return 0;
}

/* How far work that begins at pos goes: to the chunk's border, or to a long run of zeroes. */
static uint64_t work_end(struct pool *p, uint64_t pos)
{
	uint64_t border = min_u64(p->size, align_down(pos, CHUNK) + CHUNK), at = pos, zeroes = 0, end;
	bool zero;

	while (at < border) {
		if (zero_at(p, at, &zero, &end))
			return pos;
		zeroes = zero ? zeroes + (end - at) : 0;
		at = end;
		if (zeroes >= ZERO_RUN) {
			at -= zeroes;
			break;
		}
	}
	return min_u64(border, align_up(max_u64(at, pos + 1), p->grain));
}

/* The next piece to work on; *zero: nothing to read, only to pass over. False: there is no more. */
static bool next_work(struct pool *p, uint64_t *off, uint64_t *len, bool *zero)
{
	uint64_t end;

	if (p->quit || p->pos >= p->size || p->pos > p->differ)
		return false;
	*off = p->pos;
	if (zero_at(p, p->pos, zero, &end))
		return false;
	if (*zero) {
		end = end == p->size ? end : align_down(end, p->grain);
		*zero = end > p->pos;
	}
	if (!*zero)
		end = work_end(p, p->pos);
	if (end <= p->pos)
		return false;
	p->pos = end;
	*len = end - *off;
	return true;
}

/* ---- working ---- */

static bool load(struct pool *p, struct block *b, uint64_t off, uint64_t len, uint8_t *buf)
{
	uint64_t here = off < b->size ? min_u64(len, b->size - off) : 0;
	int r = here ? block_read(b, off, buf, here) : 0;

	if (r)
		fail(p, r, b, false, off);
	memset(buf + here, 0, len - here);
	return r == 0;
}

static bool store(struct pool *p, uint64_t off, uint64_t len, const uint8_t *buf)
{
	int r = p->compress ? p->dst->format->write_compressed(p->dst, off, len, buf)
			    : block_write(p->dst, off, buf, len);

	if (r)
		fail(p, r, p->dst, true, off);
	return r == 0;
}

static bool pass(struct pool *p, uint64_t off, uint64_t len)
{
	/* A format that writes in order learns what will not come. */
	int r = p->compress ? block_discard(p->dst, off, len) : 0;

	if (r && r != -ENOTSUP)
		fail(p, r, p->dst, true, off);
	return !r || r == -ENOTSUP;
}

/* One chunk: runs that are not zero are stored. */
static bool copy_chunk(struct pool *p, uint64_t off, uint64_t len, uint8_t *buf)
{
	uint64_t piece = p->compress || p->dst->format != &block_raw ? p->grain : FINE;
	uint64_t at = 0, run;

	if (!load(p, p->sides[0].b, off, len, buf))
		return false;
	while (at < len) {
		bool zero = all_zero(buf + at, min_u64(piece, len - at));

		for (run = min_u64(piece, len - at); at + run < len; run += min_u64(piece, len - at - run))
			if (all_zero(buf + at + run, min_u64(piece, len - at - run)) != zero)
				break;
		if (!(zero ? pass(p, off + at, run) : store(p, off + at, run, buf + at)))
			return false;
		at += run;
	}
	return true;
}

static bool compare_chunk(struct pool *p, uint64_t off, uint64_t len, uint8_t *buf)
{
	uint64_t i = 0;

	if (!load(p, p->sides[0].b, off, len, buf) || !load(p, p->sides[1].b, off, len, buf + CHUNK))
		return false;
	if (!memcmp(buf, buf + CHUNK, len))
		return true;
	while (buf[i] == buf[CHUNK + i])
		i++;
	pthread_mutex_lock(&p->lock);
	p->differ = min_u64(p->differ, off + i);
	pthread_mutex_unlock(&p->lock);
	return true;
}

static void *worker(void *arg)
{
	struct pool *p = arg;
	uint64_t off, len;
	uint8_t *buf;
	bool zero, ok;

	if (posix_memalign((void **)&buf, PAGE_SIZE, p->nsides * CHUNK)) {
		fail(p, -ENOMEM, NULL, false, 0);
		buf = NULL;
	}
	pthread_mutex_lock(&p->lock);
	while (buf && next_work(p, &off, &len, &zero)) {
		pthread_mutex_unlock(&p->lock);
		if (zero)
			ok = !p->dst || pass(p, off, len);
		else
			ok = p->dst ? copy_chunk(p, off, len, buf) : compare_chunk(p, off, len, buf);
		pthread_mutex_lock(&p->lock);
		if (!ok)
			break;
		p->done += len;
	}
	p->running--;
	pthread_cond_signal(&p->cond);
	pthread_mutex_unlock(&p->lock);
	free(buf);
	return NULL;
}

/* ---- the caller's thread ---- */

static void wait_for_workers(struct pool *p)
{
	struct block_job *j = p->job;

	pthread_mutex_lock(&p->lock);
	while (p->running) {
		struct timespec t;
		uint64_t done;

		clock_gettime(CLOCK_REALTIME, &t);
		t.tv_nsec += 100 * 1000 * 1000;
		t.tv_sec += t.tv_nsec / 1000000000;
		t.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&p->cond, &p->lock, &t);
		done = p->done;
		pthread_mutex_unlock(&p->lock);
		if (j->progress)
			j->progress(j->ctx, done, p->size);
		if (j->stop && !j->stopped)
			j->stopped = j->stop(j->ctx);
		pthread_mutex_lock(&p->lock);
		p->quit |= j->stopped;
	}
	pthread_mutex_unlock(&p->lock);
}

static bool describe(const struct pool *p, struct error *err)
{
	if (!p->culprit)
		return error_set(err, "out of memory");
	error_set(err, "disk %s: cannot %s at offset %llu: %s", p->culprit->path, p->writing ? "write" : "read",
		  (unsigned long long)p->error_at, strerror(-p->error));
	if (p->error == -ENOSPC)
		return error_hint(err, "free some space on that file system");
	if (p->error == -EIO && !p->writing)
		return error_hint(err, "the image or the host's disk is damaged; try doppel disk check");
	return false;
}

static bool run_pool(struct pool *p, struct error *err)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = p->job->threads ? p->job->threads : cpus < THREADS_MIN ? THREADS_MIN : (unsigned)cpus;
	pthread_t threads[THREADS_MAX];
	unsigned started = 0;

	n = n > THREADS_MAX ? THREADS_MAX : n;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->cond, NULL);
	p->differ = UINT64_MAX;
	pthread_mutex_lock(&p->lock);
	while (started < n && pthread_create(&threads[started], NULL, worker, p) == 0)
		started++;
	p->running = started;
	pthread_mutex_unlock(&p->lock);
	if (started)
		wait_for_workers(p);
	for (unsigned i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->cond);
	if (!started)
		return error_set(err, "cannot start a thread: %s", strerror(EAGAIN));
	if (p->error)
		return describe(p, err);
	return !p->job->stopped || error_set(err, "stopped");
}

bool block_copy(struct block *src, struct block *dst, bool compress, struct block_job *job, struct error *err)
{
	struct pool p = {
		.job = job, .sides = {{.b = src}}, .nsides = 1, .dst = dst, .compress = compress, .size = src->size};
	struct block_info info = {0};
	int r;

	if (dst->size < src->size)
		return error_set(err, "disk %s: smaller than %s", dst->path, src->path);
	if (compress && !dst->format->write_compressed)
		return error_set(err, "disk %s: %s images are not compressed", dst->path, dst->format->name);
	if (dst->format->info)
		dst->format->info(dst, &info);
	p.grain = info.cluster_size > 64 * KIB ? min_u64(info.cluster_size, CHUNK) : 64 * KIB;
	if (!run_pool(&p, err))
		return false;
	r = block_flush(dst);
	if (!r && job->progress)
		job->progress(job->ctx, p.size, p.size);
	if (!r)
		return true;
	error_set(err, "disk %s: cannot write: %s", dst->path, strerror(-r));
	return r == -ENOSPC ? error_hint(err, "free some space on that file system") : false;
}

bool block_compare(struct block *a, struct block *b, struct block_job *job, bool *same, uint64_t *where,
		   struct error *err)
{
	struct pool p = {.job = job,
			 .sides = {{.b = a}, {.b = b}},
			 .nsides = 2,
			 .size = max_u64(a->size, b->size),
			 .grain = 64 * KIB};

	if (!run_pool(&p, err))
		return false;
	*same = p.differ == UINT64_MAX;
	*where = p.differ;
	return true;
}
