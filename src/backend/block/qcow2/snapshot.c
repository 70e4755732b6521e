/*
 * Internal snapshots: each has an L1 table of its own; L2 tables and data are shared by refcounts. Guest offsets behind the
 * disk's end hold the VM state of a snapshot: it comes along with the L1 table.
 */
#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Offsets in an entry of the snapshot table. */
#define S_L1_OFF 0
#define S_L1_SIZE 8
#define S_ID_LEN 12
#define S_NAME_LEN 14
#define S_DATE_S 16
#define S_DATE_NS 20
#define S_VM_STATE 32
#define S_EXTRA_LEN 36
#define S_HEAD 40u
#define S_EXTRA 24u /* of what is made here: VM state size, disk size, instruction count */

uint64_t qcow2_snapshots_bytes(const struct qcow2 *q)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; q->snapshots && i < q->h.nb_snapshots; i++)
		sum += align_up(q->snapshots[i].raw_len, 8);
	return sum;
}

static void snapshot_fini(struct qcow2_snapshot *s)
{
	free(s->raw);
	free(s->id);
	free(s->name);
}

void qcow2_snapshots_free(struct qcow2 *q)
{
	for (uint32_t i = 0; q->snapshots && i < q->h.nb_snapshots; i++)
		snapshot_fini(&q->snapshots[i]);
	free(q->snapshots);
	q->snapshots = NULL;
}

/* Fields of s->raw, which is whole. */
static bool parse_raw(struct qcow2 *q, struct qcow2_snapshot *s)
{
	const uint8_t *p = s->raw;
	uint32_t extra = get_be32(p + S_EXTRA_LEN), idlen = get_be16(p + S_ID_LEN), namelen = get_be16(p + S_NAME_LEN);

	s->l1_off = get_be64(p + S_L1_OFF);
	s->l1_size = get_be32(p + S_L1_SIZE);
	s->date_s = get_be32(p + S_DATE_S);
	s->vm_state = extra >= 8 ? get_be64(p + S_HEAD) : get_be32(p + S_VM_STATE);
	s->disk_size = extra >= 16 ? get_be64(p + S_HEAD + 8) : q->h.size;
	s->id = strndup((const char *)p + S_HEAD + extra, idlen);
	s->name = strndup((const char *)p + S_HEAD + extra + idlen, namelen);
	return s->id && s->name && (uint64_t)s->l1_size * 8 <= QCOW2_MAX_L1 && !(s->l1_off & (q->cluster_size - 1)) &&
	       s->l1_off < QCOW2_MAX_OFFSET && s->disk_size <= BIT(62);
}

/* One entry at *off, which moves on; *left: bytes that the table may still have. */
static bool load_one(struct qcow2 *q, struct qcow2_snapshot *s, uint64_t *off, uint64_t *left)
{
	uint8_t head[S_HEAD];
	uint64_t len;

	if (*left < S_HEAD || qcow2_pread(q, *off, head, S_HEAD))
		return false;
	len = (uint64_t)S_HEAD + get_be32(head + S_EXTRA_LEN) + get_be16(head + S_ID_LEN) + get_be16(head + S_NAME_LEN);
	if (len > *left)
		return false;
	s->raw = malloc(len);
	s->raw_len = (uint32_t)len;
	if (!s->raw || qcow2_pread(q, *off, s->raw, len))
		return false;
	*left -= min_u64(*left, align_up(len, 8));
	*off += align_up(len, 8);
	return parse_raw(q, s);
}

bool qcow2_snapshots_load(struct qcow2 *q, struct error *err)
{
	uint64_t off = q->h.snapshots_off, left = QCOW2_MAX_SNAPSHOT_TABLE;

	if (!q->h.nb_snapshots)
		return true;
	/* A table that the file does not hold is not worth memory. */
	if (off + (uint64_t)q->h.nb_snapshots * S_HEAD <= q->end << q->cluster_bits)
		q->snapshots = calloc(q->h.nb_snapshots, sizeof(*q->snapshots));
	for (uint32_t i = 0; q->snapshots && i < q->h.nb_snapshots; i++) {
		if (load_one(q, &q->snapshots[i], &off, &left))
			continue;
		qcow2_snapshots_free(q);
	}
	if (q->snapshots)
		return true;
	error_set(err, "disk %s: its table of snapshots is damaged", q->b->path);
	return error_hint(err, "`qemu-img check -r all` may repair it");
}

int qcow2_l1_load(struct qcow2 *q, uint64_t off, uint32_t n, uint64_t **out)
{
	uint64_t *e = calloc((size_t)n + 1, 8);
	int r = e ? qcow2_pread(q, off, e, (size_t)n * 8) : -ENOMEM;

	for (uint32_t i = 0; !r && i < n; i++)
		e[i] = __builtin_bswap64(e[i]);
	*out = e;
	return r;
}

