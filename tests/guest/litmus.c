/*
 * Memory order and atomicity between CPUs. Ordinary loads and stores are TSO: SDM vol. 3, 8.2.3 (each example there is a test
 * here); locked instructions are atomic wherever the operand lies: 8.1.2.
 */
#include "smp.h"

#define BATCH 256
#define ROUNDS 24

static struct barrier bar;
static unsigned nthreads;

/* One cell per line; x and y of a case lie in different ones. */
struct cell {
	volatile u32 v;
	u32 pad[15];
};
static struct cell x[BATCH] ALIGNED(4096), y[BATCH] ALIGNED(4096);
static volatile u32 r[4][BATCH];

static void clear(void)
{
	for (unsigned i = 0; i < BATCH; i++) {
		x[i].v = y[i].v = 0;
		r[0][i] = r[1][i] = r[2][i] = r[3][i] = 0;
	}
}

struct test {
	const char *name;
	unsigned threads;
	void (*thread)(unsigned t, unsigned i);
	bool (*forbidden)(unsigned i);
};

static inline void mfence(void) { __asm__ volatile("mfence" ::: "memory"); }
static inline u32 xchg(volatile u32 *p, u32 v)
{
	__asm__ volatile("xchgl %0, %1" : "+r"(v), "+m"(*p)::"memory");
	return v;
}

/* message passing: 8.2.3.2 */
static void mp(unsigned t, unsigned i)
{
	if (t == 0) {
		x[i].v = 1;
		y[i].v = 1;
	} else {
		r[0][i] = y[i].v;
		r[1][i] = x[i].v;
	}
}
static bool mp_bad(unsigned i) { return r[0][i] == 1 && r[1][i] == 0; }

/* load buffering: 8.2.3.3 */
static void lb(unsigned t, unsigned i)
{
	struct cell *a = t ? &y[i] : &x[i], *b = t ? &x[i] : &y[i];

	r[t][i] = a->v;
	b->v = 1;
}
static bool lb_bad(unsigned i) { return r[0][i] == 1 && r[1][i] == 1; }

/* store buffering with fences: 8.2.3.4 allows both 0 without */
static void sb(unsigned t, unsigned i)
{
	(t ? &y[i] : &x[i])->v = 1;
	mfence();
	r[t][i] = (t ? &x[i] : &y[i])->v;
}
static bool sb_bad(unsigned i) { return r[0][i] == 0 && r[1][i] == 0; }

/* the same by locked instructions: 8.2.3.9 */
static void sb_xchg(unsigned t, unsigned i)
{
	xchg(&(t ? &y[i] : &x[i])->v, 1);
	r[t][i] = (t ? &x[i] : &y[i])->v;
}

/* stores are seen in one order by all: 8.2.3.7 */
static void iriw(unsigned t, unsigned i)
{
	switch (t) {
	case 0:
		x[i].v = 1;
		break;
	case 1:
		y[i].v = 1;
		break;
	case 2:
		r[0][i] = x[i].v;
		r[1][i] = y[i].v;
		break;
	case 3:
		r[2][i] = y[i].v;
		r[3][i] = x[i].v;
		break;
	}
}
static bool iriw_bad(unsigned i) { return r[0][i] == 1 && r[1][i] == 0 && r[2][i] == 1 && r[3][i] == 0; }

static void two_two_w(unsigned t, unsigned i)
{
	(t ? &y[i] : &x[i])->v = 1;
	(t ? &x[i] : &y[i])->v = 2;
}
static bool two_two_w_bad(unsigned i) { return x[i].v == 1 && y[i].v == 1; }

/* causality: 8.2.3.6 */
static void wrc(unsigned t, unsigned i)
{
	switch (t) {
	case 0:
		x[i].v = 1;
		break;
	case 1:
		r[0][i] = x[i].v;
		if (r[0][i])
			y[i].v = 1;
		break;
	case 2:
		r[1][i] = y[i].v;
		r[2][i] = x[i].v;
		break;
	}
}
static bool wrc_bad(unsigned i) { return r[1][i] == 1 && r[2][i] == 0; }

