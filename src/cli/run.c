#include "cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/char/chardev.h"
#include "base/log.h"
#include "cli/config.h"
#include "cli/opt_disk.h"
#include "cli/opt_net.h"
#include "cli/opt_share.h"
#include "cli/opt_vsock.h"
#include "cli/session.h"
#include "control/registry.h"
#include "machine/disk.h"
#include "machine/machine.h"
#include "machine/micro.h"
#include "machine/pick.h"

#define DEFAULT_RAM (512 * MIB)
#define DEFAULT_DEBUG_EXIT_PORT 0xf4

struct run_options {
	struct machine_config cfg;
	enum engine_kind engine;
	const char *name;
	int argc;
	char **argv;
	bool quiet;
	bool help;
	/* --config FILE, or the file of a machine that was named */
	const char *config_path;
	char machine_path[PATH_MAX + 16];
	bool from_file; /* its options are being taken */
	struct config config;
	char **config_argv;
};

enum {
	OPT_KERNEL = 256, OPT_INITRD, OPT_APPEND, OPT_MODULE, OPT_CPUS, OPT_ENGINE, OPT_CPU, OPT_SERIAL, OPT_VIRTIO_CONSOLE,
	OPT_DISK, OPT_NET, OPT_SHARE, OPT_VSOCK, OPT_DEBUG_EXIT, OPT_NO_REBOOT, OPT_HELP, OPT_NAME, OPT_CONFIG,
};

static const struct option long_options[] = {
	{"kernel", required_argument, NULL, OPT_KERNEL},
	{"initrd", required_argument, NULL, OPT_INITRD},
	{"append", required_argument, NULL, OPT_APPEND},
	{"module", required_argument, NULL, OPT_MODULE},
	{"memory", required_argument, NULL, 'm'},
	{"cpus", required_argument, NULL, OPT_CPUS},
	{"engine", required_argument, NULL, OPT_ENGINE},
	{"cpu", required_argument, NULL, OPT_CPU},
	{"serial", required_argument, NULL, OPT_SERIAL},
	{"virtio-console", required_argument, NULL, OPT_VIRTIO_CONSOLE},
	{"net", required_argument, NULL, OPT_NET},
	{"share", required_argument, NULL, OPT_SHARE},
	{"vsock", optional_argument, NULL, OPT_VSOCK},
	{"disk", required_argument, NULL, OPT_DISK},
	{"debug-exit", optional_argument, NULL, OPT_DEBUG_EXIT},
	{"no-reboot", no_argument, NULL, OPT_NO_REBOOT},
	{"name", required_argument, NULL, OPT_NAME},
	{"config", required_argument, NULL, OPT_CONFIG},
	{"quiet", no_argument, NULL, 'q'},
	{"help", no_argument, NULL, OPT_HELP},
	{0},
};

static const char usage[] =
	"usage: doppel run DISK [OPTION]...\n"
	"       doppel run --kernel FILE [OPTION]...\n"
	"       doppel run MACHINE | --config FILE [OPTION]...\n"
	"\n"
	"  DISK                     as --disk has it, but the first one. Without --kernel, the first disk's own kernel is booted:\n"
	"                           what the boot configuration on it (GRUB, loader entries) has for default\n"
	"  MACHINE                  a machine that was imported, or made by hand (docs/config.md), by its name\n"
	"  --config FILE            options from a JSON file; those of the command line come after them, and count\n"
	"  --kernel FILE            bzImage, ELF with a PVH entry (vmlinux), or Multiboot 1 image\n"
	"  --initrd FILE            initial RAM disk\n"
	"  --append STRING          kernel command line; without --kernel, more of it\n"
	"  --module FILE[=STRING]   boot module (Multiboot, PVH) with its string; repeatable\n"
	"  -m, --memory SIZE        guest RAM, like 512M or 2G (default 512M)\n"
	"  --cpus N                 number of virtual CPUs (default 1)\n"
	"  --engine auto|soft|kvm   what runs the CPU (default auto: kvm where hardware backs it, else soft)\n"
	"  --cpu max|baseline       CPU features: all that the host has, or x86-64-v2 (default max)\n"
	"  --serial SPEC            COM1: stdio, file:PATH, unix:PATH or null (default stdio)\n"
	"  --virtio-console SPEC    adds a virtio console, SPEC as above\n"
	"  --net SPEC               adds a network card: user, tap:INTERFACE, link:PATH or null, with options behind commas,\n"
	"                           like user,hostfwd=tcp:127.0.0.1:2222:22 (man doppel-run); repeatable\n"
	OPT_DISK_USAGE
	"  --share DIR:TAG[,ro]     a directory that the guest may mount: mount -t 9p -o trans=virtio TAG /mnt; repeatable\n"
	"  --vsock[=CID][,uds=PATH] a vsock, reached on the host by the socket PATH (default CID 3; PATH in the machine's directory)\n"
	"  --debug-exit[=PORT]      a write of V to PORT (default 0xf4) ends the run with status (V << 1) | 1\n"
	"  --no-reboot              end with status 2 instead of restarting when the guest resets\n"
	"  --name NAME              what doppel ps, stat and stop know it by (default: one made up)\n"
	"  -q, --quiet              print nothing but errors\n"
	"  --help                   show this text\n"
	"\n"
	"^] leaves the console and ends the run.\n"
	"\n"
	"exit status: 0 guest power-off; 2 guest reset with --no-reboot; 4 triple fault; 6 ended by ^];\n"
	"125 error of doppel; 128+N ended by signal N; odd: from the guest, with --debug-exit.\n";

