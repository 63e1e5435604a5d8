/* SPDX-License-Identifier: Apache-2.0
 *
 * series_read.c - series files back into points. A line that cannot be understood is counted, named and
 * skipped.
 */
#include "base/file.h"
#include "folder/csv.h"
#include "folder/series_text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX     (64u << 20)
#define CHANNELS_CAP 4096

static const char *const component_names[] = {"", "gpu", "cpu", "dram", "node", NULL};
static const char *const kind_names[] = {"", "energy_uj", "power_mw", "cpu_busy_ns", "cpu_cycles", NULL};
static const char *const method_names[] = {"", "measured", "estimated", "modelled", NULL};

static void format_channel(const struct kj_channel *c, char *ret_line, size_t size)
{
    char source[120], name[240], device[320], model[480], basis[800];
    kj_csv_escape(c->source, source, sizeof(source));
    kj_csv_escape(c->name, name, sizeof(name));
    kj_csv_escape(c->device, device, sizeof(device));
    kj_csv_escape(c->model, model, sizeof(model));
    kj_csv_escape(c->basis, basis, sizeof(basis));
    snprintf(ret_line, size, "channel,%u,%s,%s,%s,%s,%s,%s,%s,%.6g,%.6g,%.6g,%llu,%llu,%s\n", c->id, source,
             name, device, model, component_names[c->component], kind_names[c->kind], method_names[c->method],
             c->gain_sd, c->low_factor, c->high_factor, (unsigned long long)c->window_ns,
             (unsigned long long)c->period_ns, basis);
}

void kj_series_format_channel(const struct kj_channel *c, char *ret_line, size_t size)
{
    format_channel(c, ret_line, size);
    size_t length = strlen(ret_line);
    if (c->pci[0]) {
        char pci[100];
        kj_csv_escape(c->pci, pci, sizeof(pci));
        snprintf(ret_line + length, size - length, "board,%u,pci,%s\n", c->id, pci);
        length += strlen(ret_line + length);
    }
    if (c->shape)
        kj_shape_format(c, ret_line + length, size - length);
}

/* A bucket of energy keeps its first and last reading exactly; one of power its mean. */
void kj_series_print_thinned(const struct kj_series_channel *channel, uint64_t width_ns, FILE *out)
{
    for (size_t i = 0; i < channel->count;) {
        const struct kj_series_point *p = &channel->points[i];
        uint64_t end_ns = (p->t_ns / width_ns + 1) * width_ns, min = p->min, max = p->max, n = 0;
        double sum = 0;
        size_t j = i;
        for (; j < channel->count && channel->points[j].t_ns < end_ns; j++) {
            const struct kj_series_point *q = &channel->points[j];
            sum += (double)q->value * q->n;
            n += q->n;
            min = q->min < min ? q->min : min;
            max = q->max > max ? q->max : max;
        }
        const struct kj_series_point *last = &channel->points[j - 1];
        fprintf(out, "m,%u,%llu,%llu,%llu,%llu,%llu,%.0f,%llu,%llu\n", channel->channel.id,
                (unsigned long long)p->t_ns, (unsigned long long)last->t_ns, (unsigned long long)n,
                (unsigned long long)p->value, (unsigned long long)min, sum / (double)n,
                (unsigned long long)max, (unsigned long long)last->value);
        i = j;
    }
    if (channel->lost_ns) {
        char text[700];
        kj_csv_escape(channel->lost_reason, text, sizeof(text));
        fprintf(out, "lost,%u,%llu,%s\n", channel->channel.id, (unsigned long long)channel->lost_ns, text);
    }
}

static int find_word(const char *const *names, const char *word)
{
    for (int i = 1; names[i]; i++)
        if (!strcmp(names[i], word))
            return i;
    return 0;
}

static struct kj_series_channel *channel_at(struct kj_series *series, const char *text)
{
    uint64_t id;
    return kj_csv_u64(text, &id) && id < series->count ? &series->channels[id] : NULL;
}

static bool add_point(struct kj_series_channel *c, struct kj_series_point point)
{
    if (c->count && point.t_ns < c->points[c->count - 1].t_ns)
        return false;
    if ((c->count & (c->count - 1)) == 0) {
        size_t cap = c->count ? c->count * 2 : 64;
        if (c->count == 0 || c->count >= 64) {
            void *larger = realloc(c->points, cap * sizeof(*c->points));
            if (!larger)
                return false;
            c->points = larger;
        }
    }
    c->points[c->count++] = point;
    return true;
}

static bool parse_channel(struct kj_series *series, char **f, size_t count)
{
    struct kj_channel c = {0};
    uint64_t id, window_ns, period_ns;
    int component = count == 15 ? find_word(component_names, f[6]) : 0;
    int kind = component ? find_word(kind_names, f[7]) : 0;
    int method = kind ? find_word(method_names, f[8]) : 0;
    if (!method || !kj_csv_u64(f[1], &id) || !kj_csv_u64(f[12], &window_ns) || !kj_csv_u64(f[13], &period_ns))
        return false;
    if (id < series->count)
        return true; /* each file repeats the channels */
    if (id != series->count || id >= CHANNELS_CAP)
        return false;
    c.id = (uint32_t)id;
    kj_csv_unescape(f[2], c.source, sizeof(c.source));
    kj_csv_unescape(f[3], c.name, sizeof(c.name));
    kj_csv_unescape(f[4], c.device, sizeof(c.device));
    kj_csv_unescape(f[5], c.model, sizeof(c.model));
    c.component = (enum kj_component)component;
    c.kind = (enum kj_quantity_kind)kind;
    c.method = (enum kj_method)method;
    c.gain_sd = strtod(f[9], NULL);
    c.low_factor = strtod(f[10], NULL);
    c.high_factor = strtod(f[11], NULL);
    c.window_ns = window_ns;
    c.period_ns = period_ns;
    kj_csv_unescape(f[14], c.basis, sizeof(c.basis));
    if (!(c.gain_sd >= 0 && c.gain_sd < 10 && c.low_factor >= 0 && c.low_factor <= c.high_factor &&
          c.high_factor < 1000))
        return false;
    struct kj_series_channel *larger = realloc(series->channels, (series->count + 1) * sizeof(*larger));
    if (!larger)
        return false;
    series->channels = larger;
    series->channels[series->count++] = (struct kj_series_channel){.channel = c};
    return true;
}

