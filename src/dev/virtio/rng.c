#include "dev/virtio/rng.h"

#include <stdlib.h>
#include <sys/random.h>

/* What one notification may cost: the guest gets less than it asked for, which 5.4.6 allows, or waits its turn. */
#define REQUEST_MAX 1024
#define REQUESTS_PER_KICK 32

struct virtio_rng {
	struct virtio *virtio;
};

static uint32_t fill(struct virtio_rng *r, const struct virtqueue_chain *c)
{
	uint8_t buf[REQUEST_MAX];
	ssize_t n = getrandom(buf, min_u64(c->write_len, sizeof(buf)), GRND_NONBLOCK);

	return n > 0 ? virtio_write(r->virtio, 0, c, 0, buf, (uint32_t)n) : 0;
}

static bool rng_kick(void *dev, unsigned q)
{
	struct virtio_rng *r = dev;
	struct virtqueue_chain c;
	unsigned n;

	for (n = 0; n < REQUESTS_PER_KICK && virtio_pop(r->virtio, q, &c); n++)
		virtio_push(r->virtio, q, &c, fill(r, &c));
	virtio_interrupt(r->virtio, q);
	return n == REQUESTS_PER_KICK;
}

static const struct virtio_class rng_class = {
	.id = 4,
	.pci_class = 0x00ff00,
	.name = "virtio-rng",
	.nqueues = 1,
	.queue_size = 64,
	.kick = rng_kick,
};

struct virtio_rng *virtio_rng_new(const struct virtio_config *cfg, struct error *err)
{
	struct virtio_rng *r = calloc(1, sizeof(*r));

	if (!r) {
		error_set(err, "virtio-rng: out of memory");
		return NULL;
	}
	r->virtio = virtio_new(cfg, &rng_class, r, err);
	if (!r->virtio) {
		free(r);
		return NULL;
	}
	return r;
}

void virtio_rng_free(struct virtio_rng *r)
{
	if (!r)
		return;
	virtio_free(r->virtio);
	free(r);
}
