#include "backend/block/qcow2/qcow2_int.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Offsets of header fields. */
#define H_VERSION 4
#define H_BACKING_OFF 8
#define H_BACKING_LEN 16
#define H_CLUSTER_BITS 20
#define H_SIZE 24
#define H_CRYPT 32
#define H_L1_SIZE 36
#define H_L1_OFF 40
#define H_REFT_OFF 48
#define H_REFT_CLUSTERS 56
#define H_NB_SNAPSHOTS 60
#define H_SNAPSHOTS_OFF 64
#define H_INCOMPAT 72
#define H_COMPAT 80
#define H_AUTOCLEAR 88
#define H_REFCOUNT_ORDER 96
#define H_HEADER_LEN 100
#define H_COMPRESSION 104
#define H_V2_LEN 72u
#define H_V3_LEN 104u
#define EXT_MAX 64 /* extensions looked at */

static void parse(struct qcow2_header *h, const uint8_t *p)
{
	*h = (struct qcow2_header){
		.version = get_be32(p + H_VERSION), .backing_off = get_be64(p + H_BACKING_OFF),
		.backing_len = get_be32(p + H_BACKING_LEN), .cluster_bits = get_be32(p + H_CLUSTER_BITS),
		.size = get_be64(p + H_SIZE), .crypt = get_be32(p + H_CRYPT), .l1_size = get_be32(p + H_L1_SIZE),
		.l1_off = get_be64(p + H_L1_OFF), .reft_off = get_be64(p + H_REFT_OFF),
		.reft_clusters = get_be32(p + H_REFT_CLUSTERS), .nb_snapshots = get_be32(p + H_NB_SNAPSHOTS),
		.snapshots_off = get_be64(p + H_SNAPSHOTS_OFF), .refcount_order = 4, .header_len = H_V2_LEN,
	};
	if (h->version < 3)
		return;
	h->incompat = get_be64(p + H_INCOMPAT);
	h->compat = get_be64(p + H_COMPAT);
	h->autoclear = get_be64(p + H_AUTOCLEAR);
	h->refcount_order = get_be32(p + H_REFCOUNT_ORDER);
	h->header_len = get_be32(p + H_HEADER_LEN);
	h->compression = h->header_len > H_COMPRESSION ? p[H_COMPRESSION] : 0;
}

static bool bad(const struct block_options *o, struct error *err, const char *what)
{
	error_set(err, "disk %s: not a usable qcow2 image: %s", o->path, what);
	return error_hint(err, "is it complete? A copy that was cut short or a download that failed looks like this");
}

static bool table_ok(const struct qcow2_header *h, uint64_t off, uint64_t bytes)
{
	return off && !(off & ((UINT64_C(1) << h->cluster_bits) - 1)) && range_ok(off, bytes, QCOW2_MAX_OFFSET);
}

static bool check_fields(const struct qcow2_header *h, const struct block_options *o, struct error *err)
{
	uint64_t cs, l2_cover;

	if (h->version != 2 && h->version != 3) {
		error_set(err, "disk %s: qcow version %u: only 2 and 3 are known", o->path, h->version);
		return error_hint(err, "`qemu-img convert -O qcow2` makes a version 3 image of it");
	}
	if (h->cluster_bits < 9 || h->cluster_bits > 21)
		return bad(o, err, "cluster size is not 512 bytes to 2 MiB");
	cs = UINT64_C(1) << h->cluster_bits;
	if (h->version >= 3 && (h->header_len < H_V3_LEN || h->header_len > cs))
		return bad(o, err, "header length");
	if (h->refcount_order > 6)
		return bad(o, err, "width of refcounts");
	if (h->size > BIT(62))
		return bad(o, err, "its size is impossible");
	if (h->reft_clusters == 0 || (uint64_t)h->reft_clusters << h->cluster_bits > QCOW2_MAX_REFTABLE ||
	    !table_ok(h, h->reft_off, (uint64_t)h->reft_clusters << h->cluster_bits))
		return bad(o, err, "place or size of its refcount table");
	if ((uint64_t)h->l1_size * 8 > QCOW2_MAX_L1 || (h->l1_size && !table_ok(h, h->l1_off, (uint64_t)h->l1_size * 8)))
		return bad(o, err, "place or size of its L1 table");
	l2_cover = cs * (cs / (h->incompat & QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8));
	if (h->size / l2_cover + (h->size % l2_cover != 0) > h->l1_size)
		return bad(o, err, "its L1 table is too short for its size");
	if (h->nb_snapshots > QCOW2_MAX_SNAPSHOTS ||
	    (h->nb_snapshots && !table_ok(h, h->snapshots_off, (uint64_t)h->nb_snapshots * 40)))
		return bad(o, err, "place or size of its snapshot table");
	if (h->backing_off && (h->backing_len > 1023 || !range_ok(h->backing_off, h->backing_len, cs)))
		return bad(o, err, "place or length of its backing file's name");
	return true;
}

