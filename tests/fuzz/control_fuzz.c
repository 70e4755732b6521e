/*
 * The control socket under hostile clients: random and nearly right requests in random pieces, clients that never read, that go away, and more of
 * them than there is room for; and control_answer on random lines. A request that is right must be answered all the while.
 *
 *   control_fuzz SECONDS SEED
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <poll.h>
#include <unistd.h>

#include "base/timer.h"
#include "control/server.h"

#define CLIENTS 80
#define ANSWER_MS 2000

static uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static bool on_echo(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	json_t *value = json_object_get(request, "value");

	json_object_set(reply, "value", value ? value : json_null());
	return true;
}

static bool on_big(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	json_t *a = json_array();

	for (unsigned i = 0; i < 20000; i++)
		json_array_append_new(a, json_integer(i));
	json_object_set_new(reply, "big", a);
	return true;
}

static bool on_fail(void *ctx, const json_t *request, json_t *reply, struct error *err)
{
	error_set(err, "no: '%.100s'", json_string_value(json_object_get(request, "value")) ?: "-");
	return error_hint(err, "none");
}

static const struct control_command commands[] = {{"echo", on_echo}, {"big", on_big}, {"fail", on_fail}, {0}};

static const char *const pieces[] = {"{", "}", "[", "]", "\"command\"", ":", ",", "\"echo\"", "\"big\"", "\"fail\"", "\"value\"", "1e999", "-", "null",
				     "\\u0000", "\"", "\xff", "\n", "{\"command\":\"echo\",\"value\":[1,2]}\n", "{\"command\":\"big\"}\n",
				     "{\"command\":\"fail\",\"value\":\"\xc3\xa9\xc3\xa9\"}\n", "\r", "  "};

static size_t make_text(uint64_t *s, char *out, size_t max)
{
	size_t n = 0;

	while (rnd(s) % 12 && n + 64 < max) {
		if (rnd(s) % 16 == 0) {
			out[n++] = (char)rnd(s);
		} else if (rnd(s) % 64 == 0) {
			size_t k = rnd(s) % (max - n);

			memset(out + n, "[{\"x"[rnd(s) % 4], k);
			n += k;
		} else {
			const char *p = pieces[rnd(s) % ARRAY_LEN(pieces)];

			memcpy(out + n, p, strlen(p));
			n += strlen(p);
		}
	}
	return n;
}

/* Each line gets one line of JSON that says whether it is ok. */
static bool check_answer(uint64_t *s)
{
	char text[CONTROL_LINE_MAX];
	size_t n = make_text(s, text, sizeof(text)), len;
	char *reply = control_answer(commands, NULL, text, n);
	json_error_t bad;
	json_t *j;
	bool ok;

	if (!reply)
		return false;
	len = strlen(reply);
	j = json_loads(reply, 0, &bad);
	ok = len && reply[len - 1] == '\n' && memchr(reply, '\n', len) == reply + len - 1 && json_is_boolean(json_object_get(j, "ok"));
	if (!ok)
		fprintf(stderr, "control_fuzz: bad reply: %.200s\n", reply);
	json_decref(j);
	free(reply);
	return ok;
}

static int connect_to(const char *path)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return fd;
	close(fd);
	return -1;
}

/* An honest client among them. */
static bool honest(const char *path)
{
	static const char request[] = "{\"command\":\"echo\",\"value\":42}\n", want[] = "{\"ok\":true,\"value\":42}\n";
	int64_t until = clock_now() + ANSWER_MS * INT64_C(1000000);
	char got[64];

	while (clock_now() < until) {
		int fd = connect_to(path);
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t n = 0;

		if (fd < 0)
			continue; /* the backlog is full at this moment */
		if (send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) > 0 && poll(&p, 1, ANSWER_MS) > 0)
			n = recv(fd, got, sizeof(got), 0);
		close(fd);
		if (n == sizeof(want) - 1 && !memcmp(got, want, sizeof(want) - 1))
			return true;
	}
	return false;
}

static void *run_loop(void *loop)
{
	loop_run(loop);
	return NULL;
}

static void bother(uint64_t *s, const char *path, int *fds)
{
	int *fd = &fds[rnd(s) % CLIENTS];
	char text[CONTROL_LINE_MAX + 100];

	if (*fd < 0) {
		*fd = connect_to(path);
		return;
	}
	switch (rnd(s) % 8) {
	case 0:
		close(*fd);
		*fd = -1;
		break;
	case 1:
		shutdown(*fd, (int)(rnd(s) % 3));
		break;
	case 2:
		while (recv(*fd, text, sizeof(text), 0) > 0)
			;
		break;
	default:
		if (send(*fd, text, make_text(s, text, sizeof(text)), MSG_NOSIGNAL) < 0 && errno != EAGAIN) {
			close(*fd);
			*fd = -1;
		}
	}
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 3, begin = clock_now();
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1, s = seed * 0x9e3779b97f4a7c15u + 1, n = 0, asked = 0;
	char dir[] = "/tmp/doppel-control.XXXXXX", path[64];
	struct control_server *server;
	struct error err = {0};
	int fds[CLIENTS], dir_fd;
	bool ok = true;
	pthread_t t;

	memset(fds, -1, sizeof(fds));
	dir_fd = mkdtemp(dir) ? open(dir, O_RDONLY | O_DIRECTORY) : -1;
	snprintf(path, sizeof(path), "%s/sock", dir);
	struct loop *loop = loop_new(&err);
	server = control_server_new(loop, dir_fd, "sock", commands, NULL, &err);
	if (!server || pthread_create(&t, NULL, run_loop, loop)) {
		fprintf(stderr, "control_fuzz: %s\n", err.msg);
		return 1;
	}
	for (; ok && clock_now() - begin < seconds * 1000000000; n++) {
		bother(&s, path, fds);
		ok = check_answer(&s);
		if (ok && n % 200 == 0) {
			ok = honest(path);
			asked++;
			if (!ok)
				fprintf(stderr, "control_fuzz: seed %" PRIu64 ": no answer after %" PRIu64 " steps\n", seed, n);
		}
	}
	loop_stop(loop);
	pthread_join(t, NULL);
	control_server_free(server);
	loop_free(loop);
	for (unsigned i = 0; i < CLIENTS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	unlink(path);
	rmdir(dir);
	close(dir_fd);
	printf("control_fuzz: %" PRIu64 " steps, an honest client was answered %" PRIu64 " times\n", n, asked);
	return ok && asked > 1 ? 0 : 1;
}
