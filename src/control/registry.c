#include "control/registry.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bits.h"

#define TRIES 20 /* somebody may look at, or remove, the same directory at this moment */
#define TRY_NS 10000000

struct registry {
	int fd;
	char path[REGISTRY_PATH_MAX];
};

struct registry_entry {
	int base_fd, dir_fd, pid_fd;
	char name[REGISTRY_NAME_MAX + 1];
	char path[REGISTRY_PATH_MAX + REGISTRY_NAME_MAX + 2];
};

/* Everything that a VMM puts into its directory; and the sockets of vsock, vsock.sock and vsock.sock_PORT. */
#define VSOCK_PREFIX "vsock.sock"
static const char *const files[] = {"config.json", "config.json.new", "control.sock", "known_hosts", "known_hosts.old"};

/* ---- the base directory ---- */

static bool base_path(char *out, size_t size, struct error *err)
{
	const char *own = getenv("DOPPEL_RUNTIME_DIR"), *xdg = getenv("XDG_RUNTIME_DIR");
	int n;

	if (own && *own == '/')
		n = snprintf(out, size, "%s", own);
	else if (geteuid() == 0)
		n = snprintf(out, size, "/run/doppel");
	else if (xdg && *xdg == '/')
		n = snprintf(out, size, "%s/doppel", xdg);
	else
		n = snprintf(out, size, "/tmp/doppel-%u", (unsigned)geteuid());
	return (n > 0 && (size_t)n < size) || error_set(err, "the path of the runtime directory is too long");
}

/* Nobody else may put anything there. */
static bool private_dir(int fd, const char *path, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) == 0 && st.st_uid == geteuid() && !(st.st_mode & 077))
		return true;
	error_set(err, "%s: it belongs to another user or is open to others", path);
	return error_hint(err, "it holds the sockets of your virtual machines: give it to yourself with mode 0700, or set DOPPEL_RUNTIME_DIR");
}

static struct registry *fail(struct registry *r)
{
	registry_close(r);
	return NULL;
}

struct registry *registry_open(bool create, struct error *err)
{
	struct registry *r = calloc(1, sizeof(*r));

