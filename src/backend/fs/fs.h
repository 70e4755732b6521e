/*
 * A directory of the host, served to a guest by 9P2000.L (Linux: Documentation/filesystems/9p.rst, include/net/9p/9p.h).
 *
 * The guest reaches what lies below the directory, and nothing else. It names one path component at a time, and each is
 * looked up from the descriptor of its parent without following a symbolic link: links are followed by the guest's
 * kernel, inside its own tree. A ".." counts only where the parent still lies below the directory. Special files can be made (FIFOs
 * and sockets, no device nodes) and seen, never opened; procfs, sysfs and their like, should they be mounted below, are closed.
 *
 * Owners: run by root, files get the guest's uid and gid, and lose set-id bits; else all belong to the user of the VMM, and the guest may not
 * give them away. Extended attributes: those that begin with "user.". Locks: towards the host and other guests, one guest is one owner; its
 * own processes are told apart by its kernel.
 *
 * Threads: one at a time. A request may block as long as the host's file system does.
 */
#ifndef BACKEND_FS_FS_H
#define BACKEND_FS_FS_H

#include "base/bits.h"
#include "base/error.h"

#define FS_MSIZE_MAX (1u << 20) /* longest message */
#define FS_HEADER 7             /* size[4] type[1] tag[2] */

struct fs;

struct fs_options {
	const char *path; /* copied */
	bool readonly;
};

struct fs *fs_open(const struct fs_options *o, struct error *err);
void fs_close(struct fs *f);
/* Forget all that the guest holds open. */
void fs_reset(struct fs *f);
/*
 * Answer one message of len bytes. The reply has at most `room` bytes; its length is returned, 0 when there is no room for any. The
 * request is hostile and ours: nobody changes it meanwhile.
 */
uint32_t fs_request(struct fs *f, const uint8_t *request, uint32_t len, uint8_t *reply, uint32_t room);

#endif
