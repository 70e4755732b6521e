/*
 * More CPUs for an image (64-bit): smp_start wakes them, each then waits, interrupts off, for functions to run. They share GDT, IDT
 * and page tables with the boot CPU and have no TSS: they stay in ring 0, and NMIs come on the current stack.
 */
#ifndef SMP_H
#define SMP_H

#include "guest.h"

#define SMP_MAX 64
#define SMP_VECTOR 8 /* of the start-up IPI: code at 0x8000 */

typedef void smp_fn(unsigned cpu, void *arg);

extern unsigned ncpus;			/* as CPUID tells */
extern volatile u32 smp_starts[SMP_MAX]; /* how often each came up; what it found then */
extern volatile u32 smp_cs[SMP_MAX], smp_cr0[SMP_MAX];

void smp_prepare(void); /* trampoline, IDT, LAPIC of the boot CPU */
bool smp_wait_starts(unsigned cpu, u32 want);
void smp_icr(u32 dest, u32 low); /* xAPIC: write ICR */
bool smp_start(void);	/* all; false: one did not come */
void smp_run(unsigned cpu, smp_fn *fn, void *arg); /* not the boot CPU; returns at once */
bool smp_done(unsigned cpu);
void smp_wait(unsigned cpu);
void smp_all(smp_fn *fn, void *arg); /* on all CPUs at the same time; returns when all have ended */

/* All of n CPUs wait here for each other. */
struct barrier {
	volatile u32 count, phase;
};
void barrier_wait(struct barrier *b, unsigned n);

static inline u32 xadd(volatile u32 *p, u32 v)
{
	__asm__ volatile("lock xaddl %0, %1" : "+r"(v), "+m"(*p)::"memory", "cc");
	return v;
}

#endif
