#include "boot/disk/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "boot/disk/disk_int.h"

bool disk_copy(char *out, size_t len, const char *s)
{
	return (size_t)snprintf(out, len, "%s", s) < len;
}

bool disk_append(char *out, size_t len, const char *s)
{
	size_t n = strlen(out);

	if (!*s)
		return true;
	if (n + (n > 0) + strlen(s) >= len)
		return false;
	snprintf(out + n, len - n, "%s%s", n ? " " : "", s);
	return true;
}

int disk_read(const struct disk_fs *fs, const char *path, uint64_t max, struct file_data *out)
{
	*out = (struct file_data){0};
	return fs->ops->read((struct disk_fs *)fs, path, max, out);
}

bool disk_exists(const struct disk_fs *fs, const char *path)
{
	struct file_data f;
	int r = disk_read(fs, path, 0, &f);

	file_free(&f);
	return !r || r == -EFBIG;
}

const struct disk_fs *disk_by_number(const struct disk *d, unsigned number)
{
	for (unsigned i = 0; i < d->nfs; i++)
		if (d->fs[i].ops && d->fs[i].part && d->fs[i].part->number == number)
			return &d->fs[i];
	return NULL;
}

const struct disk_fs *disk_by_uuid(const struct disk *d, const char *uuid)
{
	for (unsigned i = 0; i < d->nfs; i++)
		if (d->fs[i].ops && *uuid && !strcasecmp(d->fs[i].uuid, uuid))
			return &d->fs[i];
	return NULL;
}

const struct disk_fs *disk_by_label(const struct disk *d, const char *label)
{
	for (unsigned i = 0; i < d->nfs; i++)
		if (d->fs[i].ops && *label && !strcmp(d->fs[i].label, label))
			return &d->fs[i];
	return NULL;
}

const struct disk_fs *disk_by_file(const struct disk *d, const char *path)
{
	for (unsigned i = 0; i < d->nfs; i++)
		if (d->fs[i].ops && disk_exists(&d->fs[i], path))
			return &d->fs[i];
	return NULL;
}

/* What is there that cannot be read, for the message. */
static const char *known_kind(struct block *b, uint64_t off, uint64_t len)
{
	static const struct {
		uint32_t off, len;
		const char *magic, *kind;
	} known[] = {
		{0, 4, "XFSB", "XFS"},
		{0x10040, 8, "_BHRfS_M", "btrfs"},
		{0x218, 8, "LVM2 001", "LVM"},
		{0, 6, "LUKS\xba\xbe", "LUKS, encrypted"},
		{0, 4, "hsqs", "squashfs"},
		{0x8001, 5, "CD001", "a CD's"},
		{3, 8, "NTFS    ", "NTFS"},
		{4086, 10, "SWAPSPACE2", "swap"},
		{0x400, 4, "\x10\x20\xf5\xf2", "F2FS"},
	};
	char head[16];

	for (unsigned i = 0; i < ARRAY_LEN(known); i++)
		if (range_ok(known[i].off, known[i].len, len) && !block_read(b, off + known[i].off, head, known[i].len) &&
		    !memcmp(head, known[i].magic, known[i].len))
			return known[i].kind;
	return NULL;
}

static void open_fs(struct disk *d, const struct part *p)
{
	static const struct disk_fs_ops *const all[] = {&disk_ext, &disk_fat};
	uint64_t off = p ? p->start : 0, len = p ? p->len : d->block->size;
	struct disk_fs *fs;

	if (d->nfs == DISK_FS_MAX)
		return;
	fs = &d->fs[d->nfs++];
	fs->part = p;
	fs->kind = known_kind(d->block, off, len);
	for (unsigned i = 0; !fs->kind && i < ARRAY_LEN(all); i++)
		if (!all[i]->open(fs, d->block, off, len)) {
			fs->ops = all[i];
			return;
		}
}

static void close_all(struct disk *d)
{
	for (unsigned i = 0; i < d->nfs; i++)
		if (d->fs[i].ops)
			d->fs[i].ops->close(&d->fs[i]);
	part_table_free(d->parts);
}

/* "partition 2 (ext4)" */
static void fs_name(const struct disk_fs *fs, char *out, size_t len)
{
	const char *kind = fs->kind ? fs->kind : "nothing known";

	if (fs->part)
		snprintf(out, len, "partition %u (%s)", fs->part->number, kind);
	else
		snprintf(out, len, "no partitions (%s)", kind);
}

/* The links that Debian and others keep to the newest kernel. */
static int links_find(struct disk *d, const struct disk_fs *fs, struct disk_entry *out, struct error *err)
{
	static const char *const names[][2] = {
		{"/vmlinuz", "/initrd.img"}, {"/boot/vmlinuz", "/boot/initrd.img"}, {"/boot/vmlinuz", "/boot/initrd"}};

	(void)d, (void)err;
	for (unsigned i = 0; i < ARRAY_LEN(names); i++) {
		if (!disk_exists(fs, names[i][0]))
			continue;
		*out = (struct disk_entry){.kernel.fs = fs};
		disk_copy(out->title, sizeof(out->title), "the newest kernel");
		disk_copy(out->kernel.path, sizeof(out->kernel.path), names[i][0]);
		if (disk_exists(fs, names[i][1])) {
			out->initrd[0].fs = fs;
			disk_copy(out->initrd[0].path, sizeof(out->initrd[0].path), names[i][1]);
			out->ninitrd = 1;
		}
		/* An initrd finds UUIDs; the kernel itself knows partitions only. */
		if (out->ninitrd && *fs->uuid)
			snprintf(out->options, sizeof(out->options), "root=UUID=%s ro", fs->uuid);
		else if (fs->part)
			snprintf(out->options, sizeof(out->options), "root=/dev/vda%u ro", fs->part->number);
		else
			disk_copy(out->options, sizeof(out->options), "root=/dev/vda ro");
		return 0;
	}
	return -ENOENT;
}

