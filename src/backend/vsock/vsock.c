#include "backend/vsock/vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CONNECTIONS 256
#define BUFFER (128 * 1024u) /* what the guest may send ahead on a connection */
#define RESETS 64            /* answers to packets that belong to no connection */
#define FIRST_PORT (1u << 30)
#define HELLO_MAX 32

enum { TYPE_STREAM = 1 };
enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST };
enum { SHUT_RECEIVE = 1, SHUT_SEND = 2, SHUT_BOTH = 3 };

/* 5.10.6 */
struct packet {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port, len;
	uint16_t type, op;
	uint32_t flags, buf_alloc, fwd_cnt;
} __attribute__((packed));
_Static_assert(sizeof(struct packet) == VSOCK_HDR_LEN, "5.10.6");

enum state {
	FREE,
	HELLO,  /* a host program has yet to say which port */
	ASKED,  /* the guest has yet to accept */
	OPEN,
	ENDING, /* only an RST is left to be sent */
};

struct connection {
	struct vsock *vsock;
	enum state state;
	int fd;
	uint32_t guest_port, host_port;
	uint64_t age;
	bool pending_request, pending_response, pending_credit;
	uint8_t pending_shutdown, sent_shutdown; /* towards the guest: SHUT_* */
	uint8_t guest_shutdown;
	bool readable, eof;
	char hello[HELLO_MAX];
	unsigned hello_len;
	/* towards the guest: what it has room for, what it got */
	uint32_t peer_alloc, peer_fwd, sent;
	/* from the guest: what was written to the socket, and of that what the guest was told; what waits to be written */
	uint32_t forwarded, told;
	uint8_t *buf;
	uint32_t head, count;
};

struct vsock {
	struct loop *loop;
	uint64_t cid;
	void (*ready)(void *ctx);
	void *ctx;
	int listen_fd;
	bool bound, paused; /* paused: no descriptors were left to accept with */
	uint32_t next_port;
	uint64_t clock;
	unsigned turn; /* connection that is asked first */
	struct packet resets[RESETS];
	unsigned nresets;
	struct sockaddr_un addr;
	struct connection conns[CONNECTIONS];
};

/* ---- connections ---- */

static struct connection *find(struct vsock *v, uint32_t guest_port, uint32_t host_port)
{
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &v->conns[i];

		if (c->state > HELLO && c->guest_port == guest_port && c->host_port == host_port)
			return c;
	}
	return NULL;
}

static void close_socket(struct connection *c)
{
	if (c->fd < 0)
		return;
	loop_del(c->vsock->loop, c->fd);
	close(c->fd);
	c->fd = -1;
}

static void drop(struct connection *c)
{
	close_socket(c);
	free(c->buf);
	*c = (struct connection){.vsock = c->vsock, .fd = -1};
}

/* Tell the guest that it is over. */
static void end(struct connection *c)
{
	close_socket(c);
	c->state = ENDING;
	c->count = 0;
}

static uint32_t credit(const struct connection *c)
{
	uint32_t under_way = c->sent - c->peer_fwd;

	return under_way < c->peer_alloc ? c->peer_alloc - under_way : 0;
}

/* What the loop is to watch for. */
static void watch(struct connection *c)
{
	unsigned events = c->count ? LOOP_WRITE : 0;

	if (c->fd < 0)
		return;
	if (c->state == HELLO || (c->state == OPEN && !c->readable && !c->eof && !(c->guest_shutdown & SHUT_RECEIVE) && credit(c)))
		events |= LOOP_READ;
	loop_mod(c->vsock->loop, c->fd, events);
}

/* A free place, or that of the oldest that has not even said hello. */
static struct connection *place(struct vsock *v)
{
	struct connection *oldest = NULL;

	for (unsigned i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &v->conns[i];

		if (c->state == FREE)
			return c;
		if (c->state == HELLO && (!oldest || c->age < oldest->age))
			oldest = c;
	}
	if (oldest)
		drop(oldest);
	return oldest;
}

/* ---- from the guest to the socket ---- */

/* Both directions are over and all is written: the guest gets its RST (5.10.6.5). */
static void settle(struct connection *c)
{
	if (c->state != OPEN || c->count)
		return;
	if ((c->guest_shutdown & SHUT_SEND) && c->fd >= 0)
		shutdown(c->fd, SHUT_WR);
	if ((c->guest_shutdown & SHUT_RECEIVE) && c->fd >= 0)
		shutdown(c->fd, SHUT_RD);
	if (c->guest_shutdown == SHUT_BOTH || ((c->guest_shutdown & SHUT_SEND) && (c->sent_shutdown & SHUT_SEND)))
		end(c);
}

