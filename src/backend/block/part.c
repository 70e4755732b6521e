#include "backend/block/part.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define MBR_ENTRIES 446
#define MBR_DISK_ID 440
#define MBR_SIGNATURE 510
#define LOGICAL_MAX 128
#define GPT_HEADER_MIN 92
#define GPT_TABLE_MAX (MIB) /* of entries; the usual table has 16 KiB */

struct mbr_entry {
	uint8_t status, type;
	uint64_t start, sectors;
};

static bool read_at(struct block *b, uint64_t off, void *buf, size_t len, struct error *err)
{
	int r = block_read(b, off, buf, len);

	return r == 0 || error_set(err, "%s: cannot read the partition table: %s", b->path, strerror(-r));
}

static struct mbr_entry mbr_entry(const uint8_t *sector, unsigned i)
{
	const uint8_t *e = sector + MBR_ENTRIES + 16 * i;

	return (struct mbr_entry){e[0], e[4], get_le32(e + 8), get_le32(e + 12)};
}

static bool is_extended(uint8_t type) { return type == 0x05 || type == 0x0f || type == 0x85; }

/* What holds of a table of partitions and not of a boot sector of a file system, which has the same signature. */
static bool mbr_plausible(const uint8_t *s)
{
	bool used = false;

	if (s[MBR_SIGNATURE] != 0x55 || s[MBR_SIGNATURE + 1] != 0xaa)
		return false;
	for (unsigned i = 0; i < 4; i++) {
		struct mbr_entry e = mbr_entry(s, i);

		if (e.status & 0x7f)
			return false;
		used |= e.type && e.sectors;
	}
	return used;
}

static struct part *add(struct part_table *t, unsigned number, uint64_t start, uint64_t len, uint64_t disk)
{
	struct part *p;

	if (!len || !range_ok(start, len, disk) || t->n == PART_MAX) {
		t->nbad++;
		return NULL;
	}
	p = &t->parts[t->n++];
	p->number = number;
	p->start = start;
	p->len = len;
	return p;
}

static void add_mbr(struct part_table *t, unsigned number, uint64_t base, struct mbr_entry e, uint64_t disk)
{
	/* 33-bit sums of 32-bit sectors: no overflow. */
	struct part *p = add(t, number, (base + e.start) * BLOCK_SECTOR, e.sectors * BLOCK_SECTOR, disk);

	if (p) {
		p->mbr_type = e.type;
		p->active = e.status & 0x80;
	}
}

/*
 * The chain of an extended partition: in each link's sector, entry 0 is a logical partition, relative to the link, and
 * entry 1 the next link, relative to the extended partition.
 */
static bool list_logical(struct part_table *t, struct block *b, struct mbr_entry ext, unsigned *number,
			 struct error *err)
{
	uint64_t link = ext.start;

	for (unsigned i = 0; i < LOGICAL_MAX; i++) {
		uint8_t s[BLOCK_SECTOR];
		struct mbr_entry logical, next;

		if (!range_ok(link * BLOCK_SECTOR, BLOCK_SECTOR, b->size)) {
			t->nbad++;
			return true;
		}
		if (!read_at(b, link * BLOCK_SECTOR, s, sizeof(s), err))
			return false;
		if (s[MBR_SIGNATURE] != 0x55 || s[MBR_SIGNATURE + 1] != 0xaa) {
			t->nbad++;
			return true;
		}
		logical = mbr_entry(s, 0);
		next = mbr_entry(s, 1);
		if (logical.type && logical.sectors)
			add_mbr(t, (*number)++, link, logical, b->size);
		if (!is_extended(next.type) || !next.sectors || !next.start)
			return true;
		link = ext.start + next.start;
	}
	t->nbad++;
	return true;
}

static bool list_mbr(struct part_table *t, struct block *b, const uint8_t *s, struct error *err)
{
	unsigned number = 5;

	t->scheme = PART_MBR;
	t->sector_size = BLOCK_SECTOR;
	t->disk_id = get_le32(s + MBR_DISK_ID);
	for (unsigned i = 0; i < 4; i++) {
		struct mbr_entry e = mbr_entry(s, i);

		if (e.type && e.sectors)
			add_mbr(t, i + 1, 0, e, b->size);
	}
	for (unsigned i = 0; i < 4; i++) {
		struct mbr_entry e = mbr_entry(s, i);

		if (is_extended(e.type) && e.sectors && !list_logical(t, b, e, &number, err))
			return false;
	}
	return true;
}

