/*
 * Create, triple fault, destroy - and reset without end: nothing may be left behind, and the time is measured.
 *
 *   reset_loop [N]    N machines that triple-fault at once, then one machine that is reset N times; N = 300 when not given
 *
 * Judged: every end is the defined one; resident memory (beyond a fixed allowance), mappings and file descriptors at the end
 * are those after the first tenth.
 */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "machine/machine.h"
#include "machine/micro.h"

#define CODE 0x1000u
#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define ALLOWANCE_KIB (300 * 1024) /* its quarantine of freed memory */
#define ALLOWANCE_MAPS 64
#else
#define ALLOWANCE_KIB 1024 /* malloc's and the kernel's own bookkeeping */
#define ALLOWANCE_MAPS 4
#endif

struct usage {
	long rss_kib, maps, fds;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static struct usage usage(void)
{
	struct usage u = {0};
	char line[512];
	FILE *f = fopen("/proc/self/status", "re");
	DIR *d;

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, "VmRSS:", 6))
			u.rss_kib = atol(line + 6);
	if (f)
		fclose(f);
	f = fopen("/proc/self/maps", "re");
	while (f && fgets(line, sizeof(line), f))
		u.maps++;
	if (f)
		fclose(f);
	d = opendir("/proc/self/fd");
	while (d && readdir(d))
		u.fds++;
	if (d)
		closedir(d);
	return u;
}

/* Real mode; limit 0 of the IDT makes of every exception a triple fault. */
static bool load(struct machine *m, const uint8_t *code, size_t len, struct error *err)
{
	static struct cpu_state s;

	ram_write(m->ram, CODE, code, len);
	cpu_state_reset(&s, 0);
	s.seg[SEG_CS].base = s.seg[SEG_CS].sel = 0;
	s.idt.limit = 0;
	s.rip = CODE;
	return m->engine->ops->set_state(m->engine, 0, &s, err);
}

static bool load_fault(struct machine *m, struct error *err)
{
	static const uint8_t code[] = {0xc7, 0x06, 0x00, 0x20, 0x01, 0x00, 0x0f, 0x0b}; /* a store; ud2 */

	return load(m, code, sizeof(code), err);
}

static unsigned long resets_left;

static bool load_reset(struct machine *m, struct error *err)
{
	static const uint8_t again[] = {0xb0, 0x0e, 0xba, 0xf9, 0x0c, 0xee, 0xeb, 0xfe}; /* 0x0e to port 0xcf9 */
	static const uint8_t end[] = {0xb0, 0x07, 0xe6, 0xf4, 0xeb, 0xfe};

	if (!resets_left)
		return load(m, end, sizeof(end), err);
	resets_left--;
	return load(m, again, sizeof(again), err);
}

static struct machine_config config(const struct board *b)
{
	return (struct machine_config){.board = b, .engine = &engine_soft, .ram_bytes = 64 * MIB, .ncpus = 1, .serial = "null", .debug_exit = true,
				       .debug_exit_port = 0xf4};
}

static struct machine_stop one(const struct board *b)
{
	struct machine_config cfg = config(b);
	struct machine_stop stop;
	struct error err;
	struct machine *m = machine_new(&cfg, &err);
	bool stuck;

	if (!m) {
		fprintf(stderr, "reset_loop: %s\n", err.msg);
		exit(1);
	}
	stop = machine_run(m, &stuck);
	if (stuck) {
		fprintf(stderr, "reset_loop: stuck\n");
		exit(1);
	}
	machine_free(m);
	return stop;
}

/* AddressSanitizer keeps freed memory for a while: only leaks of other kinds show there. */
#ifdef __SANITIZE_ADDRESS__
#define RSS_COUNTS false
#else
#define RSS_COUNTS true
#endif

static bool compare(const char *what, unsigned long n, double seconds, struct usage a, struct usage b)
{
	bool ok = b.fds == a.fds && b.maps <= a.maps + ALLOWANCE_MAPS && (!RSS_COUNTS || b.rss_kib <= a.rss_kib + ALLOWANCE_KIB);

	printf("%s: %lu in %.2f s, %.3f ms each; RSS %ld -> %ld KiB, mappings %ld -> %ld, descriptors %ld -> %ld%s\n", what, n, seconds,
	       1000 * seconds / (double)n, a.rss_kib, b.rss_kib, a.maps, b.maps, a.fds, b.fds, ok ? "" : ": LEAK");
	return ok;
}

static bool faults(unsigned long n)
{
	struct board b = board_micro;
	struct usage early = {0};
	double start = now();

	b.load = load_fault;
	for (unsigned long i = 0; i < n; i++) {
		struct machine_stop stop = one(&b);

		if (stop.reason != STOP_TRIPLE_FAULT) {
			fprintf(stderr, "reset_loop: machine %lu ended with reason %d\n", i, (int)stop.reason);
			return false;
		}
		if (i == n / 10)
			early = usage();
	}
	return compare("create, triple fault, destroy", n, now() - start, early, usage());
}

static struct usage reset_early;

static bool load_reset_noting(struct machine *m, struct error *err)
{
	static unsigned long tenth;

	if (!tenth)
		tenth = resets_left - resets_left / 10;
	if (resets_left == tenth)
		reset_early = usage();
	return load_reset(m, err);
}

static struct usage at_end;

static void board_free(struct machine *m)
{
	at_end = usage();
	board_micro.free(m);
}

static bool resets(unsigned long n)
{
	struct board b = board_micro;
	struct machine_stop stop;
	double start = now();

	b.load = load_reset_noting;
	b.free = board_free;
	resets_left = n;
	stop = one(&b);
	if (stop.reason != STOP_DEBUG_EXIT || stop.value != 7) {
		fprintf(stderr, "reset_loop: ended with reason %d, %lu resets to go\n", (int)stop.reason, resets_left);
		return false;
	}
	return compare("reset", n, now() - start, reset_early, at_end);
}

int main(int argc, char **argv)
{
	unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 0) : 300;
	bool faults_ok, resets_ok;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	faults_ok = faults(n);
	resets_ok = resets(n);
	return !(faults_ok && resets_ok);
}
