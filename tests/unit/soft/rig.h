/*
 * A bare soft engine for tests: RAM, one vCPU in 64-bit ring 3 or ring 0, identity-free page tables made by the test.
 * The IDT is empty, so the first exception ends the run as a triple fault; rig_run returns which one it was.
 */
#ifndef RIG_H
#define RIG_H

#include "engine/soft/soft_int.h"

struct rig {
	struct ram *ram;
	struct bus *bus;
	struct engine *engine;
	struct soft_vcpu *sv;
	struct cpuid_policy cpuid;
	struct engine_config cfg;
	struct timer_queue timers;
	pthread_mutex_t lock;
	gpa_t next_table; /* page-table allocator */
	uint64_t cr3;
};

struct rig_result {
	enum engine_exit exit;
	uint8_t vector;
	uint32_t error;
	uint64_t rip, cr2;
};

#define RIG_W 1u
#define RIG_U 2u
#define RIG_NX 4u

void rig_init(struct rig *r, uint64_t ram_bytes);
void rig_fini(struct rig *r);
/* Map one 4 KiB page of linear address space. */
void rig_map(struct rig *r, gva_t gva, gpa_t gpa, unsigned flags);
/* A state in 64-bit mode at cpl 0 or 3 with all vector state enabled, TLB empty. */
void rig_state(struct rig *r, struct cpu_state *s, unsigned cpl);
/* Run from s until an exception; s is the state then. */
struct rig_result rig_run(struct rig *r, struct cpu_state *s);

#endif
