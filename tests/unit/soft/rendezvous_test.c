/*
 * Stopping the world: members go in and out, pause when they are nudged, and some stop the world. What only the stopper
 * touches is plain memory, so that the thread sanitizer (with which this is built where it can be) sees any overlap.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <string.h>

#include "engine/soft/rendezvous.h"

#define MEMBERS 6
#define ROUNDS 10000
#define WORK 300

static struct rendezvous world;
static atomic_uint nudged[MEMBERS];
static long owned; /* stoppers */
static long inside_work[MEMBERS];
static atomic_uint running;
static pthread_barrier_t start;

static void nudge(void *ctx, unsigned i) { atomic_store(&nudged[i], 1); }

static void exclusive(void)
{
	owned++;
	for (unsigned i = 0; i < MEMBERS; i++)
		inside_work[i]++; /* members do so while inside only */
}

static void *member(void *arg)
{
	unsigned i = (unsigned)(uintptr_t)arg;

	pthread_barrier_wait(&start);
	rendezvous_enter(&world, i);
	for (unsigned n = 0; n < ROUNDS; n++) {
		for (unsigned k = 0; k < WORK; k++) /* so long that a stopper has to wait */
			((volatile long *)inside_work)[i]++;
		if (atomic_exchange(&nudged[i], 0))
			rendezvous_pause(&world, i);
		if (n % 50 == i) {
			rendezvous_stop(&world, (int)i);
			exclusive();
			rendezvous_stop(&world, (int)i); /* nests */
			exclusive();
			rendezvous_start(&world, (int)i);
			exclusive();
			rendezvous_start(&world, (int)i);
		}
		if (n % 70 == 0) { /* halted */
			rendezvous_leave(&world, i);
			sched_yield();
			if (n % 140 == 0) { /* from outside too */
				rendezvous_stop(&world, (int)i);
				exclusive();
				rendezvous_start(&world, (int)i);
			}
			rendezvous_enter(&world, i);
		}
	}
	rendezvous_leave(&world, i);
	atomic_fetch_sub(&running, 1);
	return NULL;
}

static void *outsider(void *arg)
{
	while (atomic_load(&running)) {
		rendezvous_stop(&world, RENDEZVOUS_NOBODY);
		exclusive();
		rendezvous_start(&world, RENDEZVOUS_NOBODY);
		sched_yield();
	}
	return NULL;
}

static void test_all(void **state)
{
	pthread_t t[MEMBERS + 1];
	long least = MEMBERS * (ROUNDS / 50) * 3;

	assert_true(rendezvous_init(&world, MEMBERS, nudge, NULL));
	atomic_store(&running, MEMBERS);
	pthread_barrier_init(&start, NULL, MEMBERS);
	for (unsigned i = 0; i < MEMBERS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, member, (void *)(uintptr_t)i), 0);
	assert_int_equal(pthread_create(&t[MEMBERS], NULL, outsider, NULL), 0);
	for (unsigned i = 0; i <= MEMBERS; i++)
		pthread_join(t[i], NULL);
	assert_true(owned >= least);
	for (unsigned i = 0; i < MEMBERS; i++)
		assert_int_equal(inside_work[i], ROUNDS * WORK + owned);
	rendezvous_fini(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_all)};

	return cmocka_run_group_tests_name("rendezvous", tests, NULL, NULL);
}
