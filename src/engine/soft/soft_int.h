/*
 * Inside the soft engine: the memory that translated code sees, address-space contexts, blocks, and who calls whom.
 *
 * Translated code runs with GS base = the addend table of the current context. At fixed negative distances from it lie
 * the context's private page(s) (jump cache) and the vCPU itself (one memfd, mapped once per context):
 *
 *   gs - CTX_OFF  jump cache and page bases (mmu/view.c), private to the context
 *                 a PROT_NONE page: alignment checks (CHECK_OFF) fault in it
 *   gs - VCPU_OFF struct soft_vcpu, shared
 *   gs            addend table: one 8-byte addend per guest page, 2^36 entries (512 GiB reserved, touched lazily)
 *
 * Addend table. Entry i holds A so that gva + A is a host address. i = bits 12..47 of gva (PEXT), which bounds the
 * load for every gva. A filled entry maps into the guest's RAM view; an unfilled one is poison: A = Z - (sign-extended i << 12),
 * so that the sum is Z + page offset, a guard page. When bits 48..63 of gva do not match bit 47 the sum is off by k * 2^48, not canonical
 * on the host: the CPU faults, which is the guest's #GP. A table page is PROT_NONE until it has been filled with its poisons.
 *
 * Registers in translated code: guest GPRs are in the host's, but r9, r10, r11, which live in v.s.gpr[] and are the
 * scratch registers T2, T1, T0. Arithmetic flags are in RFLAGS, all others in v.s.rflags (DF too: host DF is always 0).
 */
#ifndef ENGINE_SOFT_INT_H
#define ENGINE_SOFT_INT_H

/*
 * The jump cache has two places for a pc, chosen by two selections of its bits (15 each): functions at equal offsets of
 * different 32 KiB would otherwise push each other out all the time.
 */
#define JC_MASK1 0x7fffu
#define JC_MASK2 0x7ff0f0u

/* Byte distances below GS; also used by entry.c. */
#define VCPU_OFF 0x10000
#define JC_ENTRIES 32768
#define CODE_SLOTS 32768
#define CTX_PRIV_SIZE (JC_ENTRIES * 16 + CODE_SLOTS * 8)
#define HOLE_SIZE 0x1000 /* PROT_NONE, between the private pages and the vCPU */
#define CTX_OFF (VCPU_OFF + HOLE_SIZE + CTX_PRIV_SIZE)
/* Alignment check: a load from here + 8 * (misaligned part of the address) succeeds for 0 and hits the hole otherwise. */
#define CHECK_OFF (VCPU_OFF + HOLE_SIZE + 8)
#define JC_NEG_OFF CTX_OFF                          /* int64: minus pc */
#define JC_HOST_OFF (CTX_OFF - JC_ENTRIES * 8)      /* host address */
#define BASE_OFF (CTX_OFF - JC_ENTRIES * 16)        /* uint64: by code slot, 1 + guest address of the page there; 0: unknown */

#define T0 11
#define T1 10
#define T2 9

#ifndef __ASSEMBLER__

#include <signal.h>
#include <time.h>

#include "engine/soft/translate/decode.h"
#include "engine/soft/vcpu.h"
#include "engine/soft/rendezvous.h"

#define SOFT_MAX_CPUS 64

#define TABLE_BYTES (BIT(36) * 8)
#define TABLE_PAGE_ENTRIES 512

enum ctx_kind { CTX_USER, CTX_KERNEL, CTX_KERNEL_AC, CTX_KINDS };
#define CTX_SLOTS 8 /* PCIDs held at the same time, at most: soft_engine.slots */

/* One touched page of an addend table. */
struct table_page {
	uint32_t number; /* index >> 9 */
	bool nonglobal;  /* holds entries that a non-global flush must drop */
	bool used;       /* holds filled entries at all */
};

#define JC_LOG 2048

#define VIEW_SEEN 4096
#define VIEW_KINDS 2 /* user; supervisor: for both of its contexts */

