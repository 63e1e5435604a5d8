/* SPDX-License-Identifier: Apache-2.0
 *
 * test_probe_example.c - fields of a task structure that is made up here, found by example; and none named
 * where two would do.
 */
#include "example.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    TID = 4711,
    TGID = 4700,
    AT_RUNTIME = 232,
    AT_PREVIOUS = 240,
    AT_VRUNTIME = 248,
    AT_PID = 1264,
    AT_COMM = 1752
};
static const uint64_t SUM_NS = 123456789012ull;

static void put(struct kj_example *example, size_t at, uint64_t value)
{
    memcpy(example->task + at, &value, sizeof(value));
}

/* Four copies: each was switched out some microseconds of CPU time after the one before. */
static int make(void **state)
{
    struct kj_example *examples = calloc(KJ_EXAMPLES, sizeof(*examples));
    assert_non_null(examples);
    uint64_t sum_ns = SUM_NS;
    for (unsigned i = 0; i < KJ_EXAMPLES; i++) {
        struct kj_example *example = &examples[i];
        const uint32_t ids[2] = {TID, TGID};
        uint64_t previous_ns = sum_ns;
        sum_ns += 20000 + 5000 * i;
        snprintf(example->name, sizeof(example->name), "kj-example-%u", i % 10);
        example->before_ns = sum_ns - 2000;
        example->after_ns = sum_ns + 7000;
        put(example, AT_RUNTIME, sum_ns);
        put(example, AT_PREVIOUS, previous_ns);
        put(example, AT_VRUNTIME, sum_ns + 3141592653u);
        memcpy(example->task + AT_PID, ids, sizeof(ids));
        memcpy(example->task + AT_COMM, example->name, KJ_COMM_BYTES);
    }
    *state = examples;
    return 0;
}

static int forget(void **state)
{
    free(*state);
    return 0;
}

static void finds_all(void **state)
{
    struct kj_task_offsets offsets;
    assert_true(kj_example_search(*state, KJ_EXAMPLES, TID, TGID, &offsets));
    assert_int_equal(offsets.pid, AT_PID);
    assert_int_equal(offsets.comm, AT_COMM);
    assert_int_equal(offsets.runtime, AT_RUNTIME);
}

static void one_miss_is_no_sum(void **state)
{
    struct kj_example *examples = *state;
    struct kj_task_offsets offsets;
    put(&examples[2], AT_RUNTIME, examples[2].before_ns - 1);
    assert_true(kj_example_search(examples, KJ_EXAMPLES, TID, TGID, &offsets));
    assert_int_equal(offsets.runtime, 0);
    put(&examples[2], AT_RUNTIME, examples[2].after_ns + 1);
    assert_true(kj_example_search(examples, KJ_EXAMPLES, TID, TGID, &offsets));
    assert_int_equal(offsets.runtime, 0);
    put(&examples[2], AT_RUNTIME, examples[2].after_ns);
    assert_true(kj_example_search(examples, KJ_EXAMPLES, TID, TGID, &offsets));
    assert_int_equal(offsets.runtime, AT_RUNTIME);
}

static void two_that_would_do_are_none(void **state)
{
    struct kj_example *examples = *state;
    struct kj_task_offsets offsets;
    for (unsigned i = 0; i < KJ_EXAMPLES; i++)
        put(&examples[i], AT_VRUNTIME, examples[i].before_ns + 1);
    assert_true(kj_example_search(examples, KJ_EXAMPLES, TID, TGID, &offsets));
    assert_int_equal(offsets.runtime, 0);
    assert_int_equal(offsets.pid, AT_PID);
}

static void nothing_without_ids_or_name(void **state)
{
    struct kj_example *examples = *state;
    struct kj_task_offsets offsets;
    assert_false(kj_example_search(examples, KJ_EXAMPLES, TID, TGID + 1, &offsets));
    assert_false(kj_example_search(examples, 0, TID, TGID, &offsets));
    examples[3].task[AT_COMM] = 'x';
    assert_false(kj_example_search(examples, KJ_EXAMPLES, TID, TGID, &offsets));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(finds_all, make, forget),
        cmocka_unit_test_setup_teardown(one_miss_is_no_sum, make, forget),
        cmocka_unit_test_setup_teardown(two_that_would_do_are_none, make, forget),
        cmocka_unit_test_setup_teardown(nothing_without_ids_or_name, make, forget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