	if (!r) {
		error_set(err, "out of memory");
		return NULL;
	}
	r->fd = -1;
	if (!base_path(r->path, sizeof(r->path), err))
		return fail(r);
	if (create && mkdir(r->path, 0700) < 0 && errno != EEXIST) {
		error_set(err, "cannot make %s: %s", r->path, strerror(errno));
		error_hint(err, "it is where running virtual machines are listed; set DOPPEL_RUNTIME_DIR to name another place");
		return fail(r);
	}
	r->fd = open(r->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (r->fd < 0) {
		error_set(err, "%s: %s", r->path, strerror(errno));
		error_hint(err, "set DOPPEL_RUNTIME_DIR to name another place");
		if (errno == ENOENT && !create)
			error_set(err, "%s", "");
		return fail(r);
	}
	return private_dir(r->fd, r->path, err) ? r : fail(r);
}

void registry_close(struct registry *r)
{
	if (r && r->fd >= 0)
		close(r->fd);
	free(r);
}

const char *registry_path(const struct registry *r) { return r->path; }

/* ---- names ---- */

bool registry_name_ok(const char *name, struct error *err)
{
	static const char first[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", rest[] = "_.-";
	size_t len = strlen(name);
	bool ok = len >= 1 && len <= REGISTRY_NAME_MAX && strchr(first, name[0]);

	for (size_t i = 1; i < len && ok; i++)
		ok = strchr(first, name[i]) || strchr(rest, name[i]);
	if (ok)
		return true;
	error_set(err, "'%.64s' is not a name for a virtual machine", name);
	return error_hint(err, "1 to %d letters, digits, _ . and -, the first a letter or a digit", REGISTRY_NAME_MAX);
}

/* adjective-noun: easy to read, to say and to type */
static void make_up(char *out, size_t size)
{
	static const char *const adjectives[] = {
		"amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp", "deep", "eager",
		"early", "fair", "fast", "fine", "fresh", "gentle", "glad", "golden", "grand", "happy", "keen", "kind",
		"light", "lively", "lucky", "mellow", "merry", "mild", "neat", "noble", "plain", "proud", "quick", "quiet",
		"rapid", "ready", "rosy", "sharp", "shiny", "silent", "silver", "smooth", "snug", "soft", "sound", "steady",
		"still", "strong", "sunny", "sure", "swift", "tidy", "tiny", "warm", "wide", "wild", "wise", "witty"};
	static const char *const nouns[] = {
		"acorn", "ant", "badger", "beech", "birch", "brook", "cedar", "cliff", "cloud", "comet", "crane", "creek",
		"dove", "dune", "eagle", "elm", "falcon", "fern", "finch", "fjord", "fox", "glade", "grove", "gull", "hare",
		"hawk", "hazel", "heron", "hill", "ibis", "island", "jay", "lake", "lark", "leaf", "lynx", "maple", "marten",
		"meadow", "mole", "moon", "moss", "oak", "otter", "owl", "pine", "plover", "pond", "raven", "reed", "ridge",
		"river", "robin", "rook", "sparrow", "spruce", "star", "stone", "swan", "tern", "thrush", "trout", "willow", "wren"};
	uint32_t r[2] = {0};

	if (getrandom(r, sizeof(r), 0) != sizeof(r))
		r[0] = (uint32_t)getpid(), r[1] = (uint32_t)time(NULL);
	snprintf(out, size, "%s-%s", adjectives[r[0] % ARRAY_LEN(adjectives)], nouns[r[1] % ARRAY_LEN(nouns)]);
}

/* ---- locks: of an open file description, on the whole file ---- */

static bool lock(int fd)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return fcntl(fd, F_OFD_SETLK, &l) == 0;
}

/* Without taking it. */
static bool is_locked(int fd)
{
	struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static pid_t read_pid(int fd)
{
	char text[16] = "";

	return pread(fd, text, sizeof(text) - 1, 0) > 0 ? (pid_t)atol(text) : 0;
}

/* ---- taking a name ---- */

enum taken { TAKEN, IN_USE, AGAIN, FAILED };

/* Is what we hold open still what the names lead to? */
static bool still_there(const struct registry_entry *e)
{
	struct stat a, b;

	return fstat(e->dir_fd, &a) == 0 && fstatat(e->base_fd, e->name, &b, AT_SYMLINK_NOFOLLOW) == 0 && a.st_dev == b.st_dev &&
	       a.st_ino == b.st_ino && fstat(e->pid_fd, &a) == 0 &&
	       fstatat(e->dir_fd, "pid", &b, AT_SYMLINK_NOFOLLOW) == 0 && a.st_ino == b.st_ino;
}

static void close_entry(struct registry_entry *e)
{
	if (e->pid_fd >= 0)
		close(e->pid_fd);
	if (e->dir_fd >= 0)
		close(e->dir_fd);
	e->pid_fd = e->dir_fd = -1;
}

static enum taken open_failed(const struct registry_entry *e, struct error *err)
{
	if (errno == ENOENT)
		return AGAIN; /* removed meanwhile */
	error_set(err, "%s: %s", e->path, strerror(errno));
	error_hint(err, "remove it, or choose another name");
	return FAILED;
}

static enum taken try_take(struct registry_entry *e, bool create, pid_t *owner, struct error *err)
{
	if (create && mkdirat(e->base_fd, e->name, 0700) < 0 && errno != EEXIST)
		return open_failed(e, err);
	e->dir_fd = openat(e->base_fd, e->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (e->dir_fd < 0)
		return open_failed(e, err);
	if (!private_dir(e->dir_fd, e->path, err))
		return FAILED;
	/* what has no such file was not made by us, and is not to be removed */
	e->pid_fd = openat(e->dir_fd, "pid", O_RDWR | (create ? O_CREAT : 0) | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
	if (e->pid_fd < 0)
		return open_failed(e, err);
	if (!lock(e->pid_fd)) {
		*owner = read_pid(e->pid_fd);
		return IN_USE;
	}
	return still_there(e) ? TAKEN : AGAIN;
}

static enum taken take(struct registry_entry *e, bool create, pid_t *owner, struct error *err)
{
	struct timespec pause = {.tv_nsec = TRY_NS};
	enum taken t = FAILED;

	for (unsigned i = 0; i < TRIES; i++) {
		*owner = 0;
		t = try_take(e, create, owner, err);
		if (t == TAKEN)
			return t;
		close_entry(e);
		/* a lock without a pid: one who just takes it, or removes what is dead */
		if (t == FAILED || (t == IN_USE && *owner))
			return t;
		nanosleep(&pause, NULL);
	}
	return t;
}

static struct registry_entry *entry_new(struct registry *r, const char *name)
{
	struct registry_entry *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->dir_fd = e->pid_fd = -1;
	e->base_fd = fcntl(r->fd, F_DUPFD_CLOEXEC, 0);
	snprintf(e->name, sizeof(e->name), "%s", name);
	snprintf(e->path, sizeof(e->path), "%s/%s", r->path, name);
	return e;
}

static void entry_free(struct registry_entry *e)
{
	close_entry(e);
	if (e->base_fd >= 0)
		close(e->base_fd);
	free(e);
}

static int is_vsock(const struct dirent *d)
{
	return !strncmp(d->d_name, VSOCK_PREFIX, strlen(VSOCK_PREFIX));
}

static void remove_files(struct registry_entry *e)
{
	struct dirent **names;
	int n = scandirat(e->dir_fd, ".", &names, is_vsock, NULL);

	for (size_t i = 0; i < ARRAY_LEN(files); i++)
		unlinkat(e->dir_fd, files[i], 0);
	for (int i = 0; i < n; i++) {
		unlinkat(e->dir_fd, names[i]->d_name, 0);
		free(names[i]);
	}
	if (n >= 0)
		free(names);
}

/* The lock is held to the end, so that nobody takes what is half gone. */
static void remove_entry(struct registry_entry *e)
{
	remove_files(e);
	unlinkat(e->dir_fd, "pid", 0);
	unlinkat(e->base_fd, e->name, AT_REMOVEDIR);
}

static bool write_pid(struct registry_entry *e, struct error *err)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "%d\n", (int)getpid());

	return (ftruncate(e->pid_fd, 0) == 0 && pwrite(e->pid_fd, text, (size_t)n, 0) == n) ||
	       error_set(err, "%s/pid: %s", e->path, strerror(errno));
}

struct registry_entry *registry_take(struct registry *r, const char *name, struct error *err)
{
	for (unsigned i = 0; i < TRIES; i++) {
		char own[REGISTRY_NAME_MAX + 1];
		struct registry_entry *e;
		enum taken t;
		pid_t owner;

		if (!name)
			make_up(own, sizeof(own));
		else if (!registry_name_ok(name, err))
			return NULL;
		e = entry_new(r, name ? name : own);
		if (!e) {
			error_set(err, "out of memory");
			return NULL;
		}
		t = take(e, true, &owner, err);
		if (t == TAKEN) {
			remove_files(e);
			if (write_pid(e, err))
				return e;
			remove_entry(e);
			t = FAILED;
		}
		entry_free(e);
		if (t == FAILED)
			return NULL;
		if (name)
			break;
	}
	error_set(err, "a virtual machine named %s is running already", name ? name : "so");
	error_hint(err, "choose another --name, or end it; see doppel ps");
	return NULL;
}

void registry_release(struct registry_entry *e)
{
	if (!e)
		return;
	remove_entry(e);
	entry_free(e);
}

const char *registry_entry_name(const struct registry_entry *e) { return e->name; }
const char *registry_entry_path(const struct registry_entry *e) { return e->path; }
int registry_entry_dir(const struct registry_entry *e) { return e->dir_fd; }

bool registry_write(struct registry_entry *e, const char *file, const char *text, struct error *err)
{
	size_t len = strlen(text);
	char temp[64];
	bool ok;
	int fd;

	snprintf(temp, sizeof(temp), "%s.new", file);
	fd = openat(e->dir_fd, temp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	ok = fd >= 0 && write(fd, text, len) == (ssize_t)len && renameat(e->dir_fd, temp, e->dir_fd, file) == 0;
	if (!ok)
		error_set(err, "%s/%s: %s", e->path, file, strerror(errno));
	if (fd >= 0)
		close(fd);
	return ok;
}

/* ---- looking ---- */

/* Process of the VM that lives in the directory; 0: none does. */
static pid_t living(struct registry *r, const char *name)
{
	char path[REGISTRY_NAME_MAX + 8];
	pid_t pid = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/pid", name);
	fd = openat(r->fd, path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (is_locked(fd))
		pid = read_pid(fd);
	close(fd);
	return pid;
}

static void remove_dead(struct registry *r, const char *name)
{
	struct registry_entry *e = entry_new(r, name);
	struct error ignored;
	pid_t owner;

	if (e && try_take(e, false, &owner, &ignored) == TAKEN)
		remove_entry(e);
	if (e)
		entry_free(e);
}

static int is_candidate(const struct dirent *d)
{
	return registry_name_ok(d->d_name, NULL);
}

bool registry_list(struct registry *r, void (*fn)(void *ctx, const char *name, pid_t pid), void *ctx, struct error *err)
{
	struct dirent **names;
	int n = scandirat(r->fd, ".", &names, is_candidate, alphasort);

	if (n < 0)
		return error_set(err, "%s: %s", r->path, strerror(errno));
	for (int i = 0; i < n; i++) {
		pid_t pid = living(r, names[i]->d_name);

		if (pid)
			fn(ctx, names[i]->d_name, pid);
		else
			remove_dead(r, names[i]->d_name);
		free(names[i]);
	}
	free(names);
	return true;
}

bool registry_find(struct registry *r, const char *name, pid_t *pid, struct error *err)
{
	if (!registry_name_ok(name, err))
		return false;
	*pid = living(r, name);
	if (*pid)
		return true;
	error_set(err, "no virtual machine named %s is running", name);
	return error_hint(err, "see doppel ps");
}
