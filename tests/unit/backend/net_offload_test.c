/* Fifo, checksums, segmentation and joining, against plain references. tap_test.c has Linux for a judge. */
#include "net_rig.h"

#include <stdlib.h>
#include <string.h>

#include "backend/net/coalesce.h"
#include "backend/net/offload.h"

static uint8_t payload[70000];
static uint8_t buffer[80000];

static struct net_frame *new_frame(void) { return calloc(1, sizeof(struct net_frame) + NET_FRAME_MAX); }

static int fill_payload(void **state)
{
	srandom(7);
	for (size_t i = 0; i < sizeof(payload); i++)
		payload[i] = (uint8_t)random();
	return 0;
}

static void test_sum(void **state)
{
	for (unsigned i = 0; i < 20000; i++) {
		size_t off = (size_t)random() % 64, len = (size_t)random() % (i % 50 ? 200 : 66000);
		uint32_t start = (uint32_t)random() & 0xffff;
		uint16_t fast = net_sum(payload + off, len, start), slow;

		/* The same in the other byte order (RFC 1071, 2.B). */
		slow = slow_sum(payload + off, len, __builtin_bswap16((uint16_t)start));
		if (fast != __builtin_bswap16(slow) && !((fast == 0 || fast == 0xffff) && (slow == 0 || slow == 0xffff)))
			fail_msg("offset %zu length %zu: %04x %04x", off, len, fast, slow);
	}
	memset(buffer, 0xff, sizeof(buffer));
	assert_int_equal(net_sum(buffer, 66000, 0xffff), 0xffff);
}

/* ---- the fifo ---- */

static void test_fifo_is_a_queue(void **state)
{
	struct net_fifo f;
	uint32_t lens[4096];
	unsigned head = 0, tail = 0, refused = 0, wrapped = 0;

	assert_true(net_fifo_init(&f, 8192));
	for (unsigned i = 0; i < 200000; i++) {
		uint32_t max = (uint32_t)random() % 3000, len = (uint32_t)random() % (max + 1);
		struct net_frame *frame;

		assert_int_equal(f.count, tail - head);
		assert_true(net_fifo_used(&f) <= 8192);
		wrapped += f.wrap != 0;
		switch (random() % 5) {
		case 0: case 1:
			frame = net_fifo_reserve(&f, max);
			if (!frame) {
				refused++;
				assert_true(net_fifo_used(&f) + 2 * max + 100 > 8192 / 2);
				break;
			}
			if (random() % 4 == 0)
				break; /* not committed: as if it had never been */
			frame->len = len;
			memset(frame->data, (int)(tail & 0xff), len);
			net_fifo_commit(&f, frame);
			lens[tail++ % 4096] = len;
			break;
		case 2:
			if (net_fifo_grow(&f, 40)) {
				frame = net_fifo_last(&f);
				memset(frame->data, (int)((tail - 1) & 0xff), frame->len);
				assert_int_equal(frame->len, lens[(tail - 1) % 4096] + 40);
				lens[(tail - 1) % 4096] += 40;
			}
			break;
		default:
			frame = net_fifo_first(&f);
			assert_int_equal(!frame, head == tail);
			if (!frame)
				break;
			assert_int_equal(frame->len, lens[head % 4096]);
			for (uint32_t b = 0; b < frame->len; b++)
				assert_int_equal(frame->data[b], head & 0xff);
			net_fifo_drop(&f);
			head++;
		}
	}
	assert_true(refused > 100 && wrapped > 1000 && head > 10000);
	net_fifo_clear(&f);
	assert_true(net_fifo_empty(&f));
	net_fifo_drop(&f);
	assert_null(net_fifo_reserve(&f, 8192));
	assert_non_null(net_fifo_reserve(&f, 8192 - sizeof(struct net_frame)));
	net_fifo_fini(&f);
}

/* ---- checksums ---- */

static void test_csum_finish(void **state)
{
	struct net_frame *f = new_frame();

	for (unsigned i = 0; i < 8; i++) {
		struct flow flow = {.ipv6 = i & 1, .udp = i & 2, .options = i & 4 ? 12 : 0, .tcp_flags = 0x18};

		for (uint32_t len = 0; len < 3000; len += 1 + (uint32_t)random() % 50) {
			f->len = flow_frame(&flow, f->data, payload + len % 16, len, true);
			memcpy(buffer, f->data, f->len);
			f->hdr = flow_gso(&flow, f->data, f->len, 0);
			f->hdr.gso_type = NET_GSO_NONE;
			assert_true(net_offload_valid(f, NET_CSUM));
			assert_false(net_offload_valid(f, 0));
			net_csum_finish(f);
			assert_memory_equal(f->data, buffer, f->len);
			assert_int_equal(f->hdr.flags, 0);
			f->data[flow_headers(&flow) - 1] ^= (uint8_t)(flow.udp ? 0x5a : 0);
			if (!flow.udp)
				put_le16(f->data + f->hdr.csum_start + 50, 0x1234);
			assert_true(net_csum_fill(f->data, f->len));
			assert_true(sums_right(f->data, f->len));
		}
	}
	free(f);
}

