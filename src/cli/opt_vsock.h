/*
 * The value of --vsock: "[CID][,uds=PATH]".
 */
#ifndef CLI_OPT_VSOCK_H
#define CLI_OPT_VSOCK_H

#include "machine/machine.h"

/* spec may be NULL. v->path is to be freed; NULL when none was given. */
bool opt_vsock_parse(const char *spec, struct machine_vsock *v, struct error *err);

#endif
