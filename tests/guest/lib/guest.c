/* Console, checks, memory and start of an image. */
#include <stdarg.h>

#include "guest.h"

void guest_start(void);
void trap_init(void);

static unsigned n_ok, n_fail, n_skip;
static const char *group_name;
static unsigned group_n, group_bad;

static void put(char c)
{
	while (!(inb(0x3f8 + 5) & 0x20))
		;
	outb(0x3f8, (u8)c);
}

static void put_hex(u64 v)
{
	int shift = 60;

	while (shift > 0 && !(v >> shift))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[v >> shift & 15]);
}

static void put_dec(u32 v)
{
	char b[12];
	int n = 0;

	do
		b[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		put(b[--n]);
}

static void vprint(const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		int l = 0;
		if (*fmt != '%') {
			put(*fmt);
			continue;
		}
		while (*++fmt == 'l')
			l++;
		switch (*fmt) {
		case 's':
			for (const char *s = va_arg(ap, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)va_arg(ap, int));
			break;
		case 'd': {
			int v = va_arg(ap, int);
			if (v < 0)
				put('-');
			put_dec(v < 0 ? -(u32)v : (u32)v);
			break;
		}
		case 'u':
			put_dec(va_arg(ap, u32));
			break;
		case 'x':
			put_hex(l == 2 ? va_arg(ap, u64) : l ? va_arg(ap, ulong) : va_arg(ap, u32));
			break;
		default:
			put(*fmt);
		}
	}
}

void print(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vprint(fmt, ap);
	va_end(ap);
}

static void report(bool ok, u64 got, u64 want, const char *fmt, va_list ap)
{
	print(ok ? "ok " : "FAIL ");
	vprint(fmt, ap);
	if (!ok)
		print(": got 0x%llx want 0x%llx", got, want);
	print("\n");
	ok ? n_ok++ : n_fail++;
}

void check(bool ok, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(ok, ok, 1, fmt, ap);
	va_end(ap);
}

void check_eq(u64 got, u64 want, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	report(got == want, got, want, fmt, ap);
	va_end(ap);
}

void check_trap(int vector, long error, const char *fmt, ...)
{
	va_list ap;
	bool ok = trap.vector == vector && (error < 0 || trap.f.error == (ulong)error);

	print(ok ? "ok " : "FAIL ");
	va_start(ap, fmt);
	vprint(fmt, ap);
	va_end(ap);
	if (!ok)
		print(": got vector %d error 0x%lx rip 0x%lx want vector %d error 0x%lx", trap.vector,
		      trap.vector < 0 ? 0 : trap.f.error, trap.vector < 0 ? 0 : trap.f.ip, vector, (ulong)error);
	print("\n");
	ok ? n_ok++ : n_fail++;
}

void check_mark(const char *name) { check_eq(trap.f.ip, trap_mark, "%s: rip", name); }

void skip(const char *name, const char *why)
{
	print("skip %s: %s\n", name, why);
	n_skip++;
}

void group_begin(const char *name)
{
	group_name = name;
	group_n = group_bad = 0;
}

void group_eq(u64 got, u64 want, const char *fmt, ...)
{
	va_list ap;

	group_n++;
	if (got == want || group_bad++ >= 12)
		return;
	print("  case %s ", group_name);
	va_start(ap, fmt);
	vprint(fmt, ap);
	va_end(ap);
	print(": got 0x%llx want 0x%llx\n", got, want);
}

void group_end(void)
{
	if (group_bad) {
		print("FAIL %s: got %u bad of %u cases want 0\n", group_name, group_bad, group_n);
		n_fail++;
	} else {
		print("ok %s (%u cases)\n", group_name, group_n);
		n_ok++;
	}
}

void guest_exit(int status)
{
	while (!(inb(0x3f8 + 5) & 0x40)) /* all sent */
		;
	for (;;)
		outl(0xf4, (u32)status);
}

void *memset(void *d, int c, size_t n)
{
	for (u8 *p = d; n--;)
		*p++ = (u8)c;
	return d;
}

void *memcpy(void *d, const void *s, size_t n)
{
	u8 *p = d;
	for (const u8 *q = s; n--;)
		*p++ = *q++;
	return d;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const u8 *p = a, *q = b;
	for (; n--; p++, q++)
		if (*p != *q)
			return *p - *q;
	return 0;
}

bool cpu_is_amd(void)
{
	u32 b = cpuid(0, 0).b;
	return b == 0x68747541 || b == 0x6f677948; /* "Auth", "Hygo" */
}

unsigned cpu_phys_bits(void) { return cpuid(0x80000000, 0).a >= 0x80000008 ? cpuid(0x80000008, 0).a & 0xff : 36; }

void guest_start(void)
{
	int status;

	trap_init();
#ifdef GUEST64
	user_base = 0x80000000;
	paging_mode = PAGING_4L;
#endif
	status = guest_main();
	print("summary: %u ok, %u failed, %u skipped\n", n_ok, n_fail, n_skip);
	guest_exit(status || n_fail);
}
