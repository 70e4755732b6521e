/*
 * What the TLB must not keep: SDM vol. 3, 4.10. Where the manual lets an old translation live on, both results pass.
 */
#include "guest.h"

#define VA TEST_VA
#define RW (PTE_P | PTE_W)

static ulong frames[8];

static volatile u32 *at(ulong va) { return (volatile u32 *)va; }
static void *leaf(ulong va) { return pte_at(read_cr3(), va, 1); }
static void one_of(u32 got, u32 a, u32 b, const char *name) { check_eq(got, got == a || got == b ? got : b, "%s", name); }

static void basic(void)
{
	map_page(VA, frames[0] | RW, 1);
	check_eq(*at(VA), 0, "first mapping");
	map_page(VA, frames[1] | RW, 1);
	check_eq(*at(VA), 1, "INVLPG shows the new mapping");
	pte_set(leaf(VA), frames[2] | RW);
	one_of(*at(VA), 1, 2, "without INVLPG: old or new");
	flush_tlb();
	check_eq(*at(VA), 2, "CR3 reload shows the new mapping");
	map_page(VA, 0, 1);
	TRAP(*at(VA));
	check_trap(EXC_PF, 0, "unmapped, INVLPG");
	pte_set(leaf(VA), frames[3] | RW);
	TRAP(check_eq(*at(VA), 3, "not present to present needs no INVLPG"));
	check_trap(NO_TRAP, -1, "not present to present: no fault");
	/* fewer rights need INVLPG; after it they hold at once */
	map_page(VA, frames[3] | PTE_P, 1);
	TRAP(*at(VA) = 3);
	check_trap(EXC_PF, PF_P | PF_W, "made read-only");
	/* more rights: one spurious fault is allowed, the retry must pass (4.10.4.3) */
	pte_set(leaf(VA), frames[3] | RW);
	if (TRAP(*at(VA) = 3) != NO_TRAP)
		TRAP(*at(VA) = 3);
	check_trap(NO_TRAP, -1, "made writable: the retry passes");
	/* INVLPG of another byte in the page, and of another page */
	pte_set(leaf(VA), frames[4] | RW);
	invlpg(VA + 4095);
	check_eq(*at(VA), 4, "INVLPG of the page's last byte");
	map_page(VA + 4096, frames[5] | RW, 1);
	check_eq(*at(VA + 4096), 5, "the neighbour");
	check_eq(*at(VA), 4, "the neighbour's INVLPG changes nothing");
}

static void control_bits(void)
{
	map_page(VA, frames[0] | PTE_P, 1);
	*at(VA);
	write_cr0(read_cr0() & ~CR0_WP);
	TRAP(*at(VA) = 0);
	check_trap(NO_TRAP, -1, "WP=0: write to a read-only page");
	write_cr0(read_cr0() | CR0_WP);
	TRAP(*at(VA) = 0);
	check_trap(EXC_PF, PF_P | PF_W, "WP=1 at once");
	map_page(VA, frames[0] | RW | PTE_U, 1);
	if (has_smap()) {
		*at(VA) = 0;
		write_cr4(read_cr4() | CR4_SMAP);
		TRAP(*at(VA));
		check_trap(EXC_PF, PF_P, "SMAP=1 at once");
		TRAP(asm volatile("stac; movl (%0), %%eax; clac" ::"r"(VA) : "eax"));
		check_trap(NO_TRAP, -1, "AC=1 at once");
		TRAP(*at(VA));
		check_trap(EXC_PF, PF_P, "AC=0 at once");
		write_cr4(read_cr4() & ~CR4_SMAP);
		TRAP(*at(VA));
		check_trap(NO_TRAP, -1, "SMAP=0 at once");
	}
	if (has_smep()) {
		*(volatile u8 *)(frames[0] + 64) = 0xc3;
		TRAP(((void (*)(void))(VA + 64))());
		check_trap(NO_TRAP, -1, "fetch from a user page");
		write_cr4(read_cr4() | CR4_SMEP);
		TRAP(((void (*)(void))(VA + 64))());
		check_trap(EXC_PF, PF_P | PF_I, "SMEP=1 at once");
		write_cr4(read_cr4() & ~CR4_SMEP);
	}
}

