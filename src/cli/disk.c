#include "cli/disk.h"

#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/progress.h"

#define SNAPSHOTS_MAX 1024u

enum { OPT_FORMAT = 256, OPT_BACKING_FORMAT, OPT_REPAIR, OPT_SHRINK, OPT_HELP };

static const struct option long_options[] = {
	{"format", required_argument, NULL, OPT_FORMAT},
	{"options", required_argument, NULL, 'o'},
	{"backing", required_argument, NULL, 'B'},
	{"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
	{"compress", no_argument, NULL, 'c'},
	{"repair", no_argument, NULL, OPT_REPAIR},
	{"shrink", no_argument, NULL, OPT_SHRINK},
	{"quiet", no_argument, NULL, 'q'},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

static const char usage[] =
	"usage: doppel disk COMMAND [OPTION]... FILE...\n"
	"\n"
	"  create FILE SIZE          make an empty image; SIZE like 512M or 20G\n"
	"      --format F            raw, qcow2 or vmdk (default: by the suffix of FILE, else raw)\n"
	"      -o, --options LIST    like cluster_size=64K or subformat=streamOptimized\n"
	"      -B, --backing FILE    what the image does not have is read from there; SIZE may be left away\n"
	"      --backing-format F    its format (default: by its suffix)\n"
	"  info FILE                 size, format, snapshots, partitions; --format json for programs\n"
	"  convert SRC DST           copy into a new image; DST appears whole or not at all\n"
	"      -f F, -O F            formats of SRC and of DST (default: by their suffixes)\n"
	"      -c, --compress        compressed (qcow2; a streamOptimized vmdk always is)\n"
	"      -o, --options LIST    of DST, as above\n"
	"  check FILE [--repair]     is the image consistent; put it right\n"
	"  resize FILE [+|-]SIZE     a new size; a smaller one only with --shrink\n"
	"  snapshot create FILE NAME, apply FILE NAME, delete FILE NAME, list FILE\n"
	"                            snapshots inside of the image (qcow2)\n"
	"  map FILE                  which ranges are data and where; --format json for programs\n"
	"  compare A B               do they hold the same bytes\n"
	"\n"
	"  -f F                      format of the image, where the suffix does not say it\n"
	"  -q, --quiet               print nothing but errors\n"
	"  --help                    show this text\n"
	"\n"
	"exit status: 0 done, or the same; compare: 1 different; check: 2 corrupt, 3 only leaks; 125 error; 128+N "
	"ended by signal N.\n";

struct block *disk_open(const char *path, const char *format, bool readonly, bool no_lock, struct error *err)
{
	struct block_options o = {.path = path, .format = format, .readonly = readonly, .no_lock = no_lock};

	return block_open(&o, err);
}

const char *disk_format_of(const char *path)
{
	size_t n = strlen(path);

	for (unsigned i = 0; block_formats[i]; i++) {
		for (const char *const *s = block_formats[i]->suffixes; s && *s; s++) {
			size_t m = strlen(*s);

			if (n > m && !strcasecmp(path + n - m, *s))
				return block_formats[i]->name;
		}
	}
	return "raw";
}

const char *disk_safe_text(const char *s, char *out, size_t size)
{
	size_t n = 0;

	for (; *s && n + 1 < size; s++)
		out[n++] = (uint8_t)*s < 0x20 || *s == 0x7f ? '?' : *s;
	out[n] = 0;
	return out;
}

/* ---- create ---- */

/* A backing file's name counts from the directory of the image that names it. */
static bool backing_size(const char *path, const char *backing, const char *format, uint64_t *size, struct error *err)
{
	const char *slash = strrchr(path, '/');
	char full[PATH_MAX];
	struct block *b;

	snprintf(full, sizeof(full), "%.*s%s", backing[0] == '/' || !slash ? 0 : (int)(slash - path) + 1, path,
		 backing);
	b = disk_open(full, format, true, true, err);
	if (!b)
		return false;
	*size = b->size;
	block_close(b);
	return true;
}

/* An image is not much use when its backing file cannot be opened by the rules: say so now. */
static void try_backed(const char *path, const char *format)
{
	struct error err = {0};
	struct block *b = disk_open(path, format, true, false, &err);

	if (!b)
		fprintf(stderr, "doppel: note: %s%s%s%s\n", err.msg, err.hint[0] ? " (" : "", err.hint,
			err.hint[0] ? ")" : "");
	block_close(b);
}

static int disk_create(const struct disk_args *a)
{
	const char *format = a->format ? a->format : disk_format_of(a->names[0]);
	struct block_create c = {
		.path = a->names[0], .backing = a->backing, .backing_format = a->backing_format, .options = a->options};
	struct error err = {0};

	if (c.backing && !c.backing_format)
		c.backing_format = disk_format_of(c.backing);
	if (a->n > 1 && !cli_parse_size(a->names[1], &c.size, &err))
		return cli_fail(&err);
	if (a->n == 1 && !c.backing) {
		error_set(&err, "disk create: no size");
		error_hint(&err, "give one like 20G after the file");
		return cli_fail(&err);
	}
	if (a->n == 1 && !backing_size(c.path, c.backing, c.backing_format, &c.size, &err))
		return cli_fail(&err);
	if (!block_create(format, &c, &err))
		return cli_fail(&err);
	if (c.backing)
		try_backed(c.path, format);
	return CLI_OK;
}

/* ---- check ---- */

struct check_ctx {
	struct progress progress;
	bool quiet;
};

static void check_report(void *ctx, const char *line)
{
	struct check_ctx *c = ctx;
	char text[512];

	progress_end(&c->progress);
	if (!c->quiet)
		puts(disk_safe_text(line, text, sizeof(text)));
}

static void check_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct check_ctx *c = ctx;

	progress_show(&c->progress, done, total);
}

static void print_check(const struct block_check *c)
{
	printf("%llu corruptions, %llu leaked clusters", (unsigned long long)c->corruptions,
	       (unsigned long long)c->leaks);
	if (c->errors_fixed || c->leaks_fixed)
		printf("; repaired: %llu corruptions, %llu leaks", (unsigned long long)c->errors_fixed,
		       (unsigned long long)c->leaks_fixed);
	if (c->total_clusters)
		printf("; %llu of %llu clusters in use", (unsigned long long)c->allocated_clusters,
		       (unsigned long long)c->total_clusters);
	putchar('\n');
}

static int disk_check(const struct disk_args *a)
{
	struct check_ctx ctx = {.quiet = a->quiet};
	struct block_check c = {.report = check_report, .progress = check_progress, .ctx = &ctx};
	struct error err = {0};
	struct block_options o = {
		.path = a->names[0], .format = a->format, .readonly = !a->repair, .repair = a->repair};
	struct block *b = block_open(&o, &err);
	bool ok;

	if (!b)
		return cli_fail(&err);
	if (!b->format->check) {
		error_set(&err, "disk %s: %s images have nothing that can be checked", b->path, b->format->name);
		error_hint(&err, "check the file system inside from a guest");
		block_close(b);
		return cli_fail(&err);
	}
	progress_begin(&ctx.progress, "check");
	ok = b->format->check(b, a->repair, &c, &err);
	progress_end(&ctx.progress);
	if (ok && a->repair && block_flush(b))
		ok = error_set(&err, "disk %s: the repair could not be written", b->path);
	block_close(b);
	if (!ok)
		return cli_fail(&err);
	if (!a->quiet)
		print_check(&c);
	if (c.corruptions > c.errors_fixed)
		return DISK_CORRUPT;
	return c.leaks > c.leaks_fixed ? DISK_LEAKS : CLI_OK;
}

/* ---- resize ---- */

static bool new_size(const char *s, uint64_t old, uint64_t *size, struct error *err)
{
	uint64_t v = 0;

	if (!cli_parse_size(s + (s[0] == '+' || s[0] == '-'), &v, err))
		return false;
	if (s[0] == '-' ? v >= old : s[0] == '+' && old + v < old)
		return error_set(err, "disk resize: '%.32s' from %llu bytes leaves no possible size", s,
				 (unsigned long long)old);
	*size = s[0] == '-' ? old - v : s[0] == '+' ? old + v : v;
	return true;
}

static bool resize(struct block *b, const struct disk_args *a, struct error *err)
{
	uint64_t size = 0;

	if (!new_size(a->names[1], b->size, &size, err))
		return false;
	if (size < b->size && !a->shrink) {
		error_set(err, "disk %s: %llu bytes are less than it has now, and what is behind would be lost",
			  b->path, (unsigned long long)size);
		return error_hint(err, "shrink the file systems inside first, then say --shrink");
	}
	if (!b->format->resize)
		return error_set(err, "disk %s: %s images cannot be resized", b->path, b->format->name);
	if (!b->format->resize(b, size, err))
		return false;
	return block_flush(b) == 0 || error_set(err, "disk %s: the new size could not be written", b->path);
}

static int disk_resize(const struct disk_args *a)
{
	struct error err = {0};
	struct block *b = disk_open(a->names[0], a->format, false, false, &err);
	bool ok = b && resize(b, a, &err);

	block_close(b);
	return ok ? CLI_OK : cli_fail(&err);
}

/* ---- snapshots ---- */

static void print_snapshots(struct block *b)
{
	struct block_snapshot *s = calloc(SNAPSHOTS_MAX, sizeof(*s));
	unsigned n = s ? b->format->snapshot_list(b, s, SNAPSHOTS_MAX) : 0;

	printf("%-6s %-24s %-20s %s\n", "ID", "NAME", "DATE", "VM STATE");
	for (unsigned i = 0; i < n && i < SNAPSHOTS_MAX; i++) {
		time_t t = (time_t)s[i].date_s;
		char id[40], name[260], date[32] = "?", size[32];
		struct tm tm;

		if (localtime_r(&t, &tm))
			strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
		printf("%-6s %-24s %-20s %s\n", disk_safe_text(s[i].id, id, sizeof(id)),
		       disk_safe_text(s[i].name, name, sizeof(name)), date,
		       s[i].vm_state ? size_text(s[i].vm_state, size) : "-");
	}
	free(s);
}

static bool snapshot_change(struct block *b, const char *verb, const char *name, struct error *err)
{
	const struct block_format *f = b->format;
	bool (*fn)(struct block *, const char *, struct error *) = !strcmp(verb, "create")  ? f->snapshot_create
								   : !strcmp(verb, "apply") ? f->snapshot_apply
											    : f->snapshot_delete;

	if (!fn) {
		error_set(err, "disk %s: %s images have no snapshots inside", b->path, f->name);
		return error_hint(err, "convert it to qcow2");
	}
	return fn(b, name, err);
}

static int disk_snapshot(const struct disk_args *a)
{
	const char *verb = a->names[0];
	bool list = !strcmp(verb, "list"), ok;
	struct error err = {0};
	struct block *b;

	if (!list && strcmp(verb, "create") && strcmp(verb, "apply") && strcmp(verb, "delete")) {
		error_set(&err, "disk snapshot: unknown command '%.64s'", verb);
		error_hint(&err, "it is one of: create, list, apply, delete");
		return cli_fail(&err);
	}
	if (a->n != (list ? 2 : 3)) {
		error_set(&err, "disk snapshot %s: needs %s", verb, list ? "FILE" : "FILE and NAME");
		error_hint(&err, "see doppel disk --help");
		return cli_fail(&err);
	}
	b = disk_open(a->names[1], a->format, list, list, &err);
	if (!b)
		return cli_fail(&err);
	ok = list || snapshot_change(b, verb, a->names[2], &err);
	if (ok && list && b->format->snapshot_list)
		print_snapshots(b);
	if (ok && !list && block_flush(b))
		ok = error_set(&err, "disk %s: the change could not be written", b->path);
	block_close(b);
	return ok ? CLI_OK : cli_fail(&err);
}

/* ---- the command line ---- */

static const struct command {
	const char *name;
	int (*fn)(const struct disk_args *);
	int min, max;	     /* names */
	const char *options; /* short forms of those that it takes; F is --format, r --repair, s --shrink, b
				--backing-format */
	const char *needs;
} commands[] = {
	{"create", disk_create, 1, 2, "FofBbq", "FILE and SIZE"},
	{"info", disk_info, 1, 1, "fFq", "FILE"},
	{"convert", disk_convert, 2, 2, "fOocq", "SRC and DST"},
	{"check", disk_check, 1, 1, "frq", "FILE"},
	{"resize", disk_resize, 2, 2, "fsq", "FILE and SIZE"},
	{"snapshot", disk_snapshot, 2, 3, "fq", "a command and FILE"},
	{"map", disk_map, 1, 1, "fFq", "FILE"},
	{"compare", disk_compare, 2, 2, "fq", "two files"},
};

static bool bad_output(const struct command *c, struct error *err)
{
	error_set(err, "disk %s: --format: unknown value '%.32s'", c->name, optarg);
	return error_hint(err, "it is one of: table, json; an image's format is given with -f");
}

static bool set_option(struct disk_args *a, const struct command *c, int opt, struct error *err)
{
	char letter = opt == OPT_FORMAT		  ? 'F'
		      : opt == OPT_BACKING_FORMAT ? 'b'
		      : opt == OPT_REPAIR	  ? 'r'
		      : opt == OPT_SHRINK	  ? 's'
						  : (char)opt;

	if (opt == OPT_HELP) {
		a->help = true;
		return true;
	}
	if (!strchr(c->options, letter)) {
		error_set(err, "disk %s: no such option here", c->name);
		return error_hint(err, "see doppel disk --help");
	}
	switch (opt) {
	case OPT_FORMAT:
		/* Of what is made, or of what is printed. */
		if (!strcmp(c->name, "create"))
			a->format = optarg;
		else if (!strcmp(optarg, "json") || !strcmp(optarg, "table"))
			a->json = optarg[0] == 'j';
		else
			return bad_output(c, err);
		return true;
	case 'f':
		a->format = optarg;
		return true;
	case 'O':
		a->out_format = optarg;
		return true;
	case 'o':
		a->options = optarg;
		return true;
	case 'B':
		a->backing = optarg;
		return true;
	case OPT_BACKING_FORMAT:
		a->backing_format = optarg;
		return true;
	case 'c':
		a->compress = true;
		return true;
	case 'q':
		a->quiet = true;
		return true;
	case OPT_REPAIR:
		a->repair = true;
		return true;
	default:
		a->shrink = true;
		return true;
	}
}

static bool bad_option(const struct command *c, int opt, char **argv, struct error *err)
{
	if (opt == ':')
		error_set(err, "disk %s: option '%.64s' needs a value", c->name, argv[optind - 1]);
	else if (optopt && optopt < 256)
		error_set(err, "disk %s: unknown option '-%c'", c->name, optopt);
	else
		error_set(err, "disk %s: unknown, ambiguous or misused option '%.64s'", c->name, argv[optind - 1]);
	return error_hint(err, "see doppel disk --help");
}

/* "-5G" of resize is a size, not an option: it goes to the end, behind what getopt sees. */
static bool take_minus_size(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		char *size = argv[i];

		if (size[0] != '-' || size[1] < '0' || size[1] > '9')
			continue;
		memmove(argv + i, argv + i + 1, (size_t)(argc - 1 - i) * sizeof(*argv));
		argv[argc - 1] = size;
		return true;
	}
	return false;
}

