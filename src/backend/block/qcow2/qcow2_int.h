/*
 * qcow2 versions 2 and 3 (docs/interop/qcow2.txt of QEMU is the format's specification; names here are the specification's).
 *
 * Locking. `lock` covers everything in struct qcow2 but the constants after open; functions want it held unless they say
 * otherwise. Data I/O happens without it. What keeps the two apart:
 *  - An allocating write is on `allocs` from looking up to linking; allocating writes, discards and zeroing of the same guest
 *    clusters wait for it.
 *  - Data I/O is on `ios`, in order of its sequence number. A host cluster that loses its last reference is free for others
 *    only when all I/O that had begun before is over.
 *
 * Order of writes. Metadata is changed in memory and written by qcow2_commit in an order that keeps the file consistent
 * whatever subset of the writes since the last barrier (fdatasync) arrives:
 *    refcounts (and new refcount blocks, a barrier, refcount table) - barrier - L2 tables, L1 table
 * so what is referenced has data and refcount on stable storage. Clusters that are no longer referenced wait on `frees` until
 * the tables that no longer name them are stable; only then their refcount drops. A crash can leak clusters, no more.
 * New L2 tables are written as zeroes at once: nothing refers to them before the barrier.
 * Snapshots cannot change refcounts and COPIED flags together; meanwhile the dirty bit (v3) is set, which makes the next
 * opening for writing repair both.
 */
#ifndef BACKEND_BLOCK_QCOW2_QCOW2_INT_H
#define BACKEND_BLOCK_QCOW2_QCOW2_INT_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "backend/block/block.h"

#define QCOW2_MAGIC 0x514649fbu /* "QFI\xfb" */

/* incompatible features */
#define QCOW2_INCOMPAT_DIRTY BIT(0)
#define QCOW2_INCOMPAT_CORRUPT BIT(1)
#define QCOW2_INCOMPAT_DATA_FILE BIT(2)
#define QCOW2_INCOMPAT_COMPRESSION BIT(3)
#define QCOW2_INCOMPAT_EXTENDED_L2 BIT(4)
#define QCOW2_INCOMPAT_KNOWN (BIT(5) - 1)
#define QCOW2_COMPAT_LAZY BIT(0)
#define QCOW2_AUTOCLEAR_BITMAPS BIT(0)

/* header extensions */
#define QCOW2_EXT_END 0u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURES 0x6803f857u
#define QCOW2_EXT_BITMAPS 0x23852875u

/* L1 and L2 entries */
#define QCOW2_COPIED BIT(63)
#define QCOW2_COMPRESSED BIT(62)
#define QCOW2_ZERO BIT(0)
#define QCOW2_OFFSET UINT64_C(0x00fffffffffffe00)

#define QCOW2_MAX_L1 (32 * MIB)       /* bytes; also QEMU's limit */
#define QCOW2_MAX_REFTABLE (8 * MIB)  /* bytes; also QEMU's limit */
#define QCOW2_MAX_SNAPSHOTS 65536u
#define QCOW2_MAX_SNAPSHOT_TABLE (16 * MIB)
#define QCOW2_MAX_OFFSET BIT(55)      /* no cluster lies above */
#define QCOW2_SLICE 4096u             /* what caches hold of a table at most */

/* Header fields, host-endian. Offsets of the file format are in header.c. */
struct qcow2_header {
	uint32_t version, cluster_bits, crypt, l1_size, reft_clusters, nb_snapshots, backing_len, refcount_order, header_len;
	uint64_t size, backing_off, l1_off, reft_off, snapshots_off, incompat, compat, autoclear;
	uint8_t compression; /* 0: zlib, 1: zstd */
};

/* L1 and refcount table: wholly in memory, written by sectors. */
struct qcow2_table {
	uint64_t off;
	uint64_t *e;
	uint32_t n;
	uint8_t *dirty_sectors; /* a bit for each 64 entries */
	bool dirty;
};

struct qcow2_slice {
	uint64_t off;
	uint8_t *data;
	bool dirty;
	struct qcow2_slice *hash_next, *lru_prev, *lru_next;
};

/* Slices of L2 tables or refcount blocks by file offset. A slice is valid until the next qcow2_cache_get of this cache. */
struct qcow2_cache {
	uint32_t slice_size, max, n, ndirty, nbuckets;
	struct qcow2_slice **buckets;
	struct qcow2_slice lru; /* list head: next is the most recently used */
};

