/*
 * The vmdk format: extents side by side, each a range of the disk, and a parent below. The files of extents lie in the
 * descriptor's directory or below it, links resolved. A child names the content id (CID) of its parent; whoever changes
 * a disk changes its CID, once.
 */
#include "backend/block/vmdk_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/iov.h"

#define DESC_MAGIC "# Disk DescriptorFile"

struct extent {
	enum vmdk_kind kind;
	bool readonly;
	uint64_t start, size;	    /* of the disk */
	int fd;			    /* flat; else -1 */
	uint64_t file_off;	    /* flat */
	struct vmdk_sparse *sparse; /* sparse; has its own fd */
};

struct vmdk {
	int fd; /* of the descriptor file; -1: it is inside of the only extent */
	uint64_t desc_off;
	struct vmdk_desc desc;
	unsigned nextents;
	struct extent *extents;
	atomic_bool cid_pending; /* nothing was written yet */
	atomic_int sync_error;
};

static bool head_is(const uint8_t *head, size_t len, const char *text)
{
	size_t n = strlen(text);

	return len >= n && !strncasecmp((const char *)head, text, n);
}

static bool probe(const uint8_t *head, size_t len)
{
	return (len >= 4 && get_le32(head) == VMDK_MAGIC) || head_is(head, len, DESC_MAGIC);
}

/* ---- opening ---- */

static bool read_desc(struct vmdk *v, const char *path, int fd, uint64_t off, uint64_t len, struct error *err)
{
	char *text = malloc(len + 1);
	bool ok = text && iov_pread(fd, off, &(struct iovec){text, len}, 1, 0, len) == 0;

	if (!ok)
		error_set(err, "disk %s: cannot read its descriptor", path);
	ok = ok && vmdk_desc_parse(path, text, len, &v->desc, err);
	free(text);
	v->desc_off = off;
	return ok;
}

static struct extent *add_extent(struct vmdk *v, struct block *b, enum vmdk_kind kind, uint64_t size)
{
	struct extent *e = &v->extents[v->nextents++];

	*e = (struct extent){.kind = kind, .start = b->size, .size = size, .fd = -1};
	b->size += size;
	return e;
}

static bool add_sparse(struct vmdk *v, struct block *b, const char *path, int fd, bool readonly, uint64_t size,
		       struct error *err)
{
	struct vmdk_sparse *s = vmdk_sparse_new(path, fd, !readonly, size, err);
	struct extent *e;

	if (!s)
		return false;
	s->unsafe = b->cache == BLOCK_CACHE_UNSAFE;
	e = add_extent(v, b, VMDK_SPARSE, size ? size : s->h.capacity);
	e->sparse = s;
	e->readonly = readonly;
	return true;
}

/* One file with the descriptor inside. */
static bool open_single(struct vmdk *v, struct block *b, const char *path, int fd, const uint8_t *head,
			struct error *err)
{
	struct vmdk_header h;
	bool ok = vmdk_header_get(path, head, &h, err);

	if (ok && (!h.desc || !h.desc_size)) {
		error_set(err, "disk %s: this is one piece of a disk that is split over files", path);
		ok = error_hint(err, "open the descriptor, the small file that names the pieces");
	}
	ok = ok && read_desc(v, path, fd, h.desc, min_u64(h.desc_size, VMDK_DESC_MAX), err);
	if (ok && v->desc.nextents != 1)
		ok = error_set(err, "disk %s: the descriptor inside names %u extents, not 1", path, v->desc.nextents);
	v->extents = ok ? calloc(1, sizeof(*v->extents)) : NULL;
	if (!ok || !v->extents) {
		close(fd);
		return ok ? error_set(err, "disk %s: out of memory", path) : false;
	}
	return add_sparse(v, b, path, fd, b->readonly, 0, err);
}

/* The file of an extent, as a path that we may open. */
static bool extent_path(const char *path, const char *file, char out[PATH_MAX], struct error *err)
{
	char dir[PATH_MAX], joined[2 * PATH_MAX];
	size_t n;

	if (!realpath(path, dir))
		return error_set(err, "disk %s: %s", path, strerror(errno));
	*strrchr(dir, '/') = 0;
	n = strlen(dir);
	snprintf(joined, sizeof(joined), "%s/%s", dir, file);
	if (file[0] == '/') {
		strcpy(out, file);
	} else if (!realpath(joined, out)) {
		error_set(err, "disk %s: its extent '%.128s': %s", path, file, strerror(errno));
		return error_hint(err, "all files of the disk belong into the directory of the descriptor");
	}
	if (file[0] != '/' && !strncmp(out, dir, n) && out[n] == '/')
		return true;
	error_set(err, "disk %s: its extent '%.128s' lies outside of the image's directory", path, file);
	return error_hint(err, "move all files of the disk into one directory");
}

