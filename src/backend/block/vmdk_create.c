/*
 * New VMDKs. A sparse one: header, descriptor, then twice a grain directory and all of its grain tables, the redundant
 * ones first.
 */
#include "backend/block/vmdk_int.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "backend/block/iov.h"

enum subformat { MONOLITHIC_SPARSE, MONOLITHIC_FLAT, TWO_GB_SPARSE, TWO_GB_FLAT, STREAM };

static const char *const subformats[] = {
	"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized",
};
static const char *const adapters[] = {"ide", "lsilogic", "buslogic", "legacyESX"};

struct maker {
	const struct block_create *c;
	enum subformat sub;
	unsigned adapter;
	bool zeroed_grain;
	uint64_t size;
	uint32_t cid, parent_cid;
	char *text; /* the descriptor */
	size_t text_len, text_room;
	char (*made)[PATH_MAX]; /* files, to take back */
	unsigned nmade;
};

static bool choose(const char *path, const char *key, const char *value, const char *const *names, unsigned n,
		   unsigned *out, struct error *err)
{
	char all[128] = "";

	for (unsigned i = 0; i < n; i++) {
		if (!strcasecmp(value, names[i])) {
			*out = i;
			return true;
		}
		snprintf(all + strlen(all), sizeof(all) - strlen(all), "%s%s", i ? ", " : "", names[i]);
	}
	error_set(err, "disk %s: unknown %s '%.64s'", path, key, value);
	return error_hint(err, "it is one of: %s", all);
}

static bool set_option(struct maker *m, const char *key, const char *value, struct error *err)
{
	static const char *const onoff[] = {"off", "on"};
	unsigned n = 0;
	bool ok;

	if (!strcmp(key, "subformat")) {
		ok = choose(m->c->path, key, value, subformats, ARRAY_LEN(subformats), &n, err);
		m->sub = n;
		return ok;
	}
	if (!strcmp(key, "adapter_type"))
		return choose(m->c->path, key, value, adapters, ARRAY_LEN(adapters), &m->adapter, err);
	if (!strcmp(key, "zeroed_grain")) {
		ok = choose(m->c->path, key, value, onoff, 2, &n, err);
		m->zeroed_grain = n;
		return ok;
	}
	error_set(err, "disk %s: vmdk has no option '%.64s'", m->c->path, key);
	return error_hint(err, "the options are subformat, adapter_type and zeroed_grain");
}

static bool parse_options(struct maker *m, struct error *err)
{
	char *copy = strdup(m->c->options ? m->c->options : ""), *rest = copy, *one;
	bool ok = copy != NULL || error_set(err, "out of memory");

	while (ok && (one = strsep(&rest, ","))) {
		char *eq = strchr(one, '=');

		if (!*one)
			continue;
		if (!eq) {
			error_set(err, "disk %s: option '%.64s' has no value", m->c->path, one);
			ok = error_hint(err, "write it like subformat=streamOptimized");
			break;
		}
		*eq = 0;
		ok = set_option(m, one, eq + 1, err);
	}
	free(copy);
	return ok;
}

static bool is_split(const struct maker *m) { return m->sub == TWO_GB_SPARSE || m->sub == TWO_GB_FLAT; }
static bool is_flat(const struct maker *m) { return m->sub == MONOLITHIC_FLAT || m->sub == TWO_GB_FLAT; }

/* ---- files ---- */

static int make_file(struct maker *m, const char *path, struct error *err)
{
	int fd = block_file_create(path, err);

	if (fd >= 0)
		snprintf(m->made[m->nmade++], PATH_MAX, "%s", path);
	return fd;
}

static bool finish_file(const char *path, int fd, bool ok, struct error *err)
{
	if (ok && fsync(fd) < 0)
		ok = false;
	if (!ok)
		error_set(err, "disk %s: %s", path, strerror(errno));
	close(fd);
	return ok;
}

