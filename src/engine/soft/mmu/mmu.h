/*
 * The software MMU: guest page-table walks, and linear-address access for interpreter routines.
 *
 * Paging modes: none, 32-bit (PSE), PAE, 4-level; A/D bits set as by hardware; NX, WP, U/S, SMEP, SMAP, global, PCID
 * (SDM vol. 3, 4). Every access may reach RAM, MMIO (through the bus, under the machine lock) or a page with translated
 * code (whose translations are then dropped). An access may cross pages: nothing is written unless all of it can be.
 *
 * All functions raise #PF themselves and return false. Linear addresses must be canonical already in 64-bit mode
 * (interp/segment.h checks) and are truncated to 32 bits outside long mode.
 */
#ifndef ENGINE_SOFT_MMU_H
#define ENGINE_SOFT_MMU_H

#include "engine/soft/vcpu.h"

/* Access flags. */
#define MMU_READ 0u
#define MMU_WRITE 1u
#define MMU_FETCH 2u
#define MMU_SYSTEM 4u /* implicit supervisor access (descriptor tables, TSS, event-delivery stacks when going to ring 0-2): CPL is ignored, SMAP applies regardless of EFLAGS.AC */
#define MMU_USER 8u   /* as if at CPL 3 (inner-ring pushes to a ring-3 stack do not exist; used by tests and gates) */

bool mmu_read(struct vcpu *v, gva_t la, void *buf, unsigned len, unsigned flags);
bool mmu_write(struct vcpu *v, gva_t la, const void *buf, unsigned len, unsigned flags);
/* Check that a later write of len bytes cannot fault (sets A/D). flags as above without MMU_WRITE. */
bool mmu_probe_write(struct vcpu *v, gva_t la, unsigned len, unsigned flags);
/*
 * Host address of the byte at la when it is plain RAM, valid up to the end of that 4 KiB page and until the next MMU call
 * that may change mappings; *host = NULL when it is MMIO or needs care (use mmu_read/mmu_write then). False: #PF raised.
 * Who writes there calls mmu_host_wrote afterwards.
 */
bool mmu_host_ptr(struct vcpu *v, gva_t la, unsigned flags, void **host);
void mmu_host_wrote(struct vcpu *v, const void *host, unsigned len);
/*
 * Atomic compare-and-exchange on guest memory (for LOCK forms done in C and for descriptor accessed bits); *expected is updated.
 * len 1, 2, 4, 8. Returns false on fault; *done says whether the exchange happened.
 */
bool mmu_cmpxchg(struct vcpu *v, gva_t la, uint64_t *expected, uint64_t desired, unsigned len, unsigned flags, bool *done);

/* Guest-physical address of la for diagnostics: no side effects, no faults; false when not mapped. */
bool mmu_debug_translate(struct vcpu *v, gva_t la, gpa_t *gpa);

/* TLB maintenance; the interpreter routines call these after they changed the state in v->s. */
void mmu_flush_all(struct vcpu *v);                       /* CR0.PG/PE/WP, CR4.PGE/PAE/PSE/SMEP.., EFER.NXE changes, INVPCID 2 */
void mmu_flush_nonglobal(struct vcpu *v);                 /* INVPCID 3 (all PCIDs); CR4.PCIDE=0: MOV CR3 */
void mmu_flush_pcid(struct vcpu *v, unsigned pcid);       /* non-global of one PCID: MOV CR3 without bit 63, INVPCID 1 */
void mmu_flush_page(struct vcpu *v, gva_t la);            /* INVLPG: current PCID and globals */
void mmu_flush_page_pcid(struct vcpu *v, gva_t la, unsigned pcid); /* INVPCID 0 */
/* CR3 (address or PCID), CPL, EFLAGS.AC or another input of permission checks changed, without a flush being due. */
void mmu_context_changed(struct vcpu *v);

#endif
