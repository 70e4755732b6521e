/*
 * The host's side of vsock under a hostile guest and hostile host programs: packets random and nearly right, connections opened and dropped on both
 * sides. Each packet for the guest must be well-formed, and hold no more than the guest said that it has room for; at the end nothing may be
 * left open.
 *
 *   vsock_fuzz SECONDS SEED
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/vsock/vsock.h"
#include "base/timer.h"

#define CID 5
#define GUEST_PORTS 40
#define HOST_PORTS 12 /* 1000: one listens; 1001: nobody; then those that are given to host programs */
#define CLIENTS 40
#define MAX_NS INT64_C(1000000000)

enum { OP_REQUEST = 1, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW };

struct flow {
	uint32_t alloc, fwd, sent;
};

struct fuzz {
	struct loop *loop;
	struct vsock *vsock;
	uint64_t s, steps, packets, data;
	int64_t end;
	int wake, listener, clients[CLIENTS];
	struct sockaddr_un path;
	struct flow flows[GUEST_PORTS][HOST_PORTS];
	bool bad;
	uint8_t buf[VSOCK_HDR_LEN + VSOCK_DATA_MAX];
};

static uint64_t rnd(struct fuzz *f)
{
	f->s ^= f->s << 13;
	f->s ^= f->s >> 7;
	f->s ^= f->s << 17;
	return f->s * 0x2545f4914f6cdd1du >> 16;
}

static uint32_t host_port(unsigned i) { return i < 2 ? 1000 + i : (1u << 30) + i - 2; }

static void ready(void *ctx) {}

/* ---- the guest ---- */

static void send_packet(struct fuzz *f)
{
	static const uint32_t odd[] = {0, 1, 100, 65536, 0x7fffffff, 0x80000000, 0xffffffff};
	unsigned g = (unsigned)(rnd(f) % GUEST_PORTS), h = (unsigned)(rnd(f) % HOST_PORTS);
	struct flow *w = &f->flows[g][h];
	uint16_t op = (uint16_t)(rnd(f) % 4 ? 1 + rnd(f) % 7 : rnd(f) % 3 ? OP_RW : rnd(f));
	uint32_t len = op == OP_RW ? (uint32_t)(rnd(f) % 3 ? rnd(f) % 5000 : rnd(f) % (VSOCK_DATA_MAX + 1)) : 0;
	bool honest = rnd(f) % 16, valid;
	struct flow said;

	said = *w;
	if (op == OP_REQUEST)
		said.sent = 0; /* maybe it begins anew; if not, it is cut off */
	said.alloc = honest ? 1u << (rnd(f) % 18) : odd[rnd(f) % ARRAY_LEN(odd)];
	said.fwd = honest ? said.sent : odd[rnd(f) % ARRAY_LEN(odd)];
	memset(f->buf, 0, VSOCK_HDR_LEN);
	put_le64(f->buf, rnd(f) % 64 ? CID : rnd(f));
	put_le64(f->buf + 8, rnd(f) % 64 ? VSOCK_HOST_CID : rnd(f));
	put_le32(f->buf + 16, 100 + g);
	put_le32(f->buf + 20, host_port(h));
	put_le32(f->buf + 24, rnd(f) % 64 ? len : odd[rnd(f) % ARRAY_LEN(odd)]);
	put_le16(f->buf + 28, (uint16_t)(rnd(f) % 64 ? 1 : rnd(f)));
	put_le16(f->buf + 30, op);
	put_le32(f->buf + 32, (uint32_t)(rnd(f) % 4));
	put_le32(f->buf + 36, said.alloc);
	put_le32(f->buf + 40, said.fwd);
	valid = get_le64(f->buf) == CID && get_le64(f->buf + 8) == VSOCK_HOST_CID && get_le16(f->buf + 28) == 1;
	if (valid)
		*w = said;
	vsock_packet(f->vsock, f->buf, f->buf + VSOCK_HDR_LEN, len);
}

static bool sane(struct fuzz *f, uint32_t n, uint32_t room)
{
	uint32_t len = get_le32(f->buf + 24), g = get_le32(f->buf + 20) - 100, src = get_le32(f->buf + 16);
	uint16_t op = get_le16(f->buf + 30);

	if (n > room || get_le64(f->buf + 8) != CID || op < OP_REQUEST || op > 7)
		return false;
	if (op != OP_RST && (get_le64(f->buf) != VSOCK_HOST_CID || get_le16(f->buf + 28) != 1))
		return false;
	if (n != VSOCK_HDR_LEN + (op == OP_RW ? len : 0) || (op == OP_RW && !len))
		return false;
	for (unsigned h = 0; h < HOST_PORTS && g < GUEST_PORTS; h++) {
		struct flow *w = &f->flows[g][h];

		if (src != host_port(h))
			continue;
		if (op == OP_REQUEST)
			*w = (struct flow){0};
		if (op != OP_RW)
			continue;
		w->sent += len;
		f->data += len;
		/* before a first packet of ours on this connection nothing was allowed */
		if (w->sent - w->fwd > w->alloc && w->sent - w->fwd < 0x80000000) {
			fprintf(stderr, "vsock_fuzz: %u sent, %u taken, room for %u\n", w->sent, w->fwd, w->alloc);
			return false;
		}
	}
	return true;
}

