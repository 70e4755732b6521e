/* Split rings (virtio 1.2, 2.7): what a good driver does, and everything that a bad one may do. */
#include "fixture.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "dev/virtio/virtqueue.h"

#define SIZE 8
#define DESC 0x1000
#define AVAIL 0x2000
#define USED 0x3000
#define TABLE 0x4000
#define DATA 0x10000
#define RAM_SIZE (32 * MIB)

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct rig {
	struct ram *ram;
	struct virtqueue q;
	struct virtqueue_chain c;
	uint64_t watched; /* bytes that ram_wrote told of */
};

static void watcher(void *ctx, gpa_t gpa, uint64_t len) { ((struct rig *)ctx)->watched += len; }

static void poke(struct rig *r, gpa_t at, const void *p, uint64_t len) { assert_true(ram_write(r->ram, at, p, len)); }
static void poke16(struct rig *r, gpa_t at, uint16_t v) { poke(r, at, &v, 2); }

static uint32_t peek(struct rig *r, gpa_t at, unsigned size)
{
	uint32_t v = 0;

	assert_true(ram_read(r->ram, at, &v, size));
	return v;
}

static void desc_at(struct rig *r, gpa_t table, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	uint8_t d[16];

	put_le64(d, addr);
	put_le32(d + 8, len);
	put_le16(d + 12, flags);
	put_le16(d + 14, next);
	poke(r, table + 16 * i, d, 16);
}

static void desc(struct rig *r, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	desc_at(r, DESC, i, addr, len, flags, next);
}

static void offer(struct rig *r, uint16_t head)
{
	uint16_t idx = (uint16_t)peek(r, AVAIL + 2, 2);

	poke16(r, AVAIL + 4 + 2 * (idx % r->q.s.size), head);
	poke16(r, AVAIL + 2, idx + 1);
}

static int setup(void **state)
{
	static struct rig r;

	memset(&r, 0, sizeof(r));
	r.ram = ram_new(RAM_SIZE, NULL);
	assert_non_null(r.ram);
	r.q.ram = r.ram;
	r.q.s = (struct virtqueue_state){.size = SIZE, .desc = DESC, .avail = AVAIL, .used = USED};
	assert_true(virtqueue_enable(&r.q));
	*state = &r;
	return 0;
}

static int teardown(void **state)
{
	ram_free(((struct rig *)*state)->ram);
	return 0;
}

static void test_chain_of_three(void **state)
{
	struct rig *r = *state;

	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_EMPTY);
	desc(r, 5, DATA, 16, NEXT, 2);
	desc(r, 2, DATA + 0x1000, 100, NEXT | WRITE, 7);
	desc(r, 7, DATA + 0x2000, 1, WRITE, 99);
	offer(r, 5);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(r->c.head, 5);
	assert_int_equal(r->c.nread, 1);
	assert_int_equal(r->c.nwrite, 2);
	assert_int_equal(r->c.read_len, 16);
	assert_int_equal(r->c.write_len, 101);
	assert_ptr_equal(r->c.segs[2].ptr, ram_ptr(r->ram, DATA + 0x2000, 1));
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_EMPTY);
}

static void test_indirect(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < 20; i++) /* longer than the queue: its own table counts */
		desc_at(r, TABLE, i, DATA + 0x100 * i, 0x100, i < 19 ? NEXT | (i >= 10 ? WRITE : 0) : WRITE,
			(uint16_t)(i + 1));
	desc(r, 0, DATA + 0x8000, 4, NEXT, 1);
	desc(r, 1, TABLE, 20 * 16, INDIRECT, 0);
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(r->c.nread, 11);
	assert_int_equal(r->c.nwrite, 10);
	assert_int_equal(r->c.read_len, 10 * 0x100 + 4);
}

