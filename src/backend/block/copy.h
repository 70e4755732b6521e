/*
 * Whole disks at once: copied into a new image, or compared. Several threads read, look for zeroes, compress and write
 * at the same time; what is zero by its map is not read at all.
 *
 * Threads: the caller's waits, and calls `progress` and `stop` about ten times a second; everything else happens in
 * threads that are gone on return. Memory: 2 to 4 MiB a thread.
 */
#ifndef BACKEND_BLOCK_COPY_H
#define BACKEND_BLOCK_COPY_H

#include "backend/block/block.h"

struct block_job {
	void (*progress)(void *ctx, uint64_t done, uint64_t total); /* bytes; may be NULL */
	bool (*stop)(void *ctx);				    /* true: give up; may be NULL */
	void *ctx;
	unsigned threads; /* 0: as many as fit this host */
	bool stopped;	  /* out: ended by `stop` */
};

/*
 * Copy src into dst, a new image that reads as zeroes and is at least as large. compress: by the format's
 * write_compressed. Ends with a flush. The message of an error names the side that failed.
 */
bool block_copy(struct block *src, struct block *dst, bool compress, struct block_job *job, struct error *err);

/* Compare; the smaller disk counts as if zeroes followed. *same false: they differ at *where, and nowhere before. */
bool block_compare(struct block *a, struct block *b, struct block_job *job, bool *same, uint64_t *where,
		   struct error *err);

#endif
