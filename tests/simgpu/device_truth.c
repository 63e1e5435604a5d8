/* SPDX-License-Identifier: Apache-2.0
 *
 * device_truth.c - writes what really happened, for tests to compare with.
 */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const call_names[] = {
#define EXPORT(symbol, name, version, lane) #symbol,
#include "cuda_exports.def"
#undef EXPORT
};

static void write_text(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text; text++)
        if (*text == '"' || *text == '\\')
            fprintf(out, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            fprintf(out, "\\u%04x", (unsigned char)*text);
        else
            fputc(*text, out);
    fputc('"', out);
}

static void write_activities(FILE *out, const struct sim_device *d, bool copies)
{
    const char *comma = "";
    for (uint32_t i = 0; i < d->kernels; i++) {
        const struct sim_kernel *k = &d->kernel[i];
        if (k->copy != copies)
            continue;
        fprintf(out, "%s\n    {\"name\": ", comma);
        comma = ",";
        write_text(out, k->name);
        fprintf(out,
                ", \"launches\": %llu, \"graph_launches\": %llu, \"time_ns\": %llu, \"energy_uj\": %.0f}",
                (unsigned long long)k->launches, (unsigned long long)k->graph_launches,
                (unsigned long long)k->time_ns, k->energy_nj * 1e-3);
    }
}

static void write_device(FILE *out, const struct sim_device *d, int index)
{
    uint8_t uuid[16];
    sim_uuid(index, uuid);
    fprintf(out, "%s\n  {\"uuid\": \"GPU-", index ? "," : "");
    for (int i = 0; i < 16; i++)
        fprintf(out, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    fprintf(out, "\", \"energy_uj\": %.0f, \"idle_uj\": %.0f, \"busy_ns\": %llu, \"kernels\": [",
            d->energy_nj * 1e-3, d->idle_nj * 1e-3, (unsigned long long)d->busy_ns);
    write_activities(out, d, false);
    fprintf(out, "], \"copies\": [");
    write_activities(out, d, true);
    fprintf(out, "], \"marks\": [");
    for (uint32_t i = 0; i < d->marks; i++) {
        const struct sim_mark *m = &d->mark[i];
        fprintf(out, "%s\n    {\"mark\": ", i ? "," : "");
        write_text(out, m->name);
        fprintf(out, ", \"launches\": %llu, \"copies\": %llu, \"time_ns\": %llu, \"energy_uj\": %.0f}",
                (unsigned long long)m->launches, (unsigned long long)m->copies,
                (unsigned long long)m->time_ns, m->energy_nj * 1e-3);
    }
    fprintf(out, "]}");
}

static FILE *timeline;

static void open_timeline(void)
{
    const char *path = getenv("KJ_SIM_TIMELINE");
    if (path && *path && (timeline = fopen(path, "we")))
        fprintf(timeline, "start_ns,end_ns,name,device\n");
}

void sim_timeline_add(int device, uint64_t start_ns, uint64_t end_ns, const char *name)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_timeline);
    if (timeline) /* closed by exit */
        fprintf(timeline, "%llu,%llu,%s,%d\n", (unsigned long long)start_ns, (unsigned long long)end_ns, name,
                device);
}

int sim_truth_write(struct sim_machine *m, const char *path)
{
    char temporary[4096];
    bool to_stdout = !strcmp(path, "-");
    snprintf(temporary, sizeof(temporary), "%s.%d.tmp", path, (int)getpid());
    for (int i = 0; i < m->script.devices; i++)
        sim_energy_at(i, UINT64_MAX); /* folds up to now */
    FILE *out = to_stdout ? stdout : fopen(temporary, "we");
    if (!out)
        return -1;
    fprintf(out, "{\"schema\": \"simgpu.truth/1\", \"zero_ns\": %llu, \"devices\": [",
            (unsigned long long)m->zero_ns);
    for (int i = 0; i < m->script.devices; i++)
        write_device(out, &m->device[i], i);
    fprintf(out, "],\n \"calls\": {");
    const char *comma = "";
    for (size_t i = 0; i < sizeof(call_names) / sizeof(*call_names); i++)
        if (m->calls[i]) {
            fprintf(out, "%s\"%s\": %llu", comma, call_names[i], (unsigned long long)m->calls[i]);
            comma = ", ";
        }
    fprintf(out, "}}\n");
    if (to_stdout)
        return fflush(out);
    return fclose(out) || rename(temporary, path);
}
