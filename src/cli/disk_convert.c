/*
 * `doppel disk convert` and `doppel disk compare`.
 */
#include "cli/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/block/copy.h"
#include "base/tempdir.h"
#include "cli/cli.h"
#include "cli/progress.h"

/* 128 + n when a signal ended the work. */
static int failed(const struct progress *p, const struct error *err)
{
	if (!p->signal)
		return cli_fail(err);
	fprintf(stderr, "doppel: interrupted; nothing was left behind\n");
	return CLI_SIGNAL + p->signal;
}

/*
 * What is there under the target's name: only a file that nobody uses is replaced. The lock, kept until the end, keeps
 * VMs out. -1: nothing is there; -2: err.
 */
static int hold_target(const char *path, const char *src, struct error *err)
{
	struct block_options o = {.path = path};
	struct stat a, b;
	int fd;

	if (stat(path, &a) < 0) {
		if (errno == ENOENT)
			return -1;
		error_set(err, "disk %s: %s", path, strerror(errno));
		return -2;
	}
	if (!S_ISREG(a.st_mode)) {
		error_set(err, "disk %s: exists and is not a regular file", path);
		error_hint(err, "choose another name");
		return -2;
	}
	if (stat(src, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino) {
		error_set(err, "disk %s: source and target are the same file", path);
		error_hint(err, "choose another name for the target");
		return -2;
	}
	fd = block_file_open(path, &o, true, err);
	return fd < 0 ? -2 : fd;
}

struct convert {
	const struct disk_args *a;
	const char *format;
	char options[256];
	bool compress;
	struct block *src, *dst;
	struct tempdir dir;
	struct progress progress;
	struct block_job job;
};

static bool is_stream(const struct convert *c)
{
	return !strcmp(c->format, "vmdk") && c->a->options && strcasestr(c->a->options, "subformat=streamOptimized");
}

static bool plan(struct convert *c, struct error *err)
{
	const struct block_format *f = block_format_find(c->format, err);

	if (!f)
		return false;
	c->compress = c->a->compress || is_stream(c);
	if (c->compress && !f->write_compressed) {
		error_set(err, "disk convert: %s images are not compressed", c->format);
		return error_hint(err, "take qcow2, or vmdk with -o subformat=streamOptimized");
	}
	if (c->a->compress && !strcmp(c->format, "vmdk") && !is_stream(c)) {
		if (c->a->options && strstr(c->a->options, "subformat=")) {
			error_set(err, "disk convert: of the vmdk formats only streamOptimized is compressed");
			return error_hint(err, "leave -c away, or say -o subformat=streamOptimized");
		}
		snprintf(c->options, sizeof(c->options), "%s%ssubformat=streamOptimized",
			 c->a->options ? c->a->options : "", c->a->options ? "," : "");
	} else if (c->a->options) {
		if (strlen(c->a->options) >= sizeof(c->options))
			return error_set(err, "disk convert: the options are too long");
		strcpy(c->options, c->a->options);
	}
	return true;
}

static bool make_target(struct convert *c, struct error *err)
{
	struct block_create create = {.size = c->src->size, .options = c->options[0] ? c->options : NULL};
	char path[PATH_MAX];

	if (!tempdir_make(&c->dir, c->a->names[1], err) || !tempdir_main(&c->dir, path, err))
		return false;
	create.path = path;
	if (!block_create(c->format, &create, err))
		return false;
	c->dst = disk_open(path, c->format, false, false, err);
	return c->dst != NULL;
}

static bool convert(struct convert *c, struct error *err)
{
	bool ok = plan(c, err);

	c->src = ok ? disk_open(c->a->names[0], c->a->format, true, false, err) : NULL;
	ok = c->src && make_target(c, err);
	if (ok) {
		progress_begin(&c->progress, "convert");
		c->progress.terminal &= !c->a->quiet;
		c->job = (struct block_job){.progress = progress_show, .stop = progress_stop, .ctx = &c->progress};
		ok = block_copy(c->src, c->dst, c->compress, &c->job, err);
		progress_end(&c->progress);
	}
	block_close(c->dst);
	block_close(c->src);
	ok = ok && tempdir_publish(&c->dir, err);
	tempdir_discard(&c->dir);
	return ok;
}

int disk_convert(const struct disk_args *a)
{
	struct convert c = {.a = a, .format = a->out_format ? a->out_format : disk_format_of(a->names[1])};
	struct error err = {0};
	int held = hold_target(a->names[1], a->names[0], &err);
	bool ok = held != -2 && convert(&c, &err);

	if (held >= 0)
		close(held);
	return ok ? CLI_OK : failed(&c.progress, &err);
}

int disk_compare(const struct disk_args *a)
{
	struct progress progress = {0};
	struct block_job job = {.progress = progress_show, .stop = progress_stop, .ctx = &progress};
	struct error err = {0};
	struct block *x = disk_open(a->names[0], a->format, true, false, &err);
	struct block *y = x ? disk_open(a->names[1], a->format, true, false, &err) : NULL;
	uint64_t where = 0;
	bool same = false, ok = false;

	if (y) {
		progress_begin(&progress, "compare");
		progress.terminal &= !a->quiet;
		ok = block_compare(x, y, &job, &same, &where, &err);
		progress_end(&progress);
	}
	if (ok && !a->quiet && !same)
		printf("different at offset %llu\n", (unsigned long long)where);
	else if (ok && !a->quiet)
		printf("the same%s\n",
		       x->size == y->size ? "" : "; the sizes differ, and zeroes are in the rest of the larger one");
	block_close(x);
	block_close(y);
	if (!ok)
		return failed(&progress, &err);
	return same ? CLI_OK : DISK_DIFFERENT;
}
