/*
 * The virtio-pci transport (virtio 1.2, 4.1, non-transitional) under every virtio device: negotiation, queues,
 * interrupts.
 *
 * A device gives its virtio_class and makes a struct virtio. When a queue has work, the class's kick runs: it takes
 * chains with virtio_pop, hands them back with virtio_push and ends with virtio_interrupt. A driver that breaks the
 * rules gets DEVICE_NEEDS_RESET: nothing is processed until it resets the device. What it writes to a queue's size,
 * addresses or enable bit after DRIVER_OK is ignored. Without bus mastering nothing is processed.
 * Threads: machine lock held.
 */
#ifndef DEV_VIRTIO_VIRTIO_H
#define DEV_VIRTIO_VIRTIO_H

#include "base/timer.h"
#include "dev/pci/pci.h"
#include "dev/virtio/virtqueue.h"

#define VIRTIO_QUEUES_MAX 17
#define VIRTIO_CONFIG_MAX 64

#define VIRTIO_F_INDIRECT_DESC 28
#define VIRTIO_F_EVENT_IDX 29
#define VIRTIO_F_VERSION_1 32

struct virtio;

struct virtio_class {
	uint16_t id; /* section 5 */
	uint32_t pci_class;
	const char *name;
	unsigned nqueues;
	uint16_t queue_size; /* largest, power of two, at most VIRTQUEUE_MAX */
	uint64_t features;   /* beyond those that the transport offers */
	unsigned config_len;
	/* Queue q was notified. Returns true when it stopped with work left: it is called again soon. */
	bool (*kick)(void *dev, unsigned q);
	/* Fill the device's configuration (config_len bytes); config_write may be NULL. */
	void (*config_read)(void *dev, uint8_t *config);
	void (*config_write)(void *dev, unsigned off, unsigned size, uint32_t value);
	void (*reset)(void *dev); /* may be NULL; the queues are gone */
	/* The driver set DRIVER_OK, having agreed to these features; may be NULL. */
	void (*started)(void *dev, uint64_t features);
};

struct virtio_config {
	struct pci_host *host;
	unsigned devfn;
	struct ram *ram;
	struct timer_queue *timers;
};

struct virtio *virtio_new(const struct virtio_config *cfg, const struct virtio_class *class, void *dev,
			  struct error *err);
void virtio_free(struct virtio *v);

/* False: nothing to take (or the queue is not in use, or was found broken). */
bool virtio_pop(struct virtio *v, unsigned q, struct virtqueue_chain *c);
void virtio_push(struct virtio *v, unsigned q, const struct virtqueue_chain *c, uint32_t written);
/* For a device that looks for work by itself (virtqueue.h); all do nothing when the queue is not in use. */
bool virtio_waiting(struct virtio *v, unsigned q);
void virtio_suppress(struct virtio *v, unsigned q);
bool virtio_arm(struct virtio *v, unsigned q);
unsigned virtio_queue_size(const struct virtio *v, unsigned q);
void virtio_put(struct virtio *v, unsigned q, uint16_t head, uint32_t written);
void virtio_publish(struct virtio *v, unsigned q);
uint32_t virtio_write(struct virtio *v, unsigned q, const struct virtqueue_chain *c, uint32_t off, const void *buf,
		      uint32_t len);
/* Tell the driver of what was pushed, if it wants to know. */
void virtio_interrupt(struct virtio *v, unsigned q);
/* Call the class's kick for this queue again, soon. */
void virtio_again(struct virtio *v, unsigned q);
/* The device found what 2.7 cannot know of: the driver broke the rules, and has to reset. */
void virtio_broken(struct virtio *v);
/* The device's configuration changed by itself: count it, and tell the driver (4.1.5.4). */
void virtio_config_changed(struct virtio *v);

#endif
