/*
 * A vCPU on a flat MMU: linear address = guest-physical address, RAM from 0 to RIG_RAM, pages that fault on demand, one
 * MMIO page. The interpreter routines run on it exactly as in the engine; instructions come from bytes, through the
 * real decoder.
 *
 * Layout: GDT 0x1000, IDT 0x2000, TSS 0x3000, LDT 0x4000, ring-0 stack below 0x8000, ring-3 stack below 0x9000, code at
 * 0x10000.
 */
#ifndef INTERP_FIXTURE_H
#define INTERP_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "engine/soft/interp/interp_int.h"

#define RIG_RAM (4 * MIB)
#define RIG_MMIO UINT64_C(0x3ff000) /* reads back a counter, writes are kept in rig.mmio_last */
#define GDT 0x1000
#define IDT 0x2000
#define TSS 0x3000
#define LDT 0x4000
#define STACK0 0x8000
#define STACK3 0x9000
#define CODE 0x10000

/* Selectors of the standard GDT. */
enum {
	CODE0 = 0x08,
	DATA0 = 0x10,
	CODE3 = 0x18 | 3,
	DATA3 = 0x20 | 3,
	CODE0_64 = 0x28,
	CODE3_64 = 0x30 | 3,
	TSS_SEL = 0x40 /* 16 bytes */,
	CODE0_16 = 0x50,
	DATA0_16 = 0x58,
	CONF0 = 0x60 /* conforming */,
	LDT_SEL = 0x68 /* 16 bytes */,
	FREE = 0x80 /* for tests */,
};

/* Descriptor attributes as in struct cpu_seg. */
#define A_CODE (SEG_P | SEG_S | 0xb)
#define A_DATA (SEG_P | SEG_S | 0x3)
#define A_DPL(n) ((n) << SEG_DPL_SHIFT)

struct mmu {
	struct ram *ram;
	uint8_t page[RIG_RAM / PAGE_SIZE]; /* PAGE_* */
	uint64_t mmio_reads, mmio_last;
	unsigned flushes, changes;
};
#define PAGE_FAULTS 1
#define PAGE_READONLY 2

struct rig {
	struct vcpu v;
	struct mmu mmu;
	struct engine_config cfg;
	struct cpuid_policy policy;
	pthread_mutex_t lock;
	struct insn in; /* of the last run */
};

struct rig *rig_new(void);
void rig_free(struct rig *r);
uint8_t *rig_mem(struct rig *r, uint64_t la);

/* Modes. cpl 0 or 3 (protected: any). */
void rig_real(struct rig *r);
void rig_prot(struct rig *r, unsigned cpl);
void rig_long(struct rig *r, unsigned cpl);
void rig_v86(struct rig *r, unsigned iopl);
/* What the CPUID table claims to be. */
void rig_vendor(struct rig *r, bool amd);

void rig_desc(struct rig *r, uint16_t sel, uint32_t base, uint32_t limit, uint32_t attr);
void rig_gate(struct rig *r, uint64_t la, uint16_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned extra);
void rig_idt(struct rig *r, uint8_t vector, uint16_t sel, uint64_t off, unsigned type, unsigned dpl, unsigned ist);

/* Decode and execute one instruction at rip. */
bool rig_run(struct rig *r, const uint8_t *bytes, unsigned len);
#define RUN(r, ...) rig_run((r), (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

/* The last run faulted so, and nothing moved. */
#define assert_fault(r, vec, err)                                                                                      \
	do {                                                                                                           \
		assert_int_equal((r)->v.exc.vector, (vec));                                                            \
		assert_true((r)->v.exc.has_error);                                                                     \
		assert_int_equal((r)->v.exc.error, (err));                                                             \
	} while (0)
#define assert_fault_noerr(r, vec)                                                                                     \
	do {                                                                                                           \
		assert_int_equal((r)->v.exc.vector, (vec));                                                            \
		assert_false((r)->v.exc.has_error);                                                                    \
	} while (0)

uint64_t rnd(void);

/* The CPU itself as the authority: run bytes (RET is added) natively in a page of its own. */
struct host_regs {
	uint64_t rax, rcx, rdx, rsi, rdi, rflags;
};
void host_run(const uint8_t *bytes, unsigned len, struct host_regs *h);

/* The value of an XSAVE area: bytes of components in use, initial bytes elsewhere, pointers zero. */
void rig_xstate(struct rig *r, const uint8_t *area, uint64_t xcr0, uint8_t *out);

int rig_setup(void **state);
int rig_teardown(void **state);
#define TEST(name) cmocka_unit_test_setup_teardown(name, rig_setup, rig_teardown)

#endif