/* One allocating write; on its caller's stack. */
struct qcow2_alloc {
	uint64_t first, last; /* guest clusters */
	struct qcow2_alloc *next;
};

/* One data I/O in flight; on its caller's stack. */
struct qcow2_io {
	uint64_t seq;
	struct qcow2_io *prev, *next;
};

struct qcow2_free {
	uint64_t cluster, n, seq;
	bool punch; /* give the host its space back */
};

struct qcow2_snapshot {
	uint64_t l1_off, vm_state, disk_size;
	uint32_t l1_size, date_s;
	char *id, *name;
	uint8_t *raw; /* the table's entry, as it is */
	uint32_t raw_len;
};

struct qcow2 {
	struct block *b;
	/* constant after open */
	int fd;         /* through the page cache */
	int direct;     /* O_DIRECT, for data; -1: none */
	uint32_t align; /* of direct */
	bool nosync, extended;
	uint32_t cluster_bits, cluster_size, l2_bits, entry_size, sub_bits; /* sub_bits: log2 of a subcluster's size */
	uint32_t refcount_order, rb_bits; /* rb_bits: log2 of the entries of a refcount block */
	char *backing_name, *backing_format;

	pthread_mutex_t lock, rmw_lock;
	pthread_cond_t cond;
	struct qcow2_header h;
	struct qcow2_table l1, reft;
	struct qcow2_cache l2c, rcc;
	uint64_t *filter; /* bits of hashes of clusters that hold L2 tables or refcount blocks; see overlap.c */
	uint64_t end;     /* cluster after the last in use */
	uint64_t virgin;  /* clusters from here on were never written: they read as zeroes */
	uint64_t size_known; /* the file has at least so many clusters */
	uint64_t hint;    /* no cluster below is free */
	uint64_t comp_off; /* where the next compressed cluster goes; 0: a new one */
	bool barrier;     /* tables refer to what may not be stable yet */
	bool reft_moved;  /* the header does not name the refcount table yet */
	uint64_t old_reft_off, old_reft_clusters;
	bool written;     /* features that a writer clears are cleared */
	bool corrupt;     /* no more writes */
	atomic_bool unsynced, failed; /* failed: an fdatasync did; nothing after it can be trusted */
	atomic_bool handed_out; /* qcow2_plain said yes to a writer: we do not see its writes */
	struct qcow2_alloc *allocs;
	struct qcow2_io ios;
	uint64_t seq;
	struct qcow2_free *frees;
	size_t nfrees, frees_cap;
	uint64_t frees_clusters;
	struct qcow2_snapshot *snapshots;
	/* the compressed cluster that was last read, and what it holds */
	pthread_mutex_t comp_lock;
	uint64_t comp_entry, comp_gen;
	uint8_t *comp_data;
	struct qcow2_codec *codecs; /* idle */
};

enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZEROES, QCOW2_DATA, QCOW2_PACKED };

/* A run of guest bytes that are alike. */
struct qcow2_run {
	enum qcow2_kind kind;
	uint64_t len, host; /* host: QCOW2_DATA, of the first byte */
	uint64_t entry;     /* QCOW2_PACKED: the L2 entry; the run then ends with the cluster */
};

/* One L2 entry; `bitmap` is 0 without extended L2 entries. */
struct qcow2_entry {
	uint64_t e, bitmap;
};

