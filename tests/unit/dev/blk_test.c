/* virtio-blk driven as a driver does it, and as none should: a real file behind it, the queue's own threads beside it. */
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/virtio/blk.h"

#define ECAM 0xe0000000u
#define BAR 0xc0000000u
#define RAM_SIZE (8 * MIB)
#define DEVFN PCI_DEVFN(16, 0)
#define DISK (1 * MIB)
#define NQUEUES 2
#define QSIZE 64u

enum {
	NEXT = 1, WRITE = 2, INDIRECT = 4,
	IN = 0, OUT = 1, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13,
	OK = 0, IOERR = 1, UNSUPP = 2, NONE = 0xee,
	NEEDS_RESET = 64,
	COMMON = BAR, ISR = BAR + 0x1000, CONFIG = BAR + 0x2000, NOTIFY = BAR + 0x3000,
};

#define F_RO BIT(5)
#define F_FLUSH BIT(9)
#define F_DISCARD BIT(13)
#define F_ZEROES BIT(14)

/* Where things lie in guest RAM. */
#define RINGS 0x10000u
#define HEADERS 0x40000u
#define STATUS 0x41000u
#define TABLE 0x42000u
#define DATA 0x100000u

struct rig {
	struct fixture f;
	pthread_mutex_t lock;
	struct ram *ram;
	struct pci_host *host;
	struct block *block;
	struct virtio_blk *blk;
	char path[64];
	unsigned ndesc; /* next free descriptor of queue 0 */
	unsigned watched;
	uint64_t watched_bytes;
};

static void wr(struct rig *r, gpa_t at, unsigned size, uint64_t v) { bus_write(r->f.bus, BUS_MMIO, at, size, v); }
static uint64_t rd(struct rig *r, gpa_t at, unsigned size) { return bus_read(r->f.bus, BUS_MMIO, at, size); }
static void poke(struct rig *r, gpa_t at, uint64_t v, unsigned size) { assert_true(ram_write(r->ram, at, &v, size)); }
static uint64_t peek(struct rig *r, gpa_t at, unsigned size)
{
	uint64_t v = 0;

	assert_true(ram_read(r->ram, at, &v, size));
	return v;
}

static void on_wrote(void *ctx, gpa_t gpa, uint64_t len)
{
	struct rig *r = ctx;

	r->watched++;
	if (gpa >= DATA)
		r->watched_bytes += len;
}

static void open_rig(struct rig *r, struct virtio_blk_config c, bool readonly)
{
	struct block_options o = {.path = r->path, .format = "raw", .readonly = readonly};
	struct pci_host_config host;
	int fd;

	memset(r, 0, sizeof(*r));
	pthread_mutex_init(&r->lock, NULL);
	fixture_init(&r->f);
	strcpy(r->path, "/var/tmp/doppel-blk-XXXXXX");
	fd = mkstemp(r->path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, DISK + 100), 0); /* a tail that is no sector */
	close(fd);
	r->block = block_open(&o, NULL);
	r->ram = ram_new(RAM_SIZE, NULL);
	assert_true(r->block && r->ram);
	host = (struct pci_host_config){.bus = r->f.bus, .ecam_base = ECAM, .ecam_buses = 1, .low = {BAR, 0x10000000},
					.msi = &r->f.sink, .vendor = 0x1b36, .device = 8};
	for (unsigned i = 0; i < 4; i++)
		host.intx[i] = fixture_line(&r->f, 16 + i);
	r->host = pci_host_new(&host, NULL);
	c.virtio = (struct virtio_config){.host = r->host, .ram = r->ram, .timers = &r->f.timers, .devfn = DEVFN};
	c.queue.block = r->block;
	c.lock = &r->lock;
	c.nqueues = NQUEUES;
	r->blk = virtio_blk_new(&c, NULL);
	assert_non_null(r->blk);
	pthread_mutex_lock(&r->lock);
	pci_host_reset(r->host);
	wr(r, ECAM + (DEVFN << 12) + 0x10, 4, BAR);
	wr(r, ECAM + (DEVFN << 12) + 0x14, 4, 0);
	wr(r, ECAM + (DEVFN << 12) + 4, 2, 6);
	memset(ram_watch_map(r->ram), 1, RAM_SIZE / PAGE_SIZE);
	ram_set_watcher(r->ram, on_wrote, r);
}

