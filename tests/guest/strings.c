/*
 * String instructions: exact rcx/rsi/rdi when a repetition faults, DF, overlap, address-size wrap, segment overrides.
 * SDM vol. 2, REP: the registers show the iterations done; the faulting one has changed nothing.
 */
#include "guest.h"

struct regs {
	ulong ax, cx, si, di;
	ulong flags;
};

enum { MOVS, STOS, LODS, CMPS, SCAS };
static const char *const op_name[] = {"movs", "stos", "lods", "cmps", "scas"};

#define STR(name, text) \
	static void name(struct regs *r) \
	{ \
		asm volatile("push %4; popf; " MARK text "; pushf; pop %4; cld" \
			     : "+a"(r->ax), "+c"(r->cx), "+S"(r->si), "+D"(r->di), "+r"(r->flags)::"memory", "cc"); \
	}
STR(movsb, "rep movsb")
STR(movsw, "rep movsw")
STR(movsl, "rep movsl")
STR(movsq, "rep movsq")
STR(stosb, "rep stosb")
STR(stosw, "rep stosw")
STR(stosl, "rep stosl")
STR(stosq, "rep stosq")
STR(lodsb, "rep lodsb")
STR(lodsw, "rep lodsw")
STR(lodsl, "rep lodsl")
STR(lodsq, "rep lodsq")
STR(cmpsb, "repe cmpsb")
STR(cmpsw, "repe cmpsw")
STR(cmpsl, "repe cmpsl")
STR(cmpsq, "repe cmpsq")
STR(scasb, "repne scasb")
STR(scasw, "repne scasw")
STR(scasl, "repne scasl")
STR(scasq, "repne scasq")
STR(a32_stosb, "addr32 rep stosb")
STR(a32_movsb, "addr32 rep movsb")
STR(a32_lodsb, "addr32 lodsb")
STR(one_movsq, "movsq")
STR(fs_movsb, "rep movsb %%fs:(%%rsi), %%es:(%%rdi)")
STR(outs, "mov $0x80, %%edx; " MARK "rep outsb")
STR(ins, "mov $0x80, %%edx; " MARK "rep insb")

static void (*const ops[5][4])(struct regs *) = {
	{movsb, movsw, movsl, movsq}, {stosb, stosw, stosl, stosq}, {lodsb, lodsw, lodsl, lodsq},
	{cmpsb, cmpsw, cmpsl, cmpsq}, {scasb, scasw, scasl, scasq},
};

CODE(u_movsb, "rep movsb");
CODE(u_stosq, "rep stosq");
CODE32(c_stosb16, "addr16 rep stosb");

static u8 *buf, *shadow; /* two frames, mapped at TEST_VA with a hole on both sides */

static void fill(void)
{
	for (u32 i = 0; i < 8192; i++)
		buf[i] = shadow[i] = (u8)(i * 7 + (i >> 8));
}

/* op at a distance of n whole elements and `odd` bytes from the end of the mapped pages; the fault is exact. */
static void fault_case(int op, int size, bool down, ulong n, ulong odd)
{
	ulong bytes = 1ul << size;
	bool uses_si = op == MOVS || op == LODS || op == CMPS, uses_di = op != LODS;
	ulong end = down ? TEST_VA - bytes : TEST_VA + 8192; /* first element address that is out */
	ulong far = down ? end + n * bytes + odd : end - n * bytes - odd;
	struct regs r = {.ax = 0x1122334455667788, .cx = 100, .flags = down ? FL_DF | FL_FIXED : FL_FIXED};
	/* the other operand: elsewhere, mapped */
	static u8 other[1024] ALIGNED(16);
	ulong mid = (ulong)other + 512, step = down ? -bytes : bytes;

	r.si = uses_si && op != MOVS ? far : mid;
	r.di = op == MOVS || !uses_si ? far : mid;
	fill();
	if (op == CMPS)
		for (ulong i = 0; i < n; i++)
			memcpy((u8 *)(mid + i * step), (u8 *)(far + i * step), bytes);
	if (op == SCAS)
		r.ax = 0xfedcba9876543210; /* not in the pattern */
	struct regs before = r;
	static struct frame last;
	TRAP(ops[op][size](&r));
	last = trap.f;
	group_eq((u64)trap.vector, EXC_PF, "%s%d df %d n %u odd %u: vector", op_name[op], 8 << size, down, (u32)n, (u32)odd);
	if (trap.vector != EXC_PF)
		return;
	group_eq(last.ip, trap_mark, "%s%d df %d n %u odd %u: rip", op_name[op], 8 << size, down, (u32)n, (u32)odd);
	group_eq(last.cx, 100 - n, "%s%d df %d n %u odd %u: rcx", op_name[op], 8 << size, down, (u32)n, (u32)odd);
	group_eq(last.si, uses_si ? before.si + n * step : before.si, "%s%d df %d n %u odd %u: rsi", op_name[op], 8 << size, down,
		 (u32)n, (u32)odd);
	group_eq(last.di, uses_di ? before.di + n * step : before.di, "%s%d df %d n %u odd %u: rdi", op_name[op], 8 << size, down,
		 (u32)n, (u32)odd);
	ulong cr2 = down ? (odd ? far - n * bytes : end) : far + n * bytes;
	if (!down)
		cr2 = odd ? TEST_VA + 8192 : end;
	else if (odd)
		cr2 = end + odd;
	group_eq(trap.cr2, cr2, "%s%d df %d n %u odd %u: cr2", op_name[op], 8 << size, down, (u32)n, (u32)odd);
	group_eq(trap.f.error, op == MOVS || op == STOS ? PF_W : 0, "%s%d df %d: error", op_name[op], 8 << size, down);
	/* memory: exactly n elements were written */
	for (ulong i = 0; i < n && (op == MOVS || op == STOS); i++) {
		u8 *d = shadow + (far + i * step - TEST_VA);
		if (op == STOS)
			memcpy(d, &before.ax, bytes);
		else
			memcpy(d, (u8 *)(mid + i * step), bytes);
	}
	group_eq((u64)memcmp(buf, shadow, 8192), 0, "%s%d df %d n %u odd %u: memory", op_name[op], 8 << size, down, (u32)n, (u32)odd);
}

