/*
 * Between chardev.c (queues, flow control, the loop) and the kinds of back end (where the descriptors come from).
 *
 * Threads: `lock` guards the output queue, the descriptors and the error; the input buffer belongs to the loop's
 * thread; `client` and `starved` are guarded by the machine lock. Order: machine lock, then `lock`, then the loop's
 * own.
 */
#ifndef BACKEND_CHAR_CHARDEV_INT_H
#define BACKEND_CHAR_CHARDEV_INT_H

#include <stdatomic.h>
#include <sys/types.h>

#include "backend/char/chardev.h"
#include "base/bits.h"

#define CHARDEV_OUT_MAX (64 * KIB)
#define CHARDEV_IN_MAX 4096

struct chardev_kind {
	/* arg: what follows the colon of the spec. Sets the descriptors. */
	bool (*open)(struct chardev *c, const char *arg, struct error *err);
	/* The loop watches nothing of it any more. */
	void (*close)(struct chardev *c);
	/* The peer went away. NULL: input ends or output is discarded. Loop thread, lock held. */
	void (*hangup_locked)(struct chardev *c);
	/* Look at n new bytes at buf, return how many remain. NULL: all. Loop thread, no lock held. */
	size_t (*filter)(struct chardev *c, uint8_t *buf, size_t n);
};

extern const struct chardev_kind chardev_stdio, chardev_file, chardev_unix, chardev_null;

struct chardev {
	const struct chardev_kind *kind;
	struct loop *loop;
	pthread_mutex_t *machine_lock;
	void (*on_escape)(void *ctx);
	void *escape_ctx;
	struct chardev_client client;
	bool starved; /* the client took less than there was */

	pthread_mutex_t lock;
	int infd, outfd;    /* -1: none */
	int in_watch;       /* what the loop watches for infd: itself, or ... */
	bool stand_in;      /* ... an eventfd of ours that is always readable */
	bool in_on, out_on; /* LOOP_READ of in_watch, LOOP_WRITE of outfd are asked for */
	bool out_socket;
	bool broken; /* the loop's thread is to hang up */
	bool lossy_input; /* a terminal: input is read although nobody takes it, for the sake of the escape key */
	int kickfd;       /* timerfd: wakes the loop's thread to flush output or hand in input */
	bool kicked;
	uint8_t out[CHARDEV_OUT_MAX]; /* ring */
	size_t out_head, out_count;
	uint64_t dropped;
	char error[256];
	atomic_bool has_error;

	uint8_t in[CHARDEV_IN_MAX];
	size_t in_len;

	/* unix */
	int listenfd;
	char *path;
	dev_t path_dev;
	ino_t path_ino;
};

/* Attach descriptors and have the loop watch them. infd and outfd may be the same, or -1. */
bool chardev_attach(struct chardev *c, int infd, int outfd, struct error *err);
void chardev_detach_locked(struct chardev *c); /* the loop forgets them; closing them is the kind's business */
void chardev_set_error_locked(struct chardev *c, const char *what, int errnum);

#endif
