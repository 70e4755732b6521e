/*
 * Power cuts. Random work on a qcow2 image (or VMDK) runs with each write, truncation, hole and barrier of the image file recorded (the
 * linker puts a shim between). Then crash images are made: all up to a barrier, and any subset of the sectors written after it,
 * up to any later moment. Each must be without corruption by our check (leaks may be; one that says that it is dirty is repaired
 * first), a sample of them by qemu-img's too; each sector must hold what was last flushed or what was written since.
 *
 * Every other run has writes fail (ENOSPC, EIO) at random.
 *
 *   qcow2_crash SECONDS SEED [vmdk]
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/block/block.h"
#include "base/log.h"

#define SECTOR 512u
#define DISK_MAX (2 * MIB)
#define FILE_MAX (24 * MIB)
#define SECTORS (DISK_MAX / SECTOR)
#define EVENTS_MAX 200000u

enum event_kind { EV_WRITE, EV_TRUNC, EV_PUNCH, EV_SYNC, EV_OP, EV_FLUSHED };

/* EV_OP: the guest begins to write byte `value` to sectors [off, off + len); value -1: to discard them. EV_FLUSHED: a flush is done. */
struct event {
	enum event_kind kind;
	uint64_t off, len;
	int value;
	bool failed; /* EV_OP: it did */
	uint8_t *data;
};

/* What the bytes of a sector may be, by value. */
struct values {
	uint64_t bit[4];
};

struct shim {
	bool on;
	dev_t dev;
	ino_t ino;
	struct event *ev;
	size_t n;
	uint64_t rng;
	unsigned fail_one_in;
};

static struct shim shim; /* the linker's wrappers have no argument to carry it */

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

__attribute__((format(printf, 1, 2), noreturn)) static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static bool watched(int fd)
{
	struct stat st;

	return shim.on && fstat(fd, &st) == 0 && st.st_dev == shim.dev && st.st_ino == shim.ino;
}

static struct event *record(enum event_kind kind, uint64_t off, uint64_t len)
{
	struct event *e = &shim.ev[shim.n];

	if (++shim.n >= EVENTS_MAX)
		die("too many events");
	*e = (struct event){.kind = kind, .off = off, .len = len};
	return e;
}

ssize_t __real_pwritev64(int fd, const struct iovec *v, int n, off_t off);
ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int n, off_t off);
int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __real_ftruncate64(int fd, off_t len);
int __wrap_ftruncate64(int fd, off_t len);
int __real_fallocate64(int fd, int mode, off_t off, off_t len);
int __wrap_fallocate64(int fd, int mode, off_t off, off_t len);

ssize_t __wrap_pwritev64(int fd, const struct iovec *v, int n, off_t off)
{
	struct event *e;
	uint64_t len = 0, at = 0;

	if (!watched(fd))
		return __real_pwritev64(fd, v, n, off);
	if (shim.fail_one_in && next(&shim.rng) % shim.fail_one_in == 0) {
		errno = next(&shim.rng) & 1 ? ENOSPC : EIO;
		return -1;
	}
	for (int i = 0; i < n; i++)
		len += v[i].iov_len;
	e = record(EV_WRITE, (uint64_t)off, len);
	e->data = malloc(len + 1);
	for (int i = 0; i < n; i++) {
		memcpy(e->data + at, v[i].iov_base, v[i].iov_len);
		at += v[i].iov_len;
	}
	return __real_pwritev64(fd, v, n, off);
}

int __wrap_fdatasync(int fd)
{
	if (watched(fd))
		record(EV_SYNC, 0, 0);
	return 0;
}

int __wrap_ftruncate64(int fd, off_t len)
{
	if (watched(fd))
		record(EV_TRUNC, (uint64_t)len, 0);
	return __real_ftruncate64(fd, len);
}

int __wrap_fallocate64(int fd, int mode, off_t off, off_t len)
{
	if (watched(fd))
		record(EV_PUNCH, (uint64_t)off, (uint64_t)len);
	return __real_fallocate64(fd, mode, off, len);
}

/* The file as a crash leaves it. */
struct file {
	uint8_t *data;
	uint64_t size;
};

static void file_write(struct file *f, uint64_t off, const uint8_t *data, uint64_t len)
{
	if (off + len > FILE_MAX)
		die("the file grows to %" PRIu64, off + len);
	if (data)
		memcpy(f->data + off, data, len);
	else
		memset(f->data + off, 0, len);
	f->size = max_u64(f->size, off + len);
}

static void file_truncate(struct file *f, uint64_t size)
{
	if (size < f->size)
		memset(f->data + size, 0, f->size - size);
	f->size = size;
}

