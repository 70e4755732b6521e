/*
 * Inside the kvm engine: its objects, and what its files share.
 *
 * Threads: run_page and last_error of a vCPU belong to its thread while it runs; `kicked`, `tid` and
 * run_page->immediate_exit are what engine_kick touches from elsewhere.
 */
#ifndef ENGINE_KVM_KVM_INT_H
#define ENGINE_KVM_KVM_INT_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <time.h>

#include "engine/kvm/kvm.h"

#define KVM_EXIT_COUNT 64

struct kvm_vcpu {
	int fd;
	struct kvm_run *run_page;
	uint64_t tsc_deadline; /* as last set: KVM forgets it when the LAPIC is set */
	atomic_int tid;	       /* of the thread inside engine_run, 0 when none */
	atomic_bool kicked;
	uint64_t completed;    /* instructions that KVM lacked and the completer executed */
	uint64_t exits[KVM_EXIT_COUNT]; /* by reason, higher ones in the last */
	struct kvm_stats *kernel_stats; /* what the kernel counts, NULL before Linux 5.14 */
	clockid_t cpu_clock;   /* of the thread, once cpu_clock_ok */
	atomic_bool cpu_clock_ok;
	char last_error[512];
};

struct kvm_engine {
	struct engine base;
	struct engine_config cfg;
	struct irq_sink sink;
	int dev_fd, vm_fd;
	size_t run_page_size;
	bool has_tsc_attr; /* KVM_VCPU_TSC_OFFSET, Linux 5.16 */
	bool dirty_log;
	bool (*complete)(void *ctx, unsigned vcpu, struct cpu_state *s);
	void *complete_ctx;
	/* As KVM makes them: what reset goes back to. */
	struct irqchip_state irqchip_reset;
	struct kvm_lapic_state *lapic_reset; /* ncpus */
	struct kvm_vcpu *vcpu;		     /* ncpus */
};

static inline struct kvm_engine *kvm_engine_of(struct engine *e) { return container_of(e, struct kvm_engine, base); }

/* engine.c: the signal that brings a vCPU thread out of KVM_RUN; its handler does nothing and has no SA_RESTART. */
int kvm_kick_signal(void);
bool kvm_kick_signal_install(struct error *err);
/* memory slots with or without the dirty log */
bool kvm_set_slots(struct kvm_engine *k, bool log, struct error *err);

/* cpuid.c: tell KVM what of cfg.cpuid it can give */
bool kvm_set_cpuid(struct kvm_engine *k, unsigned vcpu, struct error *err);

/* state.c */
void kvm_get_state(struct engine *e, unsigned vcpu, struct cpu_state *out);
bool kvm_set_state(struct engine *e, unsigned vcpu, const struct cpu_state *in, struct error *err);
/* Set what differs from `was`, the state that the vCPU is in; NULL: everything. */
bool kvm_put_state(struct kvm_engine *k, unsigned vcpu, const struct cpu_state *in, const struct cpu_state *was,
		   struct error *err);

/* stats.c */
struct kvm_stats *kvm_stats_open(int vcpu_fd);
void kvm_stats_close(struct kvm_stats *s);
void kvm_stats_put(struct engine *e, unsigned vcpu, const struct counter_sink *out);

/* run.c */
enum engine_exit kvm_run_vcpu(struct engine *e, unsigned vcpu);

#endif
