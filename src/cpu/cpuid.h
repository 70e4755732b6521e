/*
 * CPUID policy: what the guest sees, the same under both engines. One table: host leaves, less what the machine does not
 * model, less (for CPU_BASELINE) what is beyond x86-64-v2. Plus hypervisor leaves 0x40000000/1/0x10 with KVM's signature.
 */
#ifndef CPU_CPUID_H
#define CPU_CPUID_H

#include "cpu/state.h"
#include "base/error.h"

struct cpuid_regs {
	uint32_t eax, ebx, ecx, edx;
};

enum cpu_model { CPU_MAX, CPU_BASELINE };

#define CPUID_MAX_ENTRIES 128

struct cpuid_entry {
	uint32_t leaf, subleaf;
	bool has_subleaf; /* subleaf is significant */
	struct cpuid_regs r;
};

struct cpuid_policy {
	enum cpu_model model;
	unsigned ncpus;
	uint32_t tsc_khz;
	unsigned count;
	struct cpuid_entry e[CPUID_MAX_ENTRIES];
	/* Derived, for the engines: */
	uint64_t xcr0_allowed;   /* bits that XSETBV may set; x87 and SSE where XSAVE is not shown */
	uint64_t cr4_allowed;    /* bits that MOV CR4 may set */
	uint64_t efer_allowed;   /* bits that WRMSR EFER may have set; LMA among them, it only follows LME and CR0.PG */
	unsigned phys_bits;      /* MAXPHYADDR shown to the guest */
};

#define CPUID_CPUS_MAX 254 /* xAPIC ids 0..253 */

/* Build the table for this host. ncpus: 1 to CPUID_CPUS_MAX, APIC ids 0 to ncpus - 1. tsc_khz: see tsc_khz_measure. */
bool cpuid_policy_init(struct cpuid_policy *p, enum cpu_model model, unsigned ncpus, uint32_t tsc_khz, struct error *err);

/*
 * What CPUID returns on vCPU s now: the table, with the dynamic bits (OSXSAVE, OSPKE, APIC enable, initial APIC id,
 * x2APIC id, XSAVE size of leaf 0xd for the current xcr0) filled in. Unknown leaves follow the manual (Intel: the
 * last basic leaf; AMD: zeros; by vendor).
 */
struct cpuid_regs cpuid_query(const struct cpuid_policy *p, const struct cpu_state *s, uint32_t leaf, uint32_t subleaf);

/* What of KVM's paravirtual features (leaf 0x40000001, EAX) an engine serves beside the clock: bits, and the call that shows them. */
enum kvm_pv { KVM_STEAL_TIME = 5, KVM_PV_UNHALT = 7, KVM_PV_TLB_FLUSH = 9, KVM_PV_SEND_IPI = 11, KVM_PV_SCHED_YIELD = 13 };
void cpuid_policy_add_kvm(struct cpuid_policy *p, uint32_t features);

/* Feature test on the static table, e.g. cpuid_has(p, 7, 0, CPUID_EBX, 5). */
enum cpuid_reg { CPUID_EAX, CPUID_EBX, CPUID_ECX, CPUID_EDX };
bool cpuid_has(const struct cpuid_policy *p, uint32_t leaf, uint32_t subleaf, enum cpuid_reg reg, unsigned bit);

/*
 * Frequency of the host TSC in kHz: what CPUID leaves 0x15 or 0x40000010 state, checked, else measured (some 20 ms).
 * 0: it does not tick evenly.
 */
uint32_t tsc_khz_measure(void);

#endif
