/*
 * Boot loader specification (UAPI group), type 1: /loader/entries/NAME.conf with lines "key value"; default in /loader/loader.conf.
 */
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/disk/disk_int.h"

#define ENTRIES_MAX 256
#define ENTRY_FILE_MAX (64 * KIB)

struct bls_names {
	char name[ENTRIES_MAX][128];
	unsigned n;
};

static void add_name(void *ctx, const char *name)
{
	struct bls_names *l = ctx;
	size_t len = strlen(name);

	if (l->n < ENTRIES_MAX && len > 5 && len < sizeof(l->name[0]) && !strcmp(name + len - 5, ".conf"))
		memcpy(l->name[l->n++], name, len + 1);
}

/* Next "key value" line: both end with a 0 byte. False: no more. */
static bool next_line(char **at, char **key, char **value)
{
	char *line;

	while ((line = strsep(at, "\n"))) {
		size_t len = strlen(line);

		while (len && strchr(" \t\r", line[len - 1]))
			line[--len] = 0;
		line += strspn(line, " \t");
		if (!*line || *line == '#')
			continue;
		*key = line;
		line += strcspn(line, " \t");
		*value = line + strspn(line, " \t");
		*line = 0;
		return true;
	}
	return false;
}

struct bls_entry {
	char title[128], version[96], sort_key[64];
	struct disk_entry e;
};

static bool add_path(const struct disk_fs *fs, struct disk_path *p, const char *value)
{
	p->fs = fs;
	return (size_t)snprintf(p->path, sizeof(p->path), "%s%s", *value == '/' ? "" : "/", value) < sizeof(p->path);
}

static int parse(const struct disk_fs *fs, const char *path, void (*expand)(void *ctx, const char *in, char *out, size_t len),
		 void *ctx, struct bls_entry *out)
{
	struct file_data f;
	int r = disk_read(fs, path, ENTRY_FILE_MAX, &f);
	char *at = (char *)f.data, *key, *value, options[BOOT_DISK_CMDLINE_MAX];
	bool ok = true;

	if (r)
		return r;
	*out = (struct bls_entry){.title = ""};
	while (next_line(&at, &key, &value)) {
		struct disk_entry *e = &out->e;

		if (!strcmp(key, "title")) {
			disk_copy(out->title, sizeof(out->title), value);
		} else if (!strcmp(key, "version")) {
			disk_copy(out->version, sizeof(out->version), value);
		} else if (!strcmp(key, "sort-key")) {
			disk_copy(out->sort_key, sizeof(out->sort_key), value);
		} else if (!strcmp(key, "linux")) {
			ok &= add_path(fs, &e->kernel, value);
		} else if (!strcmp(key, "initrd")) {
			for (char *one = strsep(&value, " \t"); one; one = strsep(&value, " \t"))
				if (*one && *one != '$')
					ok &= e->ninitrd < DISK_INITRD_FILES && add_path(fs, &e->initrd[e->ninitrd++], one);
		} else if (!strcmp(key, "options")) {
			if (expand)
				expand(ctx, value, options, sizeof(options));
			else
				ok &= disk_copy(options, sizeof(options), value);
			ok &= disk_append(e->options, sizeof(e->options), options);
		}
	}
	file_free(&f);
	disk_copy(out->e.title, sizeof(out->e.title), *out->title ? out->title : path);
	return ok && *out->e.kernel.path ? 0 : -EINVAL;
}

/* Which one a loader shows first: with a sort key before without, then by it; the newest version; the highest name. */
static bool is_before(const struct bls_entry *a, const char *a_name, const struct bls_entry *b, const char *b_name)
{
	int r = !*a->sort_key - !*b->sort_key;

	if (!r)
		r = strcmp(a->sort_key, b->sort_key);
	if (!r && *a->sort_key)
		r = strverscmp(b->version, a->version);
	return r ? r < 0 : strverscmp(a_name, b_name) > 0;
}

/* "NAME" or a pattern, of a file name with or without .conf, and without a boot counter ("+3-1"). */
static bool is_wanted(const char *file, const char *wanted)
{
	char stem[128];
	char *plus;

	snprintf(stem, sizeof(stem), "%.*s", (int)(strlen(file) - 5), file);
	if (!fnmatch(wanted, file, 0) || !fnmatch(wanted, stem, 0))
		return true;
	plus = strrchr(stem, '+');
	if (plus)
		*plus = 0;
	return plus && (!fnmatch(wanted, stem, 0) || !strcmp(strcat(stem, ".conf"), wanted));
}

int bls_entry(const struct disk_fs *fs, const char *dir, const char *wanted,
	      void (*expand)(void *ctx, const char *in, char *out, size_t len), void *ctx, struct disk_entry *out)
{
	struct bls_names *l = calloc(1, sizeof(*l));
	struct bls_entry *e = calloc(2, sizeof(*e)), *best = e ? e + 1 : NULL;
	const char *best_name = NULL;
	bool best_wanted = false;
	char path[DISK_PATH_MAX];
	int r = l && e ? fs->ops->list((struct disk_fs *)fs, dir, add_name, l) : -ENOMEM;

	for (unsigned i = 0; !r && i < l->n; i++) {
		bool w = wanted && *wanted && is_wanted(l->name[i], wanted);

		snprintf(path, sizeof(path), "%s/%s", dir, l->name[i]);
		if ((best_wanted && !w) || parse(fs, path, expand, ctx, e))
			continue;
		if (best_name && best_wanted == w && !is_before(e, l->name[i], best, best_name))
			continue;
		*best = *e;
		best_name = l->name[i];
		best_wanted = w;
	}
	if (best_name)
		*out = best->e;
	free(l);
	free(e);
	return best_name ? 0 : r && r != -ENOENT ? r : -ENOENT;
}

int bls_find(struct disk *d, const struct disk_fs *fs, struct disk_entry *out, struct error *err)
{
	static const char *const dirs[][2] = {{"/loader/loader.conf", "/loader/entries"},
					      {"/boot/loader/loader.conf", "/boot/loader/entries"}};
	int r = -ENOENT;

	(void)d;
	for (unsigned i = 0; i < ARRAY_LEN(dirs) && r == -ENOENT; i++) {
		char wanted[128] = "", *at, *key, *value;
		struct file_data f;

		if (!disk_read(fs, dirs[i][0], ENTRY_FILE_MAX, &f)) {
			at = (char *)f.data;
			while (next_line(&at, &key, &value))
				if (!strcmp(key, "default"))
					disk_copy(wanted, sizeof(wanted), value);
			file_free(&f);
		}
		r = bls_entry(fs, dirs[i][1], wanted, NULL, NULL, out);
	}
	if (r && r != -ENOENT)
		error_set(err, "the entries of the boot loader specification cannot be read");
	return r;
}
