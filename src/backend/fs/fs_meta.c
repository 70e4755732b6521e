/*
 * Names and attributes.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "backend/fs/fs_int.h"

#define GETATTR_BASIC 0x7ffu
#define LINK_MAX_LEN 4095

enum {
	SET_MODE = 1, SET_UID = 2, SET_GID = 4, SET_SIZE = 8, SET_ATIME = 0x10, SET_MTIME = 0x20, SET_ATIME_VALUE = 0x80, SET_MTIME_VALUE = 0x100,
};

int fs_statfs(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	struct statfs s;

	if (!d)
		return EBADF;
	if (fstatfs(d->fd, &s))
		return errno;
	wire_put(out, 4, (uint64_t)s.f_type);
	wire_put(out, 4, (uint64_t)s.f_bsize);
	wire_put(out, 8, s.f_blocks);
	wire_put(out, 8, s.f_bfree);
	wire_put(out, 8, s.f_bavail);
	wire_put(out, 8, s.f_files);
	wire_put(out, 8, s.f_ffree);
	wire_put(out, 8, (uint64_t)(uint32_t)s.f_fsid.__val[0] | (uint64_t)(uint32_t)s.f_fsid.__val[1] << 32);
	wire_put(out, 4, (uint64_t)s.f_namelen);
	return 0;
}

static void put_time(struct fs_wire *out, const struct timespec *t)
{
	wire_put(out, 8, (uint64_t)t->tv_sec);
	wire_put(out, 8, (uint64_t)t->tv_nsec);
}

int fs_getattr(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	static const struct timespec none;
	struct stat st;

	if (!d)
		return EBADF;
	if (fstat(d->fd, &st))
		return errno;
	wire_put(out, 8, GETATTR_BASIC);
	fs_put_qid(f, out, &st);
	wire_put(out, 4, st.st_mode);
	wire_put(out, 4, st.st_uid);
	wire_put(out, 4, st.st_gid);
	wire_put(out, 8, st.st_nlink);
	wire_put(out, 8, st.st_rdev);
	wire_put(out, 8, (uint64_t)st.st_size);
	wire_put(out, 8, (uint64_t)st.st_blksize);
	wire_put(out, 8, (uint64_t)st.st_blocks);
	put_time(out, &st.st_atim);
	put_time(out, &st.st_mtim);
	put_time(out, &st.st_ctim);
	put_time(out, &none);
	wire_put(out, 8, 0); /* generation */
	wire_put(out, 8, 0); /* data version */
	return 0;
}

/* A file that root makes must not give its rights to who runs it on the host. */
static mode_t safe_mode(const struct fs *f, mode_t type, uint32_t mode)
{
	return mode & (f->owners && type != S_IFDIR ? 01777u : 07777u);
}

static int set_size(const struct fs_fid *d, uint64_t size)
{
	int fd, error;

	if (size > INT64_MAX || d->type != S_IFREG)
		return EINVAL;
	if (d->io >= 0 && ftruncate(d->io, (off_t)size) == 0)
		return 0;
	fd = fs_reopen(d, O_WRONLY); /* not opened, or for reading only */
	if (fd < 0)
		return -fd;
	error = ftruncate(fd, (off_t)size) ? errno : 0;
	close(fd);
	return error;
}

/* Only what the caller was asked for. */
static int set_times(const struct fs_fid *d, uint32_t valid, const uint64_t t[4])
{
	struct timespec ts[2];

	for (unsigned i = 0; i < 2; i++) {
		bool set = valid & (i ? SET_MTIME : SET_ATIME), value = valid & (i ? SET_MTIME_VALUE : SET_ATIME_VALUE);

		ts[i] = (struct timespec){.tv_sec = (time_t)t[2 * i], .tv_nsec = (long)t[2 * i + 1]};
		if (value && set && t[2 * i + 1] >= 1000000000)
			return EINVAL;
		if (!set)
			ts[i].tv_nsec = UTIME_OMIT;
		else if (!value)
			ts[i].tv_nsec = UTIME_NOW;
	}
	return utimensat(AT_FDCWD, fs_fd_path(d->fd).s, ts, 0) ? errno : 0;
}

static int set_owner(struct fs *f, const struct fs_fid *d, uint32_t valid, uint32_t uid, uint32_t gid)
{
	struct stat st;

	if (!(valid & SET_UID))
		uid = UINT32_MAX;
	if (!(valid & SET_GID))
		gid = UINT32_MAX;
	if (fchownat(d->fd, "", uid, gid, AT_EMPTY_PATH) == 0)
		return 0;
	/* who may give nothing away may still say that it is as it is */
	if (errno == EPERM && !f->owners && fstat(d->fd, &st) == 0 && (uid == UINT32_MAX || uid == st.st_uid) && (gid == UINT32_MAX || gid == st.st_gid))
		return 0;
	return errno;
}

