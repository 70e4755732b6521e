/*
 * 32-bit protected mode: segment limits and types, call gates with parameters, rings 0, 1 and 3, 16-bit code and stacks,
 * BCD and other instructions that long mode dropped, SYSENTER. SDM vol. 2; vol. 3, 3.4, 5, 6.
 */
#include "guest.h"

CODE(u_nop, "nop");
CODE(u_lcall, "push $0x111; push $0x222; push $0x333; lcall *(%edi)");
CODE(u_load_es, "mov %edi, %es; movl %es:(%esi), %eax");
CODE(u_into, "mov $0x7f, %al; add $1, %al; into");
CODE(u_sysenter, "mov %esp, %ecx; mov $1f, %edx; sysenter; 1: mov %cs, %eax; mov %ss, %ebx");
CODE(u_iret_in, "iretl");
CODE(u_int3, "int3");
CODE(u_cli, "cli");
CODE(r1_code, "mov %cs, %eax; mov %ss, %ebx");
CODE(r1_hlt, "hlt");
CODE(u_ss16, "mov %esp, %ebx; push %eax; mov %esp, %ecx; pop %eax");

static u32 data[16] ALIGNED(64);

#define FREE(n) (SEL_FREE + 8 * (n))

/* A trap puts ES back: load it before each attempt. */
#define LOAD_ES asm volatile("mov %0, %%es" ::"r"(FREE(0)))

