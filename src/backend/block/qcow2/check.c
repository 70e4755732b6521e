/*
 * Consistency: counts the references to each cluster of the file and compares them with the refcounts. Each L2 table is read
 * once, in the order of the file, however many snapshots share it; memory is 2.5 bytes for each cluster of the file.
 */
#include "backend/block/qcow2/check_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINES_MAX 200u
#define CLUSTERS_MAX (UINT64_C(192) << 20) /* 480 MiB of memory */
#define L2_MAX (UINT64_C(16) << 20)        /* L1 entries of all snapshots that are looked at */
#define RESERVED UINT64_C(0x3f000000000001fe) /* of a standard L2 entry */

void check_say(struct check *k, const char *fmt, ...)
{
	char line[256];
	va_list ap;

	if (!k->out->report || k->lines > LINES_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (k->lines++ == LINES_MAX)
		snprintf(line, sizeof(line), "more is wrong, but not shown");
	k->out->report(k->out->ctx, line);
}

static void corrupt(struct check *k, const char *what, uint64_t off)
{
	k->out->corruptions++;
	check_say(k, "error: %s (%#llx)", what, (unsigned long long)off);
}

static void ref(struct check *k, uint64_t cluster, uint32_t weight)
{
	uint32_t sum = k->refs[cluster] + weight;

	k->refs[cluster] = (uint16_t)(sum > CHECK_REFS_MAX ? CHECK_REFS_MAX : sum);
}

/* Clusters that metadata of their own lie in. */
static bool ref_meta(struct check *k, uint64_t off, uint64_t bytes, const char *what)
{
	uint64_t first = off >> k->q->cluster_bits, n = qcow2_clusters(k->q, bytes);
	bool ok = true;

	if (off & (k->q->cluster_size - 1) || !range_ok(first, n, k->n)) {
		corrupt(k, what, off);
		return false;
	}
	for (uint64_t c = first; c < first + n; c++) {
		if (check_bit(k->meta, c))
			ok = false;
		check_set(k->meta, c);
		ref(k, c, 1);
	}
	if (!ok)
		corrupt(k, "two pieces of metadata in one cluster", off);
	return true;
}

bool check_block_ok(struct check *k, uint32_t idx)
{
	uint64_t off = k->q->reft.e[idx];

	return off && !(off & (k->q->cluster_size - 1)) && off >> k->q->cluster_bits < k->n;
}

static void count_blocks(struct check *k)
{
	const struct qcow2 *q = k->q;

	for (uint32_t i = 0; i < q->reft.n; i++) {
		if (!q->reft.e[i])
			continue;
		if (check_block_ok(k, i)) {
			ref_meta(k, q->reft.e[i], q->cluster_size, "a refcount block lies outside of the file");
			continue;
		}
		k->bad_blocks++;
		corrupt(k, "a refcount block lies outside of the file", q->reft.e[i]);
	}
}

static void count_bitmap_table(struct check *k, uint64_t off, uint32_t n)
{
	uint8_t buf[4096];

	if (!ref_meta(k, off, (uint64_t)n * 8, "a bitmap table lies outside of the file"))
		return;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t e;

		if (i % 512 == 0 && qcow2_pread(k->q, off + (uint64_t)i * 8, buf, sizeof(buf)))
			return;
		e = get_be64(buf + i % 512 * 8) & QCOW2_OFFSET;
		if (e)
			ref_meta(k, e, k->q->cluster_size, "a bitmap lies outside of the file");
	}
}

static void count_bitmaps(struct check *k)
{
	uint64_t size, off, end;
	uint32_t n;

	qcow2_header_bitmaps(k->q, &n, &size, &off);
	if (!n || !ref_meta(k, off, size, "the bitmap directory lies outside of the file"))
		return;
	end = off + size;
	for (uint32_t i = 0; i < n && off + 24 <= end; i++) {
		uint8_t e[24];

		if (qcow2_pread(k->q, off, e, sizeof(e)))
			return;
		count_bitmap_table(k, get_be64(e), get_be32(e + 8));
		off += align_up(24 + (uint64_t)get_be32(e + 20) + get_be16(e + 18), 8);
	}
}