unsigned qcow2_snapshot_list(struct block *b, struct block_snapshot *out, unsigned n)
{
	const struct qcow2 *q = b->state;

	for (unsigned i = 0; i < n && i < q->h.nb_snapshots; i++) {
		const struct qcow2_snapshot *s = &q->snapshots[i];

		out[i] = (struct block_snapshot){.size = s->disk_size, .date_s = s->date_s, .vm_state = s->vm_state};
		snprintf(out[i].id, sizeof(out[i].id), "%s", s->id);
		snprintf(out[i].name, sizeof(out[i].name), "%s", s->name);
	}
	return q->h.nb_snapshots;
}

/* Host clusters that lie side by side get their refcounts together. */
struct run {
	uint64_t first, n;
	int delta;
};

static int run_end(struct qcow2 *q, struct run *r)
{
	int err = 0;

	if (r->n && r->delta > 0)
		err = qcow2_refcount_add(q, r->first, r->n, r->delta);
	else if (r->n)
		qcow2_free_now(q, r->first, r->n, true);
	r->n = 0;
	return err ? err : q->corrupt ? -EIO : 0;
}

static int run_add(struct qcow2 *q, struct run *r, uint64_t cluster)
{
	int err = 0;

	if (r->n && cluster != r->first + r->n)
		err = run_end(q, r);
	if (!r->n)
		r->first = cluster;
	r->n++;
	return err;
}

static int count_entry(struct qcow2 *q, struct run *r, uint64_t e)
{
	uint64_t off = e & QCOW2_OFFSET;
	uint32_t len;
	int err = 0;

	if (!(e & QCOW2_COMPRESSED))
		return off ? run_add(q, r, off >> q->cluster_bits) : 0;
	qcow2_packed_place(q, e, &off, &len);
	for (uint64_t c = off >> q->cluster_bits; !err && c <= (off + len - 1) >> q->cluster_bits; c++) {
		err = run_end(q, r); /* neighbours share host clusters */
		if (!err)
			err = run_add(q, r, c);
	}
	return err;
}

/* The entries of one L2 table; with `clear`, COPIED flags go. */
static int count_l2(struct qcow2 *q, uint64_t table, struct run *r, bool clear)
{
	int err = 0;

	for (uint64_t at = table; !err && at < table + q->cluster_size; at += q->l2c.slice_size) {
		struct qcow2_slice *s;

		err = qcow2_cache_get(q, &q->l2c, at, &s);
		for (unsigned i = 0; !err && i < qcow2_slice_entries(q); i++) {
			struct qcow2_entry e;

			e.e = qcow2_slice_entry(q, s, i, &e.bitmap);
			if (!e.e)
				continue;
			err = count_entry(q, r, e.e);
			if (clear && e.e & QCOW2_COPIED)
				qcow2_entry_set(q, s, i, (struct qcow2_entry){e.e & ~QCOW2_COPIED, e.bitmap});
		}
		/* Refcounts before flags: the next slice may need a commit. */
		err = err ? err : run_end(q, r);
	}
	return err;
}

static bool table_sane(const struct qcow2 *q, uint64_t table)
{
	return !(table & (q->cluster_size - 1)) && table >> q->cluster_bits < q->end;
}

/* Adds delta to the refcounts of all that an L1 table refers to. */
static int count_l1(struct qcow2 *q, const uint64_t *l1, uint32_t n, int delta, bool clear)
{
	struct run r = {.delta = delta};
	int err = 0;

	for (uint32_t k = 0; !err && k < n; k++) {
		uint64_t table = l1[k] & QCOW2_OFFSET;

		if (!table)
			continue;
		if (!table_sane(q, table))
			return qcow2_mark_corrupt(q, "an L2 table lies outside of the file");
		err = count_l2(q, table, &r, clear);
		if (!err)
			err = run_add(q, &r, table >> q->cluster_bits);
		if (!err)
			err = run_end(q, &r);
		if (delta < 0)
			qcow2_cache_drop(&q->l2c, table, q->cluster_size); /* clean: nothing is lost if it stays in use */
	}
	return err;
}

/* COPIED means: refcount 1. */
static int copied_flag(struct qcow2 *q, uint64_t *e)
{
	uint64_t refs;
	int r = qcow2_refcount_get(q, (*e & QCOW2_OFFSET) >> q->cluster_bits, &refs);

	*e = refs == 1 ? *e | QCOW2_COPIED : *e & ~QCOW2_COPIED;
	return r;
}

