/*
 * Does to a disk image what the lines of its input say, by backend/block. Driven by tests/cli/qcow2.py, which has QEMU do the
 * same. Offsets and lengths in bytes; P: the byte that data are made of.
 *
 *   create FORMAT SIZE OPTIONS|- [BACKING FORMAT]    open [ro|repair|direct|unsafe]    close
 *   w OFF LEN P    c OFF LEN P (compressed)    z OFF LEN UNMAP    d OFF LEN    f    resize SIZE
 *   dump FILE (contents, by reads of all sizes; also holds map and plain against them)
 *   snap create|apply|delete NAME    snaps    check    repair    threads N SEED OPS    say TEXT
 *
 * usage: qcow2_replay IMAGE < COMMANDS. Status 1: a command failed; what, is on stderr.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/block/block.h"

struct replay {
	const char *path;
	struct block *b;
};

static void fail(const char *line, const char *what)
{
	fprintf(stderr, "qcow2_replay: '%s': %s\n", line, what);
	exit(1);
}

static void fail_errno(const char *line, int r)
{
	if (r)
		fail(line, strerror(-r));
}

static void want(const char *line, bool ok, const struct error *err)
{
	if (!ok)
		fail(line, err->msg);
}

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

static void open_image(struct replay *t, const char *line)
{
	struct block_options o = {.path = t->path, .format = "qcow2"};
	struct error err;

	o.readonly = strstr(line, " ro");
	o.repair = strstr(line, " repair");
	o.cache = strstr(line, " direct") ? BLOCK_CACHE_NONE : strstr(line, " unsafe") ? BLOCK_CACHE_UNSAFE : BLOCK_CACHE_WRITEBACK;
	if (t->b)
		block_close(t->b);
	t->b = block_open(&o, &err);
	want(line, t->b, &err);
}

static void create(struct replay *t, const char *line)
{
	char format[32], options[256], backing[256] = "", backing_format[32] = "";
	struct block_create c = {.path = t->path};
	struct error err;
	int n = sscanf(line, "create %31s %" SCNu64 " %255s %255s %31s", format, &c.size, options, backing, backing_format);

	if (n < 3)
		fail(line, "what?");
	c.options = strcmp(options, "-") ? options : NULL;
	c.backing = n > 3 ? backing : NULL;
	c.backing_format = n > 4 ? backing_format : NULL;
	want(line, block_create(format, &c, &err), &err);
}

/* Data in odd segments, so that vectors are exercised. */
static void write_data(struct replay *t, const char *line, uint64_t off, uint64_t len, int p, bool packed)
{
	uint8_t *buf = aligned_alloc(4096, align_up(len, 4096) + 4096);
	struct iovec v[8];
	unsigned n = 0;
	uint64_t at = 0;

	memset(buf, p, len);
	if (packed) {
		fail_errno(line, t->b->format->write_compressed(t->b, off, len, buf));
		free(buf);
		return;
	}
	while (at < len && n < 7) {
		uint64_t use = min_u64(len - at, 512 * (1 + (off / 512 + n * 3) % 37));

		v[n++] = (struct iovec){buf + at, use};
		at += use;
	}
	if (at < len)
		v[n++] = (struct iovec){buf + at, len - at};
	fail_errno(line, block_writev(t->b, off, v, n));
	free(buf);
}

/* What map and plain say of the bytes at off. Returns how many that is. */
static uint64_t hold_extent(struct replay *t, const char *line, uint64_t off, const uint8_t *data, uint64_t len)
{
	struct block_extent e;
	uint8_t *got = malloc(len);
	uint64_t host;
	int fd;

	fail_errno(line, block_map(t->b, off, len, &e));
	if (!e.len || e.len > len)
		fail(line, "length of an extent");
	memset(got, 0, len);
	if (e.kind == EXTENT_DATA && pread(e.fd, got, e.len, (off_t)e.host_off) != (ssize_t)e.len)
		fail(line, "an extent that cannot be read");
	if (e.kind != EXTENT_ENCODED && memcmp(got, data, e.len))
		fail(line, "an extent that is not what it says");
	if (!t->b->plain_align && t->b->format->plain(t->b, off, e.len, false, &fd, &host) &&
	    (pread(fd, got, e.len, (off_t)host) != (ssize_t)e.len || memcmp(got, data, e.len)))
		fail(line, "a plain range that is not what it says");
	free(got);
	return e.len;
}

