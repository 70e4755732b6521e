#include "engine/soft/cache/cache_int.h"

#include <cpuid.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/soft/copy.h"

#define SPARE_LIMIT 16

/* Zeroed memory, touched lazily. A memfd, so that /proc/PID/smaps tells the cache's index from the rest of the VMM. */
static void *reserve(size_t bytes)
{
	int fd = memfd_create("doppel-code-index", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, (off_t)bytes))
		p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (fd >= 0)
		close(fd);
	return p == MAP_FAILED ? NULL : p;
}

static bool host_misaligned_sse(void)
{
	unsigned a, b, ecx, d;

	return __get_cpuid(0x80000001, &a, &b, &ecx, &d) && (ecx & BIT(7));
}

struct code_cache *cache_new(struct soft_engine *e, size_t bytes, struct error *err)
{
	struct code_cache *c = reserve(sizeof(*c));
	int fd;

	if (!c) {
		error_set(err, "soft engine: out of memory for the code cache");
		return NULL;
	}
	c->engine = e;
	c->size = bytes;
	c->max_blocks = (uint32_t)(bytes / 128);
	c->max_links = c->max_blocks * 2;
	c->max_map = (uint32_t)(bytes / 16);
	c->max_steps = 65536;
	c->blocks = reserve(c->max_blocks * sizeof(*c->blocks));
	c->links = reserve(c->max_links * sizeof(*c->links));
	c->map = reserve(c->max_map * sizeof(*c->map));
	c->step_pool = reserve(c->max_steps * sizeof(*c->step_pool));
	c->pages = reserve((ram_size(e->cfg.ram) >> PAGE_SHIFT) * sizeof(*c->pages));
	fd = memfd_create("doppel-code", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)bytes) || !c->blocks || !c->links || !c->map || !c->step_pool || !c->pages) {
		error_set(err, "soft engine: cannot create a code cache of %zu bytes", bytes);
		return NULL;
	}
	c->rw = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	c->rx = mmap(NULL, bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	close(fd);
	if (c->rw == MAP_FAILED || c->rx == MAP_FAILED) {
		error_set(err, "soft engine: this host does not let a process map generated code executable");
		error_hint(err, "memfd pages need PROT_EXEC: look for noexec policies (SELinux execmem, a memfd_noexec sysctl)");
		return NULL;
	}
	c->misaligned_sse = host_misaligned_sse();
	translate_prologues(c);
	c->prologue_end = c->used;
	return c;
}

void cache_free(struct code_cache *c)
{
	if (!c)
		return;
	munmap(c->rw, c->size);
	munmap(c->rx, c->size);
	munmap(c->blocks, c->max_blocks * sizeof(*c->blocks));
	munmap(c->links, c->max_links * sizeof(*c->links));
	munmap(c->map, c->max_map * sizeof(*c->map));
	munmap(c->step_pool, c->max_steps * sizeof(*c->step_pool));
	munmap(c->pages, (ram_size(c->engine->cfg.ram) >> PAGE_SHIFT) * sizeof(*c->pages));
	munmap(c, sizeof(*c));
}