static int copied_flags_l2(struct qcow2 *q, uint64_t table)
{
	int r = 0;

	for (uint64_t at = table; !r && at < table + q->cluster_size; at += q->l2c.slice_size) {
		struct qcow2_slice *s;

		r = qcow2_cache_get(q, &q->l2c, at, &s);
		for (unsigned i = 0; !r && i < qcow2_slice_entries(q); i++) {
			uint64_t bitmap, e = qcow2_slice_entry(q, s, i, &bitmap), now = e;

			if (e & QCOW2_COMPRESSED || !(e & QCOW2_OFFSET))
				continue;
			r = copied_flag(q, &now);
			if (!r && now != e)
				qcow2_entry_set(q, s, i, (struct qcow2_entry){now, bitmap});
		}
	}
	return r;
}

static int copied_flags(struct qcow2 *q)
{
	int r = 0;

	for (uint32_t k = 0; !r && k < q->l1.n; k++) {
		uint64_t e = q->l1.e[k];

		if (!(e & QCOW2_OFFSET))
			continue;
		if (!table_sane(q, e & QCOW2_OFFSET))
			return qcow2_mark_corrupt(q, "an L2 table lies outside of the file");
		r = copied_flag(q, &e);
		if (!r && e != q->l1.e[k])
			qcow2_table_set(&q->l1, k, e);
		if (!r)
			r = copied_flags_l2(q, e & QCOW2_OFFSET);
	}
	return r;
}

/* Between these, refcounts and COPIED flags may disagree. */
static int begin(struct qcow2 *q)
{
	int r = qcow2_write_begin(q);

	if (!r)
		r = qcow2_commit_stable(q);
	if (!r)
		r = qcow2_commit_stable(q); /* refcounts that dropped */
	if (!r && q->h.version >= 3)
		r = qcow2_header_features(q, q->h.incompat | QCOW2_INCOMPAT_DIRTY, q->h.autoclear);
	pthread_mutex_lock(&q->comp_lock);
	q->comp_entry = 0;
	q->comp_gen++;
	pthread_mutex_unlock(&q->comp_lock);
	return r;
}

static int finish(struct qcow2 *q)
{
	int r = qcow2_commit_stable(q);

	if (!r)
		r = qcow2_commit_stable(q);
	if (!r && q->h.version >= 3)
		r = qcow2_header_features(q, q->h.incompat & ~QCOW2_INCOMPAT_DIRTY, q->h.autoclear);
	return r;
}

static struct qcow2_snapshot *find(struct qcow2 *q, const char *name)
{
	for (uint32_t i = 0; i < q->h.nb_snapshots; i++) {
		if (!strcmp(q->snapshots[i].name, name))
			return &q->snapshots[i];
	}
	for (uint32_t i = 0; i < q->h.nb_snapshots; i++) {
		if (!strcmp(q->snapshots[i].id, name))
			return &q->snapshots[i];
	}
	return NULL;
}

/* The table anew, in new clusters, then the header's word for it. s[0..n) becomes q's. */
static int switch_table(struct qcow2 *q, struct qcow2_snapshot *s, uint32_t n)
{
	uint64_t len = 0, off = 0, old = q->h.snapshots_off, old_len = qcow2_snapshots_bytes(q), at = 0;
	uint8_t *buf;
	int r = 0;

	for (uint32_t i = 0; i < n; i++)
		len += align_up(s[i].raw_len, 8);
	if (len > QCOW2_MAX_SNAPSHOT_TABLE)
		return -EFBIG;
	buf = calloc(1, len + 1);
	if (!buf)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		memcpy(buf + at, s[i].raw, s[i].raw_len);
		at += align_up(s[i].raw_len, 8);
	}
	if (n)
		r = qcow2_alloc_exact(q, qcow2_clusters(q, len), &off);
	if (!r)
		r = qcow2_pwrite(q, off, buf, len);
	free(buf);
	if (!r)
		r = qcow2_commit_stable(q);
	if (!r)
		r = qcow2_header_snapshots(q, off, n);
	if (r)
		return r;
	free(q->snapshots);
	q->snapshots = s;
	if (old_len)
		qcow2_free_later(q, old >> q->cluster_bits, qcow2_clusters(q, old_len), false);
	return qcow2_commit_stable(q);
}

