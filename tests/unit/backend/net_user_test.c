/* The user network as a guest sees it: ARP, DHCP, ping, TCP and UDP to the host, forwarded ports, restriction; and what a user does wrong. */
#include "net_rig.h"

#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net/offload.h"

static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1}, broadcast[6] = {255, 255, 255, 255, 255, 255};
static uint8_t frame[70000], payload[65536];

static const struct net_options plain = {.kind = NET_USER};

static void be16(uint8_t *p, unsigned v) { p[0] = (uint8_t)(v >> 8); p[1] = (uint8_t)v; }
static unsigned get16(const uint8_t *p) { return (unsigned)(p[0] << 8 | p[1]); }
static uint32_t get32(const uint8_t *p) { return get16(p) << 16 | get16(p + 2); }
static void be32(uint8_t *p, uint32_t v) { be16(p, v >> 16); be16(p + 2, v & 0xffff); }

static void ethernet(const uint8_t *to, unsigned type)
{
	memset(frame, 0, 2000);
	memcpy(frame, to, 6);
	memcpy(frame + 6, mac, 6);
	be16(frame + 12, type);
}

/* An IPv4 packet around what is at frame + 34; returns the frame's length. */
static uint32_t ip(unsigned protocol, uint32_t from, uint32_t to, uint32_t len)
{
	uint8_t *p = frame + 14;

	be16(p, 0x4500);
	be16(p + 2, 20 + len);
	p[8] = 64;
	p[9] = (uint8_t)protocol;
	be32(p + 12, from);
	be32(p + 16, to);
	be16(p + 10, 0);
	be16(p + 10, (uint16_t)~slow_sum(p, 20, 0));
	return 34 + len;
}

/* The next frame for which is() holds, others are dropped; NULL: none. The caller frees. */
static uint8_t *wait_for(struct net_rig *r, bool (*is)(const uint8_t *d, uint32_t len), uint32_t *len, unsigned ms)
{
	struct rig_frame f;

	while (rig_wait(r, &f, ms)) {
		if (len)
			*len = f.len;
		if (is(f.data, f.len))
			return f.data;
		free(f.data);
	}
	return NULL;
}

static bool is_arp_reply(const uint8_t *d, uint32_t len) { return len >= 42 && get16(d + 12) == 0x0806 && get16(d + 20) == 2; }
static bool is_dhcp(const uint8_t *d, uint32_t len) { return len > 282 && get16(d + 12) == 0x0800 && d[23] == 17 && get16(d + 36) == 68; }
static bool is_ping(const uint8_t *d, uint32_t len) { return len >= 42 && get16(d + 12) == 0x0800 && d[23] == 1 && d[34] == 0; }
static bool is_udp(const uint8_t *d, uint32_t len) { return len >= 42 && get16(d + 12) == 0x0800 && d[23] == 17 && get16(d + 36) == 7000; }
static bool is_tcp(const uint8_t *d, uint32_t len) { return len >= 54 && get16(d + 12) == 0x0800 && d[23] == 6; }

static uint8_t *resolve(struct net_rig *r, uint32_t guest, uint32_t who)
{
	ethernet(broadcast, 0x0806);
	memcpy(frame + 14, "\0\1\x8\0\6\4\0\1", 8);
	memcpy(frame + 22, mac, 6);
	be32(frame + 28, guest);
	be32(frame + 38, who);
	rig_send(r, NULL, frame, 60);
	return wait_for(r, is_arp_reply, NULL, guest == who ? 20 : 3000);
}

static uint8_t gateway[6];

/* libslirp learns of the guest, and we of its router. */
static void introduce(struct net_rig *r)
{
	uint8_t *reply = resolve(r, 0x0a00020f, 0x0a00020f); /* unasked: nobody answers */

	assert_null(reply);
	reply = resolve(r, 0x0a00020f, 0x0a000202);
	assert_non_null(reply);
	memcpy(gateway, reply + 22, 6);
	assert_int_equal(get32(reply + 28), 0x0a000202);
	free(reply);
}

