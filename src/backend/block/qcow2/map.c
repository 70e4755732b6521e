/* L1 and L2 tables: where guest bytes are. */
#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#define LOOKUP_SLICES 4096u /* looked at in one call */

unsigned qcow2_slice_entries(const struct qcow2 *q) { return q->l2c.slice_size / q->entry_size; }

uint64_t qcow2_slice_entry(const struct qcow2 *q, const struct qcow2_slice *s, unsigned i, uint64_t *bitmap)
{
	const uint8_t *p = s->data + (size_t)i * q->entry_size;

	*bitmap = q->extended ? get_be64(p + 8) : 0;
	return get_be64(p);
}

void qcow2_entry_set(struct qcow2 *q, struct qcow2_slice *s, unsigned i, struct qcow2_entry e)
{
	uint8_t *p = s->data + (size_t)i * q->entry_size;

	put_be64(p, e.e);
	if (q->extended)
		put_be64(p + 8, e.bitmap);
	qcow2_cache_dirty(&q->l2c, s);
}

void qcow2_packed_place(const struct qcow2 *q, uint64_t entry, uint64_t *off, uint32_t *len)
{
	unsigned bits = 62 - (q->cluster_bits - 8);

	*off = entry & (BIT(bits) - 1);
	*len = (uint32_t)((entry >> bits & (BIT(q->cluster_bits - 8) - 1)) + 1) * BLOCK_SECTOR -
	       (uint32_t)(*off & (BLOCK_SECTOR - 1));
}

int qcow2_kind(const struct qcow2 *q, struct qcow2_entry e, unsigned sub)
{
	bool alloc = q->extended ? e.bitmap >> sub & 1 : e.e & QCOW2_OFFSET;
	bool zero = q->extended ? e.bitmap >> (32 + sub) & 1 : e.e & QCOW2_ZERO;

	if (e.e & QCOW2_COMPRESSED)
		return QCOW2_PACKED;
	if (e.e & QCOW2_OFFSET & (q->cluster_size - 1))
		return -EIO;
	if (zero)
		return q->h.version < 3 || (q->extended && alloc) ? -EIO : QCOW2_ZEROES;
	if (!alloc)
		return QCOW2_UNALLOCATED;
	/* A file that was cut short must not read as zeroes. */
	return e.e & QCOW2_OFFSET && (e.e & QCOW2_OFFSET) >> q->cluster_bits < q->end ? QCOW2_DATA : -EIO;
}

/* The slice with the entry of guest offset `off`; NULL: no L2 table. */
static int l2_get(struct qcow2 *q, uint64_t off, struct qcow2_slice **s, unsigned *i)
{
	uint64_t idx = off >> (q->cluster_bits + q->l2_bits), in = off >> q->cluster_bits & (BIT(q->l2_bits) - 1), table;
	unsigned per = qcow2_slice_entries(q);

	*s = NULL;
	*i = in & (per - 1);
	if (idx >= q->l1.n)
		return 0;
	table = q->l1.e[idx] & QCOW2_OFFSET;
	if (!table)
		return 0;
	if (table & (q->cluster_size - 1) || table >> q->cluster_bits >= q->end)
		return -EIO;
	return qcow2_cache_get(q, &q->l2c, table + in / per * q->l2c.slice_size, s);
}

/* May run be made longer by len bytes of this kind (host: of the first)? Starts it when it is empty. */
static bool join(struct qcow2_run *r, int kind, uint64_t host, uint64_t len)
{
	if (r->len && (kind != (int)r->kind || kind == QCOW2_PACKED || (kind == QCOW2_DATA && host != r->host + r->len)))
		return false;
	if (!r->len) {
		r->kind = (enum qcow2_kind)kind;
		r->host = host;
	}
	r->len += len;
	return true;
}

/* Adds what entry i and those after it in the slice say of [off, end). False: the run is over. */
static int join_slice(struct qcow2 *q, struct qcow2_slice *s, unsigned i, uint64_t off, uint64_t end, struct qcow2_run *r)
{
	for (; i < qcow2_slice_entries(q) && off < end; i++) {
		struct qcow2_entry e;
		uint64_t cluster_end = min_u64(end, align_down(off, q->cluster_size) + q->cluster_size);

		e.e = qcow2_slice_entry(q, s, i, &e.bitmap);
		while (off < cluster_end) {
			uint64_t in = off & (q->cluster_size - 1), next = align_down(off, BIT(q->sub_bits)) + BIT(q->sub_bits);
			int kind = qcow2_kind(q, e, (unsigned)(in >> q->sub_bits) & 31);

			if (kind == QCOW2_PACKED || !q->extended)
				next = cluster_end;
			next = min_u64(next, cluster_end);
			if (kind < 0)
				return r->len ? 0 : kind;
			if (!join(r, kind, (e.e & QCOW2_OFFSET) + in, next - off))
				return 0;
			if (kind == QCOW2_PACKED)
				r->entry = e.e;
			off = next;
		}
	}
	return off < end;
}