static void dump(struct replay *t, const char *line)
{
	uint64_t size = t->b->size, rng = size | 1, at = 0;
	uint8_t *all = malloc(size + 1);
	FILE *f;

	while (at < size) {
		uint64_t len = min_u64(size - at, (next(&rng) % 4 ? 512 : 65536) * (1 + next(&rng) % 64));

		fail_errno(line, block_read(t->b, at, all + at, len));
		at += len;
	}
	for (at = 0; at < size;)
		at += hold_extent(t, line, at, all + at, min_u64(size - at, 512 * (1 + next(&rng) % 8192)));
	f = fopen(line + 5, "w");
	if (!f || fwrite(all, 1, size, f) != size || fclose(f))
		fail(line, strerror(errno));
	free(all);
}

static void snap(struct replay *t, const char *line)
{
	char verb[32], name[256];
	struct error err;

	if (sscanf(line, "snap %31s %255s", verb, name) != 2)
		fail(line, "what?");
	want(line, (verb[0] == 'c' ? t->b->format->snapshot_create : verb[0] == 'a' ? t->b->format->snapshot_apply :
		    t->b->format->snapshot_delete)(t->b, name, &err), &err);
}

static void snaps(struct replay *t)
{
	struct block_snapshot s[64];
	unsigned n = t->b->format->snapshot_list(t->b, s, 64);

	for (unsigned i = 0; i < n && i < 64; i++)
		printf("snapshot %s %s %" PRIu64 " %" PRIu64 "\n", s[i].id, s[i].name, s[i].size, s[i].vm_state);
}

static void say(void *ctx, const char *line) { printf("%s\n", line); }

static void check(struct replay *t, const char *line, bool repair)
{
	struct block_check c = {.report = say};
	struct error err;

	want(line, t->b->format->check(t->b, repair, &c, &err), &err);
	printf("check corruptions %" PRIu64 " leaks %" PRIu64 " fixed %" PRIu64 " %" PRIu64 " allocated %" PRIu64 "/%" PRIu64 "\n",
	       c.corruptions, c.leaks, c.errors_fixed, c.leaks_fixed, c.allocated_clusters, c.total_clusters);
}

/*
 * Threads work on sectors of their own (sector % n), in all clusters together: each knows what it has written, and reads it
 * again.
 */
struct worker {
	struct block *b;
	pthread_t thread;
	unsigned id, n;
	uint64_t rng, ops;
	uint8_t *shadow; /* a byte for each sector of the disk, of which only one's own are looked at */
	const char *line;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t sectors = w->b->size / 512;
	uint8_t buf[512], got[512];

	for (uint64_t i = 0; i < w->ops; i++) {
		uint64_t s = next(&w->rng) % (sectors / w->n) * w->n + w->id;
		unsigned what = (unsigned)(next(&w->rng) % 16);

		if (what < 7) {
			w->shadow[s] = (uint8_t)next(&w->rng);
			memset(buf, w->shadow[s], 512);
			fail_errno(w->line, block_write(w->b, s * 512, buf, 512));
		} else if (what < 14) {
			fail_errno(w->line, block_read(w->b, s * 512, got, 512));
			memset(buf, w->shadow[s], 512);
			if (memcmp(buf, got, 512))
				fail(w->line, "a thread reads what it has not written");
		} else if (what == 14) {
			w->shadow[s] = 0;
			fail_errno(w->line, block_write_zeroes(w->b, s * 512, 512, true));
		} else if (next(&w->rng) % 8 == 0) {
			fail_errno(w->line, block_flush(w->b));
		}
	}
	return NULL;
}

