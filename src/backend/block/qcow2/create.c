#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/stat.h>

enum prealloc { PREALLOC_OFF, PREALLOC_METADATA, PREALLOC_FALLOC, PREALLOC_FULL };

struct options {
	uint64_t cluster_size, refcount_bits;
	bool v2, lazy, extended, zstd;
	enum prealloc prealloc;
};

static bool bad_value(const char *path, const char *key, const char *value, const char *what, struct error *err)
{
	error_set(err, "disk %s: option %s=%.32s: it must be %s", path, key, value, what);
	return false;
}

/* A number with K or M behind it, perhaps. */
static bool number(const char *s, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = strtoull(s, &end, 10);
	if (errno || end == s || *out > UINT32_MAX)
		return false;
	if (*end == 'k' || *end == 'K')
		*out *= KIB, end++;
	else if (*end == 'm' || *end == 'M')
		*out *= MIB, end++;
	return !*end;
}

static bool on_off(const char *s, bool *out)
{
	*out = !strcmp(s, "on");
	return *out || !strcmp(s, "off");
}

static bool pick(const char *s, const char *const *names, unsigned n, unsigned *out)
{
	for (*out = 0; *out < n; ++*out) {
		if (!strcmp(s, names[*out]))
			return true;
	}
	return false;
}

static bool power_of_two(uint64_t v, uint64_t lo, uint64_t hi) { return v >= lo && v <= hi && !(v & (v - 1)); }

static bool parse_one(struct options *o, const char *path, const char *key, const char *value, struct error *err)
{
	static const char *const compat[] = {"1.1", "v3", "0.10", "v2"}, *const type[] = {"zlib", "zstd"};
	static const char *const prealloc[] = {"off", "metadata", "falloc", "full"};
	unsigned k;

	if (!strcmp(key, "cluster_size"))
		return (number(value, &o->cluster_size) && power_of_two(o->cluster_size, 512, 2 * MIB)) ||
		       bad_value(path, key, value, "a power of two from 512 to 2M", err);
	if (!strcmp(key, "refcount_bits"))
		return (number(value, &o->refcount_bits) && power_of_two(o->refcount_bits, 1, 64)) ||
		       bad_value(path, key, value, "a power of two from 1 to 64", err);
	if (!strcmp(key, "lazy_refcounts"))
		return on_off(value, &o->lazy) || bad_value(path, key, value, "on or off", err);
	if (!strcmp(key, "extended_l2"))
		return on_off(value, &o->extended) || bad_value(path, key, value, "on or off", err);
	if (!strcmp(key, "compat")) {
		if (!pick(value, compat, 4, &k))
			return bad_value(path, key, value, "1.1 or 0.10", err);
		o->v2 = k >= 2;
		return true;
	}
	if (!strcmp(key, "compression_type")) {
		if (!pick(value, type, 2, &k))
			return bad_value(path, key, value, "zlib or zstd", err);
		o->zstd = k;
		return true;
	}
	if (!strcmp(key, "preallocation")) {
		if (!pick(value, prealloc, 4, &k))
			return bad_value(path, key, value, "off, metadata, falloc or full", err);
		o->prealloc = (enum prealloc)k;
		return true;
	}
	error_set(err, "disk %s: unknown option '%.32s'", path, key);
	return error_hint(err, "there are cluster_size, compat, lazy_refcounts, refcount_bits, extended_l2, compression_type and "
			       "preallocation");
}

static bool consistent(const struct options *o, const struct block_create *c, struct error *err)
{
	if (o->v2 && (o->lazy || o->extended || o->zstd || o->refcount_bits != 16))
		return error_set(err, "disk %s: compat=0.10 has no lazy_refcounts, extended_l2, zstd or refcount_bits", c->path);
	if (o->extended && o->cluster_size < 16 * KIB)
		return error_set(err, "disk %s: extended_l2 needs a cluster_size of 16K or more", c->path);
	if (c->backing && o->prealloc != PREALLOC_OFF)
		return error_set(err, "disk %s: an image with a backing file is not preallocated", c->path);
	if (c->backing && (!c->backing_format || !c->backing[0])) {
		error_set(err, "disk %s: no format is named for its backing file", c->path);
		return error_hint(err, "say which: qcow2, raw, vmdk");
	}
	return true;
}

