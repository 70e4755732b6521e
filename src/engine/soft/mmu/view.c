/*
 * Code as a context sees it: where pages with code are mapped (page bases) and the jump cache. Both lie in the context's
 * private pages, which the two supervisor contexts of an address space share, as EFLAGS.AC does not matter to fetches.
 *
 * Invariant: a jump-cache entry for a block of 64-bit code says the truth only while the page base of the block's page is the one it
 * was made with; so whoever clears or changes a page base empties the jump cache.
 */
#include "engine/soft/cache/cache_int.h"
#include "engine/soft/copy.h"

#include <stdlib.h>

static uint64_t *bases_of(const struct code_view *w)
{
	return (uint64_t *)(w->gs - BASE_OFF);
}

/* An empty jump-cache entry holds a pc that is never looked up in its place: 0 belongs to place 0 alone, 0x11 to 0x11 and 1. */
static int64_t jc_empty(unsigned place)
{
	return place ? 0 : -0x11;
}

static int64_t *jc_neg(const struct code_view *w)
{
	return (int64_t *)(w->gs - JC_NEG_OFF);
}

static void jc_fill_empty(struct code_view *w)
{
	zero_bytes(jc_neg(w), JC_ENTRIES * 8);
	jc_neg(w)[0] = jc_empty(0);
}

void view_init(struct code_view *w, uint8_t *gs)
{
	w->gs = gs;
	jc_neg(w)[0] = jc_empty(0); /* the other places are 0 */
}

void view_fini(struct code_view *w)
{
	free(w->filled);
}

/* ---- jump cache ---- */

static void jc_clear(struct soft_vcpu *sv, struct code_view *w)
{
	if (!w->jc_used)
		return;
	if (w->njc_log <= JC_LOG)
		for (unsigned i = 0; i < w->njc_log; i++)
			jc_neg(w)[w->jc_log[i]] = jc_empty(w->jc_log[i]);
	else
		jc_fill_empty(w);
	w->njc_log = 0;
	w->jc_used = w->jc_nonglobal = false;
	sv->stats.jc_clears++;
}

static unsigned jc_place(uint64_t pc, bool second)
{
	/* what PEXT with JC_MASK2 gives: bits 4-7, 12-22 */
	return second ? (unsigned)((pc >> 4 & 0xf) | (pc >> 12 & 0x7ff) << 4) : (unsigned)(pc & JC_MASK1);
}

static void jc_note(struct code_view *w, unsigned place)
{
	if (w->njc_log < JC_LOG)
		w->jc_log[w->njc_log] = (uint16_t)place;
	if (w->njc_log <= JC_LOG)
		w->njc_log++;
}

static void jc_insert(struct code_view *w, uint64_t pc, void *host)
{
	int64_t *neg = jc_neg(w);
	void **to = (void **)(w->gs - JC_HOST_OFF);
	unsigned i = jc_place(pc, false), other;

	if (neg[i] != jc_empty(i) && neg[i] != (int64_t)(0 - pc)) { /* who was here moves to its second place */
		other = jc_place(0 - (uint64_t)neg[i], true);
		neg[other] = neg[i];
		to[other] = to[i];
		jc_note(w, other);
	}
	jc_note(w, i);
	neg[i] = (int64_t)(0 - pc);
	to[i] = host;
	w->jc_used = true;
}

static void jc_remove(const struct code_view *w, uint64_t pc)
{
	for (unsigned second = 0; second < 2; second++) {
		unsigned i = jc_place(pc, second);

		if (__atomic_load_n(&jc_neg(w)[i], __ATOMIC_RELAXED) == (int64_t)(0 - pc))
			__atomic_store_n(&jc_neg(w)[i], jc_empty(i), __ATOMIC_RELAXED);
	}
}

const void *view_find(struct soft_vcpu *sv, uint64_t pc)
{
	const struct code_view *w = sv->ctx->view;
	void *const *to = (void *const *)(w->gs - JC_HOST_OFF);

	for (unsigned second = 0; second < 2; second++) {
		unsigned i = jc_place(pc, second);

		if (__atomic_load_n(&jc_neg(w)[i], __ATOMIC_RELAXED) == (int64_t)(0 - pc))
			return to[i];
	}
	return NULL;
}

/* ---- page bases ---- */

static unsigned seen_bit(uint64_t page)
{
	return (unsigned)((page * UINT64_C(0x9e3779b97f4a7c15)) >> 52);
}
_Static_assert(VIEW_SEEN == 1 << 12, "seen_bit");

