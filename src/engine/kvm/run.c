#include "engine/kvm/kvm.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/kvm/kvm_int.h"

static void report(struct kvm_vcpu *v, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void report(struct kvm_vcpu *v, const char *fmt, ...)
{
	size_t used = strlen(v->last_error);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(v->last_error + used, sizeof(v->last_error) - used, fmt, ap);
	va_end(ap);
}

/* Bytes at the linear address of the next instruction; fewer than asked for where the guest has no mapping. */
static unsigned code_at(struct kvm_engine *k, struct kvm_vcpu *v, uint64_t linear, uint8_t *buf, unsigned len)
{
	unsigned n = 0;

	while (n < len) {
		struct kvm_translation t = {.linear_address = linear + n};

		if (ioctl(v->fd, KVM_TRANSLATE, &t) < 0 || !t.valid ||
		    !ram_read(k->cfg.ram, t.physical_address, buf + n, 1))
			break;
		n++;
	}
	return n;
}

/* Where it happened; the caller of engine_run shows the registers. */
static void report_place(struct kvm_engine *k, unsigned vcpu)
{
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	struct cpu_state s;
	uint8_t code[15];

	kvm_get_state(&k->base, vcpu, &s);
	uint64_t linear = cpu_is_64bit(&s) ? s.rip : (uint32_t)(s.seg[SEG_CS].base + s.rip);
	unsigned n = code_at(k, v, linear, code, sizeof(code));
	report(v, "\n  at %04x:%016llx, code", s.seg[SEG_CS].sel, (unsigned long long)s.rip);
	for (unsigned i = 0; i < n; i++)
		report(v, " %02x", code[i]);
	if (n == 0)
		report(v, " not mapped");
}

/* Any number of bytes up to 8, in the sizes that the bus knows: a store over a page end comes in odd parts. */
static void mmio(struct kvm_engine *k, struct kvm_run *r)
{
	unsigned len = r->mmio.len > 8 ? 8 : r->mmio.len;

	for (unsigned at = 0; at < len;) {
		unsigned left = len - at, size = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
		uint64_t value = 0;

		if (r->mmio.is_write) {
			memcpy(&value, r->mmio.data + at, size);
			bus_write(k->cfg.bus, BUS_MMIO, r->mmio.phys_addr + at, size, value);
		} else {
			value = bus_read(k->cfg.bus, BUS_MMIO, r->mmio.phys_addr + at, size);
			memcpy(r->mmio.data + at, &value, size);
		}
		at += size;
	}
}

/* count > 1 is a string instruction: KVM moves the data between the page and guest memory. */
static void pio(struct kvm_engine *k, struct kvm_run *r)
{
	uint8_t *data = (uint8_t *)r + r->io.data_offset;
	unsigned size = r->io.size;

	for (uint32_t i = 0; i < r->io.count; i++, data += size) {
		uint64_t value = 0;

		if (r->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, data, size);
			bus_write(k->cfg.bus, BUS_PIO, r->io.port, size, value);
		} else {
			value = bus_read(k->cfg.bus, BUS_PIO, r->io.port, size);
			memcpy(data, &value, size);
		}
	}
}

/* KVM's emulator lacks the instruction. True: it is done, go on. */
static bool complete(struct kvm_engine *k, unsigned vcpu)
{
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	struct cpu_state was, s;
	struct error err;

	if (!k->complete)
		return false;
	kvm_get_state(&k->base, vcpu, &was);
	s = was;
	/* Where KVM_CAP_EXIT_ON_EMULATION_FAILURE is missing, KVM queued #UD before it came out. */
	if (s.exc_pending && s.exc_vector == EXC_UD)
		s.exc_pending = s.exc_vector = 0;
	if (!k->complete(k->complete_ctx, vcpu, &s))
		return false;
	if (kvm_put_state(k, vcpu, &s, &was, &err)) {
		v->completed++;
		return true;
	}
	report(v, "kvm: the state after a completed instruction was refused: %s\n", err.msg);
	return false;
}

static enum engine_exit internal_error(struct kvm_engine *k, unsigned vcpu)
{
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	struct kvm_run *r = v->run_page;
	uint32_t suberror = r->internal.suberror;