/* Notes the L2 tables of an L1 table. */
static int add_l1(struct check *k, const uint64_t *e, uint32_t n, bool active)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t off = e[i] & QCOW2_OFFSET;

		if (!off)
			continue;
		if (off & (k->q->cluster_size - 1) || off >> k->q->cluster_bits >= k->n) {
			corrupt(k, "an L2 table lies outside of the file", e[i]);
			continue;
		}
		if (k->nl2 == k->cap) {
			size_t cap = k->cap ? k->cap * 2 : 1024;
			struct check_table *t = cap <= L2_MAX ? realloc(k->l2, cap * sizeof(*t)) : NULL;

			if (!t)
				return -ENOMEM;
			k->l2 = t;
			k->cap = cap;
		}
		k->l2[k->nl2++] = (struct check_table){off, 1, active};
		if (active)
			check_set(e[i] & QCOW2_COPIED ? k->copied : k->uncopied, off >> k->q->cluster_bits);
	}
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	uint64_t x = ((const struct check_table *)a)->off, y = ((const struct check_table *)b)->off;

	return x < y ? -1 : x > y;
}

static void merge_tables(struct check *k)
{
	size_t n = 0;

	if (!k->nl2)
		return;
	qsort(k->l2, k->nl2, sizeof(*k->l2), by_offset);
	for (size_t i = 1; i < k->nl2; i++) {
		if (k->l2[i].off == k->l2[n].off) {
			k->l2[n].weight++;
			k->l2[n].active |= k->l2[i].active;
		} else {
			k->l2[++n] = k->l2[i];
		}
	}
	k->nl2 = n + 1;
	for (size_t i = 0; i < k->nl2; i++) {
		uint64_t c = k->l2[i].off >> k->q->cluster_bits;

		if (check_bit(k->meta, c))
			corrupt(k, "an L2 table lies where other metadata are", k->l2[i].off);
		check_set(k->meta, c);
		ref(k, c, k->l2[i].weight);
	}
}

static int count_snapshots(struct check *k)
{
	struct qcow2 *q = k->q;
	int r = 0;

	if (q->h.nb_snapshots)
		ref_meta(k, q->h.snapshots_off, qcow2_snapshots_bytes(q), "the snapshot table lies outside of the file");
	for (uint32_t i = 0; !r && i < q->h.nb_snapshots; i++) {
		const struct qcow2_snapshot *s = &q->snapshots[i];
		uint64_t *e = NULL;

		if (!ref_meta(k, s->l1_off, (uint64_t)s->l1_size * 8, "a snapshot's L1 table lies outside of the file"))
			continue;
		r = qcow2_l1_load(q, s->l1_off, s->l1_size, &e);
		if (!r)
			r = add_l1(k, e, s->l1_size, false);
		free(e);
	}
	return r;
}

static void count_packed(struct check *k, const struct check_table *t, struct qcow2_entry e)
{
	uint64_t off, c;
	uint32_t len;

	qcow2_packed_place(k->q, e.e, &off, &len);
	if (e.e & QCOW2_COPIED || e.bitmap)
		corrupt(k, "flags of a compressed cluster", e.e);
	if ((off + len - 1) >> k->q->cluster_bits >= k->n) {
		corrupt(k, "a compressed cluster lies outside of the file", e.e);
		return;
	}
	for (c = off >> k->q->cluster_bits; c <= (off + len - 1) >> k->q->cluster_bits; c++) {
		if (check_bit(k->meta, c))
			corrupt(k, "a compressed cluster lies in metadata", e.e);
		ref(k, c, t->weight);
	}
}

static bool entry_possible(const struct qcow2 *q, struct qcow2_entry e)
{
	uint64_t alloc = e.bitmap & UINT32_MAX, zero = e.bitmap >> 32;

	if (e.e & RESERVED || (alloc & zero) || (alloc && !(e.e & QCOW2_OFFSET)))
		return false;
	return !(e.e & QCOW2_ZERO) || (q->h.version >= 3 && !q->extended);
}