static void open_user(struct net_rig *r, const struct net_options *o)
{
	struct error err = {0};

	if (!rig_open(r, o, NET_ALL, &err))
		fail_msg("%s (%s)", err.msg, err.hint);
}

/* Returns yiaddr; *options points at the reply's options, inside *reply. */
static uint32_t dhcp(struct net_rig *r, unsigned type, uint32_t want, uint32_t server, uint8_t **reply)
{
	uint8_t *b = frame + 42, *o = b + 240;
	uint32_t len;

	ethernet(broadcast, 0x0800);
	memcpy(b, "\1\1\6\0\x12\x34\x56\x78", 8);
	memcpy(b + 28, mac, 6);
	memcpy(b + 236, "\x63\x82\x53\x63", 4);
	memcpy(o, "\x35\1", 2);
	o[2] = (uint8_t)type;
	o += 3;
	if (want) {
		memcpy(o, "\x32\4", 2);
		be32(o + 2, want);
		memcpy(o + 6, "\x36\4", 2);
		be32(o + 8, server);
		o += 12;
	}
	*o++ = 255;
	be16(frame + 34, 68);
	be16(frame + 36, 67);
	be16(frame + 38, (unsigned)(o - frame) - 34);
	len = ip(17, 0, 0xffffffff, (uint32_t)(o - frame) - 34);
	rig_send(r, NULL, frame, len);
	*reply = wait_for(r, is_dhcp, NULL, 3000);
	assert_non_null(*reply);
	assert_memory_equal(*reply + 46, "\x12\x34\x56\x78", 4);
	return get32(*reply + 42 + 16);
}

static const uint8_t *option(const uint8_t *reply, unsigned code)
{
	for (const uint8_t *o = reply + 282; *o != 255; o += *o ? o[1] + 2 : 1)
		if (*o == code)
			return o + 2;
	return NULL;
}

static void conversation(const struct net_options *o, uint32_t guest, uint32_t host, uint32_t dns)
{
	struct net_rig r;
	uint8_t *reply;

	open_user(&r, o);
	assert_true(net_link_up(r.net));
	assert_int_equal(dhcp(&r, 1, 0, 0, &reply), guest);
	assert_int_equal(option(reply, 53)[0], 2);
	free(reply);
	assert_int_equal(dhcp(&r, 3, guest, host, &reply), guest);
	assert_int_equal(option(reply, 53)[0], 5);
	/* Where nothing is to be reached, there is neither router nor name server. */
	assert_int_equal(!option(reply, 6), o->restricted);
	assert_int_equal(!option(reply, 3), o->restricted);
	if (!o->restricted) {
		assert_int_equal(get32(option(reply, 6)), dns);
		assert_int_equal(get32(option(reply, 3)), host);
	}
	free(reply);
	reply = resolve(&r, guest, host);
	assert_non_null(reply);
	free(reply);
	rig_close(&r);
}

static void test_dhcp(void **state)
{
	struct net_options o = plain;

	conversation(&o, 0x0a00020f, 0x0a000202, 0x0a000203);
	o.restricted = true;
	conversation(&o, 0x0a00020f, 0x0a000202, 0x0a000203);
	inet_pton(AF_INET, "192.168.76.0", &o.network);
	inet_pton(AF_INET, "255.255.255.0", &o.mask);
	o.restricted = false;
	conversation(&o, 0xc0a84c0f, 0xc0a84c02, 0xc0a84c03);
	inet_pton(AF_INET, "192.168.76.100", &o.host);
	inet_pton(AF_INET, "192.168.76.99", &o.dns);
	conversation(&o, 0xc0a84c0f, 0xc0a84c64, 0xc0a84c63);
}

