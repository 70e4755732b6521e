#include "base/tempdir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* "dir/file" -> "dir/", "file" -> "" */
static int dir_len(const char *path) { return (int)(base_name(path) - path); }

bool tempdir_make(struct tempdir *t, const char *target, struct error *err)
{
	const char *base = base_name(target);
	int n = snprintf(t->path, sizeof(t->path), "%.*s.%.200s.XXXXXX", dir_len(target), target, base), e;

	if (n >= (int)sizeof(t->path) || strlen(base) > NAME_MAX || !base[0] || !strcmp(base, ".") ||
	    !strcmp(base, "..")) {
		t->path[0] = 0;
		error_set(err, "%s: not a usable file name", target);
		return error_hint(err, "choose another name");
	}
	snprintf(t->target, sizeof(t->target), "%s", target);
	if (mkdtemp(t->path))
		return true;
	e = errno;
	t->path[0] = 0;
	error_set(err, "%s: cannot be made: %s", target, strerror(e));
	return error_hint(err, e == ENOSPC ? "free some space on that file system"
					   : "check that its directory is there and writable");
}

bool tempdir_file(const struct tempdir *t, const char *name, char out[PATH_MAX], struct error *err)
{
	int n = snprintf(out, PATH_MAX, "%s/%s", t->path, name);

	return n < PATH_MAX || error_set(err, "%s: the name is too long", name);
}

bool tempdir_main(const struct tempdir *t, char out[PATH_MAX], struct error *err)
{
	return tempdir_file(t, base_name(t->target), out, err);
}

static bool sync_parent(const char *target, struct error *err)
{
	char dir[PATH_MAX];
	int fd;
	bool ok;

	snprintf(dir, sizeof(dir), "%.*s", dir_len(target), target);
	fd = open(dir[0] ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ok = fd >= 0 && (fsync(fd) == 0 || errno == EINVAL);
	if (fd >= 0)
		close(fd);
	return ok || error_set(err, "%s: %s", target, strerror(errno));
}

/* Calls fn for each file but the target's; stops at false. */
static bool each_file(struct tempdir *t, bool (*fn)(struct tempdir *, const char *from, const char *to, struct error *),
		      struct error *err)
{
	DIR *dir = opendir(t->path);
	struct dirent *e;
	bool ok = dir != NULL || error_set(err, "%s: %s", t->path, strerror(errno));

	while (ok && (e = readdir(dir))) {
		char from[2 * PATH_MAX], to[2 * PATH_MAX];

		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || !strcmp(e->d_name, base_name(t->target)))
			continue;
		snprintf(from, sizeof(from), "%s/%s", t->path, e->d_name);
		snprintf(to, sizeof(to), "%.*s%s", dir_len(t->target), t->target, e->d_name);
		ok = fn(t, from, to, err);
	}
	if (dir)
		closedir(dir);
	return ok;
}

static bool is_free(struct tempdir *t, const char *from, const char *to, struct error *err)
{
	if (access(to, F_OK) < 0)
		return true;
	error_set(err, "%s: exists already, and %s needs a file of that name", to, t->target);
	return error_hint(err, "remove it or choose another name");
}

static bool move(struct tempdir *t, const char *from, const char *to, struct error *err)
{
	return renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0 ||
	       error_set(err, "%s: %s", to, strerror(errno));
}

bool tempdir_publish(struct tempdir *t, struct error *err)
{
	char from[PATH_MAX];
	bool ok = tempdir_main(t, from, err) && each_file(t, is_free, err) && each_file(t, move, err);

	if (ok && rename(from, t->target) < 0) {
		ok = error_set(err, "%s: %s", t->target, strerror(errno));
		error_hint(err, "choose another name");
	}
	tempdir_discard(t);
	return ok && sync_parent(t->target, err);
}

bool tempdir_become(struct tempdir *t, struct error *err)
{
	int fd = open(t->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd >= 0) {
		fsync(fd);
		close(fd);
	}
	if (renameat2(AT_FDCWD, t->path, AT_FDCWD, t->target, RENAME_NOREPLACE) == 0) {
		t->path[0] = 0;
		return sync_parent(t->target, err);
	}
	error_set(err, "%s: %s", t->target, strerror(errno));
	error_hint(err, "choose another name");
	tempdir_discard(t);
	return false;
}

void tempdir_discard(struct tempdir *t)
{
	DIR *dir;
	struct dirent *e;

	if (!t->path[0])
		return;
	dir = opendir(t->path);
	while (dir && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
			unlinkat(dirfd(dir), e->d_name, 0);
	if (dir)
		closedir(dir);
	rmdir(t->path);
	t->path[0] = 0;
}