static void limits(void)
{
	u32 v = 0;

	gdt_set(FREE(0), seg_desc((u32)data, 15, 0x93, 4)); /* 16 bytes */
	TRAP(LOAD_ES; asm volatile("movl %%es:12, %0" : "=r"(v)));
	check_trap(NO_TRAP, -1, "last dword inside the limit");
	TRAP(LOAD_ES; asm volatile(MARK "movl %%es:13, %0" : "=r"(v)));
	check_trap(EXC_GP, 0, "one byte beyond the limit");
	check_mark("one byte beyond the limit");
	TRAP(LOAD_ES; asm volatile("movb %%es:15, %b0" : "=q"(v)));
	check_trap(NO_TRAP, -1, "last byte");
	TRAP(LOAD_ES; asm volatile("movl %%es:-2, %0" : "=r"(v)));
	check_trap(EXC_GP, 0, "offset that wraps");
	TRAP(LOAD_ES; asm volatile("movups %%es:1, %%xmm0" ::));
	check_trap(EXC_GP, 0, "16 bytes beyond the limit");
	TRAP(LOAD_ES; asm volatile("movups %%es:0, %%xmm0" ::));
	check_trap(NO_TRAP, -1, "16 bytes inside the limit");
	TRAP(LOAD_ES; asm volatile("movb $1, %%es:16" ::));
	check_trap(EXC_GP, 0, "store beyond the limit");
	TRAP(LOAD_ES; asm volatile("mov $20, %%ecx; xor %%edi, %%edi; rep stosb" ::: "ecx", "edi", "memory"));
	check_trap(EXC_GP, 0, "rep stosb over the limit");
	check_eq(trap.f.cx, 4, "rep stosb over the limit: ecx");
	check_eq(trap.f.di, 16, "rep stosb over the limit: edi");
	/* base is added, 32 bits wrap */
	gdt_set(FREE(1), seg_desc((u32)data - 0x1000, 0xfffff, 0x93, 0xc));
	data[3] = 0x12345678;
	asm volatile("mov %1, %%fs; movl %%fs:0x100c, %0" : "=r"(v) : "r"(FREE(1)));
	check_eq(v, 0x12345678, "segment base");
	gdt_set(FREE(1), seg_desc((u32)data + 0x1000, 0xfffff, 0x93, 0xc));
	asm volatile("mov %1, %%fs; movl %%fs:-0x1000 + 12, %0" : "=r"(v) : "r"(FREE(1)));
	check_eq(v, 0x12345678, "base + offset wraps at 4 GiB");
	/* types */
	gdt_set(FREE(0), seg_desc(0, 0xfffff, 0x91, 0xc));
	TRAP(LOAD_ES; asm volatile("movl %%es:(%1), %0; movl %0, %%es:(%1)" : "=&r"(v) : "r"(data)));
	check_trap(EXC_GP, 0, "write to a read-only segment");
	TRAP(asm volatile("movl %0, %%cs:(%1)" ::"r"(v), "r"(data)));
	check_trap(EXC_GP, 0, "write to a code segment");
	TRAP(asm volatile("movl %%cs:(%1), %0" : "=r"(v) : "r"(data)));
	check_trap(NO_TRAP, -1, "read of a readable code segment");
	asm volatile("mov %0, %%es" ::"r"(0));
	TRAP(asm volatile("movl %%es:(%1), %0" : "=r"(v) : "r"(data)));
	check_trap(EXC_GP, 0, "access through a null segment");
	/* expand-down: valid above the limit, up to 64 KiB or 4 GiB by the B bit */
	gdt_set(FREE(0), seg_desc(0, 0x1ff, 0x97, 0xc)); /* limit 0x1fffff */
	TRAP(LOAD_ES; asm volatile("movl %%es:0x1ffffc, %0" : "=r"(v)));
	check_trap(EXC_GP, 0, "expand-down: below");
	TRAP(LOAD_ES; asm volatile("movl %%es:0x1ffffe, %0" : "=r"(v)));
	check_trap(EXC_GP, 0, "expand-down: across");
	TRAP(LOAD_ES; asm volatile("movl %%es:0x200000, %0" : "=r"(v)));
	check_trap(NO_TRAP, -1, "expand-down: above");
	gdt_set(FREE(0), seg_desc((u32)data, 0xfff, 0x97, 0)); /* 16 bit */
	TRAP(LOAD_ES; asm volatile("movb %%es:0x10000, %b0" : "=q"(v)));
	check_trap(EXC_GP, 0, "16-bit expand-down: above 64 KiB");
	asm volatile("mov %0, %%es; mov %0, %%fs" ::"r"(KDS));
	/* a small stack segment: #SS(0) */
	gdt_set(FREE(0), seg_desc(0, 0xfff, 0x93, 4));
	TRAP(asm volatile("movl %%ss:(%1), %0" : "=r"(v) : "r"(data)));
	check_trap(NO_TRAP, -1, "flat stack");
	user_run(u_load_es, FREE(0) | 3, 0);
	check_trap(EXC_GP, FREE(0), "ring 3: es with DPL 0");
	gdt_set(FREE(0), seg_desc(0, 0xfff, 0xf3, 4));
	user_run(u_load_es, FREE(0) | 3, 0x1000);
	check_trap(EXC_GP, 0, "ring 3: es limit");
	/* code segment limit: fetch beyond it is #GP(0) */
	static const u8 nops[] = {0x90, 0x90, 0x90, 0x90};
	gdt_set(FREE(2), seg_desc((u32)nops, 1, 0x9b, 4));
	struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) far = {0, FREE(2)};
	TRAP(asm volatile("ljmp *%0" ::"m"(far)));
	check_trap(EXC_GP, 0, "code segment limit");
	check_eq(trap.f.ip, 2, "code segment limit: eip");
	far.off = 100;
	TRAP(asm volatile(MARK "ljmp *%0" ::"m"(far)));
	check_trap(EXC_GP, 0, "far jump beyond the limit");
	check_mark("far jump beyond the limit");
}

