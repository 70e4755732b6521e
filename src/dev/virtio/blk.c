#include "dev/virtio/blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* 5.2.3 */
enum {
	F_SEG_MAX = 2, F_RO = 5, F_BLK_SIZE = 6, F_FLUSH = 9, F_TOPOLOGY = 10, F_CONFIG_WCE = 11, F_MQ = 12, F_DISCARD = 13,
	F_WRITE_ZEROES = 14,
};

/* 5.2.4 */
enum {
	CONFIG_CAPACITY = 0, CONFIG_SEG_MAX = 12, CONFIG_BLK_SIZE = 20, CONFIG_PHYSICAL_EXP = 24, CONFIG_WRITEBACK = 32,
	CONFIG_NUM_QUEUES = 34, CONFIG_MAX_DISCARD_SECTORS = 36, CONFIG_MAX_DISCARD_SEG = 40,
	CONFIG_DISCARD_ALIGNMENT = 44, CONFIG_MAX_ZEROES_SECTORS = 48, CONFIG_MAX_ZEROES_SEG = 52, CONFIG_ZEROES_UNMAP = 56,
	CONFIG_LEN = 60,
};

/* 5.2.6 */
enum {
	T_IN = 0, T_OUT = 1, T_FLUSH = 4, T_GET_ID = 8, T_DISCARD = 11, T_WRITE_ZEROES = 13,
	S_OK = 0, S_IOERR = 1, S_UNSUPP = 2,
	HEADER_LEN = 16, HEADER_TYPE = 0, HEADER_SECTOR = 8,
	RANGE_LEN = 16, RANGE_SECTORS = 8, RANGE_FLAGS = 12, RANGE_UNMAP = 1,
};

#define SECTOR 512u
#define SEG_MAX (VIRTQUEUE_MAX - 2) /* header and status */
#define RANGES_MAX 16
#define RANGE_SECTORS_MAX (UINT32_C(2) << 21) /* 2 GiB */
#define PHYSICAL_EXP 3                         /* 4 KiB, as the host's page cache */

/* What one notification may cost; the rest waits its turn. In flight: no more than a queue has places. */
#define REQUESTS_PER_KICK 128
#define IN_FLIGHT_MAX VIRTQUEUE_MAX

struct request {
	struct block_request r;
	uint16_t q, head;
	uint32_t data_in;  /* bytes before the status that the device may write */
	uint32_t reported; /* to the used ring, if all goes well */
	uint8_t *status;
	struct block_range ranges[RANGES_MAX];
	struct iovec iov[]; /* of the data */
};

struct virtio_blk {
	struct virtio_class class; /* its own: features and queues differ */
	struct virtio *virtio;
	struct block *block;
	struct block_queue *queue;
	struct ram *ram;
	pthread_mutex_t *lock;
	unsigned in_flight[VIRTIO_BLK_QUEUES_MAX];
	bool stalled[VIRTIO_BLK_QUEUES_MAX]; /* for the limit of in_flight */
	bool put[VIRTIO_BLK_QUEUES_MAX];     /* there is something to publish */
	bool writeback;
	uint32_t discard_align; /* sectors */
	char serial[VIRTIO_BLK_SERIAL_LEN];
};

static uint64_t capacity(const struct virtio_blk *b) { return b->block->size / SECTOR; }

/* Requests. */

static void wrote(struct virtio_blk *b, const void *p, uint64_t len)
{
	ram_wrote(b->ram, ram_gpa(b->ram, (uint64_t)((const uint8_t *)p - (uint8_t *)ram_view(b->ram))), len);
}

static uint8_t status_of(int result)
{
	if (result == 0)
		return S_OK;
	return result == -ENOTSUP ? S_UNSUPP : S_IOERR;
}

/* Status and place in the used ring. 2.7.8.2: of the buffers, what is reported was written, from the beginning. */
static void finish(struct virtio_blk *b, struct request *req, uint8_t status)
{
	uint32_t failed = req->data_in ? 0 : 1;

	if (req->r.op == BLOCK_READ && status == S_OK)
		for (unsigned i = 0; i < req->r.niov; i++)
			wrote(b, req->iov[i].iov_base, req->iov[i].iov_len);
	*req->status = status;
	wrote(b, req->status, 1);
	virtio_put(b->virtio, req->q, req->head, status == S_OK ? req->reported : failed);
	b->put[req->q] = true;
	free(req);
}

