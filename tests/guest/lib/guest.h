/*
 * The runtime of the bare-metal guest images: what every image may use.
 *
 * An image is one C file with guest_main(), built for long mode (GUEST64) or 32-bit protected mode, entered by Multiboot 1,
 * one CPU, interrupts off. Low 1 GiB is mapped 1:1 for the supervisor, 3-4 GiB too (interrupt chips); user code runs at
 * user_base + its address, where the low 1 GiB appears again with U/S=1 (32-bit images without paging: user_base = 0).
 * TEST_VA.. (1 GiB..2 GiB) is left unmapped, for tests. The red zone is off; C code uses general registers only.
 *
 * Report: one line a check on COM1, `ok NAME` or `FAIL NAME: got G want W`, then a summary; then the debug-exit port gets
 * 0 (all passed) or 1.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef unsigned long ulong; /* the native word of the image */

#define BIT(n) (1ul << (n))
#define BIT64(n) (1ull << (n))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PAGE 4096ul
#define ALIGNED(n) __attribute__((aligned(n)))
#define NOINLINE __attribute__((noinline))

#define TEST_VA 0x40000000ul
#define LOW_BASE 0x8000ul /* 16-bit code is copied here; LOW_BASE..0x90000 is free RAM */

extern ulong user_base;
int guest_main(void);

/* --- selectors --- */
#ifdef __x86_64__
#define GUEST64 1
enum {
	KCS = 0x08, KDS = 0x10, KCS32 = 0x18, KCS16 = 0x20, KDS16 = 0x28,
	UCS32 = 0x33, UDS = 0x3b, UCS = 0x43, /* order fixed by SYSRET */
	SYSENTER_CS = 0x48, /* 0x48..0x70: code, data, user code 32, user data, user code 64, user data */
	SEL_FREE = 0x78,    /* 8 free descriptors: SEL_FREE + 8 * n */
	SEL_TSS = 0xb8, SEL_LDT = 0xc8,
};
#else
enum {
	KCS = 0x08, KDS = 0x10, UCS = 0x1b, UDS = 0x23, /* order fixed by SYSEXIT */
	KCS16 = 0x28, KDS16 = 0x30, CS_RING1 = 0x39, DS_RING1 = 0x41,
	SEL_FREE = 0x78,
	SEL_TSS = 0xb8, SEL_LDT = 0xc8,
};
#endif
extern u64 gdt[];
u64 seg_desc(u32 base, u32 limit, u8 access, u8 flags); /* access: P DPL S type; flags: G D L AVL (bits 3..0) */
static inline void gdt_set(u32 sel, u64 desc) { gdt[sel / 8] = desc; }

/* --- exceptions --- */
enum {
	EXC_DE = 0, EXC_DB = 1, EXC_NMI = 2, EXC_BP = 3, EXC_OF = 4, EXC_BR = 5, EXC_UD = 6, EXC_NM = 7, EXC_DF = 8,
	EXC_TS = 10, EXC_NP = 11, EXC_SS = 12, EXC_GP = 13, EXC_PF = 14, EXC_MF = 16, EXC_AC = 17, EXC_XM = 19,
	VEC_EXIT = 0x80, /* int $0x80: how user code comes back */
	NO_TRAP = -1,
};

struct frame {
#ifdef GUEST64
	ulong r15, r14, r13, r12, r11, r10, r9, r8;
	ulong di, si, bp, bx, dx, cx, ax;
#else
	ulong gs, fs, es, ds;
	ulong di, si, bp, sp_unused, bx, dx, cx, ax;
#endif
	ulong vector, error;
	ulong ip, cs, flags, sp, ss; /* 32-bit: sp and ss only when the CPL changed */
#ifndef GUEST64
	ulong v_es, v_ds, v_fs, v_gs; /* only out of virtual-8086 mode */
#endif
};

/* The last trap that TRAP or run_frame caught. */
struct trap {
	int vector; /* NO_TRAP: none */
	struct frame f;
	ulong cr2;
	ulong handler_sp; /* address of the frame: which stack the CPU took */
};
extern struct trap trap;
extern ulong trap_mark; /* set by MARK: the address of the marked instruction */

/* Asm text: "MARK insn" notes the address of insn in trap_mark, changing neither flags nor registers. */
#define MARK "movl $771f, trap_mark\n771: "

/* A hook runs in the handler; true: return to the interrupted code by IRET. It may change the frame. */
extern bool (*trap_hook[256])(struct frame *f);

