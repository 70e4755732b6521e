#include "cli/doctor.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cpu/cpuid.h"
#include "engine/kvm/kvm.h"
#include "machine/pick.h"

#define PROBE_MS 50

struct report {
	struct host host;
	uint32_t tsc_khz;
	struct kvm_probe kvm;
	struct answer soft[DOCTOR_CHECKS];
	bool soft_usable;
	struct engine_choice choice;
	struct error choice_error;
	bool chosen;
};

static void examine(struct report *r)
{
	memset(r, 0, sizeof(*r));
	r->host = doctor_host();
	r->tsc_khz = tsc_khz_measure();
	kvm_probe(&r->kvm, NULL, PROBE_MS, true);
	r->soft_usable = true;
	for (size_t i = 0; i < DOCTOR_CHECKS; i++) {
		r->soft[i] = doctor_checks[i].look();
		if (doctor_checks[i].needed && !r->soft[i].ok)
			r->soft_usable = false;
	}
	r->chosen = engine_pick(ENGINE_AUTO, &r->choice, &r->choice_error);
}

/* ---- output ---- */

static void print_speed(const char *ring, uint64_t ips)
{
	if (ips)
		printf("  %-22s %.*f million instructions/s\n", ring, ips < 100000000 ? 1 : 0, (double)ips / 1e6);
	else
		printf("  %-22s not measured\n", ring);
}

static void print_table(const struct report *r)
{
	const struct host *h = &r->host;

	printf("host\n  %-22s %s (%s), %u threads%s\n", "CPU", h->cpu, h->vendor, h->threads,
	       h->hypervisor ? ", itself in a virtual machine" : "");
	printf("  %-22s %s\n", "kernel", h->kernel);
	printf("  %-22s %.1f GiB, %.1f GiB available\n", "memory", (double)h->memory / (double)GIB,
	       (double)h->available / (double)GIB);
	if (r->tsc_khz)
		printf("  %-22s %.3f MHz\n", "time stamp counter", r->tsc_khz / 1e3);
	else
		printf("  %-22s does not tick evenly\n", "time stamp counter");

	printf("\nkvm engine\n  %-22s %s\n", "/dev/kvm",
	       r->kvm.opens	? "present, opens"
	       : r->kvm.present ? "present, cannot be opened"
				: "not there");
	printf("  %-22s %s\n", "vmx or svm flag", r->kvm.hardware_flag ? "yes" : "no");
	print_speed("guest ring 0", r->kvm.ring0_ips);
	print_speed("guest ring 3", r->kvm.ring3_ips);
	printf("  %-22s %s\n", "usable", r->kvm.usable ? "yes" : "no");

	printf("\nsoft engine\n");
	for (size_t i = 0; i < DOCTOR_CHECKS; i++) {
		const struct check *c = &doctor_checks[i];
		const char *note = r->soft[i].ok ? NULL : c->needed ? "MISSING" : "would help";

		printf("  %-22s %s", c->name, r->soft[i].value);
		if (note)
			printf(" (%s: %s)", note, c->why);
		putchar('\n');
	}
	printf("  %-22s %s\n", "usable", r->soft_usable ? "yes" : "no");

	if (r->chosen)
		printf("\n--engine auto takes %s: %s\n", r->choice.ops->name, r->choice.why);
	else
		printf("\n--engine auto takes none: %s\n", r->choice_error.msg);
}

static json_t *kvm_json(const struct kvm_probe *p)
{
	return json_pack("{s:b, s:b, s:i, s:s?, s:b, s:I, s:I, s:b, s:s}", "present", p->present, "opens", p->opens,
			 "api_version", p->api_version, "missing_capability", p->missing, "hardware_flag",
			 p->hardware_flag, "ring0_instructions_per_second", (json_int_t)p->ring0_ips,
			 "ring3_instructions_per_second", (json_int_t)p->ring3_ips, "usable", p->usable, "verdict",
			 p->msg);
}

static json_t *soft_json(const struct report *r)
{
	json_t *list = json_array();

	for (size_t i = 0; i < DOCTOR_CHECKS; i++)
		json_array_append_new(list, json_pack("{s:s, s:b, s:b, s:s, s:s}", "name", doctor_checks[i].name, "ok",
						      r->soft[i].ok, "needed", doctor_checks[i].needed, "value",
						      r->soft[i].value, "why", doctor_checks[i].why));
	return json_pack("{s:b, s:o}", "usable", r->soft_usable, "checks", list);
}

static void print_json(const struct report *r)
{
	const struct host *h = &r->host;
	json_t *host = json_pack("{s:s, s:s, s:i, s:b, s:s, s:I, s:I, s:I}", "cpu", h->cpu, "vendor", h->vendor,
				 "threads", (int)h->threads, "hypervisor", h->hypervisor, "kernel", h->kernel,
				 "memory_bytes", (json_int_t)h->memory, "available_bytes", (json_int_t)h->available,
				 "tsc_khz", (json_int_t)r->tsc_khz);
	json_t *choice = json_pack("{s:s?, s:s}", "engine", r->chosen ? r->choice.ops->name : NULL, "why",
				   r->chosen ? r->choice.why : r->choice_error.msg);
	json_t *root = json_pack("{s:s, s:o, s:o, s:o, s:o}", "version", DOPPEL_VERSION, "host", host, "kvm",
				 kvm_json(&r->kvm), "soft", soft_json(r), "auto", choice);

	json_dumpf(root, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(root);
}

/* ---- options ---- */

struct doctor_options {
	bool json, isa, help;
};

static const char usage[] =
	"usage: doppel doctor [--isa] [--format table|json]\n"
	"\n"
	"Shows what this host can do for each engine, and which one --engine auto takes.\n"
	"\n"
	"  --isa                    run every sensitive instruction in user mode on this CPU and show which\n"
	"                           are privileged, sensitive, critical and innocuous\n"
	"  --format table|json      how to print it (default table)\n"
	"  --help                   show this text\n";

static bool bad_option(struct error *err, const char *fmt, const char *what)
{
	error_set(err, "doctor: %s '%.64s'", fmt, what);
	return error_hint(err, "see doppel doctor --help");
}

static bool parse(int argc, char **argv, struct doctor_options *o, struct error *err)
{
	static const struct option options[] = {
		{"format", required_argument, NULL, 'f'},
		{"isa", no_argument, NULL, 'i'},
		{"help", no_argument, NULL, 'h'},
		{0},
	};
	int c;

	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, "+:", options, NULL)) != -1) {
		switch (c) {
		case 'f':
			o->json = !strcmp(optarg, "json");
			if (!o->json && strcmp(optarg, "table"))
				return bad_option(err, "unknown format", optarg);
			break;
		case 'i':
			o->isa = true;
			break;
		case 'h':
			o->help = true;
			break;
		case ':':
			return bad_option(err, "a value is missing for", argv[optind - 1]);
		default:
			return bad_option(err, "unknown option", argv[optind - 1]);
		}
	}
	return optind == argc || bad_option(err, "unexpected argument", argv[optind]);
}

int cli_doctor(int argc, char **argv)
{
	struct doctor_options o = {0};
	struct report r;
	struct error err;

	if (!parse(argc, argv, &o, &err))
		return cli_fail(&err);
	if (o.help) {
		fputs(usage, stdout);
		return CLI_OK;
	}
	if (o.isa)
		return doctor_isa(o.json);
	examine(&r);
	if (o.json)
		print_json(&r);
	else
		print_table(&r);
	return CLI_OK;
}
