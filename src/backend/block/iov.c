#include "backend/block/iov.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BATCH 64u /* elements of one call; IOV_MAX is 1024, the stack is small */

uint64_t iov_len(const struct iovec *iov, unsigned niov)
{
	uint64_t len = 0;

	for (unsigned i = 0; i < niov; i++)
		len += iov[i].iov_len;
	return len;
}

/* At most `max` elements; returns how many, *len is what they hold. */
static unsigned slice(const struct iovec *iov, unsigned niov, uint64_t off, uint64_t *len, struct iovec *out, unsigned max)
{
	uint64_t left = *len;
	unsigned n = 0;

	for (unsigned i = 0; i < niov && left && n < max; i++) {
		uint64_t here;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		here = min_u64(left, iov[i].iov_len - off);
		out[n++] = (struct iovec){(char *)iov[i].iov_base + off, here};
		left -= here;
		off = 0;
	}
	*len -= left;
	return n;
}

unsigned iov_slice(const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len, struct iovec *out)
{
	return slice(iov, niov, off, &len, out, niov);
}

enum copy { COPY_ZERO, COPY_FROM, COPY_TO };

static void copy(const struct iovec *iov, unsigned niov, uint64_t off, char *buf, uint64_t len, enum copy how)
{
	for (unsigned i = 0; i < niov && len; i++) {
		char *p = iov[i].iov_base;
		uint64_t n;

		if (off >= iov[i].iov_len) {
			off -= iov[i].iov_len;
			continue;
		}
		n = min_u64(len, iov[i].iov_len - off);
		if (how == COPY_ZERO)
			memset(p + off, 0, n);
		else if (how == COPY_FROM)
			memcpy(p + off, buf, n);
		else
			memcpy(buf, p + off, n);
		buf = buf ? buf + n : NULL;
		len -= n;
		off = 0;
	}
}

void iov_zero(const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len)
{
	copy(iov, niov, off, NULL, len, COPY_ZERO);
}

void iov_from_buf(const struct iovec *iov, unsigned niov, uint64_t off, const void *buf, uint64_t len)
{
	copy(iov, niov, off, (char *)buf, len, COPY_FROM);
}

void iov_to_buf(const struct iovec *iov, unsigned niov, uint64_t off, void *buf, uint64_t len)
{
	copy(iov, niov, off, buf, len, COPY_TO);
}

static int transfer(int fd, uint64_t pos, const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len, bool write)
{
	while (len) {
		struct iovec part[BATCH];
		uint64_t want = len;
		unsigned n = slice(iov, niov, off, &want, part, BATCH);
		ssize_t r = write ? pwritev(fd, part, (int)n, (off_t)pos) : preadv(fd, part, (int)n, (off_t)pos);

		if (r < 0 && errno == EINTR)
			continue;
		if (r < 0)
			return -errno;
		if (r == 0)
			return -EIO;
		pos += (uint64_t)r;
		off += (uint64_t)r;
		len -= (uint64_t)r;
	}
	return 0;
}

int iov_pread(int fd, uint64_t pos, const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len)
{
	return transfer(fd, pos, iov, niov, off, len, false);
}

int iov_pwrite(int fd, uint64_t pos, const struct iovec *iov, unsigned niov, uint64_t off, uint64_t len)
{
	return transfer(fd, pos, iov, niov, off, len, true);
}
