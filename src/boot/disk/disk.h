/*
 * Boot from a disk without firmware: what its boot loader would load, found by reading its configuration.
 *
 * Partitions (or a disk without any) with ext2/3/4 or FAT are looked at in order, first for GRUB's configuration, then for
 * boot-loader-specification entries (type 1), then for /vmlinuz and /initrd.img. The default entry is taken; what GRUB keeps in
 * its environment block counts, but next_entry does not: nothing is written. A command line without console= gets
 * console=ttyS0, as the machine has no screen. Journals are not replayed: a file changed shortly before a crash may be old.
 *
 * The disk is hostile. All that interprets it runs in a child process that may only read the disk, through its parent, and
 * answer: bounded in time, memory and output.
 *
 * Threads: any, no lock held; blocks on the disk for as long as BOOT_DISK_SECONDS. No request may be in flight on the block
 * that another one waits for.
 */
#ifndef BOOT_DISK_DISK_H
#define BOOT_DISK_DISK_H

#include "backend/block/block.h"
#include "base/file.h"

#define BOOT_DISK_SECONDS 30
#define BOOT_DISK_KERNEL_MAX (256 * MIB)
#define BOOT_DISK_CMDLINE_MAX 4096
#define BOOT_DISK_TITLE_MAX 256

struct boot_disk {
	struct file_data kernel, initrd;	/* no initrd: size 0 */
	char cmdline[BOOT_DISK_CMDLINE_MAX];
	char title[BOOT_DISK_TITLE_MAX];	/* which entry, of what, from where; printable */
};

/* Which files: larger ones than BOOT_DISK_KERNEL_MAX and initrd_max are refused. On failure *out holds nothing. */
bool boot_disk_read(struct block *b, uint64_t initrd_max, struct boot_disk *out, struct error *err);
void boot_disk_free(struct boot_disk *d);

/* The same in this process: for tests and fuzzers. */
bool boot_disk_find(struct block *b, uint64_t initrd_max, struct boot_disk *out, struct error *err);

#endif
