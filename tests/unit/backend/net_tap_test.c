/*
 * Tap interfaces in a network namespace of their own. Two of them on a bridge make Linux the judge of our segmentation: what it cuts
 * for a port that takes no offloads must be what we cut.
 */
#include "net_rig.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/net/coalesce.h"
#include "backend/net/offload.h"

static uint8_t payload[65536], buffer[80000];
static const uint8_t mac_a[6] = {2, 0, 0, 0, 0, 0xaa}, mac_b[6] = {2, 0, 0, 0, 0, 0xbb};

struct bridge {
	struct net_rig a, b;
};

static struct net_options tap(const char *name)
{
	struct net_options o = {.kind = NET_TAP};

	snprintf(o.name, sizeof(o.name), "%s", name);
	return o;
}

static int setup(void **state)
{
	static struct bridge br;
	struct net_options a = tap("ta"), b = tap("tb");

	assert_true(rig_open(&br.a, &a, NET_ALL, NULL));
	assert_true(rig_open(&br.b, &b, 0, NULL));
	assert_int_equal(system("ip link add br0 type bridge && ip link set ta master br0 && ip link set tb master br0 && ip link set br0 up"), 0);
	*state = &br;
	return 0;
}

static int teardown(void **state)
{
	struct bridge *br = *state;

	rig_close(&br->a);
	rig_close(&br->b);
	assert_int_equal(system("ip link del br0"), 0);
	return 0;
}

/* The next frame that the other side's test sent, among what the kernel says by itself. */
static bool wait_ours(struct net_rig *r, struct rig_frame *f)
{
	while (rig_wait(r, f, 3000)) {
		if (f->len >= 14 && !memcmp(f->data + 6, mac_a, 5))
			return true;
		free(f->data);
	}
	return false;
}

static struct flow flow_of(unsigned i)
{
	struct flow f = {.ipv6 = i & 1, .udp = i & 2, .options = i & 4 ? 12 : 0, .tcp_flags = (uint8_t)(i & 8 ? 0x19 : 0x10),
			 .seq = (uint32_t)random() * 2u, .id = (uint16_t)random()};

	memcpy(f.src_mac, mac_a, 6);
	memcpy(f.dst_mac, mac_b, 6);
	return f;
}

static void wait_for_bridge(struct bridge *br)
{
	struct flow flow = flow_of(2);
	struct rig_frame f;
	uint32_t len = flow_frame(&flow, buffer, payload, 100, true);

	for (unsigned i = 0; i < 50; i++) {
		rig_send(&br->a, NULL, buffer, len);
		if (rig_wait(&br->b, &f, 100)) {
			bool ours = f.len == len && !memcmp(f.data, buffer, len);

			free(f.data);
			if (ours)
				break;
		}
	}
	usleep(200000);
	while (rig_wait(&br->b, &f, 0))
		free(f.data);
}

struct pieces {
	uint8_t *data[200];
	uint32_t len[200];
	unsigned n;
};

static uint8_t *emit(void *ctx, uint32_t len)
{
	struct pieces *p = ctx;

	assert_true(p->n < ARRAY_LEN(p->data));
	p->len[p->n] = len;
	p->data[p->n] = malloc(len);
	return p->data[p->n++];
}

static void test_linux_cuts_alike(void **state)
{
	struct bridge *br = *state;
	struct net_frame *f = calloc(1, sizeof(*f) + NET_FRAME_MAX);
	bool uso = net_offloads(br->a.net) & NET_USO;
	unsigned compared = 0;

	wait_for_bridge(br);
	for (unsigned i = 0; i < 64; i++) {
		struct flow flow = flow_of(i);
		struct pieces ours = {.n = 0};
		uint32_t len = 2000 + (uint32_t)random() % 60000;

		if (flow.udp && !uso)
			continue;
		f->len = flow_frame(&flow, f->data, payload, len, false);
		f->hdr = flow_gso(&flow, f->data, f->len, (uint16_t)(600 + random() % 800));
		assert_true(net_segment(f, emit, &ours));
		if (flow.udp && ours.n > 64) { /* Linux: UDP_MAX_SEGMENTS was 64 for long */
			while (ours.n)
				free(ours.data[--ours.n]);
			continue;
		}
		rig_send(&br->a, &f->hdr, f->data, f->len);
		for (unsigned k = 0; k < ours.n; k++, compared++) {
			struct rig_frame theirs;

			if (!wait_ours(&br->b, &theirs))
				fail_msg("case %u: piece %u of %u did not come", i, k, ours.n);
			assert_int_equal(theirs.len, ours.len[k]);
			assert_memory_equal(theirs.data, ours.data[k], theirs.len);
			free(theirs.data);
			free(ours.data[k]);
		}
	}
	assert_true(compared > 300);
	free(f);
}

