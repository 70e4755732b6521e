#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/vms.h"

static const char usage[] =
	"usage: doppel resize NAME DISK SIZE\n\n"
	"Grows a disk of a running virtual machine, which sees it at once.\n\n"
	"  DISK                     which --disk of its doppel run: 0 is the first\n"
	"  SIZE                     the new size, like 20G; disks do not shrink while they are in use\n"
	"  --help                   show this text";

static bool resize(char **argv, struct error *err)
{
	struct control_client *c;
	json_t *reply = NULL;
	uint64_t disk, size;

	if (!cli_parse_size(argv[2], &disk, err) || !cli_parse_size(argv[3], &size, err))
		return false;
	if (disk > INT32_MAX || size > INT64_MAX)
		return error_set(err, "resize: '%.64s' or '%.64s' is too large", argv[2], argv[3]);
	c = vm_connect(argv[1], err);
	if (c)
		reply = control_ask(c, json_pack("{s:s, s:I, s:I}", "command", "resize-disk", "disk", (json_int_t)disk, "size", (json_int_t)size),
				    CONTROL_TIMEOUT_MS, err);
	json_decref(reply);
	control_disconnect(c);
	return reply;
}

int cli_resize(int argc, char **argv)
{
	struct error err = {0};

	if (argc == 2 && !strcmp(argv[1], "--help"))
		return puts(usage) < 0 ? CLI_ERROR : CLI_OK;
	if (argc != 4) {
		error_set(&err, "resize: it needs a name, a disk and a size");
		error_hint(&err, "as in doppel resize web 0 20G");
		return cli_fail(&err);
	}
	return resize(argv, &err) ? CLI_OK : cli_fail(&err);
}
