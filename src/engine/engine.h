/*
 * The contract of an engine: it runs vCPUs, and knows nothing of devices, disks or command lines.
 *
 * Threads: one host thread per vCPU calls engine_run for its vCPU only. get/set state only while that vCPU does not run,
 * with the machine lock held where other threads exist.
 * engine_kick may be called by any thread and from a signal handler. The engine takes cfg.lock (the machine lock)
 * around every call into bus, irq chips and timers.
 */
#ifndef ENGINE_ENGINE_H
#define ENGINE_ENGINE_H

#include <pthread.h>

#include "base/counter.h"
#include "base/error.h"
#include "base/timer.h"
#include "bus/bus.h"
#include "cpu/cpuid.h"
#include "cpu/state.h"
#include "irq/irq.h"
#include "mem/ram.h"

enum engine_kind { ENGINE_AUTO, ENGINE_SOFT, ENGINE_KVM };

/* Why engine_run returned. */
enum engine_exit {
	EXIT_KICKED,       /* engine_kick was called; run again to go on */
	EXIT_TRIPLE_FAULT, /* shutdown state; the vCPU state shows where */
	EXIT_ERROR,        /* the engine cannot go on (kind 5 of KVM_EXIT_*, unimplemented task switch ...); text in engine_last_error */
};

struct engine_config {
	struct ram *ram;
	struct bus *bus;
	const struct cpuid_policy *cpuid;
	unsigned ncpus;
	pthread_mutex_t *lock;
	struct timer_queue *timers; /* soft: driven by vCPU 0's thread inside engine_run; kvm: by the machine's loop */
	size_t code_cache_bytes;    /* soft: 0 takes the default */
	bool trace_last;            /* soft: keep the last instructions for reports */
};

#define ENGINE_VM ~0u

struct engine;

struct engine_ops {
	const char *name;
	struct engine *(*create)(const struct engine_config *cfg, struct error *err);
	void (*destroy)(struct engine *e);
	/* Interrupt lines and messages of this VM; valid until destroy. */
	const struct irq_sink *(*irq_sink)(struct engine *e);
	void (*get_state)(struct engine *e, unsigned vcpu, struct cpu_state *out);
	bool (*set_state)(struct engine *e, unsigned vcpu, const struct cpu_state *in, struct error *err);
	enum engine_exit (*run)(struct engine *e, unsigned vcpu);
	void (*kick)(struct engine *e, unsigned vcpu);
	/* One or more lines about why run returned EXIT_ERROR or EXIT_TRIPLE_FAULT (last instructions); "" when nothing is known. */
	const char *(*last_error)(struct engine *e, unsigned vcpu);
	/* Back to the power-on state of everything the engine owns (vCPUs, irq chips). All vCPU threads stand still. */
	void (*reset)(struct engine *e);
	/*
	 * Counters of one vCPU or, with ENGINE_VM, those that belong to no vCPU; each vCPU gives the same names in the same order but for those that
	 * are zero. Any thread, while vCPUs run; takes no lock and stops nobody. They go on over a reset.
	 */
	void (*stats)(struct engine *e, unsigned vcpu, const struct counter_sink *out);
};

/* Each engine is a struct that begins with this. */
struct engine {
	const struct engine_ops *ops;
};

extern const struct engine_ops engine_soft;
extern const struct engine_ops engine_kvm;

#endif