static bool make_entry(struct qcow2 *q, struct qcow2_snapshot *s, const char *name, uint64_t l1_off)
{
	unsigned long last = 0;
	struct timespec now;
	char id[24];

	for (uint32_t i = 0; i < q->h.nb_snapshots; i++) {
		unsigned long v = strtoul(q->snapshots[i].id, NULL, 10);

		last = v > last ? v : last;
	}
	snprintf(id, sizeof(id), "%lu", last + 1);
	clock_gettime(CLOCK_REALTIME, &now);
	s->raw_len = (uint32_t)(S_HEAD + S_EXTRA + strlen(id) + strlen(name));
	s->raw = calloc(1, s->raw_len);
	if (!s->raw)
		return false;
	put_be64(s->raw + S_L1_OFF, l1_off);
	put_be32(s->raw + S_L1_SIZE, q->l1.n);
	put_be16(s->raw + S_ID_LEN, (uint16_t)strlen(id));
	put_be16(s->raw + S_NAME_LEN, (uint16_t)strlen(name));
	put_be32(s->raw + S_DATE_S, (uint32_t)now.tv_sec);
	put_be32(s->raw + S_DATE_NS, (uint32_t)now.tv_nsec);
	put_be32(s->raw + S_EXTRA_LEN, S_EXTRA);
	put_be64(s->raw + S_HEAD + 8, q->b->size);
	put_be64(s->raw + S_HEAD + 16, UINT64_MAX); /* no instruction count */
	memcpy(s->raw + S_HEAD + S_EXTRA, id, strlen(id));
	memcpy(s->raw + S_HEAD + S_EXTRA + strlen(id), name, strlen(name));
	return parse_raw(q, s);
}

/* Would one more reference be too many for the width of the refcounts? */
static int room_for_one_more(struct qcow2 *q)
{
	uint64_t max = qcow2_refcount_max(q), refs;
	int r = 0;

	for (uint32_t i = 0; max == 1 && i < q->l1.n; i++) {
		if (q->l1.e[i] & QCOW2_OFFSET)
			return -EOVERFLOW;
	}
	for (uint64_t c = 1; max > 1 && q->refcount_order < 4 && !r && c < q->end; c++) {
		r = qcow2_refcount_get(q, c, &refs);
		if (!r && refs >= max)
			return -EOVERFLOW;
	}
	return r;
}

/* The active L1 table, copied for a snapshot; COPIED flags are not for snapshots. */
static int copy_l1(struct qcow2 *q, uint64_t *off)
{
	struct qcow2_table t;
	int r = qcow2_alloc_exact(q, max_u64(qcow2_clusters(q, (uint64_t)q->l1.n * 8), 1), off);

	if (r)
		return r;
	if (!qcow2_table_init(&t, *off, q->l1.n))
		r = -ENOMEM;
	for (uint32_t i = 0; !r && i < q->l1.n; i++)
		qcow2_table_set(&t, i, q->l1.e[i] & ~QCOW2_COPIED);
	if (!r)
		r = qcow2_table_write(q, &t);
	qcow2_table_fini(&t);
	return r;
}

static int create_locked(struct qcow2 *q, const char *name)
{
	uint32_t n = q->h.nb_snapshots;
	struct qcow2_snapshot *s = calloc((size_t)n + 1, sizeof(*s));
	uint64_t l1_off = 0;
	int r = s ? room_for_one_more(q) : -ENOMEM;

	if (!r)
		r = begin(q);
	if (!r)
		r = copy_l1(q, &l1_off);
	if (!r)
		r = count_l1(q, q->l1.e, q->l1.n, 1, true);
	for (uint32_t i = 0; !r && i < q->l1.n; i++) {
		if (q->l1.e[i] & QCOW2_COPIED)
			qcow2_table_set(&q->l1, i, q->l1.e[i] & ~QCOW2_COPIED);
	}
	if (!r && n)
		memcpy(s, q->snapshots, n * sizeof(*s));
	if (!r && !make_entry(q, &s[n], name, l1_off))
		r = -ENOMEM;
	if (!r)
		r = switch_table(q, s, n + 1);
	if (q->snapshots != s) {
		if (s)
			snapshot_fini(&s[n]);
		free(s);
	}
	return r ? r : finish(q);
}

static bool result(struct block *b, const char *what, const char *name, int r, struct error *err)
{
	if (!r)
		return true;
	error_set(err, "disk %s: cannot %s snapshot '%.128s': %s", b->path, what, name,
		  r == -EOVERFLOW ? "the image's refcounts are too narrow" : strerror(-r));
	return r == -EOVERFLOW ? error_hint(err, "convert the image to one with refcount_bits=16") : false;
}