int fs_setattr(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	uint32_t valid = wire_u32(in), mode = wire_u32(in), uid = wire_u32(in), gid = wire_u32(in);
	uint64_t size = wire_u64(in), t[4];
	int error = 0;

	for (unsigned i = 0; i < 4; i++)
		t[i] = wire_u64(in);
	if (in->bad)
		return EINVAL;
	if (!d)
		return EBADF;
	if (valid & (SET_UID | SET_GID))
		error = set_owner(f, d, valid, uid, gid);
	if (!error && valid & SET_MODE) /* after the owner, whose change clears bits */
		error = d->type == S_IFLNK ? EOPNOTSUPP : chmod(fs_fd_path(d->fd).s, safe_mode(f, d->type, mode)) ? errno : 0;
	if (!error && valid & SET_SIZE)
		error = set_size(d, size);
	if (!error && valid & (SET_ATIME | SET_MTIME))
		error = set_times(d, valid, t);
	return error;
}

/* ---- making and removing names ---- */

int fs_own(struct fs *f, int fd, uint32_t uid, uint32_t gid, mode_t mode)
{
	struct stat st;

	if (fstat(fd, &st) || (f->owners && fchownat(fd, "", uid, gid, AT_EMPTY_PATH)))
		return errno;
	if (S_ISLNK(st.st_mode))
		return 0;
	/* a directory that passes on its group does so to this one */
	return chmod(fs_fd_path(fd).s, safe_mode(f, st.st_mode & S_IFMT, mode) | (S_ISDIR(st.st_mode) ? st.st_mode & S_ISGID : 0)) ? errno : 0;
}

static int make_failed(const struct fs_fid *dir, const char *name, bool is_dir, int fd, int error)
{
	if (fd >= 0)
		close(fd);
	unlinkat(dir->fd, name, is_dir ? AT_REMOVEDIR : 0);
	return error;
}

/* `name` was just made in dir: give it its owner, and tell the guest what it is. */
static int made(struct fs *f, const struct fs_fid *dir, const char *name, bool is_dir, uint32_t gid, uint32_t mode, struct fs_wire *out)
{
	int fd = fs_lookup(f, dir->fd, name), error;
	struct stat st;

	if (fd < 0)
		return -fd; /* and somebody took it away again */
	error = fs_own(f, fd, dir->uid, gid, mode);
	if (error)
		return make_failed(dir, name, is_dir, fd, error);
	if (fstat(fd, &st))
		return make_failed(dir, name, is_dir, fd, errno);
	close(fd);
	fs_put_qid(f, out, &st);
	return 0;
}

static int directory(struct fs *f, uint32_t id, struct fs_fid **d)
{
	*d = fs_fid(f, id);
	if (!*d)
		return EBADF;
	return (*d)->type == S_IFDIR ? 0 : ENOTDIR;
}

int fs_mkdir(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t id = wire_u32(in), mode, gid;
	char name[NAME_MAX + 1];
	int error = fs_name(in, name);
	struct fs_fid *d;

	mode = wire_u32(in);
	gid = wire_u32(in);
	if (in->bad || error)
		return error ?: EINVAL;
	error = directory(f, id, &d);
	if (error)
		return error;
	if (mkdirat(d->fd, name, 0700))
		return errno;
	return made(f, d, name, true, gid, mode, out);
}

int fs_symlink(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t id = wire_u32(in), gid;
	char name[NAME_MAX + 1], target[LINK_MAX_LEN + 1];
	int error = fs_name(in, name);
	struct fs_fid *d;

	wire_str(in, target, sizeof(target));
	gid = wire_u32(in);
	if (in->bad || error)
		return error ?: EINVAL;
	error = directory(f, id, &d);
	if (error)
		return error;
	if (symlinkat(target, d->fd, name))
		return errno;
	return made(f, d, name, false, gid, 0777, out);
}

int fs_mknod(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t id = wire_u32(in), mode, gid;
	char name[NAME_MAX + 1];
	int error = fs_name(in, name);
	struct fs_fid *d;

	mode = wire_u32(in);
	wire_u64(in); /* major[4] minor[4] */
	gid = wire_u32(in);
	if (in->bad || error)
		return error ?: EINVAL;
	error = directory(f, id, &d);
	if (error)
		return error;
	if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode))
		return EPERM; /* a device node would be one on the host */
	if (mknodat(d->fd, name, (mode & S_IFMT) | 0600, 0))
		return errno;
	return made(f, d, name, false, gid, mode, out);
}

int fs_link(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t to = wire_u32(in), from = wire_u32(in);
	struct fs_fid *dir, *d = fs_fid(f, from);
	char name[NAME_MAX + 1];
	int error = fs_name(in, name) ?: directory(f, to, &dir);

	if (in->bad || error)
		return error ?: EINVAL;
	if (!d)
		return EBADF;
	return linkat(AT_FDCWD, fs_fd_path(d->fd).s, dir->fd, name, AT_SYMLINK_FOLLOW) ? errno : 0;
}

