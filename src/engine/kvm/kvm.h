/*
 * What the kvm engine offers beyond engine.h: host probing, completion of instructions that KVM's emulator lacks,
 * interrupt chip state, the dirty log, ioeventfd and irqfd.
 *
 * Functions that take a struct engine want one made by engine_kvm.create. Unless said otherwise they may be called by
 * any thread; those about one vCPU only while it does not run. Manual: Documentation/virt/kvm/api.rst of Linux.
 */
#ifndef ENGINE_KVM_KVM_H
#define ENGINE_KVM_KVM_H

#include "engine/engine.h"
#include "irq/irqchip.h"

/*
 * Guest ring 0 must run this fast (instructions/s) for `auto` to take kvm. Hardware does some 10^9, an emulator some
 * 10^6.
 */
#define KVM_MIN_RING0_IPS UINT64_C(200000000)

struct kvm_probe {
	bool present;	     /* the device node exists */
	bool opens;	     /* ... and may be opened for reading and writing */
	int api_version;     /* 12 is the only stable one; -1 when not opened */
	const char *missing; /* the first capability needed and not there, or NULL */
	bool hardware_flag;  /* vmx or svm in the host's CPUID flags */
	uint64_t ring0_ips;  /* measured, instructions/s in long mode; 0: not measured (see msg) */
	uint64_t ring3_ips;
	bool usable;   /* engine_kvm.create can be expected to work */
	bool take;     /* the verdict for `auto`: usable, and ring 0 at KVM_MIN_RING0_IPS or more */
	char msg[256]; /* one line: why the verdict is so */
};

/*
 * Look at `path` (NULL: /dev/kvm) and run a tiny guest for ms milliseconds of wall time in ring 0 and, when `ring3` is
 * set, as long in ring 3. Uses the calling thread, and SIGRTMIN on it.
 */
void kvm_probe(struct kvm_probe *out, const char *path, unsigned ms, bool ring3);

/*
 * Called in the vCPU's thread, without the machine lock, when KVM cannot emulate the instruction at s->rip. fn executes
 * at least that instruction on *s (delivering the exception itself when it faults) and returns true; false ends
 * engine_run with EXIT_ERROR. The local APICs and interrupt chips are KVM's: an instruction that reaches their
 * registers is to be refused. Register before the first run.
 */
void kvm_engine_set_completer(struct engine *e, bool (*fn)(void *ctx, unsigned vcpu, struct cpu_state *s), void *ctx);

/* Interrupt chips, in the form of irq/irqchip.h. No vCPU runs. set is false when KVM refuses the values. */
bool kvm_engine_get_irqchip(struct engine *e, struct irqchip_state *out);
bool kvm_engine_set_irqchip(struct engine *e, const struct irqchip_state *in);
/* LAPIC registers. Set after set_state, which holds APIC base and TSC deadline. */
bool kvm_engine_get_lapic(struct engine *e, unsigned vcpu, uint8_t regs[1024]);
bool kvm_engine_set_lapic(struct engine *e, unsigned vcpu, const uint8_t regs[1024]);

/*
 * Dirty log: pages that vCPUs wrote since the start or the last fetch. Writes by the VMM (DMA, completed instructions)
 * are not in it.
 * bitmap: one bit a page of RAM, by memfd offset, (ram_size / 4096 + 63) / 64 words; fetch ORs into it.
 */
bool kvm_dirty_log_start(struct engine *e, struct error *err);
bool kvm_dirty_log_fetch(struct engine *e, uint64_t *bitmap, struct error *err);
void kvm_dirty_log_stop(struct engine *e);

/*
 * A guest write of len bytes (0: any length) at addr signals eventfd fd instead of reaching the bus. datamatch, when
 * not NULL: only writes of that value, len not 0. del takes the same arguments.
 */
bool kvm_ioeventfd_add(struct engine *e, enum bus_space space, uint64_t addr, unsigned len, const uint64_t *datamatch,
		       int fd, struct error *err);
void kvm_ioeventfd_del(struct engine *e, enum bus_space space, uint64_t addr, unsigned len, const uint64_t *datamatch,
		       int fd);
/* Signalling eventfd fd makes an edge on gsi. */
bool kvm_irqfd_add(struct engine *e, unsigned gsi, int fd, struct error *err);
void kvm_irqfd_del(struct engine *e, unsigned gsi, int fd);

#endif
