/*
 * virtio-net against a hostile driver: the main thread fills the rings with rubbish, notifies, resets and starts the device anew, while
 * two workers move frames as those of a back end do. Meant for sanitizer builds: there must be no report, no hang, no assertion.
 *
 *   net_dev_fuzz SECONDS SEED
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/net/offload.h"
#include "base/timer.h"
#include "dev/virtio/net.h"
#include "net_fuzz.h"

#define ECAM 0xe0000000u
#define LOW 0xc0000000u
#define RAM_SIZE (4 * MIB)
#define RINGS 0x100000u
#define PAIRS 2
#define QUEUES (2 * PAIRS + 1)
#define DEVFN PCI_DEVFN(8, 0)
#define MAX_OP_NS INT64_C(2000000000)

/* The fake behind the net functions. */
struct net {
	struct net_client client;
	_Atomic uint64_t kicks;
};

bool net_start(struct net *n, const struct net_client *c, struct error *err)
{
	n->client = *c;
	return true;
}
void net_stop(struct net *n) {}
void net_kick(struct net *n, unsigned q)
{
	if (q >= PAIRS)
		abort();
	atomic_fetch_add(&n->kicks, 1);
}
void net_set_accepts(struct net *n, unsigned accepts) {}
void net_set_queues(struct net *n, unsigned pairs)
{
	if (!pairs || pairs > PAIRS)
		abort();
}
unsigned net_offloads(const struct net *n) { return NET_ALL; }
unsigned net_queues(const struct net *n) { return PAIRS; }
bool net_link_up(const struct net *n) { return true; }

static uint64_t value(struct rng *r)
{
	static const uint64_t odd[] = {0, 1, 2, 11, 12, 13, 26, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0xffffffff, UINT64_MAX, LOW, RINGS,
				       RAM_SIZE - 16};

	return below(r, 2) ? odd[below(r, ARRAY_LEN(odd))] : next(r) >> below(r, 40);
}

struct rig {
	struct rng rng;
	pthread_mutex_t lock;
	struct bus *bus;
	struct timer_queue timers;
	struct irq_sink sink;
	struct ram *ram;
	struct pci_host *pci;
	struct net net;
	struct virtio_net *dev;
	gpa_t bar;
	_Atomic bool stop;
	_Atomic uint64_t fetched, delivered, sum;
	uint64_t irqs;
};

static void set_gsi(void *ctx, unsigned gsi, bool level) { ((struct rig *)ctx)->irqs++; }
static bool msi(void *ctx, uint64_t addr, uint32_t data) { return false; }

/* What a driver sends goes nowhere; a worker of ours does what a back end's would, but at random. */
struct worker {
	struct rig *rig;
	unsigned pair;
	struct rng rng;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct rig *r = w->rig;
	const struct net_client *c = &r->net.client;
	struct net_fifo tx, rx;
	struct net_frame *f;

	if (!net_fifo_init(&tx, 768 * KIB) || !net_fifo_init(&rx, MIB))
		abort();
	while (!atomic_load(&r->stop)) {
		uint64_t sum = 0;

		net_fifo_clear(&tx);
		atomic_fetch_add(&r->fetched, c->fetch(c->ctx, w->pair, &tx));
		for (; (f = net_fifo_first(&tx)) != NULL; net_fifo_drop(&tx)) {
			if (!net_offload_valid(f, NET_ALL))
				abort();
			for (uint32_t i = 0; i < f->len; i += 64)
				sum += f->data[i];
		}
		atomic_fetch_add(&r->sum, sum);
		for (unsigned i = 0; i < 4 && (f = net_fifo_reserve(&rx, NET_FRAME_MAX)) != NULL; i++) {
			f->len = random_frame(&w->rng, f->data, &f->hdr);
			f->hdr.flags &= NET_HDR_NEEDS_CSUM | NET_HDR_DATA_VALID;
			if (!net_offload_valid(f, NET_ALL))
				f->hdr = (struct net_hdr){0};
			net_fifo_commit(&rx, f);
		}
		for (unsigned i = 0, before = rx.count; i < 3 && !net_fifo_empty(&rx); i++, before = rx.count) {
			c->deliver(c->ctx, w->pair, &rx);
			atomic_fetch_add(&r->delivered, before - rx.count);
		}
		if (!below(&w->rng, 4))
			net_fifo_drop(&rx);
		if (below(&w->rng, 2))
			c->arm(c->ctx, w->pair, below(&w->rng, 2));
		if (!below(&w->rng, 64))
			c->link(c->ctx, below(&w->rng, 2));
	}
	net_fifo_fini(&tx);
	net_fifo_fini(&rx);
	return NULL;
}