/* A checksum left undone is finished by Linux as by us. */
static void test_linux_sums_alike(void **state)
{
	struct bridge *br = *state;

	wait_for_bridge(br);
	for (unsigned i = 0; i < 16; i++) {
		struct flow flow = flow_of(i);
		uint32_t len = flow_frame(&flow, buffer, payload, 20 + (uint32_t)random() % 1000, true);
		uint8_t *full = malloc(len);
		struct rig_frame got;
		struct net_hdr hdr;

		memcpy(full, buffer, len);
		hdr = flow_gso(&flow, buffer, len, 0);
		hdr.gso_type = NET_GSO_NONE;
		rig_send(&br->a, &hdr, buffer, len);
		assert_true(wait_ours(&br->b, &got));
		assert_int_equal(got.len, len);
		assert_memory_equal(got.data, full, len);
		free(got.data);
		free(full);
	}
}

/* What we join, Linux takes as one frame, hands on whole to who takes it, and cuts into the same pieces for who does not. */
static void test_joined_frames_pass(void **state)
{
	struct bridge *br = *state;
	struct net_fifo fifo;
	struct rig_frame got;

	assert_true(net_fifo_init(&fifo, MIB));
	wait_for_bridge(br);
	for (unsigned i = 0; i < 16; i++) {
		struct flow flow = flow_of(i & 1);
		uint32_t base = flow.seq;
		unsigned n = 5 + i;
		struct net_frame *f;

		net_fifo_clear(&fifo);
		for (unsigned k = 0; k < n; k++) {
			flow.seq = base + 1000 * k;
			assert_true(net_coalesce(&fifo, buffer, flow_frame(&flow, buffer, payload + 1000 * k, 1000, true), NET_ALL));
			flow.id++;
		}
		assert_int_equal(fifo.count, 1);
		f = net_fifo_first(&fifo);
		net_set_accepts(br->b.net, i & 2 ? NET_ALL : 0);
		usleep(20000); /* the worker tells the kernel */
		rig_send(&br->a, &f->hdr, f->data, f->len);
		if (i & 2) {
			assert_true(wait_ours(&br->b, &got));
			assert_int_equal(got.len, f->len);
			assert_int_equal(got.hdr.gso_size, 1000);
			assert_int_equal(got.hdr.gso_type, f->hdr.gso_type);
			free(got.data);
			continue;
		}
		for (unsigned k = 0; k < n; k++) {
			flow.seq = base + 1000 * k;
			flow.id = (uint16_t)(flow.id - (k ? 0 : n));
			assert_true(wait_ours(&br->b, &got));
			assert_int_equal(got.len, flow_frame(&flow, buffer, payload + 1000 * k, 1000, true));
			assert_memory_equal(got.data, buffer, got.len);
			free(got.data);
			flow.id++;
		}
	}
	net_fifo_fini(&fifo);
}

/* Frames wait in the kernel while the guest has no room. */
static void test_back_pressure(void **state)
{
	struct bridge *br = *state;
	struct flow flow = flow_of(2);
	struct rig_frame got;
	struct net_stats stats;

	wait_for_bridge(br);
	rig_set_room(&br->b, 0);
	for (unsigned i = 0; i < 200; i++) {
		put_le32(payload, i);
		rig_send(&br->a, NULL, buffer, flow_frame(&flow, buffer, payload, 1000, true));
	}
	usleep(100000);
	assert_false(rig_wait(&br->b, &got, 0));
	rig_set_room(&br->b, RIG_FRAMES);
	for (unsigned i = 0; i < 200; i++) {
		if (!wait_ours(&br->b, &got))
			fail_msg("frame %u is lost", i);
		assert_int_equal(get_le32(got.data + 42), i);
		free(got.data);
	}
	stats = net_stats(br->a.net);
	assert_true(stats.tx_frames >= 200 && stats.tx_bytes >= 200 * 1042 && !stats.tx_dropped);
}