static void test_ping(void **state)
{
	struct net_rig r;
	uint8_t *reply;

	open_user(&r, &plain);
	introduce(&r);
	ethernet(gateway, 0x0800);
	frame[34] = 8;
	memcpy(frame + 42, "abcdefgh", 8);
	be16(frame + 36, (uint16_t)~slow_sum(frame + 34, 16, 0));
	rig_send(&r, NULL, frame, ip(1, 0x0a00020f, 0x0a000202, 16));
	reply = wait_for(&r, is_ping, NULL, 3000);
	assert_non_null(reply);
	assert_memory_equal(reply + 42, "abcdefgh", 8);
	free(reply);
	rig_close(&r);
}

static int listener(int type, uint16_t *port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, type, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	if (type == SOCK_STREAM)
		assert_int_equal(listen(fd, 4), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	*port = ntohs(a.sin_port);
	return fd;
}

static bool readable(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};

	return poll(&p, 1, ms) == 1;
}

static void send_udp(struct net_rig *r, uint32_t to, uint16_t port, const void *data, uint32_t len)
{
	ethernet(gateway, 0x0800);
	be16(frame + 34, 7000);
	be16(frame + 36, port);
	be16(frame + 38, 8 + len);
	memcpy(frame + 42, data, len);
	rig_send(r, NULL, frame, ip(17, 0x0a00020f, to, 8 + len));
}

static void test_udp(void **state)
{
	struct sockaddr_in from;
	socklen_t from_len = sizeof(from);
	struct net_rig r;
	uint16_t port;
	uint8_t *reply;
	char buf[100];
	int fd = listener(SOCK_DGRAM, &port);

	open_user(&r, &plain);
	introduce(&r);
	send_udp(&r, 0x0a000202, port, "to the host", 11);
	assert_true(readable(fd, 3000));
	assert_int_equal(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &from_len), 11);
	assert_memory_equal(buf, "to the host", 11);
	assert_int_equal(sendto(fd, "and back", 8, 0, (struct sockaddr *)&from, from_len), 8);
	reply = wait_for(&r, is_udp, NULL, 3000);
	assert_non_null(reply);
	assert_memory_equal(reply + 42, "and back", 8);
	free(reply);
	rig_close(&r);
	close(fd);
}

/* One UDP frame that stands for many datagrams. */
static void test_udp_segmentation(void **state)
{
	struct flow flow = {.udp = true};
	struct net_rig r;
	struct net_hdr hdr;
	uint16_t port;
	uint32_t len;
	char buf[2000];
	int fd = listener(SOCK_DGRAM, &port);

	open_user(&r, &plain);
	introduce(&r);
	memcpy(flow.src_mac, mac, 6);
	memcpy(flow.dst_mac, gateway, 6);
	len = flow_frame(&flow, frame, payload, 10500, false);
	be32(frame + 26, 0x0a00020f);
	be32(frame + 30, 0x0a000202);
	be16(frame + 36, port);
	hdr = flow_gso(&flow, frame, len, 1000);
	rig_send(&r, &hdr, frame, len);
	for (unsigned i = 0; i < 11; i++) {
		assert_true(readable(fd, 3000));
		assert_int_equal(recv(fd, buf, sizeof(buf), 0), i < 10 ? 1000 : 500);
		assert_memory_equal(buf, payload + 1000 * i, i < 10 ? 1000 : 500);
	}
	rig_close(&r);
	close(fd);
}

static void send_tcp(struct net_rig *r, uint16_t from, uint16_t port, uint32_t seq, uint32_t ack, unsigned flags, const void *data,
		     uint32_t len, uint16_t gso)
{
	struct net_hdr hdr = {.flags = NET_HDR_NEEDS_CSUM, .csum_start = 34, .csum_offset = 16, .hdr_len = 54};

	ethernet(gateway, 0x0800);
	be16(frame + 34, from);
	be16(frame + 36, port);
	be32(frame + 38, seq);
	be32(frame + 42, ack);
	frame[46] = 0x50;
	frame[47] = (uint8_t)flags;
	be16(frame + 48, 65535);
	if (len)
		memcpy(frame + 54, data, len);
	ip(6, 0x0a00020f, 0x0a000202, 20 + len);
	be16(frame + 50, slow_sum(frame + 26, 8, 20 + len + 6));
	hdr.gso_type = gso ? NET_GSO_TCPV4 : NET_GSO_NONE;
	hdr.gso_size = gso;
	rig_send(r, &hdr, frame, 54 + len);
}