static bool open_flat(struct vmdk *v, struct block *b, const char *path, int fd, const struct vmdk_desc_extent *d,
		      struct error *err)
{
	struct extent *e;
	struct stat st;

	if (fstat(fd, &st) == 0 && (S_ISBLK(st.st_mode) || range_ok(d->file_off, d->size, (uint64_t)st.st_size))) {
		e = add_extent(v, b, VMDK_FLAT, d->size);
		e->fd = fd;
		e->file_off = d->file_off;
		e->readonly = b->readonly || d->access != VMDK_RW;
		return true;
	}
	close(fd);
	error_set(err, "disk %s: its extent '%.128s' is shorter than the descriptor says", path, d->file);
	return error_hint(err, "the file is cut short; restore it from a backup");
}

static bool open_extent(struct vmdk *v, struct block *b, const struct block_options *o,
			const struct vmdk_desc_extent *d, struct error *err)
{
	bool readonly = b->readonly || d->access != VMDK_RW;
	char file[PATH_MAX];
	int fd;

	if (d->kind == VMDK_ZERO) {
		add_extent(v, b, VMDK_ZERO, d->size)->readonly = true;
		return true;
	}
	if (!extent_path(o->path, d->file, file, err))
		return false;
	fd = block_file_open(file, o, !readonly, err);
	if (fd < 0)
		return false;
	if (d->kind == VMDK_FLAT)
		return open_flat(v, b, o->path, fd, d, err);
	return add_sparse(v, b, b->path, fd, readonly, d->size, err);
}

static bool open_split(struct vmdk *v, struct block *b, const struct block_options *o, struct error *err)
{
	struct stat st;

	if (fstat(v->fd, &st) < 0 || st.st_size <= 0 || (uint64_t)st.st_size > VMDK_DESC_MAX)
		return error_set(err, "disk %s: a VMDK descriptor has 1 byte to 1 MiB", o->path);
	if (!read_desc(v, o->path, v->fd, 0, (uint64_t)st.st_size, err))
		return false;
	v->extents = calloc(v->desc.nextents, sizeof(*v->extents));
	if (!v->extents)
		return error_set(err, "disk %s: out of memory", o->path);
	for (unsigned i = 0; i < v->desc.nextents; i++)
		if (!open_extent(v, b, o, &v->desc.extents[i], err))
			return false;
	return true;
}

static bool open_parent(struct vmdk *v, struct block *b, const struct block_options *o, struct error *err)
{
	const struct vmdk *p;

	if (!v->desc.parent[0])
		return true;
	b->backing = block_open_backing(o, v->desc.parent, "vmdk", err);
	if (!b->backing)
		return false;
	p = b->backing->state;
	if (p->desc.cid == v->desc.parent_cid)
		return true;
	error_set(err, "disk %s: its parent %.128s was changed after this image was made on top of it", o->path,
		  v->desc.parent);
	return error_hint(err, "restore the parent as it was");
}

static bool vmdk_open(struct block *b, const struct block_options *o, struct error *err)
{
	struct vmdk *v = calloc(1, sizeof(*v));
	uint8_t head[VMDK_HEADER];
	ssize_t n;
	int fd;

	if (!v)
		return error_set(err, "disk %s: out of memory", o->path);
	b->state = v;
	b->size = 0;
	v->fd = -1;
	v->cid_pending = !b->readonly;
	fd = block_file_open(o->path, o, !b->readonly, err);
	if (fd < 0)
		return false;
	n = pread(fd, head, sizeof(head), 0);
	if (n == sizeof(head) && get_le32(head) == VMDK_MAGIC)
		return open_single(v, b, b->path, fd, head, err) && open_parent(v, b, o, err);
	v->fd = fd;
	if (n > 0 && head_is(head, (size_t)n, DESC_MAGIC))
		return open_split(v, b, o, err) && open_parent(v, b, o, err);
	if (n >= 4 && !memcmp(head, "COWD", 4))
		error_set(err, "disk %s: an ESX \"COWD\" extent is not supported", o->path);
	else
		error_set(err, "disk %s: not a VMDK: neither a sparse header nor a descriptor", o->path);
	return error_hint(err, "say what it is with --format or format=");
}

