#include "backend/block/block.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/block/block_int.h"
#include "backend/block/iov.h"

#define HEAD_LEN 4096

const struct block_format *const block_formats[] = {
	&block_raw,
	&block_qcow2,
	&block_vmdk,
	&block_nbd,
	NULL,
};

const struct block_format *block_format_find(const char *name, struct error *err)
{
	char all[128] = "";

	for (unsigned i = 0; block_formats[i]; i++) {
		if (!strcmp(name, block_formats[i]->name))
			return block_formats[i];
		snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s", i ? ", " : "", block_formats[i]->name);
	}
	error_set(err, "unknown disk format '%.64s'", name);
	error_hint(err, "it is one of: %s", all);
	return NULL;
}

static bool is_uri(const char *path) { return !strncmp(path, "nbd://", 6) || !strncmp(path, "nbd+unix://", 11); }

static bool has_suffix(const char *path, const char *suffix)
{
	size_t n = strlen(path), m = strlen(suffix);

	return n > m && !strcasecmp(path + n - m, suffix);
}

static const struct block_format *by_suffix(const char *path)
{
	for (unsigned i = 0; block_formats[i]; i++)
		for (const char *const *s = block_formats[i]->suffixes; s && *s; s++)
			if (has_suffix(path, *s))
				return block_formats[i];
	return &block_raw;
}

/* Does the file look like what its name does not say? Only a reason to refuse: a guest may have written it. */
static bool looks_right(const char *path, const struct block_format *f, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	uint8_t head[HEAD_LEN];
	ssize_t n = fd < 0 ? -1 : pread(fd, head, sizeof(head), 0);

	if (fd >= 0)
		close(fd);
	if (n <= 0 || (f->probe && f->probe(head, (size_t)n)))
		return true; /* opening it tells better what is wrong */
	for (unsigned i = 0; block_formats[i]; i++) {
		const struct block_format *other = block_formats[i];

		if (other == f || !other->probe || !other->probe(head, (size_t)n))
			continue;
		error_set(err, "disk %s: named like a %s image, but begins like a %s one", path, f->name, other->name);
		return error_hint(err, "say what it is with format=%s or format=%s", other->name, f->name);
	}
	return true;
}

static const struct block_format *pick_format(const struct block_options *o, struct error *err)
{
	const struct block_format *f;

	if (o->format)
		return block_format_find(o->format, err);
	if (is_uri(o->path))
		return block_format_find("nbd", err);
	f = by_suffix(o->path);
	return looks_right(o->path, f, err) ? f : NULL;
}

static struct block *open_one(const struct block_options *o, struct error *err)
{
	const struct block_format *f;
	struct block *b;

	if (o->depth >= BLOCK_DEPTH_MAX) {
		error_set(err, "disk %s: more than %d backing files below each other", o->path, BLOCK_DEPTH_MAX);
		return NULL;
	}
	f = pick_format(o, err);
	if (!f)
		return NULL;
	b = calloc(1, sizeof(*b));
	if (b)
		b->path = strdup(o->path);
	if (!b || !b->path) {
		free(b);
		error_set(err, "disk %s: out of memory", o->path);
		return NULL;
	}
	b->format = f;
	b->readonly = o->readonly;
	b->cache = o->cache;
	if (f->open(b, o, err))
		return b;
	block_close(b);
	return NULL;
}

struct block *block_open(const struct block_options *o, struct error *err)
{
	struct block_options below = *o;
	struct block *b, *overlay;

	if (!o->snapshot)
		return open_one(o, err);
	below.snapshot = false;
	below.readonly = true;
	b = open_one(&below, err);
	if (!b || o->readonly)
		return b;
	overlay = overlay_new(b, err);
	if (!overlay)
		block_close(b);
	return overlay;
}

void block_close(struct block *b)
{
	if (!b)
		return;
	b->format->close(b);
	block_close(b->backing);
	free(b->path);
	free(b);
}

bool block_create(const char *format, const struct block_create *c, struct error *err)
{
	const struct block_format *f = block_format_find(format, err);

	if (!f)
		return false;
	if (f->create)
		return f->create(c, err);
	return error_set(err, "disk %s: %s images cannot be created", c->path, f->name);
}