/* ---- GPT ---- */

static unsigned put_utf8(char *out, uint32_t c)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	out[0] = (char)(0xe0 | c >> 12);
	out[1] = (char)(0x80 | (c >> 6 & 0x3f));
	out[2] = (char)(0x80 | (c & 0x3f));
	return 3;
}

/* 36 UTF-16 units, 3 bytes each at most. Outside of the basic plane, and what a terminal might act on: '?'. */
static void gpt_name(const uint8_t *units, char out[112])
{
	unsigned n = 0;

	for (unsigned i = 0; i < 36; i++) {
		uint32_t c = get_le16(units + 2 * i);

		if (!c)
			break;
		if (c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0xd800 && c < 0xe000) || c >= 0xfffe ||
		    (c >= 0x200b && c < 0x2010) || (c >= 0x2028 && c < 0x202f))
			c = '?';
		n += put_utf8(out + n, c);
	}
	out[n] = 0;
}

static bool all_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

static void add_gpt(struct part_table *t, unsigned i, const uint8_t *e, uint64_t disk)
{
	uint64_t first = get_le64(e + 32), last = get_le64(e + 40), sectors = disk / t->sector_size;
	struct part *p;

	if (all_zero(e, 16))
		return;
	if (last < first || last >= sectors) {
		t->nbad++;
		return;
	}
	p = add(t, i + 1, first * t->sector_size, (last - first + 1) * t->sector_size, disk);
	if (!p)
		return;
	memcpy(p->type_guid, e, 16);
	memcpy(p->guid, e + 16, 16);
	p->active = get_le64(e + 48) & BIT(2);
	gpt_name(e + 56, p->name);
}

/*
 * One copy of the table: its header in sector lba. *valid false: this copy is none. The header's checksum is over its
 * own length with the checksum field 0; the table's over all entries.
 */
static bool try_gpt(struct part_table *t, struct block *b, unsigned sector, uint64_t lba, bool *valid,
		    struct error *err)
{
	uint8_t h[4096], *table;
	uint64_t entries, bytes;
	uint32_t size, crc, n, entry;

	*valid = false;
	if (lba >= b->size / sector)
		return true;
	if (!read_at(b, lba * sector, h, sector, err))
		return false;
	size = get_le32(h + 12);
	crc = get_le32(h + 16);
	put_le32(h + 16, 0);
	if (memcmp(h, "EFI PART", 8) || size < GPT_HEADER_MIN || size > sector || crc32(0, h, size) != crc ||
	    get_le64(h + 24) != lba)
		return true;
	entries = get_le64(h + 72);
	n = get_le32(h + 80);
	entry = get_le32(h + 84);
	bytes = (uint64_t)n * entry;
	if (entry < 128 || entry % 8 || !bytes || bytes > GPT_TABLE_MAX || entries >= b->size / sector ||
	    !range_ok(entries * sector, bytes, b->size))
		return true;
	table = malloc(bytes);
	if (!table)
		return error_set(err, "out of memory");
	if (!read_at(b, entries * sector, table, bytes, err)) {
		free(table);
		return false;
	}
	if (crc32(0, table, (unsigned)bytes) == get_le32(h + 88)) {
		*valid = true;
		t->scheme = PART_GPT;
		t->sector_size = sector;
		memcpy(t->disk_guid, h + 56, 16);
		for (uint32_t i = 0; i < n; i++)
			add_gpt(t, i, table + (size_t)i * entry, b->size);
	}
	free(table);
	return true;
}

static bool list_gpt(struct part_table *t, struct block *b, bool *found, struct error *err)
{
	static const unsigned sectors[] = {512, 4096};

	for (unsigned i = 0; i < ARRAY_LEN(sectors); i++)
		if (!try_gpt(t, b, sectors[i], 1, found, err) || *found)
			return *found;
	for (unsigned i = 0; i < ARRAY_LEN(sectors); i++) {
		if (b->size < 4 * sectors[i])
			continue;
		if (!try_gpt(t, b, sectors[i], b->size / sectors[i] - 1, found, err))
			return false;
		if (*found) {
			t->backup = true;
			return true;
		}
	}
	return true;
}

