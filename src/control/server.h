/*
 * The control socket of a running VM: one line of JSON asks, one line answers.
 *
 *   {"command": "stat"}                      {"ok": true, ...}
 *   {"command": "nonsense"}                  {"ok": false, "error": "unknown command 'nonsense'"}
 *
 * A client may send any number of requests, one after the other is answered. Only the user that the VMM runs as, and root, are let in
 * (SO_PEERCRED). Clients are bounded in number, in what they may send and in what is kept for them; the one that has been silent
 * longest makes room for a new one. Nothing waits for a client.
 *
 * Threads: new and free where the loop does not run; all else happens in the loop's thread, without the machine lock.
 */
#ifndef CONTROL_SERVER_H
#define CONTROL_SERVER_H

#include <jansson.h>

#include "base/error.h"
#include "base/loop.h"

#define CONTROL_LINE_MAX 8192
#define CONTROL_CLIENTS 32

struct control_server;

/* reply is an object to which fn adds members; false: err says why not. Must not block. */
struct control_command {
	const char *name;
	bool (*fn)(void *ctx, const json_t *request, json_t *reply, struct error *err);
};

/* Listens on a socket that it makes, named `file`, in the directory dir_fd. The table ends with a NULL name. */
struct control_server *control_server_new(struct loop *loop, int dir_fd, const char *file, const struct control_command *commands,
					  void *ctx, struct error *err);
void control_server_free(struct control_server *s);

/* One line of a request -> the line of the reply, newline included; free with free(). NULL: out of memory. Never fails otherwise. */
char *control_answer(const struct control_command *commands, void *ctx, const char *line, size_t len);

#endif
