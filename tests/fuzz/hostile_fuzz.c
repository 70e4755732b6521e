/*
 * A hostile kernel on the whole machine under the soft engine: random code in every mode, random ports, MMIO and MSRs, wild
 * descriptor and page tables, rings of random descriptors with DMA into code, interrupt storms, loops that look
 * impossible to leave, and real code (guest images, kernels) with flipped bits.
 *
 * The bar: no crash, no sanitizer report, no engine that refuses to go on for another reason than those it documents, and
 * engine_kick - what leaving the console by ^] does - ends `run` within a second, whatever the guest is doing.
 *
 *   hostile_fuzz [--seconds N] [--seed S] [--image FILE]...
 *   hostile_fuzz --batch S [--cases N] [--image FILE]...   one batch again, in this process (under a debugger, say)
 *
 * Batches run in child processes, so one crash costs one batch; the seed of each failure is printed. In a sanitizer build the
 * engine needs its own signal stack: ASAN_OPTIONS=use_sigaltstack=0 (set by this program when there are no options).
 *
 * A long soak: hostile_fuzz --seconds 86400 --seed $(date +%s) --image tests/guest/paging.elf ...
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/soft/soft_int.h"
#include "hostile.h"
#include "machine/machine.h"
#include "machine/micro.h"

#if defined(__has_feature) && !defined(__SANITIZE_ADDRESS__)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

#define BATCH_CASES 250
#define LEAVE_MS (SANITIZED ? 3000 : 1000)
#define BATCH_LIMIT_S 120
#define MAX_IMAGES 64
#define RNG_BAR 0xc0000000u

/* What the child tells its parent. */
struct shared {
	_Atomic uint64_t batch, index, cases, triple, kicked, errors, stops;
	_Atomic uint64_t max_leave_us, max_leave_batch, max_leave_index;
	_Atomic bool hang;
};

struct fuzz {
	struct shared *sh;
	struct machine *m;
	const char *images[MAX_IMAGES];
	unsigned nimages;
	bool again; /* one batch only */
	/* for the thread that kicks */
	_Atomic int64_t deadline; /* 0: nothing runs */
	_Atomic bool done;
	/* CPUs but the first: each thread runs its vCPU from `start` to `end` */
	unsigned ncpus;
	pthread_barrier_t start, end;
};

#define MAX_CPUS 4

struct helper {
	struct fuzz *f;
	unsigned vcpu;
};

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ^]: when the time of a case is over. Ends the process when the engine does not heed it. */
static void *kicker(void *arg)
{
	struct fuzz *f = arg;
	int64_t kicked = 0; /* the deadline that was heeded last */

	while (!f->done) {
		int64_t deadline = f->deadline, now = now_ns();
		struct timespec nap = {.tv_nsec = 500000};

		if (deadline && now > deadline) {
			if (now - deadline > LEAVE_MS * INT64_C(1000000)) {
				f->sh->hang = true;
				abort();
			}
			if (kicked != deadline) /* once */
				f->m->engine->ops->kick(f->m->engine, 0);
			kicked = deadline;
		}
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	}
	return NULL;
}

/* ---- a case ---- */

static void check_error(struct machine *m, unsigned vcpu)
{
	if (strstr(m->engine->ops->last_error(m->engine, vcpu), "task"))
		return;
	fprintf(stderr, "hostile_fuzz: vCPU %u: %s\n", vcpu, m->engine->ops->last_error(m->engine, vcpu));
	_exit(4);
}

static void *helper_main(void *arg)
{
	struct helper *h = arg;
	struct fuzz *f = h->f;

	for (;;) {
		pthread_barrier_wait(&f->start);
		if (f->done)
			return NULL;
		if (f->m->engine->ops->run(f->m->engine, h->vcpu) == EXIT_ERROR)
			check_error(f->m, h->vcpu);
		pthread_barrier_wait(&f->end);
	}
}

static bool load_nothing(struct machine *m, struct error *err) { return true; }

static void set_common(struct machine *m, unsigned off, unsigned size, uint64_t v)
{
	bus_write(m->bus, BUS_MMIO, RNG_BAR + off, size, v);
}

