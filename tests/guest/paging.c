/*
 * The permission matrix, accessed and dirty bits and reserved bits, in 4-level, PAE or 32-bit paging (-DMODE=).
 * The expected result of each access comes from model(), written from SDM vol. 3, 4.6 and 4.7.
 */
#include "guest.h"

#ifndef MODE
#define MODE PAGING_4L
#endif

#ifdef GUEST64
#define HIGH_VA 0x20000000000ul
#else
#define HIGH_VA TEST_VA
#endif

enum access { READ, WRITE, FETCH, NACCESS };
static const char *const access_name[] = {"read", "write", "fetch"};

/* What the walk of one access meets. */
struct walk {
	bool present, w, u, nx; /* combined over the levels */
	bool rsvd;
};
struct env {
	bool wp, smep, smap, nxe, ac;
};

#ifdef GUEST64
CODE(u_read, "movb (%rdi), %al");
CODE(u_write, "movb $0x90, 64(%rdi)");
CODE(u_fetch, "jmp *%rdi");
#else
CODE(u_read, "movb (%edi), %al");
CODE(u_write, "movb $0x90, 64(%edi)");
CODE(u_fetch, "jmp *%edi");
#endif

/* Error code of the fault, or -1. */
static long model(const struct walk *k, const struct env *e, enum access a, bool user)
{
	/* I/D is set for fetches when SMEP, or NXE with PAE or 4-level paging, is on */
	long code = (a == WRITE ? PF_W : 0) | (user ? PF_U : 0) | (a == FETCH && (e->smep || e->nxe) ? PF_I : 0);
	bool ok;

	if (!k->present)
		return code;
	if (k->rsvd)
		return code | PF_P | PF_RSVD;
	if (user) {
		ok = k->u && (a != WRITE || k->w) && (a != FETCH || !(e->nxe && k->nx));
	} else {
		ok = a != WRITE || k->w || !e->wp;
		if (a == FETCH)
			ok = !(e->nxe && k->nx) && !(e->smep && k->u);
		else if (k->u && e->smap && !e->ac)
			ok = false;
	}
	return ok ? -1 : code | PF_P;
}

/* Make the access at va (offset 0 holds the code that a fetch runs: ring 0 `ret`, ring 3 `int $0x80`); error code, or -1. */
static long attempt(ulong va, enum access a, bool user, bool ac)
{
	static const char *const fn[] = {u_read, u_write, u_fetch};
	int v;

	if (user) {
		struct frame f = user_frame(fn[a]);
		f.di = a == FETCH ? va + 16 : va;
		f.flags |= ac ? FL_AC : 0;
		v = run_frame(&f);
		v = v == VEC_EXIT ? NO_TRAP : v;
	} else {
		if (ac)
			write_flags(FL_AC);
		switch (a) {
		case READ:
			v = TRAP(asm volatile("movb (%0), %%al" ::"r"(va) : "eax"));
			break;
		case WRITE:
			v = TRAP(asm volatile("movb $0x90, 64(%0)" ::"r"(va) : "memory"));
			break;
		default:
			v = TRAP(((void (*)(void))va)());
		}
		write_flags(0);
	}
	if (v == NO_TRAP)
		return -1;
	if (v != EXC_PF)
		return 0x1000 + v;
	if ((trap.cr2 & ~0xffful) != (va & ~0xffful))
		return 0x2000;
	return (long)trap.f.error;
}

static bool has_xd(void) { return MODE != PAGING_32 && has_nx(); }

static void set_env(const struct env *e)
{
	ulong cr0 = read_cr0() & ~CR0_WP, cr4 = read_cr4() & ~(CR4_SMEP | CR4_SMAP);

	write_cr0(cr0 | (e->wp ? CR0_WP : 0));
	write_cr4(cr4 | (e->smep ? CR4_SMEP : 0) | (e->smap ? CR4_SMAP : 0));
}

