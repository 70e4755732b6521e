/*
 * The guest's side of the vsock test: streams of random bytes to and from the host, and what an echo returns.
 *
 *   vsockload connect PORT BYTES     send, end sending, and compare the echo
 *   vsockload listen PORT COUNT      echo COUNT connections, one after the other
 *   vsockload refused PORT           nobody listens there
 *   vsockload many PORT COUNT        COUNT connections at the same time, a short message each
 */
#include <errno.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static uint8_t byte_at(uint64_t i) { return (uint8_t)(i * 31 + (i >> 9) * 7 + (i >> 20)); }

static int dial(unsigned port)
{
	struct sockaddr_vm sa = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
		return fd;
	close(fd);
	return -1;
}

static int fail(const char *what)
{
	printf("vsockload: FAILED: %s: %s\n", what, strerror(errno));
	return 1;
}

static int through_echo(unsigned port, uint64_t bytes)
{
	uint64_t sent = 0, got = 0;
	uint8_t buf[30000];
	int fd = dial(port);

	if (fd < 0)
		return fail("connect");
	while (got < bytes) {
		struct pollfd p = {.fd = fd, .events = (short)(POLLIN | (sent < bytes ? POLLOUT : 0))};
		ssize_t n;

		if (poll(&p, 1, 20000) <= 0)
			return fail("poll");
		if (p.revents & POLLOUT) {
			uint64_t most = bytes - sent < sizeof(buf) ? bytes - sent : sizeof(buf);

			for (uint64_t i = 0; i < most; i++)
				buf[i] = byte_at(sent + i);
			n = send(fd, buf, most, MSG_DONTWAIT | MSG_NOSIGNAL);
			if (n < 0 && errno != EAGAIN)
				return fail("send");
			sent += n > 0 ? (uint64_t)n : 0;
			if (sent == bytes && shutdown(fd, SHUT_WR))
				return fail("shutdown");
		}
		if (p.revents & POLLIN) {
			n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
			if (n <= 0)
				return fail("recv");
			for (ssize_t i = 0; i < n; i++)
				if (buf[i] != byte_at(got + (uint64_t)i))
					return fail("another byte came back");
			got += (uint64_t)n;
		}
	}
	if (recv(fd, buf, 1, 0) != 0)
		return fail("no end of the stream");
	close(fd);
	printf("vsockload: %llu bytes there and back\n", (unsigned long long)got);
	return 0;
}

static int serve(unsigned port, unsigned count)
{
	struct sockaddr_vm sa = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
	int l = socket(AF_VSOCK, SOCK_STREAM, 0);
	uint8_t buf[50000];

	if (bind(l, (struct sockaddr *)&sa, sizeof(sa)) || listen(l, 8))
		return fail("listen");
	printf("vsockload: listening\n");
	fflush(stdout);
	while (count--) {
		int fd = accept(l, NULL, NULL);
		ssize_t n;

		while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
			for (ssize_t done = 0; done < n;) {
				ssize_t k = send(fd, buf + done, (size_t)(n - done), MSG_NOSIGNAL);

				if (k <= 0)
					return fail("echo");
				done += k;
			}
		close(fd);
	}
	printf("vsockload: served\n");
	return 0;
}

static int many(unsigned port, unsigned count)
{
	int *fds = calloc(count, sizeof(*fds));
	char text[16], back[16];

	for (unsigned i = 0; i < count; i++) {
		fds[i] = dial(port);
		if (fds[i] < 0)
			return fail("one of many");
	}
	for (unsigned i = 0; i < count; i++) {
		int n = snprintf(text, sizeof(text), "hello %u", i);

		if (send(fds[i], text, (size_t)n, 0) != n || recv(fds[i], back, (size_t)n, MSG_WAITALL) != n || memcmp(text, back, (size_t)n))
			return fail("a message");
	}
	for (unsigned i = 0; i < count; i++)
		close(fds[i]);
	printf("vsockload: many\n");
	return 0;
}

int main(int argc, char **argv)
{
	unsigned port = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 0) : 0;

	if (argc == 4 && !strcmp(argv[1], "connect"))
		return through_echo(port, strtoull(argv[3], NULL, 0));
	if (argc == 4 && !strcmp(argv[1], "listen"))
		return serve(port, (unsigned)strtoul(argv[3], NULL, 0));
	if (argc == 4 && !strcmp(argv[1], "many"))
		return many(port, (unsigned)strtoul(argv[3], NULL, 0));
	if (argc == 3 && !strcmp(argv[1], "refused"))
		return dial(port) >= 0 ? fail("connected") : printf("vsockload: refused: %s\n", strerror(errno)) < 0;
	return 2;
}
