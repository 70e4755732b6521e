/* The token bucket: the mean rate is held whatever the size and the timing of requests. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/bucket.h"

#define SECOND INT64_C(1000000000)

static void test_no_limit(void **state)
{
	struct bucket b;

	bucket_init(&b, 0, 0, 5);
	for (int i = 0; i < 1000; i++) {
		assert_true(bucket_open(&b, 5));
		bucket_take(&b, UINT64_MAX, 5);
	}
}

static void test_burst_then_wait(void **state)
{
	struct bucket b;

	bucket_init(&b, 1000, 100, 0);
	bucket_take(&b, 99, 0);
	assert_true(bucket_open(&b, 0));
	bucket_take(&b, 1, 0);
	assert_false(bucket_open(&b, 0));
	assert_in_range(bucket_open_at(&b, 0), SECOND / 1000, SECOND / 1000 + 10);
	assert_true(bucket_open(&b, bucket_open_at(&b, 0)));
	bucket_take(&b, 1000, SECOND / 1000); /* a debt of a second */
	assert_false(bucket_open(&b, SECOND));
	assert_true(bucket_open(&b, SECOND + SECOND / 500));
	/* Idle time saves no more than the burst. */
	bucket_take(&b, 100, 1000 * SECOND);
	assert_false(bucket_open(&b, 1000 * SECOND));
}

/* Always as much as the bucket lets through, at odd times: over 50 s the rate is right within 1 %. */
static void rate(uint64_t tokens_per_second, uint64_t request_max, int64_t step_max)
{
	struct bucket b;
	uint64_t sum = 0;
	int64_t now = 0;
	double expected = 50.0 * (double)tokens_per_second;

	srandom(1);
	bucket_init(&b, tokens_per_second, 1, 0);
	while (now < 50 * SECOND) {
		int64_t at = bucket_open_at(&b, now);

		if (at <= now) {
			uint64_t n = 1 + (uint64_t)random() % request_max;

			bucket_take(&b, n, now);
			sum += n;
		}
		now = at > now ? at + random() % step_max / 16 : now;
	}
	assert_true((double)sum > expected * 0.99 - (double)request_max);
	assert_true((double)sum < expected * 1.01 + (double)request_max);
}

static void test_rates(void **state)
{
	rate(7, 1, 16);
	rate(1000, 1, 16);
	rate(125000, 65536, 16);
	rate(12500000, 1514, 16);
	rate(1250000000, 65536, 16);
}

static void test_extremes(void **state)
{
	struct bucket b;

	bucket_init(&b, UINT64_MAX, UINT64_MAX, 0);
	bucket_take(&b, UINT64_MAX, 0);
	bucket_take(&b, UINT64_MAX, INT64_MAX - 1);
	bucket_open_at(&b, INT64_MAX - 1);
	bucket_init(&b, 1, 1, 0);
	for (int i = 0; i < 10; i++)
		bucket_take(&b, UINT64_MAX, 0);
	assert_false(bucket_open(&b, SECOND * 1000));
	bucket_init(&b, 10, 5, 100);
	assert_true(bucket_open(&b, 50)); /* a clock that steps back does no harm */
	bucket_take(&b, 6, 50);
	assert_false(bucket_open(&b, 40));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_no_limit),
		cmocka_unit_test(test_burst_then_wait),
		cmocka_unit_test(test_rates),
		cmocka_unit_test(test_extremes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
