#include <string.h>

#include "boot/boot_int.h"

#define SEL_CODE 0x10
#define SEL_DATA 0x18
#define SEL_TSS 0x20
#define GDT_CODE32 0x00cf9b000000ffff
#define GDT_CODE64 0x00af9b000000ffff
#define GDT_DATA 0x00cf93000000ffff
#define GDT_TSS 0x00008b0000000067
#define TSS_LIMIT 0x67

/* IA32_MTRR_DEF_TYPE */
#define MTRR_ENABLE BIT(11)
#define MTRR_WRITE_BACK 6

#define PTE_PRESENT_WRITE 0x3
#define PDE_LARGE 0x80
#define PD_COUNT 4 /* one per GiB */

/* Descriptors are accessed and the TSS busy, as if they had been loaded from the GDT. */
static bool set_segments(struct boot *b, bool is64, struct error *err)
{
	const uint64_t gdt[] = {0, 0, is64 ? GDT_CODE64 : GDT_CODE32, GDT_DATA, GDT_TSS, 0};
	struct cpu_state *s = b->cpu;
	struct cpu_seg data = {.sel = SEL_DATA, .limit = 0xffffffff, .attr = SEG_G | SEG_DB | SEG_P | SEG_S | 0x3};
	gpa_t base;

	if (!boot_put_low(b, gdt, sizeof(gdt), &base, err))
		return false;
	s->gdt = (struct cpu_dtr){.base = base, .limit = sizeof(gdt) - 1};
	s->idt = (struct cpu_dtr){.limit = 0};
	for (unsigned i = 0; i < SEG_COUNT; i++)
		s->seg[i] = data;
	s->seg[SEG_CS].sel = SEL_CODE;
	s->seg[SEG_CS].attr = SEG_G | SEG_P | SEG_S | 0xb | (is64 ? SEG_L : SEG_DB);
	s->tr = (struct cpu_seg){.sel = SEL_TSS, .limit = TSS_LIMIT, .attr = SEG_P | 0xb};
	s->ldt = (struct cpu_seg){.attr = SEG_UNUSABLE};
	return true;
}

void boot_firmware_state(struct cpu_state *s) { s->mtrr_def_type = MTRR_ENABLE | MTRR_WRITE_BACK; }

static void set_common(struct cpu_state *s, uint64_t rip)
{
	s->run_state = CPU_RUNNING;
	s->rip = rip;
	s->rflags = FL_FIXED;
	memset(s->gpr, 0, sizeof(s->gpr));
	boot_firmware_state(s);
	put_le16(s->xsave, 0x37f); /* a firmware's FNINIT */
	s->xsave[4] = 0;
}

bool boot_enter_flat32(struct boot *b, uint64_t rip, struct error *err)
{
	set_common(b->cpu, rip);
	b->cpu->cr0 = CR0_PE | CR0_ET;
	return set_segments(b, false, err);
}

static bool make_page_tables(struct boot *b, gpa_t *cr3, struct error *err)
{
	static const uint64_t zero[PAGE_SIZE / 8];
	struct ram *ram = b->p->ram;
	gpa_t base, pd;

	if (!boot_place(b, BOOT_LOW_START, BOOT_LOW_END, (2 + PD_COUNT) * PAGE_SIZE, PAGE_SIZE, &base))
		return boot_refuse(b, err, "give the guest more memory with -m",
				   "no room for page tables below 640 KiB");
	pd = base + 2 * PAGE_SIZE;
	ram_write(ram, base, zero, PAGE_SIZE);
	ram_write(ram, base + PAGE_SIZE, zero, PAGE_SIZE);
	ram_write(ram, base, &(uint64_t){(base + PAGE_SIZE) | PTE_PRESENT_WRITE}, 8);
	for (uint64_t i = 0; i < PD_COUNT; i++) {
		uint64_t entry[PAGE_SIZE / 8];

		for (uint64_t j = 0; j < ARRAY_LEN(entry); j++)
			entry[j] = (i * GIB + j * 2 * MIB) | PDE_LARGE | PTE_PRESENT_WRITE;
		ram_write(ram, pd + i * PAGE_SIZE, entry, PAGE_SIZE);
		ram_write(ram, base + PAGE_SIZE + i * 8, &(uint64_t){(pd + i * PAGE_SIZE) | PTE_PRESENT_WRITE}, 8);
	}
	*cr3 = base;
	return true;
}

bool boot_enter_long(struct boot *b, uint64_t rip, struct error *err)
{
	struct cpu_state *s = b->cpu;

	set_common(s, rip);
	s->cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
	s->cr4 = CR4_PAE;
	s->efer = EFER_LME | EFER_LMA;
	return set_segments(b, true, err) && make_page_tables(b, &s->cr3, err);
}