static void rig_init(struct rig *r, uint64_t seed)
{
	struct virtio_config cfg;
	struct virtio_net_config net;

	*r = (struct rig){.rng = {seed * UINT64_C(0x9e3779b97f4a7c15) | 1}};
	r->sink = (struct irq_sink){set_gsi, msi, r};
	pthread_mutex_init(&r->lock, NULL);
	timer_queue_init(&r->timers);
	r->bus = bus_new();
	r->ram = ram_new(RAM_SIZE, NULL);
	r->pci = pci_host_new(&(struct pci_host_config){.bus = r->bus, .ecam_base = ECAM, .ecam_buses = 1, .low = {LOW, MIB}, .msi = &r->sink,
							.intx = {{&r->sink, 16}, {&r->sink, 17}, {&r->sink, 18}, {&r->sink, 19}},
							.vendor = 0x1b36, .device = 8}, NULL);
	cfg = (struct virtio_config){r->pci, DEVFN, r->ram, &r->timers};
	net = (struct virtio_net_config){.net = &r->net, .lock = &r->lock, .mac = {2}, .mac_filter = seed & 1, .mtu = (uint16_t)(seed & 2 ? 1500 : 0)};
	r->dev = virtio_net_new(&cfg, &net, NULL);
	if (!r->dev)
		abort();
	pci_host_reset(r->pci);
	r->bar = bus_read(r->bus, BUS_MMIO, ECAM + (DEVFN << 12) + 0x10, 4) & ~0xfu;
	bus_write(r->bus, BUS_MMIO, ECAM + (DEVFN << 12) + 4, 2, 6);
}

static void rig_fini(struct rig *r)
{
	virtio_net_free(r->dev);
	pci_host_free(r->pci);
	if (r->timers.first)
		abort();
	ram_free(r->ram);
	bus_free(r->bus);
	pthread_mutex_destroy(&r->lock);
}

static void w(struct rig *r, gpa_t off, unsigned size, uint64_t v) { bus_write(r->bus, BUS_MMIO, r->bar + off, size, v); }
static void poke(struct rig *r, gpa_t at, uint64_t v, unsigned size) { ram_write(r->ram, at, &v, size); }
static gpa_t queue_base(unsigned q) { return RINGS + q * 0x10000; }

/* Mostly plausible, so that frames pass. */
static void random_desc(struct rig *r, gpa_t at)
{
	struct rng *g = &r->rng;
	uint64_t addr = below(g, 8) ? RINGS + below(g, 0x200000) : value(g), len = below(g, 8) ? below(g, 4096) : value(g);

	if (!below(g, 8)) { /* an indirect table */
		addr &= ~UINT64_C(15);
		len = 16 * below(g, 300);
	}
	poke(r, at, addr, 8);
	poke(r, at + 8, len, 4);
	poke(r, at + 12, below(g, 8) ? below(g, 4) : value(g), 2);
	poke(r, at + 14, below(g, 8) ? below(g, 16) : value(g), 2);
}

/* A chain that a driver would make: header and frame to send, or a buffer to receive. */
static void good_chain(struct rig *r, unsigned q)
{
	struct rng *g = &r->rng;
	unsigned i = (unsigned)below(g, 8) * 2;
	gpa_t base = queue_base(q), data = RINGS + 0x100000 + below(g, 0x100000);
	bool receive = !(q & 1) && q != QUEUES - 1;
	uint16_t idx;

	poke(r, base + 16 * i, data, 8);
	poke(r, base + 16 * i + 8, receive ? below(g, 70000) + 1 : 12, 4);
	poke(r, base + 16 * i + 12, receive ? 2 : 1, 2);
	poke(r, base + 16 * i + 14, i + 1, 2);
	if (!receive) {
		poke(r, data, below(g, 4) ? 0 : next(g), 8);
		poke(r, base + 16 * i + 16, data + 64, 8);
		poke(r, base + 16 * i + 24, below(g, 70000) + 1, 4);
		poke(r, base + 16 * i + 28, q == QUEUES - 1 ? 2 : 0, 2);
	}
	ram_read(r->ram, base + 0x1002, &idx, 2);
	poke(r, base + 0x1004 + 2 * (idx % 16), i, 2);
	poke(r, base + 0x1002, idx + 1u, 2);
}

static void random_ring(struct rig *r)
{
	struct rng *g = &r->rng;
	unsigned q = (unsigned)below(g, QUEUES);
	gpa_t base = queue_base(q);

	switch (below(g, 400)) {
	case 0: random_desc(r, base + 16 * below(g, 16)); break;
	case 1: random_desc(r, RINGS + 16 * below(g, 0x8000)); break;
	case 2: poke(r, base + 0x1000 + below(g, 0x40), value(g), 2); break;
	default: good_chain(r, q); break;
	}
}