/* All of an event. */
static void apply(struct file *f, const struct event *e)
{
	if (e->kind == EV_WRITE)
		file_write(f, e->off, e->data, e->len);
	else if (e->kind == EV_TRUNC)
		file_truncate(f, e->off);
	else if (e->kind == EV_PUNCH && e->off < f->size)
		file_write(f, e->off, NULL, min_u64(e->len, f->size - e->off));
}

/* Some of its sectors. */
static void apply_some(struct file *f, const struct event *e, uint64_t *rng)
{
	if (e->kind != EV_WRITE) {
		if (next(rng) & 1)
			apply(f, e);
		return;
	}
	for (uint64_t at = 0; at < e->len;) {
		uint64_t n = min_u64(e->len - at, SECTOR - ((e->off + at) & (SECTOR - 1)));

		if (next(rng) & 1)
			file_write(f, e->off + at, e->data + at, n);
		at += n;
	}
}

struct run {
	const char *format;
	char dir[64], image[96], crash[96];
	uint64_t rng, size;
	struct file stable;
	struct values *latest, *possible; /* of each sector */
	uint64_t crashes, judged, dirty;
	const char *what;
};

static void value_add(struct values *v, int value) { v->bit[value / 64] |= BIT(value & 63); }
static bool value_has(const struct values *v, int value) { return v->bit[value / 64] & BIT(value & 63); }

static void op_note(struct run *r, const struct event *e)
{
	for (uint64_t s = e->off; s < e->off + e->len; s++) {
		if (e->value >= 0 && !e->failed)
			r->latest[s] = (struct values){0};
		value_add(&r->latest[s], e->value >= 0 ? e->value : 0);
		for (unsigned k = 0; k < 4; k++)
			r->possible[s].bit[k] |= r->latest[s].bit[k];
	}
}

static void save(const struct file *f, const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, f->data, f->size) != (ssize_t)f->size || close(fd))
		die("%s: %s", path, strerror(errno));
}

static struct block *open_image(const struct run *r, const char *path, bool readonly)
{
	struct block_options o = {.path = path, .format = r->format, .readonly = readonly};
	struct error err;
	struct block *b = block_open(&o, &err);

	if (!b)
		die("%s", err.msg);
	return b;
}

static void say(void *ctx, const char *line)
{
	if (strncmp(line, "leaked", 6) && !strstr(line, "out of date"))
		fprintf(stderr, "%s\n", line);
}

static void hold_contents(struct run *r, struct block *b, size_t at)
{
	static uint8_t buf[DISK_MAX];
	int err = block_read(b, 0, buf, r->size);

	if (err)
		die("%s: crash after event %zu: read: %s", r->what, at, strerror(-err));
	for (uint64_t s = 0; s < r->size / SECTOR; s++) {
		const uint8_t *p = buf + s * SECTOR;

		for (unsigned i = 1; i < SECTOR; i++) {
			if (p[i] != p[0])
				die("%s: crash after event %zu: sector %" PRIu64 " is torn (%s)", r->what, at, s, r->dir);
		}
		if (!value_has(&r->possible[s], p[0]))
			die("%s: crash after event %zu: sector %" PRIu64 " is %#x, which it never was since the last flush (%s)",
			    r->what, at, s, p[0], r->dir);
	}
}

static void hold_crash(struct run *r, const struct file *f, size_t at)
{
	struct block_check c = {.report = say};
	struct block_info info = {0};
	struct error err;
	struct block *b;
	char cmd[256];

	save(f, r->crash);
	b = open_image(r, r->crash, true);
	b->format->info(b, &info);
	if (info.dirty) {
		block_close(b);
		r->dirty++;
		b = open_image(r, r->crash, false); /* repairs it */
		block_close(b);
		b = open_image(r, r->crash, true);
	}
	if (!b->format->check(b, false, &c, &err))
		die("%s: crash after event %zu: %s", r->what, at, err.msg);
	if (c.corruptions || info.corrupt)
		die("%s: crash after event %zu: corrupt: %s", r->what, at, r->crash);
	hold_contents(r, b, at);
	block_close(b);
	r->crashes++;
	if (r->crashes % 64)
		return;
	/* status 3: leaks only */
	snprintf(cmd, sizeof(cmd), "qemu-img check -f %s %s >%s/out 2>&1; s=$?; [ $s = 0 ] || [ $s = 3 ]", r->format, r->crash, r->dir);
	if (system(cmd))
		die("%s: crash after event %zu: qemu-img check is not content with %s", r->what, at, r->crash);
	r->judged++;
}

