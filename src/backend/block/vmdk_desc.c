/*
 * The descriptor of a VMDK: lines of `key=value`, comments, and one line per extent:
 *   RW 4192256 SPARSE "disk-s001.vmdk"
 *   RW 4192256 FLAT "disk-flat.vmdk" 0
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "backend/block/vmdk_int.h"

#define SECTORS_MAX (UINT64_C(1) << 53) /* 4 EiB: the sum of two does not overflow */

struct text {
	const char *p, *end;
};

static struct text next_line(struct text *t)
{
	struct text line = {t->p, t->p};

	while (line.end < t->end && *line.end != '\n' && *line.end)
		line.end++;
	t->p = line.end < t->end ? line.end + 1 : t->end;
	while (line.p < line.end && isspace((unsigned char)*line.p))
		line.p++;
	while (line.end > line.p && isspace((unsigned char)line.end[-1]))
		line.end--;
	return line;
}

static bool next_word(struct text *line, char *out, size_t size)
{
	size_t n = 0;

	while (line->p < line->end && isspace((unsigned char)*line->p))
		line->p++;
	while (line->p < line->end && !isspace((unsigned char)*line->p)) {
		if (n + 1 >= size)
			return false;
		out[n++] = *line->p++;
	}
	out[n] = 0;
	return n > 0;
}

static bool quoted(struct text *line, char *out, size_t size)
{
	size_t n = 0;

	while (line->p < line->end && isspace((unsigned char)*line->p))
		line->p++;
	if (line->p >= line->end || *line->p++ != '"')
		return false;
	while (line->p < line->end && *line->p != '"') {
		if (n + 1 >= size || iscntrl((unsigned char)*line->p))
			return false;
		out[n++] = *line->p++;
	}
	out[n] = 0;
	return n > 0 && line->p++ < line->end;
}

static bool number(const char *s, uint64_t max, uint64_t *out)
{
	*out = 0;
	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || *out > (max - (unsigned)(*s - '0')) / 10)
			return false;
		*out = *out * 10 + (unsigned)(*s - '0');
	}
	return *out <= max;
}

static bool hex32(struct text v, uint32_t *out)
{
	*out = 0;
	if (v.end - v.p < 1 || v.end - v.p > 8)
		return false;
	for (; v.p < v.end; v.p++) {
		int c = tolower((unsigned char)*v.p);

		if (!isxdigit(c))
			return false;
		*out = *out << 4 | (uint32_t)(c <= '9' ? c - '0' : c - 'a' + 10);
	}
	return true;
}

/* The value of `key = value` or `key = "value"`; false: another key. */
static bool value_of(struct text line, const char *key, struct text *value)
{
	size_t n = strlen(key);

	if ((size_t)(line.end - line.p) < n || strncasecmp(line.p, key, n))
		return false;
	line.p += n;
	while (line.p < line.end && isspace((unsigned char)*line.p))
		line.p++;
	if (line.p >= line.end || *line.p++ != '=')
		return false;
	while (line.p < line.end && isspace((unsigned char)*line.p))
		line.p++;
	if (line.end - line.p >= 2 && *line.p == '"' && line.end[-1] == '"') {
		line.p++;
		line.end--;
	}
	*value = line;
	return true;
}

static bool copy_value(struct text v, char *out, size_t size)
{
	size_t n = (size_t)(v.end - v.p);

	if (n >= size)
		return false;
	for (size_t i = 0; i < n; i++)
		if (iscntrl((unsigned char)v.p[i]))
			return false;
	memcpy(out, v.p, n);
	out[n] = 0;
	return true;
}

static bool parse_kind(const char *path, const char *word, enum vmdk_kind *kind, struct error *err)
{
	if (!strcmp(word, "FLAT") || !strcmp(word, "VMFS"))
		*kind = VMDK_FLAT;
	else if (!strcmp(word, "SPARSE"))
		*kind = VMDK_SPARSE;
	else if (!strcmp(word, "ZERO"))
		*kind = VMDK_ZERO;
	else {
		error_set(err, "disk %s: extents of type %.31s are not supported", path, word);
		return error_hint(err,
				  "convert it to monolithicSparse or streamOptimized with the program that made it");
	}
	return true;
}

static bool bad_extent(const char *path, unsigned n, struct error *err)
{
	error_set(err, "disk %s: the line of extent %u in the descriptor is damaged", path, n + 1);
	return error_hint(err, "restore the descriptor from a backup");
}

