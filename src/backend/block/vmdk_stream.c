/*
 * Compressed extents ("streamOptimized"): grains one after the other, each a marker (sector number on the disk, length)
 * and deflated data with a zlib header, padded to a sector; then the tables that are not empty, the directory, a footer
 * (a copy of the header that knows where the directory is), and an end-of-stream marker. Such a file is written once,
 * from start to end.
 *
 * Compression is done in the callers' threads; finished pieces wait in a list, sorted, until all in front of them are
 * there, so that the file is in the order of the disk, as programs that read it as a stream want it.
 */
#include "backend/block/vmdk_int.h"

#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/block/iov.h"

#define MARKER 12u /* of a grain: u64 sector, u32 bytes */
#define LEVEL 6
#define WAITING_MAX (64 * MIB)
#define CACHED 8u
#define COMPRESSORS 16u

struct piece {
	struct piece *next;
	uint64_t off, end; /* of the disk */
	uint64_t bytes;	   /* markers and data of its grains */
	uint8_t data[];
};

struct cached {
	uint64_t host, off; /* host 0: empty. A damaged table may name one grain at two places */
	uint8_t *data;
};

/* All under the lock of the extent, but the cache, which has its own. */
struct vmdk_stream {
	bool write;
	pthread_mutex_t cache_lock;
	struct cached cache[CACHED];
	struct libdeflate_compressor *compressors[COMPRESSORS]; /* idle ones */
	unsigned ncompressors;
	uint32_t **tables; /* by directory index; NULL: empty */
	uint32_t ntables;
	uint64_t next;	       /* of the disk: all before it is in the file or passed over */
	uint64_t end;	       /* of the grains in the file */
	struct piece *waiting; /* by offset */
	uint64_t waiting_bytes;
	bool finished;
	int error; /* a failed write: the stream is lost */
};

struct vmdk_stream *vmdk_stream_new(struct vmdk_sparse *s, bool write, struct error *err)
{
	struct vmdk_stream *t = calloc(1, sizeof(*t));

	if (!t || (write && !(t->tables = calloc(s->ngd, sizeof(*t->tables))))) {
		free(t);
		error_set(err, "disk %s: out of memory", s->path);
		return NULL;
	}
	pthread_mutex_init(&t->cache_lock, NULL);
	t->write = t->finished = write;
	t->ntables = write ? s->ngd : 0;
	t->end = s->h.overhead;
	for (uint32_t i = 0; write && i < s->ngd; i++) {
		if (!s->gd[i])
			continue;
		error_set(err, "disk %s: a streamOptimized VMDK is written only once, when it is made", s->path);
		error_hint(err, "convert it to qcow2, or use it read-only or as a snapshot");
		vmdk_stream_free(t);
		return NULL;
	}
	if (!write || (range_ok(s->h.desc, s->h.desc_size, s->h.overhead) && s->h.overhead >= VMDK_HEADER &&
		       s->h.overhead <= s->file_size))
		return t;
	error_set(err, "disk %s: the VMDK header is damaged", s->path);
	vmdk_stream_free(t);
	return NULL;
}

void vmdk_stream_free(struct vmdk_stream *t)
{
	if (!t)
		return;
	for (unsigned i = 0; i < CACHED; i++)
		free(t->cache[i].data);
	while (t->ncompressors)
		libdeflate_free_compressor(t->compressors[--t->ncompressors]);
	while (t->waiting) {
		struct piece *p = t->waiting;

		t->waiting = p->next;
		free(p);
	}
	for (uint32_t i = 0; i < t->ntables; i++)
		free(t->tables[i]);
	free(t->tables);
	pthread_mutex_destroy(&t->cache_lock);
	free(t);
}

/* ---- reading ---- */