int trap_arm(void) __attribute__((returns_twice));
int trap_disarm(void);
void trap_return(struct frame *f) __attribute__((noreturn));
/* Run statements; gives the vector of the exception that ended them, or NO_TRAP. Everything else is put back. */
#define TRAP(...)                                      \
	({                                             \
		if (!trap_arm()) {                     \
			__VA_ARGS__;                   \
			__asm__ volatile("" ::: "memory"); \
		}                                      \
		trap_disarm();                         \
	})

/* Go on at *f (any ring and mode) until a trap; VEC_EXIT is the normal end. */
int run_frame(struct frame *f);
/* A frame that starts user code at fn (an address of this image) with a stack of its own and IF=0. */
struct frame user_frame(const void *fn);
/* Run fn in ring 3 with a in rdi/edi, b in rsi/esi. */
int user_run(const void *fn, ulong a, ulong b);
static inline ulong user_ptr(const volatile void *p) { return (ulong)p + user_base; }
extern u8 user_stack[16384];
extern u8 ring0_stack[16384]; /* RSP0/ESP0 is its end */
extern u8 ist_stack[3][8192]; /* IST1 (#DF), IST2 (NMI), IST3 (free); 64-bit only */

/* A piece of code, named, reachable as an address; ends with int $0x80. */
#define CODE(name, text) \
	extern const char name[]; \
	__asm__(".text\n.globl " #name "\n" #name ":\n" text "\n\tint $0x80\n")
#define CODE32(name, text) CODE(name, ".code32\n" text "\n int $0x80\n .code64\n")

#ifdef GUEST64
struct tss {
	u32 res0;
	u64 rsp[3], res1, ist[7], res2;
	u16 res3, iomap;
	u8 bitmap[8192 + 1];
} __attribute__((packed));
#else
struct tss {
	u32 link, esp0, ss0, esp1, ss1, esp2, ss2, cr3, eip, eflags, gpr[8], es, cs, ss, ds, fs, gs, ldt;
	u16 trace, iomap;
	u8 bitmap[8192 + 1];
} __attribute__((packed));
#endif
extern struct tss tss;

/* Interrupt gate for vector; dpl, IST index (64-bit). idt_init made all 256 point at the stubs. */
struct gate {
#ifdef GUEST64
	u16 off0, sel;
	u8 ist, type;
	u16 off1;
	u32 off2, res;
#else
	u16 off0, sel;
	u8 ist, type;
	u16 off1;
#endif
};
extern struct gate idt[256];
void idt_set(unsigned vector, ulong target, u16 sel, u8 type, u8 ist); /* type: P DPL 0 type, e.g. 0x8e */
void idt_stub(unsigned vector, u8 type, u8 ist);

/* --- report --- */
void print(const char *fmt, ...) __attribute__((format(printf, 1, 2))); /* %s %d %u %x %lx %llx %c */
void check(bool ok, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void check_eq(u64 got, u64 want, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The last trap: its vector, and (error >= 0) its error code. */
void check_trap(int vector, long error, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The last trap's rip is the MARKed instruction's. */
void check_mark(const char *name);
void skip(const char *name, const char *why);
/* Many small cases under one name: only failures (the first 12) and the total are printed. */
void group_begin(const char *name);
void group_eq(u64 got, u64 want, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void group_end(void);
void guest_exit(int status) __attribute__((noreturn));

/* --- memory --- */
void *page_alloc(void); /* zeroed, from RAM after the image, never freed */
void *page_alloc_aligned(ulong bytes); /* bytes: a power of two; zeroed */
void *memset(void *d, int c, size_t n);
void *memcpy(void *d, const void *s, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* --- paging: entries of the current tables --- */
#define PTE_P BIT64(0)
#define PTE_W BIT64(1)
#define PTE_U BIT64(2)
#define PTE_A BIT64(5)
#define PTE_D BIT64(6)
#define PTE_PS BIT64(7)
#define PTE_G BIT64(8)
#define PTE_NX BIT64(63)
enum paging_mode { PAGING_NONE, PAGING_32, PAGING_PAE, PAGING_4L };
extern enum paging_mode paging_mode;
/* 32-bit images: build the standard map in the given mode and switch paging on. */
void paging_init(enum paging_mode mode);
/*
 * The entry for va at level (1: page table) of the tables at root (physical); tables above are made with P|W|U.
 * Entries are 4 bytes in PAGING_32: use pte_get/pte_set.
 */
void *pte_at(ulong root, ulong va, int level);
u64 pte_get(const volatile void *e);
void pte_set(volatile void *e, u64 v);
/* Map va in the current tables and INVLPG. */
void map_page(ulong va, u64 entry, int level);

/* --- instructions --- */
static inline void outb(u16 p, u8 v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(p)); }
static inline void outl(u16 p, u32 v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(p)); }
static inline u8 inb(u16 p)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(p));
	return v;
}
static inline u64 rdmsr(u32 m)
{
	u32 a, d;
	__asm__ volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m));
	return a | (u64)d << 32;
}
static inline void wrmsr(u32 m, u64 v) { __asm__ volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline u64 rdtsc(void)
{
	u32 a, d;
	__asm__ volatile("lfence; rdtsc" : "=a"(a), "=d"(d)::"memory");
	return a | (u64)d << 32;
}
#define DEF_CR(n)                                                                                      \
	static inline ulong read_cr##n(void)                                                           \
	{                                                                                              \
		ulong v;                                                                               \
		__asm__ volatile("mov %%cr" #n ", %0" : "=r"(v)::"memory");                            \
		return v;                                                                              \
	}                                                                                              \
	static inline void write_cr##n(ulong v) { __asm__ volatile("mov %0, %%cr" #n ::"r"(v) : "memory"); }
DEF_CR(0)
DEF_CR(2)
DEF_CR(3)
DEF_CR(4)
#ifdef GUEST64
DEF_CR(8)
#endif
#define DEF_DR(n)                                                                                      \
	static inline ulong read_dr##n(void)                                                           \
	{                                                                                              \
		ulong v;                                                                               \
		__asm__ volatile("mov %%db" #n ", %0" : "=r"(v)::"memory");                            \
		return v;                                                                              \
	}                                                                                              \
	static inline void write_dr##n(ulong v) { __asm__ volatile("mov %0, %%db" #n ::"r"(v) : "memory"); }
DEF_DR(0)
DEF_DR(1)
DEF_DR(2)
DEF_DR(3)
DEF_DR(6)
DEF_DR(7)
static inline void invlpg(ulong va) { __asm__ volatile("invlpg (%0)" ::"r"(va) : "memory"); }
static inline void flush_tlb(void) { write_cr3(read_cr3()); }
static inline void cpu_relax(void) { __asm__ volatile("pause" ::: "memory"); }
static inline ulong read_flags(void)
{
	ulong v;
	__asm__ volatile("pushf; pop %0" : "=r"(v)::"memory");
	return v;
}
static inline void write_flags(ulong v) { __asm__ volatile("push %0; popf" ::"r"(v) : "memory", "cc"); }
static inline void sti(void) { __asm__ volatile("sti" ::: "memory"); }
static inline void cli(void) { __asm__ volatile("cli" ::: "memory"); }

struct cpuid {
	u32 a, b, c, d;
};
static inline struct cpuid cpuid(u32 leaf, u32 sub)
{
	struct cpuid r;
	__asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(sub));
	return r;
}
bool cpu_is_amd(void); /* AuthenticAMD or HygonGenuine */
unsigned cpu_phys_bits(void);
static inline bool has_1g(void) { return cpuid(0x80000001, 0).d & BIT(26); }
static inline bool has_nx(void) { return cpuid(0x80000001, 0).d & BIT(20); }
static inline bool has_pcid(void) { return cpuid(1, 0).c & BIT(17); }
static inline bool has_x2apic(void) { return cpuid(1, 0).c & BIT(21); }
static inline bool has_deadline(void) { return cpuid(1, 0).c & BIT(24); }
static inline bool has_xsave(void) { return cpuid(1, 0).c & BIT(26); }
static inline bool has_avx(void) { return cpuid(1, 0).c & BIT(28); }
static inline bool has_leaf7b(int bit) { return cpuid(0, 0).a >= 7 && (cpuid(7, 0).b >> bit & 1); }
static inline bool has_smep(void) { return has_leaf7b(7); }
static inline bool has_smap(void) { return has_leaf7b(20); }
static inline bool has_invpcid(void) { return has_leaf7b(10); }
static inline bool has_fsgsbase(void) { return has_leaf7b(0); }
static inline bool has_umip(void) { return cpuid(0, 0).a >= 7 && (cpuid(7, 0).c & BIT(2)); }

#define FL_CF BIT(0)
#define FL_FIXED BIT(1)
#define FL_ZF BIT(6)
#define FL_TF BIT(8)
#define FL_IF BIT(9)
#define FL_DF BIT(10)
#define FL_OF BIT(11)
#define FL_IOPL3 (BIT(12) | BIT(13))
#define FL_NT BIT(14)
#define FL_RF BIT(16)
#define FL_VM BIT(17)
#define FL_AC BIT(18)
#define FL_ID BIT(21)

#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_PG BIT(31)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_PGE BIT(7)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)
#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NXE BIT(11)
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SFMASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define MSR_APIC_BASE 0x1bu

/* Page-fault error code */
#define PF_P 1
#define PF_W 2
#define PF_U 4
#define PF_RSVD 8
#define PF_I 16

#endif