static void flush(struct connection *c)
{
	while (c->count) {
		uint32_t run = (uint32_t)min_u64(c->count, BUFFER - c->head);
		ssize_t n = send(c->fd, c->buf + c->head, run, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			end(c);
			return;
		}
		c->head = (c->head + (uint32_t)n) % BUFFER;
		c->count -= (uint32_t)n;
		c->forwarded += (uint32_t)n;
	}
	if (c->forwarded - c->told >= BUFFER / 2)
		c->pending_credit = true;
	settle(c);
}

static void take_data(struct connection *c, const uint8_t *data, uint32_t len)
{
	if (c->state != OPEN || c->guest_shutdown & SHUT_SEND || len > BUFFER - c->count) {
		end(c); /* more than it was allowed to */
		return;
	}
	if (!c->buf)
		c->buf = malloc(BUFFER);
	if (!c->buf) {
		end(c);
		return;
	}
	for (uint32_t done = 0; done < len;) {
		uint32_t at = (c->head + c->count) % BUFFER, run = (uint32_t)min_u64(len - done, BUFFER - at);

		memcpy(c->buf + at, data + done, run);
		c->count += run;
		done += run;
	}
	flush(c);
}

/* ---- sockets ---- */

static void on_socket(void *ctx, unsigned events);

static void say_ok(struct connection *c)
{
	char text[32];
	int n = snprintf(text, sizeof(text), "OK %u\n", c->host_port);

	if (send(c->fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) != n)
		end(c);
}

static bool port_taken(struct vsock *v, uint32_t port)
{
	for (unsigned i = 0; i < CONNECTIONS; i++)
		if (v->conns[i].state > HELLO && v->conns[i].host_port == port)
			return true;
	return false;
}

/* "CONNECT PORT\n", byte by byte, so that nothing behind it is taken. */
static void read_hello(struct connection *c)
{
	struct vsock *v = c->vsock;
	unsigned long port;
	char *last;

	for (;;) {
		ssize_t n = recv(c->fd, c->hello + c->hello_len, 1, MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0 || c->hello_len + 1 == sizeof(c->hello)) {
			drop(c);
			return;
		}
		if (c->hello[c->hello_len] == '\n')
			break;
		c->hello_len++;
	}
	c->hello[c->hello_len] = 0;
	errno = 0;
	port = strncmp(c->hello, "CONNECT ", 8) || c->hello[8] < '0' || c->hello[8] > '9' ? 0 : strtoul(c->hello + 8, &last, 10);
	if (!port || *last || errno || port >= UINT32_MAX) {
		drop(c);
		return;
	}
	do
		v->next_port = v->next_port + 1 < FIRST_PORT ? FIRST_PORT : v->next_port + 1;
	while (port_taken(v, v->next_port));
	c->guest_port = (uint32_t)port;
	c->host_port = v->next_port;
	c->state = ASKED;
	c->pending_request = true;
}

static void on_socket(void *ctx, unsigned events)
{
	struct connection *c = ctx;

	if (c->state == HELLO && events & LOOP_READ)
		read_hello(c);
	else if (c->state == OPEN && events & LOOP_READ)
		c->readable = true;
	if (c->state == OPEN && events & LOOP_WRITE)
		flush(c);
	watch(c);
	c->vsock->ready(c->vsock->ctx);
}

static bool adopt(struct connection *c, int fd, enum state state)
{
	if (!loop_add(c->vsock->loop, fd, state == HELLO ? LOOP_READ : 0, on_socket, c, NULL)) {
		close(fd);
		return false;
	}
	c->fd = fd;
	c->state = state;
	c->age = ++c->vsock->clock;
	return true;
}

static void on_connect(void *ctx, unsigned events)
{
	struct vsock *v = ctx;
	int fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct connection *c = fd < 0 ? NULL : place(v);

	if (c)
		adopt(c, fd, HELLO);
	else if (fd >= 0)
		close(fd);
	else if (errno == EMFILE || errno == ENFILE)
		v->paused = loop_mod(v->loop, v->listen_fd, 0); /* until something happens: see vsock_next */
}

/* ---- packets of the guest ---- */

/* Answer a packet that belongs to no connection; when there are too many, some get none. */
static void reject(struct vsock *v, const struct packet *p)
{
	if (p->op == OP_RST || v->nresets == RESETS)
		return;
	v->resets[v->nresets++] = (struct packet){.src_cid = p->dst_cid, .dst_cid = v->cid, .src_port = p->dst_port, .dst_port = p->src_port, .type = p->type, .op = OP_RST};
}

