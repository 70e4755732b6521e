/*
 * Hosted sparse extents: header, grain directory (GD) -> grain tables (GT) -> grains. A grain's entry in its table is
 * its position in the file in sectors; 0: not here; 1, with a flag in the header: zeroes.
 *
 * A crash must not leave an entry in the file for data that is not: changed tables stay in memory until a flush (or
 * until their place in the cache is needed), which syncs the data first, then writes them. Grains are never freed, so
 * that a position once found stays good.
 */
#include "backend/block/vmdk_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/iov.h"

#define GRAIN_ZERO 1u

static const uint8_t zeroes[64 * KIB];

/* ---- files ---- */

static int read_all(int fd, uint64_t pos, void *buf, uint64_t len)
{
	return iov_pread(fd, pos, &(struct iovec){buf, len}, 1, 0, len);
}

static int write_all(int fd, uint64_t pos, const void *buf, uint64_t len)
{
	return iov_pwrite(fd, pos, &(struct iovec){(void *)buf, len}, 1, 0, len);
}

/* ---- header ---- */

void vmdk_header_put(uint8_t out[VMDK_HEADER], const struct vmdk_header *h)
{
	memset(out, 0, VMDK_HEADER);
	put_le32(out, VMDK_MAGIC);
	put_le32(out + 4, h->version);
	put_le32(out + 8, h->flags);
	put_le64(out + 12, h->capacity / BLOCK_SECTOR);
	put_le64(out + 20, h->grain / BLOCK_SECTOR);
	put_le64(out + 28, h->desc / BLOCK_SECTOR);
	put_le64(out + 36, h->desc_size / BLOCK_SECTOR);
	put_le32(out + 44, h->gtes);
	put_le64(out + 48, h->rgd / BLOCK_SECTOR);
	put_le64(out + 56, h->gd == VMDK_GD_AT_END ? h->gd : h->gd / BLOCK_SECTOR);
	put_le64(out + 64, h->overhead / BLOCK_SECTOR);
	memcpy(out + 73, "\n \r\n", 4);
	put_le16(out + 77, h->compression);
}

/* Sectors to bytes; too large: false. */
static bool sectors(const uint8_t *p, uint64_t *out)
{
	uint64_t v = get_le64(p);

	*out = v * BLOCK_SECTOR;
	return v <= INT64_MAX / BLOCK_SECTOR;
}

static bool damaged(const char *path, const char *what, struct error *err)
{
	error_set(err, "disk %s: %s", path, what);
	return error_hint(err, "the file is damaged or is not a VMDK; restore it from a backup");
}

bool vmdk_header_get(const char *path, const uint8_t in[VMDK_HEADER], struct vmdk_header *h, struct error *err)
{
	bool at_end = get_le64(in + 56) == VMDK_GD_AT_END;

	*h = (struct vmdk_header){.version = get_le32(in + 4),
				  .flags = get_le32(in + 8),
				  .gtes = get_le32(in + 44),
				  .compression = get_le16(in + 77)};
	if (get_le32(in) != VMDK_MAGIC)
		return damaged(path, "no VMDK header", err);
	if (h->version < 1 || h->version > 3) {
		error_set(err, "disk %s: VMDK version %u is not supported", path, h->version);
		return error_hint(err, "versions 1 to 3 are");
	}
	if (h->flags & VMDK_F_NEWLINE && memcmp(in + 73, "\n \r\n", 4))
		return damaged(path, "the VMDK header was changed by a transfer as text", err);
	if (!sectors(in + 12, &h->capacity) || !sectors(in + 20, &h->grain) || !sectors(in + 28, &h->desc) ||
	    !sectors(in + 36, &h->desc_size) || !sectors(in + 48, &h->rgd) || !sectors(in + 64, &h->overhead) ||
	    (!at_end && !sectors(in + 56, &h->gd)))
		return damaged(path, "the VMDK header has an impossible size in it", err);
	if (at_end)
		h->gd = VMDK_GD_AT_END;
	if (!h->capacity || !h->grain || h->grain > VMDK_GRAIN_MAX || h->grain & (h->grain - 1))
		return damaged(path, "the VMDK header has an impossible grain size or capacity", err);
	if (!h->gtes || h->gtes > VMDK_GTES)
		return damaged(path, "the VMDK header has an impossible grain table size", err);
	if (h->flags & VMDK_F_COMPRESSED && h->compression != 1)
		return damaged(path, "the VMDK is compressed in an unknown way", err);
	return true;
}

