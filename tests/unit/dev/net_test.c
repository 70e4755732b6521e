/* virtio-net as a driver and a back end see it; the back end is a fake, whose worker is the test itself. */
#include "fixture.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "dev/virtio/net.h"

#define ECAM 0xe0000000u
#define LOW 0xc0000000u
#define RAM_SIZE (32 * MIB)
#define DEVFN PCI_DEVFN(8, 0)
#define SIZE 256u
#define PAIRS 2

enum {
	C_DFSEL = 0, C_DF = 4, C_GFSEL = 8, C_GF = 12, C_NQ = 18, C_STATUS = 20, C_GENERATION = 21, C_QSEL = 22, C_QSIZE = 24, C_QENABLE = 28,
	C_QDESC = 32, C_QDRIVER = 40, C_QDEVICE = 48, NEEDS_RESET = 64, ISR = 0x1000, DEVICE = 0x2000, NOTIFY = 0x3000,
	NEXT = 1, WRITE = 2,
};

/* Feature bits (virtio 1.2, 5.1.3) */
enum {
	CSUM = 0, GUEST_CSUM = 1, GUEST_OFFLOADS = 2, MTU = 3, MAC = 5, GUEST_TSO4 = 7, HOST_TSO4 = 11, HOST_TSO6 = 12, MRG = 15, STATUS = 16,
	CTRL_VQ = 17, CTRL_RX = 18, CTRL_VLAN = 19, RX_EXTRA = 20, MQ = 22, MAC_ADDR = 23, EVENT_IDX = 29, VERSION_1 = 32, HOST_USO = 56,
};
#define BASE (BIT(VERSION_1) | BIT(MAC) | BIT(STATUS))
#define CTRL (BIT(CTRL_VQ) | BIT(CTRL_RX) | BIT(RX_EXTRA) | BIT(CTRL_VLAN) | BIT(GUEST_OFFLOADS))

static const uint8_t own_mac[6] = {2, 0, 0, 0x11, 0x22, 0x33};

/* The fake behind the net functions. */
struct net {
	struct net_client client;
	unsigned queues, offloads, accepts, active, kicks[NET_QUEUES_MAX];
	bool link, started;
};

bool net_start(struct net *n, const struct net_client *c, struct error *err)
{
	n->client = *c;
	n->started = true;
	return true;
}
void net_stop(struct net *n) { n->started = false; }
void net_kick(struct net *n, unsigned q) { n->kicks[q]++; }
void net_set_accepts(struct net *n, unsigned accepts) { n->accepts = accepts; }
void net_set_queues(struct net *n, unsigned pairs) { n->active = pairs; }
unsigned net_offloads(const struct net *n) { return n->offloads; }
unsigned net_queues(const struct net *n) { return n->queues; }
bool net_link_up(const struct net *n) { return n->link; }

struct rig {
	struct fixture f;
	struct ram *ram;
	struct pci_host *host;
	struct virtio_net *dev;
	struct net net;
	pthread_mutex_t lock;
	struct net_fifo tx, rx;
	gpa_t bar;
};

static uint64_t get(struct rig *r, unsigned off, unsigned size) { return bus_read(r->f.bus, BUS_MMIO, r->bar + off, size); }
static void set(struct rig *r, unsigned off, unsigned size, uint64_t v) { bus_write(r->f.bus, BUS_MMIO, r->bar + off, size, v); }

static void make(struct rig *r, unsigned queues, bool mac_filter, uint16_t mtu)
{
	struct virtio_config cfg = {.host = r->host, .devfn = DEVFN, .ram = r->ram, .timers = &r->f.timers};
	struct virtio_net_config net = {.net = &r->net, .lock = &r->lock, .mac_filter = mac_filter, .mtu = mtu};
	gpa_t at = ECAM + ((gpa_t)DEVFN << 12);

	virtio_net_free(r->dev);
	memcpy(net.mac, own_mac, 6);
	r->net = (struct net){.queues = queues, .offloads = NET_ALL, .link = true};
	r->dev = virtio_net_new(&cfg, &net, NULL);
	assert_non_null(r->dev);
	assert_true(r->net.started);
	pci_host_reset(r->host);
	r->bar = bus_read(r->f.bus, BUS_MMIO, at + 0x10, 4) & ~0xfu;
	bus_write(r->f.bus, BUS_MMIO, at + 4, 2, 6);
}