/* A driver that has set up virtio-rng's queue with whatever rings. */
static void rings(struct rng *r, struct machine *m)
{
	uint16_t flags_idx[2] = {(uint16_t)below(r, 2), (uint16_t)below(r, 20)};

	for (unsigned i = 0; i < 16; i++) {
		struct { uint64_t addr; uint32_t len; uint16_t flags, next; } d = {
			.addr = below(r, 4) ? W_CODE + below(r, 0x2000) : below(r, 2) ? W_TABLES + below(r, 0x8000) : rnd(r) >> below(r, 40),
			.len = below(r, 4) ? below(r, 64) : (uint32_t)rnd(r) >> below(r, 20),
			.flags = (uint16_t)(below(r, 4) ? 2 : rnd(r)),
			.next = (uint16_t)below(r, 18),
		};

		ram_write(m->ram, W_RINGS + i * 16, &d, sizeof(d));
	}
	ram_write(m->ram, W_RINGS + 0x1000, flags_idx, 4);
	for (unsigned i = 0; i < 16; i++)
		ram_write(m->ram, W_RINGS + 0x1004 + 2 * i, &(uint16_t){(uint16_t)below(r, 18)}, 2);
	pthread_mutex_lock(&m->lock);
	set_common(m, 20, 1, 3);
	set_common(m, 8, 4, 1);
	set_common(m, 12, 4, 1);
	set_common(m, 20, 1, 11);
	set_common(m, 22, 2, 0);
	set_common(m, 24, 2, 16);
	set_common(m, 32, 8, W_RINGS);
	set_common(m, 40, 8, W_RINGS + 0x1000);
	set_common(m, 48, 8, W_RINGS + 0x2000);
	set_common(m, 28, 2, 1);
	set_common(m, 20, 1, 15);
	pthread_mutex_unlock(&m->lock);
}

static void reset(struct machine *m)
{
	pthread_mutex_lock(&m->lock);
	m->cfg.board->reset(m);
	m->stop = (struct machine_stop){0};
	m->reset_pending = false;
	pthread_mutex_unlock(&m->lock);
	m->engine->ops->reset(m->engine);
}

static void die(const char *what, const struct error *err)
{
	fprintf(stderr, "hostile_fuzz: %s: %s\n", what, err->msg);
	_exit(3);
}

/* Random code at W_CODE, with everything around it. Returns how long it may run. */
static int64_t made_up(struct rng *r, struct machine *m)
{
	static struct cpu_state s;
	uint8_t code[0x1400];
	struct world w = {.wild_tables = !below(r, 4), .storm = !below(r, 5)};
	bool loop = !below(r, 6);
	struct error err;

	world_make(r, m->ram, &w, &s);
	gen_code(r, &w, code, sizeof(code));
	if (loop) {
		unsigned n = gen_storm(r, &w, code);

		memset(code + n, 0x90, 16);
		if (w.bits != 16) { /* the far side of the loop over the end: at linear 0 and at the last byte */
			uint8_t nop = 0x90, back[] = {0xe9, 0xfa, 0xff, 0xff, 0xff};

			ram_write(m->ram, 0, back, sizeof(back));
			ram_write(m->ram, 0xfff, &nop, 1);
		}
	}
	ram_write(m->ram, W_CODE, code, sizeof(code));
	for (unsigned i = 0; i < 8; i++) {
		uint8_t more[256];

		gen_code(r, &w, more, sizeof(more));
		ram_write(m->ram, W_CODE + 0x1400 + below(r, 0xe000), more, sizeof(more));
	}
	if (below(r, 2))
		rings(r, m);
	if (!m->engine->ops->set_state(m->engine, 0, &s, &err))
		die("set_state", &err);
	for (unsigned i = 1; i < m->cfg.ncpus; i++) { /* in the same code, mostly elsewhere; some wait for an INIT */
		s.apic_id = i;
		s.apic_base &= ~BIT(8);
		s.rip = below(r, 4) ? W_CODE + below(r, 0x1400) : s.rip;
		s.run_state = below(r, 5) ? CPU_RUNNING : CPU_WAIT_SIPI;
		if (!m->engine->ops->set_state(m->engine, i, &s, &err))
			die("set_state", &err);
	}
	return loop ? 8000000 + below(r, 8000000) : 1000000 + below(r, 3000000);
}