static bool parse_extent(const char *path, struct text line, struct vmdk_desc *d, bool *is_extent, struct error *err)
{
	static const char *const access[] = {"RW", "RDONLY", "NOACCESS"};
	struct vmdk_desc_extent e = {0}, *grown;
	char word[32];
	unsigned a = 0;

	*is_extent = false;
	if (!next_word(&line, word, sizeof(word)))
		return true;
	while (a < ARRAY_LEN(access) && strcmp(word, access[a]))
		a++;
	if (a == ARRAY_LEN(access))
		return true;
	*is_extent = true;
	e.access = a;
	if (!next_word(&line, word, sizeof(word)) || !number(word, SECTORS_MAX, &e.size) || !e.size)
		return bad_extent(path, d->nextents, err);
	e.size *= BLOCK_SECTOR;
	if (!next_word(&line, word, sizeof(word)))
		return bad_extent(path, d->nextents, err);
	if (!parse_kind(path, word, &e.kind, err))
		return false;
	if (e.kind != VMDK_ZERO && !quoted(&line, e.file, sizeof(e.file)))
		return bad_extent(path, d->nextents, err);
	if (e.kind == VMDK_FLAT && next_word(&line, word, sizeof(word))) {
		if (!number(word, SECTORS_MAX, &e.file_off))
			return bad_extent(path, d->nextents, err);
		e.file_off *= BLOCK_SECTOR;
	}
	if (d->nextents == VMDK_EXTENTS_MAX)
		return error_set(err, "disk %s: more than %u extents", path, VMDK_EXTENTS_MAX);
	grown = realloc(d->extents, (d->nextents + 1) * sizeof(*grown));
	if (!grown)
		return error_set(err, "disk %s: out of memory", path);
	d->extents = grown;
	d->extents[d->nextents++] = e;
	return true;
}

static bool parse_line(const char *path, const char *text, struct text line, struct vmdk_desc *d, struct error *err)
{
	struct text v;
	bool is_extent;

	if (line.p == line.end || *line.p == '#')
		return true;
	if (!parse_extent(path, line, d, &is_extent, err))
		return false;
	if (is_extent)
		return true;
	if (value_of(line, "createType", &v))
		return copy_value(v, d->create_type, sizeof(d->create_type)) ||
		       error_set(err, "disk %s: the descriptor's createType is damaged", path);
	if (value_of(line, "CID", &v)) {
		if (!hex32(v, &d->cid))
			return error_set(err, "disk %s: the descriptor's CID is damaged", path);
		d->cid_pos = v.end - v.p == 8 ? (size_t)(v.p - text) : 0;
		return true;
	}
	if (value_of(line, "parentCID", &v))
		return hex32(v, &d->parent_cid) ||
		       error_set(err, "disk %s: the descriptor's parentCID is damaged", path);
	if (value_of(line, "parentFileNameHint", &v))
		return copy_value(v, d->parent, sizeof(d->parent)) ||
		       error_set(err, "disk %s: the descriptor's parentFileNameHint is damaged", path);
	return true;
}

static bool check_whole(const char *path, struct vmdk_desc *d, struct error *err)
{
	uint64_t sum = 0;

	if (!d->create_type[0])
		return error_set(err, "disk %s: the descriptor has no createType", path);
	if (!d->nextents)
		return error_set(err, "disk %s: the descriptor names no extents", path);
	for (unsigned i = 0; i < d->nextents; i++) {
		sum += d->extents[i].size;
		if (sum > INT64_MAX)
			return error_set(err, "disk %s: it claims to be larger than 8 EiB", path);
		if (d->extents[i].access == VMDK_NOACCESS)
			return error_set(err, "disk %s: extent %u is marked NOACCESS", path, i + 1);
	}
	if (d->parent_cid != VMDK_NO_PARENT && !d->parent[0])
		return error_set(err, "disk %s: it needs a parent, and the descriptor does not name it", path);
	if (d->parent_cid == VMDK_NO_PARENT)
		d->parent[0] = 0;
	return true;
}

bool vmdk_desc_parse(const char *path, const char *text, size_t len, struct vmdk_desc *d, struct error *err)
{
	struct text t = {text, text + len};
	bool ok = true;

	*d = (struct vmdk_desc){.parent_cid = VMDK_NO_PARENT};
	while (ok && t.p < t.end && *t.p)
		ok = parse_line(path, text, next_line(&t), d, err);
	ok = ok && check_whole(path, d, err);
	if (!ok)
		vmdk_desc_fini(d);
	return ok;
}

void vmdk_desc_fini(struct vmdk_desc *d)
{
	free(d->extents);
	*d = (struct vmdk_desc){0};
}
