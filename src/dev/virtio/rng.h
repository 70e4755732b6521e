/*
 * virtio-rng (virtio 1.2, 5.4): the host's getrandom for the guest. Reset comes through PCI.
 * Threads: machine lock held.
 */
#ifndef DEV_VIRTIO_RNG_H
#define DEV_VIRTIO_RNG_H

#include "dev/virtio/virtio.h"

struct virtio_rng;

struct virtio_rng *virtio_rng_new(const struct virtio_config *cfg, struct error *err);
void virtio_rng_free(struct virtio_rng *r);

#endif
