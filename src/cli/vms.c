#include "cli/vms.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/timer.h"
#include "cli/cli.h"

#define PS_TIMEOUT_MS 1000
#define STOP_SECONDS 10.0

/* ---- options ---- */

static bool bad(const struct vm_options *o, const char *what, const char *arg, struct error *err)
{
	error_set(err, "%s: %s '%.64s'", o->command, what, arg);
	return error_hint(err, "see doppel %s --help", o->command);
}

static bool take_option(struct vm_options *o, int c, char **argv, struct error *err)
{
	char *end;

	if (c == 'h') {
		o->help = true;
		return true;
	}
	if (c == ':')
		return bad(o, "a value is missing for", argv[optind - 1], err);
	if (c == '?' || !strchr(o->accept, c))
		return bad(o, "unknown option", argv[optind - 1], err);
	switch (c) {
	case 'q':
		o->quiet = true;
		return true;
	case 'f':
		o->json = !strcmp(optarg, "json");
		return o->json || !strcmp(optarg, "table") || bad(o, "unknown format", optarg, err);
	default:
		o->seconds = strtod(optarg, &end);
		if (end != optarg && !*end && o->seconds >= (c == 'w' ? 0.1 : 0) && o->seconds <= 1e6)
			return true;
		return bad(o, "not a number of seconds", optarg, err);
	}
}

bool vm_options(struct vm_options *o, int argc, char **argv, struct error *err)
{
	static const struct option options[] = {
		{"format", required_argument, NULL, 'f'}, {"quiet", no_argument, NULL, 'q'}, {"watch", required_argument, NULL, 'w'},
		{"time", required_argument, NULL, 't'},   {"help", no_argument, NULL, 'h'},  {0},
	};
	int c;

	o->seconds = -1;
	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, ":f:qw:t:h", options, NULL)) != -1)
		if (!take_option(o, c, argv, err))
			return false;
	if (o->help)
		return true;
	if (o->wants_name && optind == argc) {
		error_set(err, "%s: no name of a virtual machine", o->command);
		return error_hint(err, "see doppel ps for those that run");
	}
	if (o->wants_name)
		o->name = argv[optind++];
	return optind == argc || bad(o, "unexpected argument", argv[optind], err);
}

struct control_client *vm_connect(const char *name, struct error *err)
{
	struct registry *r = registry_open(false, err);
	struct control_client *c = r ? control_connect(r, name, err) : NULL;

	if (!r && !err->msg[0] && registry_name_ok(name, err)) {
		error_set(err, "no virtual machine named %s is running", name);
		error_hint(err, "see doppel ps");
	}
	registry_close(r);
	return c;
}

json_t *vm_ask(struct control_client *c, const char *command, struct error *err)
{
	return control_ask(c, json_pack("{s:s}", "command", command), CONTROL_TIMEOUT_MS, err);
}

/* ---- ps ---- */

struct ps {
	struct registry *r;
	json_t *list;
};

/* A VM that does not answer is shown by what is known without it. */
static void add_vm(void *ctx, const char *name, pid_t pid)
{
	struct ps *p = ctx;
	struct error ignored;
	struct control_client *c = control_connect(p->r, name, &ignored);
	json_t *vm = c ? control_ask(c, json_pack("{s:s}", "command", "status"), PS_TIMEOUT_MS, &ignored) : NULL;

	control_disconnect(c);
	if (vm) {
		json_object_del(vm, "ok");
		json_object_set_new(vm, "state", json_string("running"));
	} else {
		vm = json_pack("{s:s, s:i, s:s}", "name", name, "pid", (int)pid, "state", "no answer");
	}
	json_array_append_new(p->list, vm);
}

static const char *size_text(json_int_t bytes, char out[32])
{
	if (bytes <= 0)
		return "-";
	if (bytes % (json_int_t)GIB == 0)
		snprintf(out, 32, "%" PRIu64 "G", (uint64_t)bytes / GIB);
	else if (bytes % (json_int_t)MIB == 0)
		snprintf(out, 32, "%" PRIu64 "M", (uint64_t)bytes / MIB);
	else
		snprintf(out, 32, "%" PRIu64 "K", (uint64_t)bytes / KIB);
	return out;
}

static const char *time_text(double s, char out[32])
{
	unsigned long t = (unsigned long)s;

	if (s <= 0)
		return "-";
	if (t < 60)
		snprintf(out, 32, "%lus", t);
	else if (t < 3600)
		snprintf(out, 32, "%lum%02lus", t / 60, t % 60);
	else
		snprintf(out, 32, "%luh%02lum", t / 3600, t / 60 % 60);
	return out;
}