static void matrix(ulong frame)
{
	/* upper level: everything allowed, not W, not U, NX, not present */
	static const u64 upper[] = {PTE_P | PTE_W | PTE_U, PTE_P | PTE_U, PTE_P | PTE_W, PTE_P | PTE_W | PTE_U | PTE_NX, 0};
	void *leaf = pte_at(read_cr3(), TEST_VA, 1), *mid = pte_at(read_cr3(), TEST_VA, 2);
	u64 table = pte_get(mid) & ~0xfffull;

	for (unsigned ei = 0; ei < 16; ei++) {
		struct env e = {.wp = ei & 1, .smep = ei & 2, .smap = ei & 4, .ac = ei & 8, .nxe = has_xd()};
		if ((e.smep && !has_smep()) || (e.smap && !has_smap()) || (e.ac && !e.smap))
			continue;
		set_env(&e);
		for (unsigned ui = 0; ui < ARRAY_SIZE(upper); ui++) {
			if ((upper[ui] & PTE_NX) && !e.nxe)
				continue;
			pte_set(mid, upper[ui] ? table | upper[ui] : 0);
			for (unsigned li = 0; li < 16; li++) {
				u64 le = (li & 1 ? PTE_P : 0) | (li & 2 ? PTE_W : 0) | (li & 4 ? PTE_U : 0) | (li & 8 ? PTE_NX : 0);
				if ((le & PTE_NX) && !e.nxe)
					continue;
				if (!(le & PTE_P) && li) /* one not-present case is enough */
					continue;
				struct walk k = {.present = (upper[ui] & le & PTE_P) != 0, .w = (upper[ui] & le & PTE_W) != 0,
					.u = (upper[ui] & le & PTE_U) != 0, .nx = ((upper[ui] | le) & PTE_NX) != 0};
				pte_set(leaf, frame | le);
				for (unsigned a = 0; a < NACCESS; a++) {
					for (unsigned user = 0; user < 2; user++) {
						invlpg(TEST_VA);
						group_eq((u64)attempt(TEST_VA, a, user, e.ac), (u64)model(&k, &e, a, user),
							 "%s ring %d upper %x leaf %x wp %d smep %d smap %d ac %d", access_name[a],
							 user ? 3 : 0, (u32)(upper[ui] | upper[ui] >> 32), (u32)(le | le >> 32),
							 e.wp, e.smep, e.smap, e.ac);
					}
				}
			}
		}
		pte_set(mid, table | PTE_P | PTE_W | PTE_U);
	}
	set_env(&(struct env){.wp = true});
}

#ifdef GUEST64
/* Implicit supervisor accesses and CLAC/STAC: SDM vol. 3, 4.6.1. */
static void smap_rules(ulong frame)
{
	if (!has_smap())
		return skip("smap rules", "no SMAP");
	map_page(TEST_VA, frame | PTE_P | PTE_W | PTE_U, 1);
	set_env(&(struct env){.wp = true, .smap = true});
	TRAP(asm volatile("stac; movb (%0), %%al; clac" ::"r"(TEST_VA) : "eax"));
	check_trap(NO_TRAP, -1, "stac opens user pages");
	TRAP(asm volatile("stac; clac; movb (%0), %%al" ::"r"(TEST_VA) : "eax"));
	check_trap(EXC_PF, PF_P, "clac closes user pages");
	/* AC is saved and cleared?: an exception keeps AC in the saved flags; IRET restores it */
	TRAP(asm volatile("stac; ud2"));
	check_eq(trap.f.flags & FL_AC, FL_AC, "AC in the saved flags");
	/* descriptor-table reads are implicit supervisor accesses: SMAP applies whatever AC says */
	((u64 *)frame)[1] = gdt[KDS / 8];
	gdt_set(SEL_LDT, seg_desc(TEST_VA, 0xfff, 0x82, 0));
	gdt_set(SEL_LDT + 8, 0);
	asm volatile("lldt %w0" ::"r"(SEL_LDT));
	TRAP(asm volatile("stac; mov %0, %%es" ::"r"(0x0c)));
	check_trap(EXC_PF, PF_P, "segment load through an LDT in a user page, SMAP, AC=1");
	set_env(&(struct env){.wp = true});
	TRAP(asm volatile("mov %0, %%es" ::"r"(0x0c)));
	check_trap(NO_TRAP, -1, "segment load through an LDT in a user page, no SMAP");
	asm volatile("mov %0, %%es; lldt %w1" ::"r"(UDS), "r"(0));
}
#endif

struct ad_case {
	const char *name;
	enum access a;
	bool user;
	u64 flags;
	u64 want; /* A and D of the leaf afterwards */
};