/* mmu/view.c: bookkeeping of jump cache and page bases */
struct code_view {
	uint8_t *gs;     /* of a context that has them in its private pages. NULL: unused */
	uint32_t hflags; /* mode that the jump cache's entries were made in */
	bool jc_nonglobal, jc_used;
	bool absolute;   /* blocks without a slot are in the jump cache */
	uint16_t jc_log[JC_LOG]; /* the places filled since the jump cache was emptied, while there are few */
	unsigned njc_log, nfilled, cap;
	uint32_t *filled; /* slots whose base is known */
	uint64_t global[CODE_SLOTS / 64];
	uint64_t seen[VIEW_SEEN / 64]; /* guest pages with a base, hashed */
};

struct tlb_ctx {
	uint8_t *gs; /* GS base: the table */
	struct code_view *view;
	bool huge; /* filled from a page larger than 2 MiB since it was last emptied */
	uint32_t npages, cap;
	struct table_page *pages;
	uint32_t *set; /* open-addressing set of touched page numbers -> index + 1 in pages; set_size is a power of 2 */
	uint32_t set_size;
};

/* Mode of a block: what translation depends on. Derived from the state by soft_hflags. */
#define HF_MODE 3u /* enum insn_cpu_mode */
#define HF_SS32 BIT(2)
#define HF_FLAT_SHIFT 3 /* 6 bits, by segment number: base 0 and limit 4 GiB - 1, expand-up, usable */
#define HF_FLATLIM_SHIFT 9 /* 6 bits: limit 4 GiB - 1, any base */
#define HF_X87 BIT(15)
#define HF_SSE BIT(16)
#define HF_AVX BIT(17)
#define HF_AVX512 BIT(18)
#define HF_PE BIT(19)
#define HF_CPL0 BIT(20)
#define HF_IOPL_OK BIT(21)
#define HF_SMAP BIT(22)
#define HF_TS_WAIT BIT(23) /* WAIT raises #NM */
#define HF_ALIGN BIT(24) /* #AC checks are on */
#define HF_TSC BIT(25) /* RDTSC is allowed */
#define HF_FSGSBASE BIT(26)

struct link;

struct block {
	/* what a look-up reads */
	uint64_t pc; /* when translated; with a slot, it runs wherever its page is mapped: block_pc */
	gpa_t gpa;
	struct block *hash_next;
	uint32_t hflags;
	uint32_t slot, slot2; /* code slots of its pages; 0: its host code holds addresses, and pc is where it runs */

	gpa_t gpa2; /* second page of a block whose only instruction crosses a page end, else ~0 */
	uint32_t host_off, host_len;
	uint16_t guest_len, ninsn;
	uint32_t guest_sum; /* of its guest_len bytes */
	uint64_t jc_vcpus;  /* whose jump caches it was put into */
	bool dead;
	bool crossing;
	bool region;
	struct block *page_next[2];
	struct link *incoming;
	uint32_t map_off; /* first of ninsn entries in cache->map */
};

/* host code of instruction i starts at host_off and stands for guest pc block_pc + guest_off */
struct insn_map {
	uint32_t host_off; /* from the block's start */
	uint16_t guest_off;
	uint8_t dirty; /* a bit for each of r9, r10, r11: the host's register holds it at that point, memory an older value */
	bool reused;   /* takes the addend from an instruction before it: cannot be started again alone */
};

/* A direct exit of a block. */
struct link {
	uint64_t target;
	uint32_t slot; /* that its thunk checked last */
	struct block *from, *to;
	struct link *next; /* in to->incoming */
	uint32_t patch_off;  /* cache offset of the rel32 that takes the exit */
	uint32_t stub_off;   /* where it goes when unlinked */
	uint32_t thunk_off;  /* checks the page's mapping: patch_off goes here when linked; 0 for a link within the page */
	uint32_t thunk_slot_off, thunk_jmp_off; /* disp32 and rel32 in the thunk */
	uint32_t tail_off;   /* rel32 at the end of the stub: exit_chain, or the jump-cache look-up for what cannot be linked */
};