void cache_lock_wait(struct code_cache *c)
{
	while (atomic_exchange_explicit(&c->lock, 2, memory_order_acquire))
		syscall(SYS_futex, &c->lock, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
}

void cache_lock_wake(struct code_cache *c) { syscall(SYS_futex, &c->lock, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0); }

static unsigned block_hash(uint64_t pc, gpa_t gpa, uint32_t hflags)
{
	uint64_t h = ((hflags & HF_MODE) == MODE_64 ? gpa : gpa ^ pc << 20) * UINT64_C(0x9e3779b97f4a7c15);

	return (unsigned)(h >> (64 - BLOCK_HASH_BITS));
}

struct block *cache_lookup_locked(struct code_cache *c, uint64_t pc, gpa_t gpa, uint32_t hflags)
{
	struct block *b = c->hash[block_hash(pc, gpa, hflags)];

	while (b && !(b->gpa == gpa && b->hflags == hflags && (b->slot || b->pc == pc)))
		b = b->hash_next;
	return b;
}

static uint64_t ram_page(const struct code_cache *c, gpa_t gpa)
{
	uint64_t off = 0;

	ram_offset(c->engine->cfg.ram, gpa & ~(PAGE_SIZE - 1), &off);
	return off >> PAGE_SHIFT;
}

bool cache_watch_locked(struct code_cache *c, gpa_t gpa)
{
	struct soft_engine *e = c->engine;
	uint64_t n = ram_page(c, gpa);

	if (e->watch[n])
		return true;
	if (c->nwatched > MAX_PROTECTED) {
		c->flush_wanted = true;
		return false;
	}
	__atomic_store_n(&e->watch[n], 1, __ATOMIC_SEQ_CST);
	c->pages[n].nr = c->nwatched;
	c->watched[c->nwatched++] = n;
	if (!mprotect(e->ram_rw + (n << PAGE_SHIFT), PAGE_SIZE, PROT_READ))
		return true;
	c->flush_wanted = true;
	return false;
}

static void list_block(struct code_cache *c, struct block *b, unsigned which, gpa_t gpa, unsigned first, unsigned last)
{
	struct code_page *p = &c->pages[ram_page(c, gpa)];

	b->page_next[which] = p->blocks;
	p->blocks = b;
	for (unsigned i = first / 64; i <= last / 64; i++)
		p->chunks |= BIT(i);
}

void cache_insert_locked(struct code_cache *c, struct block *b)
{
	unsigned h = block_hash(b->pc, b->gpa, b->hflags), off = b->gpa & (PAGE_SIZE - 1);

	b->hash_next = c->hash[h];
	c->hash[h] = b;
	if (!b->crossing) {
		list_block(c, b, 0, b->gpa, off, off + b->guest_len - 1);
		return;
	}
	list_block(c, b, 0, b->gpa, off, PAGE_SIZE - 1);
	list_block(c, b, 1, b->gpa2, 0, (unsigned)(off + b->guest_len - 1 - PAGE_SIZE));
}

static uint32_t sum_more(uint32_t sum, const uint8_t *code, unsigned len)
{
	uint64_t s = sum;

	for (; len >= 8; code += 8, len -= 8)
		__asm__("crc32q %1, %0" : "+r"(s) : "rm"(get_le64(code)));
	for (; len; code++, len--)
		__asm__("crc32b %1, %0" : "+r"(s) : "rm"(*code));
	return (uint32_t)s;
}

uint32_t cache_code_sum(const uint8_t *code, unsigned len) { return sum_more(0, code, len); }

bool cache_block_intact(const struct code_cache *c, const struct block *b)
{
	struct ram *ram = c->engine->cfg.ram;
	uint8_t code[PAGE_SIZE + INSN_MAX_LEN];
	unsigned first = (unsigned)min_u64(b->guest_len, PAGE_SIZE - (b->gpa & (PAGE_SIZE - 1)));

	copy_bytes(code, ram_ptr(ram, b->gpa, first), first);
	if (first < b->guest_len)
		copy_bytes(code + first, ram_ptr(ram, b->gpa2, b->guest_len - first), b->guest_len - first);
	return cache_code_sum(code, b->guest_len) == b->guest_sum;
}

bool cache_contains(const struct code_cache *c, uint64_t host_pc)
{
	return host_pc - (uintptr_t)c->rx < c->size;
}

struct block *cache_find_host(struct code_cache *c, uint64_t host_pc)
{
	uint64_t off = host_pc - (uintptr_t)c->rx;
	uint32_t lo = 0, hi = atomic_load_explicit(&c->nblocks, memory_order_acquire);

	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;

		if (c->blocks[mid].host_off <= off)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (!lo || off - c->blocks[lo - 1].host_off >= c->blocks[lo - 1].host_len)
		return NULL;
	return &c->blocks[lo - 1];
}

const struct insn_map *cache_insn_at(struct code_cache *c, const struct block *b, uint64_t host_pc)
{
	uint32_t off = (uint32_t)(host_pc - (uintptr_t)c->rx - b->host_off), i = 0;
	const struct insn_map *m = &c->map[b->map_off];

	while (i + 1 < b->ninsn && m[i + 1].host_off <= off)
		i++;
	return &m[i];
}

/* at was made by e_align_field: the store is atomic toward those who run the code. */
static void patch32(struct code_cache *c, uint32_t at, uint32_t value)
{
	__atomic_store_n((uint32_t *)(void *)(c->rw + at), value, __ATOMIC_RELEASE);
}

static void patch_rel32(struct code_cache *c, uint32_t at, uint32_t target)
{
	patch32(c, at, target - (at + 4));
}

uint32_t cache_slot_locked(struct code_cache *c, gpa_t gpa)
{
	struct code_page *p = &c->pages[ram_page(c, gpa)];

	if (!p->slot) {
		p->slot = ++c->nslots; /* translate_room has looked */
		c->slot_pages[p->slot] = (uint32_t)ram_page(c, gpa);
	}
	return p->slot;
}

static void unlink_exit(struct code_cache *c, struct link *l)
{
	struct link **pp = &l->to->incoming;

	while (*pp != l)
		pp = &(*pp)->next;
	*pp = l->next;
	l->to = NULL;
	patch_rel32(c, l->patch_off, l->stub_off);
}

/* With many vCPUs one may be between a thunk's check and its jump: it never comes to lead to another page. */
static bool thunk_ok(struct code_cache *c, struct link *l, const struct block *to)
{
	if (c->engine->cfg.ncpus == 1 || !l->slot || l->slot == to->slot)
		return true;
	patch_rel32(c, l->tail_off, c->indirect);
	return false;
}

void cache_link_locked(struct soft_vcpu *sv, uint32_t link_no, struct block *to)
{
	struct code_cache *c = sv->cache;
	struct link *l = &c->links[link_no];

	if (l->to == to || l->from->dead || to->dead || (l->thunk_off && !thunk_ok(c, l, to)))
		return;
	if (l->to) /* the page is mapped elsewhere now */
		unlink_exit(c, l);
	if (to->crossing) { /* its second page may be mapped anew, which a thunk does not look at: only looked up */
		patch_rel32(c, l->tail_off, c->indirect);
		return;
	}
	if (!l->thunk_off) {
		patch_rel32(c, l->patch_off, to->host_off);
	} else {
		l->slot = to->slot;
		patch32(c, l->thunk_slot_off, (uint32_t)BASE_FIELD(to->slot));
		patch_rel32(c, l->thunk_jmp_off, to->host_off);
		patch_rel32(c, l->patch_off, l->thunk_off);
	}
	l->to = to;
	l->next = to->incoming;
	to->incoming = l;
	sv->stats.links++;
}

void block_kill_locked(struct code_cache *c, struct block *b)
{
	struct block **pp = &c->hash[block_hash(b->pc, b->gpa, b->hflags)];

	if (b->dead)
		return;
	b->dead = true;
	while (*pp != b)
		pp = &(*pp)->hash_next;
	*pp = b->hash_next;
	for (struct link *l = b->incoming; l; l = l->next) {
		patch_rel32(c, l->patch_off, l->stub_off);
		l->to = NULL;
	}
	b->incoming = NULL;
	for (uint64_t left = b->jc_vcpus; left; left &= left - 1)
		view_drop_block(c->engine->vcpus[__builtin_ctzll(left)], b);
}

void cache_promote(struct soft_vcpu *sv, struct block *b)
{
	struct code_cache *c = sv->cache;
	unsigned i = cache_hot_index(b->gpa);

	cache_lock(c);
	if (c->flushes == sv->hot_flushes && !b->dead && !b->region) {
		c->hot[i >> 3] |= (uint8_t)(1u << (i & 7));
		block_kill_locked(c, b);
	}
	cache_unlock(c);
}

/* n: page of RAM. False: it was not watched. */
static bool invalidate_locked(struct code_cache *c, uint64_t n)
{
	struct soft_engine *e = c->engine;
	struct code_page *p = &c->pages[n];
	struct block *b = p->blocks, *next;

	if (!e->watch[n])
		return false;
	for (; b; b = next) {
		/* a crossing block hangs in two lists: which link is this page's? */
		unsigned which = b->crossing && ram_page(c, b->gpa) != n;

		next = b->page_next[which];
		block_kill_locked(c, b);
	}
	c->nwatched--;
	c->watched[p->nr] = c->watched[c->nwatched];
	c->pages[c->watched[p->nr]].nr = p->nr;
	*p = (struct code_page){.slot = p->slot};
	__atomic_store_n(&e->watch[n], 0, __ATOMIC_SEQ_CST);
	if (mprotect(e->ram_rw + (n << PAGE_SHIFT), PAGE_SIZE, PROT_READ | PROT_WRITE))
		c->flush_wanted = true;
	return true;
}

void cache_invalidate_page(struct code_cache *c, gpa_t gpa)
{
	cache_lock(c);
	invalidate_locked(c, ram_page(c, gpa));
	cache_unlock(c);
}

bool cache_code_write(struct code_cache *c, gpa_t gpa, unsigned len)
{
	uint64_t n = ram_page(c, gpa);
	struct code_page *p = &c->pages[n];
	unsigned first = (gpa & (PAGE_SIZE - 1)) / 64, last = ((gpa & (PAGE_SIZE - 1)) + len - 1) / 64;
	bool hit = false, dropped;

	cache_lock(c);
	for (unsigned i = first; i <= last && i < 64; i++)
		hit |= !!(p->chunks & BIT(i));
	dropped = (hit || !p->blocks || ++p->spared > SPARE_LIMIT) && invalidate_locked(c, n);
	cache_unlock(c);
	return dropped;
}

static void flush_locked(struct code_cache *c)
{
	struct soft_engine *e = c->engine;

	if (c->nwatched)
		mprotect(e->ram_rw, ram_size(e->cfg.ram), PROT_READ | PROT_WRITE);
	for (uint32_t i = 0; i < c->nwatched; i++) {
		__atomic_store_n(&e->watch[c->watched[i]], 0, __ATOMIC_SEQ_CST);
		c->pages[c->watched[i]] = (struct code_page){0};
	}
	zero_bytes(c->hash, sizeof(c->hash));
	zero_bytes(c->steps, sizeof(c->steps));
	for (uint32_t i = 1; i <= c->nslots; i++)
		c->pages[c->slot_pages[i]].slot = 0;
	c->nblocks = c->nlinks = c->nmap = c->nsteps = c->nslots = c->nwatched = 0;
	c->used = c->prologue_end;
	c->flush_wanted = false;
	c->flushes++;
}

void cache_flush(struct soft_vcpu *sv)
{
	struct soft_engine *e = sv->v.engine;

	soft_stop_world(sv);
	cache_lock(sv->cache); /* devices do not stand still */
	flush_locked(sv->cache);
	if (e->steps_only)
		view_forget_all(sv);
	for (unsigned i = 0; !e->steps_only && i < e->cfg.ncpus; i++)
		view_forget_all(e->vcpus[i]);
	cache_unlock(sv->cache);
	soft_start_world(sv);
	sv->stats.flushes++;
}
