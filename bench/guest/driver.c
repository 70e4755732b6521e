/*
 * The job driver: runs inside the guest as /init's child, and natively in the same tree. Reads commands from standard
 * input, a line each, and answers on standard output (in the guest: the serial console), with the prefix "@bench ":
 *
 *	run COMMAND    sh -c COMMAND, output to a file   ->  done WALL_NS USER_US SYS_US STATUS BYTES HASH
 *	sleep MS       do nothing                        ->  slept WALL_NS
 *	quit           end
 *
 * The time is CLOCK_MONOTONIC around fork and wait; the checksum (FNV-1a, 64 bits) of the output is taken afterwards.
 * Says "@bench ready" first.
 *
 * usage: driver [CPUS]     with CPUS, jobs run on the first so many CPUs only
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define OUT "/tmp/out"
#define ERR "/tmp/err"

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t microseconds(struct timeval t)
{
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_usec;
}

static void child(const char *command)
{
	int out = open(OUT, O_WRONLY | O_CREAT | O_TRUNC, 0666), err = open(ERR, O_WRONLY | O_CREAT | O_TRUNC, 0666);
	int in = open("/dev/null", O_RDONLY);

	if (out < 0 || err < 0 || in < 0)
		_exit(126);
	dup2(in, 0);
	dup2(out, 1);
	dup2(err, 2);
	close(in);
	close(out);
	close(err);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

/* Checksum of the output; its length in `bytes`. */
static uint64_t checksum(uint64_t *bytes)
{
	static unsigned char buffer[65536];
	uint64_t hash = 0xcbf29ce484222325;
	int fd = open(OUT, O_RDONLY);

	*bytes = 0;
	for (ssize_t n; fd >= 0 && (n = read(fd, buffer, sizeof buffer)) > 0; *bytes += (uint64_t)n)
		for (ssize_t i = 0; i < n; i++)
			hash = (hash ^ buffer[i]) * 0x100000001b3;
	if (fd >= 0)
		close(fd);
	return hash;
}

static void complain(void)
{
	char text[400];
	int fd = open(ERR, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);

	for (ssize_t i = 0; i < n; i++)
		text[i] = text[i] < ' ' ? ' ' : text[i];
	if (n > 0)
		printf("@bench stderr %.*s\n", (int)n, text);
	if (fd >= 0)
		close(fd);
}

static void run(const char *command)
{
	struct rusage used = {0};
	uint64_t bytes, hash, start = now(), end;
	int status = -1;
	pid_t pid = fork();

	if (pid == 0)
		child(command);
	while (pid > 0 && wait4(pid, &status, 0, &used) < 0 && errno == EINTR)
		;
	end = now();
	hash = checksum(&bytes);
	if (status)
		complain();
	printf("@bench done %llu %llu %llu %d %llu %016llx\n", (unsigned long long)(end - start),
		(unsigned long long)microseconds(used.ru_utime), (unsigned long long)microseconds(used.ru_stime), status,
		(unsigned long long)bytes, (unsigned long long)hash);
	unlink(OUT);
	unlink(ERR);
}

static void rest(long ms)
{
	uint64_t start = now();
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&t, NULL);
	printf("@bench slept %llu\n", (unsigned long long)(now() - start));
}

/* A console gives lines as they were typed, without echo. */
static void raw(void)
{
	struct termios t;

	if (tcgetattr(0, &t) < 0)
		return;
	t.c_lflag &= ~(tcflag_t)(ECHO | ICANON | ISIG);
	t.c_oflag &= ~(tcflag_t)OPOST;
	tcsetattr(0, TCSANOW, &t);
}

static void use_cpus(int count)
{
	cpu_set_t all, some;

	CPU_ZERO(&some);
	sched_getaffinity(0, sizeof all, &all);
	for (int i = 0; i < CPU_SETSIZE && count > 0; i++) {
		if (CPU_ISSET(i, &all)) {
			CPU_SET(i, &some);
			count--;
		}
	}
	sched_setaffinity(0, sizeof some, &some);
}

int main(int argc, char **argv)
{
	static char line[4096];

	clearenv();
	setenv("PATH", "/usr/bin:/bin", 1);
	setenv("HOME", "/", 1);
	setenv("LC_ALL", "C", 1);
	if (argc > 1)
		use_cpus(atoi(argv[1]));
	setvbuf(stdout, NULL, _IOLBF, 0);
	raw();
	printf("@bench ready\n");
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\r\n")] = 0;
		if (!strncmp(line, "run ", 4))
			run(line + 4);
		else if (!strncmp(line, "sleep ", 6))
			rest(atol(line + 6));
		else if (!strcmp(line, "quit"))
			break;
	}
	return 0;
}