static int setup(void **state)
{
	static struct rig r;
	struct pci_host_config host;

	memset(&r, 0, sizeof(r));
	fixture_init(&r.f);
	r.ram = ram_new(RAM_SIZE, NULL);
	pthread_mutex_init(&r.lock, NULL);
	host = (struct pci_host_config){.bus = r.f.bus, .ecam_base = ECAM, .ecam_buses = 1, .low = {LOW, 0x10000000}, .msi = &r.f.sink,
					.vendor = 0x1b36, .device = 8};
	for (unsigned i = 0; i < 4; i++)
		host.intx[i] = fixture_line(&r.f, 16 + i);
	r.host = pci_host_new(&host, NULL);
	assert_true(net_fifo_init(&r.tx, MIB) && net_fifo_init(&r.rx, MIB));
	make(&r, 1, false, 0);
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	virtio_net_free(r->dev);
	assert_false(r->net.started);
	net_fifo_fini(&r->tx);
	net_fifo_fini(&r->rx);
	pci_host_free(r->host);
	ram_free(r->ram);
	fixture_fini(&r->f);
	return 0;
}

/* ---- the driver ---- */

static gpa_t ring(unsigned q) { return 0x10000 + q * 0x4000; }
static void poke(struct rig *r, gpa_t at, uint64_t v, unsigned size) { assert_true(ram_write(r->ram, at, &v, size)); }

static uint32_t peek(struct rig *r, gpa_t at, unsigned size)
{
	uint32_t v = 0;

	assert_true(ram_read(r->ram, at, &v, size));
	return v;
}

static uint64_t features(struct rig *r)
{
	uint64_t low;

	set(r, C_DFSEL, 4, 0);
	low = get(r, C_DF, 4);
	set(r, C_DFSEL, 4, 1);
	return low | get(r, C_DF, 4) << 32;
}

static void start(struct rig *r, uint64_t f)
{
	set(r, C_STATUS, 1, 0);
	set(r, C_STATUS, 1, 3);
	for (unsigned i = 0; i < 2; i++) {
		set(r, C_GFSEL, 4, i);
		set(r, C_GF, 4, (uint32_t)(f >> 32 * i));
	}
	set(r, C_STATUS, 1, 11);
	assert_int_equal(get(r, C_STATUS, 1), 11);
	for (unsigned q = 0; q < get(r, C_NQ, 2); q++) {
		poke(r, ring(q) + 0x1000, 0, 4);
		poke(r, ring(q) + 0x2000, 0, 4);
		set(r, C_QSEL, 2, q);
		set(r, C_QDESC, 4, ring(q));
		set(r, C_QDRIVER, 4, ring(q) + 0x1000);
		set(r, C_QDEVICE, 4, ring(q) + 0x2000);
		set(r, C_QENABLE, 2, 1);
	}
	set(r, C_STATUS, 1, 15);
	assert_int_equal(get(r, C_STATUS, 1), 15);
}

static void desc(struct rig *r, unsigned q, unsigned i, uint64_t addr, uint32_t len, unsigned flags, unsigned next)
{
	poke(r, ring(q) + 16 * i, addr, 8);
	poke(r, ring(q) + 16 * i + 8, len, 4);
	poke(r, ring(q) + 16 * i + 12, flags, 2);
	poke(r, ring(q) + 16 * i + 14, next, 2);
}

static void offer(struct rig *r, unsigned q, unsigned head)
{
	unsigned idx = peek(r, ring(q) + 0x1002, 2);

	poke(r, ring(q) + 0x1004 + 2 * (idx % SIZE), head, 2);
	poke(r, ring(q) + 0x1002, idx + 1, 2);
}

static unsigned used(struct rig *r, unsigned q) { return peek(r, ring(q) + 0x2002, 2); }
static uint32_t used_id(struct rig *r, unsigned q, unsigned i) { return peek(r, ring(q) + 0x2004 + 8 * (i % SIZE), 4); }
static uint32_t used_len(struct rig *r, unsigned q, unsigned i) { return peek(r, ring(q) + 0x2008 + 8 * (i % SIZE), 4); }
static void notify(struct rig *r, unsigned q) { set(r, NOTIFY + 4 * q, 2, q); }

static uint8_t bytes[70000];