static void close_rig(struct rig *r)
{
	pthread_mutex_unlock(&r->lock);
	virtio_blk_free(r->blk);
	pci_host_free(r->host);
	block_close(r->block);
	ram_free(r->ram);
	fixture_fini(&r->f);
	unlink(r->path);
}

static gpa_t ring(unsigned q) { return RINGS + q * 0x4000; }

static uint64_t features(struct rig *r)
{
	uint64_t v;

	wr(r, COMMON, 4, 0);
	v = rd(r, COMMON + 4, 4);
	wr(r, COMMON, 4, 1);
	return v | rd(r, COMMON + 4, 4) << 32;
}

static void start(struct rig *r, uint64_t agreed)
{
	agreed = (agreed & features(r)) | BIT(32);
	wr(r, COMMON + 20, 1, 0);
	wr(r, COMMON + 20, 1, 3);
	wr(r, COMMON + 8, 4, 0);
	wr(r, COMMON + 12, 4, (uint32_t)agreed);
	wr(r, COMMON + 8, 4, 1);
	wr(r, COMMON + 12, 4, (uint32_t)(agreed >> 32));
	wr(r, COMMON + 20, 1, 11);
	for (unsigned q = 0; q < NQUEUES; q++) {
		wr(r, COMMON + 22, 2, q);
		wr(r, COMMON + 24, 2, QSIZE);
		wr(r, COMMON + 32, 8, ring(q));
		wr(r, COMMON + 40, 8, ring(q) + 0x1000);
		wr(r, COMMON + 48, 8, ring(q) + 0x2000);
		wr(r, COMMON + 28, 2, 1);
		poke(r, ring(q) + 0x1000, 0, 4);
		poke(r, ring(q) + 0x2000, 0, 4);
	}
	wr(r, COMMON + 20, 1, 15);
	assert_int_equal(rd(r, COMMON + 20, 1), 15);
	r->ndesc = 0;
}

static void desc_at(struct rig *r, gpa_t at, uint64_t addr, uint64_t len, unsigned flags, unsigned next)
{
	poke(r, at, addr, 8);
	poke(r, at + 8, len, 4);
	poke(r, at + 12, flags, 2);
	poke(r, at + 14, next, 2);
}

static void offer(struct rig *r, unsigned q, unsigned head)
{
	unsigned idx = (unsigned)peek(r, ring(q) + 0x1002, 2);

	poke(r, ring(q) + 0x1004 + 2 * (idx % QSIZE), head, 2);
	poke(r, ring(q) + 0x1002, idx + 1, 2);
}

static unsigned used(struct rig *r, unsigned q) { return (unsigned)peek(r, ring(q) + 0x2002, 2); }

static uint32_t used_len(struct rig *r, unsigned q)
{
	return (uint32_t)peek(r, ring(q) + 0x2008 + 8 * ((used(r, q) - 1) % QSIZE), 4);
}

static void header(struct rig *r, gpa_t at, unsigned type, uint64_t sector)
{
	poke(r, at, type, 4);
	poke(r, at + 4, 0, 4);
	poke(r, at + 8, sector, 8);
}

static void wait_used(struct rig *r, unsigned q, unsigned n)
{
	for (unsigned i = 0; used(r, q) != (n & 0xffff); i++) {
		assert_true(i < 100000);
		pthread_mutex_unlock(&r->lock);
		usleep(50);
		pthread_mutex_lock(&r->lock);
		timer_queue_run(&r->f.timers, clock_now());
	}
}

/* Header, data, status as Linux cuts them; what happened is the status. */
static unsigned request(struct rig *r, unsigned q, unsigned type, uint64_t sector, gpa_t data, uint32_t len)
{
	unsigned before = used(r, q), n = 0;

	header(r, HEADERS, type, sector);
	poke(r, STATUS, NONE, 1);
	desc_at(r, ring(q), HEADERS, 16, NEXT, 1);
	if (len)
		desc_at(r, ring(q) + 16 * ++n, data, len, NEXT | (type == IN || type == GET_ID ? WRITE : 0), 2);
	desc_at(r, ring(q) + 16 * (n + 1), STATUS, 1, WRITE, 0);
	offer(r, q, 0);
	wr(r, NOTIFY + 4 * q, 2, q);
	wait_used(r, q, before + 1);
	return (unsigned)peek(r, STATUS, 1);
}