bool qcow2_snapshot_create(struct block *b, const char *name, struct error *err)
{
	struct qcow2 *q = b->state;
	int r;

	if (!name[0] || strlen(name) > 255)
		return error_set(err, "disk %s: the name of a snapshot has 1 to 255 bytes", b->path);
	if (find(q, name))
		return error_set(err, "disk %s: there is a snapshot '%.128s' already", b->path, name);
	if (q->h.nb_snapshots >= QCOW2_MAX_SNAPSHOTS)
		return error_set(err, "disk %s: it has %u snapshots, more cannot be", b->path, q->h.nb_snapshots);
	pthread_mutex_lock(&q->lock);
	r = create_locked(q, name);
	pthread_mutex_unlock(&q->lock);
	return result(b, "create", name, r, err);
}

static struct qcow2_snapshot *find_or_error(struct block *b, const char *name, struct error *err)
{
	struct qcow2_snapshot *s = find(b->state, name);

	if (s)
		return s;
	error_set(err, "disk %s: there is no snapshot '%.128s'", b->path, name);
	error_hint(err, "`doppel disk snapshot list` shows what there is");
	return NULL;
}

static int apply_locked(struct qcow2 *q, const struct qcow2_snapshot *s)
{
	uint64_t cover = BIT(q->cluster_bits + q->l2_bits), *l1 = NULL, *old = NULL;
	uint32_t need = (uint32_t)((s->disk_size + cover - 1) / cover), n = s->l1_size > need ? s->l1_size : need, old_n = q->l1.n;
	int r = (uint64_t)n * 8 > QCOW2_MAX_L1 || (s->disk_size + cover - 1) / cover > QCOW2_MAX_L1 ? -EFBIG : begin(q);

	if (!r)
		r = qcow2_l1_load(q, s->l1_off, s->l1_size, &l1);
	if (!r) {
		uint64_t *bigger = realloc(l1, ((size_t)n + 1) * 8);

		old = malloc(((size_t)old_n + 1) * 8);
		l1 = bigger ? bigger : l1;
		r = bigger && old ? 0 : -ENOMEM;
	}
	if (!r) {
		memset(l1 + s->l1_size, 0, ((size_t)n - s->l1_size) * 8);
		memcpy(old, q->l1.e, (size_t)old_n * 8);
		r = count_l1(q, l1, s->l1_size, 1, false);
	}
	for (uint32_t i = 0; !r && i < n; i++)
		l1[i] &= ~QCOW2_COPIED;
	if (!r)
		r = qcow2_l1_switch(q, s->disk_size, l1, n);
	if (!r)
		q->b->size = s->disk_size;
	if (!r)
		r = count_l1(q, old, old_n, -1, false);
	free(l1);
	free(old);
	if (!r)
		r = copied_flags(q);
	return r ? r : finish(q);
}

bool qcow2_snapshot_apply(struct block *b, const char *name, struct error *err)
{
	struct qcow2_snapshot *s = find_or_error(b, name, err);
	struct qcow2 *q = b->state;
	int r;

	if (!s)
		return false;
	pthread_mutex_lock(&q->lock);
	r = apply_locked(q, s);
	pthread_mutex_unlock(&q->lock);
	return result(b, "apply", name, r, err);
}

static int delete_locked(struct qcow2 *q, uint32_t k)
{
	struct qcow2_snapshot gone = q->snapshots[k], *s = calloc(q->h.nb_snapshots, sizeof(*s));
	uint64_t *l1 = NULL;
	int r = s ? begin(q) : -ENOMEM;

	if (!r)
		r = qcow2_l1_load(q, gone.l1_off, gone.l1_size, &l1);
	if (!r) {
		memcpy(s, q->snapshots, k * sizeof(*s));
		memcpy(s + k, q->snapshots + k + 1, (q->h.nb_snapshots - k - 1) * sizeof(*s));
		r = switch_table(q, s, q->h.nb_snapshots - 1);
	}
	if (q->snapshots != s) {
		free(s);
		free(l1);
		return r;
	}
	if (!r)
		r = count_l1(q, l1, gone.l1_size, -1, false);
	if (!r)
		qcow2_free_now(q, gone.l1_off >> q->cluster_bits, max_u64(qcow2_clusters(q, (uint64_t)gone.l1_size * 8), 1), true);
	free(l1);
	snapshot_fini(&gone);
	if (!r)
		r = copied_flags(q);
	return r ? r : finish(q);
}

bool qcow2_snapshot_delete(struct block *b, const char *name, struct error *err)
{
	struct qcow2_snapshot *s = find_or_error(b, name, err);
	struct qcow2 *q = b->state;
	int r;

	if (!s)
		return false;
	pthread_mutex_lock(&q->lock);
	r = delete_locked(q, (uint32_t)(s - q->snapshots));
	pthread_mutex_unlock(&q->lock);
	return result(b, "delete", name, r, err);
}