/* A real image with flipped bits, or with none. */
static int64_t mutated(struct rng *r, struct fuzz *f)
{
	struct machine *m = f->m;
	unsigned flips = below(r, 4) ? 1 + below(r, 60) : 0;
	struct error err;

	m->cfg.kernel = f->images[below(r, f->nimages)];
	m->cfg.append = "console=ttyS0 earlyprintk=serial,ttyS0,115200";
	if (!board_micro.load(m, &err))
		die(m->cfg.kernel, &err);
	for (unsigned i = 0; i < flips; i++) {
		/* where images and Linux begin, most of it near the beginning */
		gpa_t at = (below(r, 2) ? MIB : 16 * MIB) + (below(r, 4) ? below(r, 0x8000) : below(r, 0x1000000));
		uint8_t b;

		if (ram_read(m->ram, at, &b, 1)) {
			b ^= (uint8_t)(1u << below(r, 8));
			ram_write(m->ram, at, &b, 1);
		}
	}
	return below(r, 40) ? 5000000 + below(r, 30000000) : 2000000000;
}

static void one_case(struct fuzz *f, uint64_t seed)
{
	struct machine *m = f->m;
	struct rng r = {.state = seed};
	struct shared *sh = f->sh;
	enum engine_exit why;
	int64_t budget, late;

	reset(m);
	ram_zero(m->ram, 0, ram_size(m->ram));
	budget = f->nimages && !below(&r, 12) ? mutated(&r, f) : made_up(&r, m);
	if (f->ncpus > 1)
		pthread_barrier_wait(&f->start);
	f->deadline = now_ns() + budget;
	why = m->engine->ops->run(m->engine, 0);
	late = (now_ns() - f->deadline) / 1000;
	for (unsigned i = 1; i < f->ncpus; i++)
		m->engine->ops->kick(m->engine, i);
	if (f->ncpus > 1)
		pthread_barrier_wait(&f->end);
	f->deadline = 0;
	if (late > 0 && (uint64_t)late > sh->max_leave_us) {
		sh->max_leave_us = (uint64_t)late;
		sh->max_leave_batch = sh->batch;
		sh->max_leave_index = sh->index;
	}
	sh->cases++;
	sh->stops += m->stop.reason != STOP_NONE || m->reset_pending;
	switch (why) {
	case EXIT_KICKED:
		sh->kicked++;
		break;
	case EXIT_TRIPLE_FAULT:
		sh->triple++;
		if (!below(&r, 16)) {
			char *text = NULL;
			size_t n = 0;
			FILE *out = open_memstream(&text, &n);

			machine_report_vcpu(m, 0, out);
			fclose(out);
			free(text);
		}
		break;
	case EXIT_ERROR:
		sh->errors++;
		check_error(m, 0);
		break;
	}
}

/* How far the guests got: what the engine had to do for them. */
static void print_stats(const struct machine *m)
{
	const struct soft_stats *s = &((const struct soft_engine *)m->engine)->vcpus[0]->stats;

	printf("blocks %lu, entries %lu, slow steps %lu, faults %lu, fills %lu, signals %lu, table pages %lu, flushes %lu, code writes %lu, "
	       "interrupts %lu, halts %lu\nslow:", s->translations, s->entries, s->slow, s->faults, s->fills, s->sig_segv, s->table_pages, s->flushes,
	       s->smc, s->interrupts, s->halts);
	for (unsigned k = 0; k < INSN_KIND_COUNT; k++)
		if (s->slow_kind[k])
			printf(" %s %lu", insn_kind_name((enum insn_kind)k), s->slow_kind[k]);
	putchar('\n');
}