struct code_cache;
struct soft_vcpu;

#define REQ_KICK 1u
#define REQ_TIMER 2u
#define REQ_IRQ 4u
#define REQ_NMI 8u
#define REQ_INIT 16u
#define REQ_SIPI 32u
#define REQ_PAUSE 64u /* someone stops the world */
#define REQ_UNHALT 128u
#define REQ_HOT 256u /* sv->hot_block was seen running */

enum soft_exit_reason {
	SX_LOOKUP, /* rip = T0: no jump-cache entry */
	SX_CHAIN,  /* rip = T0, exit_arg = link number */
	SX_SLOW,   /* rip = T0: execute this instruction in C */
	SX_POLL,   /* rip set by the signal handler: look at requests */
	SX_FAULT,  /* rip and v.exc set by the signal handler */
	SX_STEP,   /* a step stub has ended */
};

#define BOUNCE_SIZE 4096

/* Counters, cheap enough to be always on. */
struct soft_stats {
	uint64_t entries, lookups, chains, slow, polls, faults, fills, large_fills, table_pages, translations, insns, flushes, smc, sig_segv,
		jc_clears, interrupts, halts, links, invalidations;
	uint64_t slow_kind[INSN_KIND_COUNT];
};

/*
 * Where the time goes (stats.c). A timer on the thread's CPU time interrupts it 100 times a second; the time since the last sample
 * is booked to where it was. While halted it uses no CPU time and is not interrupted.
 */
struct soft_time {
	uint64_t user, kernel, vmm, idle; /* ns */
	uint64_t last;                    /* CPU time at the last sample */
	int64_t halted;                   /* clock_now when it halted, 0: it runs */
	timer_t timer;
	bool timer_ok;
};

struct soft_vcpu {
	struct vcpu v; /* first */

	/* Read and written by translated code. */
	uint64_t host_rsp;
	uint64_t entry;        /* host address that soft_enter jumps to */
	uint64_t exit_reason, exit_arg;
	uint64_t run_flags;    /* flags image to load, and as saved at exit (arithmetic only matters) */
	const void *_Atomic poll_ptr;     /* safepoint: readable, or a PROT_NONE page when something was requested */
	const void *_Atomic irq_poll_ptr; /* the same for "an interrupt waits, IF aside": read after STI */
	uint64_t mask_page, mask_jc, mask_jc2, mask_fff, mask_1000, mask_align[7]; /* PEXT masks; mask_align[log2 size] = size - 1 */
	uint64_t mask_high[7]; /* PDEP masks: puts the log2 size low bits of an address to the top */
	uint64_t mask_not_if, mask_not_ac, mask_not_df, mask_sys, mask_ff00, mask_of, mask_df, mask_count;
	uint64_t gs_kernel, gs_kernel_ac; /* table bases that STAC/CLAC switch to */
	uint64_t xsave_mask;   /* XCR0 of the host, less what the guest may not see */
	uint64_t step_ptr;     /* T0 at entry of a step stub */
	uint64_t pauses;       /* PAUSE instructions left until the thread yields */
	uint64_t poll_ok_word;
	uint64_t exit_fn, exit_signal_fn; /* entry.c */

	/* C only from here. */
	uint8_t *self;         /* VMM's mapping of this structure */
	struct tlb_ctx *ctx;
	struct tlb_ctx ctxs[CTX_SLOTS][CTX_KINDS];
	struct code_view views[CTX_SLOTS][VIEW_KINDS];
	uint16_t slot_pcid[CTX_SLOTS];
	bool slot_valid[CTX_SLOTS];
	uint64_t slot_used[CTX_SLOTS];
	uint64_t slot_clock;
	unsigned slot;
	uint32_t table_pages; /* touched, in all contexts */
	uint32_t hflags;
	bool hflags_stale;
	uint8_t data_hits;     /* DR0-3 whose data breakpoint the current instruction hit */
	bool stepping;         /* a step stub runs: guest pc is v.s.rip */
	struct { uint64_t host; gva_t la; unsigned times; } refill; /* the last repaired access: see memory_fault */