/* A program of the guest connects: PATH_PORT is where one of the host may listen. */
static void request(struct vsock *v, const struct packet *p)
{
	struct sockaddr_un sa = v->addr;
	size_t n = strlen(sa.sun_path);
	struct connection *c = place(v);
	int fd;

	if (!c || (size_t)snprintf(sa.sun_path + n, sizeof(sa.sun_path) - n, "_%u", p->dst_port) >= sizeof(sa.sun_path) - n) {
		reject(v, p);
		return;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		if (fd >= 0)
			close(fd);
		reject(v, p);
		return;
	}
	if (!adopt(c, fd, OPEN)) {
		reject(v, p);
		return;
	}
	c->guest_port = p->src_port;
	c->host_port = p->dst_port;
	c->peer_alloc = p->buf_alloc;
	c->peer_fwd = p->fwd_cnt;
	c->pending_response = true;
	watch(c);
}

static void established(struct connection *c, const struct packet *p, const uint8_t *data)
{
	c->peer_alloc = p->buf_alloc;
	c->peer_fwd = p->fwd_cnt;
	switch (p->op) {
	case OP_RESPONSE:
		if (c->state != ASKED) {
			end(c);
			break;
		}
		c->state = OPEN;
		say_ok(c);
		break;
	case OP_RST:
		drop(c);
		return;
	case OP_SHUTDOWN:
		c->guest_shutdown |= p->flags & SHUT_BOTH;
		settle(c);
		break;
	case OP_RW:
		take_data(c, data, p->len);
		break;
	case OP_CREDIT_UPDATE:
		break;
	case OP_CREDIT_REQUEST:
		c->pending_credit = true;
		break;
	default:
		end(c);
		break;
	}
	watch(c);
}

void vsock_packet(struct vsock *v, const uint8_t hdr[VSOCK_HDR_LEN], const uint8_t *data, uint32_t len)
{
	struct packet p;
	struct connection *c;

	memcpy(&p, hdr, sizeof(p));
	if (p.src_cid != v->cid)
		return;
	if (p.dst_cid != VSOCK_HOST_CID || p.type != TYPE_STREAM) {
		reject(v, &p);
		return;
	}
	c = find(v, p.src_port, p.dst_port);
	if (p.len != (p.op == OP_RW ? len : p.len) || (p.op == OP_RW && p.len > VSOCK_DATA_MAX)) {
		if (c)
			end(c);
		return;
	}
	if (c && c->state == ENDING && p.op != OP_REQUEST) {
		if (p.op == OP_RST)
			drop(c);
	} else if (c && p.op != OP_REQUEST) {
		established(c, &p, data);
	} else if (!c && p.op == OP_REQUEST) {
		request(v, &p);
	} else {
		if (c)
			drop(c); /* it connects anew from where it is connected */
		reject(v, &p);
	}
}

/* ---- packets for the guest ---- */

static uint32_t put(struct connection *c, uint8_t *out, uint16_t op, uint32_t flags, uint32_t len)
{
	struct packet p = {
		.src_cid = VSOCK_HOST_CID, .dst_cid = c->vsock->cid, .src_port = c->host_port, .dst_port = c->guest_port, .len = len, .type = TYPE_STREAM,
		.op = op, .flags = flags, .buf_alloc = BUFFER, .fwd_cnt = c->forwarded,
	};

	c->told = c->forwarded;
	c->pending_credit = false;
	memcpy(out, &p, sizeof(p));
	return VSOCK_HDR_LEN + len;
}

/* Bytes of the socket, as many as the guest has room for; 0: none now. */
static uint32_t put_data(struct connection *c, uint8_t *out, uint32_t room)
{
	uint32_t most = (uint32_t)min_u64(min_u64(credit(c), room - VSOCK_HDR_LEN), VSOCK_DATA_MAX);
	ssize_t n;

	if (!c->readable || c->eof || !most || c->guest_shutdown & SHUT_RECEIVE)
		return 0;
	n = recv(c->fd, out + VSOCK_HDR_LEN, most, MSG_DONTWAIT);
	if (n > 0) {
		c->sent += (uint32_t)n;
		return put(c, out, OP_RW, 0, (uint32_t)n);
	}
	c->readable = false;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0) {
		end(c);
		return 0;
	}
	c->eof = true;
	c->pending_shutdown = SHUT_SEND;
	return 0;
}

