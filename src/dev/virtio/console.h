/*
 * virtio-console (virtio 1.2, 5.3) with one port, and emergency write. Reset comes through PCI.
 * Ownership: the chardev outlives the device, which is its client.
 * Threads: machine lock held.
 */
#ifndef DEV_VIRTIO_CONSOLE_H
#define DEV_VIRTIO_CONSOLE_H

#include "backend/char/chardev.h"
#include "dev/virtio/virtio.h"

struct virtio_console;

struct virtio_console *virtio_console_new(const struct virtio_config *cfg, struct chardev *chr, struct error *err);
void virtio_console_free(struct virtio_console *c);

#endif
