/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_attribute.c - `kjoule attribute`: the project's attribution on a timeline and a power log that anybody
 * recorded.
 */
#include "base/file.h"
#include "base/options.h"
#include "commands.h"
#include "report/attribution.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char usage[] =
    "usage: kjoule attribute --timeline T --power P [--sensor SHAPE] [--meter M] [-o OUT.json] [--windows "
    "W.csv]\n"
    "Joules of each kernel in a timeline, from power readings that look at it through a sensor's window.\n\n"
    "  --timeline T   CSV start_ns,end_ns,name[,device,stream], or a Chrome trace of torch.profiler\n"
    "  --power P      CSV t_ns,power_mw and/or t_ns,energy_uj (a counter), or the log of\n"
    "                 nvidia-smi --query-gpu=timestamp,power.draw.instant --format=csv -lms 20; may be "
    "repeated\n"
    "  --sensor SHAPE what is known of the sensor; what is left out is inferred and printed:\n"
    "                 window=25ms,period=100ms,delay=0ms,gain=1.0,gain_sd=0.01,offset=0W,noise=1W\n"
    "                 true power = (reading - offset) / gain. Before the first --power: of all; else of the "
    "last\n"
    "  --meter M      an external meter, CSV as P, on P's clock: window, delay, gain and offset by it\n"
    "  --offset TIME  timeline + TIME = power log, as in -1.5s; --align finds it by the load\n"
    "  --device D     which device of the timeline, and of a log of several GPUs\n"
    "  --from, --to   nanoseconds of the power log's clock: only this stretch\n"
    "  --limit POWER  board limit, as in 400W: no kernel draws more\n"
    "  --method M     bayes (default), least-squares or time\n"
    "  -o OUT.json    the answer as JSON, - for standard output; --windows W.csv: each reading, measured "
    "and\n"
    "                 modelled. Files may be gzip\n";

struct unit {
    const char *name;
    double factor;
};
static const struct unit times[] = {{"ns", 1}, {"us", 1e3}, {"ms", 1e6}, {"s", 1e9}, {NULL, 0}};
static const struct unit powers[] = {{"mW", 1}, {"W", 1e3}, {"kW", 1e6}, {NULL, 0}};

struct request {
    const char *timeline, *meter, *device, *output, *windows;
    const char *power[KJ_TRACE_SERIES_CAP];
    struct kj_trace_source common, own[KJ_TRACE_SERIES_CAP]; /* sensors: of all, and of each file */
    bool has_own[KJ_TRACE_SERIES_CAP];
    size_t power_count;
    struct kj_trace_question question;
};

/* A number and its unit, sign allowed. */
static bool with_unit(const char *text, const struct unit *units, double *ret_value)
{
    double sign = *text == '-' ? -1 : 1;
    const char *rest = text + (*text == '-' || *text == '+');
    char *end;
    if (!strchr("0123456789.", *rest) || !*rest || strpbrk(rest, "xX"))
        return false;
    double value = strtod(rest, &end);
    for (; units->name; units++)
        if (!strcmp(end, units->name) && isfinite(value * units->factor) && value * units->factor < 9e18) {
            *ret_value = sign * value * units->factor;
            return true;
        }
    return false;
}

static bool plain_number(const char *text, double *ret_value)
{
    static const struct unit none[] = {{"", 1}, {NULL, 0}};
    return with_unit(text, none, ret_value);
}

enum sensor_key { WINDOW, PERIOD, DELAY, GAIN, GAIN_SD, OFFSET, NOISE, SENSOR_KEYS };
static const struct {
    const char *name, *accepted;
    const struct unit *units; /* NULL: a plain number */
    double least, most;
} sensor_keys[SENSOR_KEYS] = {
    [WINDOW] = {"window", "a time from 100us to 60s", times, 1e5, 60e9},
    [PERIOD] = {"period", "a time from 100us to 60s", times, 1e5, 60e9},
    [DELAY] = {"delay", "a time from 0ms to 10s", times, 0, 10e9},
    [GAIN] = {"gain", "a number from 0.1 to 10", NULL, .1, 10},
    [GAIN_SD] = {"gain_sd", "a number from 0 to 1", NULL, 0, 1},
    [OFFSET] = {"offset", "a power such as -1.2W", powers, -1e6, 1e6},
    [NOISE] = {"noise", "a power such as 1W", powers, 0, 1e6},
};