/* One chain of two buffers: header, and a frame of len bytes of `bytes`. */
static void transmit(struct rig *r, unsigned q, const struct net_hdr *hdr, uint32_t len)
{
	uint8_t h[12] = {0};
	unsigned i = peek(r, ring(q) + 0x1002, 2) % 64 * 2;

	if (hdr)
		memcpy(h, hdr, sizeof(*hdr));
	ram_write(r->ram, 0x100000 + 16 * i, h, 12);
	ram_write(r->ram, 0x200000, bytes, len);
	desc(r, q, i, 0x100000 + 16 * i, 12, NEXT, i + 1);
	desc(r, q, i + 1, 0x200000, len, 0, 0);
	offer(r, q, i);
}

static unsigned fetch(struct rig *r, unsigned pair)
{
	net_fifo_clear(&r->tx);
	return r->net.client.fetch(r->net.client.ctx, pair, &r->tx);
}

static void from_peer(struct rig *r, const struct net_hdr *hdr, const uint8_t *mac, uint32_t len)
{
	struct net_frame *f = net_fifo_reserve(&r->rx, len);

	assert_non_null(f);
	f->len = len;
	f->hdr = hdr ? *hdr : (struct net_hdr){0};
	memcpy(f->data, bytes, len);
	if (mac)
		memcpy(f->data, mac, 6);
	net_fifo_commit(&r->rx, f);
}

static bool deliver(struct rig *r, unsigned pair) { return r->net.client.deliver(r->net.client.ctx, pair, &r->rx); }

/* n receive buffers of len bytes each, from descriptor 0 on, 64 KiB apart from 0x400000. */
static void give_buffers(struct rig *r, unsigned q, unsigned n, uint32_t len)
{
	for (unsigned i = 0; i < n; i++) {
		desc(r, q, i, 0x400000 + 0x10000 * i, len, WRITE, 0);
		offer(r, q, i);
	}
}

/* ---- tests ---- */

static void test_identity(void **state)
{
	struct rig *r = *state;
	uint64_t f = features(r);

	assert_int_equal(bus_read(r->f.bus, BUS_MMIO, ECAM + ((gpa_t)DEVFN << 12), 4), 0x10411af4);
	assert_int_equal(get(r, C_NQ, 2), 3);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(get(r, DEVICE + i, 1), own_mac[i]);
	assert_int_equal(get(r, DEVICE + 6, 2), 1);
	assert_int_equal(get(r, DEVICE + 8, 2), 1);
	assert_int_equal(f & (BASE | CTRL | BIT(MRG) | BIT(HOST_TSO4) | BIT(CSUM) | BIT(GUEST_CSUM) | BIT(HOST_USO)),
			 BASE | CTRL | BIT(MRG) | BIT(HOST_TSO4) | BIT(CSUM) | BIT(GUEST_CSUM) | BIT(HOST_USO));
	assert_false(f & (BIT(MQ) | BIT(MTU)));
	assert_true(f & BIT(MAC_ADDR));
	make(r, PAIRS, true, 9000);
	f = features(r);
	assert_true(f & BIT(MQ) && f & BIT(MTU) && !(f & BIT(MAC_ADDR)));
	assert_int_equal(get(r, C_NQ, 2), 2 * PAIRS + 1);
	assert_int_equal(get(r, DEVICE + 8, 2), PAIRS);
	assert_int_equal(get(r, DEVICE + 10, 2), 9000);
}

static void test_transmit(void **state)
{
	struct rig *r = *state;
	struct net_hdr tso = {.flags = 1, .gso_type = NET_GSO_TCPV4, .hdr_len = 54, .gso_size = 1460, .csum_start = 34, .csum_offset = 16};
	struct net_frame *f;

	assert_int_equal(fetch(r, 0), 0); /* no driver yet */
	start(r, BASE | BIT(CSUM) | BIT(HOST_TSO4));
	assert_true(r->net.kicks[0] > 0);
	assert_int_equal(fetch(r, 0), 0);
	transmit(r, 1, NULL, 60);
	transmit(r, 1, &tso, 40000);
	r->net.kicks[0] = 0;
	notify(r, 1);
	assert_int_equal(r->net.kicks[0], 1);
	assert_int_equal(used(r, 1), 0); /* the worker does it */
	assert_int_equal(fetch(r, 0), 2);
	assert_int_equal(used(r, 1), 2);
	assert_int_equal(used_id(r, 1, 1), 2);
	assert_int_equal(used_len(r, 1, 0), 0);
	f = net_fifo_first(&r->tx);
	assert_int_equal(f->len, 60);
	assert_memory_equal(f->data, bytes, 60);
	net_fifo_drop(&r->tx);
	f = net_fifo_first(&r->tx);
	assert_int_equal(f->len, 40000);
	assert_memory_equal(f->data, bytes, 40000);
	assert_memory_equal(&f->hdr, &tso, sizeof(tso));
	assert_false(r->f.level[16]);
	assert_int_equal(fetch(r, 0), 0);
	assert_true(r->f.level[16]); /* an interrupt for the two, as no more came */
	assert_int_equal(get(r, ISR, 1), 1);
	assert_int_equal(fetch(r, 0), 0);
	assert_false(r->f.level[16]);
	for (unsigned i = 0; i < 40; i++) /* with very many it does not wait */
		transmit(r, 1, NULL, 60);
	assert_int_equal(fetch(r, 0), 40);
	assert_true(r->f.level[16]);
}

