/*
 * ext2, ext3 and ext4 by libext2fs, on a struct block. Read only; a journal is not replayed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ext2fs/ext2fs.h>

#include "boot/disk/disk_int.h"

#define LIST_MAX 4096
#define READ_CHUNK (256 * KIB)

struct ext {
	struct block *block;
	uint64_t off, len;
	ext2_filsys fs;
	struct struct_io_manager manager; /* libext2fs takes no const one */
};

static errcode_t ext_io_open(const char *name, int flags, io_channel *channel)
{
	io_channel c;
	void *p;

	(void)flags;
	if (sscanf(name, "%p", &p) != 1 || !(c = calloc(1, sizeof(*c))))
		return EXT2_ET_NO_MEMORY;
	c->magic = EXT2_ET_MAGIC_IO_CHANNEL;
	c->manager = &((struct ext *)p)->manager;
	c->block_size = 1024;
	c->refcount = 1;
	c->private_data = p;
	*channel = c;
	return 0;
}

static errcode_t ext_io_close(io_channel c)
{
	if (--c->refcount <= 0)
		free(c);
	return 0;
}

static errcode_t ext_io_set_blksize(io_channel c, int size)
{
	c->block_size = size;
	return 0;
}

/* count: of blocks, or when negative of bytes. */
static errcode_t ext_io_read64(io_channel c, unsigned long long block, int count, void *data)
{
	struct ext *e = c->private_data;
	uint64_t size = count < 0 ? (uint64_t)-(int64_t)count : (uint64_t)count * (unsigned)c->block_size;

	if (block > e->len / (unsigned)c->block_size || !range_ok(block * (unsigned)c->block_size, size, e->len))
		return EXT2_ET_SHORT_READ;
	return block_read(e->block, e->off + block * (unsigned)c->block_size, data, size) ? EXT2_ET_SHORT_READ : 0;
}

static errcode_t ext_io_read(io_channel c, unsigned long block, int count, void *data)
{
	return ext_io_read64(c, block, count, data);
}

static errcode_t ext_io_write64(io_channel c, unsigned long long block, int count, const void *data)
{
	(void)c, (void)block, (void)count, (void)data;
	return EXT2_ET_RO_FILSYS;
}

static errcode_t ext_io_write(io_channel c, unsigned long block, int count, const void *data)
{
	(void)c, (void)block, (void)count, (void)data;
	return EXT2_ET_RO_FILSYS;
}

static errcode_t ext_io_flush(io_channel c)
{
	(void)c;
	return 0;
}

static const struct struct_io_manager io = {
	.magic = EXT2_ET_MAGIC_IO_MANAGER,
	.name = "block",
	.open = ext_io_open,
	.close = ext_io_close,
	.set_blksize = ext_io_set_blksize,
	.read_blk = ext_io_read,
	.read_blk64 = ext_io_read64,
	.write_blk = ext_io_write,
	.write_blk64 = ext_io_write64,
	.flush = ext_io_flush,
};

static int ext_errno(errcode_t e)
{
	switch (e) {
	case 0: return 0;
	case EXT2_ET_FILE_NOT_FOUND:
	case EXT2_ET_NO_DIRECTORY: return -ENOENT;
	case EXT2_ET_NO_MEMORY:
	case ENOMEM: return -ENOMEM;
	default: return -EIO;
	}
}

