/*
 * Virtual disks: what front ends (dev/virtio/blk.c), `doppel disk`, import and export see, and what a format implements.
 *
 * A struct block is an array of bytes of a fixed size, made of a format's file and perhaps a backing block below it. All
 * calls here are synchronous and may block on the host's disk; none is made with the machine lock held. Requests
 * that must not block their caller go through a queue (backend/block/queue.h).
 *
 * Threads: reads, writes, map, flush, discard and write_zeroes of one block may run in several threads at once (the format
 * locks its metadata); requests that overlap in time and in place have no defined order. open, close, resize, check and
 * snapshot operations have the block to themselves.
 * Errors: 0 or -errno. -EIO also for what an image's metadata makes impossible; corrupt metadata is never followed
 * outside of the file, never a crash, never an allocation in proportion to what the image claims.
 * Durability: what a completed write wrote is on stable storage after a later flush has returned 0, and an image is
 * consistent after a crash at any moment.
 */
#ifndef BACKEND_BLOCK_BLOCK_H
#define BACKEND_BLOCK_BLOCK_H

#include <sys/uio.h>

#include "base/bits.h"
#include "base/error.h"

#define BLOCK_SECTOR 512u

struct block;

enum block_cache {
	BLOCK_CACHE_WRITEBACK, /* host page cache; flush is fdatasync */
	BLOCK_CACHE_NONE,      /* O_DIRECT */
	BLOCK_CACHE_UNSAFE,    /* host page cache; flush does nothing */
};

struct block_options {
	const char *path;    /* or an NBD URI (nbd://, nbd+unix://) */
	/*
	 * Format name, or NULL: by the file name's suffix (.qcow2 .vmdk .raw .img .iso) or an NBD URI. Contents never make a file
	 * anything but raw (a guest writes them); that they look like another format than the suffix says is an error.
	 */
	const char *format;
	bool readonly;
	bool snapshot;       /* writes go to a temporary overlay that is gone at close; the file is opened read-only */
	bool no_lock;        /* do not take the image lock (info on a running VM's disk) */
	bool repair;         /* opened for block_format.check: damage neither keeps it from being opened for writing nor is repaired then */
	enum block_cache cache;
	/*
	 * Backing file to use in place of the one that the image names (NULL: the named one, which must lie in the image's own
	 * directory or below it, links resolved; else opening fails and says how to allow it).
	 */
	const char *backing;
	unsigned depth;      /* of backing files so far; opening fails at BLOCK_DEPTH_MAX. Callers leave it 0 */
};
#define BLOCK_DEPTH_MAX 64

enum block_extent_kind {
	EXTENT_DATA,        /* bytes of `fd` from `host_off` on, as they are */
	EXTENT_ENCODED,     /* data, but compressed or split: only block_read gets at it */
	EXTENT_ZERO,        /* reads as zeroes, by the image's word */
	EXTENT_UNALLOCATED, /* not in this image nor in any below: reads as zeroes */
};

struct block_extent {
	enum block_extent_kind kind;
	uint64_t len;      /* of the run that is alike, at least 1, at most what was asked for */
	int fd;            /* EXTENT_DATA; valid until the next write, discard or close */
	uint64_t host_off;
	unsigned depth;    /* 0: in this image, 1: in its backing file, ... */
};

struct block_info {
	const char *format;
	uint64_t size;          /* virtual size, bytes */
	uint64_t allocated;     /* bytes the host's disk holds for it */
	uint32_t cluster_size;  /* 0: none */
	const char *backing;    /* as the image names it; NULL: none */
	const char *backing_format;
	bool dirty, corrupt, encrypted, compressed;
	unsigned nsnapshots;
};

struct block_snapshot {
	char id[32], name[256];
	uint64_t size, date_s, vm_state;
};

struct block_check {
	uint64_t corruptions, leaks;         /* found: clusters or entries */
	uint64_t errors_fixed, leaks_fixed;  /* how many of those a repair has put right */
	uint64_t allocated_clusters, total_clusters;
	void (*report)(void *ctx, const char *line); /* one per finding, bounded; may be NULL */
	void (*progress)(void *ctx, uint64_t done, uint64_t total); /* may be NULL */
	void *ctx;
};

/* What a new image is to be; a format refuses what it cannot do. */
struct block_create {
	const char *path;
	uint64_t size;
	const char *backing, *backing_format; /* NULL: none */
	const char *options; /* "cluster_size=64K,lazy_refcounts=on,...", as the format's documentation names them; may be NULL */
};

/*
 * One format. `open` makes its state and sets b->size, b->readonly stays as asked. Members that a format lacks are NULL: the
 * call then returns -ENOTSUP. Offsets and lengths that reach a format lie within the size and are not 0.
 */
