/*
 * Writing an OVA: the disks become streamOptimized VMDKs beside the archive, then all is put into it: .ovf, .mf, disks.
 */
#include "ova/ova.h"

#include <archive.h>
#include <archive_entry.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ova/ova_int.h"

#define PIECE (1 * MIB)
#define MANIFEST_LINE (OVA_NAME_MAX + 2 * OVA_DIGEST_MAX + 32)

struct exporter {
	struct ova_machine *m;
	const char *path;
	struct ova_job *job;
	struct error *err;
	struct archive *a;
	struct ovf_file files[OVA_DISKS_MAX];
	char digests[OVA_DISKS_MAX][2 * OVA_DIGEST_MAX + 1];
	uint64_t written, total;
};

static void vmdk_path(const struct exporter *x, unsigned d, char out[PATH_MAX])
{
	const char *slash = strrchr(x->path, '/');

	snprintf(out, PATH_MAX, "%.*s.ova-disk%u.vmdk", slash ? (int)(slash - x->path) + 1 : 0, x->path, d + 1);
}

/* ---- disks ---- */

static void hex(const uint8_t *value, unsigned n, char *out)
{
	for (unsigned i = 0; i < n; i++)
		snprintf(out + 2 * i, 3, "%02x", value[i]);
}

static bool measure(struct exporter *x, unsigned d, const char *path)
{
	uint8_t value[OVA_DIGEST_MAX];
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	unsigned n = 0;

	if (fd >= 0 && fstat(fd, &st) == 0) {
		x->files[d].size = (uint64_t)st.st_size;
		n = digest_file(DIGEST_SHA256, fd, x->job->block, value);
	}
	hex(value, n, x->digests[d]);
	if (fd >= 0)
		close(fd);
	return n || error_set(x->err, "%s: %s", path, x->job->block->stopped ? "stopped" : "cannot be read");
}

static bool pack_disk(struct exporter *x, unsigned d)
{
	struct ova_disk *disk = &x->m->disks[d];
	struct block_options from = {.path = disk->path, .format = disk->format, .readonly = true},
			     into = {.format = "vmdk"};
	struct block_create create = {.options = "subformat=streamOptimized,adapter_type=lsilogic"};
	struct block *src = block_open(&from, x->err), *dst = NULL;
	char path[PATH_MAX];
	bool ok = src != NULL;

	vmdk_path(x, d, path);
	create.path = into.path = path;
	if (ok) {
		create.size = src->size;
		disk->capacity = align_up(src->size, BLOCK_SECTOR);
		ok = block_create("vmdk", &create, x->err);
	}
	if (ok)
		dst = block_open(&into, x->err);
	ok = ok && dst && block_copy(src, dst, true, x->job->block, x->err);
	block_close(dst);
	block_close(src);
	snprintf(x->files[d].name, sizeof(x->files[d].name), "%.120s-disk%u.vmdk", x->m->name, d + 1);
	return ok && measure(x, d, path);
}

/* ---- the archive ---- */

static bool archive_failed(struct exporter *x)
{
	const char *why = archive_error_string(x->a);

	error_set(x->err, "%s: cannot be written: %s", x->path, why ? why : strerror(archive_errno(x->a)));
	return archive_errno(x->a) == ENOSPC ? error_hint(x->err, "free some space on that file system") : false;
}

static bool put_header(struct exporter *x, const char *name, uint64_t size)
{
	struct archive_entry *e = archive_entry_new();
	bool ok = e != NULL;

	if (!ok)
		return error_set(x->err, "out of memory");
	archive_entry_set_pathname(e, name);
	archive_entry_set_size(e, (la_int64_t)size);
	archive_entry_set_filetype(e, AE_IFREG);
	archive_entry_set_perm(e, 0644);
	archive_entry_set_mtime(e, time(NULL), 0);
	ok = archive_write_header(x->a, e) == ARCHIVE_OK || archive_failed(x);
	archive_entry_free(e);
	return ok;
}

static bool put_text(struct exporter *x, const char *name, const char *text, size_t len)
{
	return put_header(x, name, len) &&
	       (archive_write_data(x->a, text, len) == (la_ssize_t)len || archive_failed(x));
}