	/* Requests from other threads and signal handlers. */
	atomic_uint requests; /* REQ_* */
	atomic_uint wake; /* futex word of the halted vCPU */
	atomic_bool waiting;
	atomic_uint sipi_vector; /* of REQ_SIPI */
	atomic_bool unhalted;    /* KVM_HC_KICK_CPU: the next HLT, or this one, ends at once */
	int64_t last_yield;      /* spin_wait */
	unsigned yields;
	int64_t run_since, idle; /* what steal time is reckoned from: ns of the host's clock; ns spent waiting */
	int64_t stolen;
	uint8_t *bad_page;     /* PROT_NONE */
	uint8_t *masked_pages; /* readable, PROT_NONE, PROT_NONE, readable: operands of masked instructions over inaccessible pages */
	uint64_t step_fault;   /* host address that a step stub faulted at, 0: none */
	struct vcpu_timer { /* what makes this thread run a timer queue */
		timer_t timer;
		bool ok;
	} lapic_timer, device_timer /* of vCPU 0 */;
	struct block *hot_block; /* while the cache's flushes are hot_flushes */
	uint32_t hot_flushes;
	int tid;
	uint8_t *altstack;

	/* Fetch translations and linear-to-host translations for C, direct-mapped, valid while gen matches. */
	struct fetch_entry { uint64_t page; gpa_t gpa; uint32_t gen; bool global; } fetch[256];
	struct data_entry { uint64_t page; uint8_t *host; gpa_t gpa; uint32_t gen; uint32_t perm; } data[512];
	struct decoded { uint8_t bytes[16]; struct insn in; } decoded[64]; /* the slow path's last instructions; len 0: none */
	uint32_t ctlb_gen;
	uint64_t last_cr3;

	struct code_cache *cache;
	struct soft_stats stats;
	struct soft_time time;
	uint8_t bounce[BOUNCE_SIZE + 128] __attribute__((aligned(64)));
	struct { uint64_t rip, cr2; uint32_t error; uint8_t vector; } exc_log[8]; /* last exceptions delivered, for reports */
	unsigned exc_count;
	struct { uint64_t rip, la, cr3; bool valid; } faulted; /* the last #PF of an access that was delivered: see restart */
	char error[2048];
};
_Static_assert(sizeof(struct soft_vcpu) > 0, "");

static inline struct soft_vcpu *soft_vcpu(struct vcpu *v) { return (struct soft_vcpu *)v; }

struct soft_engine {
	struct engine e; /* first */
	struct engine_config cfg;
	struct irqchip *irqchip;
	struct soft_vcpu **vcpus;
	struct code_cache *cache;
	uint8_t *ram_rw;  /* the guest's view: pages with translated code are PROT_READ */
	uint8_t *ram_ro;  /* the same pages, PROT_READ: pages that are clean or not writable */
	uint8_t *guard;   /* Z: four PROT_NONE pages */
	uint8_t *watch;   /* ram_watch_map */
	struct rendezvous rendezvous;
	struct timer_queue *lapic_timers; /* of each vCPU: its LAPIC's timer runs in its own thread */
	unsigned slots;       /* of each vCPU */
	uint32_t table_pages; /* limit of each vCPU */
	bool steps_only; /* of a completer: no translated blocks, so no addend tables */
};

/* engine.c: a vCPU of e, whose cfg and cache are set. NULL: err; what was made is leaked. */
struct soft_vcpu *soft_vcpu_new(struct soft_engine *e, unsigned index, struct error *err);
void soft_vcpu_free(struct soft_vcpu *sv);
bool soft_host_ok(struct error *err);

