/* The NBD client against nbdkit and qemu-nbd, and against servers that go away. */
#include <stdarg.h>
#include <stdio.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/block/block.h"

#define SIZE (8 * MIB)

static char dir[64], sock[100], uri[160], disk[100];

static int make_dir(void **state)
{
	strcpy(dir, "/tmp/doppel-nbd-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	snprintf(sock, sizeof(sock), "%s/s", dir);
	snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s", sock);
	snprintf(disk, sizeof(disk), "%s/d.img", dir);
	return 0;
}

static int remove_dir(void **state)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

/* A server as a child, once it listens. */
static pid_t serve(const char *command)
{
	pid_t pid;

	unlink(sock);
	pid = fork();
	if (pid == 0) {
		char cmd[700];

		snprintf(cmd, sizeof(cmd), "exec %s >/dev/null 2>&1", command);
		execl("/bin/sh", "sh", "-c", cmd, NULL);
		_exit(127);
	}
	for (unsigned i = 0; i < 500 && access(sock, F_OK); i++) {
		if (waitpid(pid, NULL, WNOHANG) == pid)
			skip(); /* not installed */
		usleep(10000);
	}
	usleep(20000);
	return pid;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static const char *nbdkit(const char *plugin)
{
	static char cmd[600];

	snprintf(cmd, sizeof(cmd), "nbdkit -f -U %s %s", sock, plugin);
	return cmd;
}

static struct block *open_ok(bool readonly)
{
	struct error err = {0};
	struct block *b = block_open(&(struct block_options){.path = uri, .readonly = readonly}, &err);

	if (!b)
		fail_msg("%s", err.msg);
	assert_string_equal(b->format->name, "nbd");
	return b;
}

static void random_operations(struct block *b)
{
	uint8_t *model = calloc(1, SIZE), *buf = malloc(SIZE);

	srand(3);
	assert_int_equal(b->size, SIZE);
	for (unsigned i = 0; i < 400; i++) {
		uint64_t off = (uint64_t)rand() % (SIZE / 512) * 512;
		uint64_t len = min_u64(512 * (1 + (uint64_t)rand() % (i % 16 ? 64 : 12000)), SIZE - off);
		struct iovec iov[2] = {{buf, 512}, {buf + 512, len - 512}};

		switch (rand() % 5) {
		case 0:
		case 1:
			for (uint64_t j = 0; j < len; j += 5)
				buf[j] = (uint8_t)rand();
			memcpy(model + off, buf, len);
			assert_int_equal(len > 512 ? block_writev(b, off, iov, 2) : block_write(b, off, buf, len), 0);
			break;
		case 2:
			memset(model + off, 0, len);
			assert_int_equal(block_write_zeroes(b, off, len, rand() & 1), 0);
			break;
		default:
			memset(buf, 0xee, len);
			assert_int_equal(len > 512 ? block_readv(b, off, iov, 2) : block_read(b, off, buf, len), 0);
			assert_memory_equal(buf, model + off, len);
			break;
		}
	}
	assert_int_equal(block_flush(b), 0);
	assert_int_equal(block_discard(b, 0, SIZE), 0);
	free(model);
	free(buf);
}

static void with_nbdkit(void **state)
{
	pid_t pid = serve(nbdkit("memory 8M"));
	struct block *b = open_ok(false);

	random_operations(b);
	block_close(b);
	end(pid);
	pid = serve(nbdkit("--filter=nozero memory 8M"));
	b = open_ok(false);
	random_operations(b);
	block_close(b);
	end(pid);
}

static void with_qemu_nbd(void **state)
{
	char cmd[400];
	struct block *b;
	pid_t pid;

	snprintf(cmd, sizeof(cmd), "qemu-img create -q -f qcow2 %s 8M 2>/dev/null", disk);
	if (system(cmd))
		skip();
	snprintf(cmd, sizeof(cmd), "qemu-nbd -t -e 4 -f qcow2 -k %s %s", sock, disk);
	pid = serve(cmd);
	b = open_ok(false);
	random_operations(b);
	block_close(b);
	end(pid);
}

static void read_only(void **state)
{
	pid_t pid = serve(nbdkit("-r memory 8M"));
	struct error err = {0};
	struct block *b;
	uint8_t buf[512];

	assert_null(block_open(&(struct block_options){.path = uri}, &err));
	assert_non_null(strstr(err.msg, "read-only"));
	b = open_ok(true);
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	assert_int_equal(block_write(b, 0, buf, 512), -EROFS);
	block_close(b);
	end(pid);
}

/* The server is killed and comes back: requests go on; a flush fails when what was not flushed may be lost. */
static void comes_back(void **state)
{
	char cmd[256];
	uint8_t buf[512] = {7};
	struct block *b;
	pid_t pid;

	snprintf(cmd, sizeof(cmd), "rm -f %s && truncate -s 8M %s", disk, disk);
	assert_int_equal(system(cmd), 0);
	snprintf(cmd, sizeof(cmd), "file %s", disk);
	pid = serve(nbdkit(cmd));
	b = open_ok(false);
	assert_int_equal(block_write(b, 0, buf, 512), 0);
	assert_int_equal(block_flush(b), 0);
	end(pid);
	pid = serve(nbdkit(cmd));
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	assert_int_equal(buf[0], 7);
	assert_int_equal(block_flush(b), 0); /* all had been flushed */
	assert_int_equal(block_write(b, 512, buf, 512), 0);
	end(pid);
	assert_int_equal(block_read(b, 0, buf, 512), -EIO);
	pid = serve(nbdkit(cmd));
	assert_int_equal(block_read(b, 512, buf, 512), 0);
	assert_int_equal(block_flush(b), -EIO);
	assert_int_equal(block_write(b, 512, buf, 512), 0);
	assert_int_equal(block_flush(b), 0);
	block_close(b);
	end(pid);
}

static void errors(void **state)
{
	static const char *const uris[] = {"nbd://127.0.0.1:1/x", "nbd+unix:///?socket=/nonexistent/s", "nbd://", "nbd+unix://"};
	struct error err;
	struct block *b;
	uint8_t buf[512];
	pid_t pid;

	for (unsigned i = 0; i < ARRAY_LEN(uris); i++) {
		err = (struct error){0};
		assert_null(block_open(&(struct block_options){.path = uris[i]}, &err));
		assert_true(err.msg[0] && !strchr(err.msg, '\n'));
	}
	pid = serve(nbdkit("--filter=error memory 8M error=EIO error-pread-rate=100%"));
	b = open_ok(false);
	assert_int_equal(block_read(b, 0, buf, 512), -EIO);
	assert_int_equal(block_write(b, 0, buf, 512), 0);
	block_close(b);
	end(pid);
	pid = serve(nbdkit("--filter=error memory 8M error=ENOSPC error-pwrite-rate=100%"));
	b = open_ok(false);
	assert_int_equal(block_write(b, 0, buf, 512), -ENOSPC);
	assert_int_equal(block_read(b, 0, buf, 512), 0);
	block_close(b);
	end(pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(with_nbdkit), cmocka_unit_test(with_qemu_nbd), cmocka_unit_test(read_only),
		cmocka_unit_test(comes_back),  cmocka_unit_test(errors),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