static int inflate_grain(struct vmdk_sparse *s, uint64_t grain_off, uint64_t host, uint8_t *out)
{
	struct libdeflate_decompressor *d;
	uint64_t need = min_u64(s->h.grain, s->h.capacity - grain_off);
	uint8_t marker[MARKER], *in;
	size_t got = 0;
	uint32_t bytes;
	int r = iov_pread(s->fd, host, &(struct iovec){marker, MARKER}, 1, 0, MARKER);

	if (r)
		return r;
	bytes = get_le32(marker + 8);
	if (get_le64(marker) != grain_off / BLOCK_SECTOR || !bytes || bytes > 2 * s->h.grain + 4096)
		return -EIO;
	in = malloc(bytes);
	d = libdeflate_alloc_decompressor();
	r = in && d ? iov_pread(s->fd, host + MARKER, &(struct iovec){in, bytes}, 1, 0, bytes) : -ENOMEM;
	if (!r && (libdeflate_zlib_decompress(d, in, bytes, out, s->h.grain, &got) != LIBDEFLATE_SUCCESS || got < need))
		r = -EIO;
	libdeflate_free_decompressor(d);
	free(in);
	return r;
}

static int read_cached(struct vmdk_sparse *s, uint64_t off, uint64_t len, uint64_t host, const struct iovec *iov,
		       unsigned niov, uint64_t iov_off)
{
	struct vmdk_stream *t = s->stream;
	struct cached *c = &t->cache[host / BLOCK_SECTOR % CACHED];
	uint64_t start = align_down(off, s->h.grain);
	uint8_t *data;
	int r = 0;

	pthread_mutex_lock(&t->cache_lock);
	if (c->host == host && c->off == start) {
		iov_from_buf(iov, niov, iov_off, c->data + (off - start), len);
		pthread_mutex_unlock(&t->cache_lock);
		return 0;
	}
	pthread_mutex_unlock(&t->cache_lock);
	data = malloc(s->h.grain);
	if (!data)
		return -ENOMEM;
	r = inflate_grain(s, start, host, data);
	if (r) {
		free(data);
		return r;
	}
	iov_from_buf(iov, niov, iov_off, data + (off - start), len);
	pthread_mutex_lock(&t->cache_lock);
	free(c->data);
	c->data = data;
	c->host = host;
	c->off = start;
	pthread_mutex_unlock(&t->cache_lock);
	return 0;
}

int vmdk_stream_read(struct vmdk_sparse *s, uint64_t off, uint64_t len, uint64_t host, const struct iovec *iov,
		     unsigned niov, uint64_t iov_off)
{
	if (len == s->h.grain && niov == 1)
		return inflate_grain(s, off, host, (uint8_t *)iov->iov_base + iov_off);
	return read_cached(s, off, len, host, iov, niov, iov_off);
}

/* ---- writing ---- */

bool vmdk_stream_entry(struct vmdk_sparse *s, uint32_t index, unsigned i, uint32_t *entry)
{
	const uint32_t *table;

	if (!s->stream->write)
		return false;
	table = s->stream->tables[index];
	*entry = table ? table[i] : 0;
	return true;
}

static struct libdeflate_compressor *compressor_get(struct vmdk_sparse *s)
{
	struct vmdk_stream *t = s->stream;
	struct libdeflate_compressor *c = NULL;

	pthread_mutex_lock(&s->lock);
	if (t->ncompressors)
		c = t->compressors[--t->ncompressors];
	pthread_mutex_unlock(&s->lock);
	return c ? c : libdeflate_alloc_compressor(LEVEL);
}

