/*
 * Damaged and hostile qcow2 images: opened, read, mapped, checked, written, snapshotted, repaired. There must be no crash, no
 * sanitizer report, no operation that takes longer than 5 seconds, and no more than 1 GiB of address space (without
 * sanitizers). Images live in a memfd.
 *
 *   qcow2_fuzz SECONDS SEED [IMAGE...]    IMAGE: also damage these
 *
 * Built with -DLIBFUZZER, it is a libFuzzer target: its input is the image.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/block/block.h"
#include "base/log.h"

#define IMAGE_MAX (1 * MIB)
#define SEEDS_MAX 32u
#define BUF (64 * KIB)
#define OP_SECONDS 5

struct image {
	uint8_t *data;
	size_t size;
};

struct fuzz {
	uint64_t rng;
	int fd;
	char path[64];
	uint8_t *buf;
	uint64_t opened, runs;
};

static uint64_t next(struct fuzz *f)
{
	f->rng ^= f->rng << 13;
	f->rng ^= f->rng >> 7;
	f->rng ^= f->rng << 17;
	return f->rng * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

static bool fuzz_init(struct fuzz *f, uint64_t seed)
{
	*f = (struct fuzz){.rng = seed * UINT64_C(0x9e3779b97f4a7c15) | 1, .fd = memfd_create("image.qcow2", MFD_CLOEXEC)};
	snprintf(f->path, sizeof(f->path), "/proc/self/fd/%d", f->fd);
	f->buf = malloc(BUF);
	log_set_level(LOG_ERROR);
	return f->fd >= 0 && f->buf;
}

static void put(struct fuzz *f, const uint8_t *data, size_t size)
{
	if (ftruncate(f->fd, 0) || pwrite(f->fd, data, size, 0) != (ssize_t)size)
		abort();
}

static struct block *open_image(struct fuzz *f, bool readonly, bool repair)
{
	struct block_options o = {.path = f->path, .format = "qcow2", .readonly = readonly, .repair = repair,
				  .cache = BLOCK_CACHE_UNSAFE};
	struct error err;

	return block_open(&o, &err);
}

static uint64_t place(struct fuzz *f, const struct block *b, uint64_t *len)
{
	uint64_t off = next(f) & 1 ? next(f) % b->size : b->size - min_u64(b->size, next(f) % BUF + 1);

	if (next(f) % 3 == 0)
		off = min_u64(next(f) % BUF, b->size - 1);
	*len = min_u64(1 + next(f) % (next(f) % 4 ? 4096 : BUF), b->size - off);
	return off;
}

static void look(struct fuzz *f, struct block *b)
{
	struct block_check c = {0};
	struct block_info info = {0};
	struct block_snapshot s[4];
	struct block_extent e;
	struct error err;
	uint64_t off = 0, len;

	b->format->info(b, &info);
	b->format->snapshot_list(b, s, 4);
	for (unsigned i = 0; i < 64 && off < b->size; i++, off += e.len) {
		if (block_map(b, off, b->size - off, &e))
			break;
		if (!e.len || e.len > b->size - off)
			abort();
		block_read(b, off, f->buf, min_u64(e.len, BUF / 16));
	}
	for (unsigned i = 0; b->size && i < 8; i++) {
		off = place(f, b, &len);
		block_read(b, off, f->buf, len);
	}
	b->format->check(b, false, &c, &err);
}

static void change(struct fuzz *f, struct block *b)
{
	struct block_check c = {0};
	struct error err;

	for (unsigned i = 0; b->size && i < 12; i++) {
		uint64_t len, off = place(f, b, &len);

		switch (next(f) % 10) {
		case 0: block_discard(b, off, len); break;
		case 1: block_write_zeroes(b, off, len, next(f) & 1); break;
		case 2: block_flush(b); break;
		case 3: b->format->write_compressed(b, align_down(off, BUF), min_u64(BUF, b->size - align_down(off, BUF)), f->buf); break;
		case 4: b->format->snapshot_create(b, "x", &err); break;
		case 5: b->format->snapshot_apply(b, next(f) & 1 ? "x" : "1", &err); break;
		case 6: b->format->snapshot_delete(b, next(f) & 1 ? "x" : "1", &err); break;
		default: block_write(b, off, f->buf, len); break;
		}
	}
	if (next(f) % 4 == 0)
		b->format->resize(b, (next(f) % (4 * MIB)) & ~UINT64_C(511), &err);
	if (next(f) % 2 == 0)
		b->format->check(b, true, &c, &err);
}

/* All that can be done to the image in f->fd. */
static void exercise(struct fuzz *f)
{
	struct block *b;

	f->runs++;
	alarm(OP_SECONDS * 3);
	b = open_image(f, true, false);
	if (b) {
		f->opened++;
		look(f, b);
		block_close(b);
	}
	b = open_image(f, false, next(f) & 1);
	if (b) {
		change(f, b);
		block_close(b);
	}
	b = open_image(f, true, false);
	if (b)
		look(f, b);
	block_close(b);
	alarm(0);
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct fuzz f;

	if (!f.buf && !fuzz_init(&f, 1))
		abort();
	log_set_level((enum log_level)-1);
	f.rng = size * 2 + 1;
	put(&f, data, size);
	exercise(&f);
	return 0;
}
#else
static const char *const features[] = {
	"cluster_size=512", "cluster_size=4096", "cluster_size=512,compat=0.10", "cluster_size=512,refcount_bits=1",
	"cluster_size=1024,refcount_bits=64", "cluster_size=4096,compression_type=zstd", "cluster_size=16384,extended_l2=on",
	"cluster_size=2048,lazy_refcounts=on",
};

