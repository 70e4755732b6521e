/*
 * What the kvm engine counts (exits to the VMM, by reason) and what the kernel counts of each vCPU
 * (Documentation/virt/kvm/api.rst, 4.133 KVM_GET_STATS_FD).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/kvm/kvm_int.h"

#define MAX_STATS 512
#define NAME_MAX_LEN 64

struct kvm_stats {
	int fd;
	unsigned n;
	uint32_t data_offset, data_len;
	struct {
		char name[NAME_MAX_LEN];
		const char *unit;
		bool gauge;
		uint32_t offset; /* of the value, from the start of the data */
	} rows[];
};

static const char *unit_of(const struct kvm_stats_desc *d)
{
	uint32_t unit = d->flags & KVM_STATS_UNIT_MASK;

	/* only what needs no conversion has a unit here */
	if (unit == KVM_STATS_UNIT_BYTES)
		return "bytes";
	return unit == KVM_STATS_UNIT_SECONDS && d->exponent == -9 ? "ns" : "";
}

/* Values of one word that are counters or levels; histograms are left out. */
static void take_row(struct kvm_stats *s, const struct kvm_stats_desc *d, const char *name, size_t name_size)
{
	uint32_t type = d->flags & KVM_STATS_TYPE_MASK;

	if (d->size != 1 || type > KVM_STATS_TYPE_PEAK || !range_ok(d->offset, 8, UINT32_MAX))
		return;
	snprintf(s->rows[s->n].name, NAME_MAX_LEN, "kvm.%.*s", (int)strnlen(name, name_size), name);
	s->rows[s->n].unit = unit_of(d);
	s->rows[s->n].gauge = type != KVM_STATS_TYPE_CUMULATIVE;
	s->rows[s->n].offset = d->offset;
	s->n++;
	s->data_len = max_u64(s->data_len, d->offset + 8);
}

static bool read_rows(struct kvm_stats *s, const struct kvm_stats_header *h)
{
	size_t step = sizeof(struct kvm_stats_desc) + h->name_size;
	struct kvm_stats_desc *d = malloc(step);
	bool ok = d;

	for (uint32_t i = 0; ok && i < h->num_desc; i++) {
		ok = pread(s->fd, d, step, (off_t)(h->desc_offset + i * step)) == (ssize_t)step;
		if (ok)
			take_row(s, d, d->name, h->name_size);
	}
	free(d);
	s->data_offset = h->data_offset;
	return ok && s->data_len <= 8 * MAX_STATS;
}

struct kvm_stats *kvm_stats_open(int vcpu_fd)
{
	int fd = ioctl(vcpu_fd, KVM_GET_STATS_FD, NULL); /* later it would wait for KVM_RUN */
	struct kvm_stats_header h;
	struct kvm_stats *s = NULL;

	if (fd < 0)
		return NULL;
	if (pread(fd, &h, sizeof(h), 0) == sizeof(h) && h.num_desc <= MAX_STATS && h.name_size <= 4096)
		s = calloc(1, sizeof(*s) + h.num_desc * sizeof(s->rows[0]));
	if (!s) {
		close(fd);
		return NULL;
	}
	s->fd = fd;
	if (read_rows(s, &h))
		return s;
	kvm_stats_close(s);
	return NULL;
}

void kvm_stats_close(struct kvm_stats *s)
{
	if (s)
		close(s->fd);
	free(s);
}

static void put_kernel_stats(const struct kvm_stats *s, const struct counter_sink *out)
{
	uint8_t data[8 * MAX_STATS];

	if (pread(s->fd, data, s->data_len, s->data_offset) != (ssize_t)s->data_len)
		return;
	for (unsigned i = 0; i < s->n; i++)
		counter_put(out, s->rows[i].name, s->rows[i].unit, s->rows[i].gauge, get_le64(data + s->rows[i].offset),
			    "counted by the kernel");
}

static uint64_t thread_time(struct kvm_vcpu *v)
{
	struct timespec ts;

	if (!atomic_load(&v->cpu_clock_ok) || clock_gettime(v->cpu_clock, &ts))
		return 0;
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static const struct {
	unsigned reason;
	const char *name, *help;
} exits[] = {
	{KVM_EXIT_IO, "exits.io", "port accesses that came to the VMM"},
	{KVM_EXIT_MMIO, "exits.mmio", "memory-mapped accesses that came to the VMM"},
	{KVM_EXIT_INTR, "exits.signal", "exits because of a host signal"},
	{KVM_EXIT_IRQ_WINDOW_OPEN, "exits.irq_window", "exits because interrupts became possible"},
	{KVM_EXIT_INTERNAL_ERROR, "exits.emulation", "instructions that KVM cannot emulate"},
	{KVM_EXIT_SHUTDOWN, "exits.shutdown", "triple faults"},
};

static uint64_t other_exits(const struct kvm_vcpu *v)
{
	uint64_t n = 0;

	for (unsigned r = 0; r < KVM_EXIT_COUNT; r++) {
		bool named = false;

		for (size_t i = 0; i < ARRAY_LEN(exits); i++)
			named |= exits[i].reason == r;
		n += named ? 0 : counter_peek(&v->exits[r]);
	}
	return n;
}

void kvm_stats_put(struct engine *e, unsigned vcpu, const struct counter_sink *out)
{
	struct kvm_vcpu *v;

	if (vcpu == ENGINE_VM)
		return;
	v = &kvm_engine_of(e)->vcpu[vcpu];
	counter_put(out, "time.cpu", "ns", false, thread_time(v), "CPU time of the vCPU's thread, guest and VMM");
	for (size_t i = 0; i < ARRAY_LEN(exits); i++)
		counter_put(out, exits[i].name, "", false, counter_peek(&v->exits[exits[i].reason]), exits[i].help);
	counter_put(out, "exits.other", "", false, other_exits(v), "other exits");
	counter_put(out, "completed", "", false, counter_peek(&v->completed), "instructions that the soft engine executed for KVM");
	if (v->kernel_stats)
		put_kernel_stats(v->kernel_stats, out);
}