static void compressor_put(struct vmdk_sparse *s, struct libdeflate_compressor *c)
{
	struct vmdk_stream *t = s->stream;

	pthread_mutex_lock(&s->lock);
	if (t->ncompressors < COMPRESSORS) {
		t->compressors[t->ncompressors++] = c;
		c = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	libdeflate_free_compressor(c);
}

static int set_entry(struct vmdk_sparse *s, uint64_t off, uint64_t pos)
{
	uint32_t index = (uint32_t)(off / s->table_span);
	uint32_t **table = &s->stream->tables[index];

	if (!*table)
		*table = calloc(s->h.gtes, 4);
	if (!*table)
		return -ENOMEM;
	if (pos / BLOCK_SECTOR > UINT32_MAX)
		return -EFBIG;
	(*table)[off % s->table_span / s->h.grain] = (uint32_t)(pos / BLOCK_SECTOR);
	return 0;
}

static int append(struct vmdk_sparse *s, const struct piece *p)
{
	struct vmdk_stream *t = s->stream;
	int r = iov_pwrite(s->fd, t->end, &(struct iovec){(void *)p->data, p->bytes}, 1, 0, p->bytes);

	for (uint64_t at = 0; at < p->bytes && !r;) {
		r = set_entry(s, get_le64(p->data + at) * BLOCK_SECTOR, t->end + at);
		at += align_up(MARKER + get_le32(p->data + at + 8), BLOCK_SECTOR);
	}
	t->finished = false;
	t->end += p->bytes;
	s->file_size = max_u64(s->file_size, t->end);
	return r;
}

/* What is next, goes to the file; with `all`, or when too much waits, also what is not. */
static int drain(struct vmdk_sparse *s, bool all)
{
	struct vmdk_stream *t = s->stream;

	while (t->waiting && (all || t->waiting->off <= t->next || t->waiting_bytes > WAITING_MAX)) {
		struct piece *p = t->waiting;

		t->waiting = p->next;
		t->waiting_bytes -= p->bytes;
		t->next = max_u64(t->next, p->end);
		if (!t->error && p->bytes)
			t->error = append(s, p);
		free(p);
	}
	return t->error;
}

static int submit(struct vmdk_sparse *s, struct piece *p)
{
	struct piece **at;
	int r;

	pthread_mutex_lock(&s->lock);
	for (at = &s->stream->waiting; *at && (*at)->off < p->off; at = &(*at)->next)
		;
	p->next = *at;
	*at = p;
	s->stream->waiting_bytes += p->bytes;
	r = drain(s, false);
	pthread_mutex_unlock(&s->lock);
	return r;
}

static bool all_zero(const uint8_t *p, uint64_t n) { return !p[0] && !memcmp(p, p + 1, n - 1); }

/* Appends one grain to the piece; the last one of the disk is filled up with zeroes. 0: it is all zero, or -errno, or
 * bytes. */
static int64_t pack(struct vmdk_sparse *s, struct libdeflate_compressor *c, uint64_t off, const uint8_t *data,
		    uint64_t len, uint8_t *out, uint64_t room)
{
	uint8_t *full = NULL;
	size_t n;

	if (all_zero(data, len))
		return 0;
	if (len < s->h.grain) {
		full = calloc(1, s->h.grain);
		if (!full)
			return -ENOMEM;
		data = memcpy(full, data, len);
	}
	n = libdeflate_zlib_compress(c, data, s->h.grain, out + MARKER, room - MARKER);
	free(full);
	if (!n)
		return -EIO;
	put_le64(out, off / BLOCK_SECTOR);
	put_le32(out + 8, (uint32_t)n);
	memset(out + MARKER + n, 0, align_up(MARKER + n, BLOCK_SECTOR) - MARKER - n);
	return (int64_t)align_up(MARKER + n, BLOCK_SECTOR);
}

int vmdk_stream_write(struct vmdk_sparse *s, uint64_t off, uint64_t len, const void *buf)
{
	uint64_t grains = (len + s->h.grain - 1) / s->h.grain, room;
	struct libdeflate_compressor *c;
	struct piece *p;
	int64_t n = 0;

	if (!s->stream->write || off % s->h.grain || (len % s->h.grain && off + len != s->h.capacity))
		return -EINVAL;
	c = compressor_get(s);
	if (!c)
		return -ENOMEM;
	room = align_up(MARKER + libdeflate_zlib_compress_bound(c, s->h.grain), BLOCK_SECTOR);
	p = malloc(sizeof(*p) + grains * room);
	if (p) {
		*p = (struct piece){.off = off, .end = off + len};
		for (uint64_t at = 0; at < len && n >= 0; at += s->h.grain) {
			n = pack(s, c, off + at, (const uint8_t *)buf + at, min_u64(s->h.grain, len - at),
				 p->data + p->bytes, room);
			p->bytes += n > 0 ? (uint64_t)n : 0;
		}
	}
	compressor_put(s, c);
	if (!p)
		return -ENOMEM;
	if (n < 0) {
		free(p);
		return (int)n;
	}
	return submit(s, p);
}

int vmdk_stream_pass(struct vmdk_sparse *s, uint64_t off, uint64_t len)
{
	struct piece *p;

	if (!s->stream->write)
		return 0;
	p = malloc(sizeof(*p));
	if (!p)
		return -ENOMEM;
	*p = (struct piece){.off = off, .end = off + len};
	return submit(s, p);
}

int vmdk_stream_settle(struct vmdk_sparse *s) { return s->stream->waiting ? drain(s, true) : s->stream->error; }

/* ---- the end ---- */

struct tail {
	struct vmdk_sparse *s;
	uint64_t pos;
	int error;
};

static void put(struct tail *t, const void *buf, uint64_t len)
{
	if (!t->error)
		t->error = iov_pwrite(t->s->fd, t->pos, &(struct iovec){(void *)buf, len}, 1, 0, len);
	t->pos += len;
}

static void put_marker(struct tail *t, enum vmdk_marker type, uint64_t bytes)
{
	uint8_t m[BLOCK_SECTOR] = {0};

	put_le64(m, bytes / BLOCK_SECTOR);
	put_le32(m + 12, type);
	put(t, m, sizeof(m));
}

static void put_padded(struct tail *t, const void *buf, uint64_t len)
{
	static const uint8_t zeroes[BLOCK_SECTOR];

	put(t, buf, len);
	put(t, zeroes, align_up(len, BLOCK_SECTOR) - len);
}

static int write_tail(struct vmdk_sparse *s)
{
	uint32_t *gd = calloc(s->ngd, 4);
	uint64_t table = align_up(s->h.gtes * 4, BLOCK_SECTOR), dir = align_up((uint64_t)s->ngd * 4, BLOCK_SECTOR);
	struct tail t = {.s = s, .pos = s->stream->end};
	struct vmdk_header h = s->h;
	uint8_t footer[VMDK_HEADER];

	if (!gd)
		return -ENOMEM;
	for (uint32_t i = 0; i < s->ngd; i++) {
		if (!s->stream->tables[i])
			continue;
		put_marker(&t, VMDK_MARK_GT, table);
		gd[i] = (uint32_t)(t.pos / BLOCK_SECTOR);
		put_padded(&t, s->stream->tables[i], s->h.gtes * 4);
	}
	put_marker(&t, VMDK_MARK_GD, dir);
	h.gd = t.pos;
	put_padded(&t, gd, (uint64_t)s->ngd * 4);
	free(gd);
	put_marker(&t, VMDK_MARK_FOOTER, VMDK_HEADER);
	vmdk_header_put(footer, &h);
	put(&t, footer, sizeof(footer));
	put_marker(&t, VMDK_MARK_EOS, 0);
	if (t.pos / BLOCK_SECTOR > UINT32_MAX)
		return -EFBIG;
	if (!t.error && ftruncate(s->fd, (off_t)t.pos) < 0)
		t.error = -errno;
	s->file_size = t.pos;
	return t.error;
}

int vmdk_stream_finish(struct vmdk_sparse *s)
{
	struct vmdk_stream *t = s->stream;
	int r;

	if (!t->write)
		return 0;
	pthread_mutex_lock(&s->lock);
	r = drain(s, true);
	if (!r && !t->finished)
		r = write_tail(s);
	if (!r && !s->unsafe && fdatasync(s->fd) < 0)
		r = -errno;
	t->finished = t->finished || !r;
	t->error = r;
	pthread_mutex_unlock(&s->lock);
	return r;
}
