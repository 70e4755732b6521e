/*
 * Differential fuzzing of whole programs against the physical CPU: what difffuzz does for instructions, for chains of blocks, regions,
 * thunks between pages, jump caches, registers and flags that live over branches.
 *
 * A random program (flowgen.h) is run natively and by the soft engine, each in one go, several times: from other states, at another
 * linear address, and with pages of its code mapped anew to a second version of it. Registers, flags, vector state, data, stack, the
 * code itself (it may modify itself) and the fault that ends it must be equal. In every second run a timer interrupts the engine at
 * random places: requests of all kinds, blocks made hot, pages and the whole cache dropped.
 *
 * usage: flowfuzz [CASES [SEED [FIRST]]]       cases FIRST to CASES - 1
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "engine/soft/cache/cache_int.h"
#include "engine/soft/mmu/mmu.h"
#include "flowgen.h"
#include "native.h"

#define VOID UINT64_C(0x1000000) /* nothing is mapped around the arenas */
#define VERSIONS 2
#define VIEWS 2
#define NOISE_SIGNAL (SIGRTMIN + 5)
#define MAX_RUNS 4
#define STUCK_SECONDS 60

/* Pages of both sides: the code's versions, data, stack. */
enum {
	PAGE_CODE,
	PAGE_DATA = PAGE_CODE + VERSIONS * FLOW_CODE_PAGES,
	PAGE_STACK = PAGE_DATA + FLOW_DATA_PAGES,
	PAGES = PAGE_STACK + FLOW_STACK_PAGES,
};

static const gpa_t page_gpa[PAGES] = {
	0x500000, 0x580000, 0x501000, 0x590000, 0x503000, 0x600000, 0x680000, 0x601000, 0x690000, 0x603000,
	0x400000, 0x480000, 0x410000, 0x4f0000, 0x420000, 0x430000,
};

static struct rig rig;
static struct flow flow;
static uint8_t *native_page[PAGES]; /* for the fuzzer; programs have the memfd mapped elsewhere too */
static int native_fd;
static unsigned version[VIEWS][FLOW_CODE_PAGES]; /* mapped there */
static uint8_t initial[(FLOW_DATA_PAGES + FLOW_STACK_PAGES) * PAGE_SIZE];
static _Atomic unsigned long case_no;
static uint64_t case_seed;
static unsigned long runs, faults, noises;

static void describe(void)
{
	fprintf(stderr, "case %lu of seed %lu (flowfuzz %lu %lu %lu)\n", (unsigned long)case_no, (unsigned long)case_seed, (unsigned long)case_no + 1,
		(unsigned long)case_seed, (unsigned long)case_no);
}

static void *watchdog(void *arg)
{
	unsigned long last = ~0ul, same = 0;

	for (;; sleep(1)) {
		same = last == case_no ? same + 1 : 0;
		last = case_no;
		if (same > STUCK_SECONDS) {
			fprintf(stderr, "flowfuzz: no end, guest rip %#lx: ", (unsigned long)rig.sv->v.s.rip);
			describe();
			_exit(4);
		}
	}
	return arg;
}

/* ---- noise: not reproducible, and needs not be ---- */

static timer_t noise_timer;
static volatile sig_atomic_t noise_on;
static unsigned noise_left; /* so that a program comes to its end */
static uint64_t noise_state = 1;

static unsigned noise_below(unsigned n)
{
	noise_state ^= noise_state << 13;
	noise_state ^= noise_state >> 7;
	noise_state ^= noise_state << 17;
	return (unsigned)(noise_state % n);
}