static bool copy_file(struct exporter *x, int fd, uint64_t size)
{
	struct block_job *b = x->job->block;
	uint8_t *buf = malloc(PIECE);
	bool ok = buf != NULL || error_set(x->err, "out of memory");

	for (uint64_t done = 0; ok && done < size;) {
		ssize_t n = pread(fd, buf, min_u64(PIECE, size - done), (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		ok = n > 0 || error_set(x->err, "%s: a disk cannot be read", x->path);
		ok = ok && (archive_write_data(x->a, buf, (size_t)n) == n || archive_failed(x));
		done += ok ? (uint64_t)n : 0;
		x->written += ok ? (uint64_t)n : 0;
		if (b->progress)
			b->progress(b->ctx, x->written, x->total);
		b->stopped = b->stopped || (b->stop && b->stop(b->ctx));
		if (ok && b->stopped)
			ok = error_set(x->err, "stopped");
	}
	free(buf);
	return ok;
}

static bool put_disk(struct exporter *x, unsigned d)
{
	char path[PATH_MAX];
	bool ok;
	int fd;

	vmdk_path(x, d, path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set(x->err, "%s: %s", path, strerror(errno));
	ok = put_header(x, x->files[d].name, x->files[d].size) && copy_file(x, fd, x->files[d].size);
	close(fd);
	unlink(path);
	return ok;
}

static bool put_members(struct exporter *x)
{
	char *text = NULL, *manifest = calloc(x->m->ndisks + 1, MANIFEST_LINE), name[OVA_NAME_MAX + 1],
	     digest[2 * OVA_DIGEST_MAX + 1];
	uint8_t value[OVA_DIGEST_MAX];
	size_t len = 0, n = 0;
	bool ok = manifest && ovf_write(x->m, x->files, &text, &len, x->err);

	snprintf(name, sizeof(name), "%s.ovf", x->m->name);
	if (ok) {
		hex(value, digest_memory(DIGEST_SHA256, text, len, value), digest);
		n = (size_t)snprintf(manifest, MANIFEST_LINE, "SHA256(%s)= %s\n", name, digest);
		for (unsigned d = 0; d < x->m->ndisks; d++)
			n += (size_t)snprintf(manifest + n, MANIFEST_LINE, "SHA256(%s)= %s\n", x->files[d].name,
					      x->digests[d]);
		ok = put_text(x, name, text, len);
	}
	snprintf(name, sizeof(name), "%s.mf", x->m->name);
	ok = ok && put_text(x, name, manifest, n);
	for (unsigned d = 0; ok && d < x->m->ndisks; d++)
		ok = put_disk(x, d);
	free(text);
	free(manifest);
	return ok;
}

static bool write_archive(struct exporter *x)
{
	int fd = open(x->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	bool ok;

	if (fd < 0)
		return error_set(x->err, "%s: %s", x->path, strerror(errno));
	for (unsigned d = 0; d < x->m->ndisks; d++)
		x->total += x->files[d].size;
	x->a = archive_write_new();
	ok = x->a != NULL || error_set(x->err, "out of memory");
	/* ustar, and pax headers only for members that are too large for it. */
	if (ok && (archive_write_set_format_pax_restricted(x->a) != ARCHIVE_OK ||
		   archive_write_open_fd(x->a, fd) != ARCHIVE_OK))
		ok = archive_failed(x);
	ok = ok && put_members(x) && (archive_write_close(x->a) == ARCHIVE_OK || archive_failed(x));
	archive_write_free(x->a);
	if (ok && fsync(fd) < 0)
		ok = error_set(x->err, "%s: %s", x->path, strerror(errno));
	close(fd);
	return ok;
}

bool ova_export(struct ova_machine *m, const char *path, struct ova_job *job, struct error *err)
{
	struct exporter *x = calloc(1, sizeof(*x));
	bool ok = true;

	if (!x)
		return error_set(err, "out of memory");
	x->m = m;
	x->path = path;
	x->job = job;
	x->err = err;
	for (unsigned d = 0; ok && d < m->ndisks; d++)
		ok = pack_disk(x, d);
	ok = ok && write_archive(x);
	for (unsigned d = 0; d < m->ndisks; d++) {
		char disk[PATH_MAX];

		vmdk_path(x, d, disk);
		unlink(disk);
	}
	free(x);
	return ok;
}
