/*
 * Reading an OVA. The .ovf comes first and says which members are disks; those alone are extracted, into files that we
 * name. Then the manifest is compared, then each disk is checked and converted.
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
#include <unistd.h>

#include "ova/ova_int.h"

#define READ_BLOCK (256 * KIB)
#define NOTES_MAX 16u

struct member {
	char name[OVA_NAME_MAX + 1];
	int disk; /* index in the OVF; -1: none of ours */
};

struct importer {
	const char *path, *dir;
	struct ova_job *job;
	struct error *err;
	uint64_t size; /* of the archive: no member is larger, nor all of them together */
	uint64_t extracted;
	struct archive *a;
	struct ovf ovf;
	uint8_t *ovf_text;
	size_t ovf_len;
	struct manifest *manifest; /* NULL: none yet */
	unsigned nmembers;	   /* the first is the .ovf */
	struct member members[OVA_MEMBERS_MAX];
	unsigned nnotes;
	char notes[NOTES_MAX][256];
};

static bool bad(struct importer *i, const char *fmt, const char *what)
{
	char text[384];

	snprintf(text, sizeof(text), "%s%s%.128s", fmt, what ? " " : "", what ? what : "");
	error_set(i->err, "%s: %s", i->path, text);
	return error_hint(i->err, "it is damaged or is no OVA; fetch it again");
}

/* Told when all has gone well: an error is one line. */
static void note(struct importer *i, const char *line, const char *what)
{
	char text[sizeof(i->notes[0])];

	if (i->nnotes == NOTES_MAX)
		return;
	snprintf(text, sizeof(text), "%s%s%.128s", line, what ? " " : "", what ? what : "");
	memcpy(i->notes[i->nnotes++], text, sizeof(text));
}

/* An error of an unpacked disk names the disk as the archive does. */
static bool disk_failed(struct importer *i, const char *path, const char *href)
{
	char was[512], prefix[PATH_MAX + 16];

	snprintf(prefix, sizeof(prefix), "disk %s: ", path);
	snprintf(was, sizeof(was), "%s", i->err->msg);
	if (strncmp(was, prefix, strlen(prefix)))
		return false;
	error_set(i->err, "%s: disk %s: %s", i->path, href, was + strlen(prefix));
	return error_hint(i->err, "the archive is damaged; fetch it again");
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), m = strlen(suffix);

	return n > m && !strcasecmp(name + n - m, suffix);
}

static bool disk_path(const struct importer *i, unsigned disk, const char *kind, char out[PATH_MAX])
{
	if (snprintf(out, PATH_MAX, "%s/%s%u%s", i->dir, kind, disk + 1, kind[0] == 'd' ? ".qcow2" : "") < PATH_MAX)
		return true;
	return error_set(i->err, "%s: the directory's name is too long", i->dir);
}

/* ---- members ---- */

static bool stopped(struct importer *i)
{
	struct block_job *b = i->job->block;

	if (b->progress)
		b->progress(b->ctx, min_u64(i->extracted, i->size), i->size);
	if (!b->stopped && b->stop)
		b->stopped = b->stop(b->ctx);
	return b->stopped && !error_set(i->err, "stopped");
}

/* Data of the current member, in pieces at rising offsets; what is between them is zero. */
static bool next_piece(struct importer *i, uint64_t limit, const void **buf, size_t *len, uint64_t *off, bool *end)
{
	la_int64_t at;
	int r = archive_read_data_block(i->a, buf, len, &at);

	*end = r == ARCHIVE_EOF;
	*off = (uint64_t)at;
	if (*end)
		return true;
	if (r != ARCHIVE_OK && r != ARCHIVE_WARN)
		return bad(i, "the archive cannot be read:", archive_error_string(i->a));
	return (at >= 0 && range_ok(*off, *len, limit)) || bad(i, "a member is larger than it says", NULL);
}

static uint8_t *read_member(struct importer *i, uint64_t size, uint64_t max)
{
	uint8_t *data;
	bool end = false, ok = true;

	if (size > max || !size) {
		bad(i, "a text member has an impossible size", NULL);
		return NULL;
	}
	data = calloc(1, size);
	if (!data) {
		error_set(i->err, "out of memory");
		return NULL;
	}
	while (ok && !end) {
		const void *buf;
		uint64_t off;
		size_t len;

		ok = next_piece(i, size, &buf, &len, &off, &end);
		if (ok && !end)
			memcpy(data + off, buf, len);
	}
	if (ok)
		return data;
	free(data);
	return NULL;
}

static bool write_piece(struct importer *i, int fd, const uint8_t *buf, size_t len, uint64_t off)
{
	while (len) {
		ssize_t n = pwrite(fd, buf, len, (off_t)off);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			error_set(i->err, "%s: a disk cannot be unpacked: %s", i->path, strerror(errno));
			return errno == ENOSPC ? error_hint(i->err, "free some space where the machine goes") : false;
		}
		buf += n;
		off += (uint64_t)n;
		len -= (size_t)n;
		i->extracted += (uint64_t)n;
	}
	return true;
}