/* Calls f for each header extension; stops when it returns true. */
static bool each_extension(struct qcow2 *q, bool (*f)(struct qcow2 *q, uint32_t type, uint64_t off, uint32_t len, void *ctx),
			   void *ctx)
{
	uint64_t off = q->h.header_len, end = q->cluster_size;

	if (q->h.backing_off && q->h.backing_off > off)
		end = min_u64(end, q->h.backing_off);
	for (unsigned i = 0; i < EXT_MAX && off + 8 <= end; i++) {
		uint8_t head[8];
		uint32_t type, len;

		if (qcow2_pread(q, off, head, 8))
			return false;
		type = get_be32(head);
		len = get_be32(head + 4);
		off += 8;
		if (type == QCOW2_EXT_END || len > end - off)
			return false;
		if (f(q, type, off, len, ctx))
			return true;
		off += align_up(len, 8);
	}
	return false;
}

struct feature {
	uint64_t unknown;
	char name[47];
};

/* The name that the image gives an unknown incompatible feature: entries are type, bit, 46 bytes of name. */
static bool feature_name(struct qcow2 *q, uint32_t type, uint64_t off, uint32_t len, void *ctx)
{
	struct feature *f = ctx;
	uint8_t e[48];

	if (type != QCOW2_EXT_FEATURES)
		return false;
	for (uint32_t i = 0; i + 48 <= len && i < 48 * 256; i += 48) {
		if (qcow2_pread(q, off + i, e, 48))
			return false;
		if (e[0] || e[1] > 63 || !(f->unknown & BIT(e[1])))
			continue;
		for (unsigned k = 0; k < 46 && e[2 + k]; k++)
			f->name[k] = isprint(e[2 + k]) ? (char)e[2 + k] : '?';
		return true;
	}
	return false;
}

static bool check_features(struct qcow2 *q, const struct block_options *o, struct error *err)
{
	struct qcow2_header *h = &q->h;
	struct feature f = {.unknown = h->incompat & ~QCOW2_INCOMPAT_KNOWN};

	if (f.unknown) {
		each_extension(q, feature_name, &f);
		error_set(err, "disk %s: this image uses a feature that is not known here: %s (incompatible feature bits %#llx)", o->path,
			  f.name[0] ? f.name : "it has no name", (unsigned long long)f.unknown);
		return error_hint(err, "convert it with the program that made it, without this feature");
	}
	if (h->incompat & QCOW2_INCOMPAT_DATA_FILE) {
		error_set(err, "disk %s: its data are in another file (data_file), which is not supported", o->path);
		return error_hint(err, "`qemu-img convert -O qcow2` makes one file of both");
	}
	if (h->crypt) {
		error_set(err, "disk %s: the image is encrypted, which is not supported", o->path);
		return error_hint(err, "decrypt it with `qemu-img convert --object secret,...`");
	}
	if (h->compression > 1 || (h->compression && !(h->incompat & QCOW2_INCOMPAT_COMPRESSION)))
		return bad(o, err, "its kind of compression is not known");
	if (h->incompat & QCOW2_INCOMPAT_EXTENDED_L2 && h->cluster_bits < 14)
		return bad(o, err, "extended L2 entries need clusters of 16 KiB or more");
	return true;
}

static bool backing_format(struct qcow2 *q, uint32_t type, uint64_t off, uint32_t len, void *ctx)
{
	char name[64] = "";

	if (type != QCOW2_EXT_BACKING_FORMAT || len == 0 || len >= sizeof(name) || qcow2_pread(q, off, name, len))
		return false;
	q->backing_format = strdup(name);
	return true;
}

static bool read_backing_name(struct qcow2 *q)
{
	if (!q->h.backing_off || !q->h.backing_len)
		return true;
	q->backing_name = calloc(1, q->h.backing_len + 1);
	if (!q->backing_name || qcow2_pread(q, q->h.backing_off, q->backing_name, q->h.backing_len))
		return false;
	each_extension(q, backing_format, NULL);
	return true;
}

