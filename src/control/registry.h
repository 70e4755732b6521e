/*
 * The virtual machines that run for this user: one directory each, below one that belongs to the user alone (mode 0700).
 *
 *   BASE/NAME/pid           process id of its VMM, which holds a lock on this file as long as it lives
 *   BASE/NAME/config.json   what it was started with
 *   BASE/NAME/control.sock  where it answers (control/server.h)
 *
 * BASE is $DOPPEL_RUNTIME_DIR; else /run/doppel for root; else $XDG_RUNTIME_DIR/doppel; else /tmp/doppel-UID. A directory whose lock nobody
 * holds was left by a VMM that died: whoever meets it may take the name or remove it.
 */
#ifndef CONTROL_REGISTRY_H
#define CONTROL_REGISTRY_H

#include <sys/types.h>

#include "base/error.h"

#define REGISTRY_NAME_MAX 63
#define REGISTRY_PATH_MAX 4096

struct registry;
struct registry_entry;

/* Opens BASE; makes it when `create` is set. NULL with *err; err->msg is "" when it does not exist and was not to be made. */
struct registry *registry_open(bool create, struct error *err);
void registry_close(struct registry *r);
const char *registry_path(const struct registry *r);

/* 1 to 63 of A-Z a-z 0-9 _ . -, not beginning with one of the last three. */
bool registry_name_ok(const char *name, struct error *err);

/* Take `name`, or one made up when it is NULL. Fails when a VM that lives has it. The entry outlives r. */
struct registry_entry *registry_take(struct registry *r, const char *name, struct error *err);
/* Removes the directory. */
void registry_release(struct registry_entry *e);
const char *registry_entry_name(const struct registry_entry *e);
const char *registry_entry_path(const struct registry_entry *e); /* of the directory */
int registry_entry_dir(const struct registry_entry *e);
/* Writes a file of the directory whole, or not at all. */
bool registry_write(struct registry_entry *e, const char *file, const char *text, struct error *err);

/* Calls fn for each VM that lives, in the order of names, and removes what dead ones left. */
bool registry_list(struct registry *r, void (*fn)(void *ctx, const char *name, pid_t pid), void *ctx, struct error *err);
/* True: it lives, *pid is its VMM. */
bool registry_find(struct registry *r, const char *name, pid_t *pid, struct error *err);

#endif