static bool parse_line(struct kj_series *series, char *line)
{
    char *f[KJ_CSV_FIELDS] = {NULL};
    uint64_t v[10];
    size_t count = kj_csv_split(line, f);
    if (!strcmp(f[0], "channel"))
        return parse_channel(series, f, count);
    struct kj_series_channel *c = count >= 4 ? channel_at(series, f[1]) : NULL;
    if (!c)
        return false;
    if (!strcmp(f[0], "shape"))
        return !kj_shape_parse(f, count, &c->channel);
    if (!strcmp(f[0], "board") && count == 4 && !strcmp(f[2], "pci")) {
        kj_csv_unescape(f[3], c->channel.pci, sizeof(c->channel.pci));
        return true;
    }
    if (!strcmp(f[0], "s") && count == 4 && kj_csv_u64(f[2], &v[0]) && kj_csv_u64(f[3], &v[1]))
        return add_point(c, (struct kj_series_point){v[0], v[1], v[1], v[1], 1});
    if (!strcmp(f[0], "lost") && kj_csv_u64(f[2], &v[0])) {
        c->lost_ns = v[0];
        kj_csv_unescape(f[3], c->lost_reason, sizeof(c->lost_reason));
        return true;
    }
    if (strcmp(f[0], "m") || count != 10)
        return false;
    for (int i = 2; i < 10; i++)
        if (!kj_csv_u64(f[i], &v[i]))
            return false;
    uint32_t n = v[4] < UINT32_MAX ? (uint32_t)v[4] : UINT32_MAX;
    if (c->channel.kind == KJ_POWER_MW)
        return n && add_point(c, (struct kj_series_point){v[3], v[7], v[6], v[8], n});
    return n && add_point(c, (struct kj_series_point){v[2], v[5], v[5], v[5], 1}) &&
           (v[3] == v[2] || add_point(c, (struct kj_series_point){v[3], v[9], v[9], v[9], 1}));
}

static void bad_line(struct kj_series *series, const char *name, size_t number, const char *what)
{
    if (series->bad_lines++ == 0)
        snprintf(series->first_bad, sizeof(series->first_bad), "%s line %zu: %s", name, number, what);
}

static int read_file(struct kj_series *series, int dir_fd, const char *name)
{
    char *text;
    size_t size;
    int status = kj_file_read(dir_fd, name, FILE_MAX, &text, &size);
    if (status) {
        bad_line(series, name, 0, strerror(-status));
        return status;
    }
    size_t number = 1;
    char *line = text, *newline;
    for (; (newline = memchr(line, '\n', size - (size_t)(line - text))); line = newline + 1, number++) {
        *newline = 0;
        if (number == 1 && strcmp(line, KJ_SERIES_SCHEMA)) {
            bad_line(series, name, 1, "not " KJ_SERIES_SCHEMA);
            break;
        }
        if (number > 1 && (strlen(line) != (size_t)(newline - line) || !parse_line(series, line)))
            bad_line(series, name, number, "not understood");
    }
    free(text); /* what stands after the last newline was torn by a kill */
    return 0;
}

int kj_series_read_file(int dir_fd, const char *name, struct kj_series **ret_series)
{
    struct kj_series *series = calloc(1, sizeof(*series));
    if (!series)
        return -ENOMEM;
    int status = read_file(series, dir_fd, name);
    if (status)
        kj_series_free(series);
    else
        *ret_series = series;
    return status;
}

static int is_series(const struct dirent *entry)
{
    size_t length = strlen(entry->d_name), prefix = strlen(KJ_SERIES_PREFIX),
           suffix = strlen(KJ_SERIES_SUFFIX);
    return length > prefix + suffix && !strncmp(entry->d_name, KJ_SERIES_PREFIX, prefix) &&
           !strcmp(entry->d_name + length - suffix, KJ_SERIES_SUFFIX);
}

int kj_series_read(int dir_fd, struct kj_series **ret_series, struct kj_error *error)
{
    struct dirent **entries = NULL;
    int count = scandirat(dir_fd, ".", &entries, is_series, alphasort);
    struct kj_series *series = count > 0 ? calloc(1, sizeof(*series)) : NULL;
    for (int i = 0; i < count; i++) {
        if (series)
            read_file(series, dir_fd, entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    if (!series) {
        kj_error_set(error, "no power samples in the run folder");
        return count == 0 ? -ENOENT : count < 0 ? -errno : -ENOMEM;
    }
    *ret_series = series;
    return 0;
}

struct kj_series *kj_series_free(struct kj_series *series)
{
    if (!series)
        return NULL;
    for (size_t i = 0; i < series->count; i++)
        free(series->channels[i].points);
    free(series->channels);
    free(series);
    return NULL;
}