static void faults(void)
{
	for (int op = MOVS; op <= SCAS; op++) {
		group_begin(op_name[op]);
		for (int size = 0; size < 4; size++)
			for (int down = 0; down < 2; down++)
				for (ulong n = 0; n < 40; n += 13)
					for (ulong odd = 0; odd < (1ul << size); odd += size > 1 ? 3 : 1)
						fault_case(op, size, down, n, odd);
		group_end();
	}
}

/* The source faults, then the destination would: which one comes first is the source's read. */
static void both_fault(void)
{
	struct regs r = {.cx = 8, .si = TEST_VA + 8192, .di = TEST_VA + 0x10000, .flags = FL_FIXED};

	TRAP(movsl(&r));
	check_trap(EXC_PF, 0, "movs: the read faults first");
	check_eq(trap.cr2, TEST_VA + 8192, "movs: the read faults first: cr2");
	r = (struct regs){.cx = 8, .si = (ulong)ist_stack, .di = TEST_VA + 8192, .flags = FL_FIXED};
	TRAP(one_movsq(&r));
	check_trap(EXC_PF, PF_W, "movs without rep");
	check_eq(trap.f.cx, 8, "movs without rep: rcx");
	check_eq(trap.f.di, TEST_VA + 8192, "movs without rep: rdi");
	r = (struct regs){.cx = 0, .si = TEST_VA + 8192, .di = TEST_VA + 8192, .flags = FL_FIXED | FL_ZF | FL_CF};
	TRAP(cmpsb(&r));
	check_trap(NO_TRAP, -1, "rcx = 0: no access");
	check_eq(r.flags & (FL_ZF | FL_CF | FL_OF), FL_ZF | FL_CF, "rcx = 0: flags kept");
	TRAP(movsq(&r));
	check_trap(NO_TRAP, -1, "rep movsq with rcx = 0");
	r = (struct regs){.cx = 20, .si = TEST_VA + 8192 - 5, .flags = FL_FIXED};
	TRAP(outs(&r));
	check_trap(EXC_PF, 0, "rep outsb into a hole");
	check_eq(trap.f.cx, 15, "rep outsb into a hole: rcx");
	check_eq(trap.f.si, TEST_VA + 8192, "rep outsb into a hole: rsi");
	check_mark("rep outsb into a hole");
	r = (struct regs){.cx = 20, .di = TEST_VA + 8192 - 5, .flags = FL_FIXED};
	TRAP(ins(&r));
	check_trap(EXC_PF, PF_W, "rep insb into a hole");
	check_eq(trap.f.cx, 15, "rep insb into a hole: rcx");
	check_eq(trap.f.di, TEST_VA + 8192, "rep insb into a hole: rdi");
}

