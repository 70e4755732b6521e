#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/char/chardev_int.h"

static void on_connect(void *ctx, unsigned events)
{
	struct chardev *c = ctx;
	int fd = accept4(c->listenfd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	pthread_mutex_lock(&c->lock);
	if (chardev_attach(c, fd, fd, NULL)) {
		loop_mod(c->loop, c->listenfd, 0);
		c->out_on = c->out_count != 0;
		loop_mod(c->loop, fd, LOOP_READ | (c->out_on ? LOOP_WRITE : 0));
	} else {
		close(fd);
	}
	pthread_mutex_unlock(&c->lock);
}

static void drop_client_locked(struct chardev *c)
{
	int fd = c->outfd;

	chardev_detach_locked(c);
	if (fd >= 0)
		close(fd);
}

static void unix_hangup_locked(struct chardev *c)
{
	drop_client_locked(c);
	loop_mod(c->loop, c->listenfd, LOOP_READ);
}

/* True when the name is free: nothing there, or a socket that nobody listens on (removed). */
static bool clear_stale(const struct sockaddr_un *sa, struct error *err)
{
	struct stat st;
	int fd, rc, errnum;

	if (lstat(sa->sun_path, &st) < 0)
		return errno == ENOENT || error_set(err, "cannot use '%s': %s", sa->sun_path, strerror(errno));
	if (!S_ISSOCK(st.st_mode)) {
		error_set(err, "'%s' exists and is not a socket", sa->sun_path);
		return error_hint(err, "remove it or choose another path");
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, "socket: %s", strerror(errno));
	rc = connect(fd, (const struct sockaddr *)sa, sizeof(*sa));
	errnum = errno;
	close(fd);
	if (rc == 0 || errnum != ECONNREFUSED) {
		error_set(err, "'%s' is in use by another process", sa->sun_path);
		return error_hint(err, "end that process or choose another path");
	}
	if (unlink(sa->sun_path) < 0 && errno != ENOENT)
		return error_set(err, "cannot remove the stale socket '%s': %s", sa->sun_path, strerror(errno));
	return true;
}

static bool listen_at(struct chardev *c, const char *path, struct error *err)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct stat st;

	if (strlen(path) >= sizeof(sa.sun_path)) {
		error_set(err, "socket path '%s' is too long", path);
		return error_hint(err, "at most %zu bytes", sizeof(sa.sun_path) - 1);
	}
	strcpy(sa.sun_path, path);
	if (!clear_stale(&sa, err))
		return false;
	c->listenfd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* On Linux the mode of an unbound socket, less the umask, becomes the mode of the name: no window. */
	if (c->listenfd < 0 || fchmod(c->listenfd, 0600) < 0 ||
	    bind(c->listenfd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		error_set(err, "cannot make the socket '%s': %s", path, strerror(errno));
		return error_hint(err, "name one in a directory that you may write to");
	}
	c->path = strdup(path);
	if (c->path && lstat(path, &st) == 0) {
		c->path_dev = st.st_dev;
		c->path_ino = st.st_ino;
	}
	if (!c->path || listen(c->listenfd, 4) < 0)
		return error_set(err, "cannot listen on '%s': %s", path, strerror(errno));
	return true;
}

static void unix_close(struct chardev *c)
{
	struct stat st;

	if (c->listenfd >= 0) {
		loop_del(c->loop, c->listenfd);
		close(c->listenfd);
	}
	pthread_mutex_lock(&c->lock);
	drop_client_locked(c);
	pthread_mutex_unlock(&c->lock);
	/* Only our own socket: another process may have taken the name. */
	if (c->path && lstat(c->path, &st) == 0 && st.st_dev == c->path_dev && st.st_ino == c->path_ino)
		unlink(c->path);
}

static bool unix_open(struct chardev *c, const char *path, struct error *err)
{
	c->out_socket = true;
	if (listen_at(c, path, err) && loop_add(c->loop, c->listenfd, LOOP_READ, on_connect, c, err))
		return true;
	unix_close(c);
	return false;
}

const struct chardev_kind chardev_unix = {.open = unix_open, .close = unix_close, .hangup_locked = unix_hangup_locked};