static bool parse_number(const char *option, const char *s, unsigned long min, unsigned long max, unsigned long *out,
			 struct error *err)
{
	char *end;

	errno = 0;
	*out = strtoul(s, &end, 0);
	if (end == s || *end || errno || s[0] == '-' || *out < min || *out > max) {
		error_set(err, "%s: '%.64s' is not a number from %lu to %lu", option, s, min, max);
		return error_hint(err, "see doppel run --help");
	}
	return true;
}

static bool parse_choice(const char *option, const char *s, const char *const *names, unsigned n, unsigned *out,
			 struct error *err)
{
	char all[64] = "";

	for (unsigned i = 0; i < n; i++) {
		if (!strcmp(s, names[i])) {
			*out = i;
			return true;
		}
		strcat(all, i ? ", " : "");
		strcat(all, names[i]);
	}
	error_set(err, "%s: unknown value '%.64s'", option, s);
	return error_hint(err, "it is one of: %s", all);
}

static bool add_module(struct run_options *o, const char *s, struct error *err)
{
	const char **m = realloc((void *)o->cfg.modules, (o->cfg.nmodules + 1) * sizeof(*m));

	if (!m)
		return error_set(err, "out of memory");
	m[o->cfg.nmodules++] = s;
	o->cfg.modules = m;
	return true;
}

static bool add_nic(struct run_options *o, const char *spec, struct error *err)
{
	struct machine_nic *nics = realloc((void *)o->cfg.nics, (o->cfg.nnics + 1) * sizeof(*nics));

	if (!nics)
		return error_set(err, "out of memory");
	o->cfg.nics = nics;
	if (o->cfg.nnics == MACHINE_MAX_NICS) {
		error_set(err, "run: more than %u network cards", MACHINE_MAX_NICS);
		return error_hint(err, "leave out some --net");
	}
	return opt_net_parse(spec, &nics[o->cfg.nnics++], err);
}

static bool add_share(struct run_options *o, const char *spec, struct error *err)
{
	struct machine_share *shares = realloc((void *)o->cfg.shares, (o->cfg.nshares + 1) * sizeof(*shares));

	if (!shares)
		return error_set(err, "out of memory");
	o->cfg.shares = shares;
	if (o->cfg.nshares == MACHINE_MAX_SHARES) {
		error_set(err, "run: more than %u shared directories", MACHINE_MAX_SHARES);
		return error_hint(err, "leave out some --share");
	}
	if (!opt_share_parse(spec, &shares[o->cfg.nshares], err))
		return false;
	o->cfg.nshares++;
	for (unsigned i = 0; i + 1 < o->cfg.nshares; i++) {
		if (!strcmp(shares[i].tag, shares[o->cfg.nshares - 1].tag)) {
			error_set(err, "--share: two directories with the tag '%s'", shares[i].tag);
			return error_hint(err, "the guest tells them apart by their tags");
		}
	}
	return true;
}