static void test_write_and_push(void **state)
{
	struct rig *r = *state;
	uint8_t data[64], back[64];

	for (unsigned i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i + 1);
	desc(r, 0, DATA, 10, NEXT | WRITE, 1);
	desc(r, 1, DATA + 0x1000, 5, NEXT | WRITE, 2);
	desc(r, 2, DATA + 0x2000, 7, WRITE, 0);
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	memset(ram_watch_map(r->ram), 1, RAM_SIZE / PAGE_SIZE);
	ram_set_watcher(r->ram, watcher, r);
	assert_int_equal(virtqueue_write(&r->q, &r->c, 8, data, sizeof(data)), 14);
	assert_int_equal(r->watched, 14);
	ram_read(r->ram, DATA, back, 10);
	assert_int_equal(back[7], 0);
	assert_int_equal(back[8], 1);
	ram_read(r->ram, DATA + 0x1000, back, 6);
	assert_memory_equal(back, data + 2, 5);
	assert_int_equal(back[5], 0);
	ram_read(r->ram, DATA + 0x2000, back, 8);
	assert_memory_equal(back, data + 7, 7);
	assert_int_equal(back[7], 0);
	assert_int_equal(virtqueue_write(&r->q, &r->c, 22, data, 1), 0);
	r->watched = 0;
	virtqueue_push(&r->q, &r->c, 22);
	assert_int_equal(peek(r, USED + 2, 2), 1);
	assert_int_equal(peek(r, USED + 4, 4), 0);
	assert_int_equal(peek(r, USED + 8, 4), 22);
	assert_true(r->watched >= 10);
}

static void test_indices_wrap(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < 3 * 65536 / SIZE; i++) {
		for (unsigned j = 0; j < SIZE; j++) {
			desc(r, j, DATA + j, 1, WRITE, 0);
			offer(r, (uint16_t)j);
		}
		for (unsigned j = 0; j < SIZE; j++) {
			assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
			assert_int_equal(r->c.head, j);
			virtqueue_push(&r->q, &r->c, 1);
		}
		assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_EMPTY);
	}
	assert_int_equal(peek(r, USED + 2, 2), 0);
}

static void push_one(struct rig *r)
{
	desc(r, 0, DATA, 1, WRITE, 0);
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	virtqueue_push(&r->q, &r->c, 1);
}

static void test_interrupt_flag(void **state)
{
	struct rig *r = *state;

	assert_false(virtqueue_wants_interrupt(&r->q)); /* nothing pushed */
	push_one(r);
	assert_true(virtqueue_wants_interrupt(&r->q));
	assert_false(virtqueue_wants_interrupt(&r->q));
	poke16(r, AVAIL, 1); /* VIRTQ_AVAIL_F_NO_INTERRUPT */
	push_one(r);
	assert_false(virtqueue_wants_interrupt(&r->q));
}

static void test_event_index(void **state)
{
	struct rig *r = *state;

	r->q.s.event_idx = true;
	poke16(r, AVAIL, 1); /* the flag means nothing now */
	poke16(r, AVAIL + 4 + 2 * SIZE, 2); /* used_event: tell me when used 2 was filled */
	for (unsigned i = 0; i < 5; i++) {
		push_one(r);
		assert_int_equal(virtqueue_wants_interrupt(&r->q), i == 2);
	}
	/* Several at once, passing the event. */
	poke16(r, AVAIL + 4 + 2 * SIZE, 6);
	push_one(r);
	push_one(r);
	push_one(r);
	assert_true(virtqueue_wants_interrupt(&r->q));
	/* avail_event is only written when the queue was found empty. */
	poke16(r, USED + 4 + 8 * SIZE, 0x5555);
	desc(r, 0, DATA, 1, WRITE, 0);
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(peek(r, USED + 4 + 8 * SIZE, 2), 0x5555);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_EMPTY);
	assert_int_equal(peek(r, USED + 4 + 8 * SIZE, 2), r->q.s.next_avail);
}

