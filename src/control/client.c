#include "control/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/bits.h"
#include "base/timer.h"

#define REPLY_MAX (16 * MIB)

struct control_client {
	int fd;
	char name[REGISTRY_NAME_MAX + 1];
	char *in;
	size_t len, cap;
};

static bool lost(const struct control_client *c, const char *why, struct error *err)
{
	error_set(err, "%s does not answer: %s", c->name, why);
	return error_hint(err, "its VMM may be ending or stopped; see doppel ps");
}

struct control_client *control_connect(struct registry *r, const char *name, struct error *err)
{
	struct control_client *c;
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = CONTROL_TIMEOUT_MS / 1000}; /* for a place among those that wait */
	int base = open(registry_path(r), O_PATH | O_DIRECTORY | O_CLOEXEC);
	bool ok = false;
	pid_t pid;

	c = calloc(1, sizeof(*c));
	if (c && base >= 0 && registry_find(r, name, &pid, err)) {
		snprintf(c->name, sizeof(c->name), "%s", name);
		snprintf(sa.sun_path, sizeof(sa.sun_path), "/proc/self/fd/%d/%s/control.sock", base, name);
		c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ok = c->fd >= 0 && setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) == 0 &&
		     connect(c->fd, (struct sockaddr *)&sa, sizeof(sa)) == 0 && fcntl(c->fd, F_SETFL, O_NONBLOCK) == 0;
		if (!ok)
			lost(c, strerror(errno), err);
		if (!ok && c->fd >= 0)
			close(c->fd);
	} else if (!c || base < 0) {
		error_set(err, "%s: %s", registry_path(r), strerror(errno));
	}
	if (base >= 0)
		close(base);
	if (ok)
		return c;
	free(c);
	return NULL;
}

void control_disconnect(struct control_client *c)
{
	if (!c)
		return;
	close(c->fd);
	free(c->in);
	free(c);
}

static bool wait_for(struct control_client *c, short events, int64_t until, struct error *err)
{
	struct pollfd p = {.fd = c->fd, .events = events};
	int64_t left = (until - clock_now()) / 1000000;
	int n = poll(&p, 1, left > 0 ? (int)left : 0);

	if (n > 0 || (n < 0 && errno == EINTR))
		return true;
	return lost(c, n ? strerror(errno) : "no reply in time", err);
}

static bool send_all(struct control_client *c, const char *text, size_t len, int64_t until, struct error *err)
{
	while (len) {
		ssize_t n = send(c->fd, text, len, MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return lost(c, strerror(errno), err);
		if (n < 0 && !wait_for(c, POLLOUT, until, err))
			return false;
		if (n > 0) {
			text += n;
			len -= (size_t)n;
		}
	}
	return true;
}

static bool read_some(struct control_client *c, int64_t until, struct error *err)
{
	ssize_t n;

	if (c->len == c->cap) {
		size_t cap = c->cap ? 2 * c->cap : 65536;
		char *more = cap <= REPLY_MAX ? realloc(c->in, cap) : NULL;

		if (!more)
			return lost(c, "its reply is too long", err);
		c->in = more;
		c->cap = cap;
	}
	if (!wait_for(c, POLLIN, until, err))
		return false;
	n = recv(c->fd, c->in + c->len, c->cap - c->len, 0);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		return lost(c, n ? strerror(errno) : "the connection was closed", err);
	if (n > 0)
		c->len += (size_t)n;
	return true;
}

static json_t *read_reply(struct control_client *c, int64_t until, struct error *err)
{
	json_error_t bad;
	json_t *reply;
	char *end;

	while (!c->len || !(end = memchr(c->in, '\n', c->len)))
		if (!read_some(c, until, err))
			return NULL;
	reply = json_loadb(c->in, (size_t)(end - c->in), 0, &bad);
	c->len -= (size_t)(end + 1 - c->in);
	memmove(c->in, end + 1, c->len);
	if (!json_is_object(reply)) {
		json_decref(reply);
		lost(c, "its reply is not JSON", err);
		return NULL;
	}
	return reply;
}

json_t *control_ask(struct control_client *c, json_t *request, int timeout_ms, struct error *err)
{
	int64_t until = clock_now() + (int64_t)timeout_ms * 1000000;
	char *text = json_dumps(request, JSON_COMPACT);
	json_t *reply = NULL;

	json_decref(request);
	if (text && send_all(c, text, strlen(text), until, err) && send_all(c, "\n", 1, until, err))
		reply = read_reply(c, until, err);
	else if (!text)
		error_set(err, "out of memory");
	free(text);
	if (!reply || json_is_true(json_object_get(reply, "ok")))
		return reply;
	error_set(err, "%s: %s", c->name, json_string_value(json_object_get(reply, "error")) ?: "refused without a word");
	error_hint(err, "%s", json_string_value(json_object_get(reply, "hint")) ?: "see doppel help");
	json_decref(reply);
	return NULL;
}
