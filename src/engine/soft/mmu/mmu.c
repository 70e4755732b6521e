/*
 * Linear-address access for C: interpreter routines, the slow path of native instructions, and instruction fetch.
 */
#include "engine/soft/mmu/mmu.h"

#include "engine/soft/copy.h"
#include "engine/soft/soft_int.h"

#define LAPIC_BASE_MASK UINT64_C(0xffffff000)

/* Permissions cached in a data entry: what mmu_walk granted to which kind of access. */
static unsigned access_class(const struct vcpu *v, unsigned flags)
{
	bool user = (flags & MMU_USER) || (!(flags & MMU_SYSTEM) && cpu_cpl(&v->s) == 3);
	unsigned kind = user ? 0 : (flags & MMU_SYSTEM) ? 1 : (v->s.rflags & FL_AC) ? 2 : 3;

	return BIT(kind * 2 + ((flags & MMU_WRITE) ? 1 : 0));
}

static bool lapic_page(struct vcpu *v, gpa_t gpa)
{
	uint64_t base = v->s.apic_base;

	/* enabled, and not in x2APIC mode */
	return v->irqchip && (base & BIT(11)) && !(base & BIT(10)) && (gpa & ~(PAGE_SIZE - 1)) == (base & LAPIC_BASE_MASK);
}

uint64_t phys_read(struct vcpu *v, gpa_t gpa, unsigned size)
{
	uint64_t value;

	vec_save(v);
	pthread_mutex_lock(v->cfg->lock);
	if (lapic_page(v, gpa))
		value = lapic_mmio_read(v->irqchip, v->index, gpa & (PAGE_SIZE - 1), size);
	else
		value = bus_read(v->cfg->bus, BUS_MMIO, gpa, size);
	pthread_mutex_unlock(v->cfg->lock);
	return value;
}

void phys_write(struct vcpu *v, gpa_t gpa, unsigned size, uint64_t value)
{
	vec_save(v);
	pthread_mutex_lock(v->cfg->lock);
	if (lapic_page(v, gpa))
		lapic_mmio_write(v->irqchip, v->index, gpa & (PAGE_SIZE - 1), size, value);
	else
		bus_write(v->cfg->bus, BUS_MMIO, gpa, size, value);
	pthread_mutex_unlock(v->cfg->lock);
}

static void mmio_read(struct vcpu *v, gpa_t gpa, uint8_t *buf, unsigned len)
{
	while (len) {
		unsigned n = len >= 8 ? 8 : len >= 4 ? 4 : len >= 2 ? 2 : 1;
		uint64_t x = phys_read(v, gpa, n);

		copy_bytes(buf, &x, n);
		gpa += n;
		buf += n;
		len -= n;
	}
}

static void mmio_write(struct vcpu *v, gpa_t gpa, const uint8_t *buf, unsigned len)
{
	while (len) {
		unsigned n = len >= 8 ? 8 : len >= 4 ? 4 : len >= 2 ? 2 : 1;
		uint64_t x = 0;

		copy_bytes(&x, buf, n);
		phys_write(v, gpa, n, x);
		gpa += n;
		buf += n;
		len -= n;
	}
}

/*
 * Data breakpoints (SDM vol. 3, 17.2.4). While DR7 enables any breakpoint every instruction takes the slow path, so all
 * accesses of instructions pass here; implicit ones of the CPU do not count.
 */
static void watch_access(struct vcpu *v, gva_t la, unsigned len, unsigned flags)
{
	static const uint8_t size[4] = {1, 2, 8, 4};
	uint64_t dr7 = v->s.dr[7];

	if (flags & MMU_SYSTEM)
		return;
	for (unsigned i = 0; i < 4; i++) {
		unsigned rw = (dr7 >> (16 + 4 * i)) & 3, n = size[(dr7 >> (18 + 4 * i)) & 3];
		gva_t at = v->s.dr[i] & ~(uint64_t)(n - 1);

		if (((dr7 >> (2 * i)) & 3) && (rw == 3 || (rw == 1 && (flags & MMU_WRITE))) && la < at + n && at < la + len)
			soft_vcpu(v)->data_hits |= (uint8_t)BIT(i);
	}
}

/* Where one page of an access goes. host NULL: MMIO at gpa. */
struct piece {
	uint8_t *host;
	gpa_t gpa;
	unsigned len;
};

