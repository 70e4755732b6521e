/*
 * GRUB's configuration (grub.cfg): run as far as needed to know the menu, its default, and what that loads.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "boot/disk/disk_int.h"
#include "boot/disk/script.h"

struct grub {
	struct disk *d;
	const struct disk_fs *home; /* where the configuration lies */
	struct disk_entry *out;
	bool bls;
	char why[256]; /* what an entry could not have; "" */
};

static void device_name(const struct disk *d, const struct disk_fs *fs, char *out, size_t len)
{
	if (fs->part)
		snprintf(out, len, "hd0,%s%u", d->parts->scheme == PART_GPT ? "gpt" : "msdos", fs->part->number);
	else
		snprintf(out, len, "hd0");
}

/* "hd0,gpt2", "hd0,2", "hd0": any disk is this one. NULL: a device that is none of it (LVM, network...). */
static const struct disk_fs *device(const struct disk *d, const char *name, size_t len)
{
	const char *comma = memchr(name, ',', len);
	char digits[16] = "";

	if (len < 2 || (strncmp(name, "hd", 2) && strncmp(name, "cd", 2)))
		return NULL;
	if (!comma)
		return d->nfs == 1 && !d->fs[0].part && d->fs[0].ops ? &d->fs[0] : NULL;
	for (comma++; comma < name + len && (*comma < '0' || *comma > '9'); comma++)
		;
	snprintf(digits, sizeof(digits), "%.*s", (int)(name + len - comma), comma);
	return disk_by_number(d, (unsigned)strtoul(digits, NULL, 10));
}

/* "(hd0,gpt1)/boot/x", or "/boot/x" on $root. */
static bool resolve(struct grub *g, struct script *s, const char *path, struct disk_path *out)
{
	const char *end = *path == '(' ? strchr(path, ')') : NULL;
	const char *root = script_get(s, "root");

	if (end)
		out->fs = device(g->d, path + 1, (size_t)(end - path - 1));
	else
		out->fs = device(g->d, root, strlen(root));
	return out->fs && disk_copy(out->path, sizeof(out->path), end ? end + 1 : path) && *out->path == '/';
}

static bool load(struct grub *g, struct script *s, const char *name, uint64_t max, struct file_data *f)
{
	struct disk_path p;

	return resolve(g, s, name, &p) && !disk_read(p.fs, p.path, max, f);
}

