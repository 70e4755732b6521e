/*
 * Snapshot mode: writes go to an unlinked temporary file of the same size, laid out as the disk is. One bit for each 4 KiB says
 * where a page is: set, in the file. A bit is set after its page is complete, and never cleared, so that readers need no lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>

#include "backend/block/block_int.h"
#include "backend/block/iov.h"

#define UNIT PAGE_SIZE

struct overlay {
	int fd;
	uint64_t *bits;      /* mapped, and as sparse as the overlay is */
	size_t bits_len;     /* bytes */
	pthread_mutex_t lock; /* of writes that set bits */
};

static bool is_set(const struct overlay *o, uint64_t unit)
{
	return __atomic_load_n(&o->bits[unit / 64], __ATOMIC_ACQUIRE) & BIT(unit % 64);
}

static void set_bits(struct overlay *o, uint64_t first, uint64_t end)
{
	for (uint64_t u = first; u < end; u++)
		__atomic_fetch_or(&o->bits[u / 64], BIT(u % 64), __ATOMIC_RELEASE);
}

/* The length of the run from off on that is alike; *set: what it is. */
static uint64_t run(const struct overlay *o, uint64_t off, uint64_t len, bool *set)
{
	uint64_t unit = off / UNIT, last = (off + len - 1) / UNIT;

	*set = is_set(o, unit);
	for (unit++; unit <= last; unit++) {
		if (unit % 64 == 0 && !*set && unit + 63 <= last && !__atomic_load_n(&o->bits[unit / 64], __ATOMIC_ACQUIRE))
			unit += 63;
		else if (is_set(o, unit) != *set)
			return unit * UNIT - off;
	}
	return len;
}

static void overlay_close(struct block *b)
{
	struct overlay *o = b->state;

	if (!o)
		return;
	if (o->fd >= 0)
		close(o->fd);
	if (o->bits)
		munmap(o->bits, o->bits_len);
	pthread_mutex_destroy(&o->lock);
	free(o);
}

static int overlay_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	struct overlay *o = b->state;
	struct iovec *part = niov > 1 ? malloc(niov * sizeof(*part)) : NULL;
	int r = niov > 1 && !part ? -ENOMEM : 0;

	for (uint64_t done = 0, n; !r && done < len; done += n) {
		bool set;

		n = run(o, off + done, len - done, &set);
		if (set) {
			r = iov_pread(o->fd, off + done, iov, niov, done, n);
		} else if (part) {
			unsigned nparts = iov_slice(iov, niov, done, n, part);

			r = block_readv(b->backing, off + done, part, nparts);
		} else {
			r = block_read(b->backing, off + done, (char *)iov->iov_base + done, n);
		}
	}
	free(part);
	return r;
}

/* Fill what [off, off + len) does not cover of the unit that off lies in. Lock held. */
static int complete_unit(struct block *b, uint64_t unit)
{
	struct overlay *o = b->state;
	uint64_t at = unit * UNIT, n = min_u64(UNIT, b->size - at);
	uint8_t buf[UNIT];
	int r;

	if (is_set(o, unit))
		return 0;
	r = block_read(b->backing, at, buf, n);
	if (r == 0)
		r = iov_pwrite(o->fd, at, &(struct iovec){buf, n}, 1, 0, n);
	if (r == 0)
		set_bits(o, unit, unit + 1);
	return r;
}

/* Make the units that [off, off + len) covers in part complete, so that it may be written in place. Lock held. */
static int complete_ends(struct block *b, uint64_t off, uint64_t len)
{
	uint64_t end = off + len;
	int r = off % UNIT ? complete_unit(b, off / UNIT) : 0;

	if (r == 0 && end % UNIT && end != b->size)
		r = complete_unit(b, end / UNIT);
	return r;
}

