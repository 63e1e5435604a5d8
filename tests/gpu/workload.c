/* SPDX-License-Identifier: Apache-2.0
 *
 * workload - work of known shape for a real card, on the driver API alone. Knows nothing of kjoule. Prints
 * one JSON object: what it launched, how long it took, and the durations by events of its own.
 *
 *     workload launches COUNT                empty kernels, as fast as they can be launched
 *     workload compute COUNT MS              kernels of about MS milliseconds that fill the card
 *     workload short COUNT [ROUNDS ...]      COUNT kernels of 2, 5, 10 and 50 us each: on an idle stream
 * (burn_*), and behind others (queued_*); ROUNDS as a run before printed them workload square SECONDS ON_MS
 * OFF_MS   kernels for ON_MS, then nothing for OFF_MS, again and again; when it was on, in seconds of
 * CLOCK_MONOTONIC, goes to stderr workload end HOW                       a few launches, then an end: return
 * _exit abort reset destroy thread segv
 */
#include "card.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { FILL = 8 }; /* blocks a multiprocessor */

static void launch_nothing(int count)
{
    for (int i = 0; i < count; i++)
        MUST(cu.LaunchKernel(card.nothing, 1, 1, 1, 32, 1, 1, 0, card.stream, NULL, NULL));
    MUST(cu.StreamSynchronize(card.stream));
}

static int run_launches(char **values)
{
    int count = atoi(values[0]);
    launch_nothing(1000);
    double start_s = card_now_s();
    launch_nothing(count);
    printf("{\"seconds\": %.6f, \"launches\": {\"nothing\": %d}}\n", card_now_s() - start_s, count + 1000);
    return 0;
}

static int run_compute(char **values)
{
    int first, count = atoi(values[0]);
    unsigned rounds = card_rounds(KERNEL_burn, FILL, 1000 * atof(values[1]), 1, &first);
    double start_s = card_now_s(), own_ms = 0;
    for (int i = 0; i < count; i++)
        own_ms += card_timed_ms(KERNEL_burn, FILL, rounds, 1);
    printf("{\"seconds\": %.6f, \"launches\": {\"burn\": %d}, \"events_ms\": %.6f}\n", card_now_s() - start_s,
           count + first, own_ms);
    return 0;
}

/* Idle: each waits for the one before, so that the launch reaches an empty stream. Queued: 200 behind one of
 * 2 ms, which is on while they are launched. */
static int run_short(char **values)
{
    static const int us[] = {2, 5, 10, 50};
    enum { SIZES = 4, QUEUED = 200 };
    int count = atoi(values[0]), unused;
    unsigned blocker = card_rounds(KERNEL_burn, 1, 2000, 1, &unused), rounds[SIZES];
    int first[SIZES] = {0};
    double own_ms[SIZES] = {0};
    for (int s = 0; s < SIZES; s++)
        rounds[s] = values[1] ? (unsigned)atoi(values[1 + s])
                              : card_rounds(KERNEL_queued_2us + (enum kernel)s, 1, us[s], 100, &first[s]);
    for (int s = 0; s < SIZES; s++) {
        for (int i = 0; i < count; i++) {
            card_launch(KERNEL_burn_2us + (enum kernel)s, 1, rounds[s]);
            MUST(cu.StreamSynchronize(card.stream));
        }
        for (int done = 0; done < count; done += QUEUED) {
            card_launch(KERNEL_burn, 1, blocker);
            own_ms[s] += card_timed_ms(KERNEL_queued_2us + (enum kernel)s, 1, rounds[s], QUEUED);
        }
    }
    int queued = (count + QUEUED - 1) / QUEUED * QUEUED;
    printf("{\"rounds\": [%u, %u, %u, %u], \"launches\": {", rounds[0], rounds[1], rounds[2], rounds[3]);
    for (int s = 0; s < SIZES; s++)
        printf("%s\"burn_%dus\": %d, \"queued_%dus\": %d", s ? ", " : "", us[s], count, us[s],
               queued + first[s]);
    printf("}, \"queued_us_by_own_events\": {");
    for (int s = 0; s < SIZES; s++)
        printf("%s\"%d\": %.4f", s ? ", " : "", us[s], own_ms[s] * 1000 / queued);
    printf("}}\n");
    return 0;
}

static int run_square(char **values)
{
    int first, count = 0;
    double seconds = atof(values[0]), off_ms = atof(values[2]);
    unsigned rounds = card_rounds(KERNEL_square, FILL, 1000 * atof(values[1]), 1, &first);
    double start_s = card_now_s();
    struct timespec off = {(time_t)(off_ms / 1000), (long)((off_ms - 1000 * (int)(off_ms / 1000)) * 1e6)};
    fprintf(stderr, "begin %.6f\n", start_s);
    for (; card_now_s() - start_s < seconds; count++) {
        double on_s = card_now_s();
        card_launch(KERNEL_square, FILL, rounds);
        MUST(cu.StreamSynchronize(card.stream));
        fprintf(stderr, "%.6f,%.6f\n", on_s, card_now_s());
        nanosleep(&off, NULL);
    }
    printf("{\"seconds\": %.6f, \"launches\": {\"square\": %d}}\n", card_now_s() - start_s, count + first);
    return 0;
}

static void *end_in_thread(void *unused)
{
    (void)unused;
    MUST(cu.CtxSetCurrent(card.context));
    card_launch(KERNEL_burn, FILL, 10);
    exit(5);
}

static int run_end(char **values)
{
    const char *how = values[0];
    for (int i = 0; i < 100; i++)
        card_launch(KERNEL_burn, FILL, 100);
    printf("{\"launches\": {\"burn\": 100}}\n");
    fflush(stdout);
    pthread_t thread;
    if (!strcmp(how, "_exit"))
        _exit(4);
    if (!strcmp(how, "abort"))
        abort();
    if (!strcmp(how, "segv"))
        raise(SIGSEGV);
    if (!strcmp(how, "reset"))
        MUST(cu.DevicePrimaryCtxReset_v2(0));
    if (!strcmp(how, "destroy"))
        MUST(cu.DevicePrimaryCtxRelease_v2(0));
    if (!strcmp(how, "thread") && !pthread_create(&thread, NULL, end_in_thread, NULL))
        pthread_join(thread, NULL);
    return 6;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int values;
        int (*run)(char **values);
    } ways[] = {{"launches", 1, run_launches},
                {"compute", 2, run_compute},
                {"short", 1, run_short},
                {"square", 3, run_square},
                {"end", 1, run_end}};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
        if (argc > 2 + ways[i].values - 1 && !strcmp(argv[1], ways[i].name)) {
            card_open();
            return ways[i].run(argv + 2);
        }
    fprintf(stderr, "workload: launches|compute|short|square|end, and its values?\n");
    return 2;
}
