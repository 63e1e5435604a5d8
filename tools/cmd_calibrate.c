/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_calibrate.c - `kjoule calibrate`: switches a load on one idle GPU on and off, watches what its sensors
 * show of it, and keeps what that tells of them for later runs: window, update period, delay, noise, and
 * whether the energy counter sees all of the time. The method: model/wave_shape.h.
 */
#include "base/file.h"
#include "base/units.h"
#include "commands.h"
#include "power/calibration.h"
#include "power/gpu.h"
#include "wave.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char usage[] =
    "usage: kjoule calibrate [--device N|GPU-UUID] [--seconds S] [--gain G[,SD]] [-o FILE] [--raw FILE] "
    "[-q]\n"
    "Switches a load on one idle GPU on and off for a minute, and finds from it how its power sensors work: "
    "window,\n"
    "update period, delay, noise, and whether the energy counter sees all of the time. Later runs of this "
    "user on\n"
    "this board and driver use it by themselves.\n"
    "  --device N      which GPU, by nvidia-smi's number or the beginning of its UUID; 0 when not given\n"
    "  --seconds S     how long, 10 to 600; 60 when not given\n"
    "  --gain G[,SD]   reading / true power by a meter of your own, and its 1 sigma (0.01 when not given); "
    "kept\n"
    "  -o FILE         write the result there, too (JSON; - is standard output)\n"
    "  --raw FILE      write what was switched and read (JSON)\n"
    "  -q              no progress\n";

enum { SENSORS_CAP = 4, ON_CAP = 200000, POLL_NS = 1000000, SAMPLES_CAP = 1024 };
#define STEADY_LEAST_S 1.5

struct plan {
    const char *device, *file, *raw;
    double seconds, gain, gain_sd;
    bool quiet;
};

/* What the sensors said. Filled by a thread of its own, and read when that has ended. */
struct sensor {
    const struct kj_channel *channel;
    struct kj_reading *readings;
    size_t count, room;
};

struct session {
    struct plan plan;
    struct kj_gpu gpu;
    struct kj_power *power;
    struct kj_load *load;
    struct sensor sensors[SENSORS_CAP];
    size_t count;
    pthread_t thread;
    atomic_bool stop, full;
    struct kj_model_span *on, use[16], steady_on, steady_off;
    size_t on_count, use_count;
    struct kj_calibration result;
};

/* ---- what is asked for */

static bool parse_number(const char *text, double low, double high, double *ret_value, const char **ret_rest)
{
    char *end;
    *ret_value = strtod(text, &end);
    *ret_rest = end;
    return end != text && *ret_value >= low && *ret_value <= high;
}

static int take(struct plan *plan, const char *name, const char *value, struct kj_error *error)
{
    const char *rest = "";
    if (!strcmp(name, "--device")) {
        plan->device = value;
    } else if (!strcmp(name, "-o") || !strcmp(name, "--output")) {
        plan->file = value;
    } else if (!strcmp(name, "--raw")) {
        plan->raw = value;
    } else if (!strcmp(name, "--seconds")) {
        if (!parse_number(value, 10, 600, &plan->seconds, &rest) || *rest) {
            kj_error_set(error, "--seconds: '%s' is not a time from 10 to 600 seconds", value);
            return -EINVAL;
        }
    } else {
        plan->gain_sd = 0.01;
        if (!parse_number(value, 0.3, 3, &plan->gain, &rest) ||
            (*rest == ',' && !parse_number(rest + 1, 0, 0.5, &plan->gain_sd, &rest)) || *rest) {
            kj_error_set(error,
                         "--gain: '%s' is not G or G,SD, as in 0.954,0.015 (reading / true power, 0.3 to 3)",
                         value);
            return -EINVAL;
        }
    }
    return 0;
}