static void vmdk_close(struct block *b)
{
	struct vmdk *v = b->state;

	if (!v)
		return;
	for (unsigned i = 0; i < v->nextents; i++) {
		struct extent *e = &v->extents[i];

		if (e->sparse && !e->readonly && !e->sparse->stream)
			vmdk_sparse_flush(e->sparse);
		vmdk_sparse_free(e->sparse);
		if (e->fd >= 0)
			close(e->fd);
	}
	if (v->fd >= 0)
		close(v->fd);
	free(v->extents);
	vmdk_desc_fini(&v->desc);
	free(v);
}

/* ---- reading ---- */

/* The extent of an offset, and how much of a range lies in it. */
static struct extent *extent_at(struct vmdk *v, uint64_t off, uint64_t *len)
{
	unsigned lo = 0, hi = v->nextents;
	struct extent *e;

	while (hi - lo > 1) {
		unsigned mid = lo + (hi - lo) / 2;

		if (v->extents[mid].start <= off)
			lo = mid;
		else
			hi = mid;
	}
	e = &v->extents[lo];
	*len = min_u64(*len, e->start + e->size - off);
	return e;
}

static int read_below(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov,
		      uint64_t iov_off)
{
	uint64_t here = b->backing && off < b->backing->size ? min_u64(len, b->backing->size - off) : 0;
	struct iovec *part;
	int r = 0;

	if (here) {
		part = malloc(niov * sizeof(*part));
		if (!part)
			return -ENOMEM;
		r = block_readv(b->backing, off, part, iov_slice(iov, niov, iov_off, here, part));
		free(part);
	}
	iov_zero(iov, niov, iov_off + here, len - here);
	return r;
}

static int read_sparse(struct block *b, struct extent *e, uint64_t off, uint64_t len, const struct iovec *iov,
		       unsigned niov, uint64_t iov_off)
{
	struct vmdk_run run;
	int r = 0;

	for (; len && !r; off += run.len, iov_off += run.len, len -= run.len) {
		r = vmdk_sparse_run(e->sparse, off - e->start, len, &run);
		if (r)
			return r;
		switch (run.kind) {
		case VMDK_RUN_DATA:
			r = iov_pread(e->sparse->fd, run.host, iov, niov, iov_off, run.len);
			break;
		case VMDK_RUN_COMPRESSED:
			r = vmdk_stream_read(e->sparse, off - e->start, run.len, run.host, iov, niov, iov_off);
			break;
		case VMDK_RUN_ZERO:
			iov_zero(iov, niov, iov_off, run.len);
			break;
		case VMDK_RUN_NONE:
			r = read_below(b, off, run.len, iov, niov, iov_off);
			break;
		}
	}
	return r;
}

static int vmdk_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	uint64_t iov_off = 0;
	int r = 0;

	while (len && !r) {
		uint64_t n = len;
		struct extent *e = extent_at(b->state, off, &n);

		switch (e->kind) {
		case VMDK_FLAT:
			r = iov_pread(e->fd, e->file_off + (off - e->start), iov, niov, iov_off, n);
			break;
		case VMDK_SPARSE:
			r = read_sparse(b, e, off, n, iov, niov, iov_off);
			break;
		case VMDK_ZERO:
			iov_zero(iov, niov, iov_off, n);
			break;
		}
		off += n;
		iov_off += n;
		len -= n;
	}
	return r;
}

/* Bytes of a flat file, or a hole in it. */
static void map_flat(const struct extent *e, uint64_t off, struct block_extent *out)
{
	uint64_t pos = e->file_off + (off - e->start);
	off_t data = lseek(e->fd, (off_t)pos, SEEK_DATA), hole;

	*out = (struct block_extent){.kind = EXTENT_DATA, .len = out->len, .fd = e->fd, .host_off = pos};
	if (data < 0 && errno != ENXIO)
		return;
	if (data < 0 || (uint64_t)data > pos) {
		*out = (struct block_extent){.kind = EXTENT_ZERO,
					     .len = data < 0 ? out->len : min_u64(out->len, (uint64_t)data - pos)};
		return;
	}
	hole = lseek(e->fd, (off_t)pos, SEEK_HOLE);
	if (hole > (off_t)pos)
		out->len = min_u64(out->len, (uint64_t)hole - pos);
}

static int map_below(struct block *b, uint64_t off, struct block_extent *out)
{
	int r;

	if (!b->backing || off >= b->backing->size)
		return 0;
	r = block_map(b->backing, off, min_u64(out->len, b->backing->size - off), out);
	out->depth++;
	return r;
}