/* Hand to the driver what was put since. */
static void publish(struct virtio_blk *b)
{
	for (unsigned q = 0; q < b->class.nqueues; q++) {
		if (!b->put[q])
			continue;
		b->put[q] = false;
		virtio_publish(b->virtio, q);
		virtio_interrupt(b->virtio, q);
	}
}

static void reap(struct virtio_blk *b)
{
	struct block_request *r;

	while ((r = block_queue_reap(b->queue))) {
		struct request *req = container_of(r, struct request, r);

		b->in_flight[req->q]--;
		finish(b, req, status_of(r->result));
	}
}

static void submit(struct virtio_blk *b, struct request *req)
{
	if (block_queue_submit(b->queue, &req->r))
		finish(b, req, status_of(req->r.result));
	else
		b->in_flight[req->q]++;
}

/* Read or write: the data's vector is complete. */
static void submit_data(struct virtio_blk *b, struct request *req, enum block_op op, uint64_t sector, uint64_t len)
{
	req->r.op = op;
	req->r.len = len;
	req->r.iov = req->iov;
	req->r.stable = op == BLOCK_WRITE && !b->writeback;
	if (len % SECTOR || !range_ok(sector, len / SECTOR, capacity(b)) || (op == BLOCK_WRITE && b->block->readonly)) {
		finish(b, req, S_IOERR);
		return;
	}
	req->r.off = sector * SECTOR;
	submit(b, req);
}

static void gather(const struct iovec *iov, unsigned niov, uint8_t *buf, size_t len)
{
	for (unsigned i = 0; i < niov && len; i++) {
		size_t n = min_u64(len, iov[i].iov_len);

		memcpy(buf, iov[i].iov_base, n);
		buf += n;
		len -= n;
	}
}

/* 5.2.6: one range of the request; returns a status. */
static uint8_t add_range(const struct virtio_blk *b, struct request *req, enum block_op op, const uint8_t *raw)
{
	uint64_t sector = get_le64(raw), n = get_le32(raw + RANGE_SECTORS), off, end;
	uint32_t flags = get_le32(raw + RANGE_FLAGS);
	struct block_request *r = &req->r;

	if (flags & ~(op == BLOCK_WRITE_ZEROES ? RANGE_UNMAP : 0u))
		return S_UNSUPP;
	if (n > RANGE_SECTORS_MAX || !range_ok(sector, n, capacity(b)))
		return S_IOERR;
	if (!n)
		return S_OK;
	off = sector * SECTOR;
	end = off + n * SECTOR;
	if (r->nranges) {
		end = max_u64(end, r->off + r->len);
		r->off = min_u64(off, r->off);
	} else {
		r->off = off;
	}
	r->len = end - r->off;
	req->ranges[r->nranges++] = (struct block_range){off, n * SECTOR, flags & RANGE_UNMAP};
	return S_OK;
}

static void submit_ranges(struct virtio_blk *b, struct request *req, enum block_op op, uint64_t len)
{
	uint8_t raw[RANGES_MAX * RANGE_LEN], status = S_OK;

	if (b->block->readonly || !len || len % RANGE_LEN || len > sizeof(raw)) {
		finish(b, req, S_IOERR);
		return;
	}
	gather(req->iov, req->r.niov, raw, len);
	req->r.op = op;
	req->r.ranges = req->ranges;
	req->r.stable = op == BLOCK_WRITE_ZEROES && !b->writeback;
	for (uint64_t i = 0; i < len && status == S_OK; i += RANGE_LEN)
		status = add_range(b, req, op, raw + i);
	req->r.niov = 0;
	if (status != S_OK || !req->r.nranges)
		finish(b, req, status);
	else
		submit(b, req);
}

static void get_id(struct virtio_blk *b, struct request *req)
{
	uint64_t left = sizeof(b->serial);

	for (unsigned i = 0; i < req->r.niov && left; i++) {
		uint64_t n = min_u64(left, req->iov[i].iov_len);

		memcpy(req->iov[i].iov_base, b->serial + (sizeof(b->serial) - left), n);
		wrote(b, req->iov[i].iov_base, n);
		left -= n;
	}
	req->r.niov = 0;
	req->reported = req->data_in <= sizeof(b->serial) ? req->data_in + 1 : sizeof(b->serial);
	finish(b, req, S_OK);
}

/* The bytes [skip, skip + len) of segments, as the request's vector. */
static void set_data(struct request *req, const struct virtqueue_seg *segs, unsigned n, uint64_t skip, uint64_t len)
{
	req->r.niov = 0;
	for (unsigned i = 0; i < n && len; i++) {
		uint64_t here;

		if (skip >= segs[i].len) {
			skip -= segs[i].len;
			continue;
		}
		here = min_u64(len, segs[i].len - skip);
		req->iov[req->r.niov++] = (struct iovec){segs[i].ptr + skip, here};
		len -= here;
		skip = 0;
	}
}