static int parse(int argc, char **argv, struct plan *plan, struct kj_error *error)
{
    static const char *const names[] = {"--device", "--seconds", "--gain", "--raw", "--output", "-o"};
    for (int i = 1; i < argc; i++) {
        size_t length = strcspn(argv[i], "="), known = 0;
        if (!strcmp(argv[i], "-q") || !strcmp(argv[i], "--quiet")) {
            plan->quiet = true;
            continue;
        }
        while (known < sizeof(names) / sizeof(names[0]) &&
               (strlen(names[known]) != length || memcmp(names[known], argv[i], length)))
            known++;
        if (known == sizeof(names) / sizeof(names[0])) {
            kj_error_set(error, "calibrate: unknown argument '%s'; kjoule calibrate --help lists them",
                         argv[i]);
            return -EINVAL;
        }
        if (!argv[i][length] && i + 1 >= argc) {
            kj_error_set(error, "calibrate: %s needs a value", argv[i]);
            return -EINVAL;
        }
        const char *value = argv[i][length] ? argv[i] + length + 1 : argv[++i];
        if (take(plan, names[known], value, error))
            return -EINVAL;
    }
    return 0;
}

/* ---- reading */

static void keep(struct session *s, const struct kj_sample *sample)
{
    for (size_t i = 0; i < s->count; i++) {
        struct sensor *sensor = &s->sensors[i];
        if (sensor->channel->id != sample->channel)
            continue;
        if (sensor->count == sensor->room) {
            size_t room = sensor->room ? 2 * sensor->room : 4096;
            void *larger = realloc(sensor->readings, room * sizeof(*sensor->readings));
            if (!larger) {
                atomic_store(&s->full, true);
                return;
            }
            sensor->readings = larger;
            sensor->room = room;
        }
        sensor->readings[sensor->count++] = (struct kj_reading){sample->t_ns, sample->value};
    }
}