static bool parse_option(struct run_options *o, int opt, struct error *err)
{
	/* In the order of the enums. */
	static const char *const engines[] = {"auto", "soft", "kvm"};
	static const char *const cpus[] = {"max", "baseline"};
	unsigned long n;
	unsigned choice = 0;

	switch (opt) {
	case OPT_KERNEL: o->cfg.kernel = optarg; return true;
	case OPT_INITRD: o->cfg.initrd = optarg; return true;
	case OPT_APPEND: o->cfg.append = optarg; return true;
	case OPT_SERIAL: o->cfg.serial = optarg; return true;
	case OPT_VIRTIO_CONSOLE: o->cfg.virtio_console = optarg; return true;
	case OPT_NO_REBOOT: o->cfg.no_reboot = true; return true;
	case OPT_HELP: o->help = true; return true;
	case OPT_CONFIG: return !o->from_file || error_set(err, "a configuration cannot name another");
	case OPT_NAME: o->name = optarg; return registry_name_ok(optarg, err);
	case 'q': o->quiet = true; return true;
	case 'm': return cli_parse_size(optarg, &o->cfg.ram_bytes, err);
	case OPT_NET: return add_nic(o, optarg, err);
	case OPT_DISK: return opt_disk_add(&o->cfg, optarg, err);
	case OPT_VSOCK: return opt_vsock_parse(optarg, &o->cfg.vsock, err);
	case OPT_SHARE: return add_share(o, optarg, err);
	case OPT_MODULE: return add_module(o, optarg, err);
	case OPT_CPUS:
		if (!parse_number("--cpus", optarg, 1, MACHINE_MAX_CPUS, &n, err))
			return false;
		o->cfg.ncpus = n;
		return true;
	case OPT_ENGINE:
		if (!parse_choice("--engine", optarg, engines, ARRAY_LEN(engines), &choice, err))
			return false;
		o->engine = choice;
		return true;
	case OPT_CPU:
		if (!parse_choice("--cpu", optarg, cpus, ARRAY_LEN(cpus), &choice, err))
			return false;
		o->cfg.cpu = choice;
		return true;
	case OPT_DEBUG_EXIT:
		n = DEFAULT_DEBUG_EXIT_PORT;
		if (optarg && !parse_number("--debug-exit", optarg, 0, 0xfffc, &n, err))
			return false;
		o->cfg.debug_exit = true;
		o->cfg.debug_exit_port = n;
		return true;
	}
	return false;
}

static bool bad_option(int opt, char **argv, struct error *err)
{
	const char *what = argv[optind - 1];

	if (opt == ':')
		error_set(err, "run: option '%.64s' needs a value", what);
	else if (optopt && optopt < 256)
		error_set(err, "run: unknown option '-%c'", optopt);
	else if (optopt)
		error_set(err, "run: option '%.64s' takes no value", what);
	else
		error_set(err, "run: unknown or ambiguous option '%.64s'", what);
	return error_hint(err, "see doppel run --help");
}

static bool add_first_disk(struct machine_config *cfg, const char *arg, struct error *err)
{
	struct machine_disk *disks, first;

	if (!opt_disk_add(cfg, arg, err))
		return false;
	disks = (struct machine_disk *)cfg->disks;
	first = disks[cfg->ndisks - 1];
	memmove(disks + 1, disks, (cfg->ndisks - 1) * sizeof(*disks));
	disks[0] = first;
	return true;
}

/* Options only: optind is then at the first other argument. */
static bool take_options(struct run_options *o, int argc, char **argv, struct error *err)
{
	int opt;

	opterr = 0;
	optind = 0;
	while ((opt = getopt_long(argc, argv, ":m:q", long_options, NULL)) != -1) {
		if (opt == '?' || opt == ':')
			return bad_option(opt, argv, err);
		if (!parse_option(o, opt, err))
			return false;
	}
	return true;
}

/* The machine of that name has a file, and no file here is called so. */
static bool is_machine(struct run_options *o, const char *name)
{
	char dir[PATH_MAX];
	struct error ignored;

	if (!config_name_ok(name) || access(name, F_OK) == 0 || !config_machine_dir(name, dir, &ignored))
		return false;
	snprintf(o->machine_path, sizeof(o->machine_path), "%s/config.json", dir);
	return access(o->machine_path, F_OK) == 0;
}