/* A crash after event `at`, the last barrier having been after event `from`. */
static void crash(struct run *r, size_t from, size_t at)
{
	static uint8_t data[FILE_MAX];
	struct file f = {data, r->stable.size};
	unsigned mode = (unsigned)(next(&r->rng) % 5);

	memset(data, 0, FILE_MAX);
	memcpy(data, r->stable.data, r->stable.size);
	for (size_t i = from; i <= at; i++) {
		const struct event *e = &shim.ev[i];

		if (mode == 0 || (mode == 1 && next(&r->rng) & 1) || (mode == 2 && next(&r->rng) % 8))
			apply(&f, e);
		else if (mode == 3)
			apply_some(&f, e, &r->rng);
		/* mode 4: nothing arrived */
	}
	hold_crash(r, &f, at);
}

/* Goes through the events, crashing now and then. */
static void crashes(struct run *r, unsigned wanted)
{
	uint64_t one_in = shim.n / wanted + 1;
	size_t from = 0;

	for (size_t i = 0; i < shim.n; i++) {
		const struct event *e = &shim.ev[i];

		if (e->kind == EV_OP)
			op_note(r, e);
		if (e->kind == EV_FLUSHED)
			memcpy(r->possible, r->latest, SECTORS * sizeof(*r->latest));
		if (e->kind == EV_SYNC) {
			for (; from < i; from++)
				apply(&r->stable, &shim.ev[from]);
			from = i + 1;
		}
		if (next(&r->rng) % one_in == 0)
			crash(r, from, i);
	}
}

static struct event *op(struct run *r, uint64_t off, uint64_t len, int value)
{
	struct event *e = record(EV_OP, off / SECTOR, len / SECTOR);

	e->value = value;
	return e;
}

static void flush(struct run *r, struct block *b)
{
	if (block_flush(b) == 0)
		record(EV_FLUSHED, 0, 0);
	else if (!shim.fail_one_in)
		die("%s: flush failed", r->what);
}

static void snapshots(struct run *r, struct block *b, unsigned *made)
{
	struct error err;
	char name[16];

	if (*made && next(&r->rng) & 1) {
		snprintf(name, sizeof(name), "s%u", (*made)--);
		if (!b->format->snapshot_delete(b, name, &err))
			die("%s: %s", r->what, err.msg);
	} else if (*made < 3) {
		snprintf(name, sizeof(name), "s%u", ++*made);
		if (!b->format->snapshot_create(b, name, &err))
			die("%s: %s", r->what, err.msg);
	}
}

/* A write of one kind or the other; the whole disk's clusters for compressed ones. */
static void one_op(struct run *r, struct block *b, uint32_t cluster, bool packed)
{
	static uint8_t buf[DISK_MAX];
	uint64_t off = next(&r->rng) % (r->size / SECTOR) * SECTOR, most = next(&r->rng) % 3 ? 16 * SECTOR : 4 * cluster;
	uint64_t len = min_u64((1 + next(&r->rng) % (most / SECTOR)) * SECTOR, r->size - off);
	unsigned kind = (unsigned)(next(&r->rng) % 16);
	int value = (int)(next(&r->rng) % 255) + 1, err;
	struct event *e;
	size_t at;

	if (kind == 15) {
		flush(r, b);
		return;
	}
	if (packed && kind == 14) {
		off = align_down(off, cluster);
		len = min_u64(cluster, r->size - off);
	}
	at = shim.n;
	op(r, off, len, kind < 9 || kind == 14 ? value : kind < 12 ? 0 : -1);
	memset(buf, value, len);
	if (packed && kind == 14)
		err = b->format->write_compressed(b, off, len, buf);
	else if (kind < 9 || kind == 14)
		err = block_write(b, off, buf, len);
	else
		err = kind < 12 ? block_write_zeroes(b, off, len, kind & 1) : block_discard(b, off, len);
	if (err && !shim.fail_one_in)
		die("%s: operation failed: %s", r->what, strerror(-err));
	e = &shim.ev[at];
	e->failed = err;
}

static void work(struct run *r, unsigned ops, bool with_snapshots, bool packed)
{
	struct block *b = open_image(r, r->image, false);
	struct block_info info = {0};
	unsigned made = 0;

	b->format->info(b, &info);
	for (unsigned i = 0; i < ops; i++) {
		if (with_snapshots && next(&r->rng) % 40 == 0)
			snapshots(r, b, &made);
		else
			one_op(r, b, info.cluster_size, packed);
	}
	shim.fail_one_in = 0;
	if (next(&r->rng) & 1)
		flush(r, b);
	block_close(b);
}

static void load(struct run *r)
{
	int fd = open(r->image, O_RDONLY | O_CLOEXEC);
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		die("%s: %s", r->image, strerror(errno));
	n = read(fd, r->stable.data, FILE_MAX);
	if (n != st.st_size)
		die("%s: read", r->image);
	r->stable.size = (uint64_t)n;
	close(fd);
	shim.dev = st.st_dev;
	shim.ino = st.st_ino;
}