static void loads(void)
{
	struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p = {0x1234, KDS};
	u32 a, b;

	asm volatile("les %2, %0; mov %%es, %1" : "=&r"(a), "=&r"(b) : "m"(p));
	check_eq(a, 0x1234, "les: offset");
	check_eq(b & 0xffff, KDS, "les: selector");
	asm volatile("lfs %2, %0; mov %%fs, %1" : "=&r"(a), "=&r"(b) : "m"(p));
	check_eq(b & 0xffff, KDS, "lfs");
	p.sel = 0x200;
	TRAP(asm volatile("lds %1, %0" : "=r"(a) : "m"(p)));
	check_trap(EXC_GP, 0x200, "lds beyond the GDT");
	asm volatile("push %%ds; pop %%es; mov %%es, %0; push %%fs; pop %0; push %%es; pop %%es; sub $8, %%esp; add $8, %%esp" : "=&r"(a));
	check_eq(a & 0xffff, KDS, "push and pop of segments");
	gdt_set(FREE(0), seg_desc(0, 0xfffff, 0x13, 0xc));
	TRAP(asm volatile("mov %0, %%gs" ::"r"(FREE(0))));
	check_trap(EXC_NP, FREE(0), "gs not present");
	TRAP(asm volatile("mov %0, %%ss" ::"r"(FREE(0))));
	check_trap(EXC_SS, FREE(0), "ss not present");
	TRAP(asm volatile("mov %0, %%ss" ::"r"(0)));
	check_trap(EXC_GP, 0, "ss = 0");
	TRAP(asm volatile("mov %0, %%ss" ::"r"(UDS)));
	check_trap(EXC_GP, UDS & ~3, "ss with DPL 3 in ring 0");
	/* LDT */
	static u64 ldt[4];
	ldt[1] = gdt[KDS / 8];
	gdt_set(SEL_LDT, seg_desc((u32)ldt, 15, 0x82, 0));
	asm volatile("lldt %w0" ::"r"(SEL_LDT));
	TRAP(asm volatile("mov %0, %%gs" ::"r"(0x0c)));
	check_trap(NO_TRAP, -1, "gs from the LDT");
	TRAP(asm volatile("mov %0, %%gs" ::"r"(0x14)));
	check_trap(EXC_GP, 0x14, "selector beyond the LDT");
	asm volatile("lldt %w0; mov %0, %%gs" ::"r"(0));
}

/* Model of the decimal adjustments, from vol. 2. */
static void bcd(void)
{
	group_begin("BCD instructions");
	for (u32 n = 0; n < 256 * 4; n++) {
		u8 al = (u8)n;
		bool cf = n & 0x100, af = n & 0x200;
		ulong fl = FL_FIXED | (cf ? 1 : 0) | (af ? 0x10 : 0);
		u32 r, f;
#define BCD(insn, ax) asm volatile("push %3; popf; " insn "; pushf; pop %1" : "=a"(r), "=&r"(f) : "0"((u32)(ax)), "r"(fl) : "cc")
		/* daa */
		u8 want = al;
		bool wcf = false, waf = false;
		if ((al & 15) > 9 || af) {
			want = (u8)(want + 6);
			waf = true;
		}
		wcf = al > 0x99 || cf;
		if (wcf)
			want = (u8)(want + 0x60);
		BCD("daa", al);
		group_eq(r & 0xff, want, "daa %x", n);
		group_eq(f & 0x11, (wcf ? 1 : 0) | (waf ? 0x10 : 0), "daa flags %x", n);
		group_eq(f & 0xc0, (want == 0 ? 0x40 : 0) | (want & 0x80), "daa ZF SF %x", n);
		/* das */
		want = al;
		waf = wcf = false;
		if ((al & 15) > 9 || af) {
			wcf = cf || al < 6;
			want = (u8)(want - 6);
			waf = true;
		}
		if (al > 0x99 || cf) {
			want = (u8)(want - 0x60);
			wcf = true;
		}
		BCD("das", al);
		group_eq(r & 0xff, want, "das %x", n);
		group_eq(f & 0x11, (wcf ? 1 : 0) | (waf ? 0x10 : 0), "das flags %x", n);
		/* aaa, aas */
		u16 ax = (u16)(0x1200 | al), w = ax;
		waf = (al & 15) > 9 || af;
		if (waf)
			w = (u16)(w + 0x106);
		w &= 0xff0f;
		BCD("aaa", ax);
		group_eq(r & 0xffff, w, "aaa %x", n);
		group_eq(f & 0x11, waf ? 0x11 : 0, "aaa flags %x", n);
		w = ax;
		if (waf)
			w = (u16)((u16)(w - 6) - 0x100);
		w &= 0xff0f;
		BCD("aas", ax);
		group_eq(r & 0xffff, w, "aas %x", n);
		group_eq(f & 0x11, waf ? 0x11 : 0, "aas flags %x", n);
		BCD("aam", al);
		group_eq(r & 0xffff, (u32)(al / 10) << 8 | al % 10, "aam %x", n);
		BCD(".byte 0xd4, 7", al);
		group_eq(r & 0xffff, (u32)(al / 7) << 8 | al % 7, "aam 7 %x", n);
		BCD("aad", 0x300 | al);
		group_eq(r & 0xffff, (u8)(al + 30), "aad %x", n);
		BCD(".byte 0xd6", al); /* salc */
		group_eq(r & 0xff, cf ? 0xff : 0, "salc %x", n);
	}
	group_end();
	TRAP(asm volatile(".byte 0xd4, 0" ::: "eax"));
	check_trap(EXC_DE, 0, "aam 0");
}

