/*
 * GRUB's script language, as much as generated configurations use: words and quoting, variables, if, menuentry and submenu.
 * Functions are not called, loops not run. (GNU GRUB manual 2.06, section 16.1 and 16.3.)
 *
 * A script is hostile text: its size, the words, variables, nesting and steps are bounded.
 */
#ifndef BOOT_DISK_SCRIPT_H
#define BOOT_DISK_SCRIPT_H

#include "base/bits.h"

#define SCRIPT_WORD_MAX 4096
#define SCRIPT_ARGS_MAX 512
#define SCRIPT_VARS_MAX 256
#define SCRIPT_ENTRIES_MAX 256
#define SCRIPT_TEXTS_MAX 8	/* the configuration and what it sources */
#define SCRIPT_DEPTH_MAX 16
#define SCRIPT_STEPS_MAX 20000	/* commands */
#define SCRIPT_BYTES_MAX (8 * MIB) /* expanded */

struct script;

struct script_entry {
	char title[128], id[160];
	bool submenu;
	unsigned parent; /* index + 1 of a submenu; 0: the menu itself */
	unsigned text, start, end; /* its commands */
};

/* A command that script.c does not know itself. What it returns is its status: true is success. */
typedef bool script_command(void *ctx, struct script *s, unsigned argc, char **argv);

struct script *script_new(script_command *command, void *ctx); /* NULL: out of memory */
void script_free(struct script *s);
/* Take over a text (freed with the script) and run it. False: too many, too long, or nested too deep. */
bool script_run(struct script *s, char *text, size_t len);
/* Run what an entry holds. */
void script_run_entry(struct script *s, const struct script_entry *e);

/* Was anything left out for the bounds above, since an entry was run? */
bool script_lost(const struct script *s);

const char *script_get(const struct script *s, const char *name); /* "" when it is not set */
void script_set(struct script *s, const char *name, const char *value);
/* Expand variables of one line outside of a script. */
void script_expand(struct script *s, const char *in, char *out, size_t len);

unsigned script_entries(const struct script *s);
const struct script_entry *script_entry(const struct script *s, unsigned i);
/* "2", "title", "id" or several of them joined by '>'; submenus give their first. NULL: no entries at all. */
const struct script_entry *script_choose(const struct script *s, const char *which);

#endif
