/*
 * Between the files of ova/ only.
 */
#ifndef OVA_OVA_INT_H
#define OVA_OVA_INT_H

#include "ova/ova.h"

#define OVA_MEMBERS_MAX 64u
#define OVA_NAME_MAX 200u
#define OVA_OVF_MAX (4 * MIB)
#define OVA_MANIFEST_MAX (256 * KIB)
#define OVA_DIGEST_MAX 64u

/* ---- OVF (ovf_read.c, ovf_write.c) ---- */

struct ovf_disk {
	char href[OVA_NAME_MAX + 1]; /* a member of the archive; empty: an empty disk */
	uint64_t capacity;	     /* 0: not said */
};

struct ovf {
	struct ova_machine machine; /* its disks are not filled */
	unsigned ndisks;
	struct ovf_disk disks[OVA_DISKS_MAX];
	char ignored[128]; /* a device that has no counterpart here; empty: none */
};

/* `path` is for messages. */
bool ovf_read(const char *path, const void *text, size_t len, struct ovf *out, struct error *err);
/* The XML text, of the disks' file names and sizes; free(*text). */
struct ovf_file {
	char name[OVA_NAME_MAX + 1];
	uint64_t size;
};
bool ovf_write(const struct ova_machine *m, const struct ovf_file *files, char **text, size_t *len, struct error *err);

/* A plain file name: no directories, nothing odd. */
bool ova_name_ok(const char *name);

/* ---- manifest (manifest.c) ---- */

enum digest { DIGEST_SHA1, DIGEST_SHA256, DIGEST_SHA512, DIGESTS };

struct manifest_line {
	char name[OVA_NAME_MAX + 1];
	enum digest digest;
	uint8_t value[OVA_DIGEST_MAX];
};

struct manifest {
	unsigned n;
	struct manifest_line lines[OVA_MEMBERS_MAX];
};

bool manifest_parse(const char *path, const char *text, size_t len, struct manifest *m, struct error *err);
const struct manifest_line *manifest_find(const struct manifest *m, const char *name);
/* Digests of memory and of a file from its start; out: OVA_DIGEST_MAX bytes; returns its length, 0: failed. */
unsigned digest_memory(enum digest d, const void *p, size_t len, uint8_t *out);
unsigned digest_file(enum digest d, int fd, struct block_job *job, uint8_t *out);

#endif