/* A UDP checksum that comes out as 0 is sent as all ones: 0 means none (RFC 768). */
static void test_udp_zero(void **state)
{
	struct flow flow = {.udp = true};
	uint8_t data[2] = {0};
	uint32_t len = 0;
	struct net_packet p;

	for (unsigned v = 0; v < 65536; v++) {
		data[0] = (uint8_t)(v >> 8);
		data[1] = (uint8_t)v;
		len = flow_frame(&flow, buffer, data, 2, false);
		assert_true(net_csum_fill(buffer, len));
		if (get_le16(buffer + 40) == 0xffff)
			break;
	}
	assert_int_equal(get_le16(buffer + 40), 0xffff);
	assert_true(net_parse(buffer, len, &p) && p.end == len && p.protocol == IPPROTO_UDP);
}

static void test_bad_headers(void **state)
{
	struct net_frame *f = new_frame();
	struct flow flow = {.tcp_flags = 0x10};
	struct net_hdr good;

	f->len = flow_frame(&flow, f->data, payload, 5000, false);
	good = flow_gso(&flow, f->data, f->len, 1000);
	f->hdr = good;
	assert_true(net_offload_valid(f, NET_ALL));
	assert_false(net_offload_valid(f, NET_CSUM | NET_TSO6 | NET_USO | NET_TSO_ECN));
	assert_false(net_offload_valid(f, NET_TSO4));
	f->hdr.gso_type |= NET_GSO_ECN;
	assert_true(net_offload_valid(f, NET_ALL));
	assert_false(net_offload_valid(f, NET_CSUM | NET_TSO4));
	static const struct net_hdr bad[] = {
		{.flags = 1, .csum_start = 5054, .csum_offset = 0}, {.flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff},
		{.flags = 1, .csum_start = 5053, .csum_offset = 0}, {.flags = 1, .gso_type = 2, .gso_size = 100},
		{.flags = 1, .gso_type = 3, .gso_size = 100}, {.flags = 1, .gso_type = 0x81, .gso_size = 0},
		{.flags = 1, .gso_type = 1, .gso_size = 7}, {.flags = 0, .gso_type = 1, .gso_size = 100},
		{.flags = 1, .gso_type = 0x80, .gso_size = 100}, {.flags = 1, .gso_type = 0xff, .gso_size = 100},
	};

	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		f->hdr = bad[i];
		assert_false(net_offload_valid(f, NET_ALL));
	}
	f->hdr = (struct net_hdr){0};
	f->len = NET_FRAME_MIN - 1;
	assert_false(net_offload_valid(f, NET_ALL));
	free(f);
}

/* ---- segmentation ---- */

