#include "cpu/state.h"

#include <string.h>

#define XSAVE_FCW 0
#define XSAVE_FTW 4
#define XSAVE_MXCSR 24
#define XSAVE_MXCSR_MASK 28
#define XSAVE_XSTATE_BV 512

static struct cpu_seg data_seg(void) { return (struct cpu_seg){.limit = 0xffff, .attr = SEG_P | SEG_S | 0x3}; }

/* What RESET and INIT have in common: rows of table 9-1 whose two columns agree. */
static void reset_common(struct cpu_state *s)
{
	memset(s->gpr, 0, sizeof(s->gpr));
	s->gpr[R_DX] =
		0x600; /* 000n06xxh: the processor's signature, where the machine knows a better one it says so */
	s->rip = 0xfff0;
	s->rflags = FL_FIXED;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = data_seg();
	s->seg[SEG_CS] =
		(struct cpu_seg){.sel = 0xf000, .base = 0xffff0000, .limit = 0xffff, .attr = SEG_P | SEG_S | 0xb};
	s->ldt = (struct cpu_seg){.limit = 0xffff, .attr = SEG_P | 0x2};
	s->tr = (struct cpu_seg){.limit = 0xffff, .attr = SEG_P | 0xb};
	s->gdt = s->idt = (struct cpu_dtr){.limit = 0xffff};
	s->cr2 = s->cr3 = s->cr4 = s->cr8 = 0;
	memset(s->pdpte, 0, sizeof(s->pdpte));
	memset(s->dr, 0, sizeof(s->dr));
	s->dr[6] = 0xffff0ff0;
	s->dr[7] = 0x400;
	s->efer = 0;
	s->debugctl = 0;
	s->spec_ctrl = 0;
	s->tsc_deadline = 0;
	s->exc_pending = s->exc_vector = s->exc_has_error = s->int_pending = 0;
	s->exc_error = 0;
	s->int_vector = s->int_soft = s->nmi_pending = s->nmi_masked = 0;
	s->shadow_sti = s->shadow_mov_ss = s->smi_pending = s->sipi_vector = 0;
}

void cpu_state_reset(struct cpu_state *s, uint32_t apic_id)
{
	memset(s, 0, sizeof(*s));
	s->version = CPU_STATE_VERSION;
	s->apic_id = apic_id;
	reset_common(s);
	s->run_state = apic_id == 0 ? CPU_RUNNING : CPU_WAIT_INIT;
	s->cr0 = CR0_CD | CR0_NW | CR0_ET;
	s->xcr0 = 1;
	s->apic_base = 0xfee00000 | BIT(11) | (apic_id == 0 ? BIT(8) : 0);
	s->pat = 0x0007040600070406;
	s->misc_enable = BIT(0) | BIT(11) | BIT(12); /* fast strings; no BTS, no PEBS */
	put_le16(s->xsave + XSAVE_FCW, 0x40);
	s->xsave[XSAVE_FTW] = 0xff; /* tag word 5555h: each register valid (zero) */
	put_le32(s->xsave + XSAVE_MXCSR, 0x1f80);
	put_le32(s->xsave + XSAVE_MXCSR_MASK, 0xffff);
	put_le64(s->xsave + XSAVE_XSTATE_BV, 3);
}

void cpu_state_init(struct cpu_state *s)
{
	bool bsp = s->apic_base & BIT(8);

	reset_common(s);
	s->run_state = bsp ? CPU_RUNNING : CPU_WAIT_SIPI;
	s->cr0 = (s->cr0 & (CR0_CD | CR0_NW)) | CR0_ET;
}