static void fill(struct rig *r, gpa_t at, uint64_t len, unsigned seed)
{
	uint8_t *p = ram_ptr(r->ram, at, len);

	for (uint64_t i = 0; i < len; i++)
		p[i] = (uint8_t)(seed + i * 31 + (i >> 8));
}

static void identity(void **state)
{
	struct rig r;
	uint64_t f;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	assert_int_equal(rd(&r, ECAM + (DEVFN << 12), 4), 0x10421af4);
	f = features(&r);
	assert_int_equal(f & (F_RO | F_FLUSH | F_DISCARD | F_ZEROES), F_FLUSH | F_DISCARD | F_ZEROES);
	assert_int_equal(rd(&r, COMMON + 18, 2), NQUEUES);
	assert_int_equal(rd(&r, CONFIG, 4), DISK / 512);
	assert_int_equal(rd(&r, CONFIG + 4, 4), 0);
	assert_int_equal(rd(&r, CONFIG + 12, 4), 254);
	assert_int_equal(rd(&r, CONFIG + 20, 4), 512);
	assert_int_equal(rd(&r, CONFIG + 34, 2), NQUEUES);
	assert_int_equal(rd(&r, CONFIG + 60, 4), 0);
	close_rig(&r);
	open_rig(&r, (struct virtio_blk_config){0}, true);
	assert_int_equal(features(&r) & (F_RO | F_DISCARD | F_ZEROES), F_RO);
	close_rig(&r);
}

static void round_trip(struct virtio_blk_config c)
{
	struct rig r;

	open_rig(&r, c, false);
	start(&r, ~UINT64_C(0) & ~BIT(29));
	fill(&r, DATA, 0x20000, 7);
	assert_int_equal(request(&r, 0, OUT, 3, DATA, 0x20000), OK);
	assert_int_equal(used_len(&r, 0), 1);
	assert_true(r.f.level[16]); /* device 16, pin A */
	assert_int_equal(rd(&r, ISR, 1), 1);
	assert_int_equal(request(&r, 1, FLUSH, 0, 0, 0), OK);
	r.watched = 0;
	r.watched_bytes = 0;
	assert_int_equal(request(&r, 1, IN, 3, DATA + 0x40000, 0x20000), OK);
	assert_int_equal(used_len(&r, 1), 0x20001);
	assert_memory_equal(ram_ptr(r.ram, DATA, 0x20000), ram_ptr(r.ram, DATA + 0x40000, 0x20000), 0x20000);
	assert_int_equal(r.watched_bytes, 0x20000); /* the engine was told of each byte that came, and of status and ring */
	assert_true(r.watched >= 4);
	close_rig(&r);
}

static void round_trips(void **state)
{
	round_trip((struct virtio_blk_config){0});
	round_trip((struct virtio_blk_config){.queue = {.no_inline = true, .engine = BLOCK_ENGINE_THREADS}});
	round_trip((struct virtio_blk_config){.queue = {.no_inline = true}});
}