/* What a driver may not send is dropped, and its buffers come back. */
static void test_transmit_nonsense(void **state)
{
	struct rig *r = *state;
	static const struct net_hdr bad[] = {
		{.flags = 1, .gso_type = NET_GSO_TCPV6, .gso_size = 1000}, /* not agreed on */
		{.flags = 1, .gso_type = NET_GSO_UDP_L4, .gso_size = 1000},
		{.flags = 0, .gso_type = NET_GSO_TCPV4, .gso_size = 1000},
		{.flags = 1, .gso_type = 77, .gso_size = 1000},
		{.flags = 1, .csum_start = 999, .csum_offset = 0},
		{.flags = 1, .csum_start = 65535, .csum_offset = 65535},
	};
	unsigned n = 0;

	start(r, BASE | BIT(CSUM) | BIT(HOST_TSO4));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++, n++) {
		transmit(r, 1, &bad[i], 1000);
		assert_int_equal(fetch(r, 0), 1);
		assert_true(net_fifo_empty(&r->tx));
	}
	static const uint32_t lens[] = {13, NET_FRAME_MAX + 1, 0x100000};

	for (size_t i = 0; i < ARRAY_LEN(lens); i++, n++) {
		desc(r, 1, 0, 0x100000, 12, NEXT, 1);
		desc(r, 1, 1, 0x200000, lens[i], 0, 0);
		offer(r, 1, 0);
		assert_int_equal(fetch(r, 0), 1);
		assert_true(net_fifo_empty(&r->tx));
	}
	desc(r, 1, 0, 0x200000, 2000, WRITE, 0); /* nothing to read */
	offer(r, 1, 0);
	assert_int_equal(fetch(r, 0), 1);
	assert_int_equal(used(r, 1), ++n);
	assert_true(net_fifo_empty(&r->tx));
	assert_int_equal(get(r, C_STATUS, 1), 15);
	desc(r, 1, 0, RAM_SIZE - 10, 2000, 0, 0); /* out of RAM: broken */
	offer(r, 1, 0);
	assert_int_equal(fetch(r, 0), 0);
	assert_int_equal(get(r, C_STATUS, 1) & NEEDS_RESET, NEEDS_RESET);
	start(r, BASE);
	transmit(r, 1, NULL, 100);
	assert_int_equal(fetch(r, 0), 1);
	assert_int_equal(net_fifo_first(&r->tx)->len, 100);
}

/* 100 frames of 40 KB: in portions, so that the lock is not held for long, and none is lost. */
static void test_transmit_portions(void **state)
{
	struct rig *r = *state;
	unsigned n = 0, portions = 0;

	start(r, BASE);
	for (unsigned i = 0; i < 64; i++)
		transmit(r, 1, NULL, 40000);
	while (fetch(r, 0)) {
		for (struct net_frame *f; (f = net_fifo_first(&r->tx)) != NULL; n++, net_fifo_drop(&r->tx))
			assert_int_equal(f->len, 40000);
		portions++;
	}
	assert_int_equal(n, 64);
	assert_int_equal(used(r, 1), 64);
	assert_in_range(portions, 8, 13);
}

/* No notifications while the worker looks by itself. */
static void test_notifications(void **state)
{
	struct rig *r = *state;

	start(r, BASE | BIT(EVENT_IDX));
	transmit(r, 1, NULL, 100);
	assert_int_equal(fetch(r, 0), 1);
	assert_int_equal(peek(r, ring(1) + 0x2004 + 8 * SIZE, 2), 0); /* avail_event has not moved */
	transmit(r, 1, NULL, 100);
	assert_true(r->net.client.arm(r->net.client.ctx, 0, false)); /* there is something already */
	assert_int_equal(fetch(r, 0), 1);
	assert_false(r->net.client.arm(r->net.client.ctx, 0, false));
	assert_int_equal(peek(r, ring(1) + 0x2004 + 8 * SIZE, 2), 2);
	start(r, BASE);
	transmit(r, 1, NULL, 100);
	assert_int_equal(fetch(r, 0), 1);
	assert_int_equal(peek(r, ring(1) + 0x2000, 2), 1); /* VRING_USED_F_NO_NOTIFY */
	assert_false(r->net.client.arm(r->net.client.ctx, 0, false));
	assert_int_equal(peek(r, ring(1) + 0x2000, 2), 0);
}