/* Options of the command line come after those of the file, so the file is looked for first. *machine: argument that named it. */
static void find_config(struct run_options *o, int argc, char **argv, const char **machine)
{
	int opt;

	*machine = NULL;
	opterr = 0;
	optind = 0;
	while ((opt = getopt_long(argc, argv, ":m:q", long_options, NULL)) != -1)
		if (opt == OPT_CONFIG)
			o->config_path = optarg;
	if (o->config_path || optind >= argc || !is_machine(o, argv[optind]))
		return;
	o->config_path = o->machine_path;
	*machine = o->name = argv[optind];
}

static bool take_config(struct run_options *o, struct error *err)
{
	struct error why = {0};
	bool ok;
	int n;

	if (!config_read(&o->config, o->config_path, err))
		return false;
	o->config_argv = config_args(&o->config, "run", &n);
	if (!o->config_argv)
		return error_set(err, "out of memory");
	o->from_file = true;
	ok = take_options(o, n, o->config_argv, &why);
	o->from_file = false;
	if (ok)
		return true;
	error_set(err, "%.200s: %.300s", o->config_path, why.msg);
	return error_hint(err, "%s", why.hint[0] ? why.hint : "see doppel run --help");
}

static bool parse_options(struct run_options *o, int argc, char **argv, struct error *err)
{
	const char *machine;

	find_config(o, argc, argv, &machine);
	if (o->config_path && !take_config(o, err))
		return false;
	if (machine && !registry_name_ok(o->name, err))
		return false;
	if (!take_options(o, argc, argv, err))
		return false;
	if (o->help)
		return true;
	if (machine)
		optind++;
	if (optind < argc && !add_first_disk(&o->cfg, argv[optind++], err))
		return false;
	if (optind < argc) {
		error_set(err, "run: unexpected argument '%.64s'", argv[optind]);
		return error_hint(err, "other disks are given with --disk; see doppel run --help");
	}
	if (o->cfg.kernel)
		return true;
	if (o->cfg.initrd || o->cfg.nmodules) {
		error_set(err, "run: --initrd and --module go with a kernel");
		return error_hint(err, "name it with --kernel FILE");
	}
	if (!o->cfg.ndisks) {
		error_set(err, "run: nothing to boot");
		return error_hint(err, "name a disk, or a kernel with --kernel FILE; see doppel run --help");
	}
	return true;
}

/* Signals that end the run or ask for counters are read by the machine's loop; a crash of our own still gives the terminal back. */
static void on_crash(int sig)
{
	chardev_restore_terminal();
	raise(sig); /* SA_RESETHAND: the default action, on return */
}

static void set_signals(void)
{
	static const int read_by_loop[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGCONT};
	static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT};
	struct sigaction crash = {.sa_handler = on_crash, .sa_flags = SA_RESETHAND | SA_NODEFER};
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_LEN(read_by_loop); i++)
		sigaddset(&set, read_by_loop[i]);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	for (size_t i = 0; i < ARRAY_LEN(crashes); i++)
		sigaction(crashes[i], &crash, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* a disk image at its largest is an error like others */
}

/* The exit status of a stop, after saying on stderr what the user should know. */
static int conclude(struct machine *m, struct machine_stop stop, bool quiet)
{
	switch (stop.reason) {
	case STOP_POWEROFF: return CLI_OK;
	case STOP_RESET:
		if (!quiet)
			fprintf(stderr, "doppel: the guest reset the machine (--no-reboot)\n");
		return CLI_GUEST_RESET;
	case STOP_TRIPLE_FAULT:
		fprintf(stderr, "doppel: triple fault: the guest's CPU shut down\n");
		machine_report_vcpu(m, stop.value, stderr);
		return CLI_TRIPLE_FAULT;
	case STOP_DEBUG_EXIT: return ((stop.value << 1) | 1) & 0xff;
	case STOP_ESCAPE:
		if (!quiet)
			fprintf(stderr, "\ndoppel: ended by ^]\n");
		return CLI_ESCAPE;
	case STOP_SIGNAL: return CLI_SIGNAL + stop.value;
	case STOP_ENGINE:
		fprintf(stderr, "doppel: the %s engine cannot go on (the guest's state follows)\n", m->engine->ops->name);
		machine_report_vcpu(m, stop.value, stderr);
		return CLI_ERROR;
	case STOP_NONE:
	case STOP_ERROR: break;
	}
	return cli_fail(machine_error(m));
}