/* ---- making ---- */

/* A stream's true header is in front of its end: marker, footer, end-of-stream marker. */
static bool read_footer(struct vmdk_sparse *s, struct error *err)
{
	uint8_t tail[3 * BLOCK_SECTOR];
	uint64_t capacity = s->h.capacity;

	if (s->file_size < VMDK_HEADER + sizeof(tail) ||
	    read_all(s->fd, s->file_size - sizeof(tail), tail, sizeof(tail)) || get_le64(tail) != 1 ||
	    get_le32(tail + 8) != 0 || get_le32(tail + 12) != VMDK_MARK_FOOTER ||
	    get_le64(tail + 2 * BLOCK_SECTOR) != 0 || get_le32(tail + 2 * BLOCK_SECTOR + 8) != 0 ||
	    get_le32(tail + 2 * BLOCK_SECTOR + 12) != VMDK_MARK_EOS)
		return damaged(s->path, "the stream's footer is not there: the file is cut short", err);
	if (!vmdk_header_get(s->path, tail + BLOCK_SECTOR, &s->h, err))
		return false;
	return (s->h.gd != VMDK_GD_AT_END && s->h.capacity == capacity) ||
	       damaged(s->path, "the stream's footer does not fit its header", err);
}

static uint32_t *read_gd(struct vmdk_sparse *s, uint64_t pos, struct error *err)
{
	uint64_t bytes = (uint64_t)s->ngd * 4;
	uint32_t *gd;

	if (!pos || !range_ok(pos, bytes, s->file_size)) {
		damaged(s->path, "the VMDK's grain directory lies outside of the file", err);
		return NULL;
	}
	gd = malloc(bytes);
	if (gd && read_all(s->fd, pos, gd, bytes) == 0)
		return gd;
	free(gd);
	error_set(err, "disk %s: cannot read the grain directory", s->path);
	return NULL;
}

static bool sparse_open(struct vmdk_sparse *s, bool write, uint64_t size, struct error *err)
{
	uint8_t head[VMDK_HEADER];
	uint64_t ngd;
	struct stat st;

	if (fstat(s->fd, &st) < 0)
		return error_set(err, "disk %s: %s", s->path, strerror(errno));
	s->file_size = (uint64_t)st.st_size;
	if (s->file_size < sizeof(head) || read_all(s->fd, 0, head, sizeof(head)))
		return damaged(s->path, "too short for a VMDK", err);
	if (!vmdk_header_get(s->path, head, &s->h, err) || (s->h.gd == VMDK_GD_AT_END && !read_footer(s, err)))
		return false;
	if (size > s->h.capacity)
		return damaged(s->path, "an extent is smaller than the descriptor says", err);
	s->table_span = s->h.gtes * s->h.grain;
	ngd = (s->h.capacity + s->table_span - 1) / s->table_span;
	if (ngd * 4 > VMDK_GD_MAX)
		return damaged(s->path, "the VMDK claims to be too large", err);
	s->ngd = (uint32_t)ngd;
	s->gd = read_gd(s, s->h.gd, err);
	if (!s->gd)
		return false;
	if (s->h.flags & VMDK_F_COMPRESSED) {
		s->stream = vmdk_stream_new(s, write, err);
		return s->stream != NULL;
	}
	if (write && s->h.version > 2) {
		error_set(err, "disk %s: VMDK version %u is read only", s->path, s->h.version);
		return error_hint(err, "convert it, or use it as a snapshot");
	}
	if (!write || !(s->h.flags & VMDK_F_RGD) || !s->h.rgd)
		return true;
	s->rgd = read_gd(s, s->h.rgd, err);
	return s->rgd != NULL;
}

struct vmdk_sparse *vmdk_sparse_new(const char *path, int fd, bool write, uint64_t size, struct error *err)
{
	struct vmdk_sparse *s = calloc(1, sizeof(*s));

	if (!s) {
		close(fd);
		error_set(err, "disk %s: out of memory", path);
		return NULL;
	}
	s->path = path;
	s->fd = fd;
	pthread_mutex_init(&s->lock, NULL);
	if (sparse_open(s, write, size, err))
		return s;
	vmdk_sparse_free(s);
	return NULL;
}

