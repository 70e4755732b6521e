#include "cli/opt_disk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "dev/virtio/blk.h"
#include "machine/disk.h"

/* Cut off the next part of a list, undoubling commas in place; NULL: none is left. */
static char *next_part(char **list)
{
	char *part = *list, *to = part, *from = part;

	if (!part)
		return NULL;
	for (; *from && (*from != ',' || from[1] == ','); from++) {
		from += *from == ',';
		*to++ = *from;
	}
	*list = *from ? from + 1 : NULL;
	*to = 0;
	return part;
}

static bool choice(const char *value, const char *key, const char *const *names, unsigned n, unsigned *out, struct error *err)
{
	for (unsigned i = 0; i < n; i++) {
		if (!strcmp(value, names[i])) {
			*out = i;
			return true;
		}
	}
	return error_set(err, "--disk: %s: unknown value '%.64s'", key, value);
}

static bool set_cache(struct machine_disk *d, char *value, struct error *err)
{
	static const char *const names[] = {"writeback", "none", "unsafe"}; /* as the enum has them */
	unsigned n = 0;
	bool ok = choice(value, "cache", names, ARRAY_LEN(names), &n, err);

	d->image.cache = n;
	return ok || error_hint(err, "it is one of: writeback, none, unsafe");
}

static bool set_on_error(struct machine_disk *d, char *value, struct error *err)
{
	static const char *const names[] = {"auto", "report", "pause"};
	unsigned n = 0;
	bool ok = choice(value, "on-error", names, ARRAY_LEN(names), &n, err);

	d->on_error = n;
	return ok || error_hint(err, "it is one of: auto, report, pause");
}

static bool set_serial(struct machine_disk *d, char *value, struct error *err)
{
	if (strlen(value) > VIRTIO_BLK_SERIAL_LEN) {
		error_set(err, "--disk: serial '%.64s' is longer than %d characters", value, VIRTIO_BLK_SERIAL_LEN);
		return error_hint(err, "choose a shorter one");
	}
	d->serial = value;
	return true;
}

static bool set_limit(const char *key, const char *value, uint64_t *out, struct error *err)
{
	if (cli_parse_size(value, out, err) && *out)
		return true;
	error_set(err, "--disk: %s: '%.64s' is not a number from 1", key, value);
	return error_hint(err, "write it like 500 or 100M");
}

static bool set_flag(const char *key, const char *value, bool *out, struct error *err)
{
	*out = true;
	if (!value)
		return true;
	error_set(err, "--disk: '%s' takes no value", key);
	return error_hint(err, "leave the rest away");
}

static bool set(struct machine_disk *d, const char *key, char *value, struct error *err)
{
	if (!strcmp(key, "ro"))
		return set_flag(key, value, &d->image.readonly, err);
	if (!strcmp(key, "snapshot"))
		return set_flag(key, value, &d->image.snapshot, err);
	if (!value || !*value) {
		error_set(err, "--disk: '%.64s' is unknown or needs a value", key);
		return error_hint(err, "see doppel run --help; a comma in a file name is written twice");
	}
	if (!strcmp(key, "format")) {
		d->image.format = value;
		return block_format_find(value, err);
	}
	if (!strcmp(key, "backing")) {
		d->image.backing = value;
		return true;
	}
	if (!strcmp(key, "cache"))
		return set_cache(d, value, err);
	if (!strcmp(key, "on-error"))
		return set_on_error(d, value, err);
	if (!strcmp(key, "serial"))
		return set_serial(d, value, err);
	if (!strcmp(key, "iops"))
		return set_limit(key, value, &d->iops, err);
	if (!strcmp(key, "bps"))
		return set_limit(key, value, &d->bps, err);
	error_set(err, "--disk: unknown key '%.64s'", key);
	return error_hint(err, "see doppel run --help; a comma in a file name is written twice");
}

static bool parse(struct machine_disk *d, char *list, struct error *err)
{
	char *part;

	d->image.path = next_part(&list); /* also what free needs */
	if (!d->image.path[0]) {
		error_set(err, "--disk: no path");
		return error_hint(err, "as in --disk debian.qcow2,ro");
	}
	while ((part = next_part(&list))) {
		char *eq = strchr(part, '=');

		if (eq)
			*eq++ = 0;
		if (!set(d, part, eq, err))
			return false;
	}
	return true;
}

bool opt_disk_add(struct machine_config *cfg, const char *arg, struct error *err)
{
	struct machine_disk *disks = realloc((void *)cfg->disks, (cfg->ndisks + 1) * sizeof(*disks));
	char *list = strdup(arg);

	if (disks)
		cfg->disks = disks;
	if (!disks || !list) {
		free(list);
		return error_set(err, "out of memory");
	}
	disks[cfg->ndisks] = (struct machine_disk){0};
	return parse(&disks[cfg->ndisks++], list, err);
}

void opt_disk_free(struct machine_config *cfg)
{
	for (unsigned i = 0; i < cfg->ndisks; i++)
		free((char *)cfg->disks[i].image.path);
	free((void *)cfg->disks);
	cfg->disks = NULL;
	cfg->ndisks = 0;
}
