/*
 * The physical CPU as the judge: run guest code natively in this process, at the linear addresses that it has in the guest,
 * until it faults, and compare the state then with the engine's. One per process, as signal handlers need to find it.
 */
#ifndef NATIVE_H
#define NATIVE_H

#include "rig.h"

struct regs {
	uint64_t gpr[16], rip, rflags;
	uint8_t xsave[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
};

struct outcome {
	uint8_t vector;
	uint32_t error;
	uint64_t cr2;
};

extern struct regs native; /* before native_run: the start, afterwards: the end */
extern struct outcome native_out;
extern uint64_t native_xmask;
extern uint32_t ymm_off, k_off, zmmh_off, zmm16_off; /* of components in an XSAVE area */
extern int native_mode; /* MODE_64 or MODE_32 */
extern uint64_t rng_state;

uint64_t rnd(void);
unsigned below(unsigned n);

/* After the engine's first run in this thread. describe: print which case it was, of a crash. */
void native_init(struct soft_vcpu *sv, void (*describe)(void));
void native_run(uint64_t gs_base);
void native_random_vectors(uint8_t *xsave);
/* Print what differs but memory. */
bool native_differs(const struct cpu_state *s, const struct rig_result *res);

#endif