static void old_insns(void)
{
	static u32 m[8], bounds[2] = {3, 7};
	u32 a, b;

	asm volatile("mov %%esp, %%edx; mov $1, %%eax; mov $2, %%ecx; mov $3, %%ebx; mov $5, %%esi; mov $6, %%edi; pusha;"
		     "mov 28(%%esp), %%eax; mov %%eax, %0; mov 12(%%esp), %%eax; sub %%edx, %%eax; mov %%eax, 4+%0; mov (%%esp), %%eax; mov %%eax, 8+%0;"
		     "movl $77, 28(%%esp); movl $88, 12(%%esp); popa; mov %%eax, 12+%0; sub %%edx, %%esp; mov %%esp, 16+%0; mov %%edx, %%esp"
		     : "=m"(m)::"eax", "ebx", "ecx", "edx", "esi", "edi", "memory");
	check_eq(m[0], 1, "pusha: eax");
	check_eq(m[1], 0, "pusha: esp before");
	check_eq(m[2], 6, "pusha: edi last");
	check_eq(m[3], 77, "popa: eax");
	check_eq(m[4], 0, "popa ignores esp");
	TRAP(asm volatile("bound %0, %1" ::"r"(7), "m"(bounds)));
	check_trap(NO_TRAP, -1, "bound, inside");
	TRAP(asm volatile(MARK "bound %0, %1" ::"r"(8), "m"(bounds)));
	check_trap(EXC_BR, 0, "bound, outside");
	check_mark("bound is a fault");
	TRAP(asm volatile("bound %0, (%1)" ::"r"(2), "r"(bounds)));
	check_trap(EXC_BR, 0, "bound, below");
	asm volatile("mov $0x10, %%ax; mov $3, %%cx; arpl %%cx, %%ax; setz %b1; movzwl %%ax, %0; movzbl %b1, %1" : "=&r"(a), "=&b"(b)::"eax", "ecx", "cc");
	check_eq(a, 0x13, "arpl raises RPL");
	check_eq(b, 1, "arpl: ZF");
	asm volatile("mov $0x13, %%ax; mov $1, %%cx; arpl %%cx, %%ax; setz %b1; movzwl %%ax, %0; movzbl %b1, %1" : "=&r"(a), "=&b"(b)::"eax", "ecx", "cc");
	check_eq(a, 0x13, "arpl leaves a larger RPL");
	check_eq(b, 0, "arpl: ZF 0");
	TRAP(asm volatile("movb $0x7f, %%al; addb $1, %%al; into" ::: "eax"));
	check_trap(EXC_OF, 0, "into");
	TRAP(asm volatile("xor %%eax, %%eax; into" ::: "eax"));
	check_trap(NO_TRAP, -1, "into without overflow");
	asm volatile("mov $0x11223344, %%eax; .byte 0x40; .byte 0x48; .byte 0x48; mov %%eax, %0" : "=r"(a)::"eax");
	check_eq(a, 0x11223343, "one-byte inc and dec");
	asm volatile("mov $0xffff0005, %%ecx; xor %%eax, %%eax; 1: inc %%eax; addr16 loop 1b; mov %%eax, %0; mov %%ecx, %1" : "=&r"(a), "=&r"(b)::"eax", "ecx", "cc");
	check_eq(a, 5, "addr16 loop");
	check_eq(b, 0xffff0000, "addr16 loop keeps the upper half of ecx");
	static u32 here = 0x5566;
	asm volatile("mov %1, %%ebx; mov $0x00010000, %%esi; addr16 lea (%%bx, %%si), %0" : "=r"(a) : "r"(0x1f234) : "ebx", "esi");
	check_eq(a, 0xf234, "addr16 lea wraps at 64 KiB");
	asm volatile("movl %1, %0" : "=r"(a) : "m"(here));
	check_eq(a, 0x5566, "absolute address");
	asm volatile("fninit; fld1; fnstenv %0; fldenv %0" : "=m"(*(char(*)[28])m));
	check_eq(m[1] >> 11 & 7, 7, "fnstenv, 32 bit");
}