void vmdk_sparse_free(struct vmdk_sparse *s)
{
	if (!s)
		return;
	vmdk_stream_free(s->stream);
	for (unsigned i = 0; i < VMDK_GT_SLOTS; i++)
		free(s->gts[i].entries);
	free(s->gd);
	free(s->rgd);
	close(s->fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* ---- tables; all with the lock held ---- */

static int sync_file(struct vmdk_sparse *s)
{
	if (!s->unsafe && !s->sync_error && fdatasync(s->fd) < 0)
		s->sync_error = -errno;
	return s->sync_error;
}

static int write_table(struct vmdk_sparse *s, struct vmdk_gt *gt)
{
	int r = write_all(s->fd, (uint64_t)s->gd[gt->index] * BLOCK_SECTOR, gt->entries, s->h.gtes * 4);

	if (!r && s->rgd && s->rgd[gt->index])
		r = write_all(s->fd, (uint64_t)s->rgd[gt->index] * BLOCK_SECTOR, gt->entries, s->h.gtes * 4);
	gt->dirty = r != 0;
	return r;
}

static int write_tables(struct vmdk_sparse *s)
{
	int r = 0;

	if (!s->any_dirty)
		return 0;
	r = sync_file(s);
	for (unsigned i = 0; i < VMDK_GT_SLOTS && !r; i++)
		if (s->gts[i].dirty)
			r = write_table(s, &s->gts[i]);
	s->any_dirty = r != 0;
	return r;
}

/* The table of a directory entry that is not 0. */
static int table(struct vmdk_sparse *s, uint32_t index, struct vmdk_gt **out)
{
	struct vmdk_gt *gt = &s->gts[index % VMDK_GT_SLOTS];
	uint64_t pos = (uint64_t)s->gd[index] * BLOCK_SECTOR, bytes = s->h.gtes * 4;
	int r;

	*out = gt;
	if (gt->entries && gt->index == index)
		return 0;
	if (gt->dirty) {
		r = write_tables(s);
		if (r)
			return r;
	}
	if (!range_ok(pos, bytes, s->file_size))
		return -EIO;
	if (!gt->entries) {
		gt->entries = calloc(1, VMDK_GTES * 4);
		if (!gt->entries)
			return -ENOMEM;
	}
	gt->index = UINT32_MAX;
	r = read_all(s->fd, pos, gt->entries, bytes);
	if (!r)
		gt->index = index;
	return r;
}

/* A new table, of zeroes, for a directory entry that has none. */
static int add_table(struct vmdk_sparse *s, uint32_t index)
{
	uint64_t bytes = align_up(s->h.gtes * 4, BLOCK_SECTOR), pos = align_up(s->file_size, BLOCK_SECTOR);
	uint32_t *dirs[] = {s->gd, s->rgd};
	uint64_t where[] = {s->h.gd, s->h.rgd};
	int r = 0;

	if ((pos + 2 * bytes) / BLOCK_SECTOR > UINT32_MAX)
		return -EFBIG;
	for (unsigned i = 0; i < 2 && !r; i++)
		if (dirs[i])
			r = write_all(s->fd, pos + i * bytes, zeroes, bytes);
	if (!r)
		r = sync_file(s);
	for (unsigned i = 0; i < 2 && !r; i++) {
		uint32_t entry = (uint32_t)((pos + i * bytes) / BLOCK_SECTOR);

		if (!dirs[i])
			continue;
		r = write_all(s->fd, where[i] + (uint64_t)index * 4, &entry, 4);
		if (!r)
			dirs[i][index] = entry;
	}
	if (!r)
		s->file_size = pos + 2 * bytes;
	return r;
}

static enum vmdk_run_kind entry_kind(const struct vmdk_sparse *s, uint32_t e)
{
	if (!e)
		return VMDK_RUN_NONE;
	if (e == GRAIN_ZERO && s->h.flags & VMDK_F_ZERO_GRAIN)
		return VMDK_RUN_ZERO;
	return s->stream ? VMDK_RUN_COMPRESSED : VMDK_RUN_DATA;
}

/* Entry `i` continues a run that began with `e`, `n` grains before. */
static bool continues(const struct vmdk_sparse *s, uint32_t e, uint32_t entry, unsigned n, enum vmdk_run_kind kind)
{
	if (entry_kind(s, entry) != kind)
		return false;
	return kind != VMDK_RUN_DATA || entry == e + (uint64_t)n * (s->h.grain / BLOCK_SECTOR);
}

static int find_run(struct vmdk_sparse *s, uint64_t off, uint64_t len, struct vmdk_run *out)
{
	uint32_t index = (uint32_t)(off / s->table_span), e;
	uint64_t within = off % s->table_span, end = min_u64(within + len, s->table_span);
	unsigned first = (unsigned)(within / s->h.grain), i;
	struct vmdk_gt *gt;
	int r;

	*out = (struct vmdk_run){.kind = VMDK_RUN_NONE, .len = end - within};
	if (s->stream && vmdk_stream_entry(s, index, first, &e)) {
		*out = (struct vmdk_run){.kind = e ? VMDK_RUN_COMPRESSED : VMDK_RUN_NONE,
					 .host = (uint64_t)e * BLOCK_SECTOR,
					 .len = min_u64(end, (first + 1) * s->h.grain) - within};
		return 0;
	}
	if (!s->gd[index])
		return 0;
	r = table(s, index, &gt);
	if (r)
		return r;
	e = gt->entries[first];
	out->kind = entry_kind(s, e);
	for (i = first + 1; i * s->h.grain < end; i++)
		if (out->kind == VMDK_RUN_COMPRESSED || !continues(s, e, gt->entries[i], i - first, out->kind))
			break;
	out->len = min_u64(end, i * s->h.grain) - within;
	if (out->kind == VMDK_RUN_COMPRESSED)
		out->host = (uint64_t)e * BLOCK_SECTOR;
	if (out->kind != VMDK_RUN_DATA)
		return 0;
	out->host = (uint64_t)e * BLOCK_SECTOR + within % s->h.grain;
	if (!range_ok(out->host, 1, s->file_size))
		return -EIO;
	/* A run may reach behind the end of the file by damage only in its later part. */
	out->len = min_u64(out->len, s->file_size - out->host);
	return 0;
}

int vmdk_sparse_run(struct vmdk_sparse *s, uint64_t off, uint64_t len, struct vmdk_run *out)
{
	int r;

	pthread_mutex_lock(&s->lock);
	r = s->stream ? vmdk_stream_settle(s) : 0;
	if (!r)
		r = find_run(s, off, len, out);
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* ---- writing ---- */

static int reserve(struct vmdk_sparse *s, uint64_t bytes, uint64_t *pos)
{
	*pos = align_up(s->file_size, s->h.grain);
	if ((*pos + bytes) / BLOCK_SECTOR > UINT32_MAX)
		return -EFBIG;
	s->file_size = *pos + bytes;
	return 0;
}

static void give_back(struct vmdk_sparse *s, uint64_t pos, uint64_t bytes)
{
	if (s->file_size == pos + bytes)
		s->file_size = pos;
}

static int set_entry(struct vmdk_sparse *s, uint64_t off, uint32_t value)
{
	uint32_t index = (uint32_t)(off / s->table_span);
	struct vmdk_gt *gt;
	int r = s->gd[index] ? 0 : add_table(s, index);

	if (!r)
		r = table(s, index, &gt);
	if (r)
		return r;
	gt->entries[off % s->table_span / s->h.grain] = value;
	gt->dirty = s->any_dirty = true;
	return 0;
}

/*
 * Whole grains that are not here, in one table. The data is written without the lock; another write may have brought
 * one of the grains meanwhile, and then ours goes into that.
 */
static int write_new_grains(struct vmdk_sparse *s, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov,
			    uint64_t iov_off)
{
	uint64_t pos;
	int r = reserve(s, len, &pos);

	if (r)
		return r;
	pthread_mutex_unlock(&s->lock);
	r = iov_pwrite(s->fd, pos, iov, niov, iov_off, len);
	pthread_mutex_lock(&s->lock);
	if (r)
		give_back(s, pos, len);
	for (uint64_t done = 0; done < len && !r; done += s->h.grain) {
		struct vmdk_run now;

		r = find_run(s, off + done, s->h.grain, &now);
		if (!r && now.kind == VMDK_RUN_DATA)
			r = iov_pwrite(s->fd, now.host, iov, niov, iov_off + done, s->h.grain);
		else if (!r)
			r = set_entry(s, off + done, (uint32_t)((pos + done) / BLOCK_SECTOR));
	}
	return r;
}

/* A part of a grain that is not here: the rest of it comes from below. */
static int write_part_grain(struct vmdk_sparse *s, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov,
			    uint64_t iov_off, bool zero, const struct vmdk_below *below)
{
	uint64_t start = align_down(off, s->h.grain), pos;
	uint8_t *buf = calloc(1, s->h.grain);
	int r = buf ? 0 : -ENOMEM;

	if (!r && !zero)
		r = below->read(below->ctx, start, buf, min_u64(s->h.grain, s->h.capacity - start));
	if (!r)
		r = reserve(s, s->h.grain, &pos);
	if (!r) {
		iov_to_buf(iov, niov, iov_off, buf + (off - start), len);
		r = write_all(s->fd, pos, buf, s->h.grain);
		if (!r)
			r = set_entry(s, start, (uint32_t)(pos / BLOCK_SECTOR));
		else
			give_back(s, pos, s->h.grain);
	}
	free(buf);
	return r;
}

int vmdk_sparse_write(struct vmdk_sparse *s, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov,
		      uint64_t iov_off, const struct vmdk_below *below)
{
	while (len) {
		struct vmdk_run run = {0};
		uint64_t n, into = off & (s->h.grain - 1);
		int r;

		pthread_mutex_lock(&s->lock);
		r = find_run(s, off, len, &run);
		n = run.len;
		if (r || run.kind == VMDK_RUN_COMPRESSED) {
			r = r ? r : -ENOTSUP;
		} else if (run.kind == VMDK_RUN_DATA) {
			pthread_mutex_unlock(&s->lock);
			r = iov_pwrite(s->fd, run.host, iov, niov, iov_off, n);
			pthread_mutex_lock(&s->lock);
		} else if (!into && n >= s->h.grain) {
			n = align_down(n, s->h.grain);
			r = write_new_grains(s, off, n, iov, niov, iov_off);
		} else {
			n = min_u64(n, s->h.grain - into);
			r = write_part_grain(s, off, n, iov, niov, iov_off, run.kind == VMDK_RUN_ZERO, below);
		}
		pthread_mutex_unlock(&s->lock);
		if (r)
			return r;
		off += n;
		iov_off += n;
		len -= n;
	}
	return 0;
}

/* Zeroes in place, by a hole where the file system makes holes. */
static int zero_data(struct vmdk_sparse *s, uint64_t pos, uint64_t len)
{
	int r = 0;

	if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)pos, (off_t)len) == 0)
		return 0;
	for (; len && !r;) {
		uint64_t n = min_u64(len, sizeof(zeroes));

		r = write_all(s->fd, pos, zeroes, n);
		pos += n;
		len -= n;
	}
	return r;
}