static void set_sensor(struct kj_trace_source *source, enum sensor_key key, double value)
{
    struct kj_sensor *sensor = &source->sensor;
    switch (key) {
    case WINDOW:
        sensor->window_ns = (uint64_t)llround(value);
        break;
    case PERIOD:
        sensor->period_ns = (uint64_t)llround(value);
        break;
    case DELAY:
        sensor->delay_ns = (uint64_t)llround(value);
        source->delay_given = true;
        break;
    case GAIN:
        sensor->gain = value;
        source->gain_given = true;
        break;
    case GAIN_SD:
        sensor->gain_sd = value;
        source->gain_sd_given = true;
        break;
    case OFFSET:
        sensor->offset_mw = value;
        source->gain_given = true; /* whoever knows the offset has compared with a meter */
        break;
    default:
        sensor->noise_mw = value;
    }
}

static int take_sensor(const char *spec, struct kj_trace_source *source, struct kj_error *error)
{
    char *copy = strdup(spec), *rest = copy, *part;
    int status = copy ? 0 : -ENOMEM;
    while (!status && (part = strsep(&rest, ","))) {
        char *value = strchr(part, '=');
        int key = 0;
        double number;
        if (value)
            *value++ = 0;
        while (key < SENSOR_KEYS && strcmp(sensor_keys[key].name, part))
            key++;
        if (key == SENSOR_KEYS || !value) {
            kj_error_set(error,
                         "--sensor: '%.40s' is no part of a shape; it is window=,period=,delay=,gain=,"
                         "gain_sd=,offset=,noise= with commas between",
                         part);
            status = -EINVAL;
        } else if (!(sensor_keys[key].units ? with_unit(value, sensor_keys[key].units, &number)
                                            : plain_number(value, &number)) ||
                   number < sensor_keys[key].least || number > sensor_keys[key].most) {
            kj_error_set(error, "--sensor: %s '%.40s' is not %s", part, value, sensor_keys[key].accepted);
            status = -EINVAL;
        } else {
            set_sensor(source, (enum sensor_key)key, number);
        }
    }
    free(copy);
    return status;
}

static int take_time(const char *name, const char *value, bool *ret_given, int64_t *ret_ns,
                     struct kj_error *error)
{
    char *end;
    errno = 0;
    *ret_ns = strtoll(value, &end, 10);
    *ret_given = *value && strspn(value, "-0123456789") == strlen(value) && !*end && !errno;
    if (*ret_given)
        return 0;
    kj_error_set(error, "%s: '%.40s' is no whole number of nanoseconds", name, value);
    return -EINVAL;
}

static int take_power(struct request *request, const char *value, struct kj_error *error)
{
    if (request->power_count == KJ_TRACE_SERIES_CAP) {
        kj_error_set(error, "--power: at most %d logs", KJ_TRACE_SERIES_CAP);
        return -EINVAL;
    }
    request->power[request->power_count++] = value;
    return 0;
}

static int take_quantity(const char *name, const char *value, struct request *request, struct kj_error *error)
{
    struct kj_trace_question *question = &request->question;
    bool offset = !strcmp(name, "--offset");
    double number;
    if (!with_unit(value, offset ? times : powers, &number) || (!offset && !(number > 0 && number <= 1e8))) {
        kj_error_set(error, "%s: '%.40s' is not %s", name, value,
                     offset ? "a time with a unit, as in -1.5s" : "a power with a unit, as in 400W");
        return -EINVAL;
    }
    if (offset)
        question->offset_ns = llround(number);
    else
        question->limit_mw = number;
    return 0;
}

static int take_method(const char *value, struct request *request, struct kj_error *error)
{
    static const char *const names[] = {"bayes", "least-squares", "time"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(value, names[i])) {
            request->question.method = (enum kj_model_method)i;
            return 0;
        }
    kj_error_set(error, "--method: '%.40s' is not bayes, least-squares or time", value);
    return -EINVAL;
}