extern const char gate_entry[], gate_ret[], ring1_entry[];
u32 seen[16];
__asm__(".text\ngate_entry: push %eax; movl 4(%esp), %eax; movl %eax, %ss:seen; movl 8(%esp), %eax; movl %eax, %ss:seen+4; movl 12(%esp), %eax; movl %eax, %ss:seen+8;"
	"movl 16(%esp), %eax; movl %eax, %ss:seen+12; movl 20(%esp), %eax; movl %eax, %ss:seen+16; movl 24(%esp), %eax; movl %eax, %ss:seen+20; movl %esp, %ss:seen+24;"
	"mov %cs, %eax; movl %eax, %ss:seen+28; mov %ss, %eax; movl %eax, %ss:seen+32; pop %eax; lret $8\n");

static void set_gate(u32 target, u16 sel, u8 access, u8 params)
{
	gdt_set(FREE(0), (target & 0xffff) | (u64)sel << 16 | (u64)params << 32 | (u64)access << 40 | (u64)(target >> 16) << 48);
}

static void gates(void)
{
	static struct {
		u32 off;
		u16 sel;
	} __attribute__((packed)) p = {0x99, FREE(0) | 3};
	static u32 ring1_stack[256];
	struct frame f;

	set_gate((u32)gate_entry, KCS, 0xec, 2);
	f = user_frame(u_lcall);
	f.di = (ulong)&p;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "call gate with two parameters");
	check_eq(seen[1] & 0xffff, UCS, "call gate: return cs");
	check_eq(seen[2], 0x333, "call gate: parameter 1 copied");
	check_eq(seen[3], 0x222, "call gate: parameter 2 copied");
	check_eq(seen[4], f.sp - 12, "call gate: old esp");
	check_eq(seen[5] & 0xffff, UDS, "call gate: old ss");
	check_eq(seen[6], (u32)ring0_stack + sizeof(ring0_stack) - 28, "call gate: ESP0");
	check_eq(seen[7] & 0xffff, KCS, "call gate: cs");
	check_eq(seen[8] & 0xffff, KDS, "call gate: ss is SS0");
	check_eq(trap.f.sp, f.sp - 12 + 8, "call gate: lret 8 takes the parameters off the caller's stack");