static void test_rings_must_lie_in_ram(void **state)
{
	static const struct { uint64_t desc, avail, used; bool ok; } at[] = {
		{DESC, AVAIL, USED, true},
		{DESC + 8, AVAIL, USED, false},
		{DESC, AVAIL + 1, USED, false},
		{DESC, AVAIL, USED + 2, false},
		{RAM_SIZE - 16 * SIZE, AVAIL, USED, true},
		{RAM_SIZE - 16 * SIZE + 16, AVAIL, USED, false},
		{DESC, RAM_SIZE - (6 + 2 * SIZE), USED, true},
		{DESC, RAM_SIZE - (4 + 2 * SIZE), USED, false},
		{DESC, AVAIL, RAM_SIZE - (8 + 8 * SIZE), true},
		{DESC, AVAIL, RAM_SIZE - (4 + 8 * SIZE), false},
		{UINT64_MAX & ~15ull, AVAIL, USED, false},
		{DESC, UINT64_MAX & ~1ull, USED, false},
		{DESC, AVAIL, UINT64_MAX & ~3ull, false},
		{3 * GIB, AVAIL, USED, false},
		{0xfee00000, 0xfec00000, 0xc0000000, false},
	};
	struct rig *r = *state;

	for (size_t i = 0; i < ARRAY_LEN(at); i++) {
		r->q.s = (struct virtqueue_state){
			.size = SIZE, .desc = at[i].desc, .avail = at[i].avail, .used = at[i].used};
		assert_int_equal(virtqueue_enable(&r->q), at[i].ok);
		assert_int_equal(r->q.s.enabled, at[i].ok);
	}
}

static void expect_broken(struct rig *r)
{
	uint16_t before = r->q.s.next_avail;

	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_BROKEN);
	assert_int_equal(r->q.s.next_avail, before);
	poke16(r, AVAIL + 2, before); /* take it back for the next case */
}

static void test_malicious_chains(void **state)
{
	struct rig *r = *state;

	desc(r, 0, DATA, 1, NEXT, 0); /* itself */
	expect_broken(r);
	desc(r, 0, DATA, 1, NEXT, 1); /* a ring of two */
	desc(r, 1, DATA, 1, NEXT, 0);
	expect_broken(r);
	for (unsigned i = 0; i < SIZE; i++) /* all, and round again */
		desc(r, i, DATA, 1, NEXT, (uint16_t)((i + 1) % SIZE));
	expect_broken(r);
	desc(r, 0, DATA, 1, NEXT, SIZE); /* beyond the table */
	expect_broken(r);
	desc(r, 0, DATA, 1, NEXT, 0xffff);
	expect_broken(r);
	desc(r, 0, DATA, 0, 0, 0); /* no length */
	expect_broken(r);
	desc(r, 0, DATA, 0xffffffff, 0, 0); /* far too long */
	expect_broken(r);
	desc(r, 0, RAM_SIZE - 1, 2, WRITE, 0); /* over the end of RAM */
	expect_broken(r);
	desc(r, 0, UINT64_MAX, 1, 0, 0);
	expect_broken(r);
	desc(r, 0, UINT64_MAX - 3, 8, WRITE, 0); /* wraps */
	expect_broken(r);
	desc(r, 0, 0xfee00000, 4, WRITE, 0); /* a device */
	expect_broken(r);
	desc(r, 0, DATA, 1, NEXT | WRITE, 1); /* readable after writable */
	desc(r, 1, DATA, 1, 0, 0);
	expect_broken(r);
	/* The queue still works afterwards. */
	desc(r, 0, DATA, 1, 0, 0);
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
}