int fs_readlink(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	char target[LINK_MAX_LEN + 1];
	ssize_t n;

	if (!d)
		return EBADF;
	if (d->type != S_IFLNK)
		return EINVAL;
	n = readlinkat(d->fd, "", target, LINK_MAX_LEN);
	if (n < 0)
		return errno;
	target[n] = 0;
	wire_put_str(out, target);
	return 0;
}

int fs_renameat(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t from = wire_u32(in), to;
	char old[NAME_MAX + 1], new[NAME_MAX + 1];
	struct fs_fid *a, *b;
	int error = fs_name(in, old);

	to = wire_u32(in);
	error = error ?: fs_name(in, new);
	error = error ?: directory(f, from, &a);
	error = error ?: directory(f, to, &b);
	if (in->bad || error)
		return error ?: EINVAL;
	return renameat(a->fd, old, b->fd, new) ? errno : 0;
}

int fs_unlinkat(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t id = wire_u32(in), flags;
	char name[NAME_MAX + 1];
	int error = fs_name(in, name);
	struct fs_fid *d;

	flags = wire_u32(in);
	error = error ?: directory(f, id, &d);
	if (in->bad || error)
		return error ?: EINVAL;
	return unlinkat(d->fd, name, flags & AT_REMOVEDIR) ? errno : 0;
}

/* ---- extended attributes ---- */

static bool xattr_allowed(const char *name)
{
	return !strncmp(name, "user.", 5) && name[5];
}

/* Drop from a list of names what the guest may not see. */
static ssize_t filter_list(char *list, ssize_t len)
{
	ssize_t out = 0;

	for (ssize_t at = 0; at < len;) {
		size_t n = strnlen(list + at, (size_t)(len - at)) + 1;

		if (at + (ssize_t)n > len)
			break;
		if (xattr_allowed(list + at)) {
			memmove(list + out, list + at, n);
			out += (ssize_t)n;
		}
		at += (ssize_t)n;
	}
	return out;
}

/* newfid is the value of the attribute, or with an empty name the list of names; Tread reads it. */
int fs_xattrwalk(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in)), *x;
	uint32_t to = wire_u32(in);
	char name[NAME_MAX + 1], *value;
	int fd, error;
	ssize_t n;

	wire_str(in, name, sizeof(name));
	if (in->bad)
		return EINVAL;
	if (!d || to == NOFID || fs_fid(f, to))
		return EBADF;
	if (name[0] && !xattr_allowed(name))
		return EOPNOTSUPP;
	value = malloc(XATTR_MAX);
	if (!value)
		return ENOMEM;
	if (name[0])
		n = getxattr(fs_fd_path(d->fd).s, name, value, XATTR_MAX);
	else
		n = filter_list(value, listxattr(fs_fd_path(d->fd).s, value, XATTR_MAX));
	fd = n < 0 ? -1 : fcntl(d->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0) {
		error = errno;
		free(value);
		return error;
	}
	x = fs_fid_add(f, to, fd, d->uid, &error);
	if (!x) {
		free(value);
		return error;
	}
	x->xattr = value;
	x->xattr_len = (uint32_t)n;
	wire_put(out, 8, (uint64_t)n);
	return 0;
}

/* The fid takes the value by Twrite, and sets it when it is clunked. */
int fs_xattrcreate(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));
	char name[NAME_MAX + 1];
	uint64_t size;
	uint32_t flags;

	wire_str(in, name, sizeof(name));
	size = wire_u64(in);
	flags = wire_u32(in);
	if (in->bad)
		return EINVAL;
	if (!d || d->io >= 0 || d->xattr || d->xattr_write)
		return EBADF;
	if (!xattr_allowed(name))
		return EOPNOTSUPP;
	if (size > XATTR_MAX)
		return ENOSPC;
	d->xattr = calloc(1, size ? size : 1);
	if (!d->xattr)
		return ENOMEM;
	d->xattr_write = true;
	d->xattr_len = (uint32_t)size;
	d->xattr_flags = flags & (XATTR_CREATE | XATTR_REPLACE);
	strcpy(d->xattr_name, name);
	return 0;
}

/* Linux asks for the removal of an attribute by replacing it with nothing. */
int fs_xattr_finish(struct fs_fid *d)
{
	int r;

	if (d->xattr_at != d->xattr_len)
		return EIO;
	if (!d->xattr_len && d->xattr_flags == XATTR_REPLACE)
		r = removexattr(fs_fd_path(d->fd).s, d->xattr_name);
	else
		r = setxattr(fs_fd_path(d->fd).s, d->xattr_name, d->xattr, d->xattr_len, (int)d->xattr_flags);
	return r ? errno : 0;
}
