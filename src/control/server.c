#include "control/server.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"

struct client {
	struct control_server *server;
	int fd;           /* -1: free */
	uint64_t used;    /* server->clock when it last sent or took something */
	size_t in_len;
	char *out;        /* reply in the making: while there is one, nothing is read */
	size_t out_len, out_done;
	char in[CONTROL_LINE_MAX];
};

struct control_server {
	struct loop *loop;
	int fd;
	const struct control_command *commands;
	void *ctx;
	uint64_t clock;
	struct client clients[CONTROL_CLIENTS];
};

/* ---- requests ---- */

static json_t *refuse(json_t *reply, const struct error *err)
{
	json_object_clear(reply);
	json_object_set_new(reply, "ok", json_false());
	/* a message may hold what the client sent; what is not UTF-8 becomes a null */
	json_object_set_new(reply, "error", json_string(err->msg) ?: json_string("bad text"));
	if (err->hint[0])
		json_object_set_new(reply, "hint", json_string(err->hint) ?: json_null());
	return reply;
}

static bool answer(const struct control_command *commands, void *ctx, const char *line, size_t len, json_t *reply, struct error *err)
{
	json_error_t bad;
	json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &bad);
	const char *name = json_string_value(json_object_get(request, "command"));
	bool ok = false;

	json_object_set_new(reply, "ok", json_true());
	if (!request)
		error_set(err, "not JSON: %s", bad.text);
	else if (!name)
		error_set(err, "no \"command\" in the request");
	else {
		while (commands->name && strcmp(commands->name, name))
			commands++;
		if (commands->name)
			ok = commands->fn(ctx, request, reply, err);
		else
			error_set(err, "unknown command '%.64s'", name);
	}
	json_decref(request);
	return ok;
}

char *control_answer(const struct control_command *commands, void *ctx, const char *line, size_t len)
{
	json_t *reply = json_object();
	struct error err = {0};
	char *text, *out;
	size_t n;

	if (!answer(commands, ctx, line, len, reply, &err))
		refuse(reply, &err);
	text = json_dumps(reply, JSON_COMPACT);
	json_decref(reply);
	n = text ? strlen(text) : 0;
	out = text ? realloc(text, n + 2) : NULL;
	if (!out) {
		free(text);
		return NULL;
	}
	memcpy(out + n, "\n", 2);
	return out;
}

/* ---- clients ---- */

static void drop(struct client *c)
{
	if (c->fd < 0)
		return;
	loop_del(c->server->loop, c->fd);
	close(c->fd);
	free(c->out);
	*c = (struct client){.server = c->server, .fd = -1};
}

/* False: the client is gone. */
static bool send_reply(struct client *c)
{
	while (c->out) {
		ssize_t n = send(c->fd, c->out + c->out_done, c->out_len - c->out_done, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->used = ++c->server->clock;
		c->out_done += (size_t)n;
		if (c->out_done == c->out_len) {
			free(c->out);
			c->out = NULL;
		}
	}
	return true;
}

static bool has_line(const struct client *c)
{
	return memchr(c->in, '\n', c->in_len);
}

static bool answer_one(struct client *c)
{
	char *end = memchr(c->in, '\n', c->in_len);
	size_t len = (size_t)(end - c->in);

	c->out = control_answer(c->server->commands, c->server->ctx, c->in, len);
	if (!c->out)
		return false;
	c->out_len = strlen(c->out);
	c->out_done = 0;
	c->in_len -= len + 1;
	memmove(c->in, end + 1, c->in_len);
	return send_reply(c);
}

static bool receive(struct client *c)
{
	ssize_t n = recv(c->fd, c->in + c->in_len, sizeof(c->in) - c->in_len, MSG_DONTWAIT);

	if (n < 0)
		return errno == EINTR || errno == EAGAIN;
	if (n == 0)
		return false;
	c->in_len += (size_t)n;
	c->used = ++c->server->clock;
	return has_line(c) || c->in_len < sizeof(c->in); /* a line that is too long ends the connection */
}

/* One step of one client: at most one request is answered before others have their turn. */
static void on_client(void *ctx, unsigned events)
{
	struct client *c = ctx;
	bool ok = true;

	if (c->out)
		ok = send_reply(c);
	else if (!has_line(c))
		ok = receive(c);
	if (ok && !c->out && has_line(c))
		ok = answer_one(c);
	if (!ok || !loop_mod(c->server->loop, c->fd, c->out || has_line(c) ? LOOP_WRITE : LOOP_READ))
		drop(c);
}

static bool allowed(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && (cred.uid == geteuid() || cred.uid == 0);
}

/* A free place, or that of the client that has been silent longest. */
static struct client *place(struct control_server *s)
{
	struct client *oldest = &s->clients[0];

	for (unsigned i = 0; i < CONTROL_CLIENTS; i++) {
		struct client *c = &s->clients[i];

		if (c->fd < 0)
			return c;
		if (c->used < oldest->used)
			oldest = c;
	}
	drop(oldest);
	return oldest;
}

static void on_connect(void *ctx, unsigned events)
{
	struct control_server *s = ctx;
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct client *c;

	if (fd < 0) {
		if (errno == EMFILE || errno == ENFILE) /* no descriptors: make some, or the loop spins */
			drop(place(s));
		return;
	}
	if (!allowed(fd)) {
		close(fd);
		return;
	}
	c = place(s);
	c->fd = fd;
	c->used = ++s->clock;
	if (!loop_add(s->loop, fd, LOOP_READ, on_client, c, NULL)) {
		close(fd);
		c->fd = -1;
	}
}

/* ---- life ---- */

/* By way of /proc, as the directory may lie deeper than a socket address can say. */
static bool listen_in(struct control_server *s, int dir_fd, const char *file, struct error *err)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};

	snprintf(sa.sun_path, sizeof(sa.sun_path), "/proc/self/fd/%d/%s", dir_fd, file);
	s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* the mode of the unbound socket, less the umask, becomes that of the name */
	if (s->fd < 0 || fchmod(s->fd, 0600) < 0 || bind(s->fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(s->fd, 128) < 0)
		return error_set(err, "control socket: %s", strerror(errno));
	return loop_add(s->loop, s->fd, LOOP_READ, on_connect, s, err);
}

struct control_server *control_server_new(struct loop *loop, int dir_fd, const char *file, const struct control_command *commands,
					  void *ctx, struct error *err)
{
	struct control_server *s = calloc(1, sizeof(*s));

	if (!s) {
		error_set(err, "out of memory");
		return NULL;
	}
	s->loop = loop;
	s->commands = commands;
	s->ctx = ctx;
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
		s->clients[i] = (struct client){.server = s, .fd = -1};
	if (listen_in(s, dir_fd, file, err))
		return s;
	control_server_free(s);
	return NULL;
}

void control_server_free(struct control_server *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < CONTROL_CLIENTS; i++)
		drop(&s->clients[i]);
	if (s->fd >= 0) {
		loop_del(s->loop, s->fd);
		close(s->fd);
	}
	free(s);
}