static void test_malicious_indirect(void **state)
{
	struct rig *r = *state;

	desc_at(r, TABLE, 0, DATA, 1, 0, 0);
	desc(r, 0, TABLE, 0, INDIRECT, 0);
	expect_broken(r);
	desc(r, 0, TABLE, 17, INDIRECT, 0); /* not whole descriptors */
	expect_broken(r);
	desc(r, 0, TABLE, 0xfffffff0, INDIRECT, 0);
	expect_broken(r);
	desc(r, 0, RAM_SIZE - 16, 32, INDIRECT, 0);
	expect_broken(r);
	desc(r, 0, UINT64_MAX - 15, 32, INDIRECT, 0);
	expect_broken(r);
	desc(r, 0, TABLE, 16, INDIRECT | NEXT, 1); /* more after it */
	desc(r, 1, DATA, 1, 0, 0);
	expect_broken(r);
	desc(r, 0, TABLE, 16, INDIRECT, 0); /* nested */
	desc_at(r, TABLE, 0, TABLE, 16, INDIRECT, 0);
	expect_broken(r);
	desc_at(r, TABLE, 0, DATA, 1, NEXT, 0); /* loop inside */
	expect_broken(r);
	desc_at(r, TABLE, 0, DATA, 1, NEXT, 1); /* beyond the table, although there is memory */
	desc_at(r, TABLE, 1, DATA, 1, 0, 0);
	expect_broken(r);
	/* More buffers than a chain may have. */
	for (unsigned i = 0; i < 300; i++)
		desc_at(r, TABLE, i, DATA, 1, i < 299 ? NEXT : 0, (uint16_t)(i + 1));
	desc(r, 0, TABLE, 300 * 16, INDIRECT, 0);
	expect_broken(r);
	for (unsigned i = 0; i < 256; i++)
		desc_at(r, TABLE, i, DATA, 1, i < 255 ? NEXT : 0, (uint16_t)(i + 1));
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(r->c.nread, 256);
}

static void test_malicious_ring(void **state)
{
	struct rig *r = *state;

	desc(r, 0, DATA, 1, 0, 0);
	poke16(r, AVAIL + 2, SIZE + 1); /* more than fit */
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_BROKEN);
	poke16(r, AVAIL + 2, 0xffff);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_BROKEN);
	poke16(r, AVAIL + 2, 1);
	poke16(r, AVAIL + 4, SIZE); /* no such head */
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_BROKEN);
	poke16(r, AVAIL + 4, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	poke16(r, AVAIL + 2, 0); /* back in time */
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_BROKEN);
}

/* Overlapping buffers add up to more than a used length can say. */
static void test_total_length(void **state)
{
	struct rig *r = *state;

	for (unsigned i = 0; i < 128; i++)
		desc_at(r, TABLE, i, 0, RAM_SIZE, i < 127 ? NEXT | WRITE : WRITE, (uint16_t)(i + 1));
	desc(r, 0, TABLE, 128 * 16, INDIRECT, 0); /* 4 GiB */
	expect_broken(r);
	desc_at(r, TABLE, 127, 0, RAM_SIZE - 1, WRITE, 0);
	offer(r, 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(r->c.write_len, UINT32_MAX);
}

struct racer {
	struct rig *rig;
	atomic_bool stop;
};

/* A second vCPU that rewrites the descriptor and the table behind it without end. */
static void *rewrite(void *ctx)
{
	static const struct { uint64_t addr; uint32_t len; uint16_t flags; } d[] = {
		{DATA, 16, 0}, {RAM_SIZE - 1, 1, WRITE}, {0, RAM_SIZE, 0}, {UINT64_MAX - 15, 0xffffffff, WRITE},
		{TABLE, 32, INDIRECT}, {RAM_SIZE - 32, 64, INDIRECT}, {DATA, 8, NEXT}, {3 * GIB, 4, WRITE},
	};
	struct racer *race = ctx;
	volatile struct { uint64_t addr; uint32_t len; uint16_t flags, next; } *at[3] = {
		ram_ptr(race->rig->ram, DESC, 16), ram_ptr(race->rig->ram, TABLE, 16), ram_ptr(race->rig->ram, TABLE + 16, 16),
	};

	for (unsigned i = 0; !atomic_load(&race->stop); i++) {
		unsigned a = i * 7 % ARRAY_LEN(d), t = i / 5 % 3;

		at[t]->len = d[(a + i / 64) % ARRAY_LEN(d)].len;
		at[t]->addr = d[a].addr;
		at[t]->flags = d[(a + i / 256) % ARRAY_LEN(d)].flags;
		at[t]->next = (uint16_t)(i & 1);
	}
	return NULL;
}

/* A device that looks by itself asks for no notification, until a pop finds nothing. */
static void test_suppress(void **state)
{
	struct rig *r = *state;

	desc(r, 0, DATA, 16, 0, 0);
	assert_false(virtqueue_waiting(&r->q));
	virtqueue_suppress(&r->q);
	assert_int_equal(peek(r, USED, 2), 1);
	offer(r, 0);
	assert_true(virtqueue_waiting(&r->q));
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(peek(r, USED, 2), 1);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_EMPTY);
	assert_int_equal(peek(r, USED, 2), 0);
	/* With an event index the flags stay 0, and waiting leaves the event where it was. */
	r->q.s.event_idx = true;
	virtqueue_suppress(&r->q);
	offer(r, 0);
	assert_true(virtqueue_waiting(&r->q));
	assert_int_equal(peek(r, USED, 2), 0);
	assert_int_equal(peek(r, USED + 4 + 8 * SIZE, 2), 0);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_CHAIN);
	assert_int_equal(virtqueue_pop(&r->q, &r->c), VIRTQUEUE_EMPTY);
	assert_int_equal(peek(r, USED + 4 + 8 * SIZE, 2), 2);
}