static bool put(int fd, uint64_t pos, const void *buf, uint64_t len)
{
	int r = iov_pwrite(fd, pos, &(struct iovec){(void *)buf, len}, 1, 0, len);

	errno = -r;
	return r == 0;
}

static bool put_directory(int fd, uint64_t pos, uint64_t tables, uint32_t n, uint32_t sectors)
{
	uint32_t *gd = calloc(n, 4);
	bool ok;

	if (!gd)
		return false;
	for (uint32_t i = 0; i < n; i++)
		gd[i] = (uint32_t)(tables / BLOCK_SECTOR) + i * sectors;
	ok = put(fd, pos, gd, (uint64_t)n * 4);
	free(gd);
	return ok;
}

/* A sparse file of `size` bytes of disk; with the descriptor inside when it is the only one. */
static bool fill_sparse(struct maker *m, int fd, uint64_t size, bool inside)
{
	struct vmdk_header h = {.version = m->zeroed_grain ? 2 : 1,
				.flags = VMDK_F_NEWLINE | VMDK_F_RGD,
				.capacity = size,
				.grain = VMDK_GRAIN,
				.gtes = VMDK_GTES};
	uint32_t n = (uint32_t)((size + VMDK_GRAIN * VMDK_GTES - 1) / (VMDK_GRAIN * VMDK_GTES));
	uint64_t dir = align_up((uint64_t)n * 4, BLOCK_SECTOR), tables = (uint64_t)n * VMDK_GTES * 4;
	uint8_t head[VMDK_HEADER];

	h.flags |= m->zeroed_grain ? VMDK_F_ZERO_GRAIN : 0;
	if (inside) {
		h.desc = BLOCK_SECTOR;
		h.desc_size = VMDK_DESC_ROOM;
	}
	h.rgd = BLOCK_SECTOR + h.desc_size;
	h.gd = h.rgd + dir + tables;
	h.overhead = align_up(h.gd + dir + tables, VMDK_GRAIN);
	vmdk_header_put(head, &h);
	return put(fd, 0, head, sizeof(head)) && (!inside || put(fd, BLOCK_SECTOR, m->text, m->text_len)) &&
	       put_directory(fd, h.rgd, h.rgd + dir, n, VMDK_GTES * 4 / BLOCK_SECTOR) &&
	       put_directory(fd, h.gd, h.gd + dir, n, VMDK_GTES * 4 / BLOCK_SECTOR) &&
	       ftruncate(fd, (off_t)h.overhead) == 0;
}

/* A stream without grains, complete with its tail. */
static bool fill_stream(struct maker *m, int fd)
{
	struct vmdk_header h = {.version = 3,
				.flags = VMDK_F_NEWLINE | VMDK_F_COMPRESSED | VMDK_F_MARKERS,
				.capacity = m->size,
				.grain = VMDK_GRAIN,
				.desc = BLOCK_SECTOR,
				.desc_size = VMDK_DESC_ROOM,
				.gd = VMDK_GD_AT_END,
				.overhead = VMDK_OVERHEAD,
				.gtes = VMDK_GTES,
				.compression = 1};
	uint64_t n = (m->size + VMDK_GRAIN * VMDK_GTES - 1) / (VMDK_GRAIN * VMDK_GTES),
		 dir = align_up(n * 4, BLOCK_SECTOR);
	uint8_t head[VMDK_HEADER], marker[BLOCK_SECTOR] = {0};
	uint64_t pos = VMDK_OVERHEAD;

	vmdk_header_put(head, &h);
	if (!put(fd, 0, head, sizeof(head)) || !put(fd, BLOCK_SECTOR, m->text, m->text_len))
		return false;
	put_le64(marker, dir / BLOCK_SECTOR);
	put_le32(marker + 12, VMDK_MARK_GD);
	if (!put(fd, pos, marker, sizeof(marker)))
		return false;
	h.gd = pos + BLOCK_SECTOR;
	pos = h.gd + dir;
	put_le64(marker, 1);
	put_le32(marker + 12, VMDK_MARK_FOOTER);
	vmdk_header_put(head, &h);
	return put(fd, pos, marker, sizeof(marker)) && put(fd, pos + BLOCK_SECTOR, head, sizeof(head)) &&
	       ftruncate(fd, (off_t)(pos + 3 * BLOCK_SECTOR)) == 0;
}