static void global(void)
{
	write_cr4(read_cr4() | CR4_PGE);
	map_page(VA, frames[0] | RW | PTE_G, 1);
	check_eq(*at(VA), 0, "global page");
	pte_set(leaf(VA), frames[1] | RW | PTE_G);
	flush_tlb();
	one_of(*at(VA), 0, 1, "global page after a CR3 reload: old or new");
	invlpg(VA);
	check_eq(*at(VA), 1, "INVLPG drops a global page");
	pte_set(leaf(VA), frames[2] | RW | PTE_G);
	write_cr4(read_cr4() & ~CR4_PGE);
	check_eq(*at(VA), 2, "CR4.PGE=0 drops global pages");
	write_cr4(read_cr4() | CR4_PGE);
	*at(VA);
	pte_set(leaf(VA), frames[3] | RW | PTE_G);
	write_cr4(read_cr4() & ~CR4_PGE);
	write_cr4(read_cr4() | CR4_PGE);
	check_eq(*at(VA), 3, "toggling CR4.PGE drops global pages");
	/* G=1 is not global when PGE=0 */
	write_cr4(read_cr4() & ~CR4_PGE);
	*at(VA);
	pte_set(leaf(VA), frames[4] | RW | PTE_G);
	flush_tlb();
	check_eq(*at(VA), 4, "G without PGE: CR3 reload drops it");
}

static void large(void)
{
	ulong big = 0x4000000, va = VA + 0x10000000; /* 2 MiB frames at 64 and 66 MiB */
	u32 *pt;

	for (u32 i = 0; i < 1024; i++)
		*at(big + i * 4096) = 0x1000 + i;
	map_page(va, big | RW | PTE_PS, 2);
	check_eq(*at(va + 0x5000), 0x1005, "2M page");
	check_eq(*at(va + 0x1ff000), 0x11ff, "2M page, last 4K");
	pte_set(pte_at(read_cr3(), va, 2), (big + 0x200000) | RW | PTE_PS);
	invlpg(va + 0x123456);
	check_eq(*at(va + 0x5000), 0x1205, "INVLPG inside a 2M page drops all of it");
	check_eq(*at(va + 0x1ff000), 0x13ff, "INVLPG inside a 2M page drops all of it, last 4K");
	/* split into 4K pages */
	pt = page_alloc();
	for (u32 i = 0; i < 512; i++)
		((u64 *)pt)[i] = (big + (511 - i) * 4096) | RW;
	pte_set(pte_at(read_cr3(), va, 2), (ulong)pt | RW);
	flush_tlb();
	check_eq(*at(va + 0x5000), 0x1000 + 511 - 5, "2M page split");
	check_eq(*at(va), 0x11ff, "2M page split, first 4K");
	/* and joined again */
	pte_set(pte_at(read_cr3(), va, 2), big | RW | PTE_PS);
	flush_tlb();
	check_eq(*at(va + 0x5000), 0x1005, "2M page joined");
	/* a directory entry that changes: INVLPG drops the paging-structure caches too (4.10.4.1) */
	u64 *pt2 = page_alloc();
	pt2[3] = frames[2] | RW;
	((u64 *)pt)[3] = frames[1] | RW;
	pte_set(pte_at(read_cr3(), va, 2), (ulong)pt | RW);
	flush_tlb();
	check_eq(*at(va + 0x3000), 1, "first page table");
	pte_set(pte_at(read_cr3(), va, 2), (ulong)pt2 | RW);
	invlpg(va + 0x3000);
	check_eq(*at(va + 0x3000), 2, "second page table after INVLPG");
	if (has_1g()) {
		ulong va1g = 0x10000000000ul;
		map_page(va1g, 0 | RW | PTE_PS, 3);
		check_eq(*at(va1g + big + 0x7000), 0x1007, "1G page");
		pte_set(pte_at(read_cr3(), va1g, 3), 0);
		invlpg(va1g + 0x20000000);
		TRAP(*at(va1g + big));
		check_trap(EXC_PF, 0, "INVLPG inside a 1G page drops it");
	}
}

