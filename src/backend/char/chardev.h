/*
 * Character back ends: where a serial port's or console's bytes go. stdio, file, unix socket, null.
 *
 * chardev_write never blocks the caller: what the peer does not take is queued up to 64 KiB, then the oldest output
 * is kept and new bytes are dropped and counted (a guest cannot make the VMM block or grow).
 * Threads: write and the receive callback's pause/resume with the machine lock held; the callback is made by the
 * event loop's thread, which takes the machine lock around it.
 */
#ifndef BACKEND_CHAR_CHARDEV_H
#define BACKEND_CHAR_CHARDEV_H

#include <pthread.h>

#include "base/error.h"
#include "base/loop.h"

struct chardev;

struct chardev_client {
	/* Bytes from the peer; returns how many were taken. Fewer than len pauses input until chardev_resume. */
	size_t (*receive)(void *ctx, const uint8_t *buf, size_t len);
	void *ctx;
};

/*
 * spec: "stdio", "null", "file:PATH" (created 0600 or truncated), "unix:PATH" (a listening socket, one client at a
 * time, removed at close). on_escape is called in the loop thread, without the machine lock, when the user types ^]
 * on a terminal that is stdin. One chardev at a time may have stdio.
 */
struct chardev *chardev_open(const char *spec, struct loop *loop, pthread_mutex_t *lock, void (*on_escape)(void *ctx),
			     void *escape_ctx, struct error *err);
/* Write out what the peer takes within a second. */
void chardev_flush(struct chardev *c);
/*
 * Flushes what it can within a second, restores the terminal, frees. Without the machine lock: it waits for a callback
 * that runs. No device uses it any more.
 */
void chardev_close(struct chardev *c);
void chardev_set_client(struct chardev *c, const struct chardev_client *client);
void chardev_write(struct chardev *c, const void *buf, size_t len);
void chardev_resume(struct chardev *c);
/* First run-time error (disk full ...), for the user; NULL when none. */
const char *chardev_error(const struct chardev *c);

/* Restore the terminal from anywhere (signal handler included): async-signal-safe. */
void chardev_restore_terminal(void);

#endif