static void take_packets(struct fuzz *f)
{
	for (unsigned i = 0; i < 8; i++) {
		uint32_t room = (uint32_t)(rnd(f) % 8 ? VSOCK_HDR_LEN + 4096 : rnd(f) % sizeof(f->buf)), n;

		n = vsock_next(f->vsock, f->buf, room);
		if (!n)
			break;
		f->packets++;
		if (!sane(f, n, room))
			f->bad = true;
	}
}

/* ---- programs of the host ---- */

static void bother(struct fuzz *f)
{
	static const char *const lines[] = {"CONNECT 100\n", "CONNECT 101\n", "CONNECT 105\n", "CONNECT 0\n", "CONNECT", "\n", "CONNECT 99999999999999\n",
					    "CONNECT -1\n", "connect 100\n", "CONNECT 110\nand more"};
	int *fd = &f->clients[rnd(f) % CLIENTS];
	const char *line = lines[rnd(f) % ARRAY_LEN(lines)];
	char data[3000] = "data";

	if (*fd < 0 && rnd(f) % 2) {
		*fd = accept4(f->listener, NULL, NULL, SOCK_NONBLOCK);
		return;
	}
	if (*fd < 0) {
		*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
		if (connect(*fd, (struct sockaddr *)&f->path, sizeof(f->path)) == 0 && send(*fd, line, strlen(line), MSG_NOSIGNAL) > 0)
			return;
		close(*fd);
		*fd = -1;
		return;
	}
	switch (rnd(f) % 16) {
	case 0:
		close(*fd);
		*fd = -1;
		break;
	case 1:
		shutdown(*fd, (int)(rnd(f) % 3));
		break;
	case 2 ... 8:
		if (send(*fd, data, rnd(f) % sizeof(data), MSG_NOSIGNAL) < 0 && errno != EAGAIN)
			shutdown(*fd, SHUT_RDWR);
		break;
	default:
		if (recv(*fd, data, sizeof(data), 0) < 0 && errno != EAGAIN)
			shutdown(*fd, SHUT_RDWR);
	}
}

static void on_wake(void *ctx, unsigned events)
{
	struct fuzz *f = ctx;

	for (unsigned i = 0; i < 20 && !f->bad; i++, f->steps++) {
		int64_t begin = clock_now();

		switch (rnd(f) % 4) {
		case 0: send_packet(f); break;
		case 1: take_packets(f); break;
		default: bother(f); break;
		}
		if (rnd(f) % 20000 == 0) {
			vsock_reset(f->vsock);
			memset(f->flows, 0, sizeof(f->flows));
		}
		if (clock_now() - begin > MAX_NS)
			f->bad = true;
	}
	if (f->bad || clock_now() > f->end)
		loop_stop(f->loop);
}

static unsigned descriptors(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	if (d)
		closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	int64_t seconds = argc > 1 ? strtoll(argv[1], NULL, 0) : 3;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	struct fuzz *f = calloc(1, sizeof(*f));
	char dir[] = "/tmp/doppel-vsock.XXXXXX", path[64];
	struct error err = {0};
	struct sockaddr_un sa;
	unsigned before, after;
	bool ok;

	f->s = seed * 0x9e3779b97f4a7c15u + 1;
	memset(f->clients, -1, sizeof(f->clients));
	f->loop = loop_new(&err);
	if (!f->loop || !mkdtemp(dir))
		return 1;
	before = descriptors();
	snprintf(path, sizeof(path), "%s/v", dir);
	f->vsock = vsock_open(&(struct vsock_options){.path = path, .cid = CID}, f->loop, ready, f, &err);
	f->wake = eventfd(1, EFD_NONBLOCK);
	f->path = sa = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(f->path.sun_path, sizeof(sa.sun_path), "%s", path);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s_1000", path);
	f->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	if (!f->vsock || bind(f->listener, (struct sockaddr *)&sa, sizeof(sa)) || listen(f->listener, 16) ||
	    !loop_add(f->loop, f->wake, LOOP_READ, on_wake, f, &err)) {
		fprintf(stderr, "vsock_fuzz: %s\n", err.msg);
		return 1;
	}
	f->end = clock_now() + seconds * 1000000000;
	loop_run(f->loop);
	vsock_close(f->vsock);
	loop_del(f->loop, f->wake);
	for (unsigned i = 0; i < CLIENTS; i++)
		if (f->clients[i] >= 0)
			close(f->clients[i]);
	close(f->listener);
	close(f->wake);
	after = descriptors();
	loop_free(f->loop);
	unlink(sa.sun_path);
	rmdir(dir);
	printf("vsock_fuzz: %" PRIu64 " steps, %" PRIu64 " packets for the guest, %" PRIu64 " bytes in them\n", f->steps, f->packets, f->data);
	if (f->bad || after != before)
		fprintf(stderr, "vsock_fuzz: seed %" PRIu64 ": bad packet, too long, or %u descriptors became %u\n", seed, before, after);
	ok = !f->bad && after == before && f->data;
	free(f);
	return ok ? 0 : 1;
}