static void count_entry(struct check *k, const struct check_table *t, struct qcow2_entry e)
{
	uint64_t off = e.e & QCOW2_OFFSET, c = off >> k->q->cluster_bits;

	if (e.e & QCOW2_COMPRESSED) {
		count_packed(k, t, e);
		return;
	}
	if (!entry_possible(k->q, e))
		corrupt(k, "an impossible L2 entry", e.e);
	if (!off)
		return;
	if (off & (k->q->cluster_size - 1) || c >= k->n) {
		corrupt(k, "data lie outside of the file, or between clusters", e.e);
		return;
	}
	if (check_bit(k->meta, c))
		corrupt(k, "data lie in metadata", e.e);
	ref(k, c, t->weight);
	if (t->active)
		check_set(e.e & QCOW2_COPIED ? k->copied : k->uncopied, c);
}

static void count_table(struct check *k, const struct check_table *t, const uint8_t *buf)
{
	uint32_t size = k->q->entry_size;
	uint64_t used = 0;

	for (uint32_t i = 0; i < k->q->cluster_size; i += size) {
		struct qcow2_entry e = {get_be64(buf + i), size == 16 ? get_be64(buf + i + 8) : 0};

		if (!e.e && !e.bitmap)
			continue;
		used += (e.e & (QCOW2_OFFSET | QCOW2_COMPRESSED)) != 0;
		count_entry(k, t, e);
	}
	if (t->active)
		k->out->allocated_clusters += used;
}

static int count_tables(struct check *k)
{
	struct qcow2 *q = k->q;
	uint8_t *buf = qcow2_buffer(q->cluster_size);
	int r = buf ? 0 : -ENOMEM;

	for (size_t i = 0; !r && i < k->nl2; i++) {
		if (i + 16 < k->nl2) /* ask the host for those to come */
			posix_fadvise(q->fd, (off_t)k->l2[i + 16].off, q->cluster_size, POSIX_FADV_WILLNEED);
		r = qcow2_pread(q, k->l2[i].off, buf, q->cluster_size);
		if (!r)
			count_table(k, &k->l2[i], buf);
		if (k->out->progress)
			k->out->progress(k->out->ctx, i + 1, k->nl2);
	}
	free(buf);
	return r;
}

static void compare(struct check *k, uint64_t c, uint64_t have)
{
	uint64_t want = k->refs[c];

	if (have != want && !(want == CHECK_REFS_MAX && have > want)) {
		if (have > want) {
			k->out->leaks++;
			check_say(k, "leaked cluster %llu: refcount %llu, references %llu", (unsigned long long)c,
				  (unsigned long long)have, (unsigned long long)want);
		} else {
			k->out->corruptions++;
			check_say(k, "error: cluster %llu: refcount %llu, references %llu", (unsigned long long)c,
				  (unsigned long long)have, (unsigned long long)want);
		}
	}
	if ((check_bit(k->copied, c) && have != 1) || (check_bit(k->uncopied, c) && have == 1)) {
		k->copied_wrong++;
		k->out->corruptions++;
		check_say(k, "error: cluster %llu: refcount %llu, but its COPIED flag says otherwise", (unsigned long long)c,
			  (unsigned long long)have);
	}
}

/* Most clusters are in use once: 8 at a time, all with refcount 1, one reference, and COPIED if at all. */
static bool eight_alike(const struct check *k, uint64_t c)
{
	static const uint16_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};

	return !(c & 7) && !memcmp(k->refs + c, ones, sizeof(ones)) && !k->uncopied[c / 8];
}

/* The slice of refcounts that begins with cluster c; returns the cluster after it. */
static int compare_slice(struct check *k, uint64_t *cluster)
{
	static const uint8_t ones[16] = {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1}; /* 16 bits wide, as in the file */
	uint64_t c = *cluster, end = min_u64(k->n, align_down(c, BIT(k->q->rb_bits)) + BIT(k->q->rb_bits)), per;
	struct qcow2 *q = k->q;
	struct qcow2_slice *s;
	int r;

	if (c >> q->rb_bits >= q->reft.n || !check_block_ok(k, (uint32_t)(c >> q->rb_bits))) {
		for (; c < end; c++)
			compare(k, c, 0);
		*cluster = c;
		return 0;
	}
	per = (uint64_t)q->rcc.slice_size * 8 >> q->refcount_order;
	end = min_u64(end, c + per);
	r = qcow2_cache_get(q, &q->rcc, q->reft.e[c >> q->rb_bits] + (c & (BIT(q->rb_bits) - 1)) / per * q->rcc.slice_size, &s);
	for (uint64_t i = 0; !r && c < end; i++, c++) {
		uint64_t have;

		if (q->refcount_order == 4 && end - c >= 8 && eight_alike(k, c) && !memcmp(s->data + i * 2, ones, 16)) {
			i += 7;
			c += 7;
			continue;
		}
		r = qcow2_refcount_get(q, c, &have); /* from the same slice */
		if (!r)
			compare(k, c, have);
	}
	*cluster = c;
	return r;
}