static void dispatch(struct virtio_blk *b, struct request *req, const struct virtqueue_chain *c)
{
	uint64_t out = c->read_len - HEADER_LEN, sector;
	uint8_t header[HEADER_LEN];
	uint32_t type;

	/* No assumption on how the driver cut it (2.7.4). One fetch: the copy is what counts. */
	set_data(req, c->segs, c->nread, 0, HEADER_LEN);
	gather(req->iov, req->r.niov, header, HEADER_LEN);
	sector = get_le64(header + HEADER_SECTOR);
	type = get_le32(header + HEADER_TYPE);
	req->reported = req->data_in ? 0 : 1;
	if (type == T_IN || type == T_GET_ID)
		set_data(req, c->segs + c->nread, c->nwrite, 0, req->data_in);
	else
		set_data(req, c->segs, c->nread, HEADER_LEN, out);
	switch (type) {
	case T_IN:
		req->reported = req->data_in + 1;
		submit_data(b, req, BLOCK_READ, sector, req->data_in);
		break;
	case T_OUT: submit_data(b, req, BLOCK_WRITE, sector, out); break;
	case T_DISCARD: submit_ranges(b, req, BLOCK_DISCARD, out); break;
	case T_WRITE_ZEROES: submit_ranges(b, req, BLOCK_WRITE_ZEROES, out); break;
	case T_GET_ID: get_id(b, req); break;
	case T_FLUSH:
		req->r.op = BLOCK_FLUSH;
		req->r.niov = 0;
		submit(b, req);
		break;
	default: finish(b, req, S_UNSUPP); break;
	}
}

/* A chain without place for header and status cannot even be refused. */
static void handle(struct virtio_blk *b, unsigned q, const struct virtqueue_chain *c)
{
	const struct virtqueue_seg *last = &c->segs[c->nread + c->nwrite - 1];
	struct request *req;

	if (c->read_len < HEADER_LEN || !c->nwrite) {
		virtio_broken(b->virtio);
		return;
	}
	req = calloc(1, sizeof(*req) + (c->nread + c->nwrite) * sizeof(req->iov[0]));
	if (!req) { /* the host has no memory: the driver sees the request fail */
		last->ptr[last->len - 1] = S_IOERR;
		wrote(b, last->ptr + last->len - 1, 1);
		virtio_push(b->virtio, q, c, 0);
		b->put[q] = true;
		return;
	}
	req->q = (uint16_t)q;
	req->head = c->head;
	req->data_in = c->write_len - 1;
	req->status = last->ptr + last->len - 1;
	dispatch(b, req, c);
}

static bool process(struct virtio_blk *b, unsigned q)
{
	struct virtqueue_chain c;
	unsigned n;

	for (n = 0; n < REQUESTS_PER_KICK; n++) {
		b->stalled[q] = b->in_flight[q] >= IN_FLIGHT_MAX;
		if (b->stalled[q] || !virtio_pop(b->virtio, q, &c))
			break;
		handle(b, q, &c);
	}
	block_queue_commit(b->queue);
	return n == REQUESTS_PER_KICK;
}

static bool blk_kick(void *dev, unsigned q)
{
	struct virtio_blk *b = dev;
	bool more;

	reap(b);
	more = process(b, q);
	publish(b);
	return more;
}

/* In a thread of the block queue. */
static void on_done(void *ctx)
{
	struct virtio_blk *b = ctx;

	pthread_mutex_lock(b->lock);
	reap(b);
	for (unsigned q = 0; q < b->class.nqueues; q++)
		if (b->stalled[q] && process(b, q))
			virtio_again(b->virtio, q);
	publish(b);
	pthread_mutex_unlock(b->lock);
}

/* Nothing touches guest RAM any more when this returns, and no result comes later. */
static void blk_reset(void *dev)
{
	struct virtio_blk *b = dev;
	struct block_request *r;

	block_queue_drain(b->queue);
	while ((r = block_queue_reap(b->queue)))
		free(container_of(r, struct request, r));
	memset(b->in_flight, 0, sizeof(b->in_flight));
	memset(b->stalled, 0, sizeof(b->stalled));
	memset(b->put, 0, sizeof(b->put));
	b->writeback = true;
}

