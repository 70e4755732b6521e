/*
 * virtio-blk with hostile rings: descriptors of any shape, rewritten by a second thread while the device works, resets at any
 * moment, with the queue's own threads, limits and host errors (a file that may not grow) behind it. Meant for sanitizer builds.
 *
 *   blk_fuzz SECONDS SEED
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/log.h"
#include "base/timer.h"
#include "dev/virtio/blk.h"

#define ECAM 0xe0000000u
#define BAR 0xc0000000u
#define RAM_SIZE (4 * MIB)
#define RINGS 0x100000u
#define QUEUES 2
#define QSIZE 16
#define DEVFN PCI_DEVFN(16, 0)
#define DISK (256 * KIB)
#define MAX_OP_NS INT64_C(3000000000)

struct rig {
	uint64_t rng, second;
	pthread_mutex_t lock;
	struct bus *bus;
	struct timer_queue timers;
	struct irq_sink sink;
	struct ram *ram;
	struct pci_host *pci;
	struct block *block;
	struct virtio_blk *blk;
	char path[64];
	uint64_t irqs;
	atomic_bool stop;
};

void log_msg(enum log_level level, const char *fmt, ...) {} /* thousands of host errors are meant */

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s * UINT64_C(0x2545f4914f6cdd1d) >> 11;
}

static uint64_t below(uint64_t *s, uint64_t n) { return next(s) % n; }

static uint64_t odd(uint64_t *s)
{
	static const uint64_t values[] = {0, 1, 15, 16, 17, 511, 512, 513, 0xffff, 0x7fffffff, 0xffffffff, UINT64_MAX, UINT64_MAX / 512,
					  DISK / 512 - 1, DISK / 512, RAM_SIZE, RAM_SIZE - 16, BAR, ECAM};

	return below(s, 3) ? values[below(s, ARRAY_LEN(values))] : next(s) << below(s, 40);
}

static void set_gsi(void *ctx, unsigned gsi, bool level) { ((struct rig *)ctx)->irqs++; }
static bool msi(void *ctx, uint64_t addr, uint32_t data) { return false; }

static void poke(struct rig *r, gpa_t at, uint64_t v, unsigned size)
{
	uint8_t *p = ram_ptr(r->ram, at, size);

	/* Not ram_write: the second thread is a vCPU. */
	if (p)
		memcpy(p, &v, size);
}

static gpa_t ring(unsigned q) { return RINGS + q * 0x10000; }

static void random_header(struct rig *r, uint64_t *s)
{
	static const uint32_t types[] = {0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 2};
	gpa_t at = RINGS + 0x40000 + below(s, 64) * 16;

	poke(r, at, below(s, 16) ? types[below(s, ARRAY_LEN(types))] : odd(s), 4);
	poke(r, at + 8, below(s, 8) ? below(s, DISK / 512) : odd(s), 8);
}

/* Ranges for discard and write zeroes, where data may lie. */
static void random_range(struct rig *r, uint64_t *s)
{
	gpa_t at = RINGS + 0x41000 + below(s, 64) * 16;

	poke(r, at, below(s, 4) ? below(s, DISK / 512) : odd(s), 8);
	poke(r, at + 8, below(s, 4) ? below(s, 64) : odd(s), 4);
	poke(r, at + 12, below(s, 4) ? below(s, 2) : odd(s), 4);
}

static void desc(struct rig *r, gpa_t at, uint64_t addr, uint64_t len, uint64_t flags, uint64_t follow)
{
	poke(r, at, addr, 8);
	poke(r, at + 8, len, 4);
	poke(r, at + 12, flags, 2);
	poke(r, at + 14, follow, 2);
}

