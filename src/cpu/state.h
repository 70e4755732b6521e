/*
 * The architectural state of one vCPU: one form for both engines, and what a snapshot holds.
 *
 * Plain data. Register numbers are the encoding's (0 rax, 1 rcx, 2 rdx, 3 rbx, 4 rsp, 5 rbp, 6 rsi, 7 rdi, 8..15).
 * Manual: SDM vol. 3, 2-5 and 10; AMD APM vol. 2.
 */
#ifndef CPU_STATE_H
#define CPU_STATE_H

#include "base/bits.h"

enum { R_AX, R_CX, R_DX, R_BX, R_SP, R_BP, R_SI, R_DI, R_8, R_9, R_10, R_11, R_12, R_13, R_14, R_15 };
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

/* RFLAGS */
#define FL_CF BIT(0)
#define FL_FIXED BIT(1)
#define FL_PF BIT(2)
#define FL_AF BIT(4)
#define FL_ZF BIT(6)
#define FL_SF BIT(7)
#define FL_TF BIT(8)
#define FL_IF BIT(9)
#define FL_DF BIT(10)
#define FL_OF BIT(11)
#define FL_IOPL (BIT(12) | BIT(13))
#define FL_IOPL_SHIFT 12
#define FL_NT BIT(14)
#define FL_RF BIT(16)
#define FL_VM BIT(17)
#define FL_AC BIT(18)
#define FL_VIF BIT(19)
#define FL_VIP BIT(20)
#define FL_ID BIT(21)
/* The flags that stay in the host's RFLAGS while translated code runs. */
#define FL_ARITH (FL_CF | FL_PF | FL_AF | FL_ZF | FL_SF | FL_OF)

#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)

#define CR4_VME BIT(0)
#define CR4_PVI BIT(1)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_MCE BIT(6)
#define CR4_PGE BIT(7)
#define CR4_PCE BIT(8)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_LA57 BIT(12)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)
#define CR4_PKE BIT(22)

#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)
#define EFER_SVME BIT(12)
#define EFER_FFXSR BIT(14)
#define EFER_AUTOIBRS BIT(21)

/* Exception vectors */
enum {
	EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7, EXC_DF = 8,
	EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16, EXC_AC = 17, EXC_MC = 18, EXC_XM = 19,
};

/* Page-fault error code */
#define PF_P BIT(0)
#define PF_W BIT(1)
#define PF_U BIT(2)
#define PF_RSVD BIT(3)
#define PF_I BIT(4)

/*
 * A segment register with its hidden part. attr has the layout of VMX access rights: bits 0-3 type, 4 S, 5-6 DPL, 7 P,
 * 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable (null selector). limit is in bytes, already scaled by G.
 */
struct cpu_seg {
	uint64_t base;
	uint32_t limit;
	uint32_t attr;
	uint16_t sel;
	uint16_t pad[3];
};
#define SEG_TYPE 0x0fu
#define SEG_S BIT(4)
#define SEG_DPL_SHIFT 5
#define SEG_DPL (3u << 5)
#define SEG_P BIT(7)
#define SEG_AVL BIT(12)
#define SEG_L BIT(13)
#define SEG_DB BIT(14)
#define SEG_G BIT(15)
#define SEG_UNUSABLE BIT(16)

struct cpu_dtr {
	uint64_t base;
	uint16_t limit;
	uint16_t pad[3];
};

enum cpu_run_state { CPU_RUNNING, CPU_HALTED, CPU_WAIT_INIT /* AP after reset */, CPU_WAIT_SIPI };

#define XSAVE_AREA_SIZE 4096 /* standard (non-compacted) format; x87, SSE, AVX, AVX-512, PKRU fit in 2696 bytes */
#define CPU_STATE_VERSION 1

struct cpu_state {
	uint32_t version; /* CPU_STATE_VERSION */
	uint32_t run_state; /* enum cpu_run_state */
	uint64_t gpr[16];
	uint64_t rip;
	uint64_t rflags;
	struct cpu_seg seg[SEG_COUNT];
	struct cpu_seg ldt, tr;
	struct cpu_dtr gdt, idt;
	uint64_t cr0, cr2, cr3, cr4, cr8, xcr0;
	uint64_t dr[8]; /* 0-3, 6, 7 */
	uint64_t pdpte[4]; /* PAE: loaded by MOV CR3 (SDM vol. 3, 4.4.1) */

	/* MSRs. */
	uint64_t efer, apic_base, pat, star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
	uint64_t tsc_adjust, tsc_aux, tsc_deadline, misc_enable, spec_ctrl, debugctl;
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var[16];
	uint64_t mcg_status, mcg_ctl;
	uint64_t kvm_system_time, kvm_wall_clock, kvm_async_pf, kvm_steal_time, kvm_poll_control, kvm_pv_eoi;

	/* Events. An exception in flight (delivery interrupted) is re-injected on load. */
	uint8_t exc_pending, exc_vector, exc_has_error, int_pending /* ack'ed external interrupt not yet delivered */;
	uint32_t exc_error;
	uint8_t int_vector, int_soft, nmi_pending, nmi_masked;
	uint8_t shadow_sti, shadow_mov_ss, smi_pending, sipi_vector;
	uint32_t apic_id;

	uint8_t xsave[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
};

/* State after RESET (SDM vol. 3, table 9-1): real mode at f000:fff0. APs wait for INIT/SIPI. */
void cpu_state_reset(struct cpu_state *s, uint32_t apic_id);
/* State after INIT: as RESET, but x87/SSE/TSC/MTRR state stays (same table). */
void cpu_state_init(struct cpu_state *s);

static inline unsigned cpu_cpl(const struct cpu_state *s)
{
	return (s->seg[SEG_SS].attr >> SEG_DPL_SHIFT) & 3;
}
static inline bool cpu_long_mode(const struct cpu_state *s) { return s->efer & EFER_LMA; }
static inline bool cpu_is_64bit(const struct cpu_state *s) { return cpu_long_mode(s) && (s->seg[SEG_CS].attr & SEG_L); }
static inline bool cpu_is_real(const struct cpu_state *s) { return !(s->cr0 & CR0_PE); }
static inline bool cpu_is_v86(const struct cpu_state *s) { return (s->cr0 & CR0_PE) && (s->rflags & FL_VM) && !cpu_long_mode(s); }
/* Canonical for 48-bit linear addresses. */
static inline bool cpu_canonical(gva_t a) { return (uint64_t)((int64_t)(a << 16) >> 16) == a; }

#endif
