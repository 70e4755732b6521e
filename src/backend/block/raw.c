/*
 * Raw images: the bytes themselves, in a file (with holes) or a block device. Never probed, never interpreted.
 *
 * A failed fdatasync leaves pages marked clean that never reached the disk, and the next one would succeed: once one
 * has failed, all later ones fail.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/falloc.h>
#include <linux/fs.h>

#include "backend/block/block.h"
#include "backend/block/iov.h"

#define ZERO_CHUNK (1 * MIB)

struct raw {
	int fd;
	int direct;     /* O_DIRECT, or -1 */
	uint32_t align; /* of direct */
	bool device;
	atomic_int flush_error;
};

static bool raw_size(struct block *b, const char *path, struct error *err)
{
	struct raw *r = b->state;
	struct stat st;

	if (fstat(r->fd, &st) < 0)
		return error_set(err, "disk %s: %s", path, strerror(errno));
	r->device = S_ISBLK(st.st_mode);
	b->size = (uint64_t)st.st_size;
	if (r->device && ioctl(r->fd, BLKGETSIZE64, &b->size) < 0)
		return error_set(err, "disk %s: no size: %s", path, strerror(errno));
	if (b->size)
		return true;
	error_set(err, "disk %s: it is empty", path);
	return error_hint(err, "give it a size, as truncate -s 10G does");
}

static bool raw_open(struct block *b, const struct block_options *o, struct error *err)
{
	struct raw *r = calloc(1, sizeof(*r));

	if (!r)
		return error_set(err, "disk %s: out of memory", o->path);
	b->state = r;
	r->direct = -1;
	r->fd = block_file_open(o->path, o, !b->readonly, err);
	if (r->fd < 0 || !raw_size(b, o->path, err))
		return false;
	if (o->cache != BLOCK_CACHE_NONE)
		return true;
	r->direct = block_file_direct(r->fd, !b->readonly, &r->align);
	b->plain_align = r->align;
	if (r->direct >= 0)
		return true;
	error_set(err, "disk %s: its file system has no direct I/O", o->path);
	return error_hint(err, "leave cache=none away");
}

static void raw_close(struct block *b)
{
	struct raw *r = b->state;

	if (!r)
		return;
	if (r->direct >= 0)
		close(r->direct);
	if (r->fd >= 0)
		close(r->fd);
	free(r);
}

static bool raw_create(const struct block_create *c, struct error *err)
{
	bool ok;
	int fd;

	if (c->backing)
		return error_set(err, "disk %s: raw images have no backing file", c->path);
	if (c->options && c->options[0])
		return error_set(err, "disk %s: raw images have no options ('%.64s')", c->path, c->options);
	if (!c->size || c->size > INT64_MAX)
		return error_set(err, "disk %s: its size must be 1 byte to 8 EiB", c->path);
	fd = block_file_create(c->path, err);
	if (fd < 0)
		return false;
	ok = ftruncate(fd, (off_t)c->size) == 0 && fsync(fd) == 0;
	if (!ok) {
		error_set(err, "disk %s: %s", c->path, strerror(errno));
		unlink(c->path);
	}
	close(fd);
	return ok;
}

static int pick_fd(const struct raw *r, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	uint64_t bits = off | len;

	if (r->direct < 0)
		return r->fd;
	for (unsigned i = 0; i < niov; i++)
		bits |= (uint64_t)(uintptr_t)iov[i].iov_base | iov[i].iov_len;
	return bits & (r->align - 1) ? r->fd : r->direct; /* the kernel keeps the two views alike */
}

static int raw_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	return iov_pread(pick_fd(b->state, off, len, iov, niov), off, iov, niov, 0, len);
}

static int raw_write(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	return iov_pwrite(pick_fd(b->state, off, len, iov, niov), off, iov, niov, 0, len);
}