struct pieces {
	uint8_t *data[8200];
	uint32_t len[8200];
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

static void pieces_free(struct pieces *p)
{
	while (p->n)
		free(p->data[--p->n]);
}

/* What a sender without offloads would have sent. */
static void expect_pieces(const struct flow *flow, const struct pieces *p, uint32_t len, uint32_t size)
{
	unsigned i = 0;

	for (uint32_t off = 0; off < len; off += size, i++) {
		uint32_t n = (uint32_t)min_u64(size, len - off), got;
		struct flow one = *flow;

		one.seq += off;
		one.id = (uint16_t)(one.id + i);
		if (off + n < len)
			one.tcp_flags &= (uint8_t)~9;
		if (off)
			one.tcp_flags &= 0x7f;
		got = flow_frame(&one, buffer, payload + off, n, true);
		assert_true(i < p->n);
		assert_int_equal(p->len[i], got);
		assert_memory_equal(p->data[i], buffer, got);
	}
	assert_int_equal(i, p->n);
}

static void test_segment(void **state)
{
	struct net_frame *f = new_frame();
	struct pieces *p = calloc(1, sizeof(*p));

	for (unsigned i = 0; i < 400; i++) {
		struct flow flow = {.ipv6 = i & 1, .udp = i & 2, .options = (unsigned)(i / 4 % 11) * 4,
				    .tcp_flags = (uint8_t)(0x10 | (i & 8 ? 9 : 0) | (i & 16 ? 0x80 : 0)),
				    .seq = (uint32_t)random() * 2u, .id = (uint16_t)random()};
		uint32_t len = 1 + (uint32_t)random() % 65000;
		uint16_t size = (uint16_t)(i % 10 ? 500 + random() % 8000 : 8 + random() % 100);

		f->len = flow_frame(&flow, f->data, payload, len, false);
		f->hdr = flow_gso(&flow, f->data, f->len, size);
		assert_true(net_offload_valid(f, NET_ALL));
		assert_true(net_segment(f, emit, p));
		expect_pieces(&flow, p, len, size);
		pieces_free(p);
	}
	free(p);
	free(f);
}

static void test_segment_refuses(void **state)
{
	struct net_frame *f = new_frame();
	struct pieces p = {.n = 0};
	struct flow flow = {.tcp_flags = 0x10};

	f->len = flow_frame(&flow, f->data, payload, 3000, false);
	f->hdr = flow_gso(&flow, f->data, f->len, 1000);
	f->hdr.gso_type = NET_GSO_TCPV6;
	assert_false(net_segment(f, emit, &p));
	f->hdr.gso_type = NET_GSO_UDP_L4;
	assert_false(net_segment(f, emit, &p));
	f->hdr.gso_type = NET_GSO_TCPV4;
	f->data[20] |= 0x20; /* a fragment */
	assert_false(net_segment(f, emit, &p));
	f->data[20] &= 0xdf;
	f->data[14] = 0x4f; /* 40 bytes of options: TCP is elsewhere then, whatever is there */
	f->data[17] = 10;
	f->data[16] = 0;
	assert_false(net_segment(f, emit, &p));
	f->len = 30;
	assert_false(net_segment(f, emit, &p));
	assert_int_equal(p.n, 0);
	free(f);
}

/* VLAN tags stay on each piece. */
static void test_segment_vlan(void **state)
{
	struct net_frame *f = new_frame();
	struct pieces *p = calloc(1, sizeof(*p));
	struct flow flow = {.tcp_flags = 0x10};
	uint32_t len = flow_frame(&flow, buffer, payload, 5000, false);

	f->hdr = flow_gso(&flow, buffer, len, 1400);
	memcpy(f->data, buffer, 12);
	memcpy(f->data + 12, "\x81\x00\x00\x05", 4);
	memcpy(f->data + 16, buffer + 12, len - 12);
	f->len = len + 4;
	f->hdr.csum_start += 4;
	assert_true(net_segment(f, emit, p));
	assert_int_equal(p->n, 4);
	for (unsigned i = 0; i < 4; i++) {
		assert_memory_equal(p->data[i] + 12, "\x81\x00\x00\x05\x08\x00", 6);
		memmove(p->data[i] + 12, p->data[i] + 16, p->len[i] - 16);
		assert_true(sums_right(p->data[i], p->len[i] - 4));
	}
	pieces_free(p);
	free(p);
	free(f);
}

/* ---- joining ---- */

#define ALL (NET_CSUM | NET_TSO4 | NET_TSO6 | NET_USO | NET_TSO_ECN)

/* What was joined, cut again, is what came. */
static void test_coalesce_is_undone_by_segment(void **state)
{
	struct net_fifo fifo;
	struct pieces *in = calloc(1, sizeof(*in)), *out = calloc(1, sizeof(*out));
	struct net_frame *f = new_frame();

	assert_true(net_fifo_init(&fifo, MIB));
	for (unsigned i = 0; i < 200; i++) {
		struct flow flow = {.ipv6 = i & 1, .options = i & 2 ? 12 : 0, .tcp_flags = i & 4 ? 0x18 : 0x10,
				    .seq = (uint32_t)random() * 2u, .id = (uint16_t)random()};
		uint32_t len = 3000 + (uint32_t)random() % 60000;
		uint16_t size = (uint16_t)(536 + random() % 3000);

		f->len = flow_frame(&flow, f->data, payload, len, false);
		f->hdr = flow_gso(&flow, f->data, f->len, size);
		assert_true(net_segment(f, emit, in));
		for (unsigned k = 0; k < in->n; k++)
			assert_true(net_coalesce(&fifo, in->data[k], in->len[k], ALL));
		assert_int_equal(fifo.count, 1);
		if (len > size) {
			assert_int_equal(net_fifo_first(&fifo)->hdr.gso_size, size);
			assert_true(net_offload_valid(net_fifo_first(&fifo), ALL));
			assert_memory_equal(net_fifo_first(&fifo)->data, f->data, f->len);
			assert_true(net_segment(net_fifo_first(&fifo), emit, out));
			assert_int_equal(in->n, out->n);
			for (unsigned k = 0; k < in->n; k++) {
				assert_int_equal(in->len[k], out->len[k]);
				assert_memory_equal(in->data[k], out->data[k], in->len[k]);
			}
		}
		net_fifo_clear(&fifo);
		pieces_free(in);
		pieces_free(out);
	}
	net_fifo_fini(&fifo);
	free(in);
	free(out);
	free(f);
}

static unsigned join_two(struct net_fifo *fifo, const struct flow *a, uint32_t alen, const struct flow *b, uint32_t blen, unsigned accepts)
{
	net_fifo_clear(fifo);
	assert_true(net_coalesce(fifo, buffer, flow_frame(a, buffer, payload, alen, true), accepts));
	assert_true(net_coalesce(fifo, buffer, flow_frame(b, buffer, payload, blen, true), accepts));
	return fifo->count;
}

static void test_what_is_not_joined(void **state)
{
	struct flow a = {.tcp_flags = 0x10, .seq = 1000}, b = {.tcp_flags = 0x10, .seq = 2000, .id = 1}, c;
	struct net_fifo fifo;

	assert_true(net_fifo_init(&fifo, MIB));
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 1000, ALL), 1);
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 1, ALL), 1);
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 1001, ALL), 2); /* longer than the first */
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 0, ALL), 2);
	assert_int_equal(join_two(&fifo, &a, 999, &b, 10, ALL), 2); /* a gap */
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 1000, NET_CSUM | NET_TSO6), 2);
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 1000, NET_TSO4), 2);
	assert_int_equal(join_two(&fifo, &a, 1000, &b, 1000, 0), 2);
	for (unsigned flag = 1; flag < 256; flag <<= 1) {
		if (flag == 0x08 || flag == 0x10)
			continue;
		c = b;
		c.tcp_flags |= (uint8_t)flag;
		assert_int_equal(join_two(&fifo, &a, 1000, &c, 1000, ALL), 2);
		c = a;
		c.tcp_flags |= (uint8_t)flag;
		assert_int_equal(join_two(&fifo, &c, 1000, &b, 1000, ALL), 2);
	}
	c = a;
	c.tcp_flags |= 8; /* PSH ends it */
	assert_int_equal(join_two(&fifo, &c, 1000, &b, 1000, ALL), 2);
	c = b;
	c.options = 4;
	assert_int_equal(join_two(&fifo, &a, 1000, &c, 1000, ALL), 2);
	c.options = 40; /* its headers are as long as the other's frame */
	assert_int_equal(join_two(&fifo, &a, 40, &c, 10, ALL), 2);
	c = b;
	c.ipv6 = true;
	assert_int_equal(join_two(&fifo, &a, 1000, &c, 1000, ALL), 2);
	c = b;
	c.udp = true;
	assert_int_equal(join_two(&fifo, &a, 1000, &c, 1000, ALL), 2);
	c = b;
	c.src_mac[0] = 2;
	assert_int_equal(join_two(&fifo, &a, 1000, &c, 1000, ALL), 2);
	/* A short one is the last of its frame. */
	join_two(&fifo, &a, 1000, &b, 500, ALL);
	c = b;
	c.seq = 2500;
	net_coalesce(&fifo, buffer, flow_frame(&c, buffer, payload, 500, true), ALL);
	assert_int_equal(fifo.count, 2);
	/* 64 KiB are the end of one frame, a full fifo of all. */
	net_fifo_clear(&fifo);
	for (unsigned i = 0; i < 1500; i++) {
		c = a;
		c.seq += 1000 * i;
		if (!net_coalesce(&fifo, buffer, flow_frame(&c, buffer, payload, 1000, true), ALL))
			break;
	}
	assert_in_range(fifo.count, 10, 20);
	for (; fifo.count; net_fifo_drop(&fifo))
		assert_true(net_offload_valid(net_fifo_first(&fifo), ALL));
	net_fifo_fini(&fifo);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sum),
		cmocka_unit_test(test_fifo_is_a_queue),
		cmocka_unit_test(test_csum_finish),
		cmocka_unit_test(test_udp_zero),
		cmocka_unit_test(test_bad_headers),
		cmocka_unit_test(test_segment),
		cmocka_unit_test(test_segment_refuses),
		cmocka_unit_test(test_segment_vlan),
		cmocka_unit_test(test_coalesce_is_undone_by_segment),
		cmocka_unit_test(test_what_is_not_joined),
	};

	return cmocka_run_group_tests(tests, fill_payload, NULL);
}
