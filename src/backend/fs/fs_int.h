/*
 * What the files of the 9P server share: fids, and messages in the making.
 *
 * A handler reads its arguments from `in`, does it, and puts the reply's into `out`; it returns 0 or an errno for Rlerror. Reading
 * past the end gives zeros and sets in->bad: handlers look once, after their last argument.
 */
#ifndef BACKEND_FS_FS_INT_H
#define BACKEND_FS_FS_INT_H

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

#include "backend/fs/fs.h"

#define FID_BUCKETS 1024u
#define FID_MAX 65536u
#define XATTR_MAX 65536u
#define MOUNTS_MAX 255u
#define NOFID UINT32_MAX

struct fs_wire {
	uint8_t *p;
	uint32_t len, at;
	bool bad;
};

/* What a guest holds: a file by a descriptor, so that renames and removals do not matter. */
struct fs_fid {
	struct fs_fid *next;
	uint32_t id;
	uint32_t uid;  /* of who attached */
	mode_t type;   /* S_IFMT part */
	dev_t dev;
	ino_t ino;
	int fd;        /* O_PATH, or the same as io */
	int io;        /* opened for reading or writing, else -1 */
	uint64_t dir_at; /* where the directory stream is */
	/* an extended attribute being read or written */
	char *xattr;
	char xattr_name[NAME_MAX + 1]; /* written when the fid goes */
	uint32_t xattr_len, xattr_at, xattr_flags;
	bool xattr_write;
};

/* The description that holds the guest's locks on one file. */
struct fs_lock {
	struct fs_lock *next;
	dev_t dev;
	ino_t ino;
	int fd;
};

struct fs {
	int root;
	dev_t root_dev;
	ino_t root_ino;
	bool readonly, owners; /* owners: uid and gid are the guest's to choose */
	uint32_t msize;        /* 0: no version agreed yet */
	unsigned nfids, max_fids;
	struct fs_fid *fids[FID_BUCKETS];
	struct fs_lock *locks;
	unsigned nmounts;
	dev_t mounts[MOUNTS_MAX]; /* other devices met below the root: part of a file's identity */
};

/* ---- messages ---- */

static inline const uint8_t *wire_take(struct fs_wire *w, uint32_t n)
{
	const uint8_t *p = w->p + w->at;

	if (n > w->len - w->at) {
		w->bad = true;
		return NULL;
	}
	w->at += n;
	return p;
}

static inline uint64_t wire_get(struct fs_wire *w, unsigned bytes)
{
	const uint8_t *p = wire_take(w, bytes);
	uint64_t v = 0;

	if (p)
		memcpy(&v, p, bytes);
	return v;
}

static inline uint32_t wire_u32(struct fs_wire *w) { return (uint32_t)wire_get(w, 4); }
static inline uint64_t wire_u64(struct fs_wire *w) { return wire_get(w, 8); }

/* A string without NUL of at most size - 1 bytes. */
static inline void wire_str(struct fs_wire *w, char *out, size_t size)
{
	uint16_t n = (uint16_t)wire_get(w, 2);
	const uint8_t *p = wire_take(w, n);

	out[0] = 0;
	if (!p || n >= size || memchr(p, 0, n)) {
		w->bad = true;
		return;
	}
	memcpy(out, p, n);
	out[n] = 0;
}

static inline void wire_bytes(struct fs_wire *w, const void *p, uint32_t n)
{
	if (n > w->len - w->at) {
		w->bad = true;
		return;
	}
	memcpy(w->p + w->at, p, n);
	w->at += n;
}

static inline void wire_put(struct fs_wire *w, unsigned bytes, uint64_t v) { wire_bytes(w, &v, bytes); }

static inline void wire_put_str(struct fs_wire *w, const char *s)
{
	size_t n = strlen(s);

	wire_put(w, 2, n);
	wire_bytes(w, s, (uint32_t)n);
}

/* ---- fids, in fs.c ---- */

struct fs_fid *fs_fid(struct fs *f, uint32_t id);
/* Add a fid that owns fd. NULL with *error: in use, too many, or the file may not be seen; fd is closed then. */
struct fs_fid *fs_fid_add(struct fs *f, uint32_t id, int fd, uint32_t uid, int *error);
/* Adds nothing, only fills in what fd is. */
int fs_fid_is(struct fs *f, struct fs_fid *d, int fd);
int fs_fid_drop(struct fs *f, struct fs_fid *d); /* 0, or what writing the attribute gave */
/* Name in a directory: one component, not "." or "..". */
int fs_name(struct fs_wire *in, char out[NAME_MAX + 1]);
void fs_put_qid(struct fs *f, struct fs_wire *out, const struct stat *st);
/* "/proc/self/fd/N": leads to the very file that fd is, also after it was renamed or removed. */
struct fs_fd_path { char s[32]; };
struct fs_fd_path fs_fd_path(int fd);
/* The files and directories that may be opened, opened. -errno on failure. */
int fs_reopen(const struct fs_fid *d, int flags);
/* Open `name` in directory fd as an O_PATH descriptor; -errno. */
int fs_lookup(struct fs *f, int dir, const char *name);
void fs_unlock_file(struct fs *f, const struct fs_fid *d);

typedef int fs_handler(struct fs *f, struct fs_wire *in, struct fs_wire *out);

/* fs_file.c */
fs_handler fs_lopen, fs_lcreate, fs_read, fs_write, fs_fsync, fs_readdir, fs_lock, fs_getlock;
/* fs_meta.c */
fs_handler fs_statfs, fs_getattr, fs_setattr, fs_mkdir, fs_symlink, fs_mknod, fs_link, fs_readlink, fs_renameat, fs_unlinkat, fs_xattrwalk, fs_xattrcreate;
int fs_xattr_finish(struct fs_fid *d);
/* Give what was made, with a mode that lets nobody else in, its owner and mode: the VMM's umask does not matter. */
int fs_own(struct fs *f, int fd, uint32_t uid, uint32_t gid, mode_t mode);

#endif