static int raw_flush(struct block *b)
{
	struct raw *r = b->state;

	if (b->cache == BLOCK_CACHE_UNSAFE)
		return 0;
	if (!r->flush_error && fdatasync(r->fd) < 0)
		r->flush_error = -errno;
	return r->flush_error;
}

/* 0, -errno, or -ENOTSUP where the file system lacks it. */
static int allocate(const struct raw *r, int mode, uint64_t off, uint64_t len)
{
	int n;

	do {
		n = fallocate(r->fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len);
	} while (n < 0 && errno == EINTR);
	if (n == 0)
		return 0;
	return errno == EOPNOTSUPP || errno == ENODEV || errno == EINVAL ? -ENOTSUP : -errno;
}

static int raw_discard(struct block *b, uint64_t off, uint64_t len)
{
	int n = allocate(b->state, FALLOC_FL_PUNCH_HOLE, off, len);

	return n == -ENOTSUP ? 0 : n; /* a hint */
}

static int raw_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct raw *r = b->state;
	int n = allocate(r, may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE, off, len);
	void *zeroes;

	if (n != -ENOTSUP)
		return n;
	zeroes = calloc(1, min_u64(len, ZERO_CHUNK));
	if (!zeroes)
		return -ENOMEM;
	for (n = 0; len && !n;) {
		uint64_t here = min_u64(len, ZERO_CHUNK);

		n = iov_pwrite(r->fd, off, &(struct iovec){zeroes, here}, 1, 0, here);
		off += here;
		len -= here;
	}
	free(zeroes);
	return n;
}

/* Holes are what the image does not allocate. The file position is nobody's. */
static int raw_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out)
{
	const struct raw *r = b->state;
	off_t data, hole;

	*out = (struct block_extent){.kind = EXTENT_DATA, .len = len, .fd = r->fd, .host_off = off};
	if (r->device)
		return 0;
	data = lseek(r->fd, (off_t)off, SEEK_DATA);
	if (data < 0 && errno != ENXIO)
		return 0; /* no such thing here: all is data */
	if (data < 0 || (uint64_t)data > off) {
		out->kind = EXTENT_UNALLOCATED;
		if (data >= 0)
			out->len = min_u64(len, (uint64_t)data - off);
		return 0;
	}
	hole = lseek(r->fd, (off_t)off, SEEK_HOLE);
	if (hole > (off_t)off)
		out->len = min_u64(len, (uint64_t)hole - off);
	return 0;
}

static bool raw_plain(struct block *b, uint64_t off, uint64_t len, bool write, int *fd, uint64_t *host_off)
{
	const struct raw *r = b->state;

	*fd = r->direct < 0 ? r->fd : r->direct;
	*host_off = off;
	return true;
}

static bool raw_resize(struct block *b, uint64_t size, struct error *err)
{
	const struct raw *r = b->state;

	if (r->device)
		return error_set(err, "disk %s: a block device has the size that it has", b->path);
	if (!size || size > INT64_MAX)
		return error_set(err, "disk %s: its size must be 1 byte to 8 EiB", b->path);
	if (ftruncate(r->fd, (off_t)size) < 0)
		return error_set(err, "disk %s: %s", b->path, strerror(errno));
	b->size = size;
	return true;
}

static void raw_info(struct block *b, struct block_info *out)
{
	const struct raw *r = b->state;
	struct stat st;

	out->allocated = b->size;
	if (!r->device && fstat(r->fd, &st) == 0)
		out->allocated = (uint64_t)st.st_blocks * 512;
}

static const char *const raw_suffixes[] = {".raw", ".img", ".iso", NULL};

const struct block_format block_raw = {
	.name = "raw",
	.suffixes = raw_suffixes,
	.open = raw_open,
	.close = raw_close,
	.create = raw_create,
	.read = raw_read,
	.write = raw_write,
	.flush = raw_flush,
	.discard = raw_discard,
	.write_zeroes = raw_write_zeroes,
	.map = raw_map,
	.plain = raw_plain,
	.resize = raw_resize,
	.info = raw_info,
};
