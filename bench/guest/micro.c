/*
 * Small jobs that load the system rather than the CPU; each prints one line that is the same everywhere.
 *
 * usage: micro JOB COUNT [ARGUMENT]
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096

static void need(bool ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void fork_job(long n, const char *arg)
{
	(void)arg;
	for (long i = 0; i < n; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(0);
		need(pid > 0 && waitpid(pid, NULL, 0) == pid, "fork");
	}
}

/* fork + exec of the program `arg`, without arguments. */
static void exec_job(long n, const char *arg)
{
	for (long i = 0; i < n; i++) {
		int status = 1;
		pid_t pid = fork();

		if (pid == 0) {
			execl(arg, arg, (char *)NULL);
			_exit(127);
		}
		need(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0, "exec");
	}
}

/* Touch fresh pages: one fault each. `n` times 16 MiB. */
static void fault_job(long n, const char *arg)
{
	const size_t size = 16 << 20;

	(void)arg;
	for (long i = 0; i < n; i++) {
		char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		need(p != MAP_FAILED, "mmap");
		madvise(p, size, MADV_NOHUGEPAGE);
		for (size_t at = 0; at < size; at += PAGE)
			p[at] = 1;
		munmap(p, size);
	}
}

/* Map, touch one page, change its rights, unmap. */
static void mmap_job(long n, const char *arg)
{
	(void)arg;
	for (long i = 0; i < n; i++) {
		char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		need(p != MAP_FAILED, "mmap");
		p[PAGE] = 1;
		mprotect(p, PAGE, PROT_READ);
		munmap(p, 16 * PAGE);
	}
}

static void getppid_job(long n, const char *arg)
{
	(void)arg;
	for (long i = 0; i < n; i++)
		syscall(SYS_getppid);
}

/* 1-byte reads of /dev/zero and 1-byte writes to /dev/null, by turns. */
static void byte_job(long n, const char *arg)
{
	int zero = open("/dev/zero", O_RDONLY), null = open("/dev/null", O_WRONLY);
	char c;

	(void)arg;
	need(zero >= 0 && null >= 0, "open");
	for (long i = 0; i < n; i++)
		need(read(zero, &c, 1) == 1 && write(null, &c, 1) == 1, "1 byte");
}

static void one_cpu(void)
{
	cpu_set_t all, one;

	CPU_ZERO(&one);
	sched_getaffinity(0, sizeof all, &all);
	for (int i = 0; i < CPU_SETSIZE; i++) {
		if (CPU_ISSET(i, &all)) {
			CPU_SET(i, &one);
			break;
		}
	}
	sched_setaffinity(0, sizeof one, &one);
}

/* A byte to and fro between two processes on one CPU: two context switches a turn. */
static void pipe_job(long n, const char *arg)
{
	int to[2], from[2];
	char c = 'x';
	pid_t pid;

	(void)arg;
	one_cpu();
	need(pipe(to) == 0 && pipe(from) == 0, "pipe");
	pid = fork();
	need(pid >= 0, "fork");
	for (long i = 0; i < n; i++) {
		if (pid == 0)
			need(read(to[0], &c, 1) == 1 && write(from[1], &c, 1) == 1, "pipe");
		else
			need(write(to[1], &c, 1) == 1 && read(from[0], &c, 1) == 1, "pipe");
	}
	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
}

/* Yields between two threads of one process on one CPU. */
static void *yield_thread(void *count)
{
	for (long i = 0; i < *(long *)count; i++)
		sched_yield();
	return NULL;
}

static void yield_job(long n, const char *arg)
{
	pthread_t t;

	(void)arg;
	one_cpu();
	need(pthread_create(&t, NULL, yield_thread, &n) == 0, "thread");
	yield_thread(&n);
	pthread_join(t, NULL);
}

#define SIDE 192

/* Double products of matrices: arithmetic that the compiler makes vectors of. */
static double matmul(long n)
{
	static double a[SIDE][SIDE], b[SIDE][SIDE];
	double (*c)[SIDE] = calloc(SIDE, sizeof *c), sum = 0;

	need(c, "memory");
	for (int i = 0; i < SIDE; i++)
		for (int j = 0; j < SIDE; j++)
			a[i][j] = i - j * 0.5, b[i][j] = (i * j) % 7;
	for (long r = 0; r < n; r++)
		for (int i = 0; i < SIDE; i++)
			for (int k = 0; k < SIDE; k++)
				for (int j = 0; j < SIDE; j++)
					c[i][j] += a[i][k] * b[k][j];
	for (int i = 0; i < SIDE; i++)
		sum += c[i][(i * 7) % SIDE];
	free(c);
	return sum;
}

static void matmul_job(long n, const char *arg)
{
	(void)arg;
	printf("%.3f\n", matmul(n));
}

/* Integer work with a table, branches and calls: what a thread of the parallel job does. */
static uint64_t churn(long n)
{
	uint32_t table[256];
	uint64_t x = 88172645463325252, sum = 0;

	for (int i = 0; i < 256; i++)
		table[i] = (uint32_t)i * 2654435761u;
	for (long i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		table[x & 255] += (uint32_t)(x >> 32);
		if (table[(x >> 8) & 255] & 1)
			sum += table[(x >> 16) & 255];
	}
	return sum;
}

struct part {
	pthread_t thread;
	long n;
	uint64_t sum;
};

static void *parallel_thread(void *p)
{
	struct part *part = p;

	part->sum = churn(part->n);
	return NULL;
}

/* `n` rounds of work, shared by `arg` threads. Prints only that every thread got the same result. */
static void parallel_job(long n, const char *arg)
{
	struct part part[64];
	int threads = atoi(arg);
	bool same = true;

	need(threads >= 1 && threads <= 64, "threads");
	for (int i = 0; i < threads; i++) {
		part[i].n = n / threads;
		need(pthread_create(&part[i].thread, NULL, parallel_thread, &part[i]) == 0, "thread");
	}
	for (int i = 0; i < threads; i++) {
		pthread_join(part[i].thread, NULL);
		same = same && part[i].sum == part[0].sum;
	}
	printf("%s\n", same ? "same" : "different");
}

static void churn_job(long n, const char *arg)
{
	(void)arg;
	printf("%llu\n", (unsigned long long)churn(n));
}

static const struct {
	const char *name;
	void (*run)(long n, const char *arg);
} jobs[] = {
	{"fork", fork_job}, {"exec", exec_job}, {"fault", fault_job}, {"mmap", mmap_job}, {"getppid", getppid_job},
	{"byte", byte_job}, {"pipe", pipe_job}, {"yield", yield_job}, {"matmul", matmul_job}, {"churn", churn_job},
	{"parallel", parallel_job},
};

int main(int argc, char **argv)
{
	/* Without arguments it is the small program that `exec` starts. */
	if (argc == 1)
		return 0;
	for (size_t i = 0; argc >= 3 && i < sizeof jobs / sizeof *jobs; i++) {
		if (!strcmp(argv[1], jobs[i].name)) {
			jobs[i].run(atol(argv[2]), argc > 3 ? argv[3] : "");
			printf("%s %s done\n", argv[1], argv[2]);
			return 0;
		}
	}
	fprintf(stderr, "usage: micro JOB COUNT [ARGUMENT]\n");
	return 2;
}