static bool extract(struct importer *i, unsigned disk, uint64_t size)
{
	char path[PATH_MAX];
	bool end = false, ok;
	int fd;

	if (!disk_path(i, disk, "packed", path))
		return false;
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_set(i->err, "%s: %s", path, strerror(errno));
	ok = ftruncate(fd, (off_t)size) == 0 || error_set(i->err, "%s: %s", path, strerror(errno));
	while (ok && !end) {
		const void *buf;
		uint64_t off;
		size_t len;

		ok = next_piece(i, size, &buf, &len, &off, &end) && (end || write_piece(i, fd, buf, len, off)) &&
		     !stopped(i);
	}
	close(fd);
	return ok;
}

static bool take_ovf(struct importer *i, const char *name, uint64_t size)
{
	if (!has_suffix(name, ".ovf"))
		return bad(i, "it does not begin with an .ovf file, but with", name);
	i->ovf_text = read_member(i, size, OVA_OVF_MAX);
	i->ovf_len = (size_t)size;
	return i->ovf_text && ovf_read(i->path, i->ovf_text, i->ovf_len, &i->ovf, i->err);
}

static bool take_manifest(struct importer *i, uint64_t size)
{
	uint8_t *text;
	bool ok;

	if (i->manifest)
		return bad(i, "it has two manifests", NULL);
	text = read_member(i, size, OVA_MANIFEST_MAX);
	i->manifest = text ? calloc(1, sizeof(*i->manifest)) : NULL;
	ok = text && (i->manifest || error_set(i->err, "out of memory"));
	ok = ok && manifest_parse(i->path, (const char *)text, (size_t)size, i->manifest, i->err);
	free(text);
	return ok;
}

static int disk_named(const struct importer *i, const char *name)
{
	for (unsigned d = 0; d < i->ovf.ndisks; d++)
		if (!strcmp(i->ovf.disks[d].href, name))
			return (int)d;
	return -1;
}

static bool take_member(struct importer *i, struct archive_entry *e)
{
	const char *name = archive_entry_pathname(e);
	struct member *m = &i->members[i->nmembers];
	uint64_t size = (uint64_t)archive_entry_size(e);

	if (name && !strncmp(name, "./", 2))
		name += 2;
	if (archive_entry_filetype(e) != AE_IFREG || archive_entry_hardlink(e) || archive_entry_symlink(e) || !name ||
	    !ova_name_ok(name))
		return bad(i, "a member is not a plain file with a plain name", NULL);
	if (i->nmembers == OVA_MEMBERS_MAX)
		return bad(i, "more than 64 members", NULL);
	if (!archive_entry_size_is_set(e) || archive_entry_size(e) < 0 || size > i->size)
		return bad(i, "a member claims to be larger than the archive:", name);
	for (unsigned k = 0; k < i->nmembers; k++)
		if (!strcmp(i->members[k].name, name))
			return bad(i, "two members have the name", name);
	strcpy(m->name, name);
	i->nmembers++;
	m->disk = -1;
	if (i->nmembers == 1)
		return take_ovf(i, name, size);
	if (has_suffix(name, ".mf"))
		return take_manifest(i, size);
	if (has_suffix(name, ".cert"))
		note(i, "the certificate is not looked at: who made this archive is not verified", NULL);
	m->disk = disk_named(i, name);
	return m->disk < 0 || extract(i, (unsigned)m->disk, size);
}

static bool read_members(struct importer *i)
{
	struct archive_entry *e;
	int r;

	while ((r = archive_read_next_header(i->a, &e)) == ARCHIVE_OK || r == ARCHIVE_WARN)
		if (!take_member(i, e))
			return false;
	if (r != ARCHIVE_EOF)
		return bad(i, "the archive cannot be read:", archive_error_string(i->a));
	return i->nmembers || bad(i, "the archive is empty", NULL);
}

static bool read_archive(struct importer *i)
{
	int fd = open(i->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	bool ok;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		error_set(i->err, "%s: %s", i->path, fd < 0 ? strerror(errno) : "not a file");
		error_hint(i->err, "check the path");
		if (fd >= 0)
			close(fd);
		return false;
	}
	i->size = (uint64_t)st.st_size;
	i->a = archive_read_new();
	/* A tar file, not compressed: what it claims is bounded by what it has. */
	ok = i->a && archive_read_support_format_tar(i->a) == ARCHIVE_OK;
	if (!ok)
		error_set(i->err, "out of memory");
	else if (archive_read_open_fd(i->a, fd, READ_BLOCK) != ARCHIVE_OK)
		ok = bad(i, "no tar file:", archive_error_string(i->a));
	ok = ok && read_members(i);
	archive_read_free(i->a);
	close(fd);
	return ok;
}

/* ---- manifest ---- */

