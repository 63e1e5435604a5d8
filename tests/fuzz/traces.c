/* SPDX-License-Identifier: Apache-2.0
 *
 * traces.c - timelines and power logs of other tools, as anybody may have written them. Input: a byte that
 * chooses the reader, then the file. What both readers took is attributed: that must add up, whatever it is.
 */
#include "trace/attribute.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char power_text[] =
    "t_ns,power_mw,energy_uj\n"
    "0,50000,0\n100000000,51000,5000000\n200000000,200000,17000000\n"
    "300000000,210000,38000000\n400000000,55000,50000000\n500000000,52000,55000000\n"
    "600000000,53000,60000000\n700000000,51000,65000000\n800000000,52000,70000000\n"
    "900000000,52500,75000000\n1000000000,52100,80000000\n1100000000,52000,85000000\n";
static const char timeline_text[] = "start_ns,end_ns,name\n150000000,350000000,a\n360000000,361000000,b\n";

static void path_of(const char *name, char *ret_path, size_t size)
{
    static char folder[40];
    if (!*folder) {
        snprintf(folder, sizeof(folder), "/tmp/kj_fuzz.XXXXXX");
        if (!mkdtemp(folder))
            abort();
    }
    snprintf(ret_path, size, "%s/%s", folder, name);
}

static void put(const char *path, const void *data, size_t size)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    close(fd);
}

static void check_timeline(const struct kj_trace_timeline *timeline)
{
    for (size_t i = 0; i < timeline->launch_count; i++)
        if (timeline->launches[i].name >= timeline->name_count ||
            timeline->launches[i].device >= timeline->device_count ||
            timeline->launches[i].end_ns < timeline->launches[i].start_ns)
            abort();
}

static void check_power(const struct kj_trace_power *power)
{
    for (size_t s = 0; s < power->count; s++)
        for (size_t i = 1; i < power->series[s].count; i++)
            if (power->series[s].readings[i].t_ns < power->series[s].readings[i - 1].t_ns ||
                (power->series[s].counter &&
                 power->series[s].readings[i].value < power->series[s].readings[i - 1].value))
                abort();
}

static void attribute(const struct kj_trace_timeline *timeline, const struct kj_trace_power *power)
{
    struct kj_trace_question question = {.timeline = timeline, .align = timeline->launch_count % 2};
    struct kj_trace_answer *answer;
    struct kj_error error = {0};
    for (size_t s = 0; s < power->count && s < KJ_TRACE_SERIES_CAP; s++)
        if (power->series[s].count > 1)
            question.sources[question.source_count++].series = &power->series[s];
    if (!question.source_count)
        return;
    int status = kj_trace_attribute(&question, &answer, &error);
    if (status && !*error.text)
        abort();
    if (!status && (answer->result->total_uj < 0 || answer->total.low_uj > answer->total.total_uj ||
                    answer->total.high_uj < answer->total.total_uj))
        abort();
    kj_trace_answer_free(answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kj_trace_timeline *timeline;
    struct kj_trace_power *power;
    struct kj_error error = {0};
    char timeline_path[80], power_path[80];
    if (!size)
        return 0;
    bool is_power = data[0] == 'p';
    path_of("t", timeline_path, sizeof(timeline_path));
    path_of("p", power_path, sizeof(power_path));
    put(timeline_path, is_power ? (const void *)timeline_text : data + 1,
        is_power ? sizeof(timeline_text) - 1 : size - 1);
    put(power_path, is_power ? data + 1 : (const void *)power_text,
        is_power ? size - 1 : sizeof(power_text) - 1);
    int first = kj_trace_timeline_read(timeline_path, &timeline, &error);
    if (first && !*error.text)
        abort();
    if (!first)
        check_timeline(timeline);
    int second = kj_trace_power_read(power_path, &power, &error);
    if (second && !*error.text)
        abort();
    if (!second)
        check_power(power);
    static unsigned taken; /* the model is slow beside the readers */
    if (!first && !second && taken++ % 8 == 0)
        attribute(timeline, power);
    kj_trace_timeline_free(timeline);
    kj_trace_power_free(power);
    unlink(timeline_path);
    unlink(power_path);
    return 0;
}

size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap);
size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap)
{
    static const char *const seeds[] = {
        timeline_text,
        "start_ns,end_ns,name,device,stream\r\n150000000,350000000,\"gemm<a, \"\"b\"\">\",0,7\r\n"
        "350000001,450000000,\"copy\",0,8\r\n",
        "{\"baseTimeNanoseconds\": 100, \"traceEvents\": "
        "[{\"ph\":\"X\",\"cat\":\"kernel\",\"name\":\"k\",\"ts\":"
        "150000.5,\"dur\":2e5,\"args\":{\"device\":0,\"stream\":7}},{\"ph\":\"X\",\"cat\":\"gpu_memcpy\","
        "\"name\":"
        "\"Memcpy HtoD\",\"ts\":\"350001\",\"dur\":1000,\"args\":{\"device\":0}}]}",
        "[{\"ph\":\"X\",\"cat\":\"gpu_memset\",\"name\":\"m\",\"ts\":150000,\"dur\":9}]",
        power_text,
        "t_ns,power_mw\n0,1\n100,2\n200000000,300000\n900000000,5\n",
        "timestamp, index, power.draw [W], power.limit [W]\n2024/05/21 13:45:12.345, 0, 56.38 W, 400.00 W\n"
        "2024/05/21 13:45:12.445, 0, [N/A], 400.00 W\n2024/05/21 13:45:12.545, 0, 58.38 W, 400.00 W\n",
    };
    if (i >= sizeof(seeds) / sizeof(*seeds))
        return 0;
    ret_data[0] = i < 4 ? 't' : 'p';
    snprintf((char *)ret_data + 1, cap - 1, "%s", seeds[i]);
    return strlen(seeds[i]) + 1;
}
