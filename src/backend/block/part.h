/*
 * The partitions of a disk: MBR with extended partitions, and GPT (UEFI specification 2.10, chapter 5), with 512 or
 * 4096 byte sectors. Reads only; the disk's contents are the guest's and are not believed: what lies outside of the
 * disk is left out and counted, chains and tables are bounded.
 *
 * Threads: any; blocks on the disk.
 */
#ifndef BACKEND_BLOCK_PART_H
#define BACKEND_BLOCK_PART_H

#include "backend/block/block.h"

#define PART_MAX 256 /* partitions listed at most */

enum part_scheme { PART_NONE, PART_MBR, PART_GPT };

struct part {
	unsigned number;       /* as Linux counts: 1-4 primary, from 5 logical; GPT: entry + 1 */
	uint64_t start, len;   /* bytes; inside of the disk, len not 0 */
	uint8_t mbr_type;      /* MBR */
	bool active;	       /* MBR: boot flag; GPT: legacy BIOS bootable attribute */
	uint8_t type_guid[16]; /* GPT, as on the disk */
	uint8_t guid[16];
	char name[112]; /* GPT: UTF-8, control characters replaced by '?' */
};

struct part_table {
	enum part_scheme scheme;
	unsigned sector_size;
	uint32_t disk_id;      /* MBR */
	uint8_t disk_guid[16]; /* GPT */
	bool backup;	       /* GPT: the primary header or table is damaged, this is from the backup at the end */
	unsigned nbad;	       /* partitions left out: outside of the disk, broken chain, too many */
	unsigned n;
	struct part parts[PART_MAX]; /* by number */
};

/* A disk without a table gives PART_NONE. NULL (err): reading failed, or a GPT is there and both copies are damaged. */
struct part_table *part_list(struct block *b, struct error *err);
void part_table_free(struct part_table *t);

/* "EFI system", "Linux filesystem", ...; "unknown" else. */
const char *part_type_name(const struct part_table *t, const struct part *p);
/* The usual text form of a GUID as it lies on the disk. */
void part_guid_text(const uint8_t guid[16], char out[37]);

#endif