/* mmu/walk.c */
struct walk {
	gpa_t gpa;       /* of la */
	unsigned shift;  /* log2 of the page size: 12, 21, 22, 30 */
	bool writable;   /* a write is allowed by permissions now */
	bool dirty;      /* D is set (or paging is off) */
	bool user;       /* U/S of all levels */
	bool global;
	const uint64_t *table; /* 4 KiB page of 8-byte entries: the page table that held the leaf, else NULL */
	bool table_writable, table_user; /* rights of the levels above it */
};
/* flags as in mmu.h. Sets A (and D for a write). False: #PF raised in v. */
bool mmu_walk(struct vcpu *v, gva_t la, unsigned flags, struct walk *w);

/* mmu/table.c: addend tables and contexts */
bool table_init(struct soft_vcpu *sv, int vcpu_fd, struct error *err);
void table_fini(struct soft_vcpu *sv);
enum fill_result { FILL_OK, FILL_FAULT /* exception raised */, FILL_MMIO, FILL_CODE /* translated code: use the slow path */ };
/* Make the access to la fast if it can be. */
enum fill_result table_fill(struct soft_vcpu *sv, gva_t la, bool write);
/* An access to la is likely to come: like table_fill for a read, but raises nothing. Sets A, as a CPU may at any time. */
void table_prefill(struct soft_vcpu *sv, gva_t la);
/* addr lies in a table of this vCPU: fill that table page with poisons. False: not a table address. */
bool table_touch(struct soft_vcpu *sv, uint64_t addr);
void table_select(struct soft_vcpu *sv); /* choose ctx from CR3, CPL, AC */

/* mmu/view.c */
void view_init(struct code_view *w, uint8_t *gs);
void view_fini(struct code_view *w);
/* b may run at pc, whose page is mapped so now, in the current context. Lock of the code cache held. */
void view_add(struct soft_vcpu *sv, struct block *b, uint64_t pc, bool global);
/* Host code for pc by the jump cache; NULL: not there. */
const void *view_find(struct soft_vcpu *sv, uint64_t pc);
/* Guest address of b, which runs in the current context. */
uint64_t block_pc(const struct soft_vcpu *sv, const struct block *b);
void view_flush(struct soft_vcpu *sv, struct code_view *w, bool keep_global);
void view_flush_page(struct soft_vcpu *sv, struct code_view *w, gva_t la);
void view_set_mode(struct soft_vcpu *sv, struct code_view *w, uint32_t hflags);
void view_drop_block(struct soft_vcpu *sv, const struct block *b); /* out of all jump caches; any thread */
void view_forget_all(struct soft_vcpu *sv); /* any thread while the world stands still */

/* mmu/mmu.c */
/* gpa of the instruction byte at la; false: #PF raised. */
bool mmu_fetch(struct soft_vcpu *sv, gva_t la, gpa_t *gpa, bool *global);
uint64_t phys_read(struct vcpu *v, gpa_t gpa, unsigned size);
void phys_write(struct vcpu *v, gpa_t gpa, unsigned size, uint64_t value);

/* cache/cache.c */
struct code_cache *cache_new(struct soft_engine *e, size_t bytes, struct error *err);
void cache_free(struct code_cache *c);
struct block *cache_find_host(struct code_cache *c, uint64_t host_pc); /* by RX address; NULL: not in a block */
/* The instruction whose host code holds host_pc. */
const struct insn_map *cache_insn_at(struct code_cache *c, const struct block *b, uint64_t host_pc);
bool cache_contains(const struct code_cache *c, uint64_t host_pc);
/* Drop everything; stops the world. */
void cache_flush(struct soft_vcpu *sv);
/* b is worth a better translation. */
void cache_promote(struct soft_vcpu *sv, struct block *b);
/* Drop the blocks of a page; unprotects it. Any thread. */
void cache_invalidate_page(struct code_cache *c, gpa_t gpa);
/* len bytes of a page with code were written, not through ram_rw: drops what it must. True: the page's blocks. Any thread. */
bool cache_code_write(struct code_cache *c, gpa_t gpa, unsigned len);

/* DF is kept in v.s.rflags, never in the host's: these two natives are not run as such. */
static inline bool insn_is_cld_std(const struct insn *in)
{
	return in->enc == ENC_LEGACY && in->map == 0 && (in->op == 0xfc || in->op == 0xfd);
}

