#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool fail(struct error *err, const char *what, const char *path, const char *why, const char *hint)
{
	error_set(err, "%s %s: %s", what, path, why);
	return error_hint(err, "%s", hint);
}

static bool read_all(int fd, uint8_t *data, uint64_t size)
{
	uint64_t done = 0;

	while (done < size) {
		ssize_t n = read(fd, data + done, size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			errno = ENODATA; /* it shrank under us */
		if (n <= 0)
			return false;
		done += (uint64_t)n;
	}
	return true;
}

static bool read_open(struct file_data *f, int fd, const char *path, const char *what, uint64_t max, struct error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return fail(err, what, path, strerror(errno), "");
	if (!S_ISREG(st.st_mode))
		return fail(err, what, path, "not a regular file", "give the path of a file");
	if (st.st_size == 0)
		return fail(err, what, path, "the file is empty", "was it downloaded or built completely?");
	if ((uint64_t)st.st_size > max) {
		error_set(err, "%s %s: %llu MiB are more than the %llu MiB that can be", what, path,
			  (unsigned long long)st.st_size / MIB, (unsigned long long)max / MIB);
		return error_hint(err, "is it the right file? If so, give the guest more memory with -m");
	}
	f->size = (uint64_t)st.st_size;
	f->data = malloc(f->size);
	if (!f->data)
		return fail(err, what, path, "not enough memory to read it", "");
	if (!read_all(fd, f->data, f->size)) {
		file_free(f);
		return fail(err, what, path, strerror(errno), "");
	}
	return true;
}

bool file_read(struct file_data *f, const char *path, const char *what, uint64_t max, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a FIFO must not make us wait */
	bool ok;

	*f = (struct file_data){0};
	if (fd < 0)
		return fail(err, what, path, strerror(errno),
			    errno == EACCES ? "let this user read it" : "check the path");
	ok = read_open(f, fd, path, what, max, err);
	close(fd);
	return ok;
}

void file_free(struct file_data *f)
{
	free(f->data);
	*f = (struct file_data){0};
}