int qcow2_lookup(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *r)
{
	uint64_t end = off + len, slice_cover = (uint64_t)qcow2_slice_entries(q) << q->cluster_bits;
	uint64_t table_cover = BIT(q->cluster_bits + q->l2_bits);

	*r = (struct qcow2_run){0};
	for (unsigned n = 0; r->len < len && n < LOOKUP_SLICES;) {
		uint64_t at = off + r->len;
		struct qcow2_slice *s;
		unsigned i;
		int more = l2_get(q, at, &s, &i);

		if (more < 0)
			return r->len ? 0 : more;
		if (!s) {
			if (!join(r, QCOW2_UNALLOCATED, 0, min_u64(end, align_down(at, table_cover) + table_cover) - at))
				return 0;
			continue;
		}
		n++;
		more = join_slice(q, s, i, at, min_u64(end, align_down(at, slice_cover) + slice_cover), r);
		if (more < 0)
			return more;
		if (off + r->len < min_u64(end, align_down(at, slice_cover) + slice_cover))
			return 0;
	}
	return 0;
}

static bool below(const struct qcow2 *q, uint64_t off) { return q->b->backing && off < q->b->backing->size; }

bool qcow2_reads_zero(struct qcow2 *q, uint64_t off, uint64_t len)
{
	while (len) {
		struct qcow2_run r;

		if (qcow2_lookup(q, off, len, &r) || r.kind == QCOW2_DATA || r.kind == QCOW2_PACKED ||
		    (r.kind == QCOW2_UNALLOCATED && below(q, off)))
			return false;
		off += r.len;
		len -= r.len;
	}
	return true;
}

/* An L2 table of its own for L1 entry idx: a copy of a shared one, or an empty one. */
static int l2_new(struct qcow2 *q, uint32_t idx)
{
	uint64_t old = q->l1.e[idx] & QCOW2_OFFSET, off, got;
	uint8_t *buf;
	bool zero;
	int r = qcow2_alloc_clusters(q, 1, &off, &got, &zero);

	if (r)
		return r;
	if (old) {
		buf = qcow2_buffer(q->cluster_size);
		r = buf ? qcow2_pread(q, old, buf, q->cluster_size) : -ENOMEM;
		if (!r)
			r = qcow2_pwrite(q, off, buf, q->cluster_size);
		free(buf);
	} else {
		r = qcow2_pwrite_zeroes(q, off, q->cluster_size);
	}
	if (r) {
		qcow2_free_now(q, off >> q->cluster_bits, 1, false);
		return r;
	}
	qcow2_cache_drop(&q->l2c, off, q->cluster_size);
	qcow2_overlap_add(q, off);
	qcow2_table_set(&q->l1, idx, off | QCOW2_COPIED);
	if (old)
		qcow2_free_later(q, old >> q->cluster_bits, 1, false);
	return 0;
}

/* Does what an L1 entry names look like the place of an L2 table? */
static bool l2_sane(struct qcow2 *q, uint64_t table)
{
	const struct { uint64_t off, len; } t[] = {
		{0, q->cluster_size}, {q->l1.off, (uint64_t)q->l1.n * 8}, {q->reft.off, (uint64_t)q->reft.n * 8},
		{q->h.snapshots_off, qcow2_snapshots_bytes(q)},
	};

	for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
		if (t[i].len && table + q->cluster_size > t[i].off && table < t[i].off + t[i].len)
			return false;
	}
	return !(table & (q->cluster_size - 1)) && table >> q->cluster_bits < q->end;
}

int qcow2_l2_writable(struct qcow2 *q, uint64_t off, struct qcow2_slice **s, unsigned *i)
{
	uint64_t idx = off >> (q->cluster_bits + q->l2_bits), e;
	int r = 0;

	if (idx >= q->l1.n)
		return -EIO;
	e = q->l1.e[idx];
	if (e & QCOW2_OFFSET && !l2_sane(q, e & QCOW2_OFFSET))
		return qcow2_mark_corrupt(q, "an L2 table lies where none can be");
	if (!(e & QCOW2_COPIED) || !(e & QCOW2_OFFSET))
		r = l2_new(q, (uint32_t)idx);
	return r ? r : l2_get(q, off, s, i);
}

int qcow2_l2_existing(struct qcow2 *q, uint64_t off, struct qcow2_slice **s, unsigned *i)
{
	return l2_get(q, off, s, i);
}

void qcow2_entry_release(struct qcow2 *q, uint64_t e, bool punch)
{
	uint64_t off = e & QCOW2_OFFSET;
	uint32_t len;

	if (!(e & QCOW2_COMPRESSED)) {
		if (off)
			qcow2_free_later(q, off >> q->cluster_bits, 1, punch);
		return;
	}
	qcow2_packed_place(q, e, &off, &len);
	for (uint64_t c = off >> q->cluster_bits; c <= (off + len - 1) >> q->cluster_bits; c++)
		qcow2_free_later(q, c, 1, punch);
	pthread_mutex_lock(&q->comp_lock); /* the place may soon hold another cluster */
	q->comp_entry = 0;
	q->comp_gen++;
	pthread_mutex_unlock(&q->comp_lock);
}

