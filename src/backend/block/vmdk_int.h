/*
 * VMDK inside: a descriptor names extents, each a flat or a sparse file, or nothing (zeroes). After "Virtual Disk
 * Format 5.0" (VMware, 2011). Numbers in files are little-endian, positions and sizes in sectors of 512 bytes; here all
 * are bytes.
 *
 * vmdk.c      the format: extents side by side, the parent below
 * vmdk_desc.c the descriptor as text
 * vmdk_sparse.c, vmdk_stream.c  hosted sparse extents; their compressed kind
 * vmdk_create.c  new images
 */
#ifndef BACKEND_BLOCK_VMDK_INT_H
#define BACKEND_BLOCK_VMDK_INT_H

#include <pthread.h>

#include "backend/block/block.h"

#define VMDK_DESC_MAX MIB	/* bytes of text */
#define VMDK_EXTENTS_MAX 1024u	/* files of a disk */
#define VMDK_SPLIT (2047 * MIB) /* of one file of a disk split over files */
#define VMDK_NO_PARENT 0xffffffffu

/* ---- descriptor ---- */

enum vmdk_access { VMDK_RW, VMDK_RDONLY, VMDK_NOACCESS };
enum vmdk_kind { VMDK_FLAT, VMDK_SPARSE, VMDK_ZERO };

struct vmdk_desc_extent {
	enum vmdk_access access;
	enum vmdk_kind kind;
	uint64_t size;
	uint64_t file_off; /* flat */
	char file[256];
};

struct vmdk_desc {
	char create_type[32];
	uint32_t cid, parent_cid;
	size_t cid_pos;	   /* of the 8 digits in the text; 0: not there in a form that can be replaced */
	char parent[1024]; /* empty: none */
	unsigned nextents;
	struct vmdk_desc_extent *extents; /* heap */
};

/* The text need not end with a 0. `path` is for messages. On failure nothing is left in d. */
bool vmdk_desc_parse(const char *path, const char *text, size_t len, struct vmdk_desc *d, struct error *err);
void vmdk_desc_fini(struct vmdk_desc *d);

/* ---- sparse extents ---- */

#define VMDK_MAGIC 0x564d444bu /* "KDMV" */
#define VMDK_HEADER 512u
#define VMDK_GD_AT_END UINT64_MAX
#define VMDK_GTES 512u /* entries of a grain table */
#define VMDK_GRAIN_MAX (16 * MIB)
#define VMDK_GRAIN (64 * KIB)		   /* of new images */
#define VMDK_GD_MAX (16 * MIB)		   /* bytes of a grain directory that we hold */
#define VMDK_OVERHEAD (128 * BLOCK_SECTOR) /* header and descriptor of a new stream */
#define VMDK_DESC_ROOM (20 * BLOCK_SECTOR)

enum { /* flags of the header */
       VMDK_F_NEWLINE = 1,
       VMDK_F_RGD = 2,
       VMDK_F_ZERO_GRAIN = 4,
       VMDK_F_COMPRESSED = 0x10000,
       VMDK_F_MARKERS = 0x20000,
};

enum vmdk_marker { VMDK_MARK_EOS, VMDK_MARK_GT, VMDK_MARK_GD, VMDK_MARK_FOOTER };

struct vmdk_header {
	uint32_t version, flags;
	uint64_t capacity, grain, desc, desc_size, rgd, gd, overhead;
	uint32_t gtes;
	uint16_t compression;
};

void vmdk_header_put(uint8_t out[VMDK_HEADER], const struct vmdk_header *h);
/* False: err. Checks what lies in the header alone. */
bool vmdk_header_get(const char *path, const uint8_t in[VMDK_HEADER], struct vmdk_header *h, struct error *err);

struct vmdk_stream;

#define VMDK_GT_SLOTS 256u