static void *read_sensors(void *argument)
{
    struct session *s = argument;
    struct kj_sample samples[SAMPLES_CAP];
    while (!atomic_load(&s->stop)) {
        size_t count = kj_power_read(s->power, samples, SAMPLES_CAP);
        for (size_t i = 0; i < count; i++)
            keep(s, &samples[i]);
        const struct timespec pause = {.tv_nsec = POLL_NS};
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static int open_sensors(struct session *s, struct kj_error *error)
{
    static const char *const only[] = {"nvml", NULL};
    const struct kj_power_config config = {.sysfs_root = "", .only = only, .eager = true};
    const struct kj_channel *channels;
    int status = kj_power_open(&config, &s->power, error);
    if (status)
        return status;
    size_t count = kj_power_channels(s->power, &channels);
    for (size_t i = 0; i < count; i++)
        if (strcmp(channels[i].device, s->gpu.uuid))
            kj_power_exclude_device(s->power, channels[i].device);
        else if (s->count < SENSORS_CAP)
            s->sensors[s->count++].channel = &channels[i];
    if (s->count)
        return 0;
    kj_error_set(error, "GPU %u has no power sensor that answers; kjoule doctor tells why", s->gpu.index);
    return -ENODEV;
}

/* ---- the wave */

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * KJ_NS_PER_S + (uint64_t)t.tv_nsec;
}

static void sleep_until(uint64_t t_ns)
{
    const struct timespec t = {(time_t)(t_ns / KJ_NS_PER_S), (long)(t_ns % KJ_NS_PER_S)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
        ;
}

static void show_progress(const struct session *s, double done_s, double on_ms, double off_ms)
{
    if (s->plan.quiet)
        return;
    char what[64] = "steady";
    if (on_ms > 0)
        snprintf(what, sizeof(what), "%.4g ms on, %.4g ms off", on_ms, off_ms);
    bool terminal = isatty(STDERR_FILENO);
    fprintf(stderr, "%skjoule: calibrating GPU %u: %3.0f of %.0f s, %s%s", terminal ? "\r" : "", s->gpu.index,
            done_s, s->plan.seconds, what, terminal ? "          " : "\n");
    fflush(stderr);
}

static int pulse(struct session *s, double on_ms, struct kj_error *error)
{
    if (s->on_count == ON_CAP) {
        kj_error_set(error, "too many pulses");
        return -E2BIG;
    }
    int status = kj_load_pulse(s->load, on_ms, &s->on[s->on_count], error);
    s->on_count += !status;
    return status;
}

/* One on/off time, for its share of the seconds. */
static int run_step(struct session *s, const struct kj_wave_step *step, double seconds, double done_s,
                    struct kj_error *error)
{
    uint64_t start_ns = now_ns(), end_ns = start_ns + (uint64_t)(seconds * 1e9), shown_ns = 0;
    int status = 0;
    while (!status && now_ns() < end_ns) {
        if (!shown_ns || (isatty(STDERR_FILENO) && now_ns() > shown_ns + KJ_NS_PER_S)) {
            shown_ns = now_ns();
            show_progress(s, done_s + (double)(shown_ns - start_ns) / 1e9, step->on_ms, step->off_ms);
        }
        status = pulse(s, step->on_ms, error);
        if (!status)
            sleep_until(s->on[s->on_count - 1].end_ns + (uint64_t)(step->off_ms * 1e6));
    }
    s->use[s->use_count++] = (struct kj_model_span){start_ns, now_ns()};
    return status;
}

static int run_wave(struct session *s, struct kj_error *error)
{
    double off_s = fmax(STEADY_LEAST_S, s->plan.seconds / 30),
           on_s = fmax(STEADY_LEAST_S, s->plan.seconds / 20);
    double wave_s = s->plan.seconds - off_s - on_s, done_s = off_s + on_s;
    show_progress(s, 0, 0, 0);
    s->steady_off.start_ns = now_ns();
    sleep_until(s->steady_off.start_ns + (uint64_t)(off_s * 1e9));
    s->steady_off.end_ns = now_ns();
    int status = pulse(s, on_s * 1e3, error);
    s->steady_on = s->on[0];
    for (size_t i = 0; !status && i < kj_wave_plan_count && i < 16; i++) {
        status = run_step(s, &kj_wave_plan[i], kj_wave_plan[i].share * wave_s, done_s, error);
        done_s += kj_wave_plan[i].share * wave_s;
    }
    sleep_until(now_ns() + 400 * KJ_NS_PER_MS); /* what is still to come of the last pulse */
    if (!s->plan.quiet && isatty(STDERR_FILENO))
        fprintf(stderr, "\r%*s\r", 78, "");
    return status;
}

/* ---- what it tells */

/* Mean of the second half of a steady state, and its 90 % interval. */
static struct kj_range steady(const struct sensor *sensor, const struct kj_model_span *span)
{
    uint64_t from_ns = span->start_ns + (span->end_ns - span->start_ns) / 2;
    double sum = 0, square = 0, count = 0;
    for (size_t i = 0; i < sensor->count; i++) {
        const struct kj_reading *r = &sensor->readings[i];
        if (r->t_ns < from_ns || r->t_ns > span->end_ns)
            continue;
        sum += (double)r->value;
        square += (double)r->value * (double)r->value;
        count++;
    }
    if (count < 1)
        return (struct kj_range){0};
    /* polls repeat: the spread, not that of the mean */
    double mean = sum / count, sd = sqrt(fmax(square / count - mean * mean, 0));
    return (struct kj_range){mean, mean - KJ_Z90 * sd, mean + KJ_Z90 * sd};
}

static void infer(struct session *s)
{
    struct kj_calibration *c = &s->result;
    for (size_t i = 0; i < s->count; i++) {
        const struct sensor *sensor = &s->sensors[i];
        struct kj_calibrated_sensor *to = &c->sensors[c->count];
        struct kj_error error = {0};
        const struct kj_sensor_series series = {.counter = sensor->channel->kind == KJ_ENERGY_UJ,
                                                .own_times = kj_channel_own_times(sensor->channel),
                                                .readings = sensor->readings,
                                                .count = sensor->count};
        const struct kj_wave wave = {.series = &series,
                                     .on = s->on,
                                     .on_count = s->on_count,
                                     .use = s->use,
                                     .use_count = s->use_count};
        if (!series.counter && c->steady_on_mw.value == 0) {
            c->steady_on_mw = steady(sensor, &s->steady_on);
            c->steady_off_mw = steady(sensor, &s->steady_off);
        }
        *to = (struct kj_calibrated_sensor){.counter = series.counter};
        snprintf(to->name, sizeof(to->name), "%s", sensor->channel->name);
        if (kj_wave_shape_find(&wave, &to->shape, &error))
            kj_say("%s is not calibrated: %s", to->name, error.text);
        else
            c->count++;
    }
}

static void describe(struct session *s)
{
    struct kj_calibration *c = &s->result, before;
    struct kj_error ignored;
    time_t now = time(NULL);
    struct tm utc;
    snprintf(c->uuid, sizeof(c->uuid), "%s", s->gpu.uuid);
    snprintf(c->driver, sizeof(c->driver), "%s", s->gpu.driver);
    snprintf(c->model, sizeof(c->model), "%s", s->gpu.model);
    strftime(c->date, sizeof(c->date), "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    c->gain = s->plan.gain;
    c->gain_sd = s->plan.gain_sd;
    if (!(c->gain > 0) && !kj_calibration_load(c->uuid, c->driver, &before, &ignored)) {
        c->gain = before.gain; /* a meter's word is not lost to a new calibration */
        c->gain_sd = before.gain_sd;
    }
}

static void print_range(const char *label, const struct kj_range *range, double unit, const char *unit_name)
{
    printf("  %s %.4g %s (%.4g to %.4g)", label, range->value / unit, unit_name, range->low / unit,
           range->high / unit);
}

static void print_sensor(const struct kj_calibrated_sensor *sensor)
{
    const struct kj_wave_shape *shape = &sensor->shape;
    printf("  %-15s", sensor->name);
    if (sensor->counter && !shape->sub_sampled)
        printf("  sees all of the time");
    else if (sensor->counter)
        print_range("adds up samples of", &shape->window_ns, 1e6, "ms");
    else
        print_range(shape->kernel == KJ_SENSOR_LAG ? "lag of time constant" : "mean over", &shape->window_ns,
                    1e6, "ms");
    if (shape->period_ns.value > 0)
        print_range("every", &shape->period_ns, 1e6, "ms");
    else
        printf("  renewed at least every %.2g ms", shape->period_ns.high / 1e6);
    printf("\n%*s", 17, "");
    print_range("delay", &shape->delay_ns, 1e6, "ms");
    printf("  on %.1f W, off %.1f W, noise %.2g W, %zu updates\n", shape->on_mw.value / 1e3,
           shape->off_mw.value / 1e3, shape->noise_mw / 1e3, shape->updates);
    if (sensor->counter)
        printf("%*s  over a second it is off by %.2g %% from what the wave drew\n", 17, "",
               100 * shape->wander);
}

static void print_result(const struct session *s, const char *path)
{
    const struct kj_calibration *c = &s->result;
    printf("GPU %u  %s  %s  driver %s\n", s->gpu.index, c->model, c->uuid, c->driver);
    printf("  steady          on %.1f W, off %.1f W, by the first power sensor\n",
           c->steady_on_mw.value / 1e3, c->steady_off_mw.value / 1e3);
    for (size_t i = 0; i < c->count; i++)
        print_sensor(&c->sensors[i]);
    if (c->gain > 0)
        printf("  gain            %.4g +- %.2g (1 sigma), by your meter\n", c->gain, c->gain_sd);
    printf("  kept in %s; later runs of this user use it\n", path);
}

/* ---- files */

static int write_file(const char *name, const char *text, struct kj_error *error)
{
    if (!strcmp(name, "-")) {
        if (fputs(text, stdout) >= 0 && putchar('\n') != EOF && !fflush(stdout))
            return 0;
        kj_error_set(error, "standard output cannot be written");
        return -EIO;
    }
    int status = kj_file_replace(AT_FDCWD, name, text, strlen(text));
    if (status)
        kj_error_set(error, "%s cannot be written: %s", name, strerror(-status));
    return status;
}

static int write_raw(const struct session *s, struct kj_error *error)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return -ENOMEM;
    fprintf(out, "{\"schema\":\"kjoule.wave/1\",\"uuid\":\"%s\",\"driver\":\"%s\",\"on_ns\":[", s->gpu.uuid,
            s->gpu.driver);
    for (size_t i = 0; i < s->on_count; i++)
        fprintf(out, "%s[%llu,%llu]", i ? "," : "", (unsigned long long)s->on[i].start_ns,
                (unsigned long long)s->on[i].end_ns);
    fputs("],\"use_ns\":[", out);
    for (size_t i = 0; i < s->use_count; i++)
        fprintf(out, "%s[%llu,%llu]", i ? "," : "", (unsigned long long)s->use[i].start_ns,
                (unsigned long long)s->use[i].end_ns);
    fputs("],\"readings\":{", out);
    for (size_t i = 0; i < s->count; i++) {
        fprintf(out, "%s\n\"%s\":[", i ? "," : "", s->sensors[i].channel->name);
        for (size_t r = 0; r < s->sensors[i].count; r++)
            fprintf(out, "%s[%llu,%llu]", r ? "," : "", (unsigned long long)s->sensors[i].readings[r].t_ns,
                    (unsigned long long)s->sensors[i].readings[r].value);
        fputs("]", out);
    }
    fputs("}}", out);
    int status = fclose(out) ? -ENOMEM : write_file(s->plan.raw, text, error);
    free(text);
    return status;
}

/* ---- all of it */

static int refuse_busy(const struct session *s, size_t allowed, struct kj_error *error)
{
    const struct kj_gpu *gpu = &s->gpu;
    if (gpu->mig) {
        kj_error_set(error,
                     "GPU %u is in MIG mode: its sensors are of the whole board, and the load would not be; "
                     "nvidia-smi -mig 0 ends that",
                     gpu->index);
        return -EBUSY;
    }
    if (gpu->processes <= allowed)
        return 0;
    char pids[64] = "";
    for (size_t i = 0, used = 0; i < gpu->processes && i < 4; i++)
        used += (size_t)snprintf(pids + used, sizeof(pids) - used, "%s%u", i ? ", " : "", gpu->pids[i]);
    kj_error_set(error, "GPU %u is in use by %zu process%s (pid %s%s): it must be idle to be calibrated",
                 gpu->index, gpu->processes - allowed, gpu->processes - allowed > 1 ? "es" : "", pids,
                 gpu->processes > 4 ? ", ..." : "");
    return -EBUSY;
}

static int measure(struct session *s, struct kj_error *error)
{
    int status = kj_gpu_find(s->plan.device, &s->gpu, error);
    if (!status && !s->gpu.driver[0]) {
        kj_error_set(error, "the driver does not tell its version, by which a calibration is kept");
        status = -ENODEV;
    }
    if (!status)
        status = refuse_busy(s, 0, error);
    if (!status)
        status = open_sensors(s, error);
    if (!status)
        status = kj_load_open(s->gpu.uuid, &s->load, error);
    s->on = calloc(ON_CAP, sizeof(*s->on));
    if (!status && !s->on)
        status = -ENOMEM;
    if (status)
        return status;
    if (pthread_create(&s->thread, NULL, read_sensors, s))
        return -EAGAIN;
    status = run_wave(s, error);
    atomic_store(&s->stop, true);
    pthread_join(s->thread, NULL);
    struct kj_gpu after;
    if (!status && !kj_gpu_find(s->gpu.uuid, &after, error)) { /* ours is one, whatever its number there */
        s->gpu.processes = after.processes;
        memcpy(s->gpu.pids, after.pids, sizeof(after.pids));
        status = refuse_busy(s, 1, error);
    }
    return !status && atomic_load(&s->full) ? -ENOMEM : status;
}

static int calibrate(struct session *s, struct kj_error *error)
{
    char path[4300];
    int status = measure(s, error);
    if (!status && s->plan.raw)
        status = write_raw(s, error);
    if (status)
        return status;
    describe(s);
    infer(s);
    if (!s->result.count) {
        kj_error_set(error, "no sensor of GPU %u could be calibrated; nothing was kept", s->gpu.index);
        return -EDOM;
    }
    status = kj_calibration_save(&s->result, path, sizeof(path), error);
    if (!status && s->plan.file) {
        char *text = kj_calibration_text(&s->result);
        status = text ? write_file(s->plan.file, text, error) : -ENOMEM;
        free(text);
    }
    if (!status && (!s->plan.file || strcmp(s->plan.file, "-")))
        print_result(s, path);
    return status;
}

int kj_cmd_calibrate(int argc, char **argv)
{
    struct kj_error error = {0};
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
    struct session *s = calloc(1, sizeof(*s));
    if (!s)
        return KJ_EXIT_FAILURE;
    s->plan = (struct plan){.device = "", .seconds = 60};
    int status = parse(argc, argv, &s->plan, &error), usage_error = status;
    if (!status)
        status = calibrate(s, &error);
    if (status)
        kj_say("%s", error.text[0] ? error.text : strerror(-status));
    for (size_t i = 0; i < s->count; i++)
        free(s->sensors[i].readings);
    kj_load_close(s->load);
    kj_power_close(s->power);
    free(s->on);
    free(s);
    return usage_error ? KJ_EXIT_USAGE : status ? KJ_EXIT_FAILURE : 0;
}
