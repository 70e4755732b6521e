#include "boot/aml.h"

#include <assert.h>
#include <string.h>

enum {
	AML_OP_ZERO = 0x00,
	AML_OP_ONE = 0x01,
	AML_OP_NAME = 0x08,
	AML_OP_BYTE = 0x0a,
	AML_OP_WORD = 0x0b,
	AML_OP_DWORD = 0x0c,
	AML_OP_STRING = 0x0d,
	AML_OP_QWORD = 0x0e,
	AML_OP_SCOPE = 0x10,
	AML_OP_BUFFER = 0x11,
	AML_OP_PACKAGE = 0x12,
	AML_OP_EXT = 0x5b,
	AML_OP_EXT_DEVICE = 0x82,
};

void aml_init(struct aml *a, void *buf, size_t size) { *a = (struct aml){.buf = buf, .size = size}; }

static void put(struct aml *a, const void *data, size_t len)
{
	if (a->full || len > a->size - a->len) {
		a->full = true;
		return;
	}
	memcpy(a->buf + a->len, data, len);
	a->len += len;
}

static void put8(struct aml *a, uint8_t v) { put(a, &v, 1); }

static void put_path(struct aml *a, const char *path) { put(a, path, strlen(path)); }

/* PkgLength counts itself: 1 byte up to 63, else a lead byte with the low 4 bits and the count of those that follow. */
static size_t pkg_length(uint8_t out[4], size_t content)
{
	size_t bytes = content + 1 < 0x40 ? 1 : content + 2 < 0x1000 ? 2 : 3, v = content + bytes;

	if (bytes == 1) {
		out[0] = (uint8_t)v;
		return 1;
	}
	out[0] = (uint8_t)((bytes - 1) << 6 | (v & 0xf));
	for (size_t i = 1; i < bytes; i++)
		out[i] = (uint8_t)(v >> (8 * i - 4));
	return bytes;
}

static void open_object(struct aml *a)
{
	assert(a->depth < AML_DEPTH);
	a->open[a->depth++] = a->len;
}

void aml_end(struct aml *a)
{
	uint8_t prefix[4];
	size_t at, content, n;

	assert(a->depth > 0);
	at = a->open[--a->depth];
	content = a->len - at;
	n = pkg_length(prefix, content);
	if (a->full || n > a->size - a->len) {
		a->full = true;
		return;
	}
	memmove(a->buf + at + n, a->buf + at, content);
	memcpy(a->buf + at, prefix, n);
	a->len += n;
}

void aml_scope(struct aml *a, const char *path)
{
	put8(a, AML_OP_SCOPE);
	open_object(a);
	put_path(a, path);
}

void aml_device(struct aml *a, const char *name)
{
	put8(a, AML_OP_EXT);
	put8(a, AML_OP_EXT_DEVICE);
	open_object(a);
	put_path(a, name);
}

void aml_package(struct aml *a, uint8_t elements)
{
	put8(a, AML_OP_PACKAGE);
	open_object(a);
	put8(a, elements);
}

void aml_name(struct aml *a, const char *name)
{
	put8(a, AML_OP_NAME);
	put_path(a, name);
}

void aml_int(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		put8(a, v ? AML_OP_ONE : AML_OP_ZERO);
		return;
	}
	put8(a, v <= UINT8_MAX	  ? AML_OP_BYTE
		: v <= UINT16_MAX ? AML_OP_WORD
		: v <= UINT32_MAX ? AML_OP_DWORD
				  : AML_OP_QWORD);
	put(a, &v, v <= UINT8_MAX ? 1 : v <= UINT16_MAX ? 2 : v <= UINT32_MAX ? 4 : 8);
}

void aml_string(struct aml *a, const char *s)
{
	put8(a, AML_OP_STRING);
	put(a, s, strlen(s) + 1);
}

static uint32_t hex(char c) { return (uint32_t)(c <= '9' ? c - '0' : c - 'A' + 10); }

/* Three letters of 5 bits and four hex digits, big endian (ACPI 6.5, 19.3.4, EISAID). */
void aml_eisaid(struct aml *a, const char *id)
{
	uint32_t v = (uint32_t)(id[0] - '@') << 26 | (uint32_t)(id[1] - '@') << 21 | (uint32_t)(id[2] - '@') << 16 |
		     hex(id[3]) << 12 | hex(id[4]) << 8 | hex(id[5]) << 4 | hex(id[6]);

	aml_int(a, __builtin_bswap32(v));
}

void aml_buffer(struct aml *a, const void *data, size_t len)
{
	put8(a, AML_OP_BUFFER);
	open_object(a);
	aml_int(a, len);
	put(a, data, len);
	aml_end(a);
}

static uint8_t *res_add(struct aml_res *r, size_t len)
{
	uint8_t *d = r->buf + r->len;

	assert(len <= sizeof(r->buf) - r->len);
	memset(d, 0, len);
	r->len += len;
	return d;
}

/* I/O port descriptor, small item 8: decodes 16 bits. */
void aml_res_io(struct aml_res *r, uint16_t base, uint8_t len)
{
	uint8_t *d = res_add(r, 8);

	d[0] = 0x47;
	d[1] = 1;
	put_le16(d + 2, base);
	put_le16(d + 4, base);
	d[6] = 1;
	d[7] = len;
}

/* IRQ descriptor, small item 4 without flags. */
void aml_res_irq(struct aml_res *r, uint8_t irq)
{
	uint8_t *d = res_add(r, 3);

	d[0] = 0x22;
	put_le16(d + 1, (uint16_t)(1u << irq));
}

/* Word, DWord and QWord address space descriptors (large items 8, 7 and 10): five numbers after a 6-byte head. */
void aml_res_window(struct aml_res *r, enum aml_space space, unsigned bits, bool produced, uint64_t base, uint64_t size)
{
	static const uint8_t type_flags[] = {
		[AML_MEMORY] = 0x01 /* read-write, not cacheable */, [AML_IO] = 0x03 /* all */, [AML_BUS] = 0};
	unsigned bytes = bits / 8;
	const uint64_t v[5] = {0 /* granularity */, base, base + size - 1, 0 /* translation */, size};
	uint8_t *d = res_add(r, 6 + 5 * bytes);

	d[0] = bits == 16 ? 0x88 : bits == 32 ? 0x87 : 0x8a;
	put_le16(d + 1, (uint16_t)(3 + 5 * bytes));
	d[3] = (uint8_t)space;
	d[4] = 0x0c | (produced ? 0 : 1); /* both ends fixed, positive decode */
	d[5] = type_flags[space];
	for (unsigned i = 0; i < 5; i++)
		memcpy(d + 6 + i * bytes, &v[i], bytes);
}

void aml_resources(struct aml *a, struct aml_res *r)
{
	uint8_t *end = res_add(r, 2);

	end[0] = 0x79; /* a checksum of 0 is good without looking (6.4.2.9) */
	aml_name(a, "_CRS");
	aml_buffer(a, r->buf, r->len);
}
