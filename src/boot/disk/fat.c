/*
 * FAT12, FAT16 and FAT32 with long names (Microsoft FAT specification, 2005), read only: an EFI system partition.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "boot/disk/disk_int.h"

#define DIR_ENTRIES_MAX 65536 /* a FAT directory has at most so many (section 6) */
#define NAME_MAX_UTF8 766     /* 255 UTF-16 units */

#define ATTR_VOLUME 0x08
#define ATTR_DIRECTORY 0x10
#define ATTR_LONG 0x0f
#define END_FAT12 0xff8u
#define END_FAT16 0xfff8u
#define END_FAT32 0x0ffffff8u

struct fat {
	struct block *block;
	uint64_t off;
	unsigned bits;          /* 12, 16, 32 */
	uint32_t cluster_size;  /* bytes */
	uint64_t fat, root, data; /* byte offsets from off; root: FAT12 and 16 */
	uint32_t root_size, root_cluster, nclusters;
};

struct fat_file {
	uint32_t cluster, size;
	bool directory;
};

/* Section 3: the fields of the boot sector, each checked; the count of clusters decides the kind (section 3.5). */
static bool fat_parse(struct fat *f, const uint8_t *s, uint64_t len)
{
	uint32_t sector = get_le16(s + 11), per_cluster = s[13], reserved = get_le16(s + 14), nfats = s[16];
	uint32_t roots = get_le16(s + 17), fat_sectors = get_le16(s + 22) ? get_le16(s + 22) : get_le32(s + 36);
	uint64_t total = get_le16(s + 19) ? get_le16(s + 19) : get_le32(s + 32), first, n;

	if (get_le16(s + 510) != 0xaa55 || (s[0] != 0xeb && s[0] != 0xe9) || sector < 512 || sector > 4096 || (sector & (sector - 1)) ||
	    !per_cluster || (per_cluster & (per_cluster - 1)) || !reserved || !nfats || !fat_sectors || total * sector > len)
		return false;
	f->root_size = (uint32_t)align_up(roots * 32, sector);
	first = reserved + (uint64_t)nfats * fat_sectors + f->root_size / sector;
	if (first >= total)
		return false;
	n = (total - first) / per_cluster;
	f->bits = n < 4085 ? 12 : n < 65525 ? 16 : 32;
	f->cluster_size = per_cluster * sector;
	f->fat = (uint64_t)reserved * sector;
	f->root = (reserved + (uint64_t)nfats * fat_sectors) * sector;
	f->data = first * sector;
	f->root_cluster = f->bits == 32 ? get_le32(s + 44) : 0;
	f->nclusters = (uint32_t)min_u64(n, (uint64_t)fat_sectors * sector * 8 / f->bits - 2);
	return (f->bits == 32) == !get_le16(s + 22) && f->nclusters > 0;
}

static int fat_open(struct disk_fs *fs, struct block *b, uint64_t off, uint64_t len)
{
	struct fat *f = calloc(1, sizeof(*f));
	uint8_t s[512];
	unsigned id;

	if (!f)
		return -ENOMEM;
	*f = (struct fat){.block = b, .off = off};
	if (len < sizeof(s) || block_read(b, off, s, sizeof(s)) || !fat_parse(f, s, len)) {
		free(f);
		return -EINVAL;
	}
	id = f->bits == 32 ? 67 : 39; /* volume ID, volume label */
	fs->kind = "FAT";
	snprintf(fs->uuid, sizeof(fs->uuid), "%04X-%04X", get_le16(s + id + 2), get_le16(s + id));
	snprintf(fs->label, sizeof(fs->label), "%.11s", (const char *)s + id + 4);
	for (size_t n = strlen(fs->label); n && fs->label[n - 1] == ' ';)
		fs->label[--n] = 0;
	fs->state = f;
	return 0;
}

static void fat_close(struct disk_fs *fs) { free(fs->state); }

/* The cluster behind c: 0 at the end or when the table is wrong there. */
static uint32_t fat_next(struct fat *f, uint32_t c)
{
	uint64_t at = f->off + f->fat + (f->bits == 12 ? c + c / 2 : (uint64_t)c * (f->bits / 8));
	uint8_t e[4] = {0};
	uint32_t v;

	if (block_read(f->block, at, e, f->bits == 32 ? 4 : 2))
		return 0;
	v = f->bits == 12 ? (get_le16(e) >> (c & 1 ? 4 : 0)) & 0xfff : get_le32(e) & 0x0fffffff;
	return v >= 2 && v - 2 < f->nclusters ? v : 0;
}

/* Read a chain from its start; less than len when it ends before. */
static int fat_chain(struct fat *f, uint32_t c, uint8_t *out, uint64_t len, uint64_t *got)
{
	uint64_t at = 0;

	for (uint32_t n = 0; at < len && c >= 2 && c - 2 < f->nclusters && n < f->nclusters; n++, c = fat_next(f, c)) {
		uint64_t piece = min_u64(len - at, f->cluster_size);
		int r = block_read(f->block, f->off + f->data + (uint64_t)(c - 2) * f->cluster_size, out + at, piece);

		if (r)
			return r;
		at += piece;
	}
	*got = at;
	return 0;
}

/* How long a directory's chain is, bounded. */
static uint64_t fat_length(struct fat *f, uint32_t c)
{
	uint64_t len = 0;

	while (c >= 2 && c - 2 < f->nclusters && len < DIR_ENTRIES_MAX * 32) {
		len += f->cluster_size;
		c = fat_next(f, c);
	}
	return min_u64(len, DIR_ENTRIES_MAX * 32);
}

