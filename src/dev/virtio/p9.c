#include "dev/virtio/p9.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define F_MOUNT_TAG 0
#define CONFIG_TAG 2 /* behind its length */
#define JOIN_SECONDS 2

struct virtio_p9 {
	struct virtio_p9_config cfg;
	struct virtio *virtio;
	struct ram *ram;
	char tag[P9_TAG_MAX + 1];
	pthread_t thread;
	bool stop; /* machine lock */
	pthread_cond_t work;

	/* Requests of an earlier generation are nobody's. Changed with both locks held, read with either. */
	uint64_t generation;
	pthread_mutex_t copying; /* held while guest memory is read or written; taken after the machine lock */
	bool abandoned;          /* with `copying`: the machine is gone, nothing but p itself is there */

	/* The thread's. */
	uint64_t session; /* generation that the file server's state belongs to */
	struct virtqueue_chain chain;
	uint8_t *request, *reply;
};

/* ---- guest memory ---- */

static void gather(const struct virtqueue_chain *c, uint8_t *out, uint32_t len)
{
	for (unsigned i = 0; i < c->nread && len; i++) {
		uint32_t n = (uint32_t)min_u64(c->segs[i].len, len);

		memcpy(out, c->segs[i].ptr, n);
		out += n;
		len -= n;
	}
}

static void scatter(struct ram *ram, const struct virtqueue_chain *c, const uint8_t *p, uint32_t len)
{
	for (unsigned i = c->nread; i < c->nread + c->nwrite && len; i++) {
		uint32_t n = (uint32_t)min_u64(c->segs[i].len, len);

		memcpy(c->segs[i].ptr, p, n);
		ram_wrote(ram, c->segs[i].gpa, n);
		p += n;
		len -= n;
	}
}

/* False: the driver that asked is gone. */
static bool copy(struct virtio_p9 *p, uint64_t generation, bool in, uint32_t len)
{
	bool current;

	pthread_mutex_lock(&p->copying);
	current = p->generation == generation;
	if (current && in)
		gather(&p->chain, p->request, len);
	else if (current)
		scatter(p->ram, &p->chain, p->reply, len);
	pthread_mutex_unlock(&p->copying);
	return current;
}

/* ---- the thread ---- */

/* Without the machine lock. */
static uint32_t answer(struct virtio_p9 *p, uint64_t generation)
{
	uint32_t len = (uint32_t)min_u64(p->chain.read_len, FS_MSIZE_MAX), room = (uint32_t)min_u64(p->chain.write_len, FS_MSIZE_MAX);
	uint32_t n;

	if (p->session != generation) {
		fs_reset(p->cfg.fs);
		p->session = generation;
	}
	if (!copy(p, generation, true, len))
		return 0;
	n = fs_request(p->cfg.fs, p->request, len, p->reply, room);
	copy(p, generation, false, n);
	return n;
}

static bool abandoned(struct virtio_p9 *p)
{
	bool yes;

	pthread_mutex_lock(&p->copying);
	yes = p->abandoned;
	pthread_mutex_unlock(&p->copying);
	return yes;
}

static void *run(void *arg)
{
	struct virtio_p9 *p = arg;
	uint64_t generation;
	uint32_t written;

	pthread_mutex_lock(p->cfg.lock);
	while (!p->stop) {
		if (!virtio_pop(p->virtio, 0, &p->chain)) {
			pthread_cond_wait(&p->work, p->cfg.lock);
			continue;
		}
		generation = p->generation;
		pthread_mutex_unlock(p->cfg.lock);
		written = answer(p, generation);
		if (abandoned(p))
			return NULL;
		pthread_mutex_lock(p->cfg.lock);
		if (p->generation != generation)
			continue;
		virtio_put(p->virtio, 0, p->chain.head, written);
		virtio_publish(p->virtio, 0);
		virtio_interrupt(p->virtio, 0);
	}
	pthread_mutex_unlock(p->cfg.lock);
	return NULL;
}

/* ---- the device ---- */

static bool p9_kick(void *dev, unsigned q)
{
	pthread_cond_signal(&((struct virtio_p9 *)dev)->work);
	return false;
}

static void p9_config_read(void *dev, uint8_t *config)
{
	struct virtio_p9 *p = dev;
	size_t n = strlen(p->tag);

	put_le16(config, (uint16_t)n);
	memcpy(config + CONFIG_TAG, p->tag, n);
}

static void p9_reset(void *dev)
{
	struct virtio_p9 *p = dev;

	pthread_mutex_lock(&p->copying);
	p->generation++;
	pthread_mutex_unlock(&p->copying);
}

static const struct virtio_class p9_class = {
	.id = 9,
	.pci_class = 0x018000,
	.name = "virtio-9p",
	.nqueues = 1,
	.queue_size = 128,
	.features = BIT(F_MOUNT_TAG),
	.config_len = CONFIG_TAG + P9_TAG_MAX,
	.kick = p9_kick,
	.config_read = p9_config_read,
	.reset = p9_reset,
};

static void release(struct virtio_p9 *p)
{
	virtio_free(p->virtio);
	pthread_cond_destroy(&p->work);
	pthread_mutex_destroy(&p->copying);
	free(p->request);
	free(p->reply);
	free(p);
}

struct virtio_p9 *virtio_p9_new(const struct virtio_config *cfg, const struct virtio_p9_config *p9, struct error *err)
{
	struct virtio_p9 *p = calloc(1, sizeof(*p));
	int rc = 0;

	if (!p) {
		error_set(err, "virtio-9p: out of memory");
		return NULL;
	}
	p->cfg = *p9;
	p->ram = cfg->ram;
	memcpy(p->tag, p9->tag, strnlen(p9->tag, P9_TAG_MAX));
	pthread_mutex_init(&p->copying, NULL);
	pthread_cond_init(&p->work, NULL);
	p->request = malloc(FS_MSIZE_MAX);
	p->reply = malloc(FS_MSIZE_MAX);
	if (p->request && p->reply)
		p->virtio = virtio_new(cfg, &p9_class, p, err);
	else
		error_set(err, "virtio-9p: out of memory");
	if (p->virtio) {
		rc = pthread_create(&p->thread, NULL, run, p);
		if (!rc)
			return p;
		error_set(err, "virtio-9p: cannot start a thread: %s", strerror(rc));
	}
	release(p);
	return NULL;
}

bool virtio_p9_free(struct virtio_p9 *p)
{
	struct timespec until;

	if (!p)
		return true;
	pthread_mutex_lock(p->cfg.lock);
	p->stop = true;
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(p->cfg.lock);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += JOIN_SECONDS;
	if (pthread_clockjoin_np(p->thread, NULL, CLOCK_MONOTONIC, &until)) {
		pthread_mutex_lock(&p->copying);
		p->generation++;
		p->abandoned = true;
		pthread_mutex_unlock(&p->copying);
		return false;
	}
	release(p);
	return true;
}