struct block_format {
	const char *name;
	const char *const *suffixes; /* NULL-terminated, like ".qcow2" */
	bool (*probe)(const uint8_t *head, size_t len); /* does this look like the format? head: up to 4096 bytes */
	bool (*open)(struct block *b, const struct block_options *o, struct error *err);
	void (*close)(struct block *b); /* also after a failed open, with what it made; flushes what is the format's own */
	bool (*create)(const struct block_create *c, struct error *err);
	int (*read)(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov);
	int (*write)(struct block *b, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov);
	int (*flush)(struct block *b);
	int (*discard)(struct block *b, uint64_t off, uint64_t len); /* a hint: afterwards reads give old data or zeroes */
	int (*write_zeroes)(struct block *b, uint64_t off, uint64_t len, bool may_unmap);
	int (*map)(struct block *b, uint64_t off, uint64_t len, struct block_extent *out);
	/*
	 * May [off, off + len) be read (write: overwritten) as plain bytes of one file, past the format and without a change of its
	 * metadata? Then where. It stays so until a discard, write_zeroes, resize or snapshot operation on the range; it must be
	 * cheap: no I/O, no waiting (false when a lock is held). NULL or false: go through read and write.
	 */
	bool (*plain)(struct block *b, uint64_t off, uint64_t len, bool write, int *fd, uint64_t *host_off);
	int (*write_compressed)(struct block *b, uint64_t off, uint64_t len, const void *buf); /* whole clusters, for convert */
	bool (*resize)(struct block *b, uint64_t size, struct error *err);
	bool (*check)(struct block *b, bool repair, struct block_check *c, struct error *err); /* false: could not be checked */
	void (*info)(struct block *b, struct block_info *out);
	/* internal snapshots; `list` returns how many there are and fills at most n */
	unsigned (*snapshot_list)(struct block *b, struct block_snapshot *out, unsigned n);
	bool (*snapshot_create)(struct block *b, const char *name, struct error *err);
	bool (*snapshot_apply)(struct block *b, const char *name, struct error *err);
	bool (*snapshot_delete)(struct block *b, const char *name, struct error *err);
};

struct block {
	const struct block_format *format;
	void *state;           /* the format's */
	uint64_t size;
	bool readonly;
	enum block_cache cache;
	uint32_t plain_align;  /* of offsets, lengths and addresses of plain accesses (O_DIRECT); 0: none */
	char *path;            /* owned */
	struct block *backing; /* owned; opened read-only. NULL: none */
};

/* The first NULL ends it: raw, qcow2, vmdk, nbd. */
extern const struct block_format *const block_formats[];
extern const struct block_format block_raw, block_qcow2, block_vmdk, block_nbd;

/*
 * Opens and locks: open file description locks (F_OFD_SETLK): one writer, or any number of readers, of each file of the chain.
 * The message of a refusal names the file and says what holds it.
 */
struct block *block_open(const struct block_options *o, struct error *err);
void block_close(struct block *b); /* NULL: nothing */
/* The format of a name, as block_options.format has it; NULL: unknown (err). */
const struct block_format *block_format_find(const char *name, struct error *err);
bool block_create(const char *format, const struct block_create *c, struct error *err);

/* Range-checked calls of the format's members: out of range is -EINVAL, a write to a read-only block -EROFS. */
int block_readv(struct block *b, uint64_t off, const struct iovec *iov, unsigned niov);
int block_writev(struct block *b, uint64_t off, const struct iovec *iov, unsigned niov);
int block_read(struct block *b, uint64_t off, void *buf, size_t len);
int block_write(struct block *b, uint64_t off, const void *buf, size_t len);
int block_flush(struct block *b);
int block_discard(struct block *b, uint64_t off, uint64_t len);
int block_write_zeroes(struct block *b, uint64_t off, uint64_t len, bool may_unmap);
int block_map(struct block *b, uint64_t off, uint64_t len, struct block_extent *out);

/*
 * For formats: open a file of an image and lock it; -1: err. Opens no directories, devices other than block devices, or FIFOs.
 * The file goes through the host's page cache also with BLOCK_CACHE_NONE: metadata need no alignment.
 */
int block_file_open(const char *path, const struct block_options *o, bool write, struct error *err);
/*
 * For formats, with BLOCK_CACHE_NONE: the same file once more, with O_DIRECT, for data; *align is filled with what offsets,
 * lengths and addresses must be multiples of. -1: there is no such thing here; use the first one.
 */
int block_file_direct(int fd, bool write, uint32_t *align);
/* For formats: make a new file, empty and locked for writing; one that exists is never overwritten. -1: err. */
int block_file_create(const char *path, struct error *err);
/* For formats: open the backing file that an image names, by the rules of block_options.backing. */
struct block *block_open_backing(const struct block_options *o, const char *name, const char *format, struct error *err);

#endif