static bool parse(struct options *o, const struct block_create *c, struct error *err)
{
	char *copy = strdup(c->options ? c->options : ""), *save = NULL;
	bool ok = copy || error_set(err, "disk %s: out of memory", c->path);

	*o = (struct options){.cluster_size = 64 * KIB, .refcount_bits = 16};
	for (char *p = ok ? strtok_r(copy, ",", &save) : NULL; p && ok; p = strtok_r(NULL, ",", &save)) {
		char *value = strchr(p, '=');

		if (value)
			*value++ = 0;
		ok = parse_one(o, c->path, p, value ? value : "on", err);
	}
	free(copy);
	return ok && consistent(o, c, err);
}

static uint8_t *put_extension(uint8_t *p, uint32_t type, const void *data, size_t len)
{
	put_be32(p, type);
	put_be32(p + 4, (uint32_t)len);
	memcpy(p + 8, data, len);
	return p + 8 + align_up(len, 8);
}

static uint8_t *put_feature(uint8_t *p, unsigned type, unsigned bit, const char *name)
{
	p[0] = (uint8_t)type;
	p[1] = (uint8_t)bit;
	strncpy((char *)p + 2, name, 46);
	return p + 48;
}

static uint8_t *put_features(uint8_t *p)
{
	uint8_t table[6 * 48] = {0}, *t = table;

	t = put_feature(t, 0, 0, "dirty bit");
	t = put_feature(t, 0, 1, "corrupt bit");
	t = put_feature(t, 0, 3, "compression type");
	t = put_feature(t, 0, 4, "extended L2 entries");
	t = put_feature(t, 1, 0, "lazy refcounts");
	t = put_feature(t, 2, 0, "bitmaps");
	return put_extension(p, QCOW2_EXT_FEATURES, table, (size_t)(t - table));
}

/*
 * The first three clusters: header, refcount table, the first refcount block. A disk of size 0 without a backing file; *name:
 * where the header has the backing file's name, 0 if it has none.
 */
static bool first_clusters(uint8_t *p, const struct options *o, const struct block_create *c, uint64_t *name)
{
	uint64_t cs = o->cluster_size, order = (uint64_t)__builtin_ctzll(o->refcount_bits), need = o->v2 ? 72 : 112;
	uint8_t *e = p + need, *block = p + 2 * cs;

	need += c->backing ? 8 + align_up(strlen(c->backing_format), 8) + strlen(c->backing) : 0;
	if (need + 8 > cs || (c->backing && strlen(c->backing) > 1023))
		return false;
	put_be32(p, QCOW2_MAGIC);
	put_be32(p + 4, o->v2 ? 2 : 3);
	put_be32(p + 20, (uint32_t)__builtin_ctzll(cs));
	put_be64(p + 48, cs);
	put_be32(p + 56, 1);
	put_be64(p + cs, 2 * cs);
	if (!o->v2) {
		put_be64(p + 72, (o->extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0) | (o->zstd ? QCOW2_INCOMPAT_COMPRESSION : 0));
		put_be64(p + 80, o->lazy ? QCOW2_COMPAT_LAZY : 0);
		put_be32(p + 96, (uint32_t)order);
		put_be32(p + 100, 112);
		p[104] = o->zstd;
	}
	for (unsigned i = 0; i < 3; i++) { /* refcount 1, whatever the width */
		if (order >= 3)
			block[((i + 1) << (order - 3)) - 1] = 1;
		else
			block[(i << order) / 8] |= (uint8_t)(1u << ((i << order) & 7));
	}
	if (c->backing)
		e = put_extension(e, QCOW2_EXT_BACKING_FORMAT, c->backing_format, strlen(c->backing_format));
	if (!o->v2 && need + 8 + 6 * 48 + 8 <= cs)
		e = put_features(e);
	e += 8; /* the end of extensions is zero */
	*name = c->backing ? (uint64_t)(e - p) : 0;
	if (c->backing)
		memcpy(e, c->backing, strlen(c->backing));
	return true;
}