static int vmdk_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out)
{
	struct extent *e = extent_at(b->state, off, &len);
	struct vmdk_run run;
	int r;

	*out = (struct block_extent){.kind = EXTENT_ZERO, .len = len};
	if (e->kind == VMDK_FLAT)
		map_flat(e, off, out);
	if (e->kind != VMDK_SPARSE)
		return 0;
	r = vmdk_sparse_run(e->sparse, off - e->start, len, &run);
	if (r)
		return r;
	*out = (struct block_extent){.len = run.len};
	switch (run.kind) {
	case VMDK_RUN_DATA:
		out->kind = EXTENT_DATA;
		out->fd = e->sparse->fd;
		out->host_off = run.host;
		return 0;
	case VMDK_RUN_COMPRESSED:
		out->kind = EXTENT_ENCODED;
		return 0;
	case VMDK_RUN_ZERO:
		out->kind = EXTENT_ZERO;
		return 0;
	case VMDK_RUN_NONE:
		break;
	}
	out->kind = EXTENT_UNALLOCATED;
	return map_below(b, off, out);
}

static bool vmdk_plain(struct block *b, uint64_t off, uint64_t len, bool write, int *fd, uint64_t *host_off)
{
	struct vmdk *v = b->state;
	uint64_t n = len;
	struct extent *e = extent_at(v, off, &n);

	if (e->kind != VMDK_FLAT || n != len || (write && (e->readonly || v->cid_pending)))
		return false;
	*fd = e->fd;
	*host_off = e->file_off + (off - e->start);
	return true;
}

/* ---- writing ---- */

/* The first write to an image gives it a new content id. */
static int touch(struct block *b)
{
	struct vmdk *v = b->state;
	char digits[9];
	uint32_t cid;
	int fd;

	if (!atomic_exchange(&v->cid_pending, false))
		return 0;
	if (!v->desc.cid_pos || getrandom(&cid, sizeof(cid), 0) != sizeof(cid))
		return 0;
	cid -= cid == VMDK_NO_PARENT;
	snprintf(digits, sizeof(digits), "%08x", cid);
	fd = v->fd >= 0 ? v->fd : v->extents[0].sparse->fd;
	v->desc.cid = cid;
	return iov_pwrite(fd, v->desc_off + v->desc.cid_pos, &(struct iovec){digits, 8}, 1, 0, 8);
}

struct below {
	struct block *b;
	uint64_t start;
};

static int below_read(void *ctx, uint64_t off, void *buf, uint64_t len)
{
	struct below *w = ctx;

	return read_below(w->b, w->start + off, len, &(struct iovec){buf, len}, 1, 0);
}

static int vmdk_write(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov)
{
	uint64_t iov_off = 0;
	int r = touch(b);

	while (len && !r) {
		uint64_t n = len;
		struct extent *e = extent_at(b->state, off, &n);
		struct below ctx = {b, e->start};

		if (e->readonly)
			return -EROFS;
		if (e->kind == VMDK_FLAT)
			r = iov_pwrite(e->fd, e->file_off + (off - e->start), iov, niov, iov_off, n);
		else
			r = vmdk_sparse_write(e->sparse, off - e->start, n, iov, niov, iov_off,
					      &(struct vmdk_below){below_read, &ctx});
		off += n;
		iov_off += n;
		len -= n;
	}
	return r;
}

static int zero_flat(const struct extent *e, uint64_t off, uint64_t len, bool may_unmap)
{
	static const uint8_t zeroes[64 * KIB];
	uint64_t pos = e->file_off + (off - e->start);
	int r = 0;

	if (fallocate(e->fd, (may_unmap ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE) | FALLOC_FL_KEEP_SIZE,
		      (off_t)pos, (off_t)len) == 0)
		return 0;
	for (; len && !r;) {
		uint64_t n = min_u64(len, sizeof(zeroes));

		r = iov_pwrite(e->fd, pos, &(struct iovec){(void *)zeroes, n}, 1, 0, n);
		pos += n;
		len -= n;
	}
	return r;
}

static int zero_extent(struct block *b, struct extent *e, uint64_t off, uint64_t len, bool may_unmap)
{
	struct below ctx = {b, e->start};

	if (e->kind == VMDK_ZERO)
		return 0;
	if (e->readonly)
		return -EROFS;
	if (e->kind == VMDK_FLAT)
		return zero_flat(e, off, len, may_unmap);
	return vmdk_sparse_zero(e->sparse, off - e->start, len, b->backing != NULL,
				&(struct vmdk_below){below_read, &ctx});
}