/* A run that is not here and below which there may be data: a mark for a whole grain, else zeroes as data. */
static int zero_missing(struct vmdk_sparse *s, uint64_t off, uint64_t *len, const struct vmdk_below *below)
{
	uint64_t into = off & (s->h.grain - 1);
	int r;

	*len = min_u64(*len, s->h.grain - into);
	if (!into && *len == min_u64(s->h.grain, s->h.capacity - off) && s->h.flags & VMDK_F_ZERO_GRAIN) {
		struct vmdk_run now;

		pthread_mutex_lock(&s->lock);
		r = find_run(s, off, *len, &now);
		if (!r && now.kind == VMDK_RUN_NONE)
			r = set_entry(s, off, GRAIN_ZERO);
		else if (!r && now.kind == VMDK_RUN_DATA)
			r = zero_data(s, now.host, *len);
		pthread_mutex_unlock(&s->lock);
		return r;
	}
	*len = min_u64(*len, sizeof(zeroes));
	return vmdk_sparse_write(s, off, *len, &(struct iovec){(void *)zeroes, *len}, 1, 0, below);
}

int vmdk_sparse_zero(struct vmdk_sparse *s, uint64_t off, uint64_t len, bool has_below, const struct vmdk_below *below)
{
	while (len) {
		struct vmdk_run run = {0};
		int r = vmdk_sparse_run(s, off, len, &run);

		if (!r && run.kind == VMDK_RUN_COMPRESSED)
			r = -ENOTSUP;
		else if (!r && run.kind == VMDK_RUN_DATA)
			r = zero_data(s, run.host, run.len);
		else if (!r && run.kind == VMDK_RUN_NONE && has_below)
			r = zero_missing(s, off, &run.len, below);
		if (r)
			return r;
		off += run.len;
		len -= run.len;
	}
	return 0;
}