static int take(struct request *request, const char *name, const char *value, struct kj_error *error)
{
    struct kj_trace_question *question = &request->question;
    const struct {
        const char *name;
        const char **target;
    } texts[] = {{"--timeline", &request->timeline}, {"--meter", &request->meter},
                 {"--device", &request->device},     {"--output", &request->output},
                 {"-o", &request->output},           {"--windows", &request->windows}};
    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++)
        if (!strcmp(name, texts[i].name)) {
            *texts[i].target = value;
            return 0;
        }
    if (!strcmp(name, "--power"))
        return take_power(request, value, error);
    if (!strcmp(name, "--sensor")) {
        size_t last = request->power_count;
        struct kj_trace_source *source = last ? &request->own[last - 1] : &request->common;
        if (last && !request->has_own[last - 1])
            *source = request->common;
        if (last)
            request->has_own[last - 1] = true;
        return take_sensor(value, source, error);
    }
    if (!strcmp(name, "--from"))
        return take_time(name, value, &question->from_given, &question->from_ns, error);
    if (!strcmp(name, "--to"))
        return take_time(name, value, &question->to_given, &question->to_ns, error);
    if (!strcmp(name, "--method"))
        return take_method(value, request, error);
    return take_quantity(name, value, request, error);
}

static const char *const names[] = {"--timeline", "--power", "--sensor", "--meter", "--offset",
                                    "--device",   "--from",  "--to",     "--limit", "--method",
                                    "--output",   "-o",      "--windows"};

static int unknown(const char *word, struct kj_error *error)
{
    char name[64];
    const char *best = NULL;
    int best_distance = 4;
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(word, "="), word);
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
        int distance = kj_edit_distance(name, names[i]);
        if (distance < best_distance)
            best_distance = distance, best = names[i];
    }
    kj_error_set(error, "attribute: '%.60s' is not understood; %s%s", word,
                 best ? "did you mean " : "kjoule attribute --help shows how", best ? best : "");
    return -EINVAL;
}

static int parse(int argc, char **argv, struct request *request, struct kj_error *error)
{
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        size_t length = strcspn(word, "="), at = 0;
        if (!strcmp(word, "--align")) {
            request->question.align = true;
            continue;
        }
        while (at < sizeof(names) / sizeof(*names) &&
               (strlen(names[at]) != length || memcmp(names[at], word, length)))
            at++;
        if (at == sizeof(names) / sizeof(*names))
            return unknown(word, error);
        if (!word[length] && i + 1 >= argc) {
            kj_error_set(error, "%s needs a value", word);
            return -EINVAL;
        }
        int status = take(request, names[at], word[length] ? word + length + 1 : argv[++i], error);
        if (status)
            return status;
    }
    if (request->timeline && request->power_count &&
        !(request->question.align && request->question.offset_ns))
        return 0;
    kj_error_set(error, "%s",
                 !request->timeline     ? "attribute needs --timeline T; kjoule attribute --help shows how"
                 : request->power_count ? "--offset and --align exclude each other; choose one"
                                        : "attribute needs --power P; kjoule attribute --help shows how");
    return -EINVAL;
}

/* Writing over an input would lose it. */
static int keep_inputs(const struct request *request, struct kj_error *error)
{
    const char *outputs[] = {request->output, request->windows};
    const char *inputs[KJ_TRACE_SERIES_CAP + 2] = {request->timeline, request->meter};
    struct stat in, out;
    memcpy(inputs + 2, request->power, sizeof(request->power));
    for (size_t o = 0; o < 2; o++)
        for (size_t i = 0; i < sizeof(inputs) / sizeof(*inputs); i++)
            if (outputs[o] && inputs[i] && !stat(outputs[o], &out) && !stat(inputs[i], &in) &&
                in.st_dev == out.st_dev && in.st_ino == out.st_ino) {
                kj_error_set(error, "%s is an input and would be overwritten; name another file", outputs[o]);
                return -EINVAL;
            }
    if (!outputs[0] || !outputs[1] || strcmp(outputs[0], outputs[1]))
        return 0;
    kj_error_set(error, "-o and --windows both name %s; name two files", outputs[0]);
    return -EINVAL;
}