	report(v, "kvm: KVM_EXIT_INTERNAL_ERROR, suberror %u (%s)", suberror,
	       suberror == KVM_INTERNAL_ERROR_EMULATION	    ? "KVM's instruction emulator lacks this instruction"
	       : suberror == KVM_INTERNAL_ERROR_SIMUL_EX    ? "simultaneous exceptions"
	       : suberror == KVM_INTERNAL_ERROR_DELIVERY_EV ? "exit while an event was delivered"
							    : "unexpected exit");
	for (unsigned i = 0; suberror != KVM_INTERNAL_ERROR_EMULATION && i < r->internal.ndata && i < 16; i++)
		report(v, " %llx", (unsigned long long)r->internal.data[i]);
	report_place(k, vcpu);
	if (k->complete)
		report(v, "\n  %llu instruction%s that KVM lacks %s completed before", (unsigned long long)v->completed,
		       v->completed == 1 ? "" : "s", v->completed == 1 ? "was" : "were");
	return EXIT_ERROR;
}

static enum engine_exit bad_exit(struct kvm_engine *k, unsigned vcpu)
{
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	struct kvm_run *r = v->run_page;

	if (r->exit_reason == KVM_EXIT_FAIL_ENTRY)
		report(v, "kvm: the CPU refused to enter the guest, hardware reason 0x%llx",
		       (unsigned long long)r->fail_entry.hardware_entry_failure_reason);
	else if (r->exit_reason == KVM_EXIT_SYSTEM_EVENT)
		report(v, "kvm: the kernel ended the VM, system event %u", r->system_event.type);
	else
		report(v, "kvm: unexpected exit reason %u", r->exit_reason);
	report_place(k, vcpu);
	return EXIT_ERROR;
}

/* False: come out with *out. */
static bool handle_exit(struct kvm_engine *k, unsigned vcpu, enum engine_exit *out)
{
	struct kvm_run *r = k->vcpu[vcpu].run_page;

	k->vcpu[vcpu].exits[min_u64(r->exit_reason, KVM_EXIT_COUNT - 1)]++;
	switch (r->exit_reason) {
	case KVM_EXIT_IO:
		pthread_mutex_lock(k->cfg.lock);
		pio(k, r);
		pthread_mutex_unlock(k->cfg.lock);
		return true;
	case KVM_EXIT_MMIO:
		pthread_mutex_lock(k->cfg.lock);
		mmio(k, r);
		pthread_mutex_unlock(k->cfg.lock);
		return true;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return true;
	case KVM_EXIT_SHUTDOWN:
		*out = EXIT_TRIPLE_FAULT;
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		if (r->internal.suberror == KVM_INTERNAL_ERROR_EMULATION && complete(k, vcpu))
			return true;
		*out = internal_error(k, vcpu);
		return false;
	default:
		*out = bad_exit(k, vcpu);
		return false;
	}
}

static enum engine_exit run_loop(struct kvm_engine *k, unsigned vcpu)
{
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	enum engine_exit out;

	for (;;) {
		if (ioctl(v->fd, KVM_RUN, 0) < 0) {
			if (errno == EINTR) {
				v->exits[KVM_EXIT_INTR]++;
				__atomic_store_n(&v->run_page->immediate_exit, 0, __ATOMIC_SEQ_CST);
				if (atomic_exchange(&v->kicked, false))
					return EXIT_KICKED;
				continue;
			}
			if (errno == EAGAIN) /* an AP that waits for its start was woken */
				continue;
			report(v, "kvm: KVM_RUN failed: %s (exit reason %u)", strerror(errno),
			       v->run_page->exit_reason);
			report_place(k, vcpu);
			return EXIT_ERROR;
		}
		if (!handle_exit(k, vcpu, &out))
			return out;
	}
}

enum engine_exit kvm_run_vcpu(struct engine *e, unsigned vcpu)
{
	struct kvm_engine *k = kvm_engine_of(e);
	struct kvm_vcpu *v = &k->vcpu[vcpu];
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, kvm_kick_signal());
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	v->last_error[0] = 0;
	atomic_store(&v->tid, (int)syscall(SYS_gettid));
	if (!atomic_load(&v->cpu_clock_ok))
		atomic_store(&v->cpu_clock_ok, pthread_getcpuclockid(pthread_self(), &v->cpu_clock) == 0);
	enum engine_exit why = run_loop(k, vcpu);
	atomic_store(&v->tid, 0);
	return why;
}
