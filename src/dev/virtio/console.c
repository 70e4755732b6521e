#include "dev/virtio/console.h"

#include <stdlib.h>

#define F_EMERG_WRITE 2
#define CONFIG_LEN 12
#define CONFIG_MAX_PORTS 4
#define CONFIG_EMERG_WRITE 8

/* What one notification may cost: longer output is cut, more of it waits its turn. */
#define CHAIN_MAX (256 * KIB)
#define CHAINS_PER_KICK 64

enum { QUEUE_RECEIVE, QUEUE_TRANSMIT };

struct virtio_console {
	struct virtio *virtio;
	struct chardev *chr;
};

static size_t console_receive(void *ctx, const uint8_t *buf, size_t len)
{
	struct virtio_console *c = ctx;
	struct virtqueue_chain chain;
	size_t done = 0;

	/* The bound is for chains without room: they take no bytes. */
	for (unsigned i = 0; i < CHAINS_PER_KICK && done < len && virtio_pop(c->virtio, QUEUE_RECEIVE, &chain); i++) {
		uint32_t n = (uint32_t)min_u64(len - done, UINT32_MAX);

		n = virtio_write(c->virtio, QUEUE_RECEIVE, &chain, 0, buf + done, n);
		virtio_push(c->virtio, QUEUE_RECEIVE, &chain, n);
		done += n;
	}
	if (done)
		virtio_interrupt(c->virtio, QUEUE_RECEIVE);
	return done;
}

static void transmit(struct virtio_console *c, const struct virtqueue_chain *chain)
{
	uint64_t left = CHAIN_MAX;

	for (unsigned i = 0; i < chain->nread && left; i++) {
		uint64_t n = min_u64(chain->segs[i].len, left);

		chardev_write(c->chr, chain->segs[i].ptr, n);
		left -= n;
	}
}

static bool console_kick(void *dev, unsigned q)
{
	struct virtio_console *c = dev;
	struct virtqueue_chain chain;
	unsigned n;

	if (q == QUEUE_RECEIVE) {
		chardev_resume(c->chr);
		return false;
	}
	for (n = 0; n < CHAINS_PER_KICK && virtio_pop(c->virtio, q, &chain); n++) {
		transmit(c, &chain);
		virtio_push(c->virtio, q, &chain, 0);
	}
	virtio_interrupt(c->virtio, q);
	return n == CHAINS_PER_KICK;
}

static void console_config_read(void *dev, uint8_t *config) { put_le32(config + CONFIG_MAX_PORTS, 1); }

static void console_config_write(void *dev, unsigned off, unsigned size, uint32_t value)
{
	struct virtio_console *c = dev;
	uint8_t byte = (uint8_t)value;

	if (off == CONFIG_EMERG_WRITE)
		chardev_write(c->chr, &byte, 1);
}

static const struct virtio_class console_class = {
	.id = 3,
	.pci_class = 0x078000,
	.name = "virtio-console",
	.nqueues = 2,
	.queue_size = 128,
	.features = BIT(F_EMERG_WRITE),
	.config_len = CONFIG_LEN,
	.kick = console_kick,
	.config_read = console_config_read,
	.config_write = console_config_write,
};

struct virtio_console *virtio_console_new(const struct virtio_config *cfg, struct chardev *chr, struct error *err)
{
	struct virtio_console *c = calloc(1, sizeof(*c));

	if (!c) {
		error_set(err, "virtio-console: out of memory");
		return NULL;
	}
	c->chr = chr;
	c->virtio = virtio_new(cfg, &console_class, c, err);
	if (!c->virtio) {
		free(c);
		return NULL;
	}
	chardev_set_client(chr, &(struct chardev_client){.receive = console_receive, .ctx = c});
	return c;
}

void virtio_console_free(struct virtio_console *c)
{
	if (!c)
		return;
	chardev_set_client(c->chr, &(struct chardev_client){0});
	virtio_free(c->virtio);
	free(c);
}