static uint32_t next_of(struct connection *c, uint8_t *out, uint32_t room)
{
	uint32_t n = 0;

	if (c->state == OPEN && !c->pending_response)
		n = put_data(c, out, room);
	if (n)
		return n;
	if (c->state == ENDING) {
		n = put(c, out, OP_RST, 0, 0);
		drop(c);
		return n;
	}
	if (c->pending_request) {
		c->pending_request = false;
		return put(c, out, OP_REQUEST, 0, 0);
	}
	if (c->pending_response) {
		c->pending_response = false;
		return put(c, out, OP_RESPONSE, 0, 0);
	}
	if (c->pending_shutdown) {
		c->sent_shutdown |= c->pending_shutdown;
		n = put(c, out, OP_SHUTDOWN, c->sent_shutdown, 0);
		c->pending_shutdown = 0;
		settle(c);
		return n;
	}
	return c->state == OPEN && c->pending_credit ? put(c, out, OP_CREDIT_UPDATE, 0, 0) : 0;
}

uint32_t vsock_next(struct vsock *v, uint8_t *packet, uint32_t room)
{
	if (room < VSOCK_HDR_LEN)
		return 0;
	if (v->paused)
		v->paused = !loop_mod(v->loop, v->listen_fd, LOOP_READ);
	if (v->nresets) {
		memcpy(packet, &v->resets[--v->nresets], VSOCK_HDR_LEN);
		return VSOCK_HDR_LEN;
	}
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		struct connection *c = &v->conns[(v->turn + i) % CONNECTIONS];
		uint32_t n;

		if (c->state <= HELLO)
			continue;
		n = next_of(c, packet, room);
		watch(c);
		if (n) {
			v->turn = (v->turn + i + 1) % CONNECTIONS;
			return n;
		}
	}
	return 0;
}

/* ---- life ---- */

static bool taken(const struct sockaddr_un *sa)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool yes = fd < 0 || connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) == 0 || errno != ECONNREFUSED;

	if (fd >= 0)
		close(fd);
	return yes;
}

static bool listen_at(struct vsock *v, const char *path, struct error *err)
{
	struct stat st;

	if (strlen(path) + sizeof("_4294967295") > sizeof(v->addr.sun_path)) {
		error_set(err, "vsock: the path '%s' is too long", path);
		return error_hint(err, "at most %zu bytes, so that a port fits behind it", sizeof(v->addr.sun_path) - sizeof("_4294967295"));
	}
	strcpy(v->addr.sun_path, path);
	if (lstat(path, &st) == 0) {
		if (!S_ISSOCK(st.st_mode) || taken(&v->addr)) {
			error_set(err, "vsock: '%s' exists and is in use", path);
			return error_hint(err, "choose another path");
		}
		unlink(path);
	}
	v->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (v->listen_fd < 0 || fchmod(v->listen_fd, 0600) < 0 || bind(v->listen_fd, (struct sockaddr *)&v->addr, sizeof(v->addr)) < 0) {
		error_set(err, "vsock: cannot make the socket '%s': %s", path, strerror(errno));
		return error_hint(err, "name one in a directory that you may write to");
	}
	v->bound = true;
	if (listen(v->listen_fd, 64) < 0)
		return error_set(err, "vsock: cannot listen on '%s': %s", path, strerror(errno));
	return loop_add(v->loop, v->listen_fd, LOOP_READ, on_connect, v, err);
}

struct vsock *vsock_open(const struct vsock_options *o, struct loop *loop, void (*ready)(void *ctx), void *ctx, struct error *err)
{
	struct vsock *v = calloc(1, sizeof(*v));

	if (!v) {
		error_set(err, "vsock: out of memory");
		return NULL;
	}
	v->loop = loop;
	v->cid = o->cid;
	v->ready = ready;
	v->ctx = ctx;
	v->listen_fd = -1;
	v->next_port = FIRST_PORT - 1;
	v->addr.sun_family = AF_UNIX;
	for (unsigned i = 0; i < CONNECTIONS; i++)
		v->conns[i] = (struct connection){.vsock = v, .fd = -1};
	if (listen_at(v, o->path, err))
		return v;
	vsock_close(v);
	return NULL;
}

void vsock_reset(struct vsock *v)
{
	v->nresets = 0;
	for (unsigned i = 0; i < CONNECTIONS; i++)
		if (v->conns[i].state > HELLO)
			drop(&v->conns[i]);
}

void vsock_close(struct vsock *v)
{
	if (!v)
		return;
	for (unsigned i = 0; i < CONNECTIONS; i++)
		if (v->conns[i].state != FREE)
			drop(&v->conns[i]);
	if (v->listen_fd >= 0) {
		loop_del(v->loop, v->listen_fd);
		close(v->listen_fd);
	}
	if (v->bound)
		unlink(v->addr.sun_path);
	free(v);
}