/* a location never goes back */
static void corr(unsigned t, unsigned i)
{
	if (t == 0) {
		x[i].v = 1;
	} else {
		r[0][i] = x[i].v;
		r[1][i] = x[i].v;
	}
}
static bool corr_bad(unsigned i) { return r[0][i] == 1 && r[1][i] == 0; }

static const struct test tests[] = {
	{"message passing", 2, mp, mp_bad},	   {"load buffering", 2, lb, lb_bad},	  {"store buffering, MFENCE", 2, sb, sb_bad},
	{"store buffering, XCHG", 2, sb_xchg, sb_bad}, {"independent readers", 4, iriw, iriw_bad}, {"2+2W", 2, two_two_w, two_two_w_bad},
	{"write to read causality", 3, wrc, wrc_bad}, {"coherence of reads", 2, corr, corr_bad},
};

static void run_thread(unsigned cpu, void *arg)
{
	const struct test *t = arg;

	if (cpu >= t->threads)
		return;
	barrier_wait(&bar, t->threads);
	for (unsigned i = 0; i < BATCH; i++)
		t->thread(cpu, i);
	barrier_wait(&bar, t->threads);
}

static void litmus(void)
{
	for (unsigned n = 0; n < ARRAY_SIZE(tests); n++) {
		unsigned bad = 0;

		if (ncpus < tests[n].threads) {
			skip(tests[n].name, "more CPUs needed");
			continue;
		}
		for (unsigned round = 0; round < ROUNDS; round++) {
			clear();
			smp_all(run_thread, (void *)&tests[n]);
			for (unsigned i = 0; i < BATCH; i++)
				bad += tests[n].forbidden(i);
		}
		check_eq(bad, 0, "%s: forbidden outcomes", tests[n].name);
	}
}

/* --- locked instructions --- */

enum kind { K_INC, K_XADD, K_CMPXCHG, K_CMPXCHG8B, K_ADD8, K_XCHG, K_BTS, K_KINDS };
static const char *const kind_name[] = {"LOCK INC", "LOCK XADD", "LOCK CMPXCHG", "LOCK CMPXCHG8B", "LOCK ADDB", "XCHG spin lock", "LOCK BTS spin lock"};

static u8 arena[3 * 4096] ALIGNED(4096);

struct count {
	u8 *p;
	enum kind kind;
	u32 n;
};

static void bump(u8 *p, enum kind kind)
{
	volatile u32 *w = (volatile u32 *)p, *sum = (volatile u32 *)(arena + 64);
	u32 old;
	u64 old8, new8;
	bool taken;

	switch (kind) {
	case K_INC:
		__asm__ volatile("lock incl %0" : "+m"(*w)::"cc");
		break;
	case K_XADD:
		xadd(w, 1);
		break;
	case K_CMPXCHG:
		do {
			old = *w;
			__asm__ volatile("lock cmpxchgl %3, %1\nsete %0" : "=q"(taken), "+m"(*w), "+a"(old) : "r"(old + 1) : "memory", "cc");
		} while (!taken);
		break;
	case K_CMPXCHG8B:
		do {
			old8 = *(volatile u64 *)p;
			new8 = old8 + 1;
			__asm__ volatile("lock cmpxchg8b %1\nsete %0"
					 : "=q"(taken), "+m"(*(volatile u64 *)p)
					 : "a"((u32)old8), "d"((u32)(old8 >> 32)), "b"((u32)new8), "c"((u32)(new8 >> 32))
					 : "memory", "cc");
		} while (!taken);
		break;
	case K_ADD8:
		__asm__ volatile("lock addb $1, %0" : "+m"(*p)::"cc");
		break;
	case K_XCHG:
		while (xchg(w, 1))
			cpu_relax();
		++*sum;
		__asm__ volatile("" ::: "memory");
		*w = 0;
		break;
	default:
		do {
			__asm__ volatile("lock btsl $7, %1\nsetnc %0" : "=q"(taken), "+m"(*w)::"memory", "cc");
			if (!taken)
				cpu_relax();
		} while (!taken);
		++*sum;
		__asm__ volatile("lock btrl $7, %0" : "+m"(*w)::"memory", "cc");
		break;
	}
}