/* What is beyond the end of the file reads as zeroes, but nobody can read it from there. */
static int map_data(struct qcow2 *q, const struct qcow2_run *r, struct block_extent *out)
{
	struct stat st;
	uint64_t size;

	*out = (struct block_extent){EXTENT_DATA, r->len, q->fd, r->host, 0};
	if ((r->host + r->len) >> q->cluster_bits < q->size_known)
		return 0;
	if (fstat(q->fd, &st) < 0)
		return -errno;
	size = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : UINT64_MAX;
	q->size_known = max_u64(q->size_known, size >> q->cluster_bits);
	if (r->host >= size)
		*out = (struct block_extent){EXTENT_ZERO, r->len, -1, 0, 0};
	else
		out->len = min_u64(r->len, size - r->host);
	return 0;
}

/* Compressed clusters one after the other are one extent. */
static uint64_t packed_run(struct qcow2 *q, uint64_t off, uint64_t len)
{
	uint64_t done = 0;
	struct qcow2_run r;

	while (done < len && done < 4096ull << q->cluster_bits && !qcow2_lookup(q, off + done, len - done, &r) &&
	       r.kind == QCOW2_PACKED)
		done += r.len;
	return done;
}

int qcow2_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out)
{
	struct qcow2 *q = b->state;
	struct qcow2_run r;
	int err;

	pthread_mutex_lock(&q->lock);
	err = qcow2_lookup(q, off, len, &r);
	if (!err && r.kind == QCOW2_PACKED)
		r.len = packed_run(q, off, len);
	if (!err && r.kind == QCOW2_DATA)
		err = map_data(q, &r, out);
	pthread_mutex_unlock(&q->lock);
	if (err || r.kind == QCOW2_DATA)
		return err;
	if (r.kind == QCOW2_UNALLOCATED && below(q, off)) {
		err = block_map(b->backing, off, min_u64(r.len, b->backing->size - off), out);
		out->depth++;
		return err;
	}
	*out = (struct block_extent){
		r.kind == QCOW2_PACKED ? EXTENT_ENCODED : r.kind == QCOW2_ZEROES ? EXTENT_ZERO : EXTENT_UNALLOCATED, r.len, -1, 0, 0};
	return 0;
}

/* How far [off, end) is this image's own data in one piece, by what is in memory. */
static uint64_t plain_run(struct qcow2 *q, uint64_t off, uint64_t end, uint64_t *host)
{
	uint64_t at = off;

	while (at < end) {
		uint64_t idx = at >> (q->cluster_bits + q->l2_bits), in = at >> q->cluster_bits & (BIT(q->l2_bits) - 1);
		unsigned per = qcow2_slice_entries(q);
		uint64_t table = idx < q->l1.n ? q->l1.e[idx] & QCOW2_OFFSET : 0, h;
		struct qcow2_slice *s = table ? qcow2_cache_peek(&q->l2c, table + in / per * q->l2c.slice_size) : NULL;
		struct qcow2_entry e;

		if (!s)
			break;
		e.e = qcow2_slice_entry(q, s, in & (per - 1), &e.bitmap);
		h = (e.e & QCOW2_OFFSET) + (at & (q->cluster_size - 1));
		if (!(e.e & QCOW2_COPIED) || qcow2_kind(q, e, (unsigned)((at & (q->cluster_size - 1)) >> q->sub_bits)) != QCOW2_DATA ||
		    (at > off && h != *host + (at - off)))
			break;
		if (at == off)
			*host = h;
		at = align_down(at, BIT(q->sub_bits)) + BIT(q->sub_bits);
	}
	return min_u64(at, end) - off;
}

/* Shared clusters move when they are written: only the image's own are plain. */
bool qcow2_plain(struct block *b, uint64_t off, uint64_t len, bool write, int *fd, uint64_t *host_off)
{
	struct qcow2 *q = b->state;
	bool ok;

	if (pthread_mutex_trylock(&q->lock))
		return false;
	ok = plain_run(q, off, off + len, host_off) == len && !(*host_off & QCOW2_COMPRESSED);
	/* near the end, the file may be shorter than its last cluster */
	ok = ok && (*host_off + len) >> q->cluster_bits < q->size_known;
	if (write)
		ok = ok && q->written && !q->corrupt && !qcow2_overlap(q, *host_off, len);
	if (ok && write)
		atomic_store(&q->handed_out, true);
	*fd = q->direct >= 0 ? q->direct : q->fd;
	pthread_mutex_unlock(&q->lock);
	return ok;
}