static int find(struct check *k)
{
	struct qcow2 *q = k->q;
	int r;

	ref_meta(k, 0, 1, "header");
	ref_meta(k, q->l1.off, (uint64_t)q->l1.n * 8, "the L1 table lies outside of the file");
	ref_meta(k, q->reft.off, (uint64_t)q->reft.n * 8, "the refcount table lies outside of the file");
	count_blocks(k);
	count_bitmaps(k);
	r = count_snapshots(k);
	if (!r)
		r = add_l1(k, q->l1.e, q->l1.n, true);
	if (r)
		return r;
	merge_tables(k);
	r = count_tables(k);
	for (uint64_t c = 0; !r && c < k->n;)
		r = compare_slice(k, &c);
	k->out->total_clusters = qcow2_clusters(q, q->b->size);
	return r;
}

static int check_once(struct qcow2 *q, struct block_check *out, bool repair)
{
	struct check k = {.q = q, .out = out, .n = q->end};
	int r;

	if (k.n > CLUSTERS_MAX)
		return -EFBIG;
	k.refs = calloc(k.n + 8, sizeof(*k.refs));
	k.meta = calloc(k.n / 8 + 1, 1);
	k.copied = calloc(k.n / 8 + 1, 1);
	k.uncopied = calloc(k.n / 8 + 1, 1);
	r = k.refs && k.meta && k.copied && k.uncopied ? find(&k) : -ENOMEM;
	if (!r && repair && (out->corruptions || out->leaks))
		r = check_repair(&k);
	free(k.refs);
	free(k.meta);
	free(k.copied);
	free(k.uncopied);
	free(k.l2);
	return r;
}

/* What of it a repair has fixed is found out by looking again. */
static int check_twice(struct qcow2 *q, struct block_check *out)
{
	struct block_check again = *out;
	int r = check_once(q, out, true);

	if (r || (!out->corruptions && !out->leaks))
		return r;
	again.report = NULL;
	again.errors_fixed = again.leaks_fixed = 0;
	r = check_once(q, &again, false);
	out->errors_fixed = out->corruptions > again.corruptions ? out->corruptions - again.corruptions : 0;
	out->leaks_fixed = out->leaks > again.leaks ? out->leaks - again.leaks : 0;
	out->corruptions = max_u64(out->corruptions, again.corruptions);
	out->leaks = max_u64(out->leaks, again.leaks);
	out->allocated_clusters = again.allocated_clusters;
	return r;
}

bool qcow2_check(struct block *b, bool repair, struct block_check *c, struct error *err)
{
	uint64_t flags = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
	struct qcow2 *q = b->state;
	bool sound;
	int r = 0;

	c->corruptions = c->leaks = c->errors_fixed = c->leaks_fixed = c->allocated_clusters = c->total_clusters = 0;
	if (repair && b->readonly)
		return error_set(err, "disk %s: opened read-only, it cannot be repaired", b->path);
	pthread_mutex_lock(&q->lock);
	if (!b->readonly && q->written)
		r = qcow2_commit_stable(q);
	if (!r && !b->readonly && q->written)
		r = qcow2_commit_stable(q);
	if (!r)
		r = repair ? check_twice(q, c) : check_once(q, c, false);
	sound = !r && repair && c->corruptions == c->errors_fixed;
	if (sound && q->h.incompat & flags)
		r = qcow2_header_features(q, q->h.incompat & ~flags, q->h.autoclear);
	if (sound && !r)
		q->corrupt = false;
	pthread_mutex_unlock(&q->lock);
	if (r == -EFBIG)
		return error_set(err, "disk %s: too many clusters to check", b->path);
	return !r || error_set(err, "disk %s: cannot check it: %s", b->path, strerror(-r));
}