static void semantics(void)
{
	struct regs r;

	fill();
	/* overlap: the result of element-by-element order */
	for (int size = 0; size < 4; size++) {
		ulong bytes = 1ul << size;
		for (ulong dist = 1; dist < 12; dist++) {
			fill();
			r = (struct regs){.cx = 200, .si = (ulong)buf + 64, .di = (ulong)buf + 64 + dist, .flags = FL_FIXED};
			ops[MOVS][size](&r);
			for (ulong i = 0; i < 200; i++) {
				u64 t = 0;
				memcpy(&t, shadow + 64 + i * bytes, bytes);
				memcpy(shadow + 64 + dist + i * bytes, &t, bytes);
			}
			check_eq((u64)memcmp(buf, shadow, 8192), 0, "movs%d overlap by %u", 8 << size, (u32)dist);
			if (dist == 3)
				dist = 7;
		}
	}
	fill();
	r = (struct regs){.cx = 100, .si = (ulong)buf + 1000, .di = (ulong)buf + 1004, .flags = FL_FIXED | FL_DF};
	movsl(&r);
	for (int i = 0; i < 100; i++)
		memcpy(shadow + 1004 - 4 * i, shadow + 1000 - 4 * i, 4);
	check_eq((u64)memcmp(buf, shadow, 8192), 0, "movsl backward, overlapping");
	check_eq(r.si, (ulong)buf + 600, "movsl backward: rsi");
	check_eq(r.flags & FL_DF, FL_DF, "DF stays");
	/* cmps and scas: where they stop, and the flags of the last comparison */
	memcpy(shadow, buf, 8192);
	shadow[777] = (u8)(buf[777] + 1);
	r = (struct regs){.cx = 5000, .si = (ulong)buf, .di = (ulong)shadow, .flags = FL_FIXED};
	cmpsb(&r);
	check_eq(r.cx, 5000 - 778, "repe cmpsb stops after the difference");
	check_eq(r.si, (ulong)buf + 778, "repe cmpsb: rsi");
	check_eq(r.flags & (FL_ZF | FL_CF), buf[777] < shadow[777] ? FL_CF : 0, "repe cmpsb: flags");
	memset(buf, 1, 8192);
	buf[5000] = 0x42;
	r = (struct regs){.ax = 0x42, .cx = 8000, .di = (ulong)buf, .flags = FL_FIXED};
	scasb(&r);
	check_eq(r.di, (ulong)buf + 5001, "repne scasb: rdi");
	check_eq(r.flags & FL_ZF, FL_ZF, "repne scasb: ZF");
	r = (struct regs){.ax = 0x42, .cx = 500, .di = (ulong)buf, .flags = FL_FIXED | FL_ZF};
	scasb(&r);
	check_eq(r.cx, 0, "repne scasb to the end: rcx");
	check_eq(r.flags & FL_ZF, 0, "repne scasb to the end: ZF");
	/* FS base applies to the source only */
	fill();
	wrmsr(MSR_FS_BASE, (ulong)buf);
	r = (struct regs){.cx = 16, .si = 100, .di = (ulong)buf + 4000, .flags = FL_FIXED};
	fs_movsb(&r);
	check_eq((u64)memcmp(buf + 4000, buf + 100, 16), 0, "movs with an FS override");
	wrmsr(MSR_FS_BASE, 0);
}

static void big(void)
{
	u8 *b = page_alloc_aligned(0x100000);
	struct regs r = {.ax = 0xa5, .cx = 0xff000, .di = (ulong)b + 0x123, .flags = FL_FIXED};
	ulong bad = 0;

	stosb(&r);
	check_eq(r.di, (ulong)b + 0x123 + 0xff000, "rep stosb of 1 MiB: rdi");
	check_eq(r.cx, 0, "rep stosb of 1 MiB: rcx");
	for (ulong i = 0; i < 0x100000; i += 251)
		bad += b[i] != (i >= 0x123 && i < 0x123 + 0xff000 ? 0xa5 : 0);
	check_eq(bad, 0, "rep stosb of 1 MiB: memory");
	r = (struct regs){.ax = 0x1111111111111111, .cx = 0x1e000, .di = (ulong)b + 0xffff0, .flags = FL_FIXED | FL_DF};
	stosq(&r);
	check_eq(*(u64 *)(b + 0xffff0), 0x1111111111111111, "rep stosq backward: first");
	check_eq(*(u64 *)(b + 0xffff0 - 0x1dfff * 8ul), 0x1111111111111111, "rep stosq backward: last");
	check_eq(*(u64 *)(b + 0xffff0 - 0x1e000 * 8ul), 0xa5a5a5a5a5a5a5a5, "rep stosq backward: below");
}

