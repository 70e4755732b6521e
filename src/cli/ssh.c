#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/config.h"
#include "cli/vms.h"

#define SSH_PORT 22
#define ARGS_MAX 24 /* our own */

static const char usage[] =
	"usage: doppel ssh [-l USER] [-i KEY] NAME [COMMAND...]\n"
	"\n"
	"Runs ssh to a virtual machine by the host port that leads to its port 22\n"
	"(doppel run --net user,hostfwd=tcp:127.0.0.1:2222:22).\n"
	"\n"
	"  -l USER                  log in as USER (default root)\n"
	"  -i KEY                   private key (default: DISK.key beside the machine's first disk, where there is one)\n"
	"  --help                   show this text\n";

struct ssh_options {
	const char *user, *key, *name;
	char **command;
	bool help;
};

static bool parse(int argc, char **argv, struct ssh_options *o, struct error *err)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'}, {0}};
	int c;

	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, "+:l:i:", options, NULL)) != -1) {
		switch (c) {
		case 'l': o->user = optarg; break;
		case 'i': o->key = optarg; break;
		case 'h': o->help = true; return true;
		default:
			error_set(err, "ssh: %s '%.64s'", c == ':' ? "a value is missing for" : "unknown option", argv[optind - 1]);
			return error_hint(err, "see doppel ssh --help");
		}
	}
	if (optind == argc) {
		error_set(err, "ssh: no name of a virtual machine");
		return error_hint(err, "see doppel ps for those that run");
	}
	o->name = argv[optind];
	o->command = argv + optind + 1;
	return true;
}

static const json_t *find_forward(const json_t *status)
{
	const json_t *list = json_object_get(status, "forwards"), *f;
	size_t i;

	json_array_foreach(list, i, f)
		if (json_integer_value(json_object_get(f, "guest_port")) == SSH_PORT && !strcmp(json_string_value(json_object_get(f, "protocol")), "tcp"))
			return f;
	return NULL;
}

/* Host keys belong to the machine: to its directory where it has one, else to that of this run. */
static bool known_hosts(const char *name, char out[PATH_MAX], struct error *err)
{
	char dir[PATH_MAX];
	struct registry *r;
	int n;

	if (config_machine_dir(name, dir, err) && access(dir, W_OK) == 0) {
		n = snprintf(out, PATH_MAX, "UserKnownHostsFile=\"%s/known_hosts\"", dir);
	} else {
		r = registry_open(false, err);
		if (!r)
			return false;
		n = snprintf(out, PATH_MAX, "UserKnownHostsFile=\"%s/%s/known_hosts\"", registry_path(r), name);
		registry_close(r);
	}
	return n < PATH_MAX || error_set(err, "the path of the machine's directory is too long");
}

/* What tools/make-debian-image leaves beside the image. */
static const char *default_key(const json_t *status, char out[PATH_MAX])
{
	const char *disk = json_string_value(json_array_get(json_object_get(status, "disks"), 0));

	return disk && snprintf(out, PATH_MAX, "%s.key", disk) < PATH_MAX && access(out, R_OK) == 0 ? out : NULL;
}

/* Becomes ssh; returns only when that fails. */
static bool become_ssh(const struct ssh_options *o, const json_t *status, int argc, struct error *err)
{
	const json_t *f = find_forward(status);
	const char *host = json_string_value(json_object_get(f, "address")), *key;
	char hosts[PATH_MAX], key_path[PATH_MAX], port[16];
	const char **args;
	int n = 0;

	if (!f) {
		error_set(err, "%s: no port of the host leads to its port 22", o->name);
		return error_hint(err, "start it with --net user,hostfwd=tcp:127.0.0.1:2222:22");
	}
	if (!known_hosts(o->name, hosts, err))
		return false;
	args = calloc((size_t)argc + ARGS_MAX, sizeof(*args));
	if (!args)
		return error_set(err, "out of memory");
	key = o->key ? o->key : default_key(status, key_path);
	snprintf(port, sizeof(port), "%d", (int)json_integer_value(json_object_get(f, "host_port")));
	args[n++] = "ssh";
	args[n++] = "-p", args[n++] = port;
	args[n++] = "-l", args[n++] = o->user;
	args[n++] = "-o", args[n++] = hosts;
	args[n++] = "-o", args[n++] = "StrictHostKeyChecking=accept-new";
	if (key)
		args[n++] = "-i", args[n++] = key, args[n++] = "-o", args[n++] = "IdentitiesOnly=yes";
	args[n++] = !strcmp(host, "0.0.0.0") ? "127.0.0.1" : host;
	for (char **c = o->command; *c; c++)
		args[n++] = *c;
	execvp("ssh", (char **)(uintptr_t)args);
	error_set(err, "cannot run ssh: %s", strerror(errno));
	free(args);
	return error_hint(err, "install openssh-client");
}

int cli_ssh(int argc, char **argv)
{
	struct ssh_options o = {.user = "root"};
	struct control_client *c;
	struct error err = {0};
	json_t *status;

	if (!parse(argc, argv, &o, &err))
		return cli_fail(&err);
	if (o.help) {
		fputs(usage, stdout);
		return CLI_OK;
	}
	c = vm_connect(o.name, &err);
	status = c ? vm_ask(c, "status", &err) : NULL;
	control_disconnect(c);
	if (status)
		become_ssh(&o, status, argc, &err);
	json_decref(status);
	return cli_fail(&err);
}
