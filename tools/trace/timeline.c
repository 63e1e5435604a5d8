/* SPDX-License-Identifier: Apache-2.0
 *
 * timeline.c - `start_ns,end_ns,name[,device,stream]`, in any order of columns; and the choice of the reader.
 */
#include "trace/text.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum column { START, END, NAME, DEVICE, STREAM, COLUMNS };
static const char *const columns[COLUMNS] = {"start_ns", "end_ns", "name", "device", "stream"};

static int find_columns(struct kj_trace_text *text, char **fields, size_t count, int *ret_at,
                        struct kj_error *error)
{
    for (int c = 0; c < COLUMNS; c++) {
        ret_at[c] = -1;
        for (size_t f = 0; f < count; f++) {
            if (strcmp(fields[f], columns[c]))
                continue;
            if (ret_at[c] >= 0)
                return kj_trace_complain(text, error, "column %s twice", columns[c]);
            ret_at[c] = (int)f;
        }
    }
    for (int c = START; c <= NAME; c++)
        if (ret_at[c] < 0)
            return kj_trace_complain(text, error,
                                     "no column %s; the header of a timeline is "
                                     "start_ns,end_ns,name[,device,stream]",
                                     columns[c]);
    return 0;
}

static int take_launch(struct kj_trace_text *text, char **fields, const int *at, struct kj_trace_names *names,
                       struct kj_trace_names *devices, struct kj_trace_launch *ret_launch,
                       struct kj_error *error)
{
    struct kj_trace_launch launch = {0};
    int64_t stream = 0, name, device;
    for (int c = START; c <= END; c++)
        if (!kj_trace_whole(fields[at[c]], c == START ? &launch.start_ns : &launch.end_ns))
            return kj_trace_complain(text, error, "%s '%.40s' is no whole number of nanoseconds", columns[c],
                                     fields[at[c]]);
    if (launch.end_ns < launch.start_ns)
        return kj_trace_complain(text, error, "ends before it starts; are the columns swapped?");
    if (!*fields[at[NAME]])
        return kj_trace_complain(text, error, "no name; give each launch one");
    if (at[STREAM] >= 0 && *fields[at[STREAM]] &&
        (!kj_trace_whole(fields[at[STREAM]], &stream) || stream > UINT32_MAX))
        return kj_trace_complain(text, error, "stream '%.40s' is no whole number", fields[at[STREAM]]);
    name = kj_trace_name(names, fields[at[NAME]]);
    device = kj_trace_name(devices, at[DEVICE] >= 0 ? fields[at[DEVICE]] : "");
    if (name < 0 || device < 0)
        return -ENOMEM;
    launch.name = (uint32_t)name;
    launch.device = (uint32_t)device;
    launch.stream = (uint32_t)stream;
    *ret_launch = launch;
    return 0;
}

int kj_trace_timeline_csv(struct kj_trace_text *text, struct kj_trace_timeline *timeline,
                          struct kj_error *error)
{
    char *fields[KJ_TRACE_FIELDS];
    struct kj_trace_names names = {0}, devices = {0};
    size_t count, width, cap = 0;
    int at[COLUMNS], status = kj_trace_line(text, fields, &width, error);
    timeline->format = "csv";
    if (!status && !width)
        status = kj_trace_complain(text, error, "empty; a timeline starts with start_ns,end_ns,name");
    if (!status)
        status = find_columns(text, fields, width, at, error);
    while (!status && !(status = kj_trace_line(text, fields, &count, error)) && count) {
        if (count != width)
            status = kj_trace_complain(text, error,
                                       "%zu fields where the header has %zu; put names with a comma in \"\"",
                                       count, width);
        else
            status = kj_trace_grow((void **)&timeline->launches, timeline->launch_count, &cap,
                                   sizeof(*timeline->launches));
        if (!status)
            status = take_launch(text, fields, at, &names, &devices,
                                 &timeline->launches[timeline->launch_count], error);
        timeline->launch_count += !status;
    }
    timeline->names = kj_trace_names_take(&names, &timeline->name_count);
    timeline->devices = kj_trace_names_take(&devices, &timeline->device_count);
    return status;
}

int kj_trace_timeline_read(const char *path, struct kj_trace_timeline **ret_timeline, struct kj_error *error)
{
    struct kj_trace_text text;
    int status = kj_trace_text_open(path, &text, error);
    if (status)
        return status;
    struct kj_trace_timeline *timeline = calloc(1, sizeof(*timeline));
    char first = text.data[strspn(text.data, " \t\r\n")];
    if (!timeline)
        status = -ENOMEM;
    else if (first == '{' || first == '[')
        status = kj_trace_timeline_chrome(&text, timeline, error);
    else
        status = kj_trace_timeline_csv(&text, timeline, error);
    if (!status && !timeline->launch_count) {
        kj_error_set(error, "%s holds no launch; was the GPU traced (ProfilerActivity.CUDA)?", path);
        status = -EINVAL;
    }
    kj_trace_text_close(&text);
    if (status)
        timeline = kj_trace_timeline_free(timeline);
    *ret_timeline = timeline;
    return status;
}

static void free_list(char **list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(list[i]);
    free(list);
}

struct kj_trace_timeline *kj_trace_timeline_free(struct kj_trace_timeline *timeline)
{
    if (!timeline)
        return NULL;
    free_list(timeline->names, timeline->name_count);
    free_list(timeline->devices, timeline->device_count);
    free(timeline->launches);
    free(timeline);
    return NULL;
}
