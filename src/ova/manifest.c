/*
 * The manifest: a line per file, "SHA256(disk1.vmdk)= 0123...", the digest in hexadecimal; SHA1 in OVF 1, SHA256 and
 * SHA512 in OVF 2.
 */
#include "ova/ova_int.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE (1 * MIB)

static const struct {
	const char *name;
	unsigned len;
} digests[DIGESTS] = {{"SHA1", 20}, {"SHA256", 32}, {"SHA512", 64}};

static int nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One line, without its end; false: not understood. */
static bool parse_line(const char *p, const char *end, struct manifest_line *l)
{
	const char *close;
	size_t n = 0;

	for (l->digest = 0; l->digest < DIGESTS; l->digest++) {
		n = strlen(digests[l->digest].name);
		if ((size_t)(end - p) > n && !strncasecmp(p, digests[l->digest].name, n) &&
		    (p[n] == '(' || p[n] == ' '))
			break;
	}
	if (l->digest == DIGESTS)
		return false;
	for (p += n; p < end && *p == ' '; p++)
		;
	close = p < end && *p == '(' ? memrchr(p, ')', (size_t)(end - p)) : NULL;
	if (!close || (size_t)(close - p) - 1 > OVA_NAME_MAX)
		return false;
	memcpy(l->name, p + 1, (size_t)(close - p) - 1);
	l->name[close - p - 1] = 0;
	for (p = close + 1; p < end && (*p == ' ' || *p == '\t'); p++)
		;
	if (p >= end || *p++ != '=')
		return false;
	for (; p < end && (*p == ' ' || *p == '\t'); p++)
		;
	if ((size_t)(end - p) != 2 * digests[l->digest].len)
		return false;
	for (unsigned i = 0; i < digests[l->digest].len; i++, p += 2) {
		if (nibble(p[0]) < 0 || nibble(p[1]) < 0)
			return false;
		l->value[i] = (uint8_t)(nibble(p[0]) << 4 | nibble(p[1]));
	}
	return true;
}

bool manifest_parse(const char *path, const char *text, size_t len, struct manifest *m, struct error *err)
{
	const char *p = text, *all = text + len;

	m->n = 0;
	while (p < all) {
		const char *end = memchr(p, '\n', (size_t)(all - p)), *next;

		end = end ? end : all;
		next = end + 1;
		while (end > p && (end[-1] == '\r' || end[-1] == ' ' || end[-1] == '\t'))
			end--;
		if (end > p && (m->n == OVA_MEMBERS_MAX || !parse_line(p, end, &m->lines[m->n++]))) {
			error_set(err, "%s: line %u of its manifest is not understood", path, m->n);
			return error_hint(err, "the archive is damaged; fetch it again");
		}
		p = next;
	}
	return true;
}

const struct manifest_line *manifest_find(const struct manifest *m, const char *name)
{
	for (unsigned i = 0; i < m->n; i++)
		if (!strcmp(m->lines[i].name, name))
			return &m->lines[i];
	return NULL;
}

static const EVP_MD *kind(enum digest d)
{
	return d == DIGEST_SHA1 ? EVP_sha1() : d == DIGEST_SHA256 ? EVP_sha256() : EVP_sha512();
}

unsigned digest_memory(enum digest d, const void *p, size_t len, uint8_t *out)
{
	unsigned n = 0;

	return EVP_Digest(p, len, out, &n, kind(d), NULL) == 1 ? n : 0;
}

static bool digest_all(EVP_MD_CTX *ctx, int fd, uint8_t *buf, struct block_job *job)
{
	struct stat st;
	uint64_t pos = 0;

	if (fstat(fd, &st) < 0)
		return false;
	for (;;) {
		ssize_t n = pread(fd, buf, PIECE, (off_t)pos);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n == 0;
		if (EVP_DigestUpdate(ctx, buf, (size_t)n) != 1)
			return false;
		pos += (uint64_t)n;
		if (job->progress)
			job->progress(job->ctx, min_u64(pos, (uint64_t)st.st_size), (uint64_t)st.st_size);
		if (job->stop && job->stop(job->ctx)) {
			job->stopped = true;
			return false;
		}
	}
}

unsigned digest_file(enum digest d, int fd, struct block_job *job, uint8_t *out)
{
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	uint8_t *buf = malloc(PIECE);
	unsigned n = 0;

	if (!ctx || !buf || EVP_DigestInit_ex(ctx, kind(d), NULL) != 1 || !digest_all(ctx, fd, buf, job) ||
	    EVP_DigestFinal_ex(ctx, out, &n) != 1)
		n = 0;
	EVP_MD_CTX_free(ctx);
	free(buf);
	return n;
}