static int overlay_write(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	struct overlay *o = b->state;
	bool set;
	int r;

	if (run(o, off, len, &set) == len && set)
		return iov_pwrite(o->fd, off, iov, niov, 0, len);
	pthread_mutex_lock(&o->lock);
	r = complete_ends(b, off, len);
	if (r == 0)
		r = iov_pwrite(o->fd, off, iov, niov, 0, len);
	if (r == 0)
		set_bits(o, off / UNIT, (off + len + UNIT - 1) / UNIT);
	pthread_mutex_unlock(&o->lock);
	return r;
}

static int overlay_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct overlay *o = b->state;
	int r;

	pthread_mutex_lock(&o->lock);
	r = complete_ends(b, off, len);
	if (r == 0 && fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
		r = -errno;
	if (r == 0)
		set_bits(o, off / UNIT, (off + len + UNIT - 1) / UNIT);
	pthread_mutex_unlock(&o->lock);
	return r;
}

/* What was written here goes; the rest is not ours. */
static int overlay_discard(struct block *b, uint64_t off, uint64_t len)
{
	uint64_t first = align_up(off, UNIT), end = align_down(off + len, UNIT);
	struct overlay *o = b->state;

	if (first < end && fallocate(o->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)first, (off_t)(end - first)) < 0)
		return errno == EOPNOTSUPP ? 0 : -errno;
	return 0;
}

static int overlay_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out)
{
	struct overlay *o = b->state;
	bool set;
	uint64_t n = run(o, off, len, &set);
	int r;

	if (set) {
		*out = (struct block_extent){.kind = EXTENT_DATA, .len = n, .fd = o->fd, .host_off = off};
		return 0;
	}
	r = block_map(b->backing, off, n, out);
	out->depth++;
	return r;
}

static bool overlay_plain(struct block *b, uint64_t off, uint64_t len, bool write, int *fd, uint64_t *host_off)
{
	struct overlay *o = b->state;
	bool set;

	if (run(o, off, len, &set) != len)
		return false;
	*fd = o->fd;
	*host_off = off;
	return set || (!write && b->backing->format->plain && b->backing->format->plain(b->backing, off, len, false, fd, host_off));
}

static void overlay_info(struct block *b, struct block_info *out)
{
	if (b->backing->format->info)
		b->backing->format->info(b->backing, out);
}

static const struct block_format overlay_format = {
	.name = "snapshot",
	.close = overlay_close,
	.read = overlay_read,
	.write = overlay_write,
	.discard = overlay_discard,
	.write_zeroes = overlay_write_zeroes,
	.map = overlay_map,
	.plain = overlay_plain,
	.info = overlay_info,
};

static bool overlay_open(struct overlay *o, uint64_t size, struct error *err)
{
	const char *dir = getenv("TMPDIR");

	if (!dir || !dir[0])
		dir = "/var/tmp";
	o->fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
	if (o->fd < 0 || ftruncate(o->fd, (off_t)size) < 0) {
		error_set(err, "snapshot: no temporary file of %llu MiB in %s: %s", (unsigned long long)(size / MIB), dir, strerror(errno));
		return error_hint(err, "name another directory in TMPDIR");
	}
	o->bits_len = (size_t)((size / UNIT / 64 + 1) * 8);
	o->bits = mmap(NULL, o->bits_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (o->bits != MAP_FAILED)
		return true;
	o->bits = NULL;
	return error_set(err, "snapshot: a disk of %llu GiB is too large for one", (unsigned long long)(size / GIB));
}

struct block *overlay_new(struct block *below, struct error *err)
{
	struct block *b = calloc(1, sizeof(*b));
	struct overlay *o = calloc(1, sizeof(*o));
	char *path = strdup(below->path);

	if (!b || !o || !path) {
		free(b);
		free(o);
		free(path);
		error_set(err, "snapshot: out of memory");
		return NULL;
	}
	*b = (struct block){.format = &overlay_format, .state = o, .size = below->size, .cache = BLOCK_CACHE_UNSAFE, .path = path,
			    .plain_align = below->plain_align};
	pthread_mutex_init(&o->lock, NULL);
	o->fd = -1;
	if (overlay_open(o, below->size, err)) {
		b->backing = below;
		return b;
	}
	block_close(b);
	return NULL;
}
