#include "dev/virtio/vsock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define PACKETS_AT_ONCE 64 /* then other events of the loop have their turn */

enum { RX, TX, EVENT, QUEUES };

struct virtio_vsock {
	struct virtio_vsock_config cfg;
	struct virtio *virtio;
	struct vsock *host;
	int wake_fd;

	/* Machine lock. */
	uint64_t generation; /* a reset counts it up */

	/* The loop's thread. */
	uint64_t session;            /* generation that the connections belong to */
	struct virtqueue_chain held; /* a receive buffer that nothing was put into yet, taken in `session` */
	bool have;
	struct virtqueue_chain sent;
	uint8_t packet[VSOCK_HDR_LEN + VSOCK_DATA_MAX];
};

static void wake(void *ctx)
{
	struct virtio_vsock *s = ctx;

	if (eventfd_write(s->wake_fd, 1) < 0)
		return; /* full: it is awake */
}

static uint32_t gather(const struct virtqueue_chain *c, uint8_t *out, uint32_t max)
{
	uint32_t len = 0;

	for (unsigned i = 0; i < c->nread && len < max; i++) {
		uint32_t n = (uint32_t)min_u64(c->segs[i].len, max - len);

		memcpy(out + len, c->segs[i].ptr, n);
		len += n;
	}
	return len;
}

/* False: the guest has sent nothing more. Its packet is copied, and the copy taken. */
static bool take_one(struct virtio_vsock *s)
{
	uint32_t len = 0;
	bool got;

	pthread_mutex_lock(s->cfg.lock);
	got = s->session == s->generation && virtio_pop(s->virtio, TX, &s->sent);
	if (got) {
		len = s->sent.read_len <= sizeof(s->packet) ? gather(&s->sent, s->packet, sizeof(s->packet)) : 0;
		virtio_push(s->virtio, TX, &s->sent, 0);
		virtio_interrupt(s->virtio, TX);
	}
	pthread_mutex_unlock(s->cfg.lock);
	if (len >= VSOCK_HDR_LEN)
		vsock_packet(s->host, s->packet, s->packet + VSOCK_HDR_LEN, len - VSOCK_HDR_LEN);
	return got;
}

static bool hold_buffer(struct virtio_vsock *s)
{
	pthread_mutex_lock(s->cfg.lock);
	s->have = s->session == s->generation && (s->have || virtio_pop(s->virtio, RX, &s->held));
	pthread_mutex_unlock(s->cfg.lock);
	return s->have;
}

/* False: nothing to give, or no buffer to put it into. */
static bool give_one(struct virtio_vsock *s)
{
	uint32_t n, room;

	if (!hold_buffer(s))
		return false;
	room = (uint32_t)min_u64(s->held.write_len, sizeof(s->packet));
	n = room < VSOCK_HDR_LEN ? 0 : vsock_next(s->host, s->packet, room);
	if (!n && room >= VSOCK_HDR_LEN)
		return false;
	pthread_mutex_lock(s->cfg.lock);
	if (s->session == s->generation) { /* a buffer that holds no header goes back empty */
		virtio_push(s->virtio, RX, &s->held, n ? virtio_write(s->virtio, RX, &s->held, 0, s->packet, n) : 0);
		virtio_interrupt(s->virtio, RX);
	}
	pthread_mutex_unlock(s->cfg.lock);
	s->have = false;
	return true;
}

static void follow_reset(struct virtio_vsock *s)
{
	uint64_t generation;

	pthread_mutex_lock(s->cfg.lock);
	generation = s->generation;
	pthread_mutex_unlock(s->cfg.lock);
	if (s->session == generation)
		return;
	vsock_reset(s->host);
	s->have = false;
	s->session = generation;
}

static void on_wake(void *ctx, unsigned events)
{
	struct virtio_vsock *s = ctx;
	bool more = true;
	eventfd_t n;

	if (eventfd_read(s->wake_fd, &n) < 0)
		return;
	follow_reset(s);
	for (unsigned i = 0; i < PACKETS_AT_ONCE && more; i++) {
		more = take_one(s);
		more |= give_one(s);
	}
	if (more)
		wake(s);
}

/* ---- the device ---- */

static bool vsock_kick(void *dev, unsigned q)
{
	if (q != EVENT)
		wake(dev);
	return false;
}

static void vsock_config_read(void *dev, uint8_t *config)
{
	put_le64(config, ((struct virtio_vsock *)dev)->cfg.host.cid);
}

static void on_reset(void *dev)
{
	struct virtio_vsock *s = dev;

	s->generation++;
	wake(s);
}

static const struct virtio_class vsock_class = {
	.id = 19,
	.pci_class = 0x028000,
	.name = "virtio-vsock",
	.nqueues = QUEUES,
	.queue_size = 128,
	.config_len = 8,
	.kick = vsock_kick,
	.config_read = vsock_config_read,
	.reset = on_reset,
};

struct virtio_vsock *virtio_vsock_new(const struct virtio_config *cfg, const struct virtio_vsock_config *vsock, struct error *err)
{
	struct virtio_vsock *s = calloc(1, sizeof(*s));

	if (!s) {
		error_set(err, "virtio-vsock: out of memory");
		return NULL;
	}
	s->cfg = *vsock;
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake_fd < 0)
		error_set(err, "virtio-vsock: %s", strerror(errno));
	else if (loop_add(vsock->loop, s->wake_fd, LOOP_READ, on_wake, s, err) &&
		 (s->host = vsock_open(&vsock->host, vsock->loop, wake, s, err)) && (s->virtio = virtio_new(cfg, &vsock_class, s, err)))
		return s;
	virtio_vsock_free(s);
	return NULL;
}

void virtio_vsock_free(struct virtio_vsock *s)
{
	if (!s)
		return;
	vsock_close(s->host);
	if (s->wake_fd >= 0) {
		loop_del(s->cfg.loop, s->wake_fd);
		close(s->wake_fd);
	}
	virtio_free(s->virtio);
	free(s);
}