struct part_table *part_list(struct block *b, struct error *err)
{
	struct part_table *t = calloc(1, sizeof(*t));
	uint8_t s[BLOCK_SECTOR];
	bool protective = false, found = false, ok = true;

	if (!t) {
		error_set(err, "out of memory");
		return NULL;
	}
	t->sector_size = BLOCK_SECTOR;
	if (b->size < BLOCK_SECTOR)
		return t;
	if (!read_at(b, 0, s, sizeof(s), err))
		goto fail;
	if (!mbr_plausible(s))
		return t;
	for (unsigned i = 0; i < 4; i++)
		protective |= mbr_entry(s, i).type == 0xee;
	if (protective) {
		ok = list_gpt(t, b, &found, err);
		if (ok && !found) {
			ok = error_set(err, "%s: the partition table (GPT) is damaged, and so is its backup", b->path);
			error_hint(err, "repair it in a guest, with sgdisk or gdisk");
		}
	} else {
		ok = list_mbr(t, b, s, err);
	}
	if (ok)
		return t;
fail:
	part_table_free(t);
	return NULL;
}

void part_table_free(struct part_table *t) { free(t); }

void part_guid_text(const uint8_t g[16], char out[37])
{
	/* The first three fields are little-endian. */
	static const uint8_t order[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	static const char hex[] = "0123456789ABCDEF";
	unsigned n = 0;

	for (unsigned i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			out[n++] = '-';
		out[n++] = hex[g[order[i]] >> 4];
		out[n++] = hex[g[order[i]] & 15];
	}
	out[n] = 0;
}

const char *part_type_name(const struct part_table *t, const struct part *p)
{
	static const struct {
		uint8_t type;
		const char *name;
	} mbr[] = {
		{0x01, "FAT12"},
		{0x04, "FAT16"},
		{0x05, "extended"},
		{0x06, "FAT16"},
		{0x07, "NTFS or exFAT"},
		{0x0b, "FAT32"},
		{0x0c, "FAT32"},
		{0x0e, "FAT16"},
		{0x0f, "extended"},
		{0x82, "Linux swap"},
		{0x83, "Linux filesystem"},
		{0x85, "extended"},
		{0x8e, "Linux LVM"},
		{0xa5, "FreeBSD"},
		{0xa6, "OpenBSD"},
		{0xea, "Linux boot"},
		{0xef, "EFI system"},
		{0xfd, "Linux RAID"},
	};
	static const struct {
		const char *guid, *name;
	} gpt[] = {
		{"C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EFI system"},
		{"21686148-6449-6E6F-744E-656564454649", "BIOS boot"},
		{"0FC63DAF-8483-4772-8E79-3D69D8477DE4", "Linux filesystem"},
		{"BC13C2FF-59E6-4262-A352-B275FD6F7172", "Linux boot"},
		{"4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Linux root (x86-64)"},
		{"0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "Linux swap"},
		{"933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "Linux home"},
		{"3B8F8425-20E0-4F3B-907F-1A25A76F98E8", "Linux server data"},
		{"4D21B016-B534-45C2-A9FB-5C16E091FD2D", "Linux variable data"},
		{"E6D6D379-F507-44C2-A23C-238F2A3DF928", "Linux LVM"},
		{"A19D880F-05FC-4D3B-A006-743F0F84911E", "Linux RAID"},
		{"EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "Microsoft basic data"},
		{"E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "Microsoft reserved"},
		{"DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "Windows recovery"},
	};
	char text[37];

	if (t->scheme == PART_MBR) {
		for (unsigned i = 0; i < ARRAY_LEN(mbr); i++)
			if (mbr[i].type == p->mbr_type)
				return mbr[i].name;
		return "unknown";
	}
	part_guid_text(p->type_guid, text);
	for (unsigned i = 0; i < ARRAY_LEN(gpt); i++)
		if (!strcmp(gpt[i].guid, text))
			return gpt[i].name;
	return "unknown";
}
