/*
 * Guest RAM: the real map from guest-physical to host addresses. One memfd, reserved lazily.
 *
 * Layout: [0, min(size, 3 GiB)) and, for the rest, from 4 GiB upward. The gap holds PCI, ECAM, APICs. Offset in the
 * memfd is contiguous over both regions.
 * Threads: after ram_new the map is constant, reads need no lock. Concurrent access to the same guest bytes by vCPU
 * and device is the guest's own race.
 * A writer other than a vCPU (device DMA, loader) calls ram_wrote afterwards (or uses ram_write), so that an
 * engine can drop translations of code that was overwritten and log dirty pages.
 */
#ifndef MEM_RAM_H
#define MEM_RAM_H

#include "base/bits.h"
#include "base/error.h"

#define RAM_LOW_MAX (3 * GIB)
#define RAM_HIGH_BASE (4 * GIB)

struct ram_region {
	gpa_t gpa;
	uint64_t size;
	uint64_t offset; /* in the memfd, and from the start of the host view */
};

struct ram;

/* size: bytes, multiple of 4 KiB, 1 MiB to 16 TiB. */
struct ram *ram_new(uint64_t size, struct error *err);
void ram_free(struct ram *r);

uint64_t ram_size(const struct ram *r);
int ram_fd(const struct ram *r);
/* The VMM's own read-write view of the whole memfd, ram_size bytes. */
void *ram_view(const struct ram *r);
/* 1 or 2 regions, ascending. */
unsigned ram_regions(const struct ram *r, const struct ram_region **out);

/* Host address of [gpa, gpa + len), or NULL when any byte of it is not RAM. len 0 is refused. */
void *ram_ptr(const struct ram *r, gpa_t gpa, uint64_t len);
/* Offset in the memfd of the page at gpa; false when it is not RAM. */
bool ram_offset(const struct ram *r, gpa_t gpa, uint64_t *offset);
/* Inverse: the gpa of a memfd offset. */
gpa_t ram_gpa(const struct ram *r, uint64_t offset);

bool ram_read(const struct ram *r, gpa_t gpa, void *buf, uint64_t len);
bool ram_write(struct ram *r, gpa_t gpa, const void *buf, uint64_t len);
/* Zero a range; large ones give their pages back to the host. */
bool ram_zero(struct ram *r, gpa_t gpa, uint64_t len);
/* Tell the engine that [gpa, gpa + len) was written by other than a vCPU. Cheap when nothing watches the pages. */
void ram_wrote(struct ram *r, gpa_t gpa, uint64_t len);

/* One byte per page of RAM, indexed by memfd offset >> 12; non-zero: ram_wrote on it calls the watcher. Set by the engine. */
uint8_t *ram_watch_map(struct ram *r);
/* fn runs in the writer's thread. One watcher per VM. */
void ram_set_watcher(struct ram *r, void (*fn)(void *ctx, gpa_t gpa, uint64_t len), void *ctx);

#endif