/* Commands with arguments that are nearly right. */
static void random_command(struct rig *r)
{
	struct rng *g = &r->rng;
	gpa_t base = queue_base(QUEUES - 1), data = RINGS + 0x80000;
	uint16_t idx;

	poke(r, data, below(g, 7) | below(g, 7) << 8, 2);
	poke(r, data + 2, below(g, 2) ? below(g, 100) : value(g), 8);
	poke(r, data + 10, below(g, 2) ? below(g, 100) : value(g), 8);
	poke(r, base, data, 8);
	poke(r, base + 8, below(g, 1000) + 1, 4);
	poke(r, base + 12, 1, 2);
	poke(r, base + 14, 1, 2);
	poke(r, base + 16, data + 0x1000, 8);
	poke(r, base + 24, 1, 4);
	poke(r, base + 28, 2, 2);
	ram_read(r->ram, base + 0x1002, &idx, 2);
	poke(r, base + 0x1004 + 2 * (idx % 16), 0, 2);
	poke(r, base + 0x1002, idx + 1u, 2);
	w(r, 0x3000 + 4 * (QUEUES - 1), 2, 0);
}

static void start_device(struct rig *r)
{
	struct rng *g = &r->rng;
	uint64_t features;

	w(r, 20, 1, 0);
	w(r, 20, 1, 3);
	w(r, 0, 4, 0);
	features = bus_read(r->bus, BUS_MMIO, r->bar + 4, 4);
	w(r, 0, 4, 1);
	features |= bus_read(r->bus, BUS_MMIO, r->bar + 4, 4) << 32;
	features &= below(g, 2) ? UINT64_MAX : next(g) | BIT(32) | BIT(22) | BIT(17);
	w(r, 8, 4, 0);
	w(r, 12, 4, (uint32_t)features);
	w(r, 8, 4, 1);
	w(r, 12, 4, features >> 32);
	w(r, 20, 1, 11);
	for (unsigned q = 0; q < QUEUES; q++) {
		gpa_t base = below(g, 32) ? queue_base(q) : value(g);

		w(r, 22, 2, q);
		w(r, 24, 2, 16);
		w(r, 32, 4, base);
		w(r, 36, 4, base >> 32);
		w(r, 40, 4, base + 0x1000);
		w(r, 44, 4, base >> 32);
		w(r, 48, 4, base + 0x2000);
		w(r, 52, 4, base >> 32);
		poke(r, queue_base(q) + 0x1000, 0, 4);
		w(r, 28, 2, 1);
	}
	w(r, 20, 1, 15);
}

static void step(struct rig *r)
{
	struct rng *g = &r->rng;

	switch (below(g, 256)) {
	case 0 ... 2: start_device(r); break;
	case 3: bus_write(r->bus, BUS_MMIO, ECAM + (DEVFN << 12) + 4, 2, below(g, 4) ? 6 : below(g, 8)); break;
	case 4: w(r, below(g, 0x40), 1u << below(g, 3), value(g)); break;
	case 5: bus_read(r->bus, BUS_MMIO, r->bar + 0x2000 + below(g, 32), 1u << below(g, 3)); break;
	case 6 ... 12: random_command(r); break;
	case 13 ... 60: w(r, 0x3000 + 4 * below(g, QUEUES), 2, 0); break;
	default: random_ring(r); break;
	}
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 5, begin = clock_now(), before, longest = 0;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, total = 0, fetched = 0, delivered = 0;

	for (; clock_now() - begin < seconds * 1000000000; seed++) {
		struct worker workers[PAIRS];
		pthread_t threads[PAIRS];
		struct rig r;

		rig_init(&r, seed);
		for (unsigned i = 0; i < PAIRS; i++) {
			workers[i] = (struct worker){&r, i, {(seed + i) * UINT64_C(0x9e3779b97f4a7c15) | 1}};
			if (pthread_create(&threads[i], NULL, work, &workers[i]))
				abort();
		}
		for (unsigned i = 0; i < 50000 && clock_now() - begin < seconds * 1000000000; i++, total++) {
			pthread_mutex_lock(&r.lock);
			before = clock_now();
			step(&r);
			longest = (int64_t)max_u64((uint64_t)longest, (uint64_t)(clock_now() - before));
			timer_queue_run(&r.timers, clock_now());
			pthread_mutex_unlock(&r.lock);
		}
		atomic_store(&r.stop, true);
		for (unsigned i = 0; i < PAIRS; i++)
			pthread_join(threads[i], NULL);
		fetched += r.fetched;
		delivered += r.delivered;
		rig_fini(&r);
		if (longest > MAX_OP_NS) {
			fprintf(stderr, "net_dev_fuzz: seed %" PRIu64 ": an operation took %" PRId64 " ms\n", seed, longest / 1000000);
			return 1;
		}
	}
	printf("net_dev_fuzz: %" PRIu64 " operations, next seed %" PRIu64 "; %" PRIu64 " chains sent, %" PRIu64 " frames received\n", total, seed,
	       fetched, delivered);
	return fetched && delivered ? 0 : 1; /* a run that reached nothing proves nothing */
}