/* A connection of the guest to a server on the host's loopback; *ack is what to acknowledge. -1: refused or silent. */
static int handshake(struct net_rig *r, int server, uint16_t port, uint32_t *ack)
{
	uint8_t *reply;
	bool ok;

	send_tcp(r, 5000, port, 1000, 0, 2, NULL, 0, 0);
	reply = wait_for(r, is_tcp, NULL, 1000);
	ok = reply && (reply[47] & 0x16) == 0x12 && get32(reply + 42) == 1001;
	*ack = ok ? get32(reply + 38) + 1 : 0;
	free(reply);
	if (!ok)
		return -1;
	send_tcp(r, 5000, port, 1001, *ack, 0x10, NULL, 0, 0);
	return readable(server, 3000) ? accept(server, NULL, NULL) : -1;
}

static void test_tcp(void **state)
{
	static uint8_t got[65536];
	struct net_rig r;
	uint32_t ack, len = 0, sum = 0, first, joined = 0;
	uint16_t port;
	uint8_t *reply;
	int server = listener(SOCK_STREAM, &port), fd;

	open_user(&r, &plain);
	introduce(&r);
	fd = handshake(&r, server, port, &ack);
	assert_true(fd >= 0);
	/* 40 KB in one frame, segmentation undone: a byte stream all the same. */
	send_tcp(&r, 5000, port, 1001, ack, 0x18, payload, 40000, 1460);
	while (sum < 40000) {
		ssize_t n;

		assert_true(readable(fd, 3000));
		n = read(fd, got + sum, sizeof(got) - sum);
		assert_true(n > 0);
		sum += (uint32_t)n;
	}
	assert_int_equal(sum, 40000);
	assert_memory_equal(got, payload, 40000);
	/* And back: segments come joined, valid, and in order. */
	assert_int_equal(write(fd, payload, 30000), 30000);
	first = ack;
	while (ack - first < 30000) {
		struct net_packet p;

		reply = wait_for(&r, is_tcp, &len, 3000);
		assert_non_null(reply);
		assert_true(net_parse(reply, len, &p));
		if (p.end > p.payload) {
			assert_int_equal(get32(reply + 38), ack);
			assert_memory_equal(reply + p.payload, payload + (ack - first), p.end - p.payload);
			joined += p.end - p.payload > 1460;
			ack += p.end - p.payload;
			send_tcp(&r, 5000, port, 41001, ack, 0x10, NULL, 0, 0);
		}
		free(reply);
	}
	assert_true(joined > 0);
	close(fd);
	rig_close(&r);
	close(server);
}

/* ---- what the guest must not reach ---- */

/* Addresses that mean the host to the host's kernel, whatever the guest calls them: only the router's is the way there. */
static void test_loopback_addresses(void **state)
{
	static const uint32_t hosts[] = {0x7f000001, 0x7f010203, 0, 0x00000001};
	struct net_rig r;
	uint16_t port;
	char c;
	int fd = listener(SOCK_DGRAM, &port);

	open_user(&r, &plain);
	introduce(&r);
	for (size_t i = 0; i < ARRAY_LEN(hosts); i++)
		send_udp(&r, hosts[i], port, "x", 1);
	send_udp(&r, 0x0a000202, port, "y", 1);
	assert_true(readable(fd, 3000));
	assert_int_equal(recv(fd, &c, 1, 0), 1);
	assert_int_equal(c, 'y');
	assert_false(readable(fd, 100));
	rig_close(&r);
	close(fd);
}