int vmdk_sparse_flush(struct vmdk_sparse *s)
{
	int r;

	if (s->stream)
		return vmdk_stream_finish(s);
	pthread_mutex_lock(&s->lock);
	r = write_tables(s);
	if (!r)
		r = sync_file(s);
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* ---- check ---- */

#define CHECK_REPORTS 100u /* lines at most */
#define CHECK_GRAINS_MAX (UINT64_C(1) << 30)

struct check {
	struct vmdk_sparse *s;
	struct block_check *c;
	uint8_t *used; /* a bit per grain-sized piece of the file */
	uint64_t npieces;
	uint64_t lines;
	bool repair;
};

__attribute__((format(printf, 2, 3))) static void report(struct check *k, const char *fmt, ...)
{
	char line[160];
	va_list ap;

	if (!k->c->report || k->lines++ >= CHECK_REPORTS)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	k->c->report(k->c->ctx, line);
}

static void check_grain(struct check *k, struct vmdk_gt *gt, unsigned i)
{
	struct vmdk_sparse *s = k->s;
	uint64_t disk = gt->index * s->table_span + i * s->h.grain, pos = (uint64_t)gt->entries[i] * BLOCK_SECTOR,
		 piece, need;
	enum vmdk_run_kind kind = entry_kind(s, gt->entries[i]);

	if (kind == VMDK_RUN_NONE || kind == VMDK_RUN_ZERO || disk >= s->h.capacity)
		return;
	k->c->allocated_clusters++;
	need = s->stream ? 12 : min_u64(s->h.grain, s->h.capacity - disk);
	if (pos < VMDK_HEADER || !range_ok(pos, need, s->file_size)) {
		report(k, "the grain of offset %llu lies outside of the file", (unsigned long long)disk);
		k->c->corruptions++;
		if (k->repair) {
			gt->entries[i] = 0;
			gt->dirty = s->any_dirty = true;
			k->c->errors_fixed++;
		}
		return;
	}
	piece = pos / (s->stream ? BLOCK_SECTOR : s->h.grain);
	if (k->used[piece / 8] & 1u << piece % 8) {
		report(k, "the grain of offset %llu is also another's", (unsigned long long)disk);
		k->c->corruptions++;
	}
	k->used[piece / 8] |= (uint8_t)(1u << piece % 8);
}

/*
 * The redundant table is a copy of the table, for repairs by hand; a crash may leave it behind the table. Nothing reads
 * it: that is a leak, not damage.
 */
static void check_copy(struct check *k, struct vmdk_gt *gt)
{
	struct vmdk_sparse *s = k->s;
	uint64_t bytes = s->h.gtes * 4, pos = s->rgd ? (uint64_t)s->rgd[gt->index] * BLOCK_SECTOR : 0;
	uint32_t copy[VMDK_GTES];

	if (!pos || (range_ok(pos, bytes, s->file_size) && read_all(s->fd, pos, copy, bytes) == 0 &&
		     !memcmp(copy, gt->entries, bytes)))
		return;
	report(k, "the copy of grain table %u is out of date", gt->index);
	k->c->leaks++;
	if (!k->repair || !range_ok(pos, bytes, s->file_size))
		return;
	k->c->leaks_fixed++;
	gt->dirty = s->any_dirty = true;
}

static void check_tables(struct check *k)
{
	struct vmdk_sparse *s = k->s;

	for (uint32_t index = 0; index < s->ngd; index++) {
		struct vmdk_gt *gt;

		if (k->c->progress && index % 64 == 0)
			k->c->progress(k->c->ctx, index, s->ngd);
		if (!s->gd[index])
			continue;
		if (table(s, index, &gt)) {
			report(k, "grain table %u lies outside of the file or cannot be read", index);
			k->c->corruptions++;
			continue;
		}
		for (unsigned i = 0; i < s->h.gtes; i++)
			check_grain(k, gt, i);
		check_copy(k, gt);
	}
}

bool vmdk_sparse_check(struct vmdk_sparse *s, bool repair, struct block_check *c, struct error *err)
{
	struct check k = {.s = s, .c = c, .repair = repair && !s->stream};
	int r = 0;

	k.npieces = s->file_size / (s->stream ? BLOCK_SECTOR : s->h.grain) + 1;
	if (k.npieces > CHECK_GRAINS_MAX)
		return error_set(err, "disk %s: too large to be checked", s->path);
	k.used = calloc(1, k.npieces / 8 + 1);
	if (!k.used)
		return error_set(err, "disk %s: out of memory", s->path);
	pthread_mutex_lock(&s->lock);
	if (!s->rgd && !s->stream && s->h.flags & VMDK_F_RGD && s->h.rgd)
		s->rgd = read_gd(s, s->h.rgd, NULL);
	c->total_clusters += (s->h.capacity + s->h.grain - 1) / s->h.grain;
	check_tables(&k);
	if (repair)
		r = write_tables(s);
	pthread_mutex_unlock(&s->lock);
	free(k.used);
	return r == 0 || error_set(err, "disk %s: %s", s->path, strerror(-r));
}