static bool parse(struct disk_args *a, const struct command *c, int argc, char **argv, struct error *err)
{
	bool last = c->fn == disk_resize && take_minus_size(argc, argv);
	int opt;

	opterr = 0;
	optind = 1;
	argc -= last;
	while ((opt = getopt_long(argc, argv, ":f:O:o:B:cq", long_options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return bad_option(c, opt, argv, err);
		if (!set_option(a, c, opt, err))
			return false;
	}
	a->names = argv + optind;
	a->n = argc - optind + last;
	if (a->help || (a->n >= c->min && a->n <= c->max))
		return true;
	error_set(err, "disk %s: %sneeds %s", c->name, a->n < c->min ? "" : "too many arguments: ", c->needs);
	return error_hint(err, "see doppel disk --help");
}

int cli_disk(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;
	struct disk_args a = {0};
	struct error err = {0};

	if (!name) {
		error_set(&err, "disk: no command");
		error_hint(&err, "see doppel disk --help");
		return cli_fail(&err);
	}
	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		return fputs(usage, stdout) < 0 ? CLI_ERROR : CLI_OK;
	for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
		if (strcmp(name, commands[i].name))
			continue;
		if (!parse(&a, &commands[i], argc - 1, argv + 1, &err))
			return cli_fail(&err);
		if (a.help)
			return fputs(usage, stdout) < 0 ? CLI_ERROR : CLI_OK;
		return commands[i].fn(&a);
	}
	error_set(&err, "disk: unknown command '%.64s'", name);
	error_hint(&err, "see doppel disk --help");
	return cli_fail(&err);
}
