/*
 * The option --disk of `doppel run`: PATH[,KEY=VALUE]...; a comma in a value is written twice.
 */
#ifndef CLI_OPT_DISK_H
#define CLI_OPT_DISK_H

#include "machine/machine.h"

/* Its lines of the usage text. */
#define OPT_DISK_USAGE \
	"  --disk PATH[,KEY=VALUE]  adds a disk; repeatable. PATH: an image, a block device or an NBD URI (a comma: ,,)\n" \
	"      format=FORMAT        raw, qcow2, vmdk, nbd (default: by the name)\n" \
	"      ro                   read-only\n" \
	"      snapshot             what the guest writes is gone at the end\n" \
	"      cache=writeback|none|unsafe  through the host's page cache, past it, or without flushes\n" \
	"      iops=N, bps=SIZE     limits, per second\n" \
	"      serial=STRING        serial number, at most 20 characters\n" \
	"      backing=PATH         backing file in place of the one that the image names\n" \
	"      on-error=report|pause  tell the guest of a host error, or let it wait (default: wait when the disk is full)\n"

/* Append to cfg->disks, which is on the heap, as are the strings. */
bool opt_disk_add(struct machine_config *cfg, const char *arg, struct error *err);
void opt_disk_free(struct machine_config *cfg);

#endif
