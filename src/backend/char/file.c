#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "backend/char/chardev_int.h"

static bool file_open(struct chardev *c, const char *path, struct error *err)
{
	/* O_NONBLOCK: a FIFO without a reader is an error here, not a wait. */
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);

	if (fd < 0) {
		error_set(err, "cannot write '%s': %s", path, strerror(errno));
		return error_hint(err, "name a file in a directory that you may write to");
	}
	return chardev_attach(c, -1, fd, err);
}

static void file_close(struct chardev *c)
{
	int fd = c->outfd;

	pthread_mutex_lock(&c->lock);
	chardev_detach_locked(c);
	pthread_mutex_unlock(&c->lock);
	close(fd);
}

const struct chardev_kind chardev_file = {.open = file_open, .close = file_close};
