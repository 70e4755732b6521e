#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <zlib.h>
#include <zstd.h>

#define WINDOW_BITS (-12) /* raw deflate with a window of 4 KiB: what readers expect */

static int pack_zlib(const uint8_t *src, size_t len, uint8_t *dst)
{
	z_stream z = {.next_in = (uint8_t *)(uintptr_t)src, .avail_in = (uInt)len, .next_out = dst, .avail_out = (uInt)len - 1};
	int r;

	if (deflateInit2(&z, Z_DEFAULT_COMPRESSION, Z_DEFLATED, WINDOW_BITS, 9, Z_DEFAULT_STRATEGY) != Z_OK)
		return -ENOMEM;
	r = deflate(&z, Z_FINISH);
	deflateEnd(&z);
	return r == Z_STREAM_END ? (int)(len - 1 - z.avail_out) : 0;
}

int qcow2_pack(const struct qcow2 *q, const uint8_t *src, uint8_t *dst)
{
	size_t n;

	if (!q->h.compression)
		return pack_zlib(src, q->cluster_size, dst);
	n = ZSTD_compress(dst, q->cluster_size - 1, src, q->cluster_size, ZSTD_CLEVEL_DEFAULT);
	return ZSTD_isError(n) ? 0 : (int)n;
}

/* The compressed data end somewhere before len: the length is known in sectors only. */
static int unpack_zlib(const uint8_t *src, size_t len, uint8_t *dst, size_t dst_len)
{
	z_stream z = {.next_in = (uint8_t *)(uintptr_t)src, .avail_in = (uInt)len, .next_out = dst, .avail_out = (uInt)dst_len};
	int r;

	if (inflateInit2(&z, -15) != Z_OK)
		return -ENOMEM;
	r = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	return (r == Z_STREAM_END || r == Z_BUF_ERROR) && z.avail_out == 0 ? 0 : -EIO;
}

static int unpack_zstd(const uint8_t *src, size_t len, uint8_t *dst, size_t dst_len)
{
	while (dst_len) {
		size_t frame = ZSTD_findFrameCompressedSize(src, len), n;

		if (ZSTD_isError(frame) || !frame || frame > len)
			return -EIO;
		n = ZSTD_decompress(dst, dst_len, src, frame);
		if (ZSTD_isError(n) || n > dst_len)
			return -EIO;
		src += frame;
		len -= frame;
		dst += n;
		dst_len -= n;
	}
	return 0;
}

int qcow2_unpack(const struct qcow2 *q, const uint8_t *src, size_t len, uint8_t *dst)
{
	return q->h.compression ? unpack_zstd(src, len, dst, q->cluster_size) : unpack_zlib(src, len, dst, q->cluster_size);
}
