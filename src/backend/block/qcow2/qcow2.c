#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "base/log.h"

/* What tables may take of memory; slices are made when they are needed. */
#define L2_CACHE (32 * MIB)
#define REFCOUNT_CACHE (8 * MIB)
#define FILTER_WORDS (1u << 14)

static bool no_memory(const char *path, struct error *err) { return error_set(err, "disk %s: out of memory", path); }

static bool init(struct qcow2 *q, struct error *err)
{
	uint32_t slice = q->cluster_size < QCOW2_SLICE ? q->cluster_size : QCOW2_SLICE;

	q->filter = calloc(FILTER_WORDS, 8);
	if (!q->filter || !qcow2_cache_init(&q->l2c, slice, L2_CACHE) || !qcow2_cache_init(&q->rcc, slice, REFCOUNT_CACHE) ||
	    !qcow2_table_init(&q->l1, q->h.l1_off, q->h.l1_size) ||
	    !qcow2_table_init(&q->reft, q->h.reft_off, q->h.reft_clusters << (q->cluster_bits - 3)))
		return no_memory(q->b->path, err);
	return true;
}

static bool load_tables(struct qcow2 *q, struct error *err)
{
	int r = qcow2_table_load(q, &q->l1);

	if (!r)
		r = qcow2_table_load(q, &q->reft);
	if (r)
		return error_set(err, "disk %s: cannot read its tables: %s", q->b->path, strerror(-r));
	for (uint32_t i = 0; i < q->l1.n; i++) {
		if (q->l1.e[i] & QCOW2_OFFSET)
			qcow2_overlap_add(q, q->l1.e[i] & QCOW2_OFFSET);
	}
	for (uint32_t i = 0; i < q->reft.n; i++) {
		q->reft.e[i] &= ~UINT64_C(511);
		if (q->reft.e[i])
			qcow2_overlap_add(q, q->reft.e[i]);
	}
	return true;
}

static bool find_end(struct qcow2 *q, struct error *err)
{
	struct stat st;
	uint64_t size;

	if (fstat(q->fd, &st) < 0)
		return error_set(err, "disk %s: %s", q->b->path, strerror(errno));
	size = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(q->fd, BLKGETSIZE64, &size) < 0)
		return error_set(err, "disk %s: no size: %s", q->b->path, strerror(errno));
	q->end = q->virgin = qcow2_clusters(q, size);
	q->size_known = size >> q->cluster_bits;
	if (S_ISBLK(st.st_mode))
		q->virgin = UINT64_MAX;
	q->hint = 1;
	if (q->h.l1_off + (uint64_t)q->h.l1_size * 8 <= q->end << q->cluster_bits &&
	    q->h.reft_off >> q->cluster_bits < q->end)
		return true;
	error_set(err, "disk %s: its tables lie behind its end", q->b->path);
	return error_hint(err, "it was cut short: get a whole copy of it");
}

static bool open_file(struct block *b, struct qcow2 *q, const struct block_options *o, struct error *err)
{
	q->fd = block_file_open(o->path, o, !b->readonly, err);
	if (q->fd < 0 || !qcow2_header_read(q, o, err))
		return false;
	/* Smaller clusters share pages with metadata. */
	if (o->cache == BLOCK_CACHE_NONE && q->cluster_size >= PAGE_SIZE)
		q->direct = block_file_direct(q->fd, !b->readonly, &q->align);
	b->plain_align = q->direct >= 0 ? q->align : 0;
	if (o->cache != BLOCK_CACHE_NONE || q->cluster_size < PAGE_SIZE || q->direct >= 0)
		return true;
	error_set(err, "disk %s: its file system has no direct I/O", o->path);
	return error_hint(err, "leave cache=none away");
}

/* What a crash of a program that updates refcounts lazily left behind. */
static bool repair_dirty(struct block *b, struct error *err)
{
	struct block_check c = {0};

	log_info("disk %s: it was not closed; refcounts are repaired", b->path);
	return qcow2_check(b, true, &c, err);
}

static bool refuse_damage(struct block *b, const struct block_options *o, struct error *err)
{
	struct qcow2 *q = b->state;

	q->corrupt = q->h.incompat & QCOW2_INCOMPAT_CORRUPT;
	if (b->readonly || o->repair)
		return true;
	if (q->corrupt) {
		error_set(err, "disk %s: the image is marked corrupt and cannot be written", o->path);
		return error_hint(err, "`doppel disk check --repair` repairs it; read-only (,ro) it can be opened");
	}
	return !(q->h.incompat & QCOW2_INCOMPAT_DIRTY) || repair_dirty(b, err);
}