static int ext_open(struct disk_fs *fs, struct block *b, uint64_t off, uint64_t len)
{
	struct ext *e = calloc(1, sizeof(*e));
	const struct ext2_super_block *s;
	char name[32];

	if (!e)
		return -ENOMEM;
	*e = (struct ext){.block = b, .off = off, .len = len, .manager = io};
	snprintf(name, sizeof(name), "%p", (void *)e);
	if (ext2fs_open2(name, NULL, EXT2_FLAG_64BITS | EXT2_FLAG_SOFTSUPP_FEATURES, 0, 0, &e->manager, &e->fs)) {
		free(e);
		return -EINVAL;
	}
	s = e->fs->super;
	fs->kind = ext2fs_has_feature_extents(e->fs->super) ? "ext4" : ext2fs_has_feature_journal(e->fs->super) ? "ext3" : "ext2";
	for (unsigned i = 0, n = 0; i < 16; i++)
		n += (unsigned)snprintf(fs->uuid + n, sizeof(fs->uuid) - n, "%s%02x",
					i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", s->s_uuid[i]);
	snprintf(fs->label, sizeof(fs->label), "%.16s", (const char *)s->s_volume_name);
	fs->state = e;
	return 0;
}

static void ext_close(struct disk_fs *fs)
{
	struct ext *e = fs->state;

	ext2fs_free(e->fs); /* not ext2fs_close: there is nothing to write */
	free(e);
}

static int ext_find(struct ext *e, const char *path, ext2_ino_t *ino, struct ext2_inode *inode)
{
	errcode_t r = ext2fs_namei_follow(e->fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, ino);

	return ext_errno(r ? r : ext2fs_read_inode(e->fs, *ino, inode));
}

static int ext_read_file(ext2_file_t f, struct file_data *out)
{
	for (uint64_t at = 0; at < out->size;) {
		unsigned got = 0;

		if (ext2fs_file_read(f, out->data + at, (unsigned)min_u64(out->size - at, READ_CHUNK), &got) || !got)
			return -EIO;
		at += got;
	}
	return 0;
}

static int ext_read(struct disk_fs *fs, const char *path, uint64_t max, struct file_data *out)
{
	struct ext *e = fs->state;
	struct ext2_inode inode;
	ext2_ino_t ino;
	ext2_file_t f;
	int r = ext_find(e, path, &ino, &inode);

	if (r)
		return r;
	if (!LINUX_S_ISREG(inode.i_mode))
		return -ENOENT;
	if (EXT2_I_SIZE(&inode) > max)
		return -EFBIG;
	*out = (struct file_data){malloc(EXT2_I_SIZE(&inode) + 1), EXT2_I_SIZE(&inode)};
	if (!out->data)
		return -ENOMEM;
	out->data[out->size] = 0;
	r = ext_errno(ext2fs_file_open(e->fs, ino, 0, &f));
	if (!r) {
		r = ext_read_file(f, out);
		ext2fs_file_close(f);
	}
	if (r)
		file_free(out);
	return r;
}

struct ext_list {
	void (*each)(void *ctx, const char *name);
	void *ctx;
	unsigned n;
};

static int ext_list_entry(struct ext2_dir_entry *d, int off, int size, char *buf, void *priv)
{
	struct ext_list *l = priv;
	char name[EXT2_NAME_LEN + 1];
	int len = ext2fs_dirent_name_len(d);

	(void)off, (void)size, (void)buf;
	memcpy(name, d->name, (size_t)len);
	name[len] = 0;
	if (strcmp(name, ".") && strcmp(name, ".."))
		l->each(l->ctx, name);
	return ++l->n < LIST_MAX ? 0 : DIRENT_ABORT;
}

static int ext_list(struct disk_fs *fs, const char *path, void (*each)(void *ctx, const char *name), void *ctx)
{
	struct ext_list l = {.each = each, .ctx = ctx};
	struct ext *e = fs->state;
	struct ext2_inode inode;
	ext2_ino_t ino;
	int r = ext_find(e, path, &ino, &inode);

	if (r)
		return r;
	if (!LINUX_S_ISDIR(inode.i_mode))
		return -ENOENT;
	return ext_errno(ext2fs_dir_iterate(e->fs, ino, 0, NULL, ext_list_entry, &l));
}

const struct disk_fs_ops disk_ext = {
	.name = "ext4", .open = ext_open, .close = ext_close, .read = ext_read, .list = ext_list};