static void print_vms(const json_t *list)
{
	size_t i, width = 4;
	json_t *vm;

	json_array_foreach(list, i, vm) width = max_u64(width, strlen(json_string_value(json_object_get(vm, "name"))));
	printf("%-*s  %7s  %-6s  %4s  %6s  %8s  %s\n", (int)width, "NAME", "PID", "ENGINE", "CPUS", "MEMORY", "UPTIME", "STATE");
	json_array_foreach(list, i, vm) {
		char size[32], time[32];

		printf("%-*s  %7d  %-6s  %4d  %6s  %8s  %s\n", (int)width, json_string_value(json_object_get(vm, "name")),
		       (int)json_integer_value(json_object_get(vm, "pid")), json_string_value(json_object_get(vm, "engine")) ?: "-",
		       (int)json_integer_value(json_object_get(vm, "cpus")),
		       size_text(json_integer_value(json_object_get(vm, "memory")), size),
		       time_text(json_number_value(json_object_get(vm, "uptime")), time),
		       json_string_value(json_object_get(vm, "state")));
	}
}

int cli_ps(int argc, char **argv)
{
	struct vm_options o = {.command = "ps", .accept = "f:q"};
	struct error err = {0};
	struct ps p;
	json_t *vm;
	size_t i;

	if (!vm_options(&o, argc, argv, &err))
		return cli_fail(&err);
	if (o.help) {
		puts("usage: doppel ps [-q] [--format table|json]\n\n"
		     "Lists the virtual machines that run for this user.\n\n"
		     "  -q, --quiet              only names\n"
		     "  --format table|json      how to print them (default table)\n"
		     "  --help                   show this text");
		return CLI_OK;
	}
	p.list = json_array();
	p.r = registry_open(false, &err);
	if (p.r ? !registry_list(p.r, add_vm, &p, &err) : err.msg[0]) {
		registry_close(p.r);
		json_decref(p.list);
		return cli_fail(&err);
	}
	registry_close(p.r);
	if (o.json) {
		json_dumpf(p.list, stdout, JSON_INDENT(2));
		putchar('\n');
	} else if (o.quiet) {
		json_array_foreach(p.list, i, vm) puts(json_string_value(json_object_get(vm, "name")));
	} else {
		print_vms(p.list);
	}
	json_decref(p.list);
	return CLI_OK;
}

/* ---- stop, kill ---- */

/* False: it still lives after the time. */
static bool wait_gone(const char *name, double seconds)
{
	int64_t until = clock_now() + (int64_t)(seconds * 1e9);
	struct timespec pause = {.tv_nsec = 20000000};

	for (;;) {
		struct error ignored;
		struct registry *r = registry_open(false, &ignored);
		pid_t pid;
		bool lives = r && registry_find(r, name, &pid, &ignored);

		registry_close(r);
		if (!lives || clock_now() >= until)
			return !lives;
		nanosleep(&pause, NULL);
	}
}

static bool tell(const char *name, const char *command, struct error *err)
{
	struct control_client *c = vm_connect(name, err);
	json_t *reply = c ? vm_ask(c, command, err) : NULL;

	json_decref(reply);
	control_disconnect(c);
	return reply;
}

int cli_stop(int argc, char **argv)
{
	struct vm_options o = {.command = "stop", .accept = "t:", .wants_name = true};
	struct error err = {0};

	if (!vm_options(&o, argc, argv, &err))
		return cli_fail(&err);
	if (o.help) {
		puts("usage: doppel stop [-t SECONDS] NAME\n\n"
		     "Presses the power button of a virtual machine and waits until it is off.\n\n"
		     "  -t, --time SECONDS       end it as doppel kill does when it is not off by then (default 10)\n"
		     "  --help                   show this text");
		return CLI_OK;
	}
	if (!tell(o.name, "stop", &err))
		return cli_fail(&err);
	if (wait_gone(o.name, o.seconds < 0 ? STOP_SECONDS : o.seconds))
		return CLI_OK;
	/* it may have gone just now: then there is nobody to tell */
	return tell(o.name, "kill", &err) || wait_gone(o.name, 0) ? CLI_OK : cli_fail(&err);
}

int cli_kill(int argc, char **argv)
{
	struct vm_options o = {.command = "kill", .accept = "", .wants_name = true};
	struct error err = {0};

	if (!vm_options(&o, argc, argv, &err))
		return cli_fail(&err);
	if (o.help) {
		puts("usage: doppel kill NAME\n\n"
		     "Ends a virtual machine at once, as if its plug were pulled. Its run ends with status 143.\n\n"
		     "  --help                   show this text");
		return CLI_OK;
	}
	if (!tell(o.name, "kill", &err))
		return cli_fail(&err);
	if (wait_gone(o.name, STOP_SECONDS))
		return CLI_OK;
	error_set(&err, "%s does not end", o.name);
	error_hint(&err, "doppel ps shows its process");
	return cli_fail(&err);
}