static bool qcow2_open(struct block *b, const struct block_options *o, struct error *err)
{
	struct qcow2 *q = calloc(1, sizeof(*q));

	if (!q)
		return no_memory(o->path, err);
	b->state = q;
	q->b = b;
	q->fd = q->direct = -1;
	q->align = 1;
	q->nosync = o->cache == BLOCK_CACHE_UNSAFE;
	q->ios.next = q->ios.prev = &q->ios;
	pthread_mutex_init(&q->lock, NULL);
	pthread_mutex_init(&q->rmw_lock, NULL);
	pthread_mutex_init(&q->comp_lock, NULL);
	pthread_cond_init(&q->cond, NULL);
	if (!open_file(b, q, o, err) || !find_end(q, err) || !init(q, err) || !load_tables(q, err) ||
	    !qcow2_snapshots_load(q, err))
		return false;
	b->size = q->h.size;
	if (q->backing_name) {
		b->backing = block_open_backing(o, q->backing_name, q->backing_format, err);
		if (!b->backing)
			return false;
	}
	return refuse_damage(b, o, err);
}

/* Refcounts that drop only now are written too. */
static void last_commit(struct qcow2 *q)
{
	int r;

	pthread_mutex_lock(&q->lock);
	r = qcow2_commit_stable(q);
	if (!r)
		r = qcow2_commit(q);
	pthread_mutex_unlock(&q->lock);
	if (r)
		log_error("disk %s: closing: %s; what was not flushed may be lost", q->b->path, strerror(-r));
}

static void qcow2_close(struct block *b)
{
	struct qcow2 *q = b->state;

	if (!q)
		return;
	if (!b->readonly && q->written)
		last_commit(q);
	if (q->direct >= 0)
		close(q->direct);
	if (q->fd >= 0)
		close(q->fd);
	qcow2_snapshots_free(q);
	qcow2_codecs_free(q);
	if (q->l2c.buckets)
		qcow2_cache_fini(&q->l2c);
	if (q->rcc.buckets)
		qcow2_cache_fini(&q->rcc);
	qcow2_table_fini(&q->l1);
	qcow2_table_fini(&q->reft);
	pthread_mutex_destroy(&q->lock);
	pthread_mutex_destroy(&q->rmw_lock);
	pthread_mutex_destroy(&q->comp_lock);
	pthread_cond_destroy(&q->cond);
	free(q->filter);
	free(q->frees);
	free(q->comp_data);
	free(q->backing_name);
	free(q->backing_format);
	free(q);
	b->state = NULL;
}

static void qcow2_info(struct block *b, struct block_info *out)
{
	const struct qcow2 *q = b->state;
	struct stat st;

	out->cluster_size = q->cluster_size;
	out->backing = q->backing_name;
	out->backing_format = q->backing_format;
	out->dirty = q->h.incompat & QCOW2_INCOMPAT_DIRTY;
	out->corrupt = q->corrupt;
	out->nsnapshots = q->h.nb_snapshots;
	if (fstat(q->fd, &st) == 0)
		out->allocated = (uint64_t)st.st_blocks * 512;
}

static bool qcow2_probe(const uint8_t *head, size_t len)
{
	return len >= 8 && get_be32(head) == QCOW2_MAGIC && (get_be32(head + 4) == 2 || get_be32(head + 4) == 3);
}

static const char *const qcow2_suffixes[] = {".qcow2", NULL};

const struct block_format block_qcow2 = {
	.name = "qcow2",
	.suffixes = qcow2_suffixes,
	.probe = qcow2_probe,
	.open = qcow2_open,
	.close = qcow2_close,
	.create = qcow2_create,
	.read = qcow2_read,
	.write = qcow2_write,
	.flush = qcow2_flush,
	.discard = qcow2_discard,
	.write_zeroes = qcow2_write_zeroes,
	.map = qcow2_map,
	.plain = qcow2_plain,
	.write_compressed = qcow2_write_compressed,
	.resize = qcow2_resize,
	.check = qcow2_check,
	.info = qcow2_info,
	.snapshot_list = qcow2_snapshot_list,
	.snapshot_create = qcow2_snapshot_create,
	.snapshot_apply = qcow2_snapshot_apply,
	.snapshot_delete = qcow2_snapshot_delete,
};