static bool translate_piece(struct vcpu *v, gva_t la, unsigned flags, struct piece *p)
{
	struct soft_vcpu *sv = soft_vcpu(v);
	uint64_t page = la >> PAGE_SHIFT, off = la & (PAGE_SIZE - 1);
	struct data_entry *d = &sv->data[page & (ARRAY_LEN(sv->data) - 1)];
	unsigned cls = access_class(v, flags);
	struct walk w;
	bool same = d->page == page && d->gen == sv->ctlb_gen;

	if (!same || !(d->perm & cls)) {
		if (!mmu_walk(v, la, flags, &w))
			return false;
		if (!same || d->gpa != (w.gpa & ~(PAGE_SIZE - 1)))
			*d = (struct data_entry){.page = page, .gen = sv->ctlb_gen, .gpa = w.gpa & ~(PAGE_SIZE - 1)};
		d->perm |= cls;
		d->host = ram_ptr(v->cfg->ram, d->gpa, PAGE_SIZE);
	}
	p->gpa = d->gpa + off;
	p->host = d->host ? d->host + off : NULL;
	return true;
}

/* Both pages are translated before anything happens. Returns the number of pieces, 0 on a fault. */
static unsigned translate_range(struct vcpu *v, gva_t la, unsigned len, unsigned flags, struct piece p[2])
{
	unsigned first = (unsigned)min_u64(len, PAGE_SIZE - (la & (PAGE_SIZE - 1)));
	gva_t next;

	if (!cpu_long_mode(&v->s))
		la &= 0xffffffff;
	if (v->s.dr[7] & 0xff)
		watch_access(v, la, len, flags);
	if (!translate_piece(v, la, flags, &p[0]))
		return 0;
	p[0].len = first;
	if (first == len)
		return 1;
	next = la + first;
	if (!cpu_long_mode(&v->s))
		next &= 0xffffffff;
	if (!translate_piece(v, next, flags, &p[1]))
		return 0;
	p[1].len = len - first;
	return 2;
}

/* An aligned access of 2, 4 or 8 bytes is one access for other vCPUs too. */
static void copy(void *to, const void *from, unsigned len)
{
	typedef uint16_t u16 __attribute__((may_alias, aligned(1)));
	typedef uint32_t u32 __attribute__((may_alias, aligned(1)));
	typedef uint64_t u64 __attribute__((may_alias, aligned(1)));

	switch (len) {
	case 2:
		*(volatile u16 *)to = *(const volatile u16 *)from;
		break;
	case 4:
		*(volatile u32 *)to = *(const volatile u32 *)from;
		break;
	case 8:
		*(volatile u64 *)to = *(const volatile u64 *)from;
		break;
	default:
		copy_bytes(to, from, len);
		break;
	}
}

bool mmu_read(struct vcpu *v, gva_t la, void *buf, unsigned len, unsigned flags)
{
	struct piece p[2];
	unsigned n = translate_range(v, la, len, flags, p);
	uint8_t *out = buf;

	for (unsigned i = 0; i < n; i++) {
		if (p[i].host)
			copy(out, p[i].host, p[i].len);
		else
			mmio_read(v, p[i].gpa, out, p[i].len);
		out += p[i].len;
	}
	return n != 0;
}

/* See cache_int.h: first the store, then the look at the watch map. */
void mmu_host_wrote(struct vcpu *v, const void *host, unsigned len)
{
	struct soft_engine *e = v->engine;
	uint64_t off = (uint64_t)((const uint8_t *)host - (const uint8_t *)ram_view(e->cfg.ram));

	atomic_thread_fence(memory_order_seq_cst);
	if (!__atomic_load_n(&e->watch[off >> PAGE_SHIFT], __ATOMIC_RELAXED))
		return;
	vec_save(v);
	soft_vcpu(v)->stats.smc++;
	soft_vcpu(v)->stats.invalidations += cache_code_write(e->cache, ram_gpa(e->cfg.ram, off), len);
}

bool mmu_write(struct vcpu *v, gva_t la, const void *buf, unsigned len, unsigned flags)
{
	struct piece p[2];
	unsigned n = translate_range(v, la, len, flags | MMU_WRITE, p);
	const uint8_t *in = buf;

	for (unsigned i = 0; i < n; i++) {
		if (p[i].host) {
			copy(p[i].host, in, p[i].len);
			mmu_host_wrote(v, p[i].host, p[i].len);
		} else {
			mmio_write(v, p[i].gpa, in, p[i].len);
		}
		in += p[i].len;
	}
	return n != 0;
}