static void test_mac_filter(void **state)
{
	struct rig *r = *state;

	make(r, 1, true, 0);
	start(r, BASE);
	memset(bytes + 6, 0x55, 6);
	transmit(r, 1, NULL, 100);
	assert_int_equal(fetch(r, 0), 1);
	assert_true(net_fifo_empty(&r->tx));
	memcpy(bytes + 6, own_mac, 6);
	transmit(r, 1, NULL, 100);
	assert_int_equal(fetch(r, 0), 1);
	assert_false(net_fifo_empty(&r->tx));
}

static void test_receive_mergeable(void **state)
{
	struct rig *r = *state;
	struct net_hdr tso = {.flags = 1, .gso_type = NET_GSO_TCPV4, .gso_size = 1460, .csum_start = 34, .csum_offset = 16};
	uint8_t got[5000];

	from_peer(r, NULL, own_mac, 100);
	assert_true(deliver(r, 0)); /* no driver: nobody hears it */
	assert_true(net_fifo_empty(&r->rx));
	start(r, BASE | BIT(MRG) | BIT(GUEST_CSUM) | BIT(GUEST_TSO4));
	assert_int_equal(r->net.accepts, NET_CSUM | NET_TSO4);
	from_peer(r, &tso, own_mac, 4000);
	from_peer(r, NULL, own_mac, 100);
	assert_false(deliver(r, 0)); /* no buffers */
	give_buffers(r, 0, 2, 1500);
	assert_false(deliver(r, 0)); /* too few */
	assert_int_equal(used(r, 0), 0);
	assert_false(r->net.client.arm(r->net.client.ctx, 0, true));
	for (unsigned i = 2; i < 5; i++) {
		desc(r, 0, i, 0x400000 + 0x10000 * i, 1500, WRITE, 0);
		offer(r, 0, i);
	}
	assert_true(r->net.client.arm(r->net.client.ctx, 0, true));
	assert_true(deliver(r, 0));
	assert_true(net_fifo_empty(&r->rx));
	assert_int_equal(used(r, 0), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(used_id(r, 0, i), i);
	assert_int_equal(used_len(r, 0, 0), 1500);
	assert_int_equal(used_len(r, 0, 2), 4012 - 3000);
	assert_int_equal(used_len(r, 0, 3), 112);
	assert_int_equal(peek(r, 0x400000 + 10, 2), 3); /* num_buffers */
	ram_read(r->ram, 0x400000, got, 1500);
	ram_read(r->ram, 0x410000, got + 1500, 1500);
	ram_read(r->ram, 0x420000, got + 3000, 1012);
	assert_memory_equal(got, &tso, 10);
	assert_memory_equal(got + 12, own_mac, 6);
	assert_memory_equal(got + 18, bytes + 6, 3994);
	assert_int_equal(peek(r, 0x430000 + 10, 2), 1);
	/* The fifth buffer was taken, but not used: it serves the next frame. */
	from_peer(r, NULL, own_mac, 200);
	assert_true(deliver(r, 0));
	assert_int_equal(used_id(r, 0, 4), 4);
	assert_int_equal(used_len(r, 0, 4), 212);
}

/* Chains that lie oddly: the header over three buffers, buffers that the device must not write before them. */
static void test_receive_scattered(void **state)
{
	struct rig *r = *state;
	uint8_t got[100];

	start(r, BASE | BIT(MRG));
	desc(r, 0, 0, 0x300000, 50, NEXT, 1);
	desc(r, 0, 1, 0x400000, 5, NEXT | WRITE, 2);
	desc(r, 0, 2, 0x400010, 5, NEXT | WRITE, 3);
	desc(r, 0, 3, 0x400020, 4000, WRITE, 0);
	offer(r, 0, 0);
	from_peer(r, NULL, own_mac, 100);
	assert_true(deliver(r, 0));
	assert_int_equal(used_len(r, 0, 0), 112);
	ram_read(r->ram, 0x400022, got, 100);
	assert_memory_equal(got, own_mac, 6);
	assert_memory_equal(got + 6, bytes + 6, 94);
	assert_int_equal(peek(r, 0x400020, 2), 1); /* num_buffers */
	assert_int_equal(peek(r, 0x300000, 4), 0);
}

static void test_receive_plain(void **state)
{
	struct rig *r = *state;
	struct net_hdr csum = {.flags = 1, .csum_start = 34, .csum_offset = 16}, valid = {.flags = 2};

	start(r, BASE);
	assert_int_equal(r->net.accepts, 0);
	give_buffers(r, 0, 3, 1526);
	from_peer(r, NULL, own_mac, 1515); /* does not fit: dropped, the buffer stays */
	from_peer(r, &csum, own_mac, 100); /* from before a reset: not for this driver */
	from_peer(r, &valid, own_mac, 1514);
	assert_true(deliver(r, 0));
	assert_true(net_fifo_empty(&r->rx));
	assert_int_equal(used(r, 0), 1);
	assert_int_equal(used_len(r, 0, 0), 1526);
	assert_int_equal(peek(r, 0x400000, 1), 0); /* flags only with GUEST_CSUM */
}

/* A driver that gives its whole ring, and still too little for a frame: the frame goes, not the network. */
static void test_receive_small_ring(void **state)
{
	struct rig *r = *state;

	start(r, BASE | BIT(MRG));
	give_buffers(r, 0, SIZE, 100);
	from_peer(r, NULL, own_mac, 60000);
	from_peer(r, NULL, own_mac, 60);
	assert_true(deliver(r, 0));
	assert_true(net_fifo_empty(&r->rx));
	assert_int_equal(used(r, 0), 1);
	assert_int_equal(used_len(r, 0, 0), 72);
}

/* ---- the control queue ---- */

static unsigned command_on(struct rig *r, unsigned q, unsigned class, unsigned cmd, const void *data, uint32_t len)
{
	uint8_t head[2] = {(uint8_t)class, (uint8_t)cmd}, none = 0xee;

	ram_write(r->ram, 0x300000, head, 2);
	ram_write(r->ram, 0x301000, data, len);
	ram_write(r->ram, 0x302000, &none, 1);
	desc(r, q, 0, 0x300000, 2, NEXT, len ? 1 : 2);
	desc(r, q, 1, 0x301000, len, NEXT, 2);
	desc(r, q, 2, 0x302000, 1, WRITE, 0);
	offer(r, q, 0);
	notify(r, q);
	return peek(r, 0x302000, 1);
}

static unsigned command(struct rig *r, unsigned class, unsigned cmd, const void *data, uint32_t len)
{
	return command_on(r, 2, class, cmd, data, len);
}

static unsigned flag(struct rig *r, unsigned cmd, uint8_t on) { return command(r, 0, cmd, &on, 1); }

static bool hears(struct rig *r, const uint8_t *mac)
{
	unsigned before = used(r, 0);

	offer(r, 0, 0);
	from_peer(r, NULL, mac, 100);
	assert_true(deliver(r, 0));
	return used(r, 0) != before;
}

static void test_receive_filter(void **state)
{
	struct rig *r = *state;
	static const uint8_t all[6] = {255, 255, 255, 255, 255, 255}, multi[6] = {1, 0, 0x5e, 0, 0, 1}, other[6] = {2, 9, 9, 9, 9, 9};
	uint8_t tables[4 + 6 + 4 + 6];

	start(r, BASE);
	desc(r, 0, 0, 0x400000, 2000, WRITE, 0);
	assert_true(hears(r, other)); /* a driver that cannot ask gets everything */
	start(r, BASE | CTRL);
	desc(r, 0, 0, 0x400000, 2000, WRITE, 0);
	assert_true(hears(r, own_mac) && hears(r, all) && !hears(r, multi) && !hears(r, other));
	assert_int_equal(flag(r, 0, 1), 0);
	assert_true(hears(r, multi) && hears(r, other));
	assert_int_equal(flag(r, 0, 0), 0);
	assert_int_equal(flag(r, 1, 1), 0); /* allmulti */
	assert_true(hears(r, multi) && !hears(r, other));
	assert_int_equal(flag(r, 3, 1), 0); /* nomulti */
	assert_false(hears(r, multi));
	assert_int_equal(flag(r, 2, 1), 0); /* alluni */
	assert_true(hears(r, other));
	assert_int_equal(flag(r, 4, 1), 0); /* nouni */
	assert_true(!hears(r, own_mac) && hears(r, all));
	assert_int_equal(flag(r, 5, 1), 0); /* nobcast */
	assert_false(hears(r, all));
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(flag(r, i, 0), 0);
	assert_int_equal(flag(r, 6, 0), 1);
	put_le32(tables, 1);
	memcpy(tables + 4, other, 6);
	put_le32(tables + 10, 1);
	memcpy(tables + 14, multi, 6);
	assert_int_equal(command(r, 1, 0, tables, sizeof(tables)), 0);
	assert_true(hears(r, other) && hears(r, multi) && hears(r, own_mac));
	assert_int_equal(command(r, 1, 0, tables, sizeof(tables) - 1), 1); /* cut: nothing changes */
	put_le32(tables, 0xffffffff);
	assert_int_equal(command(r, 1, 0, tables, sizeof(tables)), 1);
	assert_true(hears(r, other));
	memset(tables, 0, 8);
	assert_int_equal(command(r, 1, 0, tables, 8), 0);
	assert_true(!hears(r, other) && !hears(r, multi));
}

/* More addresses than the table holds: all of the kind. */
static void test_filter_overflow(void **state)
{
	struct rig *r = *state;
	static const uint8_t multi[6] = {1, 0, 0x5e, 0, 0, 1}, other[6] = {2, 9, 9, 9, 9, 9};
	uint8_t *tables = calloc(1, 8 + 600);

	start(r, BASE | CTRL);
	desc(r, 0, 0, 0x400000, 2000, WRITE, 0);
	put_le32(tables + 4, 100);
	assert_int_equal(command(r, 1, 0, tables, 608), 0);
	assert_true(hears(r, multi) && !hears(r, other));
	put_le32(tables, 100);
	put_le32(tables + 604, 0);
	assert_int_equal(command(r, 1, 0, tables, 608), 0);
	assert_true(!hears(r, multi) && hears(r, other));
	free(tables);
}

static void test_mac_address(void **state)
{
	struct rig *r = *state;
	static const uint8_t new_mac[6] = {2, 7, 7, 7, 7, 7};

	start(r, BASE | CTRL);
	assert_int_equal(command(r, 1, 1, new_mac, 6), 1); /* not agreed on */
	start(r, BASE | CTRL | BIT(MAC_ADDR));
	desc(r, 0, 0, 0x400000, 2000, WRITE, 0);
	assert_int_equal(command(r, 1, 1, new_mac, 5), 1);
	assert_int_equal(command(r, 1, 1, new_mac, 6), 0);
	assert_true(hears(r, new_mac) && !hears(r, own_mac));
	assert_int_equal(get(r, DEVICE + 5, 1), 7);
	start(r, BASE); /* a reset brings the own one back */
	assert_int_equal(get(r, DEVICE + 5, 1), own_mac[5]);
}

static void test_vlan(void **state)
{
	struct rig *r = *state;
	uint8_t old[4];
	uint16_t id = 5;

	start(r, BASE | CTRL);
	desc(r, 0, 0, 0x400000, 2000, WRITE, 0);
	memcpy(old, bytes + 12, 4);
	memcpy(bytes + 12, "\x81\x00\xe0\x05", 4);
	assert_false(hears(r, own_mac));
	assert_int_equal(command(r, 2, 0, &id, 2), 0);
	assert_true(hears(r, own_mac));
	bytes[15] = 6;
	assert_false(hears(r, own_mac));
	bytes[15] = 5;
	assert_int_equal(command(r, 2, 1, &id, 2), 0);
	assert_false(hears(r, own_mac));
	id = 4096;
	assert_int_equal(command(r, 2, 0, &id, 2), 1);
	memcpy(bytes + 12, old, 4);
}

static void test_guest_offloads(void **state)
{
	struct rig *r = *state;
	uint64_t on = BIT(GUEST_CSUM);

	start(r, BASE | CTRL | BIT(GUEST_CSUM) | BIT(GUEST_TSO4));
	assert_int_equal(r->net.accepts, NET_CSUM | NET_TSO4);
	assert_int_equal(command(r, 5, 0, &on, 8), 0);
	assert_int_equal(r->net.accepts, NET_CSUM);
	on = BIT(GUEST_TSO4); /* means nothing without checksums */
	assert_int_equal(command(r, 5, 0, &on, 8), 0);
	assert_int_equal(r->net.accepts, 0);
	on = BIT(8); /* not agreed on */
	assert_int_equal(command(r, 5, 0, &on, 8), 1);
	set(r, C_STATUS, 1, 0);
	assert_int_equal(r->net.accepts, 0);
}

static void test_many_queues(void **state)
{
	struct rig *r = *state;
	uint16_t pairs = 2;

	make(r, PAIRS, false, 0);
	start(r, BASE | CTRL | BIT(MQ));
	assert_int_equal(r->net.active, 1);
	assert_int_equal(command_on(r, 4, 4, 0, &pairs, 2), 0);
	assert_int_equal(r->net.active, 2);
	pairs = 3;
	assert_int_equal(command_on(r, 4, 4, 0, &pairs, 2), 1);
	pairs = 0;
	assert_int_equal(command_on(r, 4, 4, 0, &pairs, 2), 1);
	transmit(r, 3, NULL, 100);
	r->net.kicks[1] = 0;
	notify(r, 3);
	assert_int_equal(r->net.kicks[1], 1);
	assert_int_equal(fetch(r, 0), 0);
	assert_int_equal(fetch(r, 1), 1);
	give_buffers(r, 2, 1, 2000);
	from_peer(r, NULL, own_mac, 100);
	assert_true(deliver(r, 1));
	assert_int_equal(used(r, 2), 1);
	/* Without MQ the control queue is the third (5.1.2). */
	start(r, BASE | CTRL);
	assert_int_equal(r->net.active, 1);
	assert_int_equal(command_on(r, 2, 0, 0, "\1", 1), 0);
}

static void test_control_nonsense(void **state)
{
	struct rig *r = *state;

	start(r, BASE | CTRL);
	for (unsigned class = 0; class < 256; class += class < 8 ? 1 : 31)
		for (unsigned cmd = 7; cmd < 256; cmd += 31)
			assert_int_equal(command(r, class, cmd, bytes, 16), 1);
	assert_int_equal(command(r, 0, 0, bytes, 0), 1);
	desc(r, 2, 0, 0x300000, 1, 0, 0); /* nowhere for the answer */
	offer(r, 2, 0);
	notify(r, 2);
	desc(r, 2, 0, 0x300000, 1, WRITE, 0);
	offer(r, 2, 0);
	notify(r, 2);
	assert_int_equal(peek(r, 0x300000, 1), 1);
	assert_int_equal(get(r, C_STATUS, 1), 15);
}

static void test_link(void **state)
{
	struct rig *r = *state;
	unsigned generation;

	start(r, BASE);
	generation = (unsigned)get(r, C_GENERATION, 1);
	r->net.client.link(r->net.client.ctx, false);
	assert_int_equal(get(r, DEVICE + 6, 2), 0);
	assert_int_not_equal(get(r, C_GENERATION, 1), generation);
	assert_true(r->f.level[16]);
	assert_int_equal(get(r, ISR, 1), 2);
	r->net.client.link(r->net.client.ctx, true);
	assert_int_equal(get(r, DEVICE + 6, 2), 1);
}

/* A reset takes the chains away from who holds them. */
static void test_reset_with_buffers_held(void **state)
{
	struct rig *r = *state;

	start(r, BASE | BIT(MRG));
	give_buffers(r, 0, 3, 100);
	from_peer(r, NULL, own_mac, 1000); /* needs more: the three are held */
	assert_false(deliver(r, 0));
	start(r, BASE | BIT(MRG));
	poke(r, 0x400000, 0x77777777, 4);
	assert_false(deliver(r, 0));
	assert_int_equal(used(r, 0), 0);
	assert_int_equal(peek(r, 0x400000, 4), 0x77777777);
	desc(r, 0, 9, 0x500000, 2000, WRITE, 0);
	offer(r, 0, 9);
	assert_true(deliver(r, 0));
	assert_int_equal(used_id(r, 0, 0), 9);
	assert_int_equal(peek(r, 0x400000, 4), 0x77777777);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_identity), T(test_transmit), T(test_transmit_nonsense), T(test_transmit_portions), T(test_notifications),
		T(test_mac_filter), T(test_receive_mergeable), T(test_receive_scattered), T(test_receive_plain), T(test_receive_small_ring),
		T(test_receive_filter), T(test_filter_overflow), T(test_mac_address), T(test_vlan), T(test_guest_offloads), T(test_many_queues),
		T(test_control_nonsense), T(test_link), T(test_reset_with_buffers_held),
	};

	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7 + (i >> 8));
	memcpy(bytes + 12, "\x08\x00", 2);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