/* An environment block: "name=value" lines, and '#' to fill it. next_entry would be for one boot only: see disk.h. */
static bool load_env(struct grub *g, struct script *s, unsigned argc, char **argv)
{
	char path[DISK_PATH_MAX], *save = NULL;
	struct file_data f;

	if (argc >= 3 && !strcmp(argv[1], "-f"))
		disk_copy(path, sizeof(path), argv[2]);
	else
		snprintf(path, sizeof(path), "%.480s/grubenv", script_get(s, "prefix"));
	if (!load(g, s, path, 64 * KIB, &f))
		return false;
	for (char *line = strtok_r((char *)f.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *equals = strchr(line, '=');

		if (*line == '#' || !equals)
			continue;
		*equals = 0;
		if (strcmp(line, "next_entry") && strcmp(line, "prev_saved_entry"))
			script_set(s, line, equals + 1);
	}
	file_free(&f);
	return true;
}

/* search [--fs-uuid|--label|--file] [--set[=VAR]] [--hint...] NAME */
static bool search(struct grub *g, struct script *s, unsigned argc, char **argv)
{
	const char *var = "root", *name = "";
	const struct disk_fs *fs;
	char how = 'f', value[32];

	for (unsigned i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--fs-uuid") || !strcmp(argv[i], "-u"))
			how = 'u';
		else if (!strcmp(argv[i], "--label") || !strcmp(argv[i], "-l"))
			how = 'l';
		else if (!strncmp(argv[i], "--set=", 6))
			var = argv[i] + 6;
		else if (!strcmp(argv[i], "--hint") || (!strcmp(argv[i], "--set") && i + 2 < argc && argv[i + 1][0] != '-'))
			i++; /* --set VAR is written so by some: VAR is root */
		else if (argv[i][0] != '-')
			name = argv[i];
	}
	fs = how == 'u' ? disk_by_uuid(g->d, name) : how == 'l' ? disk_by_label(g->d, name) : disk_by_file(g->d, name);
	if (!fs)
		return false;
	device_name(g->d, fs, value, sizeof(value));
	script_set(s, var, value);
	return true;
}

static bool source(struct grub *g, struct script *s, unsigned argc, char **argv)
{
	struct file_data f;

	return argc >= 2 && load(g, s, argv[1], DISK_CONFIG_MAX, &f) && script_run(s, (char *)f.data, f.size);
}

/* As GRUB gives it to the kernel: words with spaces in quotes; the file's name first. */
static bool linux_command(struct grub *g, struct script *s, unsigned argc, char **argv)
{
	char word[SCRIPT_WORD_MAX + 2];

	if (argc < 2 || !resolve(g, s, argv[1], &g->out->kernel)) {
		snprintf(g->why, sizeof(g->why), "its kernel %.100s is on no file system that can be read", argc < 2 ? "" : argv[1]);
		return false;
	}
	g->out->ninitrd = 0;
	snprintf(g->out->options, sizeof(g->out->options), "BOOT_IMAGE=%.400s", argv[1]);
	for (unsigned i = 2; i < argc; i++) {
		const char *quote = strchr(argv[i], ' ') ? "\"" : "";

		if (!disk_copy(word, sizeof(word), argv[i]))
			continue;
		snprintf(word, sizeof(word), "%s%s%s", quote, argv[i], quote);
		if (!disk_append(g->out->options, sizeof(g->out->options), word))
			snprintf(g->why, sizeof(g->why), "its command line is too long");
	}
	return true;
}

static bool initrd_command(struct grub *g, struct script *s, unsigned argc, char **argv)
{
	for (unsigned i = 1; i < argc; i++)
		if (g->out->ninitrd < DISK_INITRD_FILES && resolve(g, s, argv[i], &g->out->initrd[g->out->ninitrd]))
			g->out->ninitrd++;
		else
			snprintf(g->why, sizeof(g->why), "its initrd %.100s is on no file system that can be read", argv[i]);
	return true;
}

static bool command(void *ctx, struct script *s, unsigned argc, char **argv)
{
	struct grub *g = ctx;
	const char *c = argv[0];
	struct disk_path p;

	if (argc >= 2 && (!strcmp(c, "-e") || !strcmp(c, "-f") || !strcmp(c, "-s")))
		return resolve(g, s, argv[1], &p) && disk_exists(p.fs, p.path);
	if (!strcmp(c, "load_env"))
		return load_env(g, s, argc, argv);
	if (!strcmp(c, "search") || !strncmp(c, "search.", 7))
		return search(g, s, argc, argv);
	if (!strcmp(c, "source") || !strcmp(c, ".") || !strcmp(c, "configfile"))
		return source(g, s, argc, argv);
	if (!strcmp(c, "linux") || !strcmp(c, "linuxefi") || !strcmp(c, "linux16"))
		return linux_command(g, s, argc, argv);
	if (!strcmp(c, "initrd") || !strcmp(c, "initrdefi") || !strcmp(c, "initrd16"))
		return initrd_command(g, s, argc, argv);
	if (!strcmp(c, "blscfg"))
		return g->bls = true;
	return !strcmp(c, "insmod") || !strcmp(c, "save_env");
}

static void expand_option(void *ctx, const char *in, char *out, size_t len)
{
	script_expand(ctx, in, out, len);
}

static int choose(struct grub *g, struct script *s, struct error *err)
{
	const char *which = script_get(s, "default");
	const struct script_entry *e;

	*g->out = (struct disk_entry){.ninitrd = 0};
	if (g->bls) {
		static const char *const dirs[] = {"/loader/entries", "/boot/loader/entries"};

		for (unsigned i = 0; i < ARRAY_LEN(dirs); i++)
			if (!bls_entry(g->home, dirs[i], *which ? which : script_get(s, "saved_entry"), expand_option, s, g->out))
				return 0;
	}
	e = script_choose(s, which);
	if (!e)
		return -ENOENT;
	disk_copy(g->out->title, sizeof(g->out->title), e->title);
	script_run_entry(s, e);
	if (script_lost(s))
		snprintf(g->why, sizeof(g->why), "its commands are too long");
	if (!*g->why && *g->out->kernel.path)
		return 0;
	error_set(err, "GRUB's entry '%.100s': %s", e->title, *g->why ? g->why : "it loads no Linux kernel");
	return -EINVAL;
}

int grub_find(struct disk *d, const struct disk_fs *fs, struct disk_entry *out, struct error *err)
{
	static const char *const dirs[] = {"/boot/grub", "/grub", "/boot/grub2", "/grub2"};
	static const char *const features[] = {"feature_menuentry_id", "feature_all_video_module", "feature_timeout_style",
					       "feature_platform_search_hint", "feature_menuentry_options"};
	struct grub g = {.d = d, .home = fs, .out = out};
	struct file_data f = {0};
	char name[64], root[32];
	struct script *s;
	unsigned i = 0;
	int r = -ENOENT;

	for (; i < ARRAY_LEN(dirs) && r == -ENOENT; i++) {
		snprintf(name, sizeof(name), "%s/grub.cfg", dirs[i]);
		r = disk_read(fs, name, DISK_CONFIG_MAX, &f);
	}
	if (r == -ENOENT)
		return r;
	s = r ? NULL : script_new(command, &g);
	if (!s) {
		file_free(&f);
		error_set(err, "%s: it cannot be read%s", name, r == -EFBIG ? ": too large" : "");
		return r ? r : -ENOMEM;
	}
	device_name(d, fs, root, sizeof(root));
	snprintf(name, sizeof(name), "(%s)%s", root, dirs[i - 1]);
	script_set(s, "root", root);
	script_set(s, "prefix", name);
	script_set(s, "grub_platform", "pc");
	script_set(s, "grub_cpu", "i386");
	for (i = 0; i < ARRAY_LEN(features); i++)
		script_set(s, features[i], "y");
	if (script_run(s, (char *)f.data, f.size)) {
		r = choose(&g, s, err);
	} else {
		error_set(err, "GRUB's configuration %s/grub.cfg is too long", name);
		r = -EFBIG;
	}
	script_free(s);
	return r;
}