/* 32-bit address size: ESI/EDI/ECX wrap and are zero-extended (vol. 2, REP; vol. 1, 3.7.5). */
static void wrap32(void)
{
	u8 *hi = page_alloc();
	struct regs r;

	pte_set(pte_at(read_cr3(), 0xfffff000, 2), 0);
	map_page(0xfffff000, (ulong)hi | PTE_P | PTE_W, 1);
	memset((void *)LOW_BASE, 0, 64);
	u8 save[16];
	volatile u8 *zero = (u8 *)0;
	asm volatile("" : "+r"(zero)); /* address 0 is RAM here */
	for (int i = 0; i < 16; i++)
		save[i] = zero[i];
	r = (struct regs){.ax = 0x5a, .cx = 0xabcd00000000000aul, .di = 0x12345678fffffffbul, .flags = FL_FIXED};
	a32_stosb(&r);
	check_eq(r.di, 5, "addr32 stosb wraps edi");
	check_eq(r.cx, 0, "addr32 stosb counts in ecx");
	check_eq(hi[4095] == 0x5a && hi[4091] == 0x5a && hi[4090] == 0 && zero[0] == 0x5a && zero[4] == 0x5a, 1,
		 "addr32 stosb: memory on both sides");
	for (int i = 0; i < 16; i++)
		zero[i] = save[i];
	r = (struct regs){.cx = 0xabcd000000000000ul, .si = TEST_VA + 0x100000, .di = TEST_VA + 0x100000, .flags = FL_FIXED};
	TRAP(a32_movsb(&r));
	check_trap(NO_TRAP, -1, "addr32 rep with ecx = 0");
	r = (struct regs){.si = 0xfff0000000000000ul | (ulong)hi, .flags = FL_FIXED};
	TRAP(a32_lodsb(&r));
	check_trap(NO_TRAP, -1, "addr32 lodsb ignores the upper half");
	check_eq(r.si, (ulong)hi + 1, "addr32 lodsb zero-extends rsi");
	/* 16-bit address size in a compatibility-mode segment: di wraps, the upper half of edi stays */
	u8 *b = page_alloc_aligned(0x20000);
	gdt_set(SEL_FREE, seg_desc((u32)user_ptr(b), 0xffff, 0xf3, 4));
	struct frame f = user_frame(c_stosb16);
	f.cs = UCS32;
	f.ax = 0x77;
	f.cx = 0x10005; /* cx = 5 */
	f.di = 0x1fffe;
	asm volatile("mov %0, %%es" ::"r"(SEL_FREE | 3));
	run_frame(&f);
	asm volatile("mov %0, %%es" ::"r"(UDS));
	check_trap(VEC_EXIT, 0, "addr16 rep stosb");
	check_eq(trap.f.di, 0x10003, "addr16 rep stosb: edi");
	check_eq(trap.f.cx, 0x10000, "addr16 rep stosb: ecx");
	check_eq(b[0xfffe] == 0x77 && b[0xffff] == 0x77 && b[0] == 0x77 && b[2] == 0x77 && b[3] == 0 && b[0x10000] == 0, 1,
		 "addr16 rep stosb: memory");
}

static void ring3(void)
{
	struct frame f = user_frame(u_movsb);

	map_page(TEST_VA, (ulong)buf | PTE_P | PTE_W | PTE_U, 1); /* the second page stays a supervisor's */
	f.si = user_ptr(shadow);
	f.di = TEST_VA + 4000;
	f.cx = 500;
	run_frame(&f);
	check_trap(EXC_PF, PF_P | PF_W | PF_U, "ring 3: rep movsb into a supervisor page");
	check_eq(trap.f.cx, 404, "ring 3: rep movsb into a supervisor page: rcx");
	check_eq(trap.f.di, TEST_VA + 4096, "ring 3: rep movsb into a supervisor page: rdi");
	check_eq(trap.f.ip, user_ptr(u_movsb), "ring 3: rep movsb into a supervisor page: rip");
	f = user_frame(u_stosq);
	f.di = TEST_VA + 4096 - 12;
	f.cx = 5;
	f.ax = 0x2222222222222222;
	memset(buf + 4080, 0, 32);
	run_frame(&f);
	check_trap(EXC_PF, PF_P | PF_W | PF_U, "ring 3: stosq across into a supervisor page");
	check_eq(trap.f.cx, 4, "ring 3: stosq: rcx");
	check_eq(*(u32 *)(buf + 4092), 0, "ring 3: stosq: nothing partial");
	map_page(TEST_VA, (ulong)buf | PTE_P | PTE_W, 1);
}

int guest_main(void)
{
	buf = page_alloc_aligned(8192);
	shadow = page_alloc_aligned(8192);
	map_page(TEST_VA, (ulong)buf | PTE_P | PTE_W, 1);
	map_page(TEST_VA + 4096, (ulong)(buf + 4096) | PTE_P | PTE_W, 1);
	pte_set(pte_at(read_cr3(), TEST_VA - 4096, 2), 0);
	for (ulong i = 0; i < 511; i++) /* the 2 MiB below TEST_VA: all but the last 4 KiB */
		map_page(TEST_VA - 0x200000 + i * 4096, (TEST_VA - 0x200000 + i * 4096) | PTE_P | PTE_W, 1);
	faults();
	both_fault();
	semantics();
	big();
	wrap32();
	ring3();
	return 0;
}