static void base_file(struct run *r, char *path, size_t n)
{
	uint64_t len = align_up(r->size / 2, SECTOR);
	uint8_t *data = malloc(len);
	struct file f = {data, len};

	memset(data, 0xb5, len);
	snprintf(path, n, "%s/base.raw", r->dir);
	save(&f, path);
	free(data);
	for (uint64_t s = 0; s < len / SECTOR; s++) {
		r->latest[s] = (struct values){0};
		value_add(&r->latest[s], 0xb5);
	}
}

static const char *const features[] = {
	"cluster_size=65536", "cluster_size=512", "cluster_size=512,refcount_bits=64", "cluster_size=4096,refcount_bits=1",
	"cluster_size=4096,compat=0.10", "cluster_size=16384,extended_l2=on", "cluster_size=65536,extended_l2=on,compression_type=zstd",
	"cluster_size=2048,lazy_refcounts=on", "cluster_size=1024,refcount_bits=32,compression_type=zstd",
};

static const char *const vmdk_features[] = {"subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on"};

static void one_run(struct run *r, unsigned number)
{
	bool vmdk = !strcmp(r->format, "vmdk");
	const char *options = vmdk ? vmdk_features[number / 2 % ARRAY_LEN(vmdk_features)] : features[number % ARRAY_LEN(features)];
	bool backing = next(&r->rng) & 1 && !vmdk, snaps = !vmdk && next(&r->rng) % 3 == 0 && !strstr(options, "0.10") && !strstr(options, "bits=1");
	struct block_create c = {.path = r->image, .options = options};
	struct error err;
	char base[96], what[256];

	r->size = (1 + next(&r->rng) % (SECTORS - 1)) * SECTOR;
	c.size = r->size;
	memset(r->latest, 0, SECTORS * sizeof(*r->latest));
	for (uint64_t s = 0; s < SECTORS; s++)
		value_add(&r->latest[s], 0);
	if (backing) {
		base_file(r, base, sizeof(base));
		c.backing = base;
		c.backing_format = "raw";
	}
	unlink(r->image);
	if (!block_create(r->format, &c, &err))
		die("%s", err.msg);
	memset(r->stable.data, 0, FILE_MAX);
	load(r);
	memcpy(r->possible, r->latest, SECTORS * sizeof(*r->latest));
	shim.on = true;
	shim.fail_one_in = number & 1 && !snaps ? 40 : 0;
	snprintf(what, sizeof(what), "run %u (%s%s%s%s)", number, options, backing ? ", backing file" : "", snaps ? ", snapshots" : "",
		 shim.fail_one_in ? ", failing writes" : "");
	r->what = what;
	work(r, 200 + (unsigned)(next(&r->rng) % 200), snaps, next(&r->rng) & 1 && !vmdk);
	shim.on = false;
	crashes(r, 120);
	for (size_t i = 0; i < shim.n; i++)
		free(shim.ev[i].data);
	shim.n = 0;
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 5;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	struct run r = {.format = argc > 3 ? argv[3] : "qcow2", .dir = "/tmp/doppel-crash-XXXXXX", .rng = seed * UINT64_C(0x9e3779b97f4a7c15) | 1};
	time_t end = time(NULL) + (time_t)seconds;
	unsigned runs = 0;
	char cmd[128];

	if (system("command -v qemu-img >/dev/null")) {
		printf("qcow2_crash: needs qemu-img (package qemu-utils)\n");
		return 77;
	}
	log_set_level(LOG_ERROR);
	if (!mkdtemp(r.dir))
		die("%s: %s", r.dir, strerror(errno));
	snprintf(r.image, sizeof(r.image), "%s/image.%s", r.dir, r.format);
	snprintf(r.crash, sizeof(r.crash), "%s/crash.%s", r.dir, r.format);
	r.stable.data = malloc(FILE_MAX);
	r.latest = calloc(SECTORS, sizeof(*r.latest));
	r.possible = calloc(SECTORS, sizeof(*r.possible));
	shim.ev = calloc(EVENTS_MAX, sizeof(*shim.ev));
	shim.rng = r.rng ^ 0x5555;
	do {
		one_run(&r, runs++);
	} while (time(NULL) < end);
	printf("qcow2_crash: %u runs, %" PRIu64 " crashes, %" PRIu64 " of them dirty, %" PRIu64 " judged by qemu-img\n", runs, r.crashes,
	       r.dirty, r.judged);
	snprintf(cmd, sizeof(cmd), "rm -r %s", r.dir);
	free(r.stable.data);
	free(r.latest);
	free(r.possible);
	free(shim.ev);
	return system(cmd) != 0;
}
