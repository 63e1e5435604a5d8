/* SPDX-License-Identifier: Apache-2.0
 *
 * replay.c - a recorded series file in place of sensors: the same values, at the same distances in time, from
 * the moment of opening.
 *
 * The format is that of folder/series.h, which stands above this room; only one file is read here, and,
 * unlike a report, a replay takes no broken file: the first bad line refuses it. A torn last line is no
 * fault.
 */
#include "base/file.h"
#include "power/source.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHANNELS_MAX = 1024, FIELDS_MAX = 16, FILE_MAX = 128 << 20 };

struct replay {
    uint64_t
        offset_ns; /* added to recorded times; wraps on purpose when the recording is from a later clock */
    uint32_t count;
    struct track {
        uint32_t recorded_id;
        enum kj_quantity_kind kind;
        bool ours; /* power; the recorder's CPU times are its own */
        bool any;  /* last_* hold something */
        uint64_t last_ns, last_value, lost_ns;
        uint32_t slot;
        char lost_reason[160];
        bool told;
    } tracks[CHANNELS_MAX];
    struct kj_sample *samples; /* recorded times; channel: place in tracks */
    size_t samples_count, samples_room, next;
    uint64_t first_ns, last_ns;
    uint64_t drained_ns; /* recorded time up to which samples were given out */
};

/* Why a line is refused; NULL is fine. */
typedef const char *complaint;

static void unescape(char *ret_text, size_t size, const char *text)
{
    size_t length = 0;
    while (*text && length + 1 < size) {
        if (text[0] == '\\' && text[1] == 'x' && isxdigit((unsigned char)text[2]) &&
            isxdigit((unsigned char)text[3])) {
            char hex[3] = {text[2], text[3], 0};
            ret_text[length++] = (char)strtoul(hex, NULL, 16);
            text += 4;
        } else {
            ret_text[length++] = *text++;
        }
    }
    ret_text[length] = 0;
}

static bool number(const char *text, uint64_t *ret_value)
{
    char *end;
    errno = 0;
    *ret_value = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && !*end && !errno;
}

static bool real(const char *text, double low, double high, double *ret_value)
{
    char *end;
    *ret_value = strtod(text, &end);
    return end != text && !*end && isfinite(*ret_value) && *ret_value >= low && *ret_value <= high;
}

/* Names or numbers of an enumeration whose first value is 1. */
static bool word(const char *text, const char *const *names, uint64_t count, uint64_t *ret_value)
{
    if (number(text, ret_value))
        return *ret_value >= 1 && *ret_value <= count;
    for (uint64_t i = 0; i < count; i++)
        if (!strcmp(text, names[i])) {
            *ret_value = i + 1;
            return true;
        }
    return false;
}

static struct track *find_track(struct replay *replay, const char *text)
{
    uint64_t id;
    if (!number(text, &id))
        return NULL;
    for (uint32_t i = 0; i < replay->count; i++)
        if (replay->tracks[i].recorded_id == id)
            return &replay->tracks[i];
    return NULL;
}

static complaint take_channel(struct replay *replay, struct kj_power *power, char **field, size_t fields)
{
    static const char *const components[] = {"gpu", "cpu", "dram", "node"};
    static const char *const kinds[] = {"energy_uj", "power_mw", "cpu_busy_ns", "cpu_cycles"};
    static const char *const methods[] = {"measured", "estimated", "modelled"};
    uint64_t id, component = 0, kind, method;
    struct kj_channel channel = {0};
    if (fields != 15)
        return "a channel has 15 fields";
    if (!number(field[1], &id) || id > UINT32_MAX)
        return "the channel's id is no number";
    if (replay->count == CHANNELS_MAX || find_track(replay, field[1]))
        return find_track(replay, field[1]) ? "this channel's id was used before" : "too many channels";
    /* The recorder's own channels belong to no component. */
    if (!word(field[7], kinds, 4, &kind) || !word(field[8], methods, 3, &method) ||
        (kind < KJ_CPU_BUSY_NS && !word(field[6], components, 4, &component)))
        return "unknown component, kind or method";
    if (!real(field[9], 0, 10, &channel.gain_sd) || !real(field[10], 0, 1e6, &channel.low_factor) ||
        !real(field[11], channel.low_factor, 1e6, &channel.high_factor) ||
        !number(field[12], &channel.window_ns) || !number(field[13], &channel.period_ns))
        return "a bound, window or period of the channel is no number or out of range";
    struct track *track = &replay->tracks[replay->count++];
    track->recorded_id = (uint32_t)id;
    track->kind = (enum kj_quantity_kind)kind;
    track->ours = kind < KJ_CPU_BUSY_NS;
    if (!track->ours)
        return NULL;
    unescape(channel.source, sizeof(channel.source), field[2]);
    unescape(channel.name, sizeof(channel.name), field[3]);
    unescape(channel.device, sizeof(channel.device), field[4]);
    unescape(channel.model, sizeof(channel.model), field[5]);
    char basis[160];
    unescape(basis, sizeof(basis), field[14]);
    /* Once is enough: a recording may be of a replay. */
    kj_text(channel.basis, sizeof(channel.basis), "%s%.140s",
            strncmp(basis, "replayed: ", 10) ? "replayed: " : "", basis);
    channel.component = (enum kj_component)component;
    channel.kind = track->kind;
    channel.method = (enum kj_method)method;
    if (!channel.source[0] || !channel.device[0])
        return "the channel names no source or device";
    track->slot = 0;
    for (uint32_t i = 0; i + 1 < replay->count; i++)
        track->slot += replay->tracks[i].ours;
    return kj_power_add(power, track->slot, &channel) ? "out of memory" : NULL;
}

