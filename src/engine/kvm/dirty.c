#include "engine/kvm/kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/kvm/kvm_int.h"

bool kvm_dirty_log_start(struct engine *e, struct error *err)
{
	struct kvm_engine *k = kvm_engine_of(e);

	k->dirty_log = kvm_set_slots(k, true, err);
	return k->dirty_log;
}

void kvm_dirty_log_stop(struct engine *e)
{
	struct kvm_engine *k = kvm_engine_of(e);

	kvm_set_slots(k, false, NULL);
	k->dirty_log = false;
}

static void or_bits(uint64_t *dst, uint64_t first, const uint64_t *src, uint64_t n)
{
	unsigned shift = first % 64;

	for (uint64_t w = 0; w < (n + 63) / 64; w++) {
		if (!src[w])
			continue;
		dst[first / 64 + w] |= src[w] << shift;
		if (shift && src[w] >> (64 - shift))
			dst[first / 64 + w + 1] |= src[w] >> (64 - shift);
	}
}

bool kvm_dirty_log_fetch(struct engine *e, uint64_t *bitmap, struct error *err)
{
	struct kvm_engine *k = kvm_engine_of(e);
	const struct ram_region *r;
	unsigned n = ram_regions(k->cfg.ram, &r);

	if (!k->dirty_log)
		return error_set(err, "the dirty log was not started");
	for (unsigned i = 0; i < n; i++) {
		uint64_t pages = r[i].size / PAGE_SIZE;
		uint64_t *words = calloc((pages + 63) / 64, sizeof(*words));
		struct kvm_dirty_log log = {.slot = i, .dirty_bitmap = words};

		if (!words)
			return error_set(err, "out of memory for the dirty log");
		if (ioctl(k->vm_fd, KVM_GET_DIRTY_LOG, &log) < 0) {
			free(words);
			return error_set(err, "KVM_GET_DIRTY_LOG failed: %s", strerror(errno));
		}
		or_bits(bitmap, r[i].offset / PAGE_SIZE, words, pages);
		free(words);
	}
	return true;
}