static int vmdk_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap)
{
	int r = touch(b);

	while (len && !r) {
		uint64_t n = len;
		struct extent *e = extent_at(b->state, off, &n);

		r = zero_extent(b, e, off, n, may_unmap);
		off += n;
		len -= n;
	}
	return r;
}

/* Zeroes where that costs nothing. In a stream that is being written: nothing will come for this range. */
static int vmdk_discard(struct block *b, uint64_t off, uint64_t len)
{
	int r = touch(b);

	while (len && !r) {
		uint64_t n = len;
		struct extent *e = extent_at(b->state, off, &n);

		if (e->kind == VMDK_SPARSE && e->sparse->stream)
			r = e->readonly ? 0 : vmdk_stream_pass(e->sparse, off - e->start, n);
		else if (!e->readonly && (e->kind == VMDK_FLAT || !b->backing))
			r = zero_extent(b, e, off, n, true);
		off += n;
		len -= n;
	}
	return r;
}

static int vmdk_write_compressed(struct block *b, uint64_t off, uint64_t len, const void *buf)
{
	struct vmdk *v = b->state;
	struct vmdk_sparse *s = v->nextents == 1 ? v->extents[0].sparse : NULL;

	return s && s->stream ? vmdk_stream_write(s, off, len, buf) : -ENOTSUP;
}

static int vmdk_flush(struct block *b)
{
	struct vmdk *v = b->state;
	int r = 0;

	for (unsigned i = 0; i < v->nextents; i++) {
		struct extent *e = &v->extents[i];
		int n = 0;

		if (e->readonly)
			continue;
		if (e->kind == VMDK_SPARSE)
			n = vmdk_sparse_flush(e->sparse);
		else if (e->kind == VMDK_FLAT && b->cache != BLOCK_CACHE_UNSAFE && fdatasync(e->fd) < 0)
			v->sync_error = -errno; /* what a failed sync lost, no later one brings back */
		r = r ? r : n;
	}
	return r ? r : v->sync_error;
}

/* ---- the rest ---- */

static bool vmdk_resize(struct block *b, uint64_t size, struct error *err)
{
	error_set(err, "disk %s: VMDK images cannot be resized", b->path);
	return error_hint(err, "convert it to qcow2 and resize that");
}

static bool vmdk_check(struct block *b, bool repair, struct block_check *c, struct error *err)
{
	struct vmdk *v = b->state;

	for (unsigned i = 0; i < v->nextents; i++)
		if (v->extents[i].sparse &&
		    !vmdk_sparse_check(v->extents[i].sparse, repair && !v->extents[i].readonly, c, err))
			return false;
	return true;
}

static void vmdk_info(struct block *b, struct block_info *out)
{
	struct vmdk *v = b->state;
	struct stat st;

	out->allocated = 0;
	if (v->fd >= 0 && fstat(v->fd, &st) == 0)
		out->allocated += (uint64_t)st.st_blocks * 512;
	for (unsigned i = 0; i < v->nextents; i++) {
		const struct extent *e = &v->extents[i];

		if (e->kind != VMDK_ZERO && fstat(e->sparse ? e->sparse->fd : e->fd, &st) == 0)
			out->allocated += (uint64_t)st.st_blocks * 512;
		if (e->sparse)
			out->cluster_size = (uint32_t)e->sparse->h.grain;
		out->compressed |= e->sparse && e->sparse->stream;
	}
	out->backing = v->desc.parent[0] ? v->desc.parent : NULL;
	out->backing_format = v->desc.parent[0] ? "vmdk" : NULL;
}

uint32_t vmdk_cid(const struct block *b)
{
	const struct vmdk *v = b->state;

	return v->desc.cid;
}

static const char *const suffixes[] = {".vmdk", NULL};

const struct block_format block_vmdk = {
	.name = "vmdk",
	.suffixes = suffixes,
	.probe = probe,
	.open = vmdk_open,
	.close = vmdk_close,
	.create = vmdk_create,
	.read = vmdk_read,
	.write = vmdk_write,
	.flush = vmdk_flush,
	.discard = vmdk_discard,
	.write_zeroes = vmdk_write_zeroes,
	.map = vmdk_map,
	.plain = vmdk_plain,
	.write_compressed = vmdk_write_compressed,
	.resize = vmdk_resize,
	.check = vmdk_check,
	.info = vmdk_info,
};