/* Two address spaces that share everything but VA's tables. */
static ulong second_root(u64 entry)
{
	ulong root = (ulong)page_alloc(), old = read_cr3() & ~0xffful;
	u64 *pdpt = page_alloc();

	memcpy((void *)root, (void *)old, PAGE);
	memcpy(pdpt, (void *)(ulong)(*(u64 *)old & ~0xfffull), PAGE);
	pdpt[VA >> 30] = 0;
	*(u64 *)root = (ulong)pdpt | 7;
	pte_set(pte_at(root, VA, 1), entry);
	return root;
}

struct invpcid_desc {
	u64 pcid, addr;
};
static void invpcid(u64 type, u64 pcid, u64 addr)
{
	struct invpcid_desc d = {pcid, addr};
	asm volatile("invpcid %0, %1" ::"m"(d), "r"(type) : "memory");
}

static void spaces(void)
{
	ulong a = read_cr3(), b = second_root(frames[6] | RW);

	map_page(VA, frames[5] | RW, 1);
	group_begin("two address spaces");
	for (int i = 0; i < 10; i++) {
		write_cr3(i & 1 ? b : a);
		group_eq(*at(VA), i & 1 ? 6 : 5, "%d", i);
	}
	group_end();
	write_cr3(a);
}

static void pcid(void)
{
	const ulong noflush = BIT(63);
	ulong a = read_cr3() & ~0xffful, b = second_root(frames[6] | RW);
	void *ea = pte_at(a, VA, 1), *eb = pte_at(b, VA, 1);

	if (!has_pcid())
		return skip("pcid", "no PCID");
	write_cr3(a | 0x18); /* PWT, PCD: bits 4:3 are part of the PCID once PCIDE is on */
	TRAP(write_cr4(read_cr4() | CR4_PCIDE));
	check_trap(EXC_GP, 0, "PCIDE=1 with CR3[11:0] not 0");
	write_cr3(a);
	write_cr4(read_cr4() | CR4_PCIDE | CR4_PGE);
	TRAP(write_cr0(read_cr0() & ~CR0_PG));
	check_trap(EXC_GP, 0, "PG=0 with PCIDE");
	pte_set(ea, frames[1] | RW);
	pte_set(eb, frames[2] | RW);
	write_cr3(a | 1);
	check_eq(read_cr3(), a | 1, "CR3 reads back with its PCID");
	check_eq(*at(VA), 1, "PCID 1");
	write_cr3(b | 2);
	check_eq(*at(VA), 2, "PCID 2");
	write_cr3(a | 1 | noflush);
	check_eq(read_cr3(), a | 1, "bit 63 is not stored");
	check_eq(*at(VA), 1, "PCID 1, no flush");
	write_cr3(b | 2 | noflush);
	check_eq(*at(VA), 2, "PCID 2, no flush");
	/* changed behind an inactive PCID */
	pte_set(ea, frames[3] | RW);
	write_cr3(a | 1 | noflush);
	one_of(*at(VA), 1, 3, "PCID 1 changed, no flush: old or new");
	write_cr3(a | 1);
	check_eq(*at(VA), 3, "PCID 1, flush: new");
	/* MOV CR3 flushes the PCID it loads only: PCID 2 may keep its own */
	pte_set(eb, frames[4] | RW);
	write_cr3(b | 2 | noflush);
	one_of(*at(VA), 2, 4, "PCID 2 changed, no flush: old or new");
	invlpg(VA);
	check_eq(*at(VA), 4, "INVLPG in PCID 2");
	/* one PCID with two roots: the flushing load of CR3 must drop what the other root put there */
	write_cr3(a | 2);
	check_eq(*at(VA), 3, "PCID 2 with another root");
	write_cr3(a);
	if (!has_invpcid()) {
		skip("invpcid", "no INVPCID");
	} else {
		write_cr3(a | 1);
		*at(VA);
		write_cr3(b | 2);
		pte_set(ea, frames[5] | RW);
		invpcid(0, 1, VA);
		write_cr3(a | 1 | noflush);
		check_eq(*at(VA), 5, "INVPCID 0: one address of another PCID");
		write_cr3(b | 2 | noflush);
		pte_set(ea, frames[6] | RW);
		invpcid(1, 1, 0);
		write_cr3(a | 1 | noflush);
		check_eq(*at(VA), 6, "INVPCID 1: another PCID");
		write_cr3(b | 2 | noflush);
		pte_set(ea, frames[0] | RW | PTE_G);
		invpcid(3, 0, 0);
		write_cr3(a | 1 | noflush);
		check_eq(*at(VA), 0, "INVPCID 3: all but globals");
		write_cr3(b | 2 | noflush);
		pte_set(ea, frames[1] | RW);
		invpcid(2, 0, 0);
		write_cr3(a | 1 | noflush);
		check_eq(*at(VA), 1, "INVPCID 2: all and globals");
		pte_set(ea, frames[2] | RW);
		invpcid(1, 1, 0);
		check_eq(*at(VA), 2, "INVPCID 1: the current PCID");
		pte_set(ea, frames[3] | RW);
		invpcid(0, 1, VA);
		check_eq(*at(VA), 3, "INVPCID 0: the current PCID");
		TRAP(invpcid(4, 0, 0));
		check_trap(EXC_GP, 0, "INVPCID type 4");
		TRAP(invpcid(1, 0x1000, 0));
		check_trap(EXC_GP, 0, "INVPCID with a reserved bit");
		TRAP(invpcid(0, 1, 0x8000000000000000ull));
		check_trap(EXC_GP, 0, "INVPCID 0, non-canonical");
	}
	write_cr3(a);
	pte_set(ea, frames[7] | RW);
	write_cr4(read_cr4() & ~(CR4_PCIDE | CR4_PGE));
	check_eq(*at(VA), 7, "PCIDE=0 flushes");
	if (has_invpcid()) {
		TRAP(invpcid(1, 1, 0));
		check_trap(EXC_GP, 0, "INVPCID 1 of PCID 1 without PCIDE");
		TRAP(invpcid(2, 0, 0));
		check_trap(NO_TRAP, -1, "INVPCID 2 without PCIDE");
	}
}

