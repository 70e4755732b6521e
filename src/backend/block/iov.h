/*
 * I/O vectors: slices, copies, and reads and writes of files that take as many calls as it needs.
 * Offsets into a vector are in bytes; off + len lies within it. Threads: no state.
 */
#ifndef BACKEND_BLOCK_IOV_H
#define BACKEND_BLOCK_IOV_H

#include <sys/uio.h>

#include "base/bits.h"

uint64_t iov_len(const struct iovec *iov, unsigned niov);
/* Fill out with the part [off, off + len), at most niov elements; returns how many. */
unsigned iov_slice(const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len, struct iovec *out);
void iov_zero(const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len);
void iov_from_buf(const struct iovec *iov, unsigned niov, uint64_t off, const void *buf, uint64_t len);
void iov_to_buf(const struct iovec *iov, unsigned niov, uint64_t off, void *buf, uint64_t len);

/* The part [off, off + len) of the vector at `pos` of the file: all of it, or -errno; -EIO: the file ends before. */
int iov_pread(int fd, uint64_t pos, const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len);
int iov_pwrite(int fd, uint64_t pos, const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len);

#endif