static void count_thread(unsigned cpu, void *arg)
{
	const struct count *c = arg;

	barrier_wait(&bar, ncpus);
	for (u32 i = 0; i < c->n; i++)
		bump(c->p, c->kind);
}

static void count(const char *where, u8 *p, u32 n)
{
	for (enum kind k = 0; k < K_KINDS; k++) {
		struct count c = {p, k, n};
		u64 got;

		memset(arena, 0, sizeof(arena));
		smp_all(count_thread, &c);
		got = k == K_CMPXCHG8B ? *(volatile u64 *)p : k == K_ADD8 ? *p : *(volatile u32 *)(k >= K_XCHG ? arena + 64 : p);
		check_eq(got, k == K_ADD8 ? (u8)(n * ncpus) : n * ncpus, "%s, %s", kind_name[k], where);
	}
}

/* CMPXCHG16B: both halves change together. */
static u64 pair[2] ALIGNED(16);
static volatile u32 torn;

static void pair_thread(unsigned cpu, void *arg)
{
	barrier_wait(&bar, ncpus);
	for (unsigned i = 0; i < 3000; i++) {
		u64 lo = 0, hi = 0, lo2, hi2;
		bool ok;

		do { /* compare with 0:0 reads */
			lo2 = lo + 1;
			hi2 = hi + 3;
			__asm__ volatile("lock cmpxchg16b %1\nsete %0"
					 : "=q"(ok), "+m"(pair), "+a"(lo), "+d"(hi)
					 : "b"(lo2), "c"(hi2)
					 : "memory", "cc");
			if (hi != lo * 3)
				torn = 1;
		} while (!ok);
	}
}

/* A locked access that crosses a page and aligned ones on its halves: none is lost. */
static void halves_thread(unsigned cpu, void *arg)
{
	u8 *edge = arena + 4096;

	barrier_wait(&bar, ncpus);
	for (unsigned i = 0; i < 500; i++) {
		if (cpu & 1)
			__asm__ volatile("lock addl $1, %0" : "+m"(*(u32 *)(edge + 4))::"cc");
		else
			__asm__ volatile("lock addq %1, %0" : "+m"(*(u64 *)(edge - 4)) : "r"(1ul) : "cc");
		__asm__ volatile("lock addl $1, %0" : "+m"(*(u32 *)(edge - 8))::"cc");
	}
}

static void atomics(void)
{
	unsigned even = (ncpus + 1) / 2;

	count("aligned", arena + 128, 4000);
	count("over a cache line", arena + 62 + 64, 1000);
	count("over a page", arena + 4096 - 2, 300);
	pair[0] = pair[1] = 0;
	smp_all(pair_thread, NULL);
	check_eq(pair[0], 3000 * ncpus, "CMPXCHG16B counts");
	check_eq(pair[1], 9000 * ncpus, "CMPXCHG16B, the other half");
	check_eq(torn, 0, "CMPXCHG16B is never torn");
	memset(arena, 0, sizeof(arena));
	smp_all(halves_thread, NULL);
	check_eq(*(u32 *)(arena + 4096 - 4), 500 * even, "a page-crossing counter beside others");
	check_eq(*(u32 *)(arena + 4096 - 8), 500 * ncpus, "the counter before it");
	check_eq(*(u32 *)(arena + 4096 + 4), 500 * (ncpus - even), "the counter behind it");
}

int guest_main(void)
{
	smp_prepare();
	check(smp_start(), "%u CPUs start", ncpus);
	nthreads = ncpus;
	litmus();
	atomics();
	return 0;
}
