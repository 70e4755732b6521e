/*
 * Addend tables and the contexts that own them: see soft_int.h for the scheme and why it is safe.
 */
#include "engine/soft/soft_int.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/soft/copy.h"
#include "engine/soft/mmu/mmu.h"

static int64_t poison(const struct soft_vcpu *sv, uint64_t index)
{
	int64_t gva = (int64_t)(index << 28) >> 16;

	return (int64_t)(uintptr_t)sv->v.engine->guard - gva;
}

static int64_t *entry_of(const struct tlb_ctx *c, uint64_t index)
{
	return (int64_t *)c->gs + index;
}

static size_t table_bytes(const struct soft_vcpu *sv) { return sv->v.engine->steps_only ? PAGE_SIZE : TABLE_BYTES; }

/* view_fd: the private pages of the supervisor contexts, at view_at; -1: the context's own. */
static bool ctx_init(struct soft_vcpu *sv, struct tlb_ctx *c, int vcpu_fd, int view_fd, off_t view_at, struct error *err)
{
	size_t before = align_up(CTX_OFF, 0x10000);
	int flags = MAP_FIXED | (view_fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED);
	uint8_t *p = mmap(NULL, before + table_bytes(sv), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return error_set(err, "soft engine: cannot reserve 512 GiB of address space for an address table") ||
		       error_hint(err, "raise the limit of virtual memory (ulimit -v unlimited)");
	c->gs = p + before;
	if (mmap(c->gs - VCPU_OFF, VCPU_OFF, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, vcpu_fd, 0) == MAP_FAILED ||
	    mmap(c->gs - CTX_OFF, CTX_PRIV_SIZE, PROT_READ | PROT_WRITE, flags, view_fd, view_at) == MAP_FAILED)
		return error_set(err, "soft engine: cannot map the vCPU area");
	c->set_size = 256;
	c->set = calloc(c->set_size, sizeof(*c->set));
	return c->set != NULL || error_set(err, "out of memory");
}

static bool contexts_init(struct soft_vcpu *sv, int vcpu_fd, int view_fd, struct error *err)
{
	bool one = sv->v.engine->steps_only; /* all are the same one */

	for (unsigned s = 0; s < sv->v.engine->slots; s++) {
		for (unsigned k = 0; k < CTX_KINDS; k++) {
			struct tlb_ctx *c = &sv->ctxs[s][k];
			struct code_view *w = &sv->views[s][k != CTX_USER];

			if (one && s + k) {
				*c = sv->ctxs[0][0];
				continue;
			}
			if (!ctx_init(sv, c, vcpu_fd, k == CTX_USER ? -1 : view_fd, (off_t)s * CTX_PRIV_SIZE, err))
				return false;
			c->view = w;
			if (!w->gs)
				view_init(w, c->gs);
		}
	}
	return true;
}

bool table_init(struct soft_vcpu *sv, int vcpu_fd, struct error *err)
{
	int fd = memfd_create("doppel-view", MFD_CLOEXEC);
	bool ok = fd >= 0 && !ftruncate(fd, (off_t)sv->v.engine->slots * CTX_PRIV_SIZE);

	if (!ok)
		error_set(err, "soft engine: out of memory for the jump caches");
	ok = ok && contexts_init(sv, vcpu_fd, fd, err);
	if (fd >= 0)
		close(fd);
	sv->slot_valid[0] = true;
	sv->ctx = &sv->ctxs[0][CTX_KERNEL];
	return ok;
}

void table_fini(struct soft_vcpu *sv)
{
	size_t before = align_up(CTX_OFF, 0x10000);

	for (unsigned s = 0; s < sv->v.engine->slots; s++)
		for (unsigned k = 0; k < VIEW_KINDS; k++)
			view_fini(&sv->views[s][k]);
	for (unsigned s = 0; s < sv->v.engine->slots; s++) {
		for (unsigned k = 0; k < CTX_KINDS; k++) {
			struct tlb_ctx *c = &sv->ctxs[s][k];

			if (c->gs)
				munmap(c->gs - before, before + table_bytes(sv));
			free(c->pages);
			free(c->set);
			if (sv->v.engine->steps_only)
				return;
		}
	}
}

/* Touched table pages: a set, because one gva region is touched once and asked for at each fill. */
static uint32_t *set_slot(struct tlb_ctx *c, uint32_t number)
{
	uint32_t i = (number * 2654435761u) >> 8;

	for (;; i++) {
		uint32_t *s = &c->set[i & (c->set_size - 1)];

		if (!*s || c->pages[*s - 1].number == number)
			return s;
	}
}

static struct table_page *page_find(struct tlb_ctx *c, uint32_t number)
{
	uint32_t *s = set_slot(c, number);

	return *s ? &c->pages[*s - 1] : NULL;
}

static void page_poison(const struct soft_vcpu *sv, const struct tlb_ctx *c, uint32_t number)
{
	uint64_t index = (uint64_t)number * TABLE_PAGE_ENTRIES;
	int64_t *e = entry_of(c, index), a = poison(sv, index);

	for (unsigned i = 0; i < TABLE_PAGE_ENTRIES; i++)
		e[i] = a - (int64_t)i * (int64_t)PAGE_SIZE;
}

static void ctx_reset_table(struct tlb_ctx *c)
{
	/* fresh PROT_NONE pages over the whole table: drops the memory too */
	void *p = mmap(c->gs, TABLE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);

	if (p == MAP_FAILED)
		abort(); /* the reservation itself is in place: the kernel cannot refuse this but when out of memory */
	c->npages = 0;
	zero_bytes(c->set, c->set_size * sizeof(*c->set));
}

static void reset_all_tables(struct soft_vcpu *sv)
{
	for (unsigned s = 0; s < sv->v.engine->slots; s++)
		for (unsigned k = 0; k < CTX_KINDS; k++)
			if (sv->ctxs[s][k].npages)
				ctx_reset_table(&sv->ctxs[s][k]);
	sv->table_pages = 0;
}

static bool set_grow(struct tlb_ctx *c)
{
	uint32_t size = c->set_size * 2, *set = calloc(size, sizeof(*set));

	if (!set)
		return false;
	free(c->set);
	c->set = set;
	c->set_size = size;
	for (uint32_t i = 0; i < c->npages; i++)
		*set_slot(c, c->pages[i].number) = i + 1;
	return true;
}

static struct table_page *page_touch(struct soft_vcpu *sv, struct tlb_ctx *c, uint32_t number)
{
	struct table_page *tp = page_find(c, number);

	if (tp)
		return tp;
	if (sv->table_pages >= sv->v.engine->table_pages)
		reset_all_tables(sv);
	if (c->npages == c->cap) {
		uint32_t cap = c->cap ? c->cap * 2 : 128;
		struct table_page *pages = realloc(c->pages, cap * sizeof(*pages));

		if (!pages)
			abort();
		c->pages = pages;
		c->cap = cap;
	}
	if (c->npages * 2 >= c->set_size && !set_grow(c))
		abort();
	if (mprotect(entry_of(c, (uint64_t)number * TABLE_PAGE_ENTRIES), PAGE_SIZE, PROT_READ | PROT_WRITE)) {
		/* too many mappings: start afresh, which leaves room */
		reset_all_tables(sv);
		if (mprotect(entry_of(c, (uint64_t)number * TABLE_PAGE_ENTRIES), PAGE_SIZE, PROT_READ | PROT_WRITE))
			abort();
	}
	page_poison(sv, c, number);
	sv->stats.table_pages++;
	sv->table_pages++;
	c->pages[c->npages] = (struct table_page){.number = number};
	*set_slot(c, number) = ++c->npages;
	return &c->pages[c->npages - 1];
}

bool table_touch(struct soft_vcpu *sv, uint64_t addr)
{
	struct tlb_ctx *c = sv->ctx;
	uint64_t off = addr - (uintptr_t)c->gs;

	if (off >= TABLE_BYTES)
		return false;
	page_touch(sv, c, (uint32_t)(off >> 12));
	return true;
}

/* Enter the addend of a RAM page; what is none keeps its poison and stays slow. */
static void set_entry(const struct soft_engine *e, int64_t *entry, gva_t la, gpa_t gpa, bool writable)
{
	uint64_t off;

	if (ram_offset(e->cfg.ram, gpa, &off))
		*entry = (int64_t)((uintptr_t)(writable ? e->ram_rw : e->ram_ro) + (off & ~(PAGE_SIZE - 1)) - (la & ~(PAGE_SIZE - 1)));
}

/* Pages whose entries are looked at together with a missing one. */
#define FILL_WINDOW 16

/* The rest of a large page comes with it, as in a hardware TLB: one table page (2 MiB) at a time. */
static void fill_around(struct soft_vcpu *sv, struct tlb_ctx *c, gva_t la, const struct walk *w, bool writable)
{
	gva_t start = align_down(la, 2 * MIB);
	uint64_t index = (start & (BIT(48) - 1)) >> PAGE_SHIFT;
	gpa_t gpa = align_down(w->gpa, 2 * MIB);
	int64_t *e = entry_of(c, index);

	for (unsigned i = 0; i < TABLE_PAGE_ENTRIES; i++)
		set_entry(sv->v.engine, &e[i], start + i * PAGE_SIZE, gpa + i * PAGE_SIZE, writable);
	sv->stats.large_fills++;
}

/*
 * The neighbours of a 4 KiB page in its page table that the guest has used already (A is set): one signal for all of them.
 * What hardware may cache at any time (SDM vol. 3, 4.10.2.3); nothing is changed in the guest's table.
 */
static void fill_neighbours(struct soft_vcpu *sv, struct table_page *tp, gva_t la, const struct walk *w)
{
	const struct cpu_state *s = &sv->v.s;
	uint64_t phys = (BIT(sv->v.cfg->cpuid->phys_bits) - 1) & ~(PAGE_SIZE - 1);
	uint64_t rsvd = (BIT(cpu_long_mode(s) ? 52 : 63) - 1) & ~phys & ~(PAGE_SIZE - 1);
	bool user = cpu_cpl(s) == 3, no_user = !user && (s->cr4 & CR4_SMAP) && !(s->rflags & FL_AC);
	gva_t start = la & ~(FILL_WINDOW * PAGE_SIZE - 1);
	uint64_t index = (start & (BIT(48) - 1)) >> PAGE_SHIFT;
	int64_t *e = entry_of(sv->ctx, index);

	for (unsigned i = 0; i < FILL_WINDOW; i++) {
		uint64_t pte = __atomic_load_n(&w->table[(index + i) & 511], __ATOMIC_RELAXED);
		bool u = w->table_user && (pte & BIT(2)), writable = w->table_writable && (pte & BIT(1));

		if ((pte & (BIT(0) | BIT(5))) != (BIT(0) | BIT(5)) || e[i] != poison(sv, index + i))
			continue;
		if ((user && !u) || (no_user && u) || (pte & rsvd) || ((pte & BIT(63)) && !(s->efer & EFER_NXE)))
			continue;
		set_entry(sv->v.engine, &e[i], start + i * PAGE_SIZE, pte & phys, writable && (pte & BIT(6)));
		tp->nonglobal |= !((pte & BIT(8)) && (s->cr4 & CR4_PGE));
	}
}

enum fill_result table_fill(struct soft_vcpu *sv, gva_t la, bool write)
{
	struct vcpu *v = &sv->v;
	struct soft_engine *e = v->engine;
	struct tlb_ctx *c = sv->ctx;
	uint64_t index = (la & (BIT(48) - 1)) >> PAGE_SHIFT, off;
	struct table_page *tp;
	struct walk w;
	bool rw;

	if (!mmu_walk(v, la, write ? MMU_WRITE : MMU_READ, &w))
		return FILL_FAULT;
	if (!ram_offset(e->cfg.ram, w.gpa & ~(PAGE_SIZE - 1), &off))
		return FILL_MMIO;
	rw = w.writable && w.dirty;
	if (write && e->watch[off >> PAGE_SHIFT])
		return FILL_CODE; /* translated code in the page: its protection catches the write again */
	sv->stats.fills++;
	tp = page_touch(sv, c, (uint32_t)(index >> 9));
	tp->used = true;
	tp->nonglobal |= !w.global;
	c->huge |= w.shift > 21 && (v->s.cr0 & CR0_PG);
	if (w.shift >= 21)
		fill_around(sv, c, la, &w, rw);
	else
		set_entry(e, entry_of(c, index), la, w.gpa, rw);
	if (w.table)
		fill_neighbours(sv, tp, la, &w);
	return FILL_OK;
}

void table_prefill(struct soft_vcpu *sv, gva_t la)
{
	struct vcpu_exc exc = sv->v.exc;
	uint64_t cr2 = sv->v.s.cr2;

	if (!page_find(sv->ctx, (uint32_t)((la & (BIT(48) - 1)) >> (PAGE_SHIFT + 9))))
		vec_save(&sv->v); /* page_touch may call libc */
	if (table_fill(sv, la, false) == FILL_OK)
		return;
	sv->v.exc = exc;
	sv->v.s.cr2 = cr2;
}

static void ctx_flush(struct soft_vcpu *sv, struct tlb_ctx *c, bool keep_global)
{
	for (uint32_t i = 0; i < c->npages; i++) {
		struct table_page *tp = &c->pages[i];

		if (!tp->used || (keep_global && !tp->nonglobal))
			continue;
		page_poison(sv, c, tp->number);
		tp->used = tp->nonglobal = false;
	}
}

static void slot_flush(struct soft_vcpu *sv, unsigned slot, bool keep_global)
{
	for (unsigned k = 0; k < CTX_KINDS; k++) {
		struct tlb_ctx *c = &sv->ctxs[slot][k];

		ctx_flush(sv, c, keep_global);
	}
	for (unsigned k = 0; k < VIEW_KINDS; k++)
		view_flush(sv, &sv->views[slot][k], keep_global);
}

/* The slot of a PCID: the least recently used one is emptied when it has none. */
static unsigned slot_of(struct soft_vcpu *sv, unsigned pcid, bool make, bool *found)
{
	unsigned lru = 0;

	*found = true;
	for (unsigned s = 0; s < sv->v.engine->slots; s++) {
		if (sv->slot_valid[s] && sv->slot_pcid[s] == pcid)
			return s;
		if (!sv->slot_valid[s] || (sv->slot_valid[lru] && sv->slot_used[s] < sv->slot_used[lru]))
			lru = s;
	}
	*found = false;
	if (make) {
		if (sv->slot_valid[lru])
			slot_flush(sv, lru, true);
		sv->slot_valid[lru] = true;
		sv->slot_pcid[lru] = (uint16_t)pcid;
		*found = true;
	}
	return lru;
}

void table_select(struct soft_vcpu *sv)
{
	struct cpu_state *s = &sv->v.s;
	unsigned pcid = (s->cr4 & CR4_PCIDE) ? (unsigned)(s->cr3 & 0xfff) : 0;
	enum ctx_kind kind;
	bool found;

	if (!sv->slot_valid[sv->slot] || sv->slot_pcid[sv->slot] != pcid) {
		sv->slot = slot_of(sv, pcid, true, &found);
		sv->slot_used[sv->slot] = ++sv->slot_clock;
	}
	if (cpu_cpl(s) == 3)
		kind = CTX_USER;
	else
		kind = (s->cr4 & CR4_SMAP) && (s->rflags & FL_AC) ? CTX_KERNEL_AC : CTX_KERNEL;
	sv->ctx = &sv->ctxs[sv->slot][kind];
	view_set_mode(sv, sv->ctx->view, sv->hflags);
	sv->gs_kernel = (uintptr_t)sv->ctxs[sv->slot][CTX_KERNEL].gs;
	sv->gs_kernel_ac = (uintptr_t)sv->ctxs[sv->slot][CTX_KERNEL_AC].gs;
}

void mmu_flush_all(struct vcpu *v)
{
	struct soft_vcpu *sv = soft_vcpu(v);

	sv->stats.flushes++;
	for (unsigned s = 0; s < sv->v.engine->slots; s++)
		slot_flush(sv, s, false);
	sv->ctlb_gen++;
}

void mmu_flush_nonglobal(struct vcpu *v)
{
	struct soft_vcpu *sv = soft_vcpu(v);

	sv->stats.flushes++;
	for (unsigned s = 0; s < sv->v.engine->slots; s++)
		slot_flush(sv, s, true);
	sv->ctlb_gen++;
}

void mmu_flush_pcid(struct vcpu *v, unsigned pcid)
{
	struct soft_vcpu *sv = soft_vcpu(v);
	bool found;
	unsigned s = slot_of(sv, (v->s.cr4 & CR4_PCIDE) ? pcid : 0, false, &found);

	sv->stats.flushes++;
	if (found)
		slot_flush(sv, s, true);
	sv->ctlb_gen++;
}

static void ctx_flush_page(struct soft_vcpu *sv, struct tlb_ctx *c, gva_t la)
{
	uint64_t index = (la & (BIT(48) - 1)) >> PAGE_SHIFT;
	struct table_page *tp = page_find(c, (uint32_t)(index >> 9));

	/* a 2 MiB page was filled whole: the address may lie anywhere in it, so the table page goes as one; 4 MiB and 1 GiB: all goes */
	if (c->huge) {
		c->huge = false;
		ctx_flush(sv, c, false);
	} else if (tp && tp->used) {
		page_poison(sv, c, tp->number);
		tp->used = tp->nonglobal = false;
	}
}

void mmu_flush_page(struct vcpu *v, gva_t la)
{
	struct soft_vcpu *sv = soft_vcpu(v);

	/* the entry may have been a global one of any slot */
	for (unsigned s = 0; s < sv->v.engine->slots; s++) {
		for (unsigned k = 0; k < CTX_KINDS; k++)
			ctx_flush_page(sv, &sv->ctxs[s][k], la);
		for (unsigned k = 0; k < VIEW_KINDS; k++)
			view_flush_page(sv, &sv->views[s][k], la);
	}
	sv->ctlb_gen++;
}

void mmu_flush_page_pcid(struct vcpu *v, gva_t la, unsigned pcid)
{
	mmu_flush_page(v, la);
}

void mmu_context_changed(struct vcpu *v)
{
	struct soft_vcpu *sv = soft_vcpu(v);

	sv->hflags_stale = true;
	if (v->s.cr3 != sv->last_cr3) {
		sv->last_cr3 = v->s.cr3;
		sv->ctlb_gen++;
	}
}