/* All clusters get their place in the file; they are new, so they read as zeroes. */
static int preallocate(struct block *b, enum prealloc mode)
{
	struct qcow2 *q = b->state;
	uint64_t n = qcow2_clusters(q, b->size), got;
	int r = 0;

	pthread_mutex_lock(&q->lock);
	r = qcow2_write_begin(q);
	for (uint64_t c = 0; !r && c < n; c += got) {
		struct qcow2_slice *s;
		uint64_t off;
		unsigned i;
		bool zero;

		r = qcow2_l2_writable(q, c << q->cluster_bits, &s, &i);
		if (!r)
			r = qcow2_alloc_clusters(q, min_u64(n - c, qcow2_slice_entries(q) - i), &off, &got, &zero);
		for (uint64_t k = 0; !r && k < got; k++)
			qcow2_entry_set(q, s, i + (unsigned)k, (struct qcow2_entry){(off + (k << q->cluster_bits)) | QCOW2_COPIED,
				q->extended ? UINT32_MAX : 0});
		if (!r && mode == PREALLOC_FULL)
			r = qcow2_pwrite_zeroes(q, off, got << q->cluster_bits);
	}
	if (!r && mode == PREALLOC_FALLOC && fallocate(q->fd, 0, 0, (off_t)(q->end << q->cluster_bits)) < 0)
		r = -errno;
	if (!r && mode == PREALLOC_METADATA && ftruncate(q->fd, (off_t)(q->end << q->cluster_bits)) < 0)
		r = -errno;
	pthread_mutex_unlock(&q->lock);
	return r;
}

static bool fill(const struct options *o, const struct block_create *c, struct error *err)
{
	struct block_options open = {.path = c->path, .format = "qcow2", .cache = BLOCK_CACHE_UNSAFE};
	struct block *b = block_open(&open, err);
	int r = 0;
	bool ok;

	if (!b)
		return false;
	ok = qcow2_resize(b, align_up(c->size, BLOCK_SECTOR), err);
	if (ok && o->prealloc != PREALLOC_OFF) {
		r = preallocate(b, o->prealloc);
		if (!r)
			r = qcow2_flush(b);
	}
	block_close(b);
	return ok && (!r || error_set(err, "disk %s: preallocation: %s", c->path, strerror(-r)));
}

/* Last of all the image says that it has a backing file: until then it needs none. */
static bool finish(const struct block_create *c, uint64_t name, struct error *err)
{
	int fd = open(c->path, O_RDWR | O_CLOEXEC);
	uint8_t p[12];
	bool ok = fd >= 0;

	put_be64(p, name);
	put_be32(p + 8, name ? (uint32_t)strlen(c->backing) : 0);
	ok = ok && (!name || pwrite(fd, p, sizeof(p), 8) == (ssize_t)sizeof(p)) && fsync(fd) == 0;
	if (!ok)
		error_set(err, "disk %s: %s", c->path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return ok;
}

static bool write_first(const struct options *o, const struct block_create *c, uint64_t *name, struct error *err)
{
	uint8_t *p = calloc(3, o->cluster_size);
	size_t len = 3 * o->cluster_size;
	int fd;
	bool ok;

	if (!p || !first_clusters(p, o, c, name)) {
		ok = p != NULL;
		free(p);
		return error_set(err, "disk %s: %s", c->path, ok ? "the name of its backing file is too long" : "out of memory");
	}
	fd = block_file_create(c->path, err);
	ok = fd >= 0 && pwrite(fd, p, len, 0) == (ssize_t)len;
	if (fd >= 0 && !ok) {
		error_set(err, "disk %s: %s", c->path, strerror(errno));
		unlink(c->path);
	}
	if (fd >= 0)
		close(fd);
	free(p);
	return ok;
}

bool qcow2_create(const struct block_create *c, struct error *err)
{
	struct options o;
	uint64_t name = 0;

	if (!parse(&o, c, err))
		return false;
	if (c->size > BIT(62))
		return error_set(err, "disk %s: its size must be at most 4 EiB", c->path);
	if (!write_first(&o, c, &name, err))
		return false;
	if (fill(&o, c, err) && finish(c, name, err))
		return true;
	unlink(c->path);
	return false;
}