#define CALL(name, vec, err) (f = user_frame(u_lcall), f.di = (ulong)&p, run_frame(&f), check_trap(vec, err, name))
	set_gate((u32)gate_entry, KCS, 0x8c, 0);
	CALL("call gate with DPL 0", EXC_GP, FREE(0));
	set_gate((u32)gate_entry, KCS, 0x6c, 0);
	CALL("call gate not present", EXC_NP, FREE(0));
	set_gate((u32)gate_entry, KDS, 0xec, 0);
	CALL("call gate to data", EXC_GP, KDS);
	set_gate((u32)gate_entry, 0, 0xec, 0);
	CALL("call gate to null", EXC_GP, 0);
	/* stack switch with a bad SS0: #TS(ss) */
	set_gate((u32)gate_entry, KCS, 0xec, 0);
	idt_stub(EXC_TS, 0x8e, 0);
	/* ring 1: the gate's target decides */
	tss.ss1 = DS_RING1, tss.esp1 = (u32)(ring1_stack + 200);
	set_gate((u32)r1_code, CS_RING1, 0xec, 0);
	CALL("call gate to ring 1", VEC_EXIT, 0);
	check_eq(trap.f.ax & 0xffff, CS_RING1, "call gate to ring 1: cs");
	check_eq(trap.f.bx & 0xffff, DS_RING1, "call gate to ring 1: ss");
	check_eq(trap.f.sp, (u32)(ring1_stack + 200) - 16, "call gate to ring 1: ESP1");
	set_gate((u32)r1_hlt, CS_RING1, 0xec, 0);
	CALL("ring 1 may not halt", EXC_GP, 0);
	check_eq(trap.f.cs, CS_RING1, "ring 1 may not halt: cs");
	tss.ss1 = 0;
	set_gate((u32)r1_code, CS_RING1, 0xec, 0);
	CALL("stack switch to a null SS1", EXC_TS, 0);
	check_eq(trap.f.cs, UCS, "stack switch to a null SS1: faults in ring 3");
	tss.ss1 = KDS;
	CALL("stack switch to an SS1 of another DPL", EXC_TS, KDS);
	tss.ss1 = 0x200 | 1;
	CALL("stack switch to an SS1 beyond the GDT", EXC_TS, 0x200);
	gdt_set(FREE(1), gdt[DS_RING1 / 8] & ~BIT64(47));
	tss.ss1 = FREE(1) | 1;
	CALL("stack switch to an SS1 not present", EXC_SS, FREE(1));
	gdt_set(FREE(1), seg_desc(0, 1, 0xb3, 0));
	tss.esp1 = 0x100;
	CALL("stack switch to an SS1 too small", EXC_SS, -1);
	tss.ss1 = DS_RING1;
	/* returns inwards are refused */
	static u32 in[5];
	in[0] = 0x1234, in[1] = KCS, in[2] = 2;
	f = user_frame(u_iret_in);
	f.sp = (ulong)in;
	run_frame(&f);
	check_trap(EXC_GP, KCS, "ring 3: IRET to ring 0");
}

static void rings(void)
{
	struct frame f = user_frame(u_nop);

	run_frame(&f);
	check_trap(VEC_EXIT, 0, "ring 3");
	check_eq(trap.f.ss, UDS, "ring 3: ss");
	check_eq(trap.f.sp, f.sp, "ring 3: esp");
	check_eq(trap.handler_sp, (u32)ring0_stack + sizeof(ring0_stack) - sizeof(struct frame) + 16, "ring 3: frame on ESP0's stack");
	user_run(u_int3, 0, 0);
	check_trap(EXC_BP, 0, "ring 3: int3");
	user_run(u_into, 0, 0);
	check_trap(EXC_OF, 0, "ring 3: into");
	user_run(u_cli, 0, 0);
	check_trap(EXC_GP, 0, "ring 3: cli");
	/* trap gate keeps IF, interrupt gate clears it: seen by the flags in the handler; here: the saved ones */
	f = user_frame(u_nop);
	f.flags |= FL_IF;
	run_frame(&f);
	check_eq(trap.f.flags & FL_IF, FL_IF, "ring 3: IF in the frame");
	/* data segments of inner rings become null on the way out: DS = KDS is usable in ring 3 no more */
	f = user_frame(u_nop);
	f.ds = KDS;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "ring 3 with DS of ring 0");
	check_eq(trap.f.ds & 0xffff, 0, "ring 3 with DS of ring 0: null");
	/* a 16-bit stack segment: only SP is used */
	gdt_set(FREE(1), seg_desc((u32)user_stack & ~0xffffu, 0xffff, 0xf3, 0));
	f = user_frame(u_ss16);
	f.ss = FREE(1) | 3;
	f.sp = 0xabcd0000 | ((u32)(user_stack + 8192) & 0xffff);
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "16-bit stack");
	check_eq((trap.f.bx - trap.f.cx) & 0xffff, 4, "16-bit stack: push");
	check_eq(trap.f.bx & 0xffff, f.sp & 0xffff, "16-bit stack: sp");
	/* 16-bit code segment */
	static const u8 code16[] = {0x40, 0xb8, 0x34, 0x12, 0x66, 0xbb, 0x78, 0x56, 0x34, 0x12, 0xcd, 0x80}; /* inc ax; mov ax, 0x1234; mov ebx, 0x12345678 */
	gdt_set(FREE(2), seg_desc((u32)code16, 0xffff, 0xfb, 0));
	f = user_frame(u_nop);
	f.cs = FREE(2) | 3;
	f.ip = 0;
	f.ax = 0xffff0000;
	run_frame(&f);
	check_trap(VEC_EXIT, 0, "16-bit code");
	check_eq(trap.f.ax, 0xffff1234, "16-bit code: mov ax");
	check_eq(trap.f.bx, 0x12345678, "16-bit code: operand-size prefix");
	check_eq(trap.f.ip, 12, "16-bit code: ip");
	/* SYSENTER, SYSEXIT: legacy mode, both vendors */
	if (!(cpuid(1, 0).d & BIT(11)))
		return skip("SYSENTER", "no SEP");
	extern const char sys_entry[];
	asm volatile("jmp 9f; sys_entry: movl %%esp, seen; mov %%cs, %%eax; movl %%eax, seen+4; mov %%ss, %%eax; movl %%eax, seen+8; sysexit; 9:" ::: "memory");
	wrmsr(0x174, KCS);
	wrmsr(0x175, (u32)ring0_stack + 4096);
	wrmsr(0x176, (u32)sys_entry);
	user_run(u_sysenter, 0, 0);
	check_trap(VEC_EXIT, 0, "SYSENTER and SYSEXIT");
	check_eq(seen[0], (u32)ring0_stack + 4096, "SYSENTER: esp");
	check_eq(seen[1] & 0xffff, KCS, "SYSENTER: cs");
	check_eq(seen[2] & 0xffff, KDS, "SYSENTER: ss");
	check_eq(trap.f.ax & 0xffff, UCS, "SYSEXIT: cs");
	check_eq(trap.f.bx & 0xffff, UDS, "SYSEXIT: ss");
	wrmsr(0x174, 0);
	user_run(u_sysenter, 0, 0);
	check_trap(EXC_GP, 0, "SYSENTER with a null CS");
}

