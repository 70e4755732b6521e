/*
 * KVM's paravirtual clock: time and wall-clock pages in guest RAM (the ABI that Linux documents as KVM_MSR, pvclock).
 *
 * Guest time is the guest's TSC as if the guest had never written it, scaled: a pure function of the host's TSC, so
 * that all vCPUs agree at any moment (the stable flag holds) and time goes on where it was after a snapshot, as the TSC
 * does.
 */
#include "engine/soft/interp/interp_int.h"

#include <string.h>
#include <time.h>
#include <x86intrin.h>

#define PVCLOCK_TSC_STABLE 1

struct pvclock_time {
	uint32_t version, pad0;
	uint64_t tsc_timestamp, system_time;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags, pad[2];
};
_Static_assert(sizeof(struct pvclock_time) == 32, "the guest's format");

struct pvclock_wall {
	uint32_t version, sec, nsec;
};

/* ns = ((ticks << shift) * mul) >> 32, with mul in [2^31, 2^32). */
static void time_scale(uint32_t khz, uint32_t *mul, int8_t *shift)
{
	uint64_t m = (UINT64_C(1000000) << 32) / khz;
	int s = 0;

	for (; m >> 32; m >>= 1)
		s++;
	while (m < BIT(31)) {
		s--;
		m = (UINT64_C(1000000) << (32 - s)) / khz;
	}
	*mul = m;
	*shift = s;
}

static uint64_t scale(uint64_t ticks, uint32_t mul, int8_t shift)
{
	ticks = shift < 0 ? ticks >> -shift : ticks << shift;
	return (uint64_t)(((unsigned __int128)ticks * mul) >> 32);
}

/* Both pages start with a version that is odd while they change; the host CPU keeps stores in order. */
static void publish(struct vcpu *v, gpa_t gpa, const void *data, uint64_t len)
{
	uint8_t *page = (gpa & (PAGE_SIZE - 1)) + len <= PAGE_SIZE ? ram_ptr(v->cfg->ram, gpa, len) : NULL;
	uint32_t version;

	if (!page)
		return;
	version = (get_le32(page) + 1) | 1;
	put_le32(page, version);
	atomic_thread_fence(memory_order_release);
	memcpy(page + 4, (const uint8_t *)data + 4, len - 4);
	atomic_thread_fence(memory_order_release);
	put_le32(page, version + 1);
	ram_wrote(v->cfg->ram, gpa, len);
}

void kvmclock_update(struct vcpu *v)
{
	struct pvclock_time t = {.tsc_timestamp = v->s.tsc_adjust, .flags = PVCLOCK_TSC_STABLE};

	if (!(v->s.kvm_system_time & 1) || !v->cfg->cpuid->tsc_khz)
		return;
	time_scale(v->cfg->cpuid->tsc_khz, &t.tsc_to_system_mul, &t.tsc_shift);
	publish(v, v->s.kvm_system_time & ~UINT64_C(1), &t, sizeof(t));
}

/* Wall-clock time at guest time 0. */
void kvmclock_write_wall(struct vcpu *v)
{
	uint64_t now, guest_ns;
	struct pvclock_wall w = {0};
	struct timespec ts;
	uint32_t mul;
	int8_t shift;

	if (!v->cfg->cpuid->tsc_khz)
		return;
	clock_gettime(CLOCK_REALTIME, &ts);
	time_scale(v->cfg->cpuid->tsc_khz, &mul, &shift);
	guest_ns = scale(__rdtsc() + v->s.tsc_offset - v->s.tsc_adjust, mul, shift);
	now = (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
	now = now > guest_ns ? now - guest_ns : 0;
	w.sec = now / 1000000000u;
	w.nsec = now % 1000000000u;
	publish(v, v->s.kvm_wall_clock, &w, sizeof(w));
}