/* A chain as Linux makes it, now and then with something wrong; in place or in an indirect table. */
static void random_chain(struct rig *r, uint64_t *s)
{
	unsigned q = (unsigned)below(s, QUEUES), head = (unsigned)below(s, QSIZE), n = (unsigned)below(s, 4);
	bool indirect = below(s, 3) == 0, in = below(s, 2);
	gpa_t table = indirect ? RINGS + 0x50000 + below(s, 16) * 0x1000 : ring(q);
	unsigned at = indirect ? 0 : head;
	uint16_t idx;

	if (indirect)
		desc(r, ring(q) + 16 * head, table, below(s, 16) ? 16 * (n + 2) : odd(s), 4 | (below(s, 32) == 0), 0);
	desc(r, table + 16 * at, RINGS + 0x40000 + below(s, 64) * 16, below(s, 32) ? 16 : odd(s), 1, (at + 1) % QSIZE);
	for (unsigned i = 0; i < n; i++) {
		uint64_t len = below(s, 16) ? 512 * (1 + below(s, 16)) : below(s, 2) ? 16 * below(s, 20) : odd(s);

		at = (at + 1) % QSIZE;
		desc(r, table + 16 * at, below(s, 16) ? RINGS + 0x41000 + below(s, 0x80000) : odd(s), len, 1 | (in ? 2 : 0),
		     below(s, 64) ? (at + 1) % QSIZE : odd(s));
	}
	at = (at + 1) % QSIZE;
	desc(r, table + 16 * at, RINGS + 0x42000 + below(s, 4096), below(s, 32) ? 1 : odd(s), below(s, 64) ? 2 : below(s, 8), 0);
	ram_read(r->ram, ring(q) + 0x1002, &idx, 2);
	poke(r, ring(q) + 0x1004 + 2 * (idx % QSIZE), below(s, 64) ? head : odd(s), 2);
	poke(r, ring(q) + 0x1002, idx + 1 + (below(s, 200) ? 0 : below(s, 20)), 2);
}

/* The second vCPU: rewrites what the first has set up. */
static void *scribble(void *arg)
{
	struct rig *r = arg;
	uint64_t s = r->second;

	while (!atomic_load(&r->stop)) {
		for (unsigned i = 0; i < 64; i++) {
			random_header(r, &s);
			random_range(r, &s);
			if (below(&s, 8) == 0)
				poke(r, ring((unsigned)below(&s, QUEUES)) + 16 * below(&s, QSIZE) + 8, odd(&s), 8);
			if (below(&s, 64) == 0)
				random_chain(r, &s);
		}
		usleep(20);
	}
	return NULL;
}

static void w(struct rig *r, gpa_t at, unsigned size, uint64_t v) { bus_write(r->bus, BUS_MMIO, at, size, v); }

static void start(struct rig *r)
{
	w(r, BAR + 20, 1, 0);
	w(r, BAR + 20, 1, 3);
	w(r, BAR + 8, 4, 1);
	w(r, BAR + 12, 4, 1);
	w(r, BAR + 8, 4, 0);
	w(r, BAR + 12, 4, below(&r->rng, 4) << 28 | below(&r->rng, 2) << 9);
	w(r, BAR + 20, 1, 11);
	for (unsigned q = 0; q < QUEUES; q++) {
		w(r, BAR + 22, 2, q);
		w(r, BAR + 24, 2, QSIZE);
		w(r, BAR + 32, 8, ring(q));
		w(r, BAR + 40, 8, ring(q) + 0x1000);
		w(r, BAR + 48, 8, ring(q) + 0x2000);
		poke(r, ring(q) + 0x1000, 0, 4);
		w(r, BAR + 28, 2, 1);
	}
	w(r, BAR + 20, 1, 15);
}

static void limit_file(uint64_t max)
{
	struct rlimit l;

	getrlimit(RLIMIT_FSIZE, &l);
	l.rlim_cur = max;
	setrlimit(RLIMIT_FSIZE, &l);
}

static void rig_init(struct rig *r, uint64_t seed)
{
	struct virtio_blk_config c = {.lock = &r->lock, .nqueues = QUEUES, .serial = "fuzz"};
	struct block_options o = {.path = r->path, .format = "raw"};
	int fd;

	*r = (struct rig){.rng = seed * UINT64_C(0x9e3779b97f4a7c15) | 1, .lock = PTHREAD_MUTEX_INITIALIZER};
	r->sink = (struct irq_sink){set_gsi, msi, r};
	strcpy(r->path, "/var/tmp/doppel-fuzz-XXXXXX");
	fd = mkstemp(r->path);
	if (fd < 0 || ftruncate(fd, DISK))
		abort();
	close(fd);
	o.readonly = below(&r->rng, 8) == 0;
	o.snapshot = below(&r->rng, 4) == 0;
	o.cache = below(&r->rng, 3);
	timer_queue_init(&r->timers);
	r->bus = bus_new();
	r->ram = ram_new(RAM_SIZE, NULL);
	r->pci = pci_host_new(&(struct pci_host_config){
		.bus = r->bus, .ecam_base = ECAM, .ecam_buses = 1, .low = {BAR, 0x100000},
		.intx = {{&r->sink, 16}, {&r->sink, 17}, {&r->sink, 18}, {&r->sink, 19}}, .msi = &r->sink, .vendor = 0x1b36, .device = 8},
		NULL);
	r->block = block_open(&o, NULL);
	c.virtio = (struct virtio_config){r->pci, DEVFN, r->ram, &r->timers};
	c.queue = (struct block_queue_config){.block = r->block, .no_inline = below(&r->rng, 2), .iops = below(&r->rng, 3) ? 0 : 2000,
					      .engine = below(&r->rng, 2), .on_error = below(&r->rng, 3)};
	if (!r->bus || !r->ram || !r->pci || !r->block)
		abort();
	r->blk = virtio_blk_new(&c, NULL);
	if (!r->blk)
		abort();
	pci_host_reset(r->pci);
	w(r, ECAM + (DEVFN << 12) + 0x10, 4, BAR);
	w(r, ECAM + (DEVFN << 12) + 4, 2, 6);
}

