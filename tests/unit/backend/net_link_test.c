/* The cable between two VMs, the null network, limits; and peers at the cable's end that are none. */
#include "net_rig.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/net/offload.h"
#include "base/timer.h"

static char folder[] = "/tmp/doppel-link.XXXXXX";
static uint8_t payload[70000], buffer[80000];

static struct net_options cable(void)
{
	struct net_options o = {.kind = NET_LINK};

	snprintf(o.name, sizeof(o.name), "%s/cable", folder);
	return o;
}

static bool exists(void)
{
	struct stat st;

	return stat(cable().name, &st) == 0;
}

static void pass(struct net_rig *from, struct net_rig *to, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint32_t len = 14 + (uint32_t)random() % 1500;
		struct rig_frame f;

		memcpy(buffer, payload + random() % 1000, len);
		rig_send(from, NULL, buffer, len);
		if (!rig_wait(to, &f, 3000))
			fail_msg("frame %u is lost", i);
		assert_int_equal(f.len, len);
		assert_memory_equal(f.data, buffer, len);
		free(f.data);
	}
}

static void test_frames_pass(void **state)
{
	struct net_options o = cable();
	struct net_rig a, b;

	assert_true(rig_open(&a, &o, NET_ALL, NULL));
	assert_false(net_link_up(a.net));
	assert_true(exists());
	assert_true(rig_open(&b, &o, NET_ALL, NULL));
	assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
	pass(&a, &b, 200);
	pass(&b, &a, 200);
	rig_close(&b);
	assert_true(rig_wait_link(&a, false, 3000));
	rig_close(&a);
	assert_false(exists());
}

/* Segmentation left undone passes whole to who takes it; who does not gets pieces with right checksums. */
static void test_offloads(void **state)
{
	struct net_options o = cable();
	struct net_rig a, b;
	struct rig_frame f;

	assert_true(rig_open(&a, &o, NET_ALL, NULL));
	assert_true(rig_open(&b, &o, 0, NULL));
	assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
	for (unsigned i = 0; i < 12; i++) {
		struct flow flow = {.ipv6 = i & 1, .udp = i & 2, .tcp_flags = 0x10};
		uint32_t len = flow_frame(&flow, buffer, payload, 60000, false);
		struct net_hdr hdr = flow_gso(&flow, buffer, len, 1000);

		net_set_accepts(b.net, i < 4 ? 0 : i < 8 ? NET_CSUM : NET_ALL);
		rig_send(&a, &hdr, buffer, len);
		if (i >= 8) {
			assert_true(rig_wait(&b, &f, 3000));
			assert_int_equal(f.len, len);
			assert_memory_equal(&f.hdr, &hdr, sizeof(hdr));
			free(f.data);
			continue;
		}
		for (unsigned k = 0; k < 60; k++) {
			assert_true(rig_wait(&b, &f, 3000));
			assert_int_equal(f.len, flow_headers(&flow) + 1000);
			assert_true(sums_right(f.data, f.len));
			assert_int_equal(f.hdr.gso_type, 0);
			free(f.data);
		}
	}
	/* A checksum alone. */
	net_set_accepts(b.net, 0);
	struct flow flow = {.udp = true};
	uint32_t len = flow_frame(&flow, buffer, payload, 999, false);
	struct net_hdr hdr = flow_gso(&flow, buffer, len, 0);

	hdr.gso_type = 0;
	rig_send(&a, &hdr, buffer, len);
	assert_true(rig_wait(&b, &f, 3000));
	assert_true(sums_right(f.data, f.len) && !(f.hdr.flags & NET_HDR_NEEDS_CSUM));
	free(f.data);
	rig_close(&a);
	rig_close(&b);
}

static void test_either_side_comes_back(void **state)
{
	struct net_options o = cable();
	struct net_rig a, b;

	assert_true(rig_open(&a, &o, NET_ALL, NULL));
	assert_true(rig_open(&b, &o, NET_ALL, NULL));
	for (unsigned i = 0; i < 3; i++) {
		struct net_rig *gone = i & 1 ? &b : &a, *left = i & 1 ? &a : &b; /* first the one that listens */

		assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
		pass(&a, &b, 20);
		rig_close(gone);
		assert_true(rig_wait_link(left, false, 3000));
		usleep(i * 700000); /* the other one takes the path over, or does not have the time */
		assert_true(rig_open(gone, &o, NET_ALL, NULL));
	}
	assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
	pass(&b, &a, 20);
	rig_close(&a);
	rig_close(&b);
	assert_false(exists());
}

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	strcpy(addr.sun_path, cable().name);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	return fd;
}

static void test_a_third_is_turned_away(void **state)
{
	struct net_options o = cable();
	struct net_rig a, b, c;
	struct rig_frame f;

	assert_true(rig_open(&a, &o, NET_ALL, NULL));
	assert_true(rig_open(&b, &o, NET_ALL, NULL));
	assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
	assert_true(rig_open(&c, &o, NET_ALL, NULL));
	assert_false(rig_wait_link(&c, true, 300));
	rig_send(&c, NULL, payload, 100);
	assert_false(rig_wait(&a, &f, 100));
	pass(&a, &b, 20);
	rig_close(&b); /* now there is a place */
	assert_true(rig_wait_link(&c, true, 3000));
	pass(&a, &c, 20);
	rig_close(&c);
	rig_close(&a);
}

