/*
 * `doppel import` and `doppel export`: machines as OVA files.
 */
#include "ova/ova.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/tempdir.h"
#include "cli/cli.h"
#include "cli/config.h"
#include "cli/disk.h"
#include "cli/opt_disk.h"
#include "cli/progress.h"
#include "machine/disk.h"

static const char import_usage[] =
	"usage: doppel import FILE.ova [OPTION]...\n"
	"\n"
	"Makes a machine of the OVA: a directory with config.json and the disks as qcow2 images.\n"
	"\n"
	"  --name N       name of the machine (default: as the OVA calls it)\n"
	"  --dir D        make the directory N in D, not among the machines of this user\n"
	"  -q, --quiet    print nothing but errors\n"
	"  --help         show this text\n";

static const char export_usage[] = "usage: doppel export NAME FILE.ova [OPTION]...\n"
				   "\n"
				   "Writes a machine, with compressed copies of its disks, into an OVA. NAME is a "
				   "machine's name, or the path of its directory.\n"
				   "FILE.ova appears whole or not at all.\n"
				   "\n"
				   "  -q, --quiet    print nothing but errors\n"
				   "  --help         show this text\n";

enum { OPT_NAME = 256, OPT_DIR, OPT_HELP };

static const struct option long_options[] = {
	{"name", required_argument, NULL, OPT_NAME},
	{"dir", required_argument, NULL, OPT_DIR},
	{"quiet", no_argument, NULL, 'q'},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

struct ova_args {
	const char *name, *dir;
	bool quiet, help;
	char **names;
};

static bool parse(struct ova_args *a, int argc, char **argv, int want, bool import, struct error *err)
{
	const char *what = argv[0];
	int opt;

	opterr = 0;
	optind = 1;
	while ((opt = getopt_long(argc, argv, ":q", long_options, NULL)) != -1) {
		switch (opt) {
		case OPT_NAME:
			a->name = optarg;
			break;
		case OPT_DIR:
			a->dir = optarg;
			break;
		case OPT_HELP:
			a->help = true;
			break;
		case 'q':
			a->quiet = true;
			break;
		default:
			error_set(err, "%s: unknown option or missing value: '%.64s'", what, argv[optind - 1]);
			return error_hint(err, "see doppel %s --help", what);
		}
	}
	a->names = argv + optind;
	if (a->help || (argc - optind == want && (import || (!a->name && !a->dir))))
		return true;
	error_set(err, import ? "%s: needs one OVA file" : "%s: needs the name of a machine and a file", what);
	return error_hint(err, "see doppel %s --help", what);
}

static void note(void *ctx, const char *line)
{
	struct progress *p = ctx;
	char text[512];

	progress_end(p);
	fprintf(stderr, "doppel: note: %s\n", disk_safe_text(line, text, sizeof(text)));
}

static void no_note(void *ctx, const char *line) {}

static int failed(const struct progress *p, const struct error *err)
{
	if (!p->signal)
		return cli_fail(err);
	fprintf(stderr, "doppel: interrupted; nothing was left behind\n");
	return CLI_SIGNAL + p->signal;
}

/* ---- import ---- */

static bool make_dirs(const char *dir, struct error *err)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s", dir);
	for (char *p = path + (path[0] == '/');; p++) {
		bool end = !*p;

		if (*p != '/' && !end)
			continue;
		*p = 0;
		if (mkdir(path, 0755) < 0 && errno != EEXIST) {
			error_set(err, "%s: cannot be made: %s", path, strerror(errno));
			return error_hint(err, "say where with --dir");
		}
		if (end)
			return true;
		*p = '/';
	}
}

/* What a name in an OVA becomes as a machine's. */
static void usable_name(const char *from, char out[CONFIG_NAME_MAX + 1])
{
	unsigned n = 0;

	for (; *from && n < CONFIG_NAME_MAX; from++) {
		out[n] = *from;
		out[n + 1] = 0;
		if (!config_name_ok(out))
			out[n] = '-';
		n += n || out[n] != '-'; /* none at the start */
	}
	out[n] = 0;
	if (!n)
		strcpy(out, "imported");
}