/* However a driver cuts header, data and status (2.7.4): here by bytes, and in an indirect table. */
static void odd_cuts(void **state)
{
	struct rig r;
	unsigned n = 0;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	start(&r, BIT(28) | F_FLUSH);
	fill(&r, DATA, 4096, 1);
	header(&r, HEADERS, OUT, 0);
	for (unsigned i = 0; i < 15; i++, n++)
		desc_at(&r, TABLE + 16 * n, HEADERS + i, 1, NEXT, n + 1);
	/* the header's last byte and the data in one piece */
	poke(&r, DATA - 1, peek(&r, HEADERS + 15, 1), 1);
	desc_at(&r, TABLE + 16 * n, DATA - 1, 1 + 100, NEXT, n + 1);
	n++;
	desc_at(&r, TABLE + 16 * n, DATA + 100, 924, NEXT, n + 1);
	n++;
	desc_at(&r, TABLE + 16 * n, STATUS, 1, WRITE, 0);
	n++;
	desc_at(&r, ring(0), TABLE, 16 * n, INDIRECT, 0);
	poke(&r, STATUS, NONE, 1);
	offer(&r, 0, 0);
	wr(&r, NOTIFY, 2, 0);
	wait_used(&r, 0, 1);
	assert_int_equal(peek(&r, STATUS, 1), OK);
	/* read back, status as the last byte of the data's buffer */
	header(&r, HEADERS, IN, 0);
	desc_at(&r, ring(0), HEADERS, 16, NEXT, 1);
	desc_at(&r, ring(0) + 16, DATA + 0x1000, 1, WRITE | NEXT, 2);
	desc_at(&r, ring(0) + 32, DATA + 0x1001, 1024, WRITE, 0);
	offer(&r, 0, 0);
	wr(&r, NOTIFY, 2, 0);
	wait_used(&r, 0, 2);
	assert_int_equal(peek(&r, DATA + 0x1000 + 1024, 1), OK);
	assert_memory_equal(ram_ptr(r.ram, DATA, 1024), ram_ptr(r.ram, DATA + 0x1000, 1024), 1024);
	close_rig(&r);
}

static void serial(void **state)
{
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){.serial = "0123456789abcdefghijKLM"}, false);
	start(&r, 0);
	fill(&r, DATA, 64, 9);
	assert_int_equal(request(&r, 0, GET_ID, 0, DATA, 20), OK);
	assert_memory_equal(ram_ptr(r.ram, DATA, 20), "0123456789abcdefghij", 20);
	assert_int_equal(used_len(&r, 0), 21);
	assert_int_equal(request(&r, 0, GET_ID, 0, DATA + 64, 4), OK);
	assert_memory_equal(ram_ptr(r.ram, DATA + 64, 4), "0123", 4);
	assert_int_equal(request(&r, 0, GET_ID, 0, DATA, 64), OK);
	assert_int_equal(used_len(&r, 0), 20);
	close_rig(&r);
}

static void refusals(void **state)
{
	static const struct {
		unsigned type;
		uint64_t sector;
		uint32_t len;
		unsigned status;
	} rows[] = {
		{IN, DISK / 512, 512, IOERR},     {IN, DISK / 512 - 1, 1024, IOERR}, {OUT, UINT64_MAX, 512, IOERR},
		{OUT, UINT64_MAX / 512, 512, IOERR}, {IN, 0, 511, IOERR},          {OUT, 0, 513, IOERR},
		{IN, 0, 0x300000, IOERR},         {2, 0, 0, UNSUPP},                 {16, 0, 512, UNSUPP},
		{UINT32_MAX, 0, 0, UNSUPP},       {DISCARD, 0, 15, IOERR},           {DISCARD, 0, 16 * 17, IOERR},
		{ZEROES, 0, 0, IOERR},            {IN, 0, 0, OK},                    {OUT, 5, 0, OK},
	};
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	start(&r, ~UINT64_C(0) & ~BIT(29));
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		assert_int_equal(request(&r, i & 1, rows[i].type, rows[i].sector, DATA, rows[i].len), rows[i].status);
	assert_int_equal(rd(&r, COMMON + 20, 1), 15);
	assert_int_equal(request(&r, 0, IN, DISK / 512 - 1, DATA, 512), OK);
	close_rig(&r);

	open_rig(&r, (struct virtio_blk_config){0}, true);
	start(&r, ~UINT64_C(0) & ~BIT(29));
	assert_int_equal(request(&r, 0, OUT, 0, DATA, 512), IOERR);
	assert_int_equal(request(&r, 0, DISCARD, 0, DATA, 16), IOERR);
	assert_int_equal(request(&r, 0, IN, 0, DATA, 512), OK);
	assert_int_equal(request(&r, 0, FLUSH, 0, 0, 0), OK);
	close_rig(&r);
}

static void range(struct rig *r, unsigned i, uint64_t sector, uint32_t n, uint32_t flags)
{
	poke(r, DATA + 16 * i, sector, 8);
	poke(r, DATA + 16 * i + 8, n, 4);
	poke(r, DATA + 16 * i + 12, flags, 4);
}