/* Whatever a peer sends: what comes out is a valid frame, and the VM stays. */
static void test_hostile_peer(void **state)
{
	struct net_options o = cable();
	struct net_rig a;
	struct rig_frame f;
	unsigned frames = 0;
	int fd;

	assert_true(rig_open(&a, &o, NET_CSUM | NET_TSO4, NULL));
	fd = dial();
	assert_int_equal(send(fd, "hello", 5, 0), 5);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 14);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 0); /* hung up */
	close(fd);
	fd = dial();
	assert_int_equal(send(fd, "doppel-link 1", 14, 0), 14);
	assert_true(rig_wait_link(&a, true, 3000));
	for (unsigned i = 0; i < 3000; i++) {
		struct flow flow = {.ipv6 = i & 1, .udp = i & 2, .tcp_flags = 0x10};
		uint32_t len = flow_frame(&flow, buffer + 10, payload, (uint32_t)random() % 66000 % (i % 7 ? 3000 : 66000), false);
		struct net_hdr hdr = flow_gso(&flow, buffer + 10, len, (uint16_t)(random() % 2000));

		memcpy(buffer, &hdr, 10);
		for (unsigned k = 0; k < i % 4; k++)
			buffer[random() % (i % 3 ? 70 : len)] = (uint8_t)random();
		len = i % 5 ? len + 10 : (uint32_t)random() % (len + 10);
		while (len && send(fd, buffer, len, MSG_DONTWAIT) < 0 && errno == EAGAIN) {
			while (rig_wait(&a, &f, 1)) {
				struct net_frame *g = calloc(1, sizeof(*g) + f.len);

				g->len = f.len;
				g->hdr = f.hdr;
				assert_true(net_offload_valid(g, NET_CSUM | NET_TSO4));
				frames++;
				free(g);
				free(f.data);
			}
		}
	}
	assert_true(frames > 100);
	close(fd);
	assert_true(rig_wait_link(&a, false, 3000));
	rig_close(&a);
}

/* The guest has no room, and the peer goes: the worker sleeps, and notices when there is room. */
static void test_starved_and_alone(void **state)
{
	struct net_options o = cable();
	struct net_rig a, b;
	struct rig_frame f;
	struct timespec before, after;

	assert_true(rig_open(&a, &o, NET_ALL, NULL));
	assert_true(rig_open(&b, &o, NET_ALL, NULL));
	assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
	rig_set_room(&a, 0);
	for (unsigned i = 0; i < 3000; i++)
		rig_send(&b, NULL, payload, 1000);
	usleep(100000);
	rig_close(&b);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
	usleep(300000);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
	assert_true((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 100000000);
	rig_set_room(&a, RIG_FRAMES);
	assert_true(rig_wait_link(&a, false, 3000));
	while (rig_wait(&a, &f, 0))
		free(f.data);
	rig_close(&a);
}

static void test_stale_and_foreign_paths(void **state)
{
	struct net_options o = cable();
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct error err = {0};
	struct net_rig a;
	FILE *file;
	int fd;

	/* Left by a process that was killed: taken over. */
	strcpy(addr.sun_path, o.name);
	fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_true(rig_open(&a, &o, 0, NULL));
	rig_close(&a);
	assert_false(exists());
	/* A file, and another kind of socket: left alone. */
	file = fopen(o.name, "w");
	fclose(file);
	assert_null(net_open(&o, &err));
	assert_non_null(strstr(err.hint, "another path"));
	assert_true(exists());
	unlink(o.name);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, 1), 0);
	assert_null(net_open(&o, &err));
	assert_non_null(strstr(err.hint, "another program"));
	close(fd);
	unlink(o.name);
	strcpy(o.name, "/nonexistent/folder/cable");
	assert_null(net_open(&o, &err));
	assert_non_null(strstr(err.msg, "No such file"));
}

/* 20 Mbit/s each way, in bursts of up to 1/10 s: 1 MB takes 0.3 s to 0.5 s. */
static void test_limit(void **state)
{
	struct net_options o = cable();
	struct net_rig a, b;
	struct rig_frame f;
	int64_t start;

	assert_true(rig_open(&b, &o, NET_ALL, NULL));
	o.bps = 20000000;
	assert_true(rig_open(&a, &o, NET_ALL, NULL));
	assert_true(rig_wait_link(&a, true, 3000) && rig_wait_link(&b, true, 3000));
	for (unsigned way = 0; way < 2; way++) {
		start = clock_now();
		for (unsigned i = 0; i < 1000; i++)
			rig_send(way ? &b : &a, NULL, payload, 1000);
		for (unsigned i = 0; i < 1000; i++) {
			assert_true(rig_wait(way ? &a : &b, &f, 3000));
			free(f.data);
		}
		start = clock_now() - start;
		if (start < 280000000 || start > 5000000000)
			fail_msg("way %u took %lld ms", way, (long long)start / 1000000);
	}
	rig_close(&a);
	rig_close(&b);
}

static void test_null(void **state)
{
	struct net_options o = {.kind = NET_NULL};
	struct net_rig r;
	struct net_stats stats;

	assert_true(rig_open(&r, &o, NET_ALL, NULL));
	assert_true(net_link_up(r.net));
	for (unsigned i = 0; i < 100; i++)
		rig_send(&r, NULL, payload, 100);
	for (unsigned i = 0; i < 300; i++) {
		stats = net_stats(r.net);
		if (stats.tx_frames == 100)
			break;
		usleep(10000);
	}
	assert_int_equal(stats.tx_bytes, 10000);
	rig_close(&r);
}

static int begin(void **state)
{
	srandom(3);
	for (size_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)random();
	return mkdtemp(folder) ? 0 : -1;
}

static int end(void **state) { return rmdir(folder); }

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_frames_pass),
		cmocka_unit_test(test_offloads),
		cmocka_unit_test(test_either_side_comes_back),
		cmocka_unit_test(test_a_third_is_turned_away),
		cmocka_unit_test(test_hostile_peer),
		cmocka_unit_test(test_starved_and_alone),
		cmocka_unit_test(test_stale_and_foreign_paths),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_null),
	};

	return cmocka_run_group_tests(tests, begin, end);
}