static int fat_read_dir(struct fat *f, uint32_t cluster, uint8_t **out, uint64_t *len)
{
	bool fixed = !cluster && f->bits != 32;
	int r;

	if (!cluster)
		cluster = f->root_cluster;
	*len = fixed ? f->root_size : fat_length(f, cluster);
	*out = calloc(1, *len + 1);
	if (!*out)
		return -ENOMEM;
	r = fixed ? block_read(f->block, f->off + f->root, *out, *len) : fat_chain(f, cluster, *out, *len, len);
	if (r)
		free(*out);
	return r;
}

static unsigned put_utf8(char *out, uint32_t c)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	out[0] = (char)(0xe0 | c >> 12);
	out[1] = (char)(0x80 | (c >> 6 & 0x3f));
	out[2] = (char)(0x80 | (c & 0x3f));
	return 3;
}

/* The long name in the entries before `at` (section 7), else the short one. Characters outside the BMP become two of three bytes. */
static void fat_name(const uint8_t *dir, uint64_t at, char *out)
{
	static const uint8_t places[13] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
	const uint8_t *e = dir + at;
	uint8_t sum = 0;
	unsigned n = 0;

	for (unsigned i = 0; i < 11; i++)
		sum = (uint8_t)((sum >> 1 | sum << 7) + e[i]);
	for (unsigned k = 1; k <= 20 && at >= 32 * k; k++) {
		const uint8_t *l = e - 32 * k;

		if (l[11] != ATTR_LONG || l[13] != sum || (l[0] & 0x3f) != k)
			break;
		for (unsigned i = 0; i < 13 && get_le16(l + places[i]) && get_le16(l + places[i]) != 0xffff && n < NAME_MAX_UTF8 - 3; i++)
			n += put_utf8(out + n, get_le16(l + places[i]));
		if (l[0] & 0x40) {
			out[n] = 0;
			return;
		}
	}
	n = 0;
	for (unsigned i = 0; i < 11; i++) {
		if (i == 8 && e[8] != ' ')
			out[n++] = '.';
		if (e[i] != ' ')
			out[n++] = e[i] >= 'A' && e[i] <= 'Z' ? (char)(e[i] + 32) : (char)e[i];
	}
	out[n] = 0;
}

static bool fat_is_file(const uint8_t *e)
{
	return e[0] != 0xe5 && e[11] != ATTR_LONG && !(e[11] & ATTR_VOLUME) && e[0] != '.';
}

static int fat_lookup(struct fat *f, uint32_t cluster, const char *name, size_t len, struct fat_file *out)
{
	char this[NAME_MAX_UTF8];
	uint8_t *dir;
	uint64_t size;
	int r = fat_read_dir(f, cluster, &dir, &size);

	if (r)
		return r;
	r = -ENOENT;
	for (uint64_t at = 0; at + 32 <= size && dir[at] && r; at += 32) {
		const uint8_t *e = dir + at;

		if (!fat_is_file(e))
			continue;
		fat_name(dir, at, this);
		if (strlen(this) != len || strncasecmp(this, name, len))
			continue;
		*out = (struct fat_file){.cluster = get_le16(e + 26) | (f->bits == 32 ? (uint32_t)get_le16(e + 20) << 16 : 0),
					 .size = get_le32(e + 28), .directory = e[11] & ATTR_DIRECTORY};
		r = 0;
	}
	free(dir);
	return r;
}

static int fat_walk(struct fat *f, const char *path, struct fat_file *out)
{
	*out = (struct fat_file){.directory = true};
	while (*(path += strspn(path, "/"))) {
		size_t len = strcspn(path, "/");
		int r = out->directory ? fat_lookup(f, out->cluster, path, len, out) : -ENOENT;

		if (r)
			return r;
		path += len;
	}
	return 0;
}

static int fat_read(struct disk_fs *fs, const char *path, uint64_t max, struct file_data *out)
{
	struct fat *f = fs->state;
	struct fat_file file;
	uint64_t got = 0;
	int r = fat_walk(f, path, &file);

	if (r || file.directory)
		return r ? r : -ENOENT;
	if (file.size > max)
		return -EFBIG;
	*out = (struct file_data){malloc((size_t)file.size + 1), file.size};
	if (!out->data)
		return -ENOMEM;
	out->data[file.size] = 0;
	r = fat_chain(f, file.cluster, out->data, file.size, &got);
	if (!r && got < file.size)
		r = -EIO;
	if (r)
		file_free(out);
	return r;
}

static int fat_list(struct disk_fs *fs, const char *path, void (*each)(void *ctx, const char *name), void *ctx)
{
	struct fat *f = fs->state;
	char name[NAME_MAX_UTF8];
	struct fat_file file;
	uint8_t *dir;
	uint64_t size;
	int r = fat_walk(f, path, &file);

	if (!r)
		r = file.directory ? fat_read_dir(f, file.cluster, &dir, &size) : -ENOENT;
	if (r)
		return r;
	for (uint64_t at = 0; at + 32 <= size && dir[at]; at += 32)
		if (fat_is_file(dir + at)) {
			fat_name(dir, at, name);
			each(ctx, name);
		}
	free(dir);
	return 0;
}

const struct disk_fs_ops disk_fat = {
	.name = "FAT", .open = fat_open, .close = fat_close, .read = fat_read, .list = fat_list};