/* What was put is seen by the driver all at once. */
static void test_publish(void **state)
{
	struct rig *r = *state;

	virtqueue_put(&r->q, 3, 100);
	virtqueue_put(&r->q, 6, 200);
	assert_int_equal(peek(r, USED + 2, 2), 0);
	assert_int_equal(peek(r, USED + 4, 4), 3);
	assert_int_equal(peek(r, USED + 8, 4), 100);
	assert_int_equal(peek(r, USED + 12, 4), 6);
	virtqueue_publish(&r->q);
	assert_int_equal(peek(r, USED + 2, 2), 2);
}

/* Whatever is caught in the act: what comes out lies in RAM, and is what was checked. */
static void test_descriptors_change_meanwhile(void **state)
{
	struct racer race = {.rig = *state};
	struct rig *r = *state;
	int64_t end = clock_now() + 20000000000;
	unsigned chains = 0, refused = 0;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, rewrite, &race), 0);
	/* The other thread may get no CPU for a while: go on until it was seen at work. */
	for (unsigned i = 0; (i < 300000 || chains < 1000 || refused < 1000) && clock_now() < end; i++) {
		uint64_t sum = 0;

		poke16(r, AVAIL + 2, r->q.s.next_avail + 1);
		if (virtqueue_pop(&r->q, &r->c) != VIRTQUEUE_CHAIN) {
			refused++;
			continue;
		}
		chains++;
		for (unsigned n = 0; n < r->c.nread + r->c.nwrite; n++) {
			const struct virtqueue_seg *s = &r->c.segs[n];

			if (!range_ok(s->gpa, s->len, RAM_SIZE) || s->ptr != (uint8_t *)ram_view(r->ram) + s->gpa)
				fail_msg("segment %u at 0x%llx", n, (unsigned long long)s->gpa);
			sum += s->len;
		}
		if (sum != (uint64_t)r->c.read_len + r->c.write_len)
			fail_msg("lengths do not add up");
	}
	atomic_store(&race.stop, true);
	pthread_join(thread, NULL);
	assert_true(chains >= 1000 && refused >= 1000);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_chain_of_three),	       T(test_indirect),	 T(test_write_and_push),
		T(test_indices_wrap),	       T(test_interrupt_flag),	 T(test_event_index),
		T(test_rings_must_lie_in_ram), T(test_malicious_chains), T(test_malicious_indirect),
		T(test_malicious_ring),	       T(test_total_length), T(test_descriptors_change_meanwhile),
		T(test_suppress), T(test_publish),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
