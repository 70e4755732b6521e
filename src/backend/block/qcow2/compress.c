#include "backend/block/qcow2/qcow2_int.h"

#include <errno.h>
#include <libdeflate.h>
#include <stdlib.h>
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

/* What decompressing needs, kept from one cluster to the next. As many as there are threads that read at once. */
struct qcow2_codec {
	struct libdeflate_decompressor *deflate;
	ZSTD_DCtx *zstd;
	struct qcow2_codec *next;
};

static void codec_free(struct qcow2_codec *c)
{
	libdeflate_free_decompressor(c->deflate);
	ZSTD_freeDCtx(c->zstd);
	free(c);
}

static struct qcow2_codec *codec_take(struct qcow2 *q)
{
	struct qcow2_codec *c;

	pthread_mutex_lock(&q->comp_lock);
	c = q->codecs;
	if (c)
		q->codecs = c->next;
	pthread_mutex_unlock(&q->comp_lock);
	if (c)
		return c;
	c = calloc(1, sizeof(*c));
	if (c && q->h.compression)
		c->zstd = ZSTD_createDCtx();
	else if (c)
		c->deflate = libdeflate_alloc_decompressor();
	if (c && (c->zstd || c->deflate))
		return c;
	free(c);
	return NULL;
}

static void codec_give(struct qcow2 *q, struct qcow2_codec *c)
{
	pthread_mutex_lock(&q->comp_lock);
	c->next = q->codecs;
	q->codecs = c;
	pthread_mutex_unlock(&q->comp_lock);
}

void qcow2_codecs_free(struct qcow2 *q)
{
	while (q->codecs) {
		struct qcow2_codec *c = q->codecs;

		q->codecs = c->next;
		codec_free(c);
	}
}

/* The compressed data end somewhere before len: the length is known in sectors only. */
static int unpack_deflate(struct qcow2_codec *c, const uint8_t *src, size_t len, uint8_t *dst, size_t dst_len)
{
	size_t in;

	return libdeflate_deflate_decompress_ex(c->deflate, src, len, dst, dst_len, &in, NULL) == LIBDEFLATE_SUCCESS ? 0 : -EIO;
}

static int unpack_zstd(struct qcow2_codec *c, const uint8_t *src, size_t len, uint8_t *dst, size_t dst_len)
{
	ZSTD_inBuffer in = {src, len, 0};
	ZSTD_outBuffer out = {dst, dst_len, 0};

	ZSTD_DCtx_reset(c->zstd, ZSTD_reset_session_only);
	while (out.pos < out.size) {
		size_t before = in.pos + out.pos;

		if (ZSTD_isError(ZSTD_decompressStream(c->zstd, &out, &in)) || in.pos + out.pos == before)
			return -EIO;
	}
	return 0;
}

int qcow2_unpack(struct qcow2 *q, const uint8_t *src, size_t len, uint8_t *dst)
{
	struct qcow2_codec *c = codec_take(q);
	int r;

	if (!c)
		return -ENOMEM;
	r = c->zstd ? unpack_zstd(c, src, len, dst, q->cluster_size) : unpack_deflate(c, src, len, dst, q->cluster_size);
	codec_give(q, c);
	return r;
}
