/*
 * A run as others see it: its name, its directory (control/registry.h) and its control socket.
 */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include "base/error.h"
#include "machine/machine.h"

struct session;

/*
 * Take `name`, or make one up when it is NULL. argv: the command line, kept in config.json. Without a name a run goes on also where no directory can
 * be had: *out is NULL then, and err says why.
 */
bool session_begin(struct session **out, const char *name, int argc, char **argv, const struct machine_config *cfg, struct error *err);
/* Answer from now on. */
bool session_serve(struct session *s, struct machine *m, struct error *err);
/* Before the machine is freed; its loop is at rest. NULL is allowed. */
void session_end(struct session *s);
/* "DIRECTORY/file", to be freed. */
char *session_path(const struct session *s, const char *file);
const char *session_name(const struct session *s);

#endif