/* ---- descriptor ---- */

__attribute__((format(printf, 2, 3))) static void print(struct maker *m, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	m->text_len += (size_t)vsnprintf(m->text + m->text_len, m->text_room - m->text_len, fmt, ap);
	va_end(ap);
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* "d.vmdk" and "-s001" -> "d-s001.vmdk" */
static bool extent_name(const struct maker *m, unsigned i, char out[PATH_MAX], struct error *err)
{
	const char *path = m->c->path, *base = base_name(path), *dot = strrchr(base, '.');
	int stem = dot && !strcasecmp(dot, ".vmdk") ? (int)(dot - path) : (int)strlen(path), n;

	if (m->sub == MONOLITHIC_FLAT)
		n = snprintf(out, PATH_MAX, "%.*s-flat.vmdk", stem, path);
	else
		n = snprintf(out, PATH_MAX, "%.*s-%c%03u.vmdk", stem, path, m->sub == TWO_GB_FLAT ? 'f' : 's', i + 1);
	return (n < PATH_MAX && strlen(base_name(out)) < 256) || error_set(err, "disk %s: its name is too long", path);
}

static uint64_t extent_size(const struct maker *m, unsigned i)
{
	return is_split(m) ? min_u64(VMDK_SPLIT, m->size - i * VMDK_SPLIT) : m->size;
}

static unsigned extent_count(const struct maker *m)
{
	return is_split(m) ? (unsigned)((m->size + VMDK_SPLIT - 1) / VMDK_SPLIT) : 1;
}

static bool extent_lines(struct maker *m, struct error *err)
{
	for (unsigned i = 0; i < extent_count(m); i++) {
		char name[PATH_MAX];

		if (m->sub == MONOLITHIC_SPARSE || m->sub == STREAM)
			snprintf(name, sizeof(name), "%s", m->c->path);
		else if (!extent_name(m, i, name, err))
			return false;
		print(m, "RW %llu %s \"%s\"%s\n", (unsigned long long)(extent_size(m, i) / BLOCK_SECTOR),
		      is_flat(m) ? "FLAT" : "SPARSE", base_name(name), is_flat(m) ? " 0" : "");
	}
	return true;
}

static bool describe(struct maker *m, struct error *err)
{
	unsigned heads = m->adapter ? 255 : 16;

	m->text_room = 4096 + extent_count(m) * 320;
	m->text = calloc(1, m->text_room);
	if (!m->text)
		return error_set(err, "out of memory");
	print(m, "# Disk DescriptorFile\nversion=1\nCID=%08x\nparentCID=%08x\ncreateType=\"%s\"\n", m->cid,
	      m->parent_cid, subformats[m->sub]);
	if (m->c->backing)
		print(m, "parentFileNameHint=\"%s\"\n", m->c->backing);
	print(m, "\n# Extent description\n");
	if (!extent_lines(m, err))
		return false;
	print(m,
	      "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\nddb.geometry.cylinders = \"%llu\"\n"
	      "ddb.geometry.heads = \"%u\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"%s\"\n",
	      (unsigned long long)min_u64(m->size / (63 * BLOCK_SECTOR * heads), m->adapter ? UINT32_MAX : 16383),
	      heads, adapters[m->adapter]);
	return m->text_len < m->text_room &&
			       (m->sub == MONOLITHIC_SPARSE || m->sub == STREAM ? m->text_len <= VMDK_DESC_ROOM : true)
		       ? true
		       : error_set(err, "disk %s: the names are too long for a VMDK descriptor", m->c->path);
}

/* ---- parent ---- */

static bool ask_parent(struct maker *m, struct error *err)
{
	const struct block_create *c = m->c;
	struct block_options o = {.readonly = true, .format = "vmdk"};
	char path[2 * PATH_MAX];
	struct block *p;

	m->parent_cid = VMDK_NO_PARENT;
	if (!c->backing)
		return true;
	if (c->backing_format && strcmp(c->backing_format, "vmdk")) {
		error_set(err, "disk %s: the backing file of a VMDK is a VMDK, not %.32s", c->path, c->backing_format);
		return error_hint(err, "convert it, or make a qcow2 image");
	}
	if (m->sub != MONOLITHIC_SPARSE && m->sub != TWO_GB_SPARSE)
		return error_set(err, "disk %s: %s images have no backing file", c->path, subformats[m->sub]);
	for (const char *s = c->backing; *s; s++)
		if (*s == '"' || (uint8_t)*s < 0x20)
			return error_set(err,
					 "disk %s: a VMDK cannot name this backing file: quotes or control characters",
					 c->path);
	snprintf(path, sizeof(path), "%.*s%s", c->backing[0] == '/' ? 0 : (int)(base_name(c->path) - c->path), c->path,
		 c->backing);
	o.path = path;
	p = block_open(&o, err);
	if (!p)
		return false;
	m->parent_cid = vmdk_cid(p);
	m->size = m->size ? m->size : p->size;
	block_close(p);
	return true;
}

/* ---- all of it ---- */

static bool make_extent(struct maker *m, unsigned i, struct error *err)
{
	uint64_t size = extent_size(m, i);
	char path[PATH_MAX];
	int fd;

	if (!extent_name(m, i, path, err))
		return false;
	fd = make_file(m, path, err);
	return fd >= 0 &&
	       finish_file(path, fd, is_flat(m) ? ftruncate(fd, (off_t)size) == 0 : fill_sparse(m, fd, size, false),
			   err);
}

static bool make_files(struct maker *m, struct error *err)
{
	const char *path = m->c->path;
	bool single = m->sub == MONOLITHIC_SPARSE || m->sub == STREAM;
	int fd;

	for (unsigned i = 0; !single && i < extent_count(m); i++)
		if (!make_extent(m, i, err))
			return false;
	fd = make_file(m, path, err);
	if (fd < 0)
		return false;
	if (!single)
		return finish_file(path, fd, put(fd, 0, m->text, m->text_len), err);
	return finish_file(path, fd, m->sub == STREAM ? fill_stream(m, fd) : fill_sparse(m, fd, m->size, true), err);
}

static bool check_size(struct maker *m, struct error *err)
{
	uint64_t max = is_split(m) ? VMDK_EXTENTS_MAX * VMDK_SPLIT : 62 * 1024 * GIB;

	if (!m->size)
		return error_set(err, "disk %s: its size must not be 0", m->c->path);
	if (m->size <= max) {
		m->size = align_up(m->size, BLOCK_SECTOR);
		return true;
	}
	error_set(err, "disk %s: %s images have at most %llu GiB", m->c->path, subformats[m->sub],
		  (unsigned long long)(max / GIB));
	return error_hint(err, "make it smaller, or a qcow2 image");
}

bool vmdk_create(const struct block_create *c, struct error *err)
{
	struct maker m = {.c = c, .size = c->size};
	bool ok = parse_options(&m, err) && ask_parent(&m, err) && check_size(&m, err);

	if (ok && getrandom(&m.cid, sizeof(m.cid), 0) != sizeof(m.cid))
		ok = error_set(err, "no random numbers: %s", strerror(errno));
	m.cid -= m.cid == VMDK_NO_PARENT;
	if (ok) {
		m.made = calloc(extent_count(&m) + 1, sizeof(*m.made));
		ok = m.made || error_set(err, "out of memory");
	}
	ok = ok && describe(&m, err) && make_files(&m, err);
	for (unsigned i = 0; !ok && i < m.nmade; i++)
		unlink(m.made[i]);
	free(m.made);
	free(m.text);
	return ok;
}
