#include "backend/fs/fs_int.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/statfs.h>
#include <unistd.h>

#define MSIZE_MIN 4096u
#define PARENTS_MAX 4096
#define WALK_MAX 16

enum {
	TSTATFS = 8, TLOPEN = 12, TLCREATE = 14, TSYMLINK = 16, TMKNOD = 18, TREADLINK = 22, TGETATTR = 24, TSETATTR = 26,
	TXATTRWALK = 30, TXATTRCREATE = 32, TREADDIR = 40, TFSYNC = 50, TLOCK = 52, TGETLOCK = 54, TLINK = 70, TMKDIR = 72,
	TRENAMEAT = 74, TUNLINKAT = 76, TVERSION = 100, TATTACH = 104, TFLUSH = 108, TWALK = 110, TREAD = 116, TWRITE = 118,
	TCLUNK = 120, TREMOVE = 122, RLERROR = 7,
};

/* ---- files ---- */

struct fs_fd_path fs_fd_path(int fd)
{
	struct fs_fd_path p;

	snprintf(p.s, sizeof(p.s), "/proc/self/fd/%d", fd);
	return p;
}

int fs_reopen(const struct fs_fid *d, int flags)
{
	int fd;

	if (d->type != S_IFREG && d->type != S_IFDIR)
		return -(d->type == S_IFLNK ? ELOOP : ENXIO);
	fd = open(fs_fd_path(d->fd).s, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

/* File systems that are windows into the kernel or the VMM. */
static bool closed_fs(int fd)
{
	struct statfs s;

	if (fstatfs(fd, &s))
		return true;
	switch ((unsigned long)s.f_type) {
	case PROC_SUPER_MAGIC: case SYSFS_MAGIC: case DEBUGFS_MAGIC: case TRACEFS_MAGIC: case SECURITYFS_MAGIC: case BPF_FS_MAGIC:
	case CGROUP_SUPER_MAGIC: case CGROUP2_SUPER_MAGIC: case EFIVARFS_MAGIC: case DEVPTS_SUPER_MAGIC: case NSFS_MAGIC:
		return true;
	default:
		return false;
	}
}

/* Does the directory lie below the root, or is it the root? Follows parents, which lead up to one or the other. */
static bool below_root(struct fs *f, int dir)
{
	int fd = fcntl(dir, F_DUPFD_CLOEXEC, 0), up;
	struct stat st, before = {0};
	bool found = false;

	for (unsigned i = 0; i < PARENTS_MAX && fd >= 0 && fstat(fd, &st) == 0; i++) {
		found = st.st_dev == f->root_dev && st.st_ino == f->root_ino;
		if (found || (i && st.st_dev == before.st_dev && st.st_ino == before.st_ino))
			break;
		before = st;
		up = openat(fd, "..", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(fd);
		fd = up;
	}
	if (fd >= 0)
		close(fd);
	return found;
}

static int parent(struct fs *f, int dir)
{
	struct stat st;
	int fd;

	if (fstat(dir, &st))
		return -errno;
	fd = openat(dir, st.st_dev == f->root_dev && st.st_ino == f->root_ino ? "." : "..", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (below_root(f, fd)) /* what was opened: it may have been moved meanwhile */
		return fd;
	close(fd);
	return -EACCES;
}

int fs_lookup(struct fs *f, int dir, const char *name)
{
	int fd;

	if (!strcmp(name, ".."))
		return parent(f, dir);
	fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int fs_name(struct fs_wire *in, char out[NAME_MAX + 1])
{
	wire_str(in, out, NAME_MAX + 1);
	if (in->bad || !out[0] || strchr(out, '/'))
		return EINVAL;
	return !strcmp(out, ".") || !strcmp(out, "..") ? EEXIST : 0;
}

/* The upper byte tells file systems apart. */
static uint64_t identity(struct fs *f, dev_t dev, ino_t ino)
{
	unsigned i;

	if (dev == f->root_dev)
		return ino;
	for (i = 0; i < f->nmounts && f->mounts[i] != dev; i++)
		;
	if (i == f->nmounts && i < MOUNTS_MAX)
		f->mounts[f->nmounts++] = dev;
	return ino ^ (uint64_t)(i + 1) << 56;
}

/* type[1] version[4] path[8]; a version that changes with the content lets guests cache. */
void fs_put_qid(struct fs *f, struct fs_wire *out, const struct stat *st)
{
	wire_put(out, 1, S_ISDIR(st->st_mode) ? 0x80 : S_ISLNK(st->st_mode) ? 0x02 : 0);
	wire_put(out, 4, (uint32_t)((uint64_t)st->st_mtim.tv_sec * 1000003 ^ (uint64_t)st->st_mtim.tv_nsec ^ (uint64_t)st->st_size << 8));
	wire_put(out, 8, identity(f, st->st_dev, st->st_ino));
}

/* ---- fids ---- */

struct fs_fid *fs_fid(struct fs *f, uint32_t id)
{
	struct fs_fid *d = f->fids[id % FID_BUCKETS];

	while (d && d->id != id)
		d = d->next;
	return d;
}

int fs_fid_is(struct fs *f, struct fs_fid *d, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return errno;
	if (st.st_dev != f->root_dev && closed_fs(fd))
		return EACCES;
	d->fd = fd;
	d->type = st.st_mode & S_IFMT;
	d->dev = st.st_dev;
	d->ino = st.st_ino;
	return 0;
}

struct fs_fid *fs_fid_add(struct fs *f, uint32_t id, int fd, uint32_t uid, int *error)
{
	struct fs_fid *d = NULL;

	if (id == NOFID || fs_fid(f, id))
		*error = EBADF;
	else if (f->nfids >= f->max_fids)
		*error = EMFILE;
	else if (!(d = calloc(1, sizeof(*d))))
		*error = ENOMEM;
	else
		*error = fs_fid_is(f, d, fd);
	if (*error) {
		free(d);
		close(fd);
		return NULL;
	}
	d->id = id;
	d->uid = uid;
	d->io = -1;
	d->next = f->fids[id % FID_BUCKETS];
	f->fids[id % FID_BUCKETS] = d;
	f->nfids++;
	return d;
}

static bool still_held(struct fs *f, dev_t dev, ino_t ino)
{
	for (unsigned i = 0; i < FID_BUCKETS; i++)
		for (struct fs_fid *d = f->fids[i]; d; d = d->next)
			if (d->io >= 0 && d->dev == dev && d->ino == ino)
				return true;
	return false;
}

/* The last opened fid of a file takes its locks along. */
void fs_unlock_file(struct fs *f, const struct fs_fid *d)
{
	struct fs_lock **p = &f->locks, *l;

	while (*p && ((*p)->dev != d->dev || (*p)->ino != d->ino))
		p = &(*p)->next;
	l = *p;
	if (!l || still_held(f, d->dev, d->ino))
		return;
	*p = l->next;
	close(l->fd);
	free(l);
}

int fs_fid_drop(struct fs *f, struct fs_fid *d)
{
	struct fs_fid **p = &f->fids[d->id % FID_BUCKETS];
	int error = 0;

	while (*p != d)
		p = &(*p)->next;
	*p = d->next;
	f->nfids--;
	if (d->xattr_write)
		error = fs_xattr_finish(d);
	if (d->io >= 0)
		fs_unlock_file(f, d);
	if (d->io >= 0 && d->io != d->fd)
		close(d->io);
	close(d->fd);
	free(d->xattr);
	free(d);
	return error;
}

void fs_reset(struct fs *f)
{
	for (unsigned i = 0; i < FID_BUCKETS; i++) {
		while (f->fids[i]) {
			f->fids[i]->xattr_write = false; /* the guest did not finish it */
			fs_fid_drop(f, f->fids[i]);
		}
	}
	f->msize = 0;
}

/* ---- the session ---- */

static int on_version(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t msize = wire_u32(in);
	char version[64];

	wire_str(in, version, sizeof(version));
	if (in->bad || msize < MSIZE_MIN)
		return EINVAL;
	fs_reset(f);
	if (!strcmp(version, "9P2000.L"))
		f->msize = (uint32_t)min_u64(msize, FS_MSIZE_MAX);
	wire_put(out, 4, min_u64(msize, FS_MSIZE_MAX));
	wire_put_str(out, f->msize ? "9P2000.L" : "unknown");
	return 0;
}

static int on_attach(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t id = wire_u32(in), afid = wire_u32(in), uid;
	char name[256], tree[256];
	struct stat st;
	int error, fd;

	wire_str(in, name, sizeof(name));
	wire_str(in, tree, sizeof(tree));
	uid = wire_u32(in);
	if (in->bad || afid != NOFID)
		return EINVAL;
	if (tree[0] && strcmp(tree, "/"))
		return ENOENT;
	fd = fcntl(f->root, F_DUPFD_CLOEXEC, 0);
	if (fd < 0 || fstat(fd, &st))
		return errno;
	if (!fs_fid_add(f, id, fd, uid, &error))
		return error;
	fs_put_qid(f, out, &st);
	return 0;
}

/* Look up from fd, which stays the caller's; -errno when not even the first name is there. *done: names found. */
static int walk(struct fs *f, int start, struct fs_wire *in, unsigned names, struct fs_wire *out, unsigned *done)
{
	int fd = fcntl(start, F_DUPFD_CLOEXEC, 0), next;
	char name[NAME_MAX + 1];
	struct fs_fid here;
	struct stat st;

	if (fd < 0)
		return -errno;
	for (*done = 0; *done < names; ++*done) {
		int error = fs_name(in, name);

		if (error == EEXIST) /* "." and ".." are names here */
			error = 0;
		next = error ? -error : fs_lookup(f, fd, name);
		if (next >= 0 && (error = fs_fid_is(f, &here, next) ?: fstat(next, &st) ? errno : 0)) {
			close(next);
			next = -error;
		}
		if (next < 0) {
			close(fd);
			return next;
		}
		close(fd);
		fd = next;
		fs_put_qid(f, out, &st);
	}
	return fd;
}

static int on_walk(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	uint32_t from = wire_u32(in), to = wire_u32(in), count_at = out->at;
	unsigned names = (unsigned)wire_get(in, 2), done = 0;
	struct fs_fid *d = fs_fid(f, from);
	int fd, error;
	uint32_t uid;

	if (in->bad || names > WALK_MAX)
		return EINVAL;
	if (!d || (to != from && (to == NOFID || fs_fid(f, to))))
		return EBADF;
	wire_put(out, 2, 0);
	fd = walk(f, d->fd, in, names, out, &done);
	if (fd < 0 && done == 0)
		return -fd;
	put_le16(out->p + count_at, (uint16_t)done);
	if (fd < 0)
		return 0; /* a part was found: no fid is made */
	uid = d->uid;
	if (to == from)
		fs_fid_drop(f, d);
	return fs_fid_add(f, to, fd, uid, &error) ? 0 : error;
}

static int on_clunk(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	struct fs_fid *d = fs_fid(f, wire_u32(in));

	return d ? fs_fid_drop(f, d) : EBADF;
}

/* Linux takes Tunlinkat; what falls back to this loses its fid all the same. */
static int on_remove(struct fs *f, struct fs_wire *in, struct fs_wire *out)
{
	return on_clunk(f, in, out) ?: EOPNOTSUPP;
}

/* Requests are answered in order: what is to be flushed is done. */
static int on_flush(struct fs *f, struct fs_wire *in, struct fs_wire *out) { return 0; }

static fs_handler *handler(uint8_t type)
{
	static fs_handler *const handlers[256] = {
		[TVERSION] = on_version, [TATTACH] = on_attach, [TWALK] = on_walk, [TCLUNK] = on_clunk, [TREMOVE] = on_remove,
		[TFLUSH] = on_flush, [TLOPEN] = fs_lopen, [TLCREATE] = fs_lcreate, [TREAD] = fs_read, [TWRITE] = fs_write,
		[TFSYNC] = fs_fsync, [TREADDIR] = fs_readdir, [TLOCK] = fs_lock, [TGETLOCK] = fs_getlock, [TSTATFS] = fs_statfs,
		[TGETATTR] = fs_getattr, [TSETATTR] = fs_setattr, [TMKDIR] = fs_mkdir, [TSYMLINK] = fs_symlink, [TMKNOD] = fs_mknod,
		[TLINK] = fs_link, [TREADLINK] = fs_readlink, [TRENAMEAT] = fs_renameat, [TUNLINKAT] = fs_unlinkat,
		[TXATTRWALK] = fs_xattrwalk, [TXATTRCREATE] = fs_xattrcreate,
	};

	return handlers[type];
}

static bool changes(uint8_t type)
{
	switch (type) {
	case TLCREATE: case TSYMLINK: case TMKNOD: case TSETATTR: case TXATTRCREATE: case TLINK: case TMKDIR: case TRENAMEAT: case TUNLINKAT:
	case TWRITE: case TREMOVE:
		return true;
	default:
		return false;
	}
}

uint32_t fs_request(struct fs *f, const uint8_t *request, uint32_t len, uint8_t *reply, uint32_t room)
{
	struct fs_wire in = {.p = (uint8_t *)(uintptr_t)request, .len = len, .at = FS_HEADER}, out = {.p = reply, .len = room, .at = FS_HEADER};
	fs_handler *fn;
	uint8_t type;
	int error = 0;

	if (room < FS_HEADER + 4)
		return 0;
	if (len < FS_HEADER || get_le32(request) < FS_HEADER || get_le32(request) > len) {
		error = EIO;
		type = 0;
		put_le16(reply + 5, 0xffff);
	} else {
		in.len = get_le32(request);
		type = request[4];
		memcpy(reply + 5, request + 5, 2);
	}
	if (f->msize && type != TVERSION)
		out.len = (uint32_t)min_u64(out.len, f->msize);
	fn = handler(type);
	if (!error && (!fn || (!f->msize && type != TVERSION)))
		error = EOPNOTSUPP;
	if (!error && f->readonly && changes(type))
		error = EROFS;
	if (!error)
		error = fn(f, &in, &out);
	if (!error && (in.bad || out.bad))
		error = EIO;
	reply[4] = error ? RLERROR : (uint8_t)(type + 1);
	if (error) {
		out.at = FS_HEADER;
		out.bad = false;
		wire_put(&out, 4, (uint32_t)error);
	}
	put_le32(reply, out.at);
	return out.at;
}

/* ---- life ---- */

/* Each fid is a descriptor: take as many as may be had. */
static unsigned descriptors(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l))
		return 256;
	if (l.rlim_cur < l.rlim_max) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
		getrlimit(RLIMIT_NOFILE, &l);
	}
	return (unsigned)min_u64(FID_MAX, l.rlim_cur / 8);
}

struct fs *fs_open(const struct fs_options *o, struct error *err)
{
	struct fs *f = calloc(1, sizeof(*f));
	struct stat st;

	if (!f) {
		error_set(err, "out of memory");
		return NULL;
	}
	f->root = open(o->path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (f->root < 0 || fstat(f->root, &st)) {
		error_set(err, "cannot share '%s': %s", o->path, strerror(errno));
		error_hint(err, "name a directory that exists and that this user may enter");
	} else if (access(fs_fd_path(f->root).s, R_OK | X_OK)) {
		error_set(err, "cannot share '%s': %s", o->path, strerror(errno));
		error_hint(err, "let this user read the directory, and have /proc mounted");
	} else if (closed_fs(f->root)) {
		error_set(err, "cannot share '%s': it is no ordinary file system", o->path);
		error_hint(err, "proc, sysfs and the like are not shared");
	} else {
		f->root_dev = st.st_dev;
		f->root_ino = st.st_ino;
		f->readonly = o->readonly;
		f->owners = geteuid() == 0;
		f->max_fids = descriptors();
		return f;
	}
	fs_close(f);
	return NULL;
}

void fs_close(struct fs *f)
{
	if (!f)
		return;
	fs_reset(f);
	if (f->root >= 0)
		close(f->root);
	free(f);
}