bool qcow2_header_read(struct qcow2 *q, const struct block_options *o, struct error *err)
{
	uint8_t p[H_COMPRESSION + 8];
	int r = qcow2_pread(q, 0, p, sizeof(p));

	if (r) {
		error_set(err, "disk %s: cannot read it: %s", o->path, strerror(-r));
		return false;
	}
	if (get_be32(p) != QCOW2_MAGIC) {
		error_set(err, "disk %s: not a qcow2 image", o->path);
		return error_hint(err, "name its format, for example format=raw");
	}
	parse(&q->h, p);
	if (!check_fields(&q->h, o, err))
		return false;
	q->cluster_bits = q->h.cluster_bits;
	q->cluster_size = 1u << q->cluster_bits;
	q->extended = q->h.incompat & QCOW2_INCOMPAT_EXTENDED_L2;
	q->entry_size = q->extended ? 16 : 8;
	q->l2_bits = q->cluster_bits - (q->extended ? 4 : 3);
	q->sub_bits = q->extended ? q->cluster_bits - 5 : q->cluster_bits;
	q->refcount_order = q->h.refcount_order;
	q->rb_bits = q->cluster_bits + 3 - q->refcount_order;
	if (!check_features(q, o, err))
		return false;
	return read_backing_name(q) || error_set(err, "disk %s: cannot read its backing file's name", o->path);
}

int qcow2_header_features(struct qcow2 *q, uint64_t incompat, uint64_t autoclear)
{
	uint8_t p[24];
	int r;

	put_be64(p, incompat);
	put_be64(p + 8, q->h.compat);
	put_be64(p + 16, autoclear);
	r = qcow2_pwrite(q, H_INCOMPAT, p, sizeof(p));
	if (!r)
		r = qcow2_sync(q);
	if (r)
		return r;
	q->h.incompat = incompat;
	q->h.autoclear = autoclear;
	return 0;
}

int qcow2_header_l1(struct qcow2 *q, uint64_t size, uint64_t l1_off, uint32_t l1_size)
{
	uint8_t p[H_REFT_OFF - H_SIZE];
	int r;

	put_be64(p, size);
	put_be32(p + (H_CRYPT - H_SIZE), 0);
	put_be32(p + (H_L1_SIZE - H_SIZE), l1_size);
	put_be64(p + (H_L1_OFF - H_SIZE), l1_off);
	r = qcow2_pwrite(q, H_SIZE, p, sizeof(p));
	if (r)
		return r;
	q->h.size = size;
	q->h.l1_off = l1_off;
	q->h.l1_size = l1_size;
	return 0;
}

int qcow2_header_reftable(struct qcow2 *q, uint64_t off, uint32_t clusters)
{
	uint8_t p[H_NB_SNAPSHOTS - H_REFT_OFF];
	int r;

	put_be64(p, off);
	put_be32(p + (H_REFT_CLUSTERS - H_REFT_OFF), clusters);
	r = qcow2_pwrite(q, H_REFT_OFF, p, sizeof(p));
	if (r)
		return r;
	q->h.reft_off = off;
	q->h.reft_clusters = clusters;
	return 0;
}

int qcow2_header_snapshots(struct qcow2 *q, uint64_t off, uint32_t n)
{
	uint8_t p[H_INCOMPAT - H_NB_SNAPSHOTS];
	int r;

	put_be32(p, n);
	put_be64(p + (H_SNAPSHOTS_OFF - H_NB_SNAPSHOTS), off);
	r = qcow2_pwrite(q, H_NB_SNAPSHOTS, p, sizeof(p));
	if (r)
		return r;
	q->h.nb_snapshots = n;
	q->h.snapshots_off = off;
	return 0;
}

struct bitmaps {
	uint32_t n;
	uint64_t dir_size, dir_off;
};

static bool bitmaps_extension(struct qcow2 *q, uint32_t type, uint64_t off, uint32_t len, void *ctx)
{
	struct bitmaps *m = ctx;
	uint8_t p[24];

	if (type != QCOW2_EXT_BITMAPS || len < sizeof(p) || qcow2_pread(q, off, p, sizeof(p)))
		return false;
	*m = (struct bitmaps){get_be32(p), get_be64(p + 8), get_be64(p + 16)};
	return true;
}

int qcow2_header_bitmaps(struct qcow2 *q, uint32_t *n, uint64_t *dir_size, uint64_t *dir_off)
{
	struct bitmaps m = {0};

	if (q->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS)
		each_extension(q, bitmaps_extension, &m);
	*n = m.n;
	*dir_size = m.dir_size;
	*dir_off = m.dir_off;
	return 0;
}