static void test_restrict(void **state)
{
	struct net_options o = plain;
	struct net_rig r;
	uint32_t ack;
	uint16_t tcp, udp;
	int server = listener(SOCK_STREAM, &tcp), fd = listener(SOCK_DGRAM, &udp);

	for (unsigned i = 0; i < 2; i++) {
		o.restricted = i == 0;
		o.no_loopback = i == 1;
		open_user(&r, &o);
		introduce(&r);
		assert_int_equal(handshake(&r, server, tcp, &ack), -1);
		send_udp(&r, 0x0a000202, udp, "x", 1);
		send_udp(&r, 0x7f000001, udp, "x", 1);
		assert_false(readable(fd, 200));
		assert_false(readable(server, 0));
		rig_close(&r);
	}
	close(server);
	close(fd);
}

static void test_forward(void **state)
{
	struct net_options o = plain;
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct net_rig r;
	uint16_t tcp, udp;
	uint8_t *reply;
	int probe = listener(SOCK_STREAM, &tcp), fd;

	close(probe);
	probe = listener(SOCK_DGRAM, &udp);
	close(probe);
	o.restricted = true; /* forwarding works all the same */
	o.nforwards = 2;
	o.forwards[0] = (struct net_forward){false, {htonl(INADDR_LOOPBACK)}, tcp, 22};
	o.forwards[1] = (struct net_forward){true, {htonl(INADDR_LOOPBACK)}, udp, 7000};
	open_user(&r, &o);
	introduce(&r);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	a.sin_port = htons(udp);
	assert_int_equal(sendto(fd, "to the guest", 12, 0, (struct sockaddr *)&a, sizeof(a)), 12);
	reply = wait_for(&r, is_udp, NULL, 3000);
	assert_non_null(reply);
	assert_memory_equal(reply + 42, "to the guest", 12);
	free(reply);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	a.sin_port = htons(tcp);
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	reply = wait_for(&r, is_tcp, NULL, 3000);
	assert_non_null(reply);
	assert_int_equal(reply[47] & 0x12, 2);
	assert_int_equal(get16(reply + 36), 22);
	free(reply);
	close(fd);
	rig_close(&r);
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
	struct net_options o = plain;
	uint16_t port;
	int taken = listener(SOCK_STREAM, &port);

	o.nforwards = 1;
	o.forwards[0] = (struct net_forward){false, {htonl(INADDR_LOOPBACK)}, port, 22};
	expect_error(&o, "Address already in use", "choose another");
	close(taken);
	taken = listener(SOCK_DGRAM, &port);
	o.forwards[0] = (struct net_forward){true, {htonl(INADDR_LOOPBACK)}, port, 22};
	expect_error(&o, "UDP port", "choose another");
	close(taken);
	inet_pton(AF_INET, "192.0.2.77", &o.forwards[0].host);
	expect_error(&o, "192.0.2.77", "address of this host");
	o = plain;
	inet_pton(AF_INET, "10.0.3.2", &o.host);
	expect_error(&o, "host=10.0.3.2", "net=");
	inet_pton(AF_INET, "10.0.2.255", &o.host);
	expect_error(&o, "host=10.0.2.255", "net=");
	inet_pton(AF_INET, "10.0.2.3", &o.host);
	expect_error(&o, "must differ", "choose others");
	inet_pton(AF_INET, "10.0.2.15", &o.host);
	expect_error(&o, "must differ", "choose others");
}

/* Opened and closed again and again: nothing stays behind. */
static void test_nothing_is_left(void **state)
{
	int before = dup(0), after;

	close(before);
	for (unsigned i = 0; i < 50; i++) {
		struct net_rig r;

		open_user(&r, &plain);
		if (i % 2)
			introduce(&r);
		rig_close(&r);
	}
	after = dup(0);
	close(after);
	assert_int_equal(before, after);
}

static int fill(void **state)
{
	srandom(9);
	for (size_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)random();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dhcp),
		cmocka_unit_test(test_ping),
		cmocka_unit_test(test_udp),
		cmocka_unit_test(test_udp_segmentation),
		cmocka_unit_test(test_tcp),
		cmocka_unit_test(test_loopback_addresses),
		cmocka_unit_test(test_restrict),
		cmocka_unit_test(test_forward),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_nothing_is_left),
	};

	return cmocka_run_group_tests(tests, fill, NULL);
}
