#include "cli/cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

struct command {
	const char *name;
	int (*fn)(int argc, char **argv);
	const char *summary;
};

static const struct command commands[] = {
	{"run", cli_run, "start a virtual machine on this terminal"},
	{"disk", cli_disk, "make, look at, convert and check disk images"},
	{"ps", cli_ps, "list the virtual machines that run"},
	{"stat", cli_stat, "show the counters of a running virtual machine"},
	{"resize", cli_resize, "grow a disk of a virtual machine"},
	{"ssh", cli_ssh, "log in to a virtual machine, or run a command there"},
	{"stop", cli_stop, "press the power button of a virtual machine"},
	{"kill", cli_kill, "end a virtual machine at once"},
	{"import", cli_import, "make a machine of an OVA file"},
	{"export", cli_export, "write a machine into an OVA file"},
	{"doctor", cli_doctor, "show what this host can do and which engine fits"},
	{"version", cli_version, "show the version"},
	{"help", cli_help, "show this text"},
};

int cli_fail(const struct error *err)
{
	if (err->hint[0])
		fprintf(stderr, "doppel: %s (%s)\n", err->msg, err->hint);
	else
		fprintf(stderr, "doppel: %s\n", err->msg);
	return CLI_ERROR;
}

/* Output that could not be written must not look like success. */
static int finish_stdout(int status)
{
	struct error err;

	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	error_set(&err, "cannot write to standard output: %s", strerror(errno));
	error_hint(&err, "free some space or send the output elsewhere");
	return cli_fail(&err);
}

static int too_many(const char *command, const char *what)
{
	struct error err;

	error_set(&err, "%s: unexpected argument '%s'", command, what);
	error_hint(&err, "see doppel help");
	return cli_fail(&err);
}

int cli_version(int argc, char **argv)
{
	if (argc > 1)
		return too_many(argv[0], argv[1]);
	printf("doppel %s\n", DOPPEL_VERSION);
	return CLI_OK;
}

int cli_help(int argc, char **argv)
{
	if (argc > 1)
		return too_many(argv[0], argv[1]);
	puts("doppel: a virtual machine monitor that needs no hardware virtualization\n\nusage: doppel COMMAND [OPTION]...\n");
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		printf("  %-10s %s\n", commands[i].name, commands[i].summary);
	puts("\n`doppel COMMAND --help` shows the options of a command.");
	return CLI_OK;
}

int cli_main(int argc, char **argv)
{
	struct error err;
	const char *name = argc > 1 ? argv[1] : NULL;

	if (!name) {
		error_set(&err, "no command");
		error_hint(&err, "see doppel help");
		return cli_fail(&err);
	}
	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		name = "help";
	else if (!strcmp(name, "--version"))
		name = "version";
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (!strcmp(name, commands[i].name))
			return finish_stdout(commands[i].fn(argc - 1, argv + 1));
	error_set(&err, "unknown command '%.64s'", name);
	error_hint(&err, "see doppel help");
	return cli_fail(&err);
}

bool cli_parse_size(const char *s, uint64_t *out, struct error *err)
{
	unsigned shift = 0;
	uint64_t v;
	char *end;

	errno = 0;
	v = strtoull(s, &end, 0);
	switch (*end) {
	case 'k': case 'K': shift = 10; break;
	case 'm': case 'M': shift = 20; break;
	case 'g': case 'G': shift = 30; break;
	case 't': case 'T': shift = 40; break;
	}
	if (shift)
		end++;
	if (end == s || *end || errno || s[0] < '0' || s[0] > '9' || v > UINT64_MAX >> shift) {
		error_set(err, "'%.64s' is not a size", s);
		return error_hint(err, "write it like 512M or 2G");
	}
	*out = v << shift;
	return true;
}
