/*
 * Inside of the CPUID policy: where host leaves come from, so that tests can show it other hosts.
 */
#ifndef CPU_CPUID_INT_H
#define CPU_CPUID_INT_H

#include "cpu/cpuid.h"

struct cpuid_host {
	struct cpuid_regs (*read)(const struct cpuid_host *h, uint32_t leaf, uint32_t subleaf);
	uint64_t xcr0; /* of the host's operating system; 0 where CR4.OSXSAVE is clear */
};

/* How a feature gets to the guest. */
enum cpuid_how {
	HOST,  /* the guest's instructions run natively, or the machine models it as the host's CPU has it */
	MODEL, /* the machine models it whether the host's CPU has it or not; kvm drops what its KVM does not offer */
};

enum cpuid_vendor { VENDOR_ANY, VENDOR_INTEL, VENDOR_AMD };

/* One row a feature. A bit without a row is hidden. */
struct cpuid_feature {
	uint32_t leaf, subleaf;
	enum cpuid_reg reg;
	uint8_t bit;
	enum cpuid_how how;
	bool baseline; /* in CPU_BASELINE too */
	uint64_t xcr0; /* state components it needs */
	enum cpuid_vendor vendor;
	const char *name;
};

extern const struct cpuid_feature cpuid_features[];
extern const unsigned cpuid_features_count;

struct cpuid_host cpuid_host_native(void);
bool cpuid_policy_build(struct cpuid_policy *p, const struct cpuid_host *host, enum cpu_model model, unsigned ncpus,
			uint32_t tsc_khz, struct error *err);

#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)
#define XCR0_AVX512 (BIT(5) | BIT(6) | BIT(7))

#endif