/* The series of a log that are of the device; of a log that names devices, one must be chosen. */
static int add_series(struct request *request, size_t file, const struct kj_trace_power *power,
                      struct kj_error *error)
{
    struct kj_trace_question *question = &request->question;
    const struct kj_trace_source *source = request->has_own[file] ? &request->own[file] : &request->common;
    size_t before = question->source_count, devices = 0;
    for (size_t s = 0; s < power->count; s++) {
        const struct kj_trace_series *series = &power->series[s];
        devices += !s || strcmp(series->device, power->series[0].device);
        if (*series->device && request->device && strcmp(series->device, request->device))
            continue;
        if (series->count < 2)
            continue;
        if (question->source_count == KJ_TRACE_SERIES_CAP) {
            kj_error_set(error, "more than %d power series; give fewer logs", KJ_TRACE_SERIES_CAP);
            return -EINVAL;
        }
        question->sources[question->source_count] = *source;
        question->sources[question->source_count].file = request->power[file];
        question->sources[question->source_count++].series = series;
    }
    if (devices > 1 && !request->device)
        kj_error_set(error, "%s is of %zu GPUs ('%.40s', '%.40s', ...); say which with --device",
                     request->power[file], devices, power->series[0].device, power->series[1].device);
    else if (question->source_count == before)
        kj_error_set(error,
                     "%s has no two readings of %s%.60s; is it the right log, and is the sensor supported?",
                     request->power[file], request->device ? "device " : "power",
                     request->device ? request->device : "");
    else
        return 0;
    return -EINVAL;
}

static int write_file(const char *path, const struct kj_trace_answer *answer,
                      int (*write)(const struct kj_trace_answer *, FILE *), struct kj_error *error)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    int status = out ? write(answer, out) : -ENOMEM;
    if (out && fclose(out) && !status)
        status = -ENOMEM;
    if (!status && !strcmp(path, "-"))
        status = fwrite(text, 1, size, stdout) == size && !fflush(stdout) ? 0 : -EIO;
    else if (!status)
        status = kj_file_replace(AT_FDCWD, path, text, size);
    if (status)
        kj_error_set(error, "%s cannot be written: %s", path, strerror(-status));
    free(text);
    return status;
}

static int write_all(const struct request *request, const struct kj_trace_answer *answer,
                     struct kj_error *error)
{
    bool to_stdout = request->output && !strcmp(request->output, "-");
    int status = 0;
    if (request->windows)
        status = write_file(request->windows, answer, kj_write_attribution_windows, error);
    if (!status && request->output)
        status = write_file(request->output, answer, kj_write_attribution_json, error);
    if (!status)
        status = kj_write_attribution_text(answer, to_stdout ? stderr : stdout);
    if (!status && fflush(to_stdout ? stderr : stdout))
        status = -EIO;
    return status;
}

/* Reads everything, answers, writes. */
static int attribute(struct request *request, struct kj_error *error)
{
    struct kj_trace_power *power[KJ_TRACE_SERIES_CAP] = {0}, *meter = NULL;
    struct kj_trace_timeline *timeline = NULL;
    struct kj_trace_answer *answer = NULL;
    int status = kj_trace_timeline_read(request->timeline, &timeline, error);
    for (size_t i = 0; i < request->power_count && !status; i++) {
        status = kj_trace_power_read(request->power[i], &power[i], error);
        if (!status && power[i]->ignored)
            kj_say("%s: not read: %s", request->power[i], power[i]->ignored);
        if (!status)
            status = add_series(request, i, power[i], error);
    }
    if (!status && request->meter)
        status = kj_trace_power_read(request->meter, &meter, error);
    request->question.timeline = timeline;
    request->question.device = request->device;
    request->question.meter = meter ? &meter->series[0] : NULL;
    if (!status)
        status = kj_trace_attribute(&request->question, &answer, error);
    if (!status)
        status = write_all(request, answer, error);
    kj_trace_answer_free(answer);
    kj_trace_timeline_free(timeline);
    kj_trace_power_free(meter);
    for (size_t i = 0; i < KJ_TRACE_SERIES_CAP; i++)
        kj_trace_power_free(power[i]);
    return status;
}

int kj_cmd_attribute(int argc, char **argv)
{
    struct request request = {0};
    struct kj_error error = {0};
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
    int status = parse(argc, argv, &request, &error);
    if (!status)
        status = keep_inputs(&request, &error);
    if (!status)
        status = attribute(&request, &error);
    if (status)
        kj_say("%s", *error.text ? error.text : strerror(-status));
    return !status ? 0 : status == -ENOMEM || status == -EPROTO ? KJ_EXIT_FAILURE : KJ_EXIT_USAGE;
}