/* Random maps, unmaps, right changes and accesses against a model. */
static void stress(void)
{
	enum { N = 64 };
	static struct {
		u8 frame, w, p;
	} m[N];
	ulong base = VA + 0x20000000;
	u32 r = 12345;

	group_begin("random maps and accesses");
	for (u32 n = 0; n < 4000; n++) {
		r = r * 1664525 + 1013904223;
		u32 i = r >> 26, f = r >> 20 & 7;
		ulong va = base + i * 4096 * 7;
		switch (r >> 8 & 3) {
		case 0:
			m[i].frame = (u8)f, m[i].w = r >> 12 & 1, m[i].p = (r >> 13 & 3) != 0;
			pte_set(leaf(va), m[i].p ? frames[f] | PTE_P | (m[i].w ? PTE_W : 0) : 0);
			r >> 14 & 1 ? invlpg(va) : flush_tlb();
			break;
		case 1: {
			u32 v = 0;
			TRAP(asm volatile("movl (%1), %0" : "=r"(v) : "r"(va)));
			group_eq((u64)trap.vector, (u64)(m[i].p ? NO_TRAP : EXC_PF), "read %u", n);
			if (m[i].p && trap.vector == NO_TRAP)
				group_eq(*at(va), m[i].frame, "value %u", n);
			break;
		}
		default:
			TRAP(*at(va + 64) = n);
			group_eq((u64)trap.vector, (u64)(m[i].p && m[i].w ? NO_TRAP : EXC_PF), "write %u", n);
			if (trap.vector == NO_TRAP)
				group_eq(*at(frames[m[i].frame] + 64), n, "written %u", n);
		}
	}
	group_end();
}

/* Last: an engine that takes these is lost. */
static void cr3_bits(void)
{
	ulong a = read_cr3();

	TRAP(write_cr3(a | BIT(63)));
	check_trap(EXC_GP, 0, "CR3 bit 63 without PCIDE");
	if (cpu_phys_bits() < 52) {
		TRAP(write_cr3(a | BIT(51)));
		check_trap(EXC_GP, 0, "CR3 bit above MAXPHYADDR");
	}
}

int guest_main(void)
{
	for (u32 i = 0; i < ARRAY_SIZE(frames); i++) {
		frames[i] = (ulong)page_alloc();
		*at(frames[i]) = i;
	}
	basic();
	control_bits();
	global();
	large();
	spaces();
	pcid();
	stress();
	cr3_bits();
	return 0;
}