static void note_filled(struct soft_vcpu *sv, struct code_view *w, uint32_t slot)
{
	if (w->nfilled == w->cap) {
		unsigned cap = w->cap ? w->cap * 2 : 128;
		uint32_t *filled;

		vec_save(&sv->v); /* libc */
		filled = realloc(w->filled, cap * sizeof(*filled));
		if (!filled)
			abort();
		w->filled = filled;
		w->cap = cap;
	}
	w->filled[w->nfilled++] = slot;
}

static void set_base(struct soft_vcpu *sv, struct code_view *w, uint32_t slot, uint64_t page_pc, bool global)
{
	uint64_t *base = &bases_of(w)[slot], old = *base;
	unsigned bit = seen_bit(page_pc >> PAGE_SHIFT);

	w->seen[bit / 64] |= BIT(bit % 64);
	if (global)
		w->global[slot / 64] |= BIT(slot % 64);
	else
		w->global[slot / 64] &= ~BIT(slot % 64);
	if (old == page_pc + 1)
		return;
	if (old) /* the page is mapped twice */
		jc_clear(sv, w);
	else
		note_filled(sv, w, slot);
	__atomic_store_n(base, page_pc + 1, __ATOMIC_RELAXED);
}

void view_add(struct soft_vcpu *sv, struct block *b, uint64_t pc, bool global)
{
	struct code_view *w = sv->ctx->view;
	uint64_t page_pc = pc & ~(PAGE_SIZE - 1);
	unsigned bit = seen_bit(pc >> PAGE_SHIFT);

	if (b->slot) {
		set_base(sv, w, b->slot, page_pc, global);
		if (b->crossing)
			set_base(sv, w, b->slot2, page_pc + PAGE_SIZE, global);
	} else {
		w->absolute = true;
		w->seen[bit / 64] |= BIT(bit % 64);
		bit = seen_bit((pc >> PAGE_SHIFT) + 1);
		w->seen[bit / 64] |= BIT(bit % 64);
	}
	jc_insert(w, pc, sv->cache->rx + b->host_off);
	w->jc_nonglobal |= !global;
	b->jc_vcpus |= BIT(sv->v.index);
}

uint64_t block_pc(const struct soft_vcpu *sv, const struct block *b)
{
	return b->slot ? bases_of(sv->ctx->view)[b->slot] - 1 + (b->gpa & (PAGE_SIZE - 1)) : b->pc;
}

void view_flush(struct soft_vcpu *sv, struct code_view *w, bool keep_global)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < w->nfilled; i++) {
		uint32_t slot = w->filled[i];

		if (keep_global && (w->global[slot / 64] & BIT(slot % 64)))
			w->filled[kept++] = slot;
		else
			__atomic_store_n(&bases_of(w)[slot], 0, __ATOMIC_RELAXED);
	}
	w->nfilled = kept;
	if (!kept) {
		zero_bytes(w->seen, sizeof(w->seen));
		w->absolute = false;
	}
	if (!keep_global || w->jc_nonglobal)
		jc_clear(sv, w);
}

void view_flush_page(struct soft_vcpu *sv, struct code_view *w, gva_t la)
{
	uint64_t page = (la & ~(PAGE_SIZE - 1)) + 1;
	unsigned bit = seen_bit(la >> PAGE_SHIFT);

	if (!(w->seen[bit / 64] & BIT(bit % 64)))
		return;
	if (w->absolute)
		jc_clear(sv, w);
	for (unsigned i = 0; i < w->nfilled; i++) {
		uint64_t *base = &bases_of(w)[w->filled[i]];

		if (*base != page)
			continue;
		__atomic_store_n(base, 0, __ATOMIC_RELAXED);
		w->filled[i--] = w->filled[--w->nfilled];
		jc_clear(sv, w);
	}
}

void view_set_mode(struct soft_vcpu *sv, struct code_view *w, uint32_t hflags)
{
	if (w->hflags != hflags) {
		jc_clear(sv, w);
		w->hflags = hflags;
	}
}

void view_drop_block(struct soft_vcpu *sv, const struct block *b)
{
	for (unsigned s = 0; s < sv->v.engine->slots; s++) {
		for (unsigned k = 0; k < VIEW_KINDS; k++) {
			const struct code_view *w = &sv->views[s][k];
			uint64_t base = b->slot && w->gs ? __atomic_load_n(&bases_of(w)[b->slot], __ATOMIC_RELAXED) : 0;

			if (!w->gs || (b->slot && !base))
				continue;
			jc_remove(w, b->slot ? base - 1 + (b->gpa & (PAGE_SIZE - 1)) : b->pc);
		}
	}
}

void view_forget_all(struct soft_vcpu *sv)
{
	for (unsigned s = 0; s < sv->v.engine->slots; s++)
		for (unsigned k = 0; k < VIEW_KINDS; k++)
			if (sv->views[s][k].gs)
				view_flush(sv, &sv->views[s][k], false);
}