static complaint take_point(struct replay *replay, struct track *track, uint64_t t_ns, uint64_t value)
{
    if (track->any && t_ns < track->last_ns)
        return "time runs backwards";
    if (track->any && track->kind == KJ_ENERGY_UJ && value < track->last_value)
        return "an energy counter runs backwards";
    track->any = true;
    track->last_ns = t_ns;
    track->last_value = value;
    if (!track->ours)
        return NULL;
    if (replay->samples_count == replay->samples_room) {
        size_t room = replay->samples_room ? replay->samples_room * 2 : 4096;
        struct kj_sample *samples = realloc(replay->samples, room * sizeof(*samples));
        if (!samples)
            return "out of memory";
        replay->samples = samples;
        replay->samples_room = room;
    }
    replay->samples[replay->samples_count++] =
        (struct kj_sample){.channel = track->slot, .t_ns = t_ns, .value = value};
    return NULL;
}

static complaint take_sample(struct replay *replay, struct track *track, char **field, size_t fields)
{
    uint64_t t_ns, value;
    if (fields != 4 || !number(field[2], &t_ns) || !number(field[3], &value))
        return "a sample is s,channel,time,value";
    return take_point(replay, track, t_ns, value);
}

/* Samples that were thinned into one come back as its two ends. */
static complaint take_thinned(struct replay *replay, struct track *track, char **field, size_t fields)
{
    uint64_t v[8]; /* t_first t_last n first min mean max last */
    if (fields != 10)
        return "a thinned sample has 10 fields";
    for (int i = 0; i < 8; i++)
        if (!number(field[2 + i], &v[i]))
            return "a field of a thinned sample is no number";
    if (v[1] < v[0] || !v[2])
        return "a thinned sample ends before it begins, or holds none";
    bool power = track->kind == KJ_POWER_MW;
    complaint why = take_point(replay, track, v[0], power ? v[5] : v[3]);
    return why || v[1] == v[0] ? why : take_point(replay, track, v[1], power ? v[5] : v[7]);
}

static complaint take_lost(struct track *track, char **field, size_t fields)
{
    if (fields != 4 || !number(field[2], &track->lost_ns))
        return "a loss is lost,channel,time,reason";
    unescape(track->lost_reason, sizeof(track->lost_reason), field[3]);
    return NULL;
}

static complaint take_shape(struct kj_power *power, const struct track *track, char **field, size_t fields)
{
    struct kj_channel unused = {0}, *channel = track->ours ? kj_power_slot(power, track->slot) : &unused;
    if (!channel || kj_shape_parse(field, fields, channel))
        return "a shape is shape,channel,source,kernel,delay,gain,gain mean,noise";
    return NULL;
}

static complaint take_line(struct replay *replay, struct kj_power *power, char *line)
{
    char *field[FIELDS_MAX];
    size_t fields = 0;
    for (char *rest = line; rest;) {
        if (fields == FIELDS_MAX)
            return "too many fields";
        field[fields++] = strsep(&rest, ",");
    }
    if (!strcmp(field[0], "channel"))
        return take_channel(replay, power, field, fields);
    bool sample = !strcmp(field[0], "s"), thinned = !strcmp(field[0], "m"), lost = !strcmp(field[0], "lost");
    bool shape = !strcmp(field[0], "shape");
    if (!sample && !thinned && !lost && !shape)
        return "neither channel, shape, s, m nor lost";
    struct track *track = fields > 1 ? find_track(replay, field[1]) : NULL;
    if (!track)
        return "a channel that no earlier line describes";
    if (shape)
        return take_shape(power, track, field, fields);
    return sample    ? take_sample(replay, track, field, fields)
           : thinned ? take_thinned(replay, track, field, fields)
                     : take_lost(track, field, fields);
}

static int refuse(struct kj_source_status *status, const char *file, size_t line, const char *why)
{
    size_t length = strlen(file); /* the end of a long path says more than its beginning */
    const char *shown = length > 90 ? file + length - 90 : file;
    if (line)
        kj_text(status->reason, sizeof(status->reason), "%s line %zu: %s", shown, line, why);
    else
        kj_text(status->reason, sizeof(status->reason), "%s: %s", shown, why);
    return !strcmp(why, "out of memory") ? -ENOMEM : -EINVAL;
}

