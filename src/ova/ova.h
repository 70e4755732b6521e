/*
 * OVA: a machine and its disks in one tar file (DMTF DSP0243, "OVF 1.1"): NAME.ovf (XML: hardware), NAME.mf (digests of
 * all files), perhaps a certificate, and disks as streamOptimized VMDKs.
 *
 * An OVA comes from anywhere: names in it are never paths here, sizes are checked against the file's own before
 * anything is written, the XML has no network, no entities and no document type, and every digest of the manifest must
 * be right. A failure leaves files only in the directory that the caller gave, and will remove.
 *
 * Threads: as block_copy (backend/block/copy.h).
 */
#ifndef OVA_OVA_H
#define OVA_OVA_H

#include "backend/block/copy.h"

#define OVA_DISKS_MAX 15u /* a SCSI controller has as many places */
#define OVA_NICS_MAX 8u

struct ova_disk {
	char path[4096];    /* import: base name of the new image; export: of the image */
	const char *format; /* export; NULL: by its suffix */
	uint64_t capacity;  /* bytes; filled */
};

struct ova_nic {
	char mac[18]; /* "02:00:00:12:34:56"; empty: any */
};

struct ova_machine {
	char name[128];	 /* UTF-8 without control characters; else nothing is known of it */
	uint64_t memory; /* bytes; 0: not said */
	unsigned cpus;
	unsigned ndisks, nnics;
	struct ova_disk disks[OVA_DISKS_MAX];
	struct ova_nic nics[OVA_NICS_MAX];
};

struct ova_job {
	struct block_job *block;		   /* progress and stop, for each long step anew */
	void (*note)(void *ctx, const char *line); /* what the user should know; may be NULL */
	void *ctx;
};

/* Read the archive; its disks become disk1.qcow2, disk2.qcow2, ... in the directory `dir`, which is empty. */
bool ova_import(const char *path, const char *dir, struct ova_machine *m, struct ova_job *job, struct error *err);
/* Write the archive `path`, which is not there; intermediate files go to, and leave, its directory. */
bool ova_export(struct ova_machine *m, const char *path, struct ova_job *job, struct error *err);

#endif