/* An image with something of everything. */
static bool seed_image(struct fuzz *f, const char *options, struct image *out)
{
	struct block_create c = {.size = 300 * KIB + 512, .options = options};
	char path[] = "/tmp/doppel-fuzz-XXXXXX/i.qcow2", *slash = strrchr(path, '/');
	struct error err;
	struct block *b;
	struct stat st;
	int fd;

	*slash = 0;
	if (!mkdtemp(path))
		return false;
	*slash = '/';
	c.path = path;
	b = block_create("qcow2", &c, &err) ? block_open(&(struct block_options){.path = path, .format = "qcow2"}, &err) : NULL;
	if (!b)
		return false;
	for (size_t i = 0; i < BUF; i++)
		f->buf[i] = (uint8_t)(i >> 8);
	block_write(b, 1024, f->buf, 20000);
	b->format->write_compressed(b, 32768, 65536, f->buf);
	block_write_zeroes(b, 120000, 20000, false);
	b->format->snapshot_create(b, "1", &err);
	block_write(b, 4096, f->buf, 512);
	block_write(b, 200 * KIB, f->buf, 30000);
	block_close(b);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) < 0)
		return false;
	out->size = min_u64((uint64_t)st.st_size, IMAGE_MAX);
	out->data = malloc(out->size);
	if (read(fd, out->data, out->size) != (ssize_t)out->size)
		return false;
	close(fd);
	unlink(path);
	*slash = 0;
	rmdir(path);
	return true;
}

/* Big-endian numbers that like to break things. */
static uint64_t number(struct fuzz *f, size_t size)
{
	static const uint64_t odd[] = {0, 1, 2, 511, 512, 513, 4095, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff,
		UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_MAX, UINT64_C(0x8000000000000200), UINT64_C(0x00fffffffffffe00)};

	switch (next(f) % 4) {
	case 0: return odd[next(f) % ARRAY_LEN(odd)];
	case 1: return (next(f) % (2 * size)) & ~UINT64_C(511);
	case 2: return ((next(f) % size) & ~UINT64_C(511)) | UINT64_C(1) << 63;
	default: return next(f) << next(f) % 40;
	}
}

static void damage(struct fuzz *f, uint8_t *p, size_t *size)
{
	unsigned n = 1 + (unsigned)(next(f) % 6);

	for (unsigned i = 0; i < n && *size > 120; i++) {
		size_t at = next(f) % 3 ? next(f) % *size : next(f) % 112; /* the header more often */
		unsigned width = 1u << next(f) % 4;
		uint64_t v = number(f, *size);

		switch (next(f) % 8) {
		case 0: p[at] ^= (uint8_t)(1u << next(f) % 8); break;
		case 1: *size -= next(f) % 4 ? 0 : next(f) % *size; break;
		case 2: /* one table over another */
			memmove(p + next(f) % (*size - 64) / 64 * 64, p + next(f) % (*size - 64) / 64 * 64, 64);
			break;
		default:
			at = min_u64(at / width * width, *size - 8);
			for (unsigned k = 0; k < width; k++)
				p[at + k] = (uint8_t)(v >> 8 * (width - 1 - k));
		}
	}
}

static bool load(const char *path, struct image *out)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return false;
	out->size = min_u64((uint64_t)st.st_size, IMAGE_MAX);
	out->data = malloc(out->size + 1);
	if (read(fd, out->data, out->size) != (ssize_t)out->size)
		return false;
	close(fd);
	return true;
}

static void too_long(int sig)
{
	static const char what[] = "qcow2_fuzz: an image takes too long\n";

	(void)!write(2, what, sizeof(what) - 1);
	_exit(1);
}

int main(int argc, char **argv)
{
	double seconds = argc > 1 ? atof(argv[1]) : 3;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	struct image seeds[SEEDS_MAX];
	uint8_t *p = malloc(IMAGE_MAX);
	time_t end = time(NULL) + (time_t)seconds;
	unsigned n = 0;
	struct fuzz f;

	if (!p || !fuzz_init(&f, seed))
		return 1;
	for (unsigned i = 0; i < ARRAY_LEN(features); i++)
		if (!seed_image(&f, features[i], &seeds[n++]))
			return 1;
	for (int i = 3; i < argc && n < SEEDS_MAX; i++)
		if (!load(argv[i], &seeds[n++]))
			return 1;
#ifndef __SANITIZE_ADDRESS__
#if !defined(__has_feature)
	setrlimit(RLIMIT_AS, &(struct rlimit){GIB, GIB});
#endif
#endif
	log_set_level((enum log_level)-1);
	signal(SIGALRM, too_long);
	do {
		for (unsigned i = 0; i < 100; i++) {
			const struct image *s = &seeds[next(&f) % n];
			size_t size = s->size;

			memcpy(p, s->data, size);
			damage(&f, p, &size);
			put(&f, p, size);
			exercise(&f);
		}
	} while (time(NULL) < end);
	printf("qcow2_fuzz: %" PRIu64 " images, %" PRIu64 " could be opened (seed %" PRIu64 ")\n", f.runs, f.opened, seed);
	for (unsigned i = 0; i < n; i++)
		free(seeds[i].data);
	free(p);
	free(f.buf);
	return 0;
}
#endif