static int by_time(const void *a, const void *b)
{
    const struct kj_sample *x = a, *y = b;
    if (x->t_ns != y->t_ns)
        return x->t_ns < y->t_ns ? -1 : 1;
    return (x->channel > y->channel) - (x->channel < y->channel);
}

static int parse(struct replay *replay, struct kj_power *power, const char *file, char *text, size_t size,
                 struct kj_source_status *status)
{
    static const char header[] = "kjoule.series/1";
    if (strlen(text) != size)
        return refuse(status, file, 0, "not a series file: it holds zero bytes");
    size_t line_number = 0;
    for (char *line = text, *end; *line; line = end + 1) {
        line_number++;
        end = strchr(line, '\n');
        if (!end) /* a kill tore it */
            break;
        *end = 0;
        if (line_number == 1 && strcmp(line, header))
            return refuse(status, file, 1, "not a series file: expected kjoule.series/1");
        complaint why = line_number > 1 ? take_line(replay, power, line) : NULL;
        if (why)
            return refuse(status, file, line_number, why);
    }
    if (!replay->samples_count)
        return refuse(status, file, 0, "holds no power sample");
    qsort(replay->samples, replay->samples_count, sizeof(*replay->samples), by_time);
    replay->first_ns = replay->samples[0].t_ns;
    replay->last_ns = replay->samples[replay->samples_count - 1].t_ns;
    return 0;
}

static void replay_close(void *state)
{
    struct replay *replay = state;
    if (!replay)
        return;
    free(replay->samples);
    free(replay);
}

static int replay_open(const struct kj_source_env *env, struct kj_power *power,
                       struct kj_source_status *status, void **ret_state)
{
    char *text;
    size_t size;
    int error = kj_file_read(AT_FDCWD, env->replay_file, FILE_MAX, &text, &size);
    if (error == -ENOMEM)
        return error;
    if (error)
        return refuse(status, env->replay_file, 0,
                      error == -EINVAL  ? "not a plain file; give one series.<nnn>.csv of a run folder"
                      : error == -ELOOP ? "is a symbolic link; give the file itself"
                      : error == -EFBIG ? "larger than 128 MiB"
                                        : strerror(-error));
    struct replay *replay = calloc(1, sizeof(*replay));
    error = replay ? parse(replay, power, env->replay_file, text, size, status) : -ENOMEM;
    free(text);
    if (error) {
        replay_close(replay);
        return error;
    }
    replay->offset_ns = kj_power_now_ns() - replay->first_ns;
    char length[32];
    kj_format_time(length, sizeof(length), (double)(replay->last_ns - replay->first_ns));
    kj_text(status->reason, sizeof(status->reason), "recording of %s, %zu samples, in place of all sensors",
            length, replay->samples_count);
    *ret_state = replay;
    return 0;
}

static int replay_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    (void)state;
    (void)slot;
    (void)ret_value;
    return -ENODATA;
}

static size_t replay_drain(void *state, uint64_t now_ns, struct kj_sample *ret_samples, size_t cap)
{
    struct replay *replay = state;
    uint64_t recorded_now_ns = now_ns - replay->offset_ns;
    size_t done = 0;
    while (done < cap && replay->next < replay->samples_count &&
           replay->samples[replay->next].t_ns <= recorded_now_ns) {
        ret_samples[done] = replay->samples[replay->next++];
        ret_samples[done++].t_ns += replay->offset_ns;
    }
    if (replay->next == replay->samples_count || replay->samples[replay->next].t_ns > recorded_now_ns)
        replay->drained_ns = recorded_now_ns;
    return done;
}

/* A recording that has come to its end is a sensor that fell silent. */
static bool replay_lost(void *state, uint32_t *ret_slot, char *ret_reason, size_t size)
{
    struct replay *replay = state;
    for (uint32_t i = 0; i < replay->count; i++) {
        struct track *track = &replay->tracks[i];
        bool lost = track->lost_ns && replay->drained_ns >= track->lost_ns;
        bool ended = replay->next == replay->samples_count && replay->drained_ns > replay->last_ns;
        if (!track->ours || track->told || (!lost && !ended))
            continue;
        track->told = true;
        *ret_slot = track->slot;
        char length[32];
        kj_format_time(length, sizeof(length), (double)(replay->last_ns - replay->first_ns));
        if (lost)
            kj_text(ret_reason, size, "replayed: %s", track->lost_reason);
        else
            kj_text(ret_reason, size, "the recording ended after %s", length);
        return true;
    }
    return false;
}

const struct kj_source_ops kj_source_replay = {.name = "replay",
                                               .open = replay_open,
                                               .read = replay_read,
                                               .close = replay_close,
                                               .drain = replay_drain,
                                               .lost = replay_lost};