/* A grain table in memory: a line of a direct-mapped cache. Dirty ones reach the file after the data that they name. */
struct vmdk_gt {
	uint32_t *entries; /* NULL: empty slot */
	uint32_t index;	   /* in the grain directory */
	bool dirty;
};

struct vmdk_sparse {
	const char *path; /* the block's, for messages */
	int fd;		  /* owned */
	bool unsafe;	  /* no syncing */
	struct vmdk_header h;
	uint64_t table_span; /* bytes of disk that one grain table covers */
	uint32_t ngd;
	uint32_t *gd, *rgd;   /* rgd NULL: none */
	uint64_t file_size;   /* grows with our writes */
	pthread_mutex_t lock; /* all below, gd, rgd, file_size */
	struct vmdk_gt gts[VMDK_GT_SLOTS];
	bool any_dirty;
	int sync_error;		    /* an fdatasync that failed once has lost data for good */
	struct vmdk_stream *stream; /* compressed */
};

/* fd is the extent's from then on, also on failure; size: as the descriptor has it, 0: as the header has it. */
struct vmdk_sparse *vmdk_sparse_new(const char *path, int fd, bool write, uint64_t size, struct error *err);
void vmdk_sparse_free(struct vmdk_sparse *s);

/* How a run of an extent is stored. */
enum vmdk_run_kind { VMDK_RUN_DATA, VMDK_RUN_COMPRESSED, VMDK_RUN_ZERO, VMDK_RUN_NONE };
struct vmdk_run {
	enum vmdk_run_kind kind;
	uint64_t len;
	uint64_t host; /* data: of the first byte; compressed: of the grain's marker */
};
int vmdk_sparse_run(struct vmdk_sparse *s, uint64_t off, uint64_t len, struct vmdk_run *out);

/* Fills buf with what lies below grains that this image does not have. */
struct vmdk_below {
	int (*read)(void *ctx, uint64_t off, void *buf, uint64_t len);
	void *ctx;
};
int vmdk_sparse_write(struct vmdk_sparse *s, uint64_t off, uint64_t len, const struct iovec *iov, unsigned niov,
		      uint64_t iov_off, const struct vmdk_below *below);
/* has_below: what is not here is not zero. */
int vmdk_sparse_zero(struct vmdk_sparse *s, uint64_t off, uint64_t len, bool has_below, const struct vmdk_below *below);
int vmdk_sparse_flush(struct vmdk_sparse *s);
bool vmdk_sparse_check(struct vmdk_sparse *s, bool repair, struct block_check *c, struct error *err);

/* ---- streams ---- */

struct vmdk_stream *vmdk_stream_new(struct vmdk_sparse *s, bool write, struct error *err);
void vmdk_stream_free(struct vmdk_stream *t);
/* Of a compressed run: [off, off + len) lies within one grain. */
int vmdk_stream_read(struct vmdk_sparse *s, uint64_t off, uint64_t len, uint64_t host, const struct iovec *iov,
		     unsigned niov, uint64_t iov_off);
/*
 * Whole grains, or the end of the disk. Calls may come from several threads; grains land in the file in the order of
 * the disk if each range is either written or passed over, and the rest is not far behind.
 */
int vmdk_stream_write(struct vmdk_sparse *s, uint64_t off, uint64_t len, const void *buf);
int vmdk_stream_pass(struct vmdk_sparse *s, uint64_t off, uint64_t len);
/* With the extent's lock held: the entry of a stream that is being written (false: it is not), and what waits to the
 * file. */
bool vmdk_stream_entry(struct vmdk_sparse *s, uint32_t index, unsigned i, uint32_t *entry);
int vmdk_stream_settle(struct vmdk_sparse *s);
/* Tables and footer: from here on the file is an image with all that was written. */
int vmdk_stream_finish(struct vmdk_sparse *s);

/* ---- new images ---- */

bool vmdk_create(const struct block_create *c, struct error *err);
uint32_t vmdk_cid(const struct block *b); /* of an open VMDK */

#endif