static void ad_bits(ulong va, int level, u64 base, const char *size)
{
	static const struct ad_case t[] = {
		{"read", READ, false, PTE_P | PTE_W, PTE_A},
		{"write", WRITE, false, PTE_P | PTE_W, PTE_A | PTE_D},
		{"fetch", FETCH, false, PTE_P | PTE_W, PTE_A},
		{"ring 3 read", READ, true, PTE_P | PTE_W | PTE_U, PTE_A},
		{"ring 3 write", WRITE, true, PTE_P | PTE_W | PTE_U, PTE_A | PTE_D},
		{"ring 3 fetch", FETCH, true, PTE_P | PTE_W | PTE_U, PTE_A},
		{"write refused (WP): D stays 0", WRITE, false, PTE_P, 0x1000},
		{"ring 3 write refused: D stays 0", WRITE, true, PTE_P | PTE_U, 0x1000},
		{"not present", WRITE, false, PTE_W, 0},
		{"not present, ring 3", READ, true, PTE_U, 0},
	};
	u64 ps = level > 1 ? PTE_PS : 0;
	void *e = pte_at(read_cr3(), va, level);

	for (unsigned i = 0; i < ARRAY_SIZE(t); i++) {
		pte_set(e, base | t[i].flags | ps);
		invlpg(va);
		attempt(va, t[i].a, t[i].user, false);
		u64 got = pte_get(e) & (PTE_A | PTE_D);
		if (t[i].want == 0x1000) /* whether A is set by a refused access is the implementation's choice */
			group_eq(got & PTE_D, 0, "%s %s", size, t[i].name);
		else
			group_eq(got, t[i].want, "%s %s", size, t[i].name);
	}
	/* read first, then write: the TLB holds a clean entry, and D must still be set */
	pte_set(e, base | PTE_P | PTE_W | ps);
	invlpg(va);
	*(volatile u8 *)(va + 64);
	group_eq(pte_get(e) & (PTE_A | PTE_D), PTE_A, "%s read, before a write", size);
	*(volatile u8 *)(va + 64) = 0x90;
	group_eq(pte_get(e) & (PTE_A | PTE_D), PTE_A | PTE_D, "%s write after a read", size);
	/* a read-modify-write that changes nothing is a write; a failed CMPXCHG writes too (vol. 2) */
	pte_set(e, base | PTE_P | PTE_W | ps);
	invlpg(va);
	asm volatile("orl $0, 64(%0)" ::"r"(va) : "memory", "cc");
	group_eq(pte_get(e) & (PTE_A | PTE_D), PTE_A | PTE_D, "%s or 0", size);
	pte_set(e, base | PTE_P | PTE_W | ps);
	invlpg(va);
	asm volatile("mov $0x12345678, %%eax; lock cmpxchgl %%eax, 64(%0)" ::"r"(va) : "memory", "cc", "eax");
	group_eq(pte_get(e) & (PTE_A | PTE_D), PTE_A | PTE_D, "%s failed cmpxchg", size);
	/* with the TLB entry dirty, a cleared D stays clear only until INVLPG */
	pte_set(e, base | PTE_P | PTE_W | ps);
	invlpg(va);
	*(volatile u8 *)(va + 64) = 0x90;
	group_eq(pte_get(e) & (PTE_A | PTE_D), PTE_A | PTE_D, "%s D cleared, INVLPG, write", size);
	if (level > 1)
		pte_set(e, 0);
	invlpg(va);
}

static void ad_upper(ulong frame)
{
	void *leaf = pte_at(read_cr3(), TEST_VA, 1), *mid = pte_at(read_cr3(), TEST_VA, 2);
	u64 m = pte_get(mid) & ~(u64)(PTE_A | PTE_D);

	pte_set(leaf, frame | PTE_P | PTE_W);
	pte_set(mid, m);
	flush_tlb();
	*(volatile u8 *)TEST_VA;
	check_eq(pte_get(mid) & PTE_A, PTE_A, "A of a directory entry");
	check_eq(pte_get(mid) & PTE_D, 0, "a directory entry has no D");
	if (MODE == PAGING_4L) {
		void *l3 = pte_at(read_cr3(), TEST_VA, 3), *l4 = pte_at(read_cr3(), TEST_VA, 4);
		pte_set(l3, pte_get(l3) & ~(u64)PTE_A);
		pte_set(l4, pte_get(l4) & ~(u64)PTE_A);
		flush_tlb();
		*(volatile u8 *)TEST_VA;
		check_eq(pte_get(l3) & pte_get(l4) & PTE_A, PTE_A, "A of PDPTE and PML4E");
	}
}

static void reserved_one(ulong frame, int level, unsigned bit, u64 flags, bool rsvd)
{
	ulong va = level == 4 ? HIGH_VA : TEST_VA; /* the PML4E of TEST_VA maps this code too */
	void *e = pte_at(read_cr3(), va, level);
	u64 old = pte_get(e);
	long want;

	pte_set(e, (level == 1 ? frame | PTE_P | PTE_W : flags ? flags : old) | BIT64(bit));
	flush_tlb();
	struct walk k = {.present = true, .w = true, .rsvd = rsvd};
	want = model(&k, &(struct env){.nxe = has_xd()}, READ, false);
	group_eq((u64)attempt(va, READ, false, false), (u64)want, "bit %u of level %d", bit, level);
	want = model(&k, &(struct env){.nxe = has_xd()}, WRITE, true);
	if (rsvd)
		group_eq((u64)attempt(va, WRITE, true, false), (u64)want, "bit %u of level %d, ring 3 write", bit, level);
	pte_set(e, old);
	flush_tlb();
}