static inline uint16_t get_be16(const void *p) { uint16_t v; __builtin_memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline uint32_t get_be32(const void *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t get_be64(const void *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return __builtin_bswap64(v); }
static inline void put_be16(void *p, uint16_t v) { v = __builtin_bswap16(v); __builtin_memcpy(p, &v, 2); }
static inline void put_be32(void *p, uint32_t v) { v = __builtin_bswap32(v); __builtin_memcpy(p, &v, 4); }
static inline void put_be64(void *p, uint64_t v) { v = __builtin_bswap64(v); __builtin_memcpy(p, &v, 8); }

static inline uint64_t qcow2_clusters(const struct qcow2 *q, uint64_t bytes)
{
	return (bytes + q->cluster_size - 1) >> q->cluster_bits;
}

/* io.c: the file. No lock. Reads beyond the end give zeroes. What takes a qcow2_vec is for data, the rest for metadata. */
struct qcow2_vec { /* a place in an iovec array */
	const struct iovec *v;
	unsigned n;
	size_t skip;
};
int qcow2_pread(struct qcow2 *q, uint64_t off, void *buf, size_t len);
int qcow2_pwrite(struct qcow2 *q, uint64_t off, const void *buf, size_t len);
int qcow2_pwrite_slices(struct qcow2 *q, uint64_t off, struct iovec *v, unsigned n); /* v is changed */
int qcow2_pwrite_zeroes(struct qcow2 *q, uint64_t off, uint64_t len);
int qcow2_sync(struct qcow2 *q);
/* Moves `len` bytes between the file and the next bytes of v, which advances. */
int qcow2_preadv(struct qcow2 *q, uint64_t off, struct qcow2_vec *v, uint64_t len);
/* One write of head, `len` bytes of v, and tail; v advances. */
int qcow2_pwritev(struct qcow2 *q, uint64_t off, struct qcow2_vec *v, uint64_t len, const struct iovec *head,
		  const struct iovec *tail);
/* The next at most max segments of v that make up at most len bytes; v advances by *got bytes. */
unsigned qcow2_vec_take(struct qcow2_vec *v, uint64_t len, struct iovec *out, unsigned max, uint64_t *got);
void qcow2_vec_fill(struct qcow2_vec *v, const uint8_t *src, uint64_t len); /* src NULL: zeroes */
void qcow2_vec_copy(struct qcow2_vec *v, uint8_t *dst, uint64_t len);
void *qcow2_buffer(size_t len); /* aligned for any I/O; free() it */

/* header.c */
bool qcow2_header_read(struct qcow2 *q, const struct block_options *o, struct error *err);
int qcow2_header_features(struct qcow2 *q, uint64_t incompat, uint64_t autoclear); /* written and stable; v3 only */
int qcow2_header_l1(struct qcow2 *q, uint64_t size, uint64_t l1_off, uint32_t l1_size); /* one sector, at once; not stable */
int qcow2_header_reftable(struct qcow2 *q, uint64_t off, uint32_t clusters);
int qcow2_header_snapshots(struct qcow2 *q, uint64_t off, uint32_t n);
int qcow2_header_bitmaps(struct qcow2 *q, uint32_t *n, uint64_t *dir_size, uint64_t *dir_off); /* n 0: none to keep */

/* cache.c */
bool qcow2_cache_init(struct qcow2_cache *c, uint32_t slice_size, uint64_t bytes);
void qcow2_cache_fini(struct qcow2_cache *c);
int qcow2_cache_get(struct qcow2 *q, struct qcow2_cache *c, uint64_t off, struct qcow2_slice **out);
struct qcow2_slice *qcow2_cache_peek(const struct qcow2_cache *c, uint64_t off); /* if it is there */
void qcow2_cache_dirty(struct qcow2_cache *c, struct qcow2_slice *s);
void qcow2_cache_drop(struct qcow2_cache *c, uint64_t off, uint64_t len); /* forget, also when dirty */
int qcow2_cache_write(struct qcow2 *q, struct qcow2_cache *c);           /* all that is dirty; no barrier */
bool qcow2_table_init(struct qcow2_table *t, uint64_t off, uint32_t n);
void qcow2_table_fini(struct qcow2_table *t);
int qcow2_table_load(struct qcow2 *q, struct qcow2_table *t);
void qcow2_table_set(struct qcow2_table *t, uint32_t i, uint64_t e);
int qcow2_table_write(struct qcow2 *q, struct qcow2_table *t);

/* commit.c */
int qcow2_commit(struct qcow2 *q);          /* all metadata to the file, in order; the end of it is not stable */
int qcow2_commit_stable(struct qcow2 *q);   /* also stable, and the frees done that can be */
int qcow2_write_begin(struct qcow2 *q);     /* before the first change of a call: 0, or why there can be none */
int qcow2_mark_corrupt(struct qcow2 *q, const char *what); /* returns -EIO */
void qcow2_io_begin(struct qcow2 *q, struct qcow2_io *io);
void qcow2_io_end(struct qcow2 *q, struct qcow2_io *io);
void qcow2_free_later(struct qcow2 *q, uint64_t cluster, uint64_t n, bool punch);

/* overlap.c */
void qcow2_overlap_add(struct qcow2 *q, uint64_t off); /* an L2 table or refcount block lies here */
bool qcow2_overlap(struct qcow2 *q, uint64_t off, uint64_t len); /* is there metadata in use? */

/* refcount.c; clusters are numbered from the file's begin */
int qcow2_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *val);
int qcow2_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t val);
int qcow2_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t n, int delta);
uint64_t qcow2_refcount_max(const struct qcow2 *q);
int qcow2_refcount_cover(struct qcow2 *q, uint64_t cluster); /* make the refcount block for it, if there is none */
/* 1 to `want` contiguous clusters; *zero: they read as zeroes already. Offsets in bytes. */
int qcow2_alloc_clusters(struct qcow2 *q, uint64_t want, uint64_t *off, uint64_t *got, bool *zero);
int qcow2_alloc_exact(struct qcow2 *q, uint64_t n, uint64_t *off); /* n contiguous clusters */
int qcow2_alloc_bytes(struct qcow2 *q, uint32_t size, uint64_t *off);
void qcow2_free_now(struct qcow2 *q, uint64_t cluster, uint64_t n, bool punch);