/* The directory of a path, links resolved; false: errno. */
static bool directory_of(const char *path, char out[PATH_MAX])
{
	char *slash;

	if (!realpath(path, out))
		return false;
	slash = strrchr(out, '/');
	slash[slash == out] = 0;
	return true;
}

static bool below_directory(const char *dir, const char *path)
{
	size_t n = strlen(dir);

	return !strncmp(path, dir, n) && (path[n] == '/' || dir[n - 1] == '/');
}

/* The backing file that an image names, as a path that we may open. */
static bool resolve_backing(const struct block_options *o, const char *name, char out[PATH_MAX], struct error *err)
{
	char dir[PATH_MAX], joined[PATH_MAX];
	const char *colon = strchr(name, ':'), *slash = strchr(name, '/');
	int n;

	if (!name[0] || (colon && (!slash || colon < slash))) {
		error_set(err, "disk %s: its backing file '%.128s' is not a plain file name", o->path, name);
		return error_hint(err, "if this is what you want, name it yourself with backing=");
	}
	if (!directory_of(o->path, dir))
		return error_set(err, "disk %s: %s", o->path, strerror(errno));
	n = snprintf(joined, sizeof(joined), "%s%s%s", name[0] == '/' ? "" : dir, name[0] == '/' ? "" : "/", name);
	if (n >= (int)sizeof(joined) || !realpath(joined, out)) {
		error_set(err, "disk %s: its backing file '%.128s': %s", o->path, name,
			  n >= (int)sizeof(joined) ? strerror(ENAMETOOLONG) : strerror(errno));
		return error_hint(err, "put it there, or name it with backing=");
	}
	if (below_directory(dir, out))
		return true;
	error_set(err, "disk %s: its backing file '%.128s' lies outside of the image's directory", o->path, name);
	return error_hint(err, "if you trust this image, allow it with backing=%.128s", out);
}

struct block *block_open_backing(const struct block_options *o, const char *name, const char *format, struct error *err)
{
	struct block_options below = {.path = o->backing, .format = format, .readonly = true, .no_lock = o->no_lock,
				      .cache = o->cache, .depth = o->depth + 1};
	char path[PATH_MAX];

	if (!o->backing) {
		if (!resolve_backing(o, name, path, err))
			return NULL;
		below.path = path;
	}
	return open_one(&below, err);
}

static int check_range(const struct block *b, uint64_t off, uint64_t len)
{
	return range_ok(off, len, b->size) ? 0 : -EINVAL;
}

static int check_write(const struct block *b, uint64_t off, uint64_t len)
{
	return b->readonly ? -EROFS : check_range(b, off, len);
}

int block_readv(struct block *b, uint64_t off, const struct iovec *iov, unsigned niov)
{
	uint64_t len = iov_len(iov, niov);
	int r = check_range(b, off, len);

	return r || !len ? r : b->format->read(b, off, len, iov, niov);
}

int block_writev(struct block *b, uint64_t off, const struct iovec *iov, unsigned niov)
{
	uint64_t len = iov_len(iov, niov);
	int r = check_write(b, off, len);

	if (r || !len)
		return r;
	return b->format->write ? b->format->write(b, off, len, iov, niov) : -ENOTSUP;
}

int block_read(struct block *b, uint64_t off, void *buf, size_t len)
{
	return block_readv(b, off, &(struct iovec){buf, len}, 1);
}

int block_write(struct block *b, uint64_t off, const void *buf, size_t len)
{
	return block_writev(b, off, &(struct iovec){(void *)buf, len}, 1);
}

int block_flush(struct block *b)
{
	return b->readonly || !b->format->flush ? 0 : b->format->flush(b);
}

int block_discard(struct block *b, uint64_t off, uint64_t len)
{
	int r = check_write(b, off, len);

	if (r || !len)
		return r;
	return b->format->discard ? b->format->discard(b, off, len) : -ENOTSUP;
}

int block_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap)
{
	int r = check_write(b, off, len);

	if (r || !len)
		return r;
	return b->format->write_zeroes ? b->format->write_zeroes(b, off, len, may_unmap) : -ENOTSUP;
}

int block_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out)
{
	int r = check_range(b, off, len);

	if (r || !len)
		return r ? r : -EINVAL;
	if (b->format->map)
		return b->format->map(b, off, len, out);
	*out = (struct block_extent){.kind = EXTENT_ENCODED, .len = len};
	return 0;
}
