/*
 * File systems of a disk, read-only, and the boot configurations on them. All contents are hostile.
 */
#ifndef BOOT_DISK_DISK_INT_H
#define BOOT_DISK_DISK_INT_H

#include "backend/block/part.h"
#include "boot/disk/disk.h"

#define DISK_FS_MAX 32
#define DISK_PATH_MAX 512
#define DISK_INITRD_FILES 8
#define DISK_CONFIG_MAX (1 * MIB)

/* A place on the disk that holds one file system. */
struct disk_fs {
	const struct disk_fs_ops *ops; /* NULL: none that can be read */
	void *state;
	const char *kind;    /* "ext4", "FAT", "XFS", ... or NULL: unknown */
	char uuid[40];       /* as blkid prints it; "": none */
	char label[36];
	const struct part *part; /* NULL: the whole disk */
};

/* All return 0 or -errno; -ENOENT: no such file (or directory), -EFBIG: larger than max, -EIO: damaged. */
struct disk_fs_ops {
	const char *name;
	/* Fills state, uuid, label and kind. */
	int (*open)(struct disk_fs *fs, struct block *b, uint64_t off, uint64_t len);
	void (*close)(struct disk_fs *fs);
	/* A regular file, symbolic links followed. The caller frees out->data, which has a 0 byte more than size. */
	int (*read)(struct disk_fs *fs, const char *path, uint64_t max, struct file_data *out);
	/* Names in a directory but . and .., at most a bounded number. */
	int (*list)(struct disk_fs *fs, const char *path, void (*each)(void *ctx, const char *name), void *ctx);
};
extern const struct disk_fs_ops disk_ext, disk_fat;

struct disk {
	struct block *block;
	struct part_table *parts;
	struct disk_fs fs[DISK_FS_MAX];
	unsigned nfs;
};

/* A file that an entry names. */
struct disk_path {
	const struct disk_fs *fs;
	char path[DISK_PATH_MAX];
};

struct disk_entry {
	char title[128];
	struct disk_path kernel; /* path "": none */
	struct disk_path initrd[DISK_INITRD_FILES];
	unsigned ninitrd;
	char options[BOOT_DISK_CMDLINE_MAX];
};

int disk_read(const struct disk_fs *fs, const char *path, uint64_t max, struct file_data *out);
bool disk_exists(const struct disk_fs *fs, const char *path);
/* By Linux's partition number. NULL: none that can be read. */
const struct disk_fs *disk_by_number(const struct disk *d, unsigned number);
/* The first whose uuid or label (case counts not in uuids) is so, or that has the file. */
const struct disk_fs *disk_by_uuid(const struct disk *d, const char *uuid);
const struct disk_fs *disk_by_label(const struct disk *d, const char *label);
const struct disk_fs *disk_by_file(const struct disk *d, const char *path);

/*
 * Find the default entry of a configuration. 0; -ENOENT: there is none of this kind on this file system; else err says what is
 * wrong with it.
 */
int grub_find(struct disk *d, const struct disk_fs *fs, struct disk_entry *out, struct error *err);
int bls_find(struct disk *d, const struct disk_fs *fs, struct disk_entry *out, struct error *err);

/* Boot-loader-specification entries below dir of fs, the default one first looked for by `wanted` (file name without .conf or
 * pattern; NULL: the newest). expand: what to do to each option line, in place of copying (GRUB's variables); may be NULL. */
int bls_entry(const struct disk_fs *fs, const char *dir, const char *wanted,
	      void (*expand)(void *ctx, const char *in, char *out, size_t len), void *ctx, struct disk_entry *out);

/* A copy that fits, cut at the end. False: it was cut. */
bool disk_copy(char *out, size_t len, const char *s);
/* Join: a space between, nothing when it does not fit (false). */
bool disk_append(char *out, size_t len, const char *s);

#endif