/* map.c */
uint64_t qcow2_slice_entry(const struct qcow2 *q, const struct qcow2_slice *s, unsigned i, uint64_t *bitmap);
void qcow2_packed_place(const struct qcow2 *q, uint64_t entry, uint64_t *off, uint32_t *len);
/* kind of subcluster `sub` (0 without extended L2 entries), or -EIO */
int qcow2_kind(const struct qcow2 *q, struct qcow2_entry e, unsigned sub);
int qcow2_lookup(struct qcow2 *q, uint64_t off, uint64_t len, struct qcow2_run *r);
bool qcow2_reads_zero(struct qcow2 *q, uint64_t off, uint64_t len);
/* The slice of guest offset `off` to change: its L2 table is made or copied when it must be. *i: the entry's index. */
int qcow2_l2_writable(struct qcow2 *q, uint64_t off, struct qcow2_slice **s, unsigned *i);
/* As above, but a table that is not there is not made: *s is then NULL. */
int qcow2_l2_existing(struct qcow2 *q, uint64_t off, struct qcow2_slice **s, unsigned *i);
unsigned qcow2_slice_entries(const struct qcow2 *q);
void qcow2_entry_set(struct qcow2 *q, struct qcow2_slice *s, unsigned i, struct qcow2_entry e);
void qcow2_entry_release(struct qcow2 *q, uint64_t e, bool punch); /* what e refers to loses this reference, later */

/* No lock held: */
bool qcow2_plain(struct block *b, uint64_t off, uint64_t len, bool write, int *fd, uint64_t *host_off);
int qcow2_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out);
int qcow2_read(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov);
int qcow2_write(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov);
int qcow2_write_compressed(struct block *b, uint64_t off, uint64_t len, const void *buf);
int qcow2_flush(struct block *b);
int qcow2_discard(struct block *b, uint64_t off, uint64_t len);
int qcow2_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap);
bool qcow2_resize(struct block *b, uint64_t size, struct error *err);
bool qcow2_create(const struct block_create *c, struct error *err);
bool qcow2_check(struct block *b, bool repair, struct block_check *c, struct error *err);

/* write.c: waits for allocating writes of these guest clusters; the lock is dropped meanwhile. */
void qcow2_wait_allocs(struct qcow2 *q, uint64_t first, uint64_t last);

/* compress.c; no lock held */
/* Returns the size, 0 when it would not get smaller, or -errno. dst holds a cluster. */
int qcow2_pack(const struct qcow2 *q, const uint8_t *src, uint8_t *dst);
int qcow2_unpack(struct qcow2 *q, const uint8_t *src, size_t len, uint8_t *dst);
void qcow2_codecs_free(struct qcow2 *q);

/* snapshot.c */
bool qcow2_snapshots_load(struct qcow2 *q, struct error *err);
void qcow2_snapshots_free(struct qcow2 *q);
unsigned qcow2_snapshot_list(struct block *b, struct block_snapshot *out, unsigned n);
bool qcow2_snapshot_create(struct block *b, const char *name, struct error *err);
bool qcow2_snapshot_apply(struct block *b, const char *name, struct error *err);
bool qcow2_snapshot_delete(struct block *b, const char *name, struct error *err);
int qcow2_l1_load(struct qcow2 *q, uint64_t off, uint32_t n, uint64_t **out);
uint64_t qcow2_snapshots_bytes(const struct qcow2 *q); /* of the snapshot table */

/* resize.c */
int qcow2_l1_switch(struct qcow2 *q, uint64_t size, const uint64_t *e, uint32_t n); /* a new L1 table, stable; frees the old one */

#endif