static inline bool insn_is_pause(const struct insn *in)
{
	return in->enc == ENC_LEGACY && in->map == 0 && in->op == 0x90 && in->rep == 0xf3 && in->kind == INSN_NATIVE;
}
#define PAUSES_PER_YIELD 1024

/* AVX512-FP16: EVEX maps 5 and 6, and map 3 without prefix or with F3. */
static inline bool insn_is_fp16(const struct insn *in)
{
	return in->enc == ENC_EVEX && (in->map >= 5 || (in->map == 3 && (in->pp == 0 || in->pp == 2)));
}

/* translate/translate.c */
bool translate_room(const struct code_cache *c);
/* With the lock of the code cache held, and room in it. NULL: exception raised, or cache->flush_wanted is set and there is none. */
struct block *translate_locked(struct soft_vcpu *sv, uint64_t pc, gpa_t gpa);
/* Host code that runs the one NATIVE instruction with its memory operand at [T0], then exits with SX_STEP. May flush the cache. */
void *translate_step(struct soft_vcpu *sv, const struct insn *in, const uint8_t *bytes);
void translate_prologues(struct code_cache *c);

/* dispatch.c */
enum engine_exit soft_run(struct soft_vcpu *sv);
/* One instruction with all that hangs on instruction boundaries (shadows, RF, TF, breakpoints); its fault is delivered. */
void soft_step(struct soft_vcpu *sv);
uint32_t soft_hflags(const struct vcpu *v);
/* Any thread and signal handlers: make the vCPU leave translated code (or wake from HLT) and look at requests. */
void soft_request(struct soft_vcpu *sv, unsigned req);
bool soft_fetch_insn(struct soft_vcpu *sv, struct insn *in, uint8_t bytes[16]);
/* No other vCPU runs until soft_start_world: rendezvous.h. Not with a lock held. */
void soft_stop_world(struct soft_vcpu *sv);
void soft_start_world(struct soft_vcpu *sv);

/* stats.c */
void soft_stats_put(struct engine *e, unsigned vcpu, const struct counter_sink *out);
void time_start(struct soft_vcpu *sv); /* in the vCPU's thread */
void time_stop(struct soft_vcpu *sv);
void time_sample(struct soft_vcpu *sv, const void *host_pc); /* from the timer's signal: the thread was at host_pc */
void time_halt(struct soft_vcpu *sv, bool begin);

/* signal.c */
bool signals_init(struct soft_vcpu *sv, struct error *err);
void signals_thread_init(struct soft_vcpu *sv);
void signals_thread_fini(struct soft_vcpu *sv); /* any thread, once the vCPU's has ended */
/*
 * The same for a thread that only borrows the vCPU for some steps: no other signal may come while the guest's rsp is
 * loaded, as its handler may not run on the alternate stack. leave restores what was.
 */
struct signals_saved {
	stack_t stack;
	sigset_t mask;
};
void signals_borrow(struct soft_vcpu *sv, struct signals_saved *old);
void signals_return(const struct signals_saved *old);

/* translate/entry.c */
void soft_enter(struct soft_vcpu *sv);
void soft_exit(void);        /* T0 = rip */
void soft_exit_signal(void); /* s.rip is set */
#define SOFT_SIGNAL (SIGRTMIN + 3)

static inline uint64_t read_gs(void)
{
	uint64_t v;

	__asm__ volatile("rdgsbase %0" : "=r"(v));
	return v;
}
static inline void write_gs(uint64_t v) { __asm__ volatile("wrgsbase %0" : : "r"(v)); }

/* STAC and CLAC switch the table in translated code: make sv->ctx say what GS says. */
static inline void ctx_sync(struct soft_vcpu *sv)
{
	uint64_t gs = read_gs();

	if (gs != (uintptr_t)sv->ctx->gs)
		sv->ctx = &sv->ctxs[sv->slot][gs == sv->gs_kernel_ac ? CTX_KERNEL_AC : CTX_KERNEL];
}

#endif
#endif