static void test_interface_deleted(void **state)
{
	struct bridge *br = *state;
	struct flow flow = flow_of(2);

	wait_for_bridge(br);
	assert_int_equal(system("ip link del ta"), 0);
	assert_true(rig_wait_link(&br->a, false, 3000));
	rig_send(&br->a, NULL, buffer, flow_frame(&flow, buffer, payload, 100, true));
}

static void test_many_queues(void **state)
{
	struct net_rig r, peer;
	struct net_options o = tap("tm"), p = tap("tp");
	struct rig_frame got;

	o.queues = 4;
	assert_true(rig_open(&r, &o, 0, NULL));
	assert_true(rig_open(&peer, &p, 0, NULL));
	assert_int_equal(net_queues(r.net), 4);
	assert_int_equal(system("ip link add br1 type bridge && ip link set tm master br1 && ip link set tp master br1 && ip link set br1 up"), 0);
	for (unsigned queues = 1; queues <= 4; queues++) {
		unsigned n = 0;

		net_set_queues(r.net, queues);
		usleep(100000);
		for (unsigned i = 0; i < 100; i++) {
			struct flow flow = flow_of(2);
			uint32_t len = flow_frame(&flow, buffer, payload, 100, true);

			put_le16(buffer + 34, (uint16_t)i); /* flows spread over the queues */
			net_csum_fill(buffer, len);
			rig_send(&peer, NULL, buffer, len);
		}
		while (n < 100 && wait_ours(&r, &got)) {
			free(got.data);
			n++;
		}
		assert_int_equal(n, 100);
	}
	rig_close(&r);
	rig_close(&peer);
	assert_int_equal(system("ip link del br1"), 0);
}

/* ---- what a user does wrong ---- */

static void expect_error(const struct net_options *o, const char *msg, const char *hint)
{
	struct error err = {0};

	assert_null(net_open(o, &err));
	if (!strstr(err.msg, msg) || !strstr(err.hint, hint))
		fail_msg("'%s' (%s): wanted '%s' (%s)", err.msg, err.hint, msg, hint);
}

static void test_errors(void **state)
{
	struct net_options o = tap("ta"), many = tap("ta"), other = tap("lo");

	many.queues = 2;
	expect_error(&o, "tap:ta: Device or resource busy", "another VM");
	expect_error(&many, "tap:ta", "multi_queue");
	expect_error(&other, "tap:lo: Invalid argument", "tap interface");
	o = tap("a-name-that-is-too-long");
	expect_error(&o, "no name of an interface", "1 to 15");
}

static void test_no_rights(void **state)
{
	struct net_options o = tap("tn");
	int status;
	pid_t pid = fork();

	if (!pid) {
		struct error err = {0};

		if (setgid(65534) || setuid(65534))
			_exit(2);
		_exit(net_open(&o, &err) || !strstr(err.msg, "no permission") || !strstr(err.hint, "ip tuntap add"));
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static int skipped(const char *why)
{
	printf("skipped: %s\n", why);
	return 77;
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_linux_cuts_alike),
		T(test_linux_sums_alike),
		T(test_joined_frames_pass),
		T(test_back_pressure),
		T(test_interface_deleted),
		T(test_errors),
		cmocka_unit_test(test_many_queues),
		cmocka_unit_test(test_no_rights),
	};

	if (geteuid() != 0)
		return skipped("only root can make tap interfaces here");
	if (access("/dev/net/tun", R_OK | W_OK))
		return skipped("no /dev/net/tun");
	if (unshare(CLONE_NEWNET))
		return skipped("no network namespace can be made");
	if (system("ip link add brt type bridge 2>/dev/null && ip link del brt && ip tuntap add tt mode tap && ip link del tt"))
		return skipped("no bridges or no taps (ip of iproute2)");
	srandom(5);
	for (size_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)random();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