static void on_noise(int sig, siginfo_t *si, void *context)
{
	static const struct itimerspec off;
	struct soft_vcpu *sv = rig.sv;
	uint64_t pc = (uint64_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
	struct block *b;

	(void)sig;
	(void)si;
	if (!noise_on || !noise_left) {
		timer_settime(noise_timer, 0, &off, NULL);
		return;
	}
	noise_left--;
	noises++;
	switch (noise_below(6)) {
	case 0:
		soft_request(sv, REQ_TIMER);
		break;
	case 1:
		soft_request(sv, REQ_UNHALT);
		break;
	case 2: /* as the sampling timer does */
		b = cache_contains(sv->cache, pc) ? cache_find_host(sv->cache, pc) : NULL;
		if (!b || b->region || (atomic_load(&sv->requests) & REQ_HOT))
			break;
		sv->hot_block = b;
		sv->hot_flushes = sv->cache->flushes;
		soft_request(sv, REQ_HOT);
		break;
	default:
		soft_request(sv, REQ_KICK);
	}
}

static void noise_start(bool on)
{
	struct itimerspec its = {0};

	if (on) {
		its.it_value.tv_nsec = 1 + noise_below(80000);
		its.it_interval.tv_nsec = 10000 + noise_below(60000);
	}
	noise_left = 12;
	noise_on = on;
	timer_settime(noise_timer, 0, &its, NULL);
}

/* The engine has come back from the middle of a program. */
static void disturb(void)
{
	struct soft_vcpu *sv = rig.sv;
	struct code_cache *c = sv->cache;

	switch (noise_below(8)) {
	case 0:
		if (!noise_below(10))
			cache_flush(sv);
		break;
	case 1: case 2:
		cache_invalidate_page(c, page_gpa[noise_below(VERSIONS * FLOW_CODE_PAGES)]);
		break;
	case 3:
		mmu_flush_all(&sv->v);
		break;
	case 4:
		mmu_flush_page(&sv->v, FLOW_CODE + noise_below(2) * FLOW_ALIAS + noise_below(FLOW_CODE_PAGES) * PAGE_SIZE);
		break;
	case 5:
		c->all_hot = !c->all_hot;
		break;
	case 6:
		if (c->nblocks) {
			sv->hot_flushes = c->flushes;
			cache_promote(sv, &c->blocks[noise_below(c->nblocks)]);
		}
		break;
	default:
		break;
	}
}

static void noise_init(void)
{
	struct sigaction sa = {.sa_sigaction = on_noise, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = NOISE_SIGNAL};
	sigset_t set;

	ev._sigev_un._tid = (int)syscall(SYS_gettid);
	sigaction(NOISE_SIGNAL, &sa, NULL);
	sigemptyset(&set);
	sigaddset(&set, NOISE_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	if (timer_create(CLOCK_MONOTONIC, &ev, &noise_timer)) {
		perror("flowfuzz: timer_create");
		exit(1);
	}
}

/* ---- memory of both sides ---- */

static uint8_t *guest_page(unsigned page) { return ram_ptr(rig.ram, page_gpa[page], PAGE_SIZE); }

static void map_native(uint64_t at, unsigned page, int prot)
{
	if (mmap((void *)(uintptr_t)at, PAGE_SIZE, prot, MAP_SHARED | MAP_FIXED | MAP_POPULATE, native_fd, (off_t)(page * PAGE_SIZE)) == MAP_FAILED) {
		perror("flowfuzz: mmap");
		exit(1);
	}
}

static void reserve(uint64_t at, uint64_t size)
{
	if (mmap((void *)(uintptr_t)at, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED) {
		perror("flowfuzz: arenas");
		exit(1);
	}
}

static void map_code(unsigned view, unsigned page, unsigned v)
{
	uint64_t at = FLOW_CODE + view * FLOW_ALIAS + page * PAGE_SIZE;

	version[view][page] = v;
	map_native(at, PAGE_CODE + v * FLOW_CODE_PAGES + page, PROT_READ | PROT_WRITE | PROT_EXEC);
	rig_map(&rig, at, page_gpa[PAGE_CODE + v * FLOW_CODE_PAGES + page], RIG_U | RIG_W);
}

static void map_all(void)
{
	native_fd = memfd_create("flowfuzz", MFD_CLOEXEC);
	if (native_fd < 0 || ftruncate(native_fd, PAGES * PAGE_SIZE)) {
		perror("flowfuzz: memfd");
		exit(1);
	}
	native_page[0] = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, native_fd, 0);
	for (unsigned i = 1; i < PAGES; i++)
		native_page[i] = native_page[0] + i * PAGE_SIZE;
	for (unsigned view = 0; view < VIEWS; view++) {
		reserve(FLOW_CODE + view * FLOW_ALIAS - VOID, FLOW_CODE_PAGES * PAGE_SIZE + 2 * VOID);
		reserve(FLOW_DATA + view * FLOW_ALIAS - VOID, FLOW_DATA_PAGES * PAGE_SIZE + 2 * VOID);
		for (unsigned p = 0; p < FLOW_CODE_PAGES; p++)
			map_code(view, p, 0);
		for (unsigned p = 0; p < FLOW_DATA_PAGES; p++) {
			uint64_t at = FLOW_DATA + view * FLOW_ALIAS + p * PAGE_SIZE;
			bool ro = p == FLOW_DATA_PAGES - 1;

			map_native(at, PAGE_DATA + p, PROT_READ | (ro ? 0 : PROT_WRITE));
			rig_map(&rig, at, page_gpa[PAGE_DATA + p], RIG_U | RIG_NX | (ro ? 0 : RIG_W));
		}
	}
	reserve(FLOW_STACK - VOID, FLOW_STACK_PAGES * PAGE_SIZE + 2 * VOID);
	for (unsigned p = 0; p < FLOW_STACK_PAGES; p++) {
		map_native(FLOW_STACK + p * PAGE_SIZE, PAGE_STACK + p, PROT_READ | PROT_WRITE);
		rig_map(&rig, FLOW_STACK + p * PAGE_SIZE, page_gpa[PAGE_STACK + p], RIG_U | RIG_W | RIG_NX);
	}
}

static void set_page(unsigned page, const uint8_t *from)
{
	if (memcmp(native_page[page], from, PAGE_SIZE))
		memcpy(native_page[page], from, PAGE_SIZE);
	memcpy(guest_page(page), from, PAGE_SIZE);
}

static bool memory_differs(void)
{
	bool bad = false;

	for (unsigned p = 0; p < PAGES; p++) {
		const uint8_t *a = native_page[p], *b = guest_page(p);

		if (!memcmp(a, b, PAGE_SIZE))
			continue;
		for (unsigned i = 0; i < PAGE_SIZE; i++)
			if (a[i] != b[i]) {
				printf("page %u (gpa %#lx) offset %#x: native %02x, engine %02x\n", p, (unsigned long)page_gpa[p], i, a[i], b[i]);
				break;
			}
		bad = true;
	}
	return bad;
}

/* ---- one case ---- */

static void random_start(struct regs *r)
{
	for (unsigned i = 0; i < 16; i++)
		switch (below(4)) {
		case 0:
			r->gpr[i] = rnd();
			break;
		case 1:
			r->gpr[i] = rnd() >> below(64);
			break;
		case 2:
			r->gpr[i] = FLOW_DATA + below(4 * PAGE_SIZE);
			break;
		default:
			r->gpr[i] = below(2) ? below(32) : ~(uint64_t)below(32);
		}
	r->gpr[R_SP] = FLOW_STACK + FLOW_STACK_PAGES * PAGE_SIZE - 8 * below(16);
	if (!below(16))
		r->gpr[R_SP] -= below(8);
	if (!below(4)) /* over a page's end */
		r->gpr[R_SP] -= PAGE_SIZE - 128;
	if (!below(16)) /* little of it */
		r->gpr[R_SP] = FLOW_STACK + below(300);
	r->rflags = (rnd() & FL_ARITH) | FL_FIXED | FL_IF;
	native_random_vectors(r->xsave);
	put_le32(r->xsave + 24, 0x1f80);
}

/* Map some pages of code to another version, and say so as a kernel does. True: everything has to be flushed. */
static bool remap(void)
{
	bool whole = below(2);

	for (unsigned n = 1 + below(3); n; n--) {
		unsigned view = below(VIEWS), page = below(FLOW_CODE_PAGES);

		map_code(view, page, below(VERSIONS));
		if (!whole)
			mmu_flush_page(&rig.sv->v, FLOW_CODE + view * FLOW_ALIAS + page * PAGE_SIZE);
	}
	if (whole && below(2)) {
		mmu_flush_nonglobal(&rig.sv->v);
		whole = false;
	}
	return whole;
}

static struct rig_result run_engine(struct cpu_state *s, const struct regs *start, bool flush, bool noise)
{
	struct soft_vcpu *sv = rig.sv;
	struct rig_result res = {0};
	struct error err;

	rig_state(&rig, s, 3);
	memcpy(s->gpr, start->gpr, sizeof(s->gpr));
	s->rip = start->rip;
	s->rflags = start->rflags;
	memcpy(s->xsave, start->xsave, XSAVE_AREA_SIZE);
	memset(s->xsave + 520, 0, 56);
	if (flush) {
		engine_soft.set_state(rig.engine, 0, s, &err);
	} else { /* what is cached stays */
		sv->v.s = *s;
		sv->v.triple_fault = false;
		mmu_context_changed(&sv->v);
		sv->hflags_stale = true;
	}
	sv->exc_count = 0;
	if (noise)
		noise_start(true);
	while ((res.exit = engine_soft.run(rig.engine, 0)) == EXIT_KICKED)
		disturb();
	if (noise)
		noise_start(false);
	engine_soft.get_state(rig.engine, 0, s);
	if (sv->exc_count)
		res = (struct rig_result){.exit = res.exit, .vector = sv->exc_log[0].vector, .error = sv->exc_log[0].error, .rip = sv->exc_log[0].rip,
					  .cr2 = sv->exc_log[0].cr2};
	return res;
}

static bool one_run(unsigned nr)
{
	static struct regs start;
	static struct cpu_state s;
	bool flush = true, noise = false, bad;
	struct rig_result res;

	if (!nr || below(2))
		random_start(&start);
	if (nr && below(2))
		flush = remap();
	else if (nr)
		flush = !below(4);
	start.rip = FLOW_CODE + flow.label_at[flow.entry] + (below(2) ? FLOW_ALIAS : 0);
	rig.sv->cache->all_hot = below(2);
	noise = nr && below(2);
	native = start;
	native_run(0);
	res = run_engine(&s, &start, flush, noise);
	runs++;
	faults += native_out.vector != EXC_GP;
	bad = native_differs(&s, &res);
	bad |= memory_differs();
	if (!bad)
		return true;
	printf("in run %u from %#lx, %s%s%s, ended natively with vector %u error %x cr2 %lx at %#lx\n", nr, (unsigned long)start.rip,
	       rig.sv->cache->all_hot ? "regions" : "blocks", noise ? ", with noise" : "", flush ? ", flushed" : "", native_out.vector, native_out.error,
	       (unsigned long)native_out.cr2, (unsigned long)native.rip);
	return false;
}

/* The program of flow, from its sources: several runs. */
static bool run_case(void)
{
	static uint8_t code[FLOW_CODE_PAGES * PAGE_SIZE];
	struct code_cache *c = rig.sv->cache;
	unsigned n = 1 + below(MAX_RUNS);

	if (!flow_assemble(&flow, code))
		return true;
	memset(c->sites, 0, sizeof(c->sites));
	memset(c->hot, 0, sizeof(c->hot));
	for (unsigned p = 0; p < VERSIONS * FLOW_CODE_PAGES; p++) {
		if (p == FLOW_CODE_PAGES)
			flow_mutate(&flow, code);
		set_page(PAGE_CODE + p, code + p % FLOW_CODE_PAGES * PAGE_SIZE);
		cache_invalidate_page(c, page_gpa[PAGE_CODE + p]);
	}
	for (unsigned p = PAGE_DATA; p < PAGES; p++)
		set_page(p, initial + (p - PAGE_DATA) * PAGE_SIZE);
	for (unsigned view = 0; view < VIEWS; view++)
		for (unsigned p = 0; p < FLOW_CODE_PAGES; p++)
			if (version[view][p])
				map_code(view, p, 0);
	for (unsigned i = 0; i < n; i++)
		if (!one_run(i))
			return false;
	return true;
}

static void seed_case(unsigned long n)
{
	rng_state = case_seed * UINT64_C(0x100000001b3) + n;
	rnd();
}

static void print_program(void)
{
	for (unsigned k = 0; k < flow.nitems; k++) {
		const struct flow_item *i = &flow.items[k];
		const uint8_t *p = native_page[PAGE_CODE] + i->at;

		if (!i->len || (flow.dropped[i->unit] && !i->keep))
			continue;
		printf("  %lx: ", (unsigned long)(FLOW_CODE + i->at));
		for (unsigned b = 0; b < i->len; b++) /* it may lie over a page's end: pages follow each other here */
			printf("%02x ", p[b]);
		printf("\n");
	}
}

/* Leave out what is not needed for a difference. */
static void minimise(void)
{
	uint64_t state = rng_state;
	int out;
	bool again = false;

	fflush(stdout);
	out = dup(1);
	if (out < 0 || !freopen("/dev/null", "w", stdout))
		return;
	for (unsigned u = flow.nunits + 1; u-- > 0;) {
		bool bad = false;

		if (u < flow.nunits)
			flow.dropped[u + 1] = true;
		for (unsigned i = 0; i < 8 && !bad; i++) {
			rng_state = state;
			bad = !run_case();
		}
		again |= bad;
		if (u == flow.nunits && !bad) /* it takes the noise, or what ran before */
			break;
		if (!bad)
			flow.dropped[u + 1] = false;
	}
	fflush(stdout);
	dup2(out, 1);
	close(out);
	printf("%s\n", again ? "left out what is not needed:" : "it did not happen again:");
	for (unsigned i = 0; i < 50; i++) {
		rng_state = state;
		if (!run_case())
			break;
	}
	print_program();
}

static bool one_case(unsigned long n)
{
	uint64_t state;

	seed_case(n);
	flow_generate(&flow);
	state = rng_state;
	if (run_case())
		return true;
	printf("case %lu of seed %lu differs: flowfuzz %lu %lu %lu\n", n, (unsigned long)case_seed, n + 1, (unsigned long)case_seed, n);
	rng_state = state;
	minimise();
	printf("\n");
	fflush(stdout);
	return false;
}

int main(int argc, char **argv)
{
	unsigned long cases = argc > 1 ? strtoul(argv[1], NULL, 0) : 10000, first = argc > 3 ? strtoul(argv[3], NULL, 0) : 0, bad = 0, n;
	static struct cpu_state s;
	pthread_t dog;

	case_seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	if (pthread_create(&dog, NULL, watchdog, NULL))
		return 1;
	rig_init(&rig, 16 * MIB);
	map_all();
	rig_state(&rig, &s, 3); /* a first run: the engine's thread set-up */
	s.rip = FLOW_CODE;
	rig_run(&rig, &s);
	native_init(rig.sv, describe);
	noise_init();
	rng_state = case_seed;
	for (unsigned i = 0; i < sizeof(initial); i += 8)
		put_le64(initial + i, below(3) ? rnd() : rnd() >> below(60));
	for (n = first; n < cases && bad < 5; n++) {
		case_no = n;
		bad += !one_case(n);
		if (isatty(2) && n % 4096 == 0)
			fprintf(stderr, "\r%lu cases", n);
	}
	printf("%lu cases of seed %lu in %lu runs, %lu differ; %lu runs ended with a fault, %lu interruptions\n", n - first,
	       (unsigned long)case_seed, runs, bad, faults, noises);
	return bad != 0;
}
