/* GDT, TSS, IDT, the trap catcher and ring-3 entry. SDM vol. 3, 3.4, 6, 7. */
#include "guest.h"

ulong user_base;
struct trap trap;
ulong trap_mark;
bool (*trap_hook[256])(struct frame *f);
u8 user_stack[16384] ALIGNED(4096);
u8 ring0_stack[16384] ALIGNED(4096);
u8 ist_stack[3][8192] ALIGNED(4096);
struct tss tss ALIGNED(4096);
struct gate idt[256] ALIGNED(4096);
volatile int trap_armed;
extern const char trap_stubs[];
void trap_unwind(void) __attribute__((noreturn));
void trap_dispatch(struct frame *f);
void trap_init(void);

#ifdef GUEST64
u64 gdt[32] ALIGNED(64) = {
	[KCS / 8] = 0x00af9b000000ffff,   [KDS / 8] = 0x00cf93000000ffff,   [KCS32 / 8] = 0x00cf9b000000ffff,
	[KCS16 / 8] = 0x00009b000000ffff, [KDS16 / 8] = 0x000093000000ffff, [UCS32 / 8] = 0x00cffb000000ffff,
	[UDS / 8] = 0x00cff3000000ffff,   [UCS / 8] = 0x00affb000000ffff,
	[SYSENTER_CS / 8] = 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff,
	0x00affb000000ffff, 0x00cff3000000ffff,
};
#else
u64 gdt[32] ALIGNED(64) = {
	[KCS / 8] = 0x00cf9b000000ffff,   [KDS / 8] = 0x00cf93000000ffff,   [UCS / 8] = 0x00cffb000000ffff,
	[UDS / 8] = 0x00cff3000000ffff,   [KCS16 / 8] = 0x00009b000000ffff, [KDS16 / 8] = 0x000093000000ffff,
	[CS_RING1 / 8] = 0x00cfbb000000ffff, [DS_RING1 / 8] = 0x00cfb3000000ffff,
};
#endif

u64 seg_desc(u32 base, u32 limit, u8 access, u8 flags)
{
	return (limit & 0xffff) | (u64)(base & 0xffffff) << 16 | (u64)access << 40 | (u64)(limit >> 16 & 15) << 48 |
	       (u64)(flags & 15) << 52 | (u64)(base >> 24) << 56;
}

void idt_set(unsigned vector, ulong target, u16 sel, u8 type, u8 ist)
{
	struct gate g = {.off0 = (u16)target, .sel = sel, .ist = ist, .type = type, .off1 = (u16)(target >> 16)};
#ifdef GUEST64
	g.off2 = (u32)(target >> 32);
#endif
	idt[vector] = g;
}

void idt_stub(unsigned vector, u8 type, u8 ist) { idt_set(vector, (ulong)trap_stubs + 16 * vector, KCS, type, ist); }

void trap_init(void)
{
	struct {
		u16 limit;
		ulong base;
	} __attribute__((packed)) idtr = {sizeof(idt) - 1, (ulong)idt};

	for (unsigned i = 0; i < 256; i++)
		idt_stub(i, 0x8e, 0);
	idt_stub(EXC_BP, 0xee, 0);
	idt_stub(EXC_OF, 0xee, 0);
	idt_stub(VEC_EXIT, 0xee, 0);
#ifdef GUEST64
	idt_stub(EXC_DF, 0x8e, 1);
	idt_stub(EXC_NMI, 0x8e, 2);
	tss.rsp[0] = (ulong)ring0_stack + sizeof(ring0_stack);
	for (int i = 0; i < 3; i++)
		tss.ist[i] = (ulong)ist_stack[i] + sizeof(ist_stack[i]);
	gdt[SEL_TSS / 8 + 1] = (ulong)&tss >> 32;
#else
	tss.esp0 = (ulong)ring0_stack + sizeof(ring0_stack);
	tss.ss0 = KDS;
#endif
	tss.iomap = sizeof(tss); /* beyond the limit: no port is allowed */
	gdt_set(SEL_TSS, seg_desc((u32)(ulong)&tss, offsetof(struct tss, bitmap) - 1, 0x89, 0));
	__asm__ volatile("lidt %0" ::"m"(idtr));
	__asm__ volatile("lldt %w0" ::"r"(0));
	__asm__ volatile("ltr %w0" ::"r"(SEL_TSS));
}

int trap_disarm(void)
{
	trap_armed = 0;
	return trap.vector;
}

void trap_dispatch(struct frame *f)
{
	ulong cr2 = read_cr2();

	if (trap_hook[f->vector] && trap_hook[f->vector](f))
		return;
	if (trap_armed) {
		trap_armed = 0;
		trap.vector = (int)f->vector;
		trap.f = *f;
		trap.cr2 = cr2;
		trap.handler_sp = (ulong)f;
		trap_unwind();
	}
	print("FAIL unexpected trap: got vector %u error 0x%lx at 0x%lx:0x%lx cr2 0x%lx flags 0x%lx sp 0x%lx want none\n",
	      (unsigned)f->vector, f->error, f->cs, f->ip, cr2, f->flags, f->sp);
	guest_exit(1);
}

int run_frame(struct frame *f) { return TRAP(trap_return(f)); }

struct frame user_frame(const void *fn)
{
	struct frame f = {0};

	f.ip = user_ptr(fn);
	f.cs = UCS;
	f.ss = UDS;
	f.flags = FL_FIXED;
	f.sp = user_ptr(user_stack + sizeof(user_stack) - 64);
#ifndef GUEST64
	f.ds = f.es = f.fs = f.gs = UDS;
#endif
	return f;
}

int user_run(const void *fn, ulong a, ulong b)
{
	struct frame f = user_frame(fn);

	f.di = a;
	f.si = b;
	return run_frame(&f);
}
