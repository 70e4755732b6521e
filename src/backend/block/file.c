/*
 * Files of images: opening, locks, O_DIRECT.
 *
 * Locks are open file description locks on single bytes, so that QEMU and we respect each other: a user holds a read lock on
 * byte 100 + p for each thing p that it does, and on 200 + p for each that nobody else may do meanwhile; p = 1 is writing. We take
 * a write lock on all of these bytes to write, so that a writer has the file to itself.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/fs.h>

#include "backend/block/block.h"
#include "base/log.h"

enum { LOCK_DOES = 100, LOCK_FORBIDS = 200, LOCK_WRITING = 1, LOCK_LAST = LOCK_FORBIDS + LOCK_WRITING };

static bool lock_bytes(int fd, int cmd, int type, off_t first, off_t last)
{
	struct flock l = {.l_type = (short)type, .l_whence = SEEK_SET, .l_start = first, .l_len = last - first + 1};

	if (fcntl(fd, cmd, &l) < 0)
		return false;
	errno = EAGAIN; /* of F_OFD_GETLK: somebody holds it */
	return cmd == F_OFD_SETLK || l.l_type == F_UNLCK;
}

static bool lock(int fd, bool write)
{
	const off_t forbid = LOCK_FORBIDS + LOCK_WRITING, does = LOCK_DOES + LOCK_WRITING;

	if (write)
		return lock_bytes(fd, F_OFD_SETLK, F_WRLCK, LOCK_DOES, LOCK_LAST);
	return lock_bytes(fd, F_OFD_SETLK, F_RDLCK, forbid, forbid) && lock_bytes(fd, F_OFD_GETLK, F_WRLCK, does, does);
}

/* fdinfo shows the locks of an open file description. */
static bool holds_lock(const char *pid, const char *fd)
{
	char path[600], line[256];
	bool found = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%s/fdinfo/%s", pid, fd);
	f = fopen(path, "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = !strncmp(line, "lock:", 5);
	if (f)
		fclose(f);
	return found;
}

static bool process_locks(const char *pid, const struct stat *file)
{
	char path[600];
	bool found = false;
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	dir = opendir(path);
	while (dir && !found && (e = readdir(dir))) {
		struct stat st;

		found = e->d_name[0] != '.' && fstatat(dirfd(dir), e->d_name, &st, 0) == 0 && st.st_dev == file->st_dev &&
			st.st_ino == file->st_ino && holds_lock(pid, e->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

/* The first process that we may look into and that holds a lock on the file; 0: none. */
static long lock_holder(const struct stat *file)
{
	DIR *dir = opendir("/proc");
	long found = 0;
	struct dirent *e;

	while (dir && !found && (e = readdir(dir)))
		if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && process_locks(e->d_name, file))
			found = strtol(e->d_name, NULL, 10);
	if (dir)
		closedir(dir);
	return found;
}

static bool locked(const char *path, const struct stat *st, bool write, struct error *err)
{
	long pid = lock_holder(st);

	if (pid == getpid())
		error_set(err, "disk %s: named twice, and one of the two writes", path);
	else if (pid)
		error_set(err, "disk %s: in use by process %ld", path, pid);
	else
		error_set(err, "disk %s: in use by another process", path);
	if (write)
		return error_hint(err, "one user at a time may write an image; end the other one, or open this one read-only or as a snapshot "
				       "where all others read");
	return error_hint(err, "it is being written; end that user first");
}

static bool take_lock(int fd, const char *path, const struct stat *st, bool write, struct error *err)
{
	if (lock(fd, write))
		return true;
	if (errno == EAGAIN || errno == EACCES) {
		lock_bytes(fd, F_OFD_SETLK, F_UNLCK, LOCK_DOES, LOCK_LAST);
		return locked(path, st, write, err);
	}
	log_warn("disk %s: no lock (%s): make sure that nobody else uses it", path, strerror(errno));
	return true;
}

static bool open_error(const char *path, bool write, struct error *err)
{
	int e = errno;

	error_set(err, "disk %s: %s", path, e == ENXIO ? "not a file or block device" : strerror(e));
	if (e == ENOENT || e == EISDIR || e == ENXIO || e == ENOTDIR)
		return error_hint(err, "check the path");
	if (write && (e == EACCES || e == EROFS || e == EPERM || e == ETXTBSY))
		return error_hint(err, "let this user write it, or open it read-only (,ro)");
	return e == EACCES ? error_hint(err, "let this user read it") : false;
}

int block_file_open(const char *path, const struct block_options *o, bool write, struct error *err)
{
	/* O_NONBLOCK: a FIFO must not make us wait. It goes away again, as with it asynchronous I/O would fail early. */
	int fd = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	if (fd < 0) {
		open_error(path, write, err);
		return -1;
	}
	if (fstat(fd, &st) < 0 || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))) {
		error_set(err, "disk %s: not a file or block device", path);
		error_hint(err, "check the path");
		goto fail;
	}
	if (!o->no_lock && !take_lock(fd, path, &st, write, err))
		goto fail;
	if (fcntl(fd, F_SETFL, 0) < 0) {
		error_set(err, "disk %s: %s", path, strerror(errno));
		goto fail;
	}
	return fd;
fail:
	close(fd);
	return -1;
}

/* What O_DIRECT asks of offsets and lengths; the kernel tells since 6.1, else try. */
static uint32_t direct_align(int fd)
{
	static const uint32_t sizes[] = {512, 4096};
	struct statx stx;
	void *buf;

#ifdef STATX_DIOALIGN
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) == 0 && stx.stx_mask & STATX_DIOALIGN)
		return stx.stx_dio_offset_align > stx.stx_dio_mem_align ? stx.stx_dio_offset_align : stx.stx_dio_mem_align;
#else
	(void)stx;
#endif
	if (posix_memalign(&buf, 4096, 4096))
		return 0;
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		if (pread(fd, buf, sizes[i], sizes[i]) >= 0) {
			free(buf);
			return sizes[i];
		}
	}
	free(buf);
	return 0;
}

int block_file_direct(int fd, bool write, uint32_t *align)
{
	char path[64];
	int direct;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	direct = open(path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_DIRECT);
	if (direct < 0)
		return -1;
	*align = direct_align(direct);
	if (*align)
		return direct;
	close(direct);
	return -1;
}

int block_file_create(const char *path, struct error *err)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	struct stat st;

	if (fd < 0) {
		int e = errno;

		error_set(err, "disk %s: %s", path, strerror(e));
		if (e == EEXIST)
			error_hint(err, "nothing is overwritten; choose another name or remove it first");
		else if (e == ENOENT)
			error_hint(err, "the directory does not exist");
		return -1;
	}
	if (fstat(fd, &st) < 0 || !take_lock(fd, path, &st, true, err)) {
		close(fd);
		return -1;
	}
	return fd;
}
