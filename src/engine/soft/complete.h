/*
 * Finishes single instructions for an engine whose CPU met one that it cannot execute: the soft engine without
 * translated blocks, interrupt chips and timers, on a state that the caller hands over.
 *
 * Threads: completer_run for one vCPU from one thread at a time; it takes cfg.lock around accesses to the bus. A vCPU
 * costs nothing before its first completion. Signals: the handlers of SIGSEGV, SIGBUS, SIGFPE and SIGILL become the soft
 * engine's then; mask and alternate stack of the calling thread are as before when completer_run returns.
 */
#ifndef ENGINE_SOFT_COMPLETE_H
#define ENGINE_SOFT_COMPLETE_H

#include "engine/engine.h"

struct completer;

/* ram, bus, cpuid, ncpus and lock of cfg are used, and outlive the completer. */
struct completer *completer_new(const struct engine_config *cfg, struct error *err);
void completer_free(struct completer *c);

/*
 * Execute the instruction at s->rip, or as much of a REP as fits, on s and guest memory; a fault is delivered through
 * the guest's IDT. False, with s unchanged: refused. That are instructions whose effect lies in what belongs to the other
 * engine (local APIC, IOAPIC, PIC and PIT; TLB; paravirtual clock; hypercalls), those that halt or shut down the vCPU, and
 * what the soft engine cannot do either. An access may have been made in part then; the vCPU is to be stopped.
 * `completer` is a struct completer: the type is that of kvm_engine_set_completer.
 */
bool completer_run(void *completer, unsigned vcpu, struct cpu_state *s);
/* Why completer_run last refused for this vCPU; NULL when it did not. */
const char *completer_refusal(const struct completer *c, unsigned vcpu);

#endif
