/*
 * What is done with an open file or directory.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/fs/fs_int.h"

/* Open flags of the protocol are those of Linux on x86. The rest is the guest's own business. */
#define FLAGS_TAKEN (O_ACCMODE | O_TRUNC | O_APPEND | O_DSYNC | O_SYNC)
#define DIRENT_FIXED 24 /* qid[13] offset[8] type[1] name's length[2] */

enum { LOCK_SUCCESS, LOCK_BLOCKED, LOCK_ERROR };
enum { P9_RDLCK, P9_WRLCK, P9_UNLCK };

static bool wants_write(uint32_t flags)
{
	return (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
}

static int put_opened(struct fs *f, struct fs_wire *out, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return errno;
	fs_put_qid(f, out, &st);
	wire_put(out, 4, 0); /* iounit: as msize allows */
	return 0;
}

int fs_lopen(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint32_t flags = wire_u32(in);
	int fd;

	if (in->bad || !d || d->io >= 0 || d->xattr || d->xattr_write)
		return EBADF;
	if (f->readonly && wants_write(flags))
		return EROFS;
	fd = fs_reopen(d, d->type == S_IFDIR ? O_RDONLY | O_DIRECTORY : (int)(flags & FLAGS_TAKEN));
	if (fd < 0)
		return -fd;
	d->io = fd;
	return put_opened(f, out, fd);
}

/* Made by nobody else in between, or opened as what is there is opened. */
static int create(struct fs *f, const struct fs_fid *dir, const char *name, uint32_t flags, uint32_t mode, uint32_t gid, bool *made)
{
	int io = (int)(flags & FLAGS_TAKEN), fd, path, error;
	struct fs_fid there = {0};

	fd = openat(dir->fd, name, io | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
	*made = fd >= 0;
	if (fd >= 0) {
		error = fs_own(f, fd, dir->uid, gid, mode);
		if (error) {
			unlinkat(dir->fd, name, 0);
			close(fd);
			return -error;
		}
		return fd;
	}
	if (errno != EEXIST || flags & O_EXCL)
		return -errno;
	path = fs_lookup(f, dir->fd, name);
	if (path < 0)
		return path;
	error = fs_fid_is(f, &there, path);
	fd = error ? -error : there.type == S_IFDIR ? -EISDIR : fs_reopen(&there, io);
	close(path);
	return fd;
}

/* The fid of the directory becomes that of the file. */
int fs_lcreate(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	char name[NAME_MAX + 1];
	int error = fs_name(in, name), fd;
	uint32_t flags = wire_u32(in), mode = wire_u32(in), gid = wire_u32(in);
	bool made;

	if (in->bad || error)
		return error ?: EINVAL;
	if (!d || d->io >= 0 || d->xattr || d->xattr_write)
		return EBADF;
	if (d->type != S_IFDIR)
		return ENOTDIR;
	fd = create(f, d, name, flags, mode, gid, &made);
	if (fd < 0)
		return -fd;
	close(d->fd);
	d->fd = d->io = fd;
	error = fs_fid_is(f, d, fd);
	return error ?: put_opened(f, out, fd);
}

static int read_xattr(struct fs_fid *d, uint64_t offset, uint32_t count, struct fs_wire *out)
{
	uint32_t n = offset < d->xattr_len ? (uint32_t)min_u64(count, d->xattr_len - offset) : 0;

	wire_put(out, 4, n);
	if (n)
		wire_bytes(out, d->xattr + offset, n);
	return 0;
}

int fs_read(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint64_t offset = wire_u64(in);
	uint32_t count = wire_u32(in), at = out->at + 4;
	ssize_t n;

	if (in->bad || at > out->len)
		return EIO;
	count = (uint32_t)min_u64(count, out->len - at);
	if (d && d->xattr && !d->xattr_write)
		return read_xattr(d, offset, count, out);
	if (!d || d->io < 0)
		return EBADF;
	if (d->type == S_IFDIR)
		return EISDIR;
	if (offset > INT64_MAX)
		return EINVAL;
	do
		n = pread(d->io, out->p + at, count, (off_t)offset);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno;
	wire_put(out, 4, (uint64_t)n);
	out->at += (uint32_t)n;
	return 0;
}

static int write_xattr(struct fs_fid *d, uint64_t offset, const uint8_t *p, uint32_t count, struct fs_wire *out)
{
	if (!range_ok(offset, count, d->xattr_len))
		return ENOSPC;
	if (count)
		memcpy(d->xattr + offset, p, count);
	d->xattr_at = (uint32_t)max_u64(d->xattr_at, offset + count);
	wire_put(out, 4, count);
	return 0;
}

int fs_write(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint64_t offset = wire_u64(in);
	uint32_t count = wire_u32(in);
	const uint8_t *p = wire_take(in, count);
	ssize_t n;

	if (in->bad)
		return EIO;
	if (d && d->xattr_write)
		return write_xattr(d, offset, p, count, out);
	if (!d || d->io < 0)
		return EBADF;
	if (offset > INT64_MAX)
		return EINVAL;
	do
		n = pwrite(d->io, p, count, (off_t)offset);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno;
	wire_put(out, 4, (uint64_t)n);
	return 0;
}

int fs_fsync(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint32_t data_only = wire_u32(in);

	if (!d || d->io < 0)
		return EBADF;
	return (data_only ? fdatasync(d->io) : fsync(d->io)) ? errno : 0;
}

/* ---- directories ---- */

/* As getdents64 gives it. */
struct dirent64_head {
	uint64_t ino;
	int64_t off;
	uint16_t len;
	uint8_t type;
	char name[];
} __attribute__((packed));

/* False: no room. */
static bool put_entry(struct fs *f, const struct fs_fid *dir, const struct dirent64_head *e, struct fs_wire *out)
{
	/* above the root there is nothing */
	bool top = !strcmp(e->name, "..") && dir->dev == f->root_dev && dir->ino == f->root_ino;
	struct stat st = {.st_dev = dir->dev, .st_ino = top ? dir->ino : e->ino,
			  .st_mode = e->type == DT_DIR ? S_IFDIR : e->type == DT_LNK ? S_IFLNK : S_IFREG};

	if (DIRENT_FIXED + strlen(e->name) > out->len - out->at)
		return false;
	fs_put_qid(f, out, &st);
	wire_put(out, 8, (uint64_t)e->off);
	wire_put(out, 1, e->type);
	wire_put_str(out, e->name);
	return true;
}

int fs_readdir(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint64_t offset = wire_u64(in);
	uint32_t count = wire_u32(in), count_at = out->at;
	uint8_t buf[32768];
	long n, at = 0;

	if (in->bad || !d || d->io < 0)
		return EBADF;
	if (d->type != S_IFDIR)
		return ENOTDIR;
	if (offset != d->dir_at && (offset > INT64_MAX || lseek(d->io, (off_t)offset, SEEK_SET) < 0))
		return EINVAL;
	d->dir_at = offset;
	wire_put(out, 4, 0);
	if (count < out->len - out->at)
		out->len = out->at + count;
	/* entries are shorter there than here by a few bytes at most: what does not fit is read again */
	n = syscall(SYS_getdents64, d->io, buf, min_u64(sizeof(buf), max_u64(count, 512)));
	if (n < 0)
		return errno;
	while (at < n) {
		const struct dirent64_head *e = (const struct dirent64_head *)(buf + at);

		if (!put_entry(f, d, e, out))
			break;
		d->dir_at = (uint64_t)e->off;
		at += e->len;
	}
	if (at < n && lseek(d->io, (off_t)d->dir_at, SEEK_SET) < 0)
		return errno;
	if (n && !at)
		return EINVAL; /* not even one fits */
	put_le32(out->p + count_at, out->at - count_at - 4);
	return 0;
}

/* ---- locks ---- */

/* The description that the guest's locks on this file are held by, made when there is none. */
static struct fs_lock *lock_of(struct fs *f, const struct fs_fid *d)
{
	struct fs_lock *l = f->locks;
	int fd;

	while (l && (l->dev != d->dev || l->ino != d->ino))
		l = l->next;
	if (l || d->type != S_IFREG)
		return l;
	fd = fs_reopen(d, O_RDWR);
	if (fd < 0)
		fd = fs_reopen(d, O_RDONLY);
	l = fd >= 0 ? calloc(1, sizeof(*l)) : NULL;
	if (!l) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	*l = (struct fs_lock){.next = f->locks, .dev = d->dev, .ino = d->ino, .fd = fd};
	f->locks = l;
	return l;
}

static bool to_flock(struct flock *l, uint8_t type, uint64_t start, uint64_t length)
{
	static const short types[] = {F_RDLCK, F_WRLCK, F_UNLCK};

	if (type > P9_UNLCK || start > INT64_MAX || length > INT64_MAX - start)
		return false;
	*l = (struct flock){.l_type = types[type], .l_whence = SEEK_SET, .l_start = (off_t)start, .l_len = (off_t)length};
	return true;
}

/* Never waits: a guest that wants to, asks again. */
int fs_lock(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint8_t type = (uint8_t)wire_get(in, 1), status = LOCK_SUCCESS;
	uint64_t start, length;
	char client[256];
	struct fs_lock *l;
	struct flock fl;

	wire_u32(in); /* flags */
	start = wire_u64(in);
	length = wire_u64(in);
	wire_u32(in); /* process */
	wire_str(in, client, sizeof(client));
	if (in->bad || !to_flock(&fl, type, start, length))
		return EINVAL;
	if (!d || d->io < 0)
		return EBADF;
	l = lock_of(f, d);
	if (!l || fcntl(l->fd, F_OFD_SETLK, &fl))
		status = l && (errno == EAGAIN || errno == EACCES) ? LOCK_BLOCKED : LOCK_ERROR;
	wire_put(out, 1, status);
	return 0;
}

int fs_getlock(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint8_t type = (uint8_t)wire_get(in, 1);
	uint64_t start = wire_u64(in), length = wire_u64(in);
	uint32_t process = wire_u32(in);
	struct fs_lock *l;
	char client[256];
	struct flock fl;

	wire_str(in, client, sizeof(client));
	if (in->bad || !to_flock(&fl, type, start, length))
		return EINVAL;
	if (!d || d->io < 0)
		return EBADF;
	l = lock_of(f, d);
	if (!l || fcntl(l->fd, F_OFD_GETLK, &fl))
		return EINVAL;
	wire_put(out, 1, fl.l_type == F_RDLCK ? P9_RDLCK : fl.l_type == F_WRLCK ? P9_WRLCK : P9_UNLCK);
	wire_put(out, 8, (uint64_t)fl.l_start);
	wire_put(out, 8, (uint64_t)fl.l_len);
	wire_put(out, 4, fl.l_type == F_UNLCK ? process : 0);
	wire_put_str(out, client);
	return 0;
}