/* 5.2.5.2: a driver that knows no flushes gets a write-through disk. */
static void blk_started(void *dev, uint64_t features)
{
	struct virtio_blk *b = dev;

	b->writeback = features & BIT(F_FLUSH);
}

static void blk_config_read(void *dev, uint8_t *config)
{
	struct virtio_blk *b = dev;

	put_le64(config + CONFIG_CAPACITY, capacity(b));
	put_le32(config + CONFIG_SEG_MAX, SEG_MAX);
	put_le32(config + CONFIG_BLK_SIZE, SECTOR);
	config[CONFIG_PHYSICAL_EXP] = PHYSICAL_EXP;
	config[CONFIG_WRITEBACK] = b->writeback;
	put_le16(config + CONFIG_NUM_QUEUES, (uint16_t)b->class.nqueues);
	put_le32(config + CONFIG_MAX_DISCARD_SECTORS, RANGE_SECTORS_MAX);
	put_le32(config + CONFIG_MAX_DISCARD_SEG, RANGES_MAX);
	put_le32(config + CONFIG_DISCARD_ALIGNMENT, b->discard_align);
	put_le32(config + CONFIG_MAX_ZEROES_SECTORS, RANGE_SECTORS_MAX);
	put_le32(config + CONFIG_MAX_ZEROES_SEG, RANGES_MAX);
	config[CONFIG_ZEROES_UNMAP] = 1;
}

static void blk_config_write(void *dev, unsigned off, unsigned size, uint32_t value)
{
	struct virtio_blk *b = dev;

	if (off == CONFIG_WRITEBACK && size == 1)
		b->writeback = value & 1;
}

static const struct virtio_class blk_class = {
	.id = 2,
	.pci_class = 0x010000,
	.name = "virtio-blk",
	.queue_size = VIRTQUEUE_MAX,
	.features = BIT(F_SEG_MAX) | BIT(F_BLK_SIZE) | BIT(F_FLUSH) | BIT(F_TOPOLOGY) | BIT(F_CONFIG_WCE) | BIT(F_MQ),
	.config_len = CONFIG_LEN,
	.kick = blk_kick,
	.config_read = blk_config_read,
	.config_write = blk_config_write,
	.reset = blk_reset,
	.started = blk_started,
};

static void set_class(struct virtio_blk *b, unsigned nqueues)
{
	b->class = blk_class;
	b->class.nqueues = nqueues;
	if (b->block->readonly)
		b->class.features |= BIT(F_RO);
	else if (b->block->format->discard && b->block->format->write_zeroes)
		b->class.features |= BIT(F_DISCARD) | BIT(F_WRITE_ZEROES);
}

static uint32_t discard_align(const struct block *block)
{
	struct block_info info = {0};

	if (block->format->info)
		block->format->info((struct block *)block, &info);
	return max_u64(info.cluster_size, PAGE_SIZE) / SECTOR;
}

struct virtio_blk *virtio_blk_new(const struct virtio_blk_config *cfg, struct error *err)
{
	struct virtio_blk *b = calloc(1, sizeof(*b));
	struct block_queue_config qc = cfg->queue;

	if (!b) {
		error_set(err, "virtio-blk: out of memory");
		return NULL;
	}
	b->block = qc.block;
	b->ram = cfg->virtio.ram;
	b->lock = cfg->lock;
	b->writeback = true;
	b->discard_align = discard_align(b->block);
	if (cfg->serial)
		memcpy(b->serial, cfg->serial, strnlen(cfg->serial, sizeof(b->serial)));
	set_class(b, cfg->nqueues);
	qc.notify = on_done;
	qc.ctx = b;
	b->queue = block_queue_new(&qc, err);
	if (b->queue)
		b->virtio = virtio_new(&cfg->virtio, &b->class, b, err);
	if (b->virtio)
		return b;
	block_queue_free(b->queue);
	free(b);
	return NULL;
}

void virtio_blk_free(struct virtio_blk *b)
{
	if (!b)
		return;
	pthread_mutex_lock(b->lock);
	blk_reset(b);
	pthread_mutex_unlock(b->lock);
	block_queue_free(b->queue);
	virtio_free(b->virtio);
	free(b);
}

struct block_queue *virtio_blk_queue(struct virtio_blk *b) { return b->queue; }

bool virtio_blk_resize(struct virtio_blk *b, uint64_t size, struct error *err)
{
	bool ok = block_queue_resize(b->queue, size, err);

	reap(b);
	publish(b);
	if (ok)
		virtio_config_changed(b->virtio);
	return ok;
}