/* Beside them one thread discards and zeroes whole ranges in the upper half, where nobody else is. */
static void *zero_work(void *arg)
{
	struct worker *w = arg;
	uint64_t half = align_down(w->b->size / 2, 512), len;
	uint8_t *buf = malloc(MIB);

	memset(buf, 7, MIB);
	for (uint64_t i = 0; i < w->ops / 16; i++) {
		uint64_t off = half + align_down(next(&w->rng) % (w->b->size - half), 512);

		len = min_u64(align_up(1 + next(&w->rng) % MIB, 512), w->b->size - off);
		switch (next(&w->rng) % 3) {
		case 0: fail_errno(w->line, block_write(w->b, off, buf, len)); break;
		case 1: fail_errno(w->line, block_discard(w->b, off, len)); break;
		default: fail_errno(w->line, block_write_zeroes(w->b, off, len, next(&w->rng) & 1)); break;
		}
	}
	free(buf);
	return NULL;
}

static void threads(struct replay *t, const char *line)
{
	struct block lower = *t->b; /* the lower half of the disk, as the workers see it */
	struct worker w[17];
	uint64_t seed, ops;
	uint8_t *shadow;
	unsigned n;

	if (sscanf(line, "threads %u %" SCNu64 " %" SCNu64, &n, &seed, &ops) != 3 || n < 1 || n > 16)
		fail(line, "what?");
	lower.size = align_down(lower.size / 2, 512);
	shadow = calloc(1, lower.size / 512);
	fail_errno(line, block_write_zeroes(t->b, 0, t->b->size, true));
	for (unsigned i = 0; i <= n; i++) {
		w[i] = (struct worker){i == n ? t->b : &lower, .id = i, .n = n, .rng = seed + i * 77 + 1, .ops = ops, .shadow = shadow, .line = line};
		if (pthread_create(&w[i].thread, NULL, i == n ? zero_work : work, &w[i]))
			fail(line, "no thread");
	}
	for (unsigned i = 0; i <= n; i++)
		pthread_join(w[i].thread, NULL);
	for (uint64_t s = 0; s < lower.size / 512; s++) {
		uint8_t got[512], buf[512];

		memset(buf, shadow[s], 512);
		fail_errno(line, block_read(t->b, s * 512, got, 512));
		if (memcmp(buf, got, 512))
			fail(line, "contents after threads");
	}
	free(shadow);
}

static void command(struct replay *t, const char *line)
{
	uint64_t off, len;
	struct error err;
	int p;

	if (!strncmp(line, "create ", 7))
		create(t, line);
	else if (!strncmp(line, "open", 4))
		open_image(t, line);
	else if (!strcmp(line, "close")) {
		block_close(t->b);
		t->b = NULL;
	} else if (!strcmp(line, "kill"))
		_exit(0);
	else if (sscanf(line, "w %" SCNu64 " %" SCNu64 " %d", &off, &len, &p) == 3)
		write_data(t, line, off, len, p, false);
	else if (sscanf(line, "c %" SCNu64 " %" SCNu64 " %d", &off, &len, &p) == 3)
		write_data(t, line, off, len, p, true);
	else if (sscanf(line, "z %" SCNu64 " %" SCNu64 " %d", &off, &len, &p) == 3)
		fail_errno(line, block_write_zeroes(t->b, off, len, p));
	else if (sscanf(line, "d %" SCNu64 " %" SCNu64, &off, &len) == 2)
		fail_errno(line, block_discard(t->b, off, len));
	else if (!strcmp(line, "f"))
		fail_errno(line, block_flush(t->b));
	else if (sscanf(line, "resize %" SCNu64, &len) == 1)
		want(line, t->b->format->resize(t->b, len, &err), &err);
	else if (!strncmp(line, "dump ", 5))
		dump(t, line);
	else if (!strncmp(line, "snap ", 5))
		snap(t, line);
	else if (!strncmp(line, "say ", 4)) {
		printf("said %s\n", line + 4);
		fflush(stdout);
	} else if (!strcmp(line, "snaps"))
		snaps(t);
	else if (!strcmp(line, "check") || !strcmp(line, "repair"))
		check(t, line, line[0] == 'r');
	else if (!strncmp(line, "threads ", 8))
		threads(t, line);
	else
		fail(line, "what?");
}

int main(int argc, char **argv)
{
	struct replay t = {.path = argc > 1 ? argv[1] : "", .b = NULL};
	char line[1024];

	while (fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (line[0])
			command(&t, line);
	}
	block_close(t.b);
	return 0;
}
