/*
 * Machines as files: a JSON object whose keys are the long names of `doppel run`'s options, so that there is one schema
 * for both.
 *
 *   {"memory": "2G", "cpus": 2, "disk": ["disk1.qcow2", "/srv/data.raw,ro"], "net": ["user"], "no-reboot": true}
 *
 * A value is a string, a number, true (an option without a value; false: as if the key were not there), or a list of
 * strings for options that may be repeated. Paths that are not absolute count from the directory of the file. Unknown
 * keys are found by who parses the options.
 *
 * A machine with a name is a directory: config.json and its disks.
 */
#ifndef CLI_CONFIG_H
#define CLI_CONFIG_H

#include <limits.h>

#include "base/bits.h"
#include "base/error.h"

#define CONFIG_ITEMS_MAX 256u
#define CONFIG_NAME_MAX 64u /* of a machine */

struct config_item {
	char *option; /* "memory" */
	char *value;  /* NULL: a switch */
};

struct config {
	struct config_item *items; /* in the order of the file; repeated options keep their order */
	unsigned n;
};

/* Empty it first ({0}). On failure it is empty. Relative paths in values come out absolute, or relative to the current
 * directory. */
bool config_read(struct config *c, const char *path, struct error *err);
/* Writes a temporary file, syncs and renames it. Values are written as they are. */
bool config_write(const struct config *c, const char *path, struct error *err);
void config_fini(struct config *c);

bool config_add(struct config *c, const char *option, const char *value, struct error *err);
/* The value of the last item of that option; NULL: none (or a switch). */
const char *config_get(const struct config *c, const char *option);

/*
 * As a command line for getopt_long: argv[0], then "--memory=2G" for each item; NULL at the end. One heap block:
 * free(argv). NULL: out of memory.
 */
char **config_args(const struct config *c, const char *argv0, int *argc);

/* ${XDG_DATA_HOME:-~/.local/share}/doppel/machines; root: /var/lib/doppel/machines. */
bool config_machines_dir(char out[PATH_MAX], struct error *err);
/* The directory of a machine. Its name: letters, digits, '_', '.', '-', not '.' or '-' first, at most CONFIG_NAME_MAX.
 */
bool config_machine_dir(const char *name, char out[PATH_MAX], struct error *err);
bool config_name_ok(const char *name);

#endif
