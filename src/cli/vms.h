/*
 * What the commands about running VMs share: their option loop, and finding the VM.
 */
#ifndef CLI_VMS_H
#define CLI_VMS_H

#include <getopt.h>
#include <jansson.h>

#include "control/client.h"

/* Options that more than one of them has; a command names in `accept` (as a getopt string would) which it takes. */
struct vm_options {
	const char *command, *usage;
	const char *accept; /* of "f:" --format, "q", "w:" --watch, "t:" --time */
	bool wants_name;
	bool json, quiet, help;
	double seconds;     /* of -w or -t; negative: not given */
	const char *name;
};

bool vm_options(struct vm_options *o, int argc, char **argv, struct error *err);
/* Connect to o->name. The registry may be closed after. */
struct control_client *vm_connect(const char *name, struct error *err);
json_t *vm_ask(struct control_client *c, const char *command, struct error *err);

#endif