static bool uses_stdio(const struct machine_config *cfg)
{
	return !strcmp(cfg->serial, "stdio") || (cfg->virtio_console && !strcmp(cfg->virtio_console, "stdio"));
}

/* Run m and say how it ended. False: a vCPU is stuck, and the process must end at once. */
static bool run_machine(struct machine *m, bool quiet, int *status)
{
	const char *host_error;
	struct machine_stop stop;
	struct error err;
	bool stuck;

	stop = machine_run(m, &stuck);
	host_error = stuck ? NULL : m->cfg.board->run_error(m);
	chardev_restore_terminal();
	*status = conclude(m, stop, quiet);
	if (host_error) {
		error_set(&err, "%s", host_error);
		error_hint(&err, "what the guest wrote there is not complete");
		*status = cli_fail(&err);
	}
	return !stuck;
}

/* Where the user names no place for the host's socket, it lies in the machine's directory. */
static bool place_vsock(struct run_options *o, const struct session *session, struct error *err)
{
	if (!o->cfg.vsock.cid || o->cfg.vsock.path)
		return true;
	if (!session) {
		error_set(err, "--vsock: this machine has no directory for the socket");
		return error_hint(err, "name a place with --vsock=,uds=PATH");
	}
	o->cfg.vsock.path = session_path(session, "vsock.sock");
	return o->cfg.vsock.path || error_set(err, "out of memory");
}

/* A run that nobody named goes on when it cannot be listed. */
static void say_start(const struct run_options *o, const struct engine_choice *choice, const struct session *session,
		      const struct error *unlisted)
{
	fprintf(stderr, "doppel: engine %s: %s\n", choice->ops->name, choice->why);
	if (session)
		fprintf(stderr, "doppel: this virtual machine is %s\n", session_name(session));
	else
		fprintf(stderr, "doppel: not listed by doppel ps: %s\n", unlisted->msg);
	if (uses_stdio(&o->cfg))
		fprintf(stderr, "doppel: ^] ends the run\n");
}

static int run(struct run_options *o)
{
	struct engine_choice choice;
	struct session *session;
	struct error err = {0}, unlisted = {0};
	struct machine *m;
	int status;

	if (!engine_pick(o->engine, &choice, &err))
		return cli_fail(&err);
	o->cfg.engine = choice.ops;
	if (o->quiet)
		log_set_level(LOG_WARN);
	set_signals();
	if (!session_begin(&session, o->name, o->argc, o->argv, &o->cfg, &unlisted))
		return cli_fail(&unlisted);
	m = place_vsock(o, session, &err) ? machine_new(&o->cfg, &err) : NULL;
	if (!m || (session && !session_serve(session, m, &err))) {
		session_end(session);
		machine_free(m);
		return cli_fail(&err);
	}
	if (!o->quiet) {
		say_start(o, &choice, session, &unlisted);
		o->cfg.board->describe(m, stderr);
	}
	if (!run_machine(m, o->quiet, &status)) {
		session_end(session);
		_exit(status);
	}
	session_end(session);
	machine_free(m);
	return status;
}

int cli_run(int argc, char **argv)
{
	struct run_options o = {
		.cfg = {.board = &board_micro, .ram_bytes = DEFAULT_RAM, .ncpus = 1, .cpu = CPU_MAX, .serial = "stdio"},
		.engine = ENGINE_AUTO,
		.argc = argc,
		.argv = argv,
	};
	struct error err = {0};
	int status;

	if (!parse_options(&o, argc, argv, &err))
		status = cli_fail(&err);
	else if (o.help)
		status = fputs(usage, stdout) < 0 ? CLI_ERROR : CLI_OK;
	else
		status = run(&o);
	free((void *)o.cfg.modules);
	for (unsigned i = 0; i < o.cfg.nshares; i++)
		free(o.cfg.shares[i].path);
	free((void *)o.cfg.shares);
	free(o.cfg.vsock.path);
	free((void *)o.cfg.nics);
	opt_disk_free(&o.cfg);
	free(o.config_argv);
	config_fini(&o.config);
	return status;
}