/* Where the machine goes; nothing may be there. */
static bool target_of(const struct ova_args *a, const char *name, char out[PATH_MAX], struct error *err)
{
	char dir[PATH_MAX];
	struct stat st;

	if (a->name && !config_machine_dir(name, out, err)) /* checks the name */
		return false;
	if (a->dir)
		snprintf(dir, sizeof(dir), "%s", a->dir);
	else if (!config_machines_dir(dir, err))
		return false;
	if (!make_dirs(dir, err))
		return false;
	if (snprintf(out, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
		return error_set(err, "%s: the path is too long", dir);
	if (lstat(out, &st) < 0)
		return true;
	error_set(err, "%s: exists already", out);
	return error_hint(err, "give the machine another name with --name");
}

static bool add(struct config *c, const char *option, struct error *err, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static bool add(struct config *c, const char *option, struct error *err, const char *fmt, ...)
{
	char value[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(value, sizeof(value), fmt, ap);
	va_end(ap);
	return config_add(c, option, value, err);
}

static bool write_config(const struct ova_machine *m, const char *dir, struct error *err)
{
	struct config c = {0};
	char path[PATH_MAX + 16];
	bool ok = true;

	if (m->memory)
		ok = add(&c, "memory", err, "%lluM", (unsigned long long)max_u64(m->memory / MIB, 1));
	if (m->cpus)
		ok = ok && add(&c, "cpus", err, "%u", m->cpus);
	for (unsigned i = 0; i < m->ndisks; i++)
		ok = ok && config_add(&c, "disk", m->disks[i].path, err);
	for (unsigned i = 0; i < m->nnics; i++)
		ok = ok && add(&c, "net", err, m->nics[i].mac[0] ? "user,mac=%s" : "user", m->nics[i].mac);
	snprintf(path, sizeof(path), "%s/config.json", dir);
	ok = ok && config_write(&c, path, err);
	config_fini(&c);
	return ok;
}

/* The name is known only when the OVF has been read: the work is done beside the target, under any name. */
static bool import(const struct ova_args *a, struct ova_job *job, struct ova_machine *m, char target[PATH_MAX],
		   struct error *err)
{
	char name[CONFIG_NAME_MAX + 1];
	struct tempdir dir = {0};
	bool ok;

	if (a->name ? !target_of(a, a->name, target, err) : !target_of(a, ".import", target, err))
		return false;
	if (!tempdir_make(&dir, target, err))
		return false;
	ok = ova_import(a->names[0], dir.path, m, job, err);
	if (ok && !a->name) {
		usable_name(m->name, name);
		ok = target_of(a, name, target, err);
		snprintf(dir.target, sizeof(dir.target), "%s", target);
	}
	ok = ok && write_config(m, dir.path, err);
	if (ok)
		return tempdir_become(&dir, err);
	tempdir_discard(&dir);
	return false;
}

int cli_import(int argc, char **argv)
{
	struct ova_args a = {0};
	struct progress progress = {0};
	struct block_job block = {.progress = progress_show, .stop = progress_stop, .ctx = &progress};
	struct ova_job job = {.block = &block, .note = note, .ctx = &progress};
	struct ova_machine *m;
	struct error err = {0};
	char target[PATH_MAX];
	bool ok;

	if (!parse(&a, argc, argv, 1, true, &err))
		return cli_fail(&err);
	if (a.help)
		return fputs(import_usage, stdout) < 0 ? CLI_ERROR : CLI_OK;
	m = calloc(1, sizeof(*m));
	if (!m) {
		error_set(&err, "out of memory");
		return cli_fail(&err);
	}
	progress_begin(&progress, "import");
	progress.terminal &= !a.quiet;
	job.note = a.quiet ? no_note : note;
	ok = import(&a, &job, m, target, &err);
	progress_end(&progress);
	if (ok && !a.quiet)
		printf("%s\n", target);
	free(m);
	return ok ? CLI_OK : failed(&progress, &err);
}

/* ---- export ---- */

static bool take_disks(const struct config *c, struct ova_machine *m, struct error *err)
{
	struct machine_config cfg = {0};
	bool ok = true;

	for (unsigned i = 0; i < c->n && ok; i++)
		if (!strcmp(c->items[i].option, "disk"))
			ok = opt_disk_add(&cfg, c->items[i].value ? c->items[i].value : "", err);
	if (ok && cfg.ndisks > OVA_DISKS_MAX)
		ok = error_set(err, "an OVA has at most %u disks, not %u", OVA_DISKS_MAX, cfg.ndisks);
	for (unsigned i = 0; i < cfg.ndisks && ok; i++) {
		const struct block_options *o = &cfg.disks[i].image;

		snprintf(m->disks[i].path, sizeof(m->disks[i].path), "%s", o->path);
		m->disks[i].format = o->format ? block_format_find(o->format, err)->name : NULL;
		m->ndisks = i + 1;
	}
	opt_disk_free(&cfg);
	return ok;
}

static bool take_nic(struct ova_machine *m, const char *value)
{
	const char *mac = value ? strstr(value, "mac=") : NULL;

	if (m->nnics == OVA_NICS_MAX)
		return false;
	if (mac)
		snprintf(m->nics[m->nnics].mac, sizeof(m->nics[0].mac), "%.17s", mac + 4);
	m->nnics++;
	return true;
}

static bool take_machine(const struct config *c, struct ova_machine *m, struct ova_job *job, struct error *err)
{
	const char *memory = config_get(c, "memory"), *cpus = config_get(c, "cpus");

	m->memory = 512 * MIB; /* what `doppel run` does without */
	m->cpus = 1;
	if (memory && !cli_parse_size(memory, &m->memory, err))
		return false;
	if (cpus)
		m->cpus = (unsigned)strtoul(cpus, NULL, 10);
	for (unsigned i = 0; i < c->n; i++) {
		const char *o = c->items[i].option;

		if (!strcmp(o, "net") && !take_nic(m, c->items[i].value))
			return error_set(err, "an OVA has at most %u network cards here", OVA_NICS_MAX);
		if (!strcmp(o, "kernel") || !strcmp(o, "initrd") || !strcmp(o, "append") || !strcmp(o, "share"))
			job->note(job->ctx, "the machine's kernel, initrd, command line and shares have no place in an "
					    "OVA and are left out");
	}
	return take_disks(c, m, err);
}

/* NAME, or a path of the directory. */
static bool read_machine(const char *name, struct ova_machine *m, struct ova_job *job, struct error *err)
{
	char dir[PATH_MAX], path[PATH_MAX + 16], usable[CONFIG_NAME_MAX + 1];
	struct config c;
	const char *base;
	bool ok;

	if (strchr(name, '/')) {
		snprintf(dir, sizeof(dir), "%s", name);
		while (dir[0] && dir[strlen(dir) - 1] == '/')
			dir[strlen(dir) - 1] = 0;
	} else if (!config_machine_dir(name, dir, err)) {
		return false;
	}
	if (access(dir, F_OK) < 0) {
		error_set(err, "no machine %s: %s: %s", name, dir, strerror(errno));
		return error_hint(err, "doppel import makes one; give a path for a directory elsewhere");
	}
	snprintf(path, sizeof(path), "%s/config.json", dir);
	if (!config_read(&c, path, err))
		return false;
	base = strrchr(dir, '/');
	usable_name(base ? base + 1 : dir, usable);
	snprintf(m->name, sizeof(m->name), "%s", usable);
	ok = take_machine(&c, m, job, err);
	config_fini(&c);
	return ok;
}

static bool export(const struct ova_args *a, struct ova_job *job, struct ova_machine *m, struct error *err)
{
	struct tempdir dir = {0};
	char path[PATH_MAX];
	bool ok;

	if (!read_machine(a->names[0], m, job, err))
		return false;
	ok = tempdir_make(&dir, a->names[1], err) && tempdir_main(&dir, path, err) && ova_export(m, path, job, err);
	ok = ok && tempdir_publish(&dir, err);
	tempdir_discard(&dir);
	return ok;
}

int cli_export(int argc, char **argv)
{
	struct ova_args a = {0};
	struct progress progress = {0};
	struct block_job block = {.progress = progress_show, .stop = progress_stop, .ctx = &progress};
	struct ova_job job = {.block = &block, .note = note, .ctx = &progress};
	struct ova_machine *m;
	struct error err = {0};
	bool ok;

	if (!parse(&a, argc, argv, 2, false, &err))
		return cli_fail(&err);
	if (a.help)
		return fputs(export_usage, stdout) < 0 ? CLI_ERROR : CLI_OK;
	m = calloc(1, sizeof(*m));
	if (!m) {
		error_set(&err, "out of memory");
		return cli_fail(&err);
	}
	progress_begin(&progress, "export");
	progress.terminal &= !a.quiet;
	job.note = a.quiet ? no_note : note;
	ok = export(&a, &job, m, &err);
	progress_end(&progress);
	free(m);
	return ok ? CLI_OK : failed(&progress, &err);
}