static void rig_fini(struct rig *r)
{
	virtio_blk_free(r->blk);
	pci_host_free(r->pci);
	if (r->block->size != DISK)
		abort();
	block_close(r->block);
	ram_free(r->ram);
	bus_free(r->bus);
	unlink(r->path);
}

static void step(struct rig *r)
{
	uint64_t *s = &r->rng;

	switch (below(s, 64)) {
	case 0: start(r); break;
	case 1: timer_queue_run(&r->timers, clock_now()); break;
	case 2: w(r, BAR + 0x2000 + 32, 1, below(s, 2)); break;
	case 3: limit_file(below(s, 2) ? DISK / 2 : RLIM_INFINITY); break;
	case 4: block_queue_retry(virtio_blk_queue(r->blk)); break;
	case 5 ... 20: w(r, BAR + 0x3000 + 4 * below(s, QUEUES), 2, 0); break;
	case 21 ... 28: random_header(r, s); break;
	case 29 ... 32: random_range(r, s); break;
	case 33:
		pthread_mutex_unlock(&r->lock);
		usleep((useconds_t)below(s, 100));
		pthread_mutex_lock(&r->lock);
		break;
	default: random_chain(r, s); break;
	}
}

/* What a run did reach; false: a hang. */
struct totals {
	uint64_t steps, requests[BLOCK_OPS], irqs;
};

static bool one(uint64_t seed, struct totals *t)
{
	struct block_queue_status st;
	struct rig r;
	pthread_t second;
	bool threaded, ok = true;

	rig_init(&r, seed);
	r.second = r.rng ^ 0x5555555555555555;
	threaded = seed & 1 && pthread_create(&second, NULL, scribble, &r) == 0;
	pthread_mutex_lock(&r.lock);
	start(&r);
	for (unsigned i = 0; i < 4000 && ok; i++, t->steps++) {
		int64_t before = clock_now();

		step(&r);
		ok = clock_now() - before < MAX_OP_NS;
		if (!ok)
			fprintf(stderr, "blk_fuzz: seed %" PRIu64 " step %u took %" PRId64 " ms\n", seed, i, (clock_now() - before) / 1000000);
	}
	limit_file(RLIM_INFINITY);
	block_queue_status(virtio_blk_queue(r.blk), &st);
	pthread_mutex_unlock(&r.lock);
	atomic_store(&r.stop, true);
	if (threaded)
		pthread_join(second, NULL);
	for (unsigned i = 0; i < BLOCK_OPS; i++)
		t->requests[i] += st.requests[i];
	t->irqs += r.irqs;
	rig_fini(&r);
	return ok;
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 5, begin = clock_now();
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	struct totals t = {0};

	signal(SIGXFSZ, SIG_IGN);
	for (; clock_now() - begin < seconds * 1000000000; seed++)
		if (!one(seed, &t))
			return 1;
	printf("blk_fuzz: %" PRIu64 " operations, next seed %" PRIu64 "; %" PRIu64 " reads, %" PRIu64 " writes, %" PRIu64 " flushes, %" PRIu64
	       " discards, %" PRIu64 " zeroes, %" PRIu64 " line changes\n", t.steps, seed, t.requests[0], t.requests[1], t.requests[2],
	       t.requests[3], t.requests[4], t.irqs);
	for (unsigned i = 0; i < BLOCK_OPS; i++)
		if (!t.requests[i])
			return 1; /* a run that reached nothing proves nothing */
	return 0;
}
