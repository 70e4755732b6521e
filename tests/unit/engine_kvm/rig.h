/* A small VM for the tests of the kvm engine: RAM, a bus with one device that records, and the engine. */
#ifndef TESTS_ENGINE_KVM_RIG_H
#define TESTS_ENGINE_KVM_RIG_H

#include <pthread.h>

#include "engine/kvm/kvm.h"

#define RIG_RAM (4 * MIB)
#define RIG_MMIO 0xd0000000u /* 0x1000 bytes: reads give rig.read_value */
#define RIG_PORT 0x500	     /* 16 ports, the same device */
#define RIG_EXIT_PORT 0x5f0  /* a write ends engine_run with EXIT_KICKED */
#define RIG_LOG 64

struct rig_access {
	enum bus_space space;
	bool write;
	uint64_t off;
	unsigned size;
	uint64_t value;
};

struct rig {
	pthread_mutex_t lock;
	struct ram *ram;
	struct bus *bus;
	struct cpuid_policy cpuid;
	struct engine *engine;
	struct rig_access log[RIG_LOG];
	unsigned count;
	uint64_t read_value;
	unsigned exits; /* writes to RIG_EXIT_PORT */
};

/* Ends the program with status 77 and a reason when /dev/kvm cannot be opened. */
void rig_need_kvm(void);
void rig_make(struct rig *r, unsigned ncpus);
void rig_free(struct rig *r);

/* Code at gpa 0x8000, vCPU 0 at its start in real mode: cs = ds = es = ss = 0, sp = 0x7000. */
void rig_real(struct rig *r, const void *code, size_t len);
/* The same in 64-bit mode, ring 0 or 3: the low 4 GiB identity-mapped for both rings, rsp = 0x7000, no IDT. */
void rig_long(struct rig *r, const void *code, size_t len, unsigned ring);
void rig_long_state(struct rig *r, struct cpu_state *s, unsigned ring);

#endif