static bool refuse_file(const struct disk_path *p, int r, uint64_t max, struct error *err)
{
	char where[96];

	fs_name(p->fs, where, sizeof(where));
	if (r == -EFBIG)
		return error_set(err, "%s: %.200s: larger than %llu MiB", where, p->path, (unsigned long long)(max / MIB));
	return error_set(err, "%s: %.200s: %s", where, p->path,
			 r == -ENOENT ? "no such file" : r == -ENOMEM ? "out of memory" : "it cannot be read: damaged?");
}

/* Several archives, each from a multiple of 4 bytes on, are one to the kernel. */
static bool read_initrd(const struct disk_entry *e, uint64_t max, struct file_data *out, struct error *err)
{
	for (unsigned i = 0; i < e->ninitrd; i++) {
		struct file_data f;
		uint64_t at = align_up(out->size, 4);
		int r = disk_read(e->initrd[i].fs, e->initrd[i].path, max > at ? max - at : 0, &f);
		uint8_t *all;

		if (r)
			return refuse_file(&e->initrd[i], r, max, err);
		if (!out->size) {
			file_free(out);
			*out = f;
			continue;
		}
		all = realloc(out->data, at + f.size + 1);
		if (all) {
			memset(all + out->size, 0, at - out->size);
			memcpy(all + at, f.data, f.size);
			*out = (struct file_data){all, at + f.size};
		}
		file_free(&f);
		if (!all)
			return error_set(err, "out of memory");
	}
	return true;
}

static void printable(char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 127)
			*s = '?';
}

static bool has_console(const char *cmdline)
{
	return !strncmp(cmdline, "console=", 8) || strstr(cmdline, " console=");
}

static bool load_entry(const struct disk_entry *e, uint64_t initrd_max, struct boot_disk *out, struct error *err)
{
	char where[96];
	int r;

	if (!*e->kernel.path)
		return error_set(err, "the entry '%.100s' loads no Linux kernel", e->title);
	r = disk_read(e->kernel.fs, e->kernel.path, BOOT_DISK_KERNEL_MAX, &out->kernel);
	if (r)
		return refuse_file(&e->kernel, r, BOOT_DISK_KERNEL_MAX, err);
	if (!read_initrd(e, initrd_max, &out->initrd, err))
		return false;
	if (!disk_copy(out->cmdline, sizeof(out->cmdline), e->options) ||
	    (!has_console(e->options) && !disk_append(out->cmdline, sizeof(out->cmdline), "console=ttyS0")))
		return error_set(err, "the entry '%.100s': its command line is too long", e->title);
	fs_name(e->kernel.fs, where, sizeof(where));
	snprintf(out->title, sizeof(out->title), "'%.80s' of %.60s: %.80s", e->title, where, e->kernel.path);
	printable(out->title);
	printable(out->cmdline);
	return true;
}

static bool refuse_disk(const struct disk *d, struct error *err)
{
	char all[300] = "", one[96];

	for (unsigned i = 0; i < d->nfs; i++) {
		fs_name(&d->fs[i], one, sizeof(one));
		disk_append(all, sizeof(all) - 2, one);
		if (i + 1 < d->nfs)
			strcat(all, ",");
	}
	error_set(err, "nothing to boot was found on it: %s", d->nfs ? all : "no partition has anything in it");
	return error_hint(err, "doppel reads ext2/3/4 and FAT; else name the kernel with --kernel");
}

static bool find(struct disk *d, uint64_t initrd_max, struct boot_disk *out, struct error *err)
{
	static int (*const ways[])(struct disk *d, const struct disk_fs *fs, struct disk_entry *out, struct error *err) = {
		grub_find, bls_find, links_find};
	struct disk_entry *e = calloc(1, sizeof(*e));
	struct error first = {0}, now = {0};
	bool ok = false;

	if (!e)
		return error_set(err, "out of memory");
	for (unsigned w = 0; w < ARRAY_LEN(ways) && !ok; w++)
		for (unsigned i = 0; i < d->nfs && !ok; i++) {
			int r = d->fs[i].ops ? ways[w](d, &d->fs[i], e, &now) : -ENOENT;

			ok = !r && load_entry(e, initrd_max, out, &now);
			if (!ok)
				boot_disk_free(out);
			if (!ok && r != -ENOENT && !*first.msg)
				first = now;
		}
	free(e);
	if (ok)
		return true;
	if (!*first.msg)
		return refuse_disk(d, err);
	*err = first;
	printable(err->msg);
	return *err->hint ? false : error_hint(err, "name the kernel with --kernel");
}

bool boot_disk_find(struct block *b, uint64_t initrd_max, struct boot_disk *out, struct error *err)
{
	struct disk *d = calloc(1, sizeof(*d));
	bool ok = false;

	*out = (struct boot_disk){0};
	if (!d)
		return error_set(err, "out of memory");
	d->block = b;
	d->parts = part_list(b, err);
	if (d->parts) {
		if (d->parts->scheme == PART_NONE)
			open_fs(d, NULL);
		for (unsigned i = 0; i < d->parts->n; i++)
			open_fs(d, &d->parts->parts[i]);
		ok = find(d, initrd_max, out, err);
	}
	close_all(d);
	free(d);
	return ok;
}

void boot_disk_free(struct boot_disk *d)
{
	file_free(&d->kernel);
	file_free(&d->initrd);
	*d = (struct boot_disk){0};
}