static void ranges(void **state)
{
	uint8_t disk[16 * 512];
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	start(&r, ~UINT64_C(0) & ~BIT(29));
	memset(ram_ptr(r.ram, DATA, sizeof(disk)), 0x11, sizeof(disk));
	assert_int_equal(request(&r, 0, OUT, 0, DATA, sizeof(disk)), OK);
	range(&r, 0, 10, 2, 0);
	range(&r, 1, 1, 1, 1); /* may unmap */
	range(&r, 2, 5, 0, 0); /* nothing */
	assert_int_equal(request(&r, 0, ZEROES, 0, DATA, 48), OK);
	assert_int_equal(block_read(r.block, 0, disk, sizeof(disk)), 0);
	for (unsigned s = 0; s < 16; s++)
		assert_int_equal(disk[s * 512 + 17], s == 1 || s == 10 || s == 11 ? 0 : 0x11);
	range(&r, 0, 0, 8, 0);
	assert_int_equal(request(&r, 0, DISCARD, 0, DATA, 16), OK);
	range(&r, 0, 0, 8, 1); /* unmap is not for discard */
	assert_int_equal(request(&r, 0, DISCARD, 0, DATA, 16), UNSUPP);
	range(&r, 0, 0, 8, 2);
	assert_int_equal(request(&r, 0, ZEROES, 0, DATA, 16), UNSUPP);
	range(&r, 0, DISK / 512, 1, 0);
	assert_int_equal(request(&r, 0, ZEROES, 0, DATA, 16), IOERR);
	range(&r, 0, UINT64_MAX, UINT32_MAX, 0);
	assert_int_equal(request(&r, 0, DISCARD, 0, DATA, 16), IOERR);
	close_rig(&r);
}

static void no_place_for_a_status(void **state)
{
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	for (unsigned i = 0; i < 3; i++) {
		start(&r, 0);
		header(&r, HEADERS, IN, 0);
		if (i == 0) { /* no writable byte */
			desc_at(&r, ring(0), HEADERS, 16, 0, 0);
		} else if (i == 1) { /* half a header */
			desc_at(&r, ring(0), HEADERS, 15, NEXT, 1);
			desc_at(&r, ring(0) + 16, STATUS, 1, WRITE, 0);
		} else { /* none */
			desc_at(&r, ring(0), STATUS, 1, WRITE, 0);
		}
		offer(&r, 0, 0);
		wr(&r, NOTIFY, 2, 0);
		assert_int_equal(rd(&r, COMMON + 20, 1), 15 | NEEDS_RESET);
		assert_int_equal(used(&r, 0), 0);
	}
	start(&r, 0);
	assert_int_equal(request(&r, 0, IN, 0, DATA, 512), OK);
	close_rig(&r);
}

static void write_cache(void **state)
{
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	start(&r, 0); /* knows no flush: write-through */
	assert_int_equal(rd(&r, CONFIG + 32, 1), 0);
	assert_int_equal(request(&r, 0, OUT, 0, DATA, 4096), OK);
	start(&r, F_FLUSH | BIT(11));
	assert_int_equal(rd(&r, CONFIG + 32, 1), 1);
	wr(&r, CONFIG + 32, 1, 0);
	assert_int_equal(rd(&r, CONFIG + 32, 1), 0);
	assert_int_equal(request(&r, 0, OUT, 0, DATA, 4096), OK);
	wr(&r, CONFIG + 32, 1, 1);
	assert_int_equal(rd(&r, CONFIG + 32, 1), 1);
	close_rig(&r);
}

static void resize(void **state)
{
	struct error err;
	uint64_t generation;
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){0}, false);
	start(&r, F_FLUSH);
	assert_int_equal(request(&r, 0, IN, DISK / 512, DATA, 512), IOERR);
	rd(&r, ISR, 1);
	generation = rd(&r, COMMON + 21, 1);
	assert_true(virtio_blk_resize(r.blk, 2 * DISK, &err));
	assert_int_equal(rd(&r, ISR, 1), 2);
	assert_int_not_equal(rd(&r, COMMON + 21, 1), generation);
	assert_int_equal(rd(&r, CONFIG, 4), 2 * DISK / 512);
	assert_int_equal(request(&r, 0, IN, DISK / 512, DATA, 512), OK);
	close_rig(&r);
}

