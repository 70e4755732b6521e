#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/timer.h"
#include "cli/cli.h"
#include "cli/vms.h"

/* More columns than this and only the totals are shown. */
#define MAX_COLUMNS 8

static const char usage[] =
	"usage: doppel stat [--watch SECONDS] [--format table|json] NAME\n"
	"\n"
	"Shows what a running virtual machine has counted so far.\n"
	"\n"
	"  -w, --watch SECONDS      again and again; from the second time on with the change a second\n"
	"  --format table|json      how to print it (default table; json: one line each time)\n"
	"  --help                   show this text\n";

static void print_number(uint64_t v, const char *unit)
{
	if (!strcmp(unit, "ns"))
		printf(" %14.3f", (double)v / 1e9);
	else
		printf(" %14" PRIu64, v);
}

static const char *shown_unit(const char *unit)
{
	return !strcmp(unit, "ns") ? "s" : !strcmp(unit, "bytes") ? "B" : "";
}

/* One counter: its value, its change a second (counters only), its value on each vCPU. */
static void print_row(const char *name, const json_t *about, uint64_t v, const json_t *before, double seconds, const json_t *vcpus)
{
	const json_t *words = json_object_get(about, name);
	const char *unit = json_string_value(json_object_get(words, "unit")) ?: "";
	const json_t *vcpu;
	size_t i;

	printf("%-26s", name);
	print_number(v, unit);
	printf(" %-1s", shown_unit(unit));
	if (before && json_is_true(json_object_get(words, "gauge"))) {
		printf(" %14s", "");
	} else if (before) {
		double was = (double)json_integer_value(json_object_get(before, name));

		printf(" %14.2f", ((double)v - was) / (!strcmp(unit, "ns") ? 1e9 : 1) / seconds);
	}
	json_array_foreach(vcpus, i, vcpu) print_number((uint64_t)json_integer_value(json_object_get(vcpu, name)), unit);
	printf("  %s\n", json_string_value(json_object_get(words, "help")) ?: "");
}

static void print_part(const char *title, const json_t *now, const json_t *before, const char *part, double seconds, const json_t *vcpus)
{
	const json_t *values = json_object_get(now, part), *value;
	const char *name;
	size_t i;

	printf("%-26s %14s  %s", title, "value", before ? "     a second " : "");
	for (i = 0; i < json_array_size(vcpus); i++)
		printf("         vCPU%2zu", i);
	putchar('\n');
	json_object_foreach((json_t *)values, name, value)
		print_row(name, json_object_get(now, "about"), (uint64_t)json_integer_value(value), json_object_get(before, part), seconds, vcpus);
}

static void print_table(const json_t *now, const json_t *before, double seconds)
{
	const json_t *vcpus = json_object_get(now, "vcpus");
	size_t n = json_array_size(vcpus);

	print_part("MACHINE", now, before, "machine", seconds, NULL);
	putchar('\n');
	print_part(n == 1 ? "VCPU" : "VCPUS", now, before, "total", seconds, n > 1 && n <= MAX_COLUMNS ? vcpus : NULL);
}

static void print(const json_t *now, const json_t *before, double seconds, bool as_json)
{
	if (as_json) {
		json_dumpf(now, stdout, JSON_COMPACT);
		putchar('\n');
		return;
	}
	if (before && isatty(STDOUT_FILENO))
		fputs("\033[H\033[J", stdout);
	else if (before)
		putchar('\n');
	print_table(now, before, seconds);
}

/* Once, or for ever: then the end of the VM is the end of the command. */
static int show(const struct vm_options *o, struct control_client *c, struct error *err)
{
	struct timespec pause = {.tv_sec = (time_t)o->seconds, .tv_nsec = (long)((o->seconds - (double)(time_t)o->seconds) * 1e9)};
	json_t *before = NULL, *now;
	int64_t at = 0, was;
	bool shown = false;

	while ((now = vm_ask(c, "stat", err))) {
		was = at;
		at = clock_now();
		json_object_del(now, "ok");
		print(now, before, (double)(at - was) / 1e9, o->json);
		json_decref(before);
		before = now;
		shown = true;
		if (o->seconds < 0 || fflush(stdout) || ferror(stdout))
			break;
		nanosleep(&pause, NULL);
	}
	json_decref(before);
	return shown ? CLI_OK : cli_fail(err);
}

int cli_stat(int argc, char **argv)
{
	struct vm_options o = {.command = "stat", .accept = "f:w:", .wants_name = true};
	struct control_client *c;
	struct error err = {0};
	int status;

	if (!vm_options(&o, argc, argv, &err))
		return cli_fail(&err);
	if (o.help) {
		fputs(usage, stdout);
		return CLI_OK;
	}
	c = vm_connect(o.name, &err);
	if (!c)
		return cli_fail(&err);
	status = show(&o, c, &err);
	control_disconnect(c);
	return status;
}