/* Reserved bits: SDM vol. 3, tables 4-4, 4-9..4-11, 4-15..4-20. */
static void reserved(ulong frame)
{
	unsigned phys = cpu_phys_bits();

	group_begin("reserved bits");
	map_page(TEST_VA, frame | PTE_P | PTE_W, 1);
	if (MODE == PAGING_4L)
		map_page(HIGH_VA, frame | PTE_P | PTE_W, 1);
	if (MODE == PAGING_32) {
		/* 4 MiB page: bit 21 is reserved; 20:13 hold physical bits 39:32 */
		reserved_one(frame, 2, 21, 0x400000 | PTE_P | PTE_W | PTE_PS, true);
	} else {
		for (unsigned b = phys; b < 52; b++)
			for (int l = 1; l <= (MODE == PAGING_PAE ? 2 : 4); l++)
				reserved_one(frame, l, b, 0, true);
		for (unsigned b = 52; b < (MODE == PAGING_PAE ? 63 : 59); b++) /* PAE: reserved; 4-level: ignored */
			reserved_one(frame, 1, b, 0, MODE == PAGING_PAE);
		for (unsigned b = 13; b < 21; b++) /* 2 MiB page, address bits below 21 */
			reserved_one(frame, 2, b, 0x400000 | PTE_P | PTE_W | PTE_PS, true);
	}
	if (MODE == PAGING_4L) {
		reserved_one(frame, 4, 7, 0, true); /* PS of a PML4E */
		if (!has_1g())
			reserved_one(frame, 3, 7, 0, true);
		else
			for (unsigned b = 13; b < 30; b++)
				reserved_one(frame, 3, b, PTE_P | PTE_W | PTE_PS, true);
	}
	if (MODE == PAGING_PAE) { /* loading a PDPTE with a reserved bit: #GP by MOV CR3 */
		u64 *pdpt = (u64 *)(read_cr3() & ~31ul), old = pdpt[1];
		for (unsigned b = 1; b < 64; b++) {
			bool rsvd = (b >= 1 && b <= 2) || (b >= 5 && b <= 8) || b >= phys;
			if (!rsvd)
				continue;
			pdpt[1] = old | BIT64(b);
			TRAP(flush_tlb());
			/* AMD under nested paging reads PDPTEs at the walk: #PF with RSVD there */
			if (cpu_is_amd() && trap.vector == NO_TRAP)
				group_eq((u64)attempt(TEST_VA, READ, false, false), PF_P | PF_RSVD, "PDPTE bit %u at the walk", b);
			else
				group_eq((u64)trap.vector, EXC_GP, "PDPTE bit %u", b);
		}
		pdpt[1] = old;
		flush_tlb();
	}
	group_end();
	if (MODE != PAGING_32 && has_nx()) {
		void *e = pte_at(read_cr3(), TEST_VA, 1);
		wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
		pte_set(e, frame | PTE_P | PTE_W | PTE_NX);
		flush_tlb();
		check_eq((u64)attempt(TEST_VA, READ, false, false), PF_P | PF_RSVD, "NX without EFER.NXE is reserved: read");
		check_eq((u64)attempt(TEST_VA, FETCH, true, false), PF_P | PF_RSVD | PF_U,
			 "NX without EFER.NXE is reserved: fetch has no I/D");
		wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
		flush_tlb();
	}
}

static void put_code(void *page)
{
	memset(page, 0xc3, PAGE); /* ret */
	((u8 *)page)[16] = 0xcd;  /* int $0x80 */
	((u8 *)page)[17] = 0x80;
}

int guest_main(void)
{
	ulong frame;

#ifndef GUEST64
	paging_init(MODE);
#endif
	frame = (ulong)page_alloc();
	put_code((void *)frame);
	group_begin("permission matrix");
	matrix(frame);
	group_end();
	if (MODE != PAGING_32 && has_nx()) { /* no NXE: no I/D in the error code either */
		struct walk k = {0};
		map_page(TEST_VA, 0, 1);
		wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~EFER_NXE);
		check_eq((u64)attempt(TEST_VA, FETCH, false, false), (u64)model(&k, &(struct env){0}, FETCH, false),
			 "fetch fault without NXE");
		wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
	}
#ifdef GUEST64
	smap_rules(frame);
#endif
	group_begin("accessed and dirty bits");
	ad_bits(TEST_VA, 1, frame, "4K");
	if (MODE == PAGING_32) {
		put_code((void *)0x4000000);
		ad_bits(TEST_VA + 0x10000000, 2, 0x4000000, "4M");
	} else {
		put_code((void *)0x4000000);
		ad_bits(TEST_VA + 0x10000000, 2, 0x4000000, "2M");
	}
#ifdef GUEST64
	if (has_1g()) {
		put_code((void *)0);
		ad_bits(0x10000000000ul, 3, 0, "1G");
	}
#endif
	group_end();
	ad_upper(frame);
	reserved(frame);
	return 0;
}