static void delivery(void)
{
	struct gate old = idt[0x90];

	/* 16-bit gates push 16-bit frames: type 6; the handler pops them */
	extern const char h16[];
	u32 r = 0;
	asm volatile("jmp 9f; h16: movw $0x1616, %%bx; .byte 0x66; iret; 9:" ::: "memory");
	static u8 low16[] = {0x66, 0xbb, 0x16, 0x16, 0x66, 0xcf}; /* mov bx, 0x1616; iretw */
	memcpy((void *)0x9000, low16, sizeof(low16));
	(void)h16;
	/* IRETW returns to a 16-bit offset: run from low memory */
	static const u8 caller[] = {0xcd, 0x90, 0xc3}; /* int $0x90; ret */
	memcpy((void *)0x9100, caller, sizeof(caller));
	idt_set(0x90, 0x9000, KCS, 0x86, 0);
	asm volatile("xor %%ebx, %%ebx; call *%1; mov %%ebx, %0" : "=r"(r) : "r"(0x9100) : "ebx", "memory");
	check_eq(r, 0x1616, "16-bit interrupt gate and IRETW");
	idt_stub(0x90, 0x8f, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(0x90, 0, "trap gate");
	idt_stub(0x90, 0x0e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_NP, 0x90 * 8 + 2, "gate not present");
	idt_set(0x90, 0x1000, UCS & ~3, 0x8e, 0);
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, UCS & ~3, "gate to an outer ring");
	idt_set(0x90, 0x1000, KCS, 0x8c, 0); /* a call gate in the IDT */
	TRAP(asm volatile("int $0x90"));
	check_trap(EXC_GP, 0x90 * 8 + 2, "call gate in the IDT");
	idt[0x90] = old;
	/* a bad SS0: #TS while delivering INT from ring 3; the frame of #TS then meets the same SS0: #DF, so it is checked by ring 1 above */
}

int guest_main(void)
{
	limits();
	loads();
	bcd();
	old_insns();
	gates();
	rings();
	delivery();
	return 0;
}