static bool compare(struct importer *i, const struct manifest_line *l, const uint8_t *value, unsigned len)
{
	if (i->job->block->stopped)
		return error_set(i->err, "stopped");
	if (len && !memcmp(l->value, value, len))
		return true;
	error_set(i->err, "%s: %s is not what the manifest says it is", i->path, l->name);
	return error_hint(i->err, "it was damaged or changed on the way; fetch it again");
}

static bool verify_disk(struct importer *i, const struct member *m, const struct manifest_line *l)
{
	uint8_t value[OVA_DIGEST_MAX];
	char path[PATH_MAX];
	bool ok;
	int fd;

	if (!disk_path(i, (unsigned)m->disk, "packed", path))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set(i->err, "%s: %s", path, strerror(errno));
	ok = compare(i, l, value, digest_file(l->digest, fd, i->job->block, value));
	close(fd);
	return ok;
}

/* All that we use must be in the manifest, with the right digest; what it lists beyond must be there. */
static bool verify(struct importer *i)
{
	uint8_t value[OVA_DIGEST_MAX];

	if (!i->manifest) {
		note(i, "the archive has no manifest: whether it is complete and unchanged cannot be verified", NULL);
		return true;
	}
	for (unsigned k = 0; k < i->nmembers; k++) {
		const struct member *m = &i->members[k];
		const struct manifest_line *l = manifest_find(i->manifest, m->name);

		if (k && m->disk < 0)
			continue;
		if (!l)
			return bad(i, "the manifest does not list", m->name);
		if (k == 0 ? !compare(i, l, value, digest_memory(l->digest, i->ovf_text, i->ovf_len, value))
			   : !verify_disk(i, m, l))
			return false;
	}
	for (unsigned k = 0; k < i->manifest->n; k++) {
		unsigned n = 0;

		while (n < i->nmembers && strcmp(i->members[n].name, i->manifest->lines[k].name))
			n++;
		if (n == i->nmembers)
			return bad(i, "the manifest lists what is not there:", i->manifest->lines[k].name);
	}
	return true;
}

/* ---- disks ---- */

/* A table that names one place twice could make a small archive a huge disk. */
static bool check_source(struct importer *i, struct block *b, const char *name)
{
	struct block_check c = {0};
	struct error err = {0};

	if (!b->format->check(b, false, &c, &err) || c.corruptions)
		return bad(i, "a disk is damaged:", name);
	return true;
}

static bool convert(struct importer *i, unsigned d, const char *to)
{
	const struct ovf_disk *o = &i->ovf.disks[d];
	struct block_create create = {.path = to, .size = o->capacity};
	struct block_options from = {.format = "vmdk", .readonly = true}, into = {.path = to, .format = "qcow2"};
	struct block *src = NULL, *dst = NULL;
	char path[PATH_MAX];
	bool ok = true;

	if (o->href[0]) {
		if (!disk_path(i, d, "packed", path))
			return false;
		from.path = path;
		src = block_open(&from, i->err);
		ok = src ? check_source(i, src, o->href) : disk_failed(i, path, o->href);
		create.size = src ? src->size : 0;
		if (ok && src->size != o->capacity)
			note(i, "the size of a disk in the OVF differs from its image's, which counts:", o->href);
	}
	ok = ok && block_create("qcow2", &create, i->err);
	if (ok && src) {
		dst = block_open(&into, i->err);
		ok = dst && block_copy(src, dst, false, i->job->block, i->err);
	}
	block_close(dst);
	block_close(src);
	if (o->href[0])
		unlink(path);
	i->ovf.machine.disks[d].capacity = create.size;
	return ok;
}

static bool convert_all(struct importer *i)
{
	struct ova_machine *m = &i->ovf.machine;

	for (unsigned d = 0; d < i->ovf.ndisks; d++) {
		const char *href = i->ovf.disks[d].href;
		char to[PATH_MAX];
		unsigned k = 0;

		while (k < i->nmembers && i->members[k].disk != (int)d)
			k++;
		if (href[0] && k == i->nmembers)
			return bad(i, "a disk is not in the archive:", href);
		if (!disk_path(i, d, "disk", to) || !convert(i, d, to))
			return false;
		snprintf(m->disks[d].path, sizeof(m->disks[d].path), "disk%u.qcow2", d + 1);
		m->ndisks = d + 1;
	}
	return true;
}

bool ova_import(const char *path, const char *dir, struct ova_machine *m, struct ova_job *job, struct error *err)
{
	struct importer *i = calloc(1, sizeof(*i));
	bool ok;

	if (!i)
		return error_set(err, "out of memory");
	i->path = path;
	i->dir = dir;
	i->job = job;
	i->err = err;
	ok = read_archive(i) && verify(i) && convert_all(i);
	if (ok && i->ovf.ignored[0])
		note(i, "the machine has a device that is left out:", i->ovf.ignored);
	for (unsigned k = 0; k < i->nnotes && ok && job->note; k++)
		job->note(job->ctx, i->notes[k]);
	if (ok)
		*m = i->ovf.machine;
	free(i->ovf_text);
	free(i->manifest);
	free(i);
	return ok;
}
