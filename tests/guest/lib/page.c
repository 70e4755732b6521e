/* RAM after the image, and page tables in the three modes. SDM vol. 3, 4. */
#include "guest.h"

extern char _end[];
enum paging_mode paging_mode;
static ulong brk;

void *page_alloc_aligned(ulong bytes)
{
	ulong p;

	if (!brk)
		brk = (ulong)_end;
	p = (brk + bytes - 1) & ~(bytes - 1);
	brk = p + bytes;
	return memset((void *)p, 0, bytes);
}

void *page_alloc(void) { return page_alloc_aligned(PAGE); }

u64 pte_get(const volatile void *e) { return paging_mode == PAGING_32 ? *(const volatile u32 *)e : *(const volatile u64 *)e; }

void pte_set(volatile void *e, u64 v)
{
	if (paging_mode == PAGING_32)
		*(volatile u32 *)e = (u32)v;
	else
		*(volatile u64 *)e = v;
}

void *pte_at(ulong root, ulong va, int level)
{
	int top = paging_mode == PAGING_4L ? 4 : paging_mode == PAGING_PAE ? 3 : 2;
	int bits = paging_mode == PAGING_32 ? 10 : 9;
	ulong table = root & ~0xffful;

	if (paging_mode == PAGING_PAE)
		table = root & ~31ul;
	for (int l = top;; l--) {
		ulong index = va >> (12 + bits * (l - 1)) & (BIT(bits) - 1);
		char *e = (char *)table + index * (paging_mode == PAGING_32 ? 4 : 8);
		if (l == level)
			return e;
		if (!(pte_get(e) & PTE_P)) /* a PAE PDPTE holds no W, U */
			pte_set(e, (ulong)page_alloc() | (l == 3 && paging_mode == PAGING_PAE ? PTE_P : PTE_P | PTE_W | PTE_U));
		table = (ulong)(pte_get(e) & 0x000ffffffffff000ull);
	}
}

void map_page(ulong va, u64 entry, int level)
{
	pte_set(pte_at(read_cr3(), va, level), entry);
	invlpg(va);
}

#ifndef GUEST64
void paging_init(enum paging_mode mode)
{
	ulong root = (ulong)page_alloc();
	ulong step = mode == PAGING_32 ? 0x400000 : 0x200000;

	paging_mode = mode;
	if (mode == PAGING_PAE) /* all four PDPTEs present: they are loaded by MOV CR3 only */
		for (ulong g = 0; g < 4; g++)
			pte_at(root, g << 30, 2);
	for (ulong a = 0; a < 0x40000000; a += step) {
		pte_set(pte_at(root, a, 2), a | 0xe3);
		pte_set(pte_at(root, 0x80000000 + a, 2), a | 0xe7);
		pte_set(pte_at(root, 0xc0000000 + a, 2), (0xc0000000 + a) | 0xe3);
	}
	write_cr4(read_cr4() | CR4_PSE | (mode == PAGING_PAE ? CR4_PAE : 0));
	if (mode == PAGING_PAE && has_nx())
		wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_NXE);
	write_cr3(root);
	write_cr0(read_cr0() | CR0_PG);
	user_base = 0x80000000;
}
#endif