/* Reads in flight when the driver resets: afterwards no byte of RAM changes, and no request appears as used. */
static void reset_in_flight(void **state)
{
	static const enum block_engine engines[] = {BLOCK_ENGINE_THREADS, BLOCK_ENGINE_AUTO};
	enum { N = QSIZE / 2, LEN = 64 * 1024 };

	for (unsigned e = 0; e < 2; e++) {
		struct rig r;

		open_rig(&r, (struct virtio_blk_config){.queue = {.no_inline = true, .engine = engines[e]}}, false);
		for (unsigned round = 0; round < 400; round++) {
			uint8_t *data = ram_ptr(r.ram, DATA, N * LEN);

			start(&r, F_FLUSH);
			for (unsigned i = 0; i < N; i++) {
				header(&r, HEADERS + 16 * i, IN, i);
				desc_at(&r, ring(i & 1) + 32 * i, HEADERS + 16 * i, 16, NEXT, 2 * i + 1);
				desc_at(&r, ring(i & 1) + 32 * i + 16, DATA + i * LEN, LEN, WRITE, 0);
				offer(&r, i & 1, 2 * i);
			}
			wr(&r, NOTIFY, 2, 0);
			wr(&r, NOTIFY + 4, 2, 1);
			if (round % 4 == 0) {
				pthread_mutex_unlock(&r.lock);
				usleep(round % 300);
				pthread_mutex_lock(&r.lock);
			}
			wr(&r, COMMON + 20, 1, 0);
			poke(&r, ring(0) + 0x2002, 0, 2);
			memset(data, 0xa5, N * LEN);
			if (round % 50 == 0) {
				pthread_mutex_unlock(&r.lock);
				usleep(2000);
				pthread_mutex_lock(&r.lock);
			}
			for (size_t i = 0; i < N * LEN; i += 512)
				assert_int_equal(data[i], 0xa5);
			assert_int_equal(used(&r, 0), 0);
		}
		start(&r, F_FLUSH);
		assert_int_equal(request(&r, 0, IN, 0, DATA, 512), OK);
		close_rig(&r);
	}
}

/* A chain offered again before it came back, without end: the device takes no more than a queue holds. */
static void the_same_chain(void **state)
{
	struct block_queue_status st;
	struct rig r;

	open_rig(&r, (struct virtio_blk_config){.queue = {.iops = 300}}, false);
	start(&r, 0);
	header(&r, HEADERS, IN, 0);
	desc_at(&r, ring(0), HEADERS, 16, NEXT, 1);
	desc_at(&r, ring(0) + 16, DATA, 512 + 1, WRITE, 0);
	for (unsigned i = 0; i < 50; i++) {
		for (unsigned j = 0; j < QSIZE; j++)
			offer(&r, 0, 0);
		wr(&r, NOTIFY, 2, 0);
		timer_queue_run(&r.f.timers, clock_now());
	}
	block_queue_status(virtio_blk_queue(r.blk), &st);
	assert_true(st.requests[BLOCK_READ] < 100);
	/* When there is room again it looks, and finds that the ring ran over what it had not taken. */
	for (unsigned i = 0; rd(&r, COMMON + 20, 1) != (15 | NEEDS_RESET); i++) {
		assert_true(i < 5000);
		pthread_mutex_unlock(&r.lock);
		usleep(1000);
		pthread_mutex_lock(&r.lock);
	}
	start(&r, 0);
	assert_int_equal(request(&r, 1, IN, 0, DATA, 512), OK);
	close_rig(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(identity),  cmocka_unit_test(round_trips), cmocka_unit_test(odd_cuts),
		cmocka_unit_test(serial),    cmocka_unit_test(refusals),    cmocka_unit_test(ranges),
		cmocka_unit_test(no_place_for_a_status), cmocka_unit_test(write_cache), cmocka_unit_test(resize),
		cmocka_unit_test(reset_in_flight), cmocka_unit_test(the_same_chain),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