static void batch(struct fuzz *f, uint64_t seed, unsigned cases)
{
	static struct board board;
	struct machine_config cfg = {
		.board = &board, .engine = &engine_soft, .ram_bytes = HOSTILE_RAM, .ncpus = 1, .cpu = CPU_MAX, .serial = "null",
		.virtio_console = "null", .debug_exit = true, .debug_exit_port = 0xf4,
	};
	struct rng r = {.state = seed};
	struct helper helpers[MAX_CPUS];
	pthread_t t, threads[MAX_CPUS];
	struct error err;
	sigset_t set;

	board = board_micro;
	board.load = load_nothing;
	f->sh->batch = seed;
	f->ncpus = cfg.ncpus = below(&r, 2) ? 1 : 1 + below(&r, MAX_CPUS);
	f->m = machine_new(&cfg, &err);
	if (!f->m)
		die("machine", &err);
	sigfillset(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	pthread_barrier_init(&f->start, NULL, f->ncpus);
	pthread_barrier_init(&f->end, NULL, f->ncpus);
	for (unsigned i = 1; i < f->ncpus; i++) {
		helpers[i] = (struct helper){.f = f, .vcpu = i};
		if (pthread_create(&threads[i], NULL, helper_main, &helpers[i]))
			die("thread", &(struct error){0});
	}
	if (pthread_create(&t, NULL, kicker, f))
		die("thread", &(struct error){0});
	for (unsigned i = 0; i < cases; i++) {
		f->sh->index = i;
		one_case(f, rnd(&r));
	}
	f->done = true;
	if (f->ncpus > 1)
		pthread_barrier_wait(&f->start);
	for (unsigned i = 1; i < f->ncpus; i++)
		pthread_join(threads[i], NULL);
	pthread_join(t, NULL);
	if (f->again)
		print_stats(f->m);
	machine_free(f->m);
}

/* ---- the parent ---- */

static bool run_batch(struct fuzz *f, uint64_t seed)
{
	int status = 0;
	pid_t pid = fork();

	if (pid < 0) {
		perror("hostile_fuzz: fork");
		exit(3);
	}
	if (!pid) {
		batch(f, seed, BATCH_CASES);
		_exit(0);
	}
	for (int64_t start = now_ns(); waitpid(pid, &status, WNOHANG) == 0;) {
		struct timespec nap = {.tv_nsec = 5000000};

		if (now_ns() - start > BATCH_LIMIT_S * INT64_C(1000000000)) {
			f->sh->hang = true;
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			break;
		}
		clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL);
	}
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	fprintf(stderr, "hostile_fuzz: FAILED at case %" PRIu64 " of batch %#" PRIx64 ": %s %d; again: --batch %#" PRIx64 "\n", f->sh->index,
		f->sh->batch, f->sh->hang ? "does not leave the engine, signal" : WIFSIGNALED(status) ? "signal" : "exit status",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), f->sh->batch);
	f->sh->hang = false;
	return false;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {{"seconds", 1, NULL, 's'}, {"seed", 1, NULL, 'r'}, {"batch", 1, NULL, 'b'},
						{"cases", 1, NULL, 'c'},   {"image", 1, NULL, 'i'}, {0}};
	static struct fuzz f;
	unsigned seconds = 10, cases = BATCH_CASES, failures = 0;
	uint64_t seed = 1, one = 0;
	int64_t end;
	int c;

	if (SANITIZED && !getenv("ASAN_OPTIONS")) {
		setenv("ASAN_OPTIONS", "use_sigaltstack=0:detect_leaks=0", 1);
		setenv("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1", 1);
		execv("/proc/self/exe", argv);
	}
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 's': seconds = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'r': seed = strtoull(optarg, NULL, 0); break;
		case 'b': one = strtoull(optarg, NULL, 0); f.again = true; break;
		case 'c': cases = (unsigned)strtoul(optarg, NULL, 0); break;
		case 'i':
			if (f.nimages < MAX_IMAGES)
				f.images[f.nimages++] = optarg;
			break;
		default: return 2;
		}
	}
	f.sh = mmap(NULL, sizeof(*f.sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (f.sh == MAP_FAILED)
		return 3;
	if (f.again) {
		batch(&f, one, cases);
	} else {
		struct rng r = {.state = seed};

		end = now_ns() + seconds * INT64_C(1000000000);
		while (now_ns() < end && failures < 10)
			failures += !run_batch(&f, rnd(&r));
	}
	printf("%" PRIu64 " cases of seed %" PRIu64 ": %" PRIu64 " triple faults, %" PRIu64 " ended by the kick, %" PRIu64
	       " stopped or reset the machine, %" PRIu64 " task switches; slowest kick %" PRIu64 " us (batch %#" PRIx64 " case %" PRIu64
	       "); %u failures\n",
	       f.sh->cases, seed, f.sh->triple, f.sh->kicked, f.sh->stops, f.sh->errors, f.sh->max_leave_us, f.sh->max_leave_batch,
	       f.sh->max_leave_index, failures);
	return failures != 0;
}