bool mmu_probe_write(struct vcpu *v, gva_t la, unsigned len, unsigned flags)
{
	struct piece p[2];

	return translate_range(v, la, len, flags | MMU_WRITE, p) != 0;
}

bool mmu_host_ptr(struct vcpu *v, gva_t la, unsigned flags, void **host)
{
	struct piece p;

	if (!cpu_long_mode(&v->s))
		la &= 0xffffffff;
	if (!translate_piece(v, la, flags, &p))
		return false;
	if (v->s.dr[7] & 0xff) /* one access at a time, each with its length */
		p.host = NULL;
	*host = p.host;
	return true;
}

bool mmu_cmpxchg(struct vcpu *v, gva_t la, uint64_t *expected, uint64_t desired, unsigned len, unsigned flags, bool *done)
{
	struct piece p[2];
	unsigned n = translate_range(v, la, len, flags | MMU_WRITE, p);
	uint64_t old = *expected;

	if (!n)
		return false;
	if (n == 2 || !p[0].host || ((uintptr_t)p[0].host & (len - 1))) {
		uint64_t cur = 0;
		bool ok;

		soft_stop_world(soft_vcpu(v));
		ok = mmu_read(v, la, &cur, len, flags);
		*done = ok && cur == (old & mask_bytes(len));
		*expected = cur;
		ok = ok && (!*done || mmu_write(v, la, &desired, len, flags));
		soft_start_world(soft_vcpu(v));
		return ok;
	}
	switch (len) {
	case 1: {
		uint8_t x = (uint8_t)old;
		*done = __atomic_compare_exchange_n(p[0].host, &x, (uint8_t)desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		*expected = x;
		break;
	}
	case 2: {
		uint16_t x = (uint16_t)old;
		*done = __atomic_compare_exchange_n((uint16_t *)(void *)p[0].host, &x, (uint16_t)desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		*expected = x;
		break;
	}
	case 4: {
		uint32_t x = (uint32_t)old;
		*done = __atomic_compare_exchange_n((uint32_t *)(void *)p[0].host, &x, (uint32_t)desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		*expected = x;
		break;
	}
	default:
		*done = __atomic_compare_exchange_n((uint64_t *)(void *)p[0].host, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		break;
	}
	mmu_host_wrote(v, p[0].host, len);
	return true;
}

bool mmu_fetch(struct soft_vcpu *sv, gva_t la, gpa_t *gpa, bool *global)
{
	struct vcpu *v = &sv->v;
	uint64_t page = la >> PAGE_SHIFT;
	/* user and supervisor translations of one page differ in what they permit */
	uint64_t key = page << 1 | (cpu_cpl(&v->s) == 3);
	struct fetch_entry *f = &sv->fetch[page & (ARRAY_LEN(sv->fetch) - 1)];
	struct walk w;

	if (f->page != key || f->gen != sv->ctlb_gen) {
		if (!mmu_walk(v, la, MMU_FETCH, &w))
			return false;
		*f = (struct fetch_entry){.page = key, .gpa = w.gpa & ~(PAGE_SIZE - 1), .gen = sv->ctlb_gen, .global = w.global};
	}
	*gpa = f->gpa | (la & (PAGE_SIZE - 1));
	*global = f->global;
	return true;
}

/* A walk that changes nothing: on a copy of the state with A/D bits ignored is not possible here, so entries are read by hand. */
bool mmu_debug_translate(struct vcpu *v, gva_t la, gpa_t *gpa)
{
	uint64_t table = v->s.cr3 & 0x000ffffffffff000, e;
	int shift = 39;

	if (!(v->s.cr0 & CR0_PG)) {
		*gpa = la;
		return true;
	}
	if (!cpu_long_mode(&v->s))
		return false;
	for (;; shift -= 9) {
		uint64_t *p = ram_ptr(v->cfg->ram, table + ((la >> shift) & 511) * 8, 8);

		if (!p || !((e = *p) & 1))
			return false;
		if (shift == 12 || ((e & BIT(7)) && shift <= 30))
			break;
		table = e & 0x000ffffffffff000;
	}
	*gpa = (e & 0x000ffffffffff000 & ~(BIT(shift) - 1)) | (la & (BIT(shift) - 1));
	return true;
}
