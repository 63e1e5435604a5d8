/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_doctor.c - kjoule doctor: which sources of energy readings answer here, which refuse and why, the
 * command that would mend it, and what a run would count. It takes two readings, half a second apart, so that
 * what it lists is known to work.
 */
#include "base/log.h"
#include "base/options.h"
#include "base/units.h"
#include "commands.h"
#include "cupti_versions.h"
#include "power/power.h"
#include "record/probe.h"

#include <dlfcn.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { CHANNELS_MAX = 1024, WAIT_MS = 500, PROBE_MS = 2000, TEXT_COLUMN = 27, TEXT_WIDTH = 110 };

static const struct component {
    enum kj_component component;
    const char *key, *label, *source; /* source: whose refusal explains the want */
} components[] = {
    {KJ_COMPONENT_GPU, "gpu", "GPU", "nvml"},
    {KJ_COMPONENT_CPU, "cpu", "CPU", "cpu_model"},
    {KJ_COMPONENT_DRAM, "dram", "DRAM", "dram_model"},
    {KJ_COMPONENT_NODE, "node", "node", "hwmon"},
};
enum { COMPONENTS = sizeof(components) / sizeof(components[0]) };

struct doctor {
    struct kj_power *power;
    const struct kj_channel *channels;
    const struct kj_source_status *statuses;
    size_t channels_count, statuses_count;
    double now_mw[CHANNELS_MAX]; /* NAN: no reading */
    char lost[CHANNELS_MAX][160];
    struct kj_probe_status probe;
    char probe_text[700]; /* what it measures, or why not and what it would add */
    int cuda_version;     /* -1: no library, 0: it does not tell */
    bool nvml;
    char library[PATH_MAX]; /* libkjoule.so, "" not found */
    const char *cupti;      /* for --timing=cupti; NULL: none on the loader's path */
    uint32_t cupti_version;
    bool cupti_known;
};

static void look_for_driver(struct doctor *doctor)
{
    int version = 0;
    doctor->cuda_version = -1;
    void *cuda = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    if (cuda) {
        /* Tells its version without being initialised, so no context is made and no board woken. */
        int (*get_version)(int *) = (int (*)(int *))dlsym(cuda, "cuDriverGetVersion");
        doctor->cuda_version = get_version && get_version(&version) == 0 ? version : 0;
        dlclose(cuda);
    }
    void *nvml = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
    doctor->nvml = nvml;
    if (nvml)
        dlclose(nvml);
}

/* Told without attaching it to anything. A program may bring another one along, as PyTorch does. */
static void look_for_cupti(struct doctor *doctor)
{
    static const char *const names[] = {
#define X(name, driver) name,
        KJ_CUPTI_LIBRARIES(X)
#undef X
    };
    void *cupti = NULL;
    for (size_t i = 0; !cupti && i < sizeof(names) / sizeof(names[0]); i++)
        if ((cupti = dlopen(names[i], RTLD_LAZY | RTLD_LOCAL)))
            doctor->cupti = names[i];
    int (*get_version)(uint32_t *) = cupti ? (int (*)(uint32_t *))dlsym(cupti, "cuptiGetVersion") : NULL;
    uint32_t version = 0;
    if (get_version && !get_version(&version))
        doctor->cupti_version = version;
#define X(lowest, highest, what) || (version >= (lowest) && version <= (highest))
    doctor->cupti_known = false KJ_CUPTI_KNOWN(X);
#undef X
    if (cupti)
        dlclose(cupti);
}

/* Where `kjoule run` looks: beside itself in a build folder, ../lib/kjoule when installed. */
static void look_for_library(struct doctor *doctor, const char *given)
{
    static const char *const places[] = {"/libkjoule.so", "/../lib/kjoule/libkjoule.so"};
    char own[PATH_MAX];
    doctor->library[0] = 0;
    if (given && given[0]) {
        snprintf(doctor->library, sizeof(doctor->library), "%s", access(given, R_OK) ? "" : given);
        return;
    }
    ssize_t length = readlink("/proc/self/exe", own, sizeof(own) - 1);
    if (length <= 0)
        return;
    own[length] = 0;
    *strrchr(own, '/') = 0;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        char path[PATH_MAX], resolved[PATH_MAX];
        if (snprintf(path, sizeof(path), "%s%s", own, places[i]) < (int)sizeof(path) &&
            realpath(path, resolved)) {
            snprintf(doctor->library, sizeof(doctor->library), "%s", resolved);
            return;
        }
    }
}

/* Reads twice; the second reading of an energy counter less the first is the power between. */
static void take_readings(struct doctor *doctor)
{
    static struct kj_sample samples[CHANNELS_MAX], first[CHANNELS_MAX];
    const struct timespec pause = {.tv_sec = WAIT_MS / 1000, .tv_nsec = WAIT_MS % 1000 * KJ_NS_PER_MS};
    for (size_t i = 0; i < CHANNELS_MAX; i++)
        doctor->now_mw[i] = NAN;
    memset(first, 0, sizeof(first));
    for (int round = 0; round < 2; round++) {
        if (round)
            nanosleep(&pause, NULL);
        size_t count = kj_power_read(doctor->power, samples, CHANNELS_MAX);
        for (size_t i = 0; i < count; i++) {
            const struct kj_sample *sample = &samples[i];
            struct kj_sample *from = &first[sample->channel];
            if (doctor->channels[sample->channel].kind == KJ_POWER_MW)
                doctor->now_mw[sample->channel] = (double)sample->value;
            else if (from->t_ns && sample->t_ns > from->t_ns) /* uJ / ns = 1e6 mW */
                doctor->now_mw[sample->channel] =
                    (double)(sample->value - from->value) / (double)(sample->t_ns - from->t_ns) * 1e6;
            else if (!from->t_ns)
                *from = *sample;
        }
    }
    uint32_t channel;
    char reason[160];
    while (kj_power_lost(doctor->power, &channel, reason, sizeof(reason)))
        snprintf(doctor->lost[channel], sizeof(doctor->lost[0]), "%s", reason);
}

/* Text broken at spaces, continued at the same column. */
static void print_wrapped(const char *text, int column)
{
    const int width = TEXT_WIDTH - column;
    while ((int)strlen(text) > width) {
        int at = width;
        while (at > 0 && text[at] != ' ')
            at--;
        if (!at)
            break;
        printf("%.*s\n%*s", at, text, column, "");
        text += at + 1;
    }
    printf("%s\n", text);
}

/* What kjoule-probe says when it is asked as a run would ask it. */
static void ask_probe(struct doctor *doctor)
{
    static const char adds[] =
        "CPU time at every scheduler switch instead of by looking, short-lived threads by "
        "name, RAPL where it is for root alone, and phases of PyTorch on the CPU";
    const struct kj_channel *channels;
    char sensors[300] = "";
    struct kj_probe *probe = kj_probe_start(false, NULL);
    if (!probe)
        return;
    kj_probe_await(probe, 0, PROBE_MS);
    kj_probe_get_status(probe, &doctor->probe);
    size_t count = kj_probe_channels(probe, &channels), used = 0;
    for (size_t i = 0; i < count && used + 80 < sizeof(sensors); i++)
        if (channels[i].kind < KJ_CPU_BUSY_NS)
            used += (size_t)snprintf(sensors + used, sizeof(sensors) - used, "%s %s",
                                     used ? "," : "; it reads", channels[i].device);
    if (doctor->probe.running)
        snprintf(doctor->probe_text, sizeof(doctor->probe_text), "%s%s", doctor->probe.reason, sensors);
    else
        snprintf(doctor->probe_text, sizeof(doctor->probe_text), "%s; it would add %s", doctor->probe.reason,
                 adds);
    kj_probe_close(probe);
}

static void print_sources(const struct doctor *doctor)
{
    printf("sources\n");
    for (size_t i = 0; i < doctor->statuses_count; i++) {
        const struct kj_source_status *status = &doctor->statuses[i];
        printf("  %-13s  %-8s  ", status->name, status->accepted ? "accepted" : "refused");
        print_wrapped(status->reason, TEXT_COLUMN);
        if (status->warning[0])
            printf("%*swarning: %s\n", TEXT_COLUMN, "", status->warning);
        if (status->remedy[0]) /* unbroken, to be copied */
            printf("%*smend: %s\n", TEXT_COLUMN, "", status->remedy);
    }
    printf("  %-13s  %-8s  ", "probe", doctor->probe.running ? "accepted" : "refused");
    print_wrapped(doctor->probe_text, TEXT_COLUMN);
    if (doctor->probe.remedy[0])
        printf("%*smend: %s\n", TEXT_COLUMN, "", doctor->probe.remedy);
}

static void describe_bounds(const struct kj_channel *channel, char *ret_text, size_t size)
{
    if (channel->method == KJ_MODELLED)
        snprintf(ret_text, size, "x %.1f to %.1f", channel->low_factor, channel->high_factor);
    else
        snprintf(ret_text, size, "+- %.0f %%", channel->gain_sd * KJ_Z90 * 100);
}

static const char *why_none(const struct doctor *doctor, const struct component *component)
{
    if (component->component == KJ_COMPONENT_NODE)
        return "no meter of the whole machine; the parts are summed";
    for (size_t i = 0; i < doctor->statuses_count; i++)
        if (!strcmp(doctor->statuses[i].name, component->source) && !doctor->statuses[i].accepted)
            return doctor->statuses[i].reason;
    return "no source offers it";
}

static void print_channel(const struct doctor *doctor, const struct kj_channel *channel, int device_width)
{
    char bounds[32], now[32], what[80];
    describe_bounds(channel, bounds, sizeof(bounds));
    if (isnan(doctor->now_mw[channel->id]))
        snprintf(now, sizeof(now), "no reading");
    else
        kj_format_power(now, sizeof(now), doctor->now_mw[channel->id]);
    snprintf(what, sizeof(what), "%s %s", channel->source, channel->name);
    printf("%-*s  %-28s  %-9s  %-12s  %9s%s%s\n", device_width, channel->device, what,
           kj_method_name(channel->method), bounds, now, channel->model[0] ? "  " : "", channel->model);
}

static int device_width(const struct doctor *doctor)
{
    int width = 9;
    for (size_t i = 0; i < doctor->channels_count; i++)
        if ((int)strlen(doctor->channels[i].device) > width)
            width = (int)strlen(doctor->channels[i].device);
    return width;
}

static void print_used(const struct doctor *doctor)
{
    static uint32_t ids[CHANNELS_MAX];
    static bool used[CHANNELS_MAX];
    int width = device_width(doctor);
    printf("\nwhat a run counts%*s90 %% bounds  power now\n", width + 40, "");
    for (size_t c = 0; c < COMPONENTS; c++) {
        size_t count = kj_channels_choose(doctor->channels, doctor->channels_count, components[c].component,
                                          ids, CHANNELS_MAX);
        for (size_t i = 0; i < count; i++) {
            printf("  %-4s  ", i ? "" : components[c].label);
            print_channel(doctor, &doctor->channels[ids[i]], width);
            used[ids[i]] = true;
        }
        if (!count) {
            printf("  %-4s  unknown: ", components[c].label);
            print_wrapped(why_none(doctor, &components[c]), 17);
        }
    }
    bool any = false;
    for (size_t i = 0; i < doctor->channels_count; i++) {
        if (used[i])
            continue;
        if (!any)
            printf("\nrecorded beside it\n");
        any = true;
        printf("        ");
        print_channel(doctor, &doctor->channels[i], width);
    }
    for (size_t i = 0; i < doctor->channels_count; i++)
        if (doctor->lost[i][0])
            printf("  lost: %s\n", doctor->lost[i]);
}

static void describe_shape(const struct kj_channel *c, char *ret_text, size_t size)
{
    bool counter = c->kind == KJ_ENERGY_UJ;
    char window[64] = "", period[48] = "", delay[32] = "";
    if (c->window_ns)
        snprintf(window, sizeof(window), "%s %.4g ms; ",
                 counter                      ? "adds up samples of"
                 : c->kernel == KJ_SENSOR_LAG ? "lag of"
                                              : "mean over",
                 (double)c->window_ns / 1e6);
    else if (counter && c->shape == KJ_ORIGIN_CALIBRATED)
        snprintf(window, sizeof(window), "sees all of the time; ");
    if (c->period_ns)
        snprintf(period, sizeof(period), "renewed every %.4g ms; ", (double)c->period_ns / 1e6);
    if (c->shape != KJ_ORIGIN_INFERRED)
        snprintf(delay, sizeof(delay), "delay %.3g ms; ", (double)c->delay_ns / 1e6);
    snprintf(ret_text, size, "%s%s%s%s", window, period, delay, c->basis);
}

/* How the sensors of GPUs work, where that is known from, and what would tell more. */
static void print_shapes(const struct doctor *doctor)
{
    bool any = false;
    for (size_t i = 0; i < doctor->channels_count; i++) {
        const struct kj_channel *c = &doctor->channels[i];
        if (!c->shape)
            continue;
        bool first = !i || strcmp(c->device, doctor->channels[i - 1].device), better = true;
        if (!any)
            printf("\nhow the GPUs' sensors work\n");
        any = true;
        for (size_t k = 0; first && k < doctor->channels_count; k++)
            if (!strcmp(doctor->channels[k].device, c->device) &&
                doctor->channels[k].shape == KJ_ORIGIN_CALIBRATED)
                better = false;
        if (first)
            printf("  %s%s%s\n", c->device, better ? "    better: kjoule calibrate --device " : "",
                   better ? c->device : "");
        char text[320] = "";
        describe_shape(c, text, sizeof(text));
        printf("    %-15s  %-10s  ", c->name, kj_shape_origin_name(c->shape));
        print_wrapped(text, 33);
    }
}

static void print_rest(const struct doctor *doctor)
{
    printf("\ndriver and library\n");
    if (doctor->cuda_version < 0)
        printf("  %-13s  not found: no CUDA kernels to time\n", "libcuda.so.1");
    else if (!doctor->cuda_version)
        printf("  %-13s  found\n", "libcuda.so.1");
    else
        printf("  %-13s  found, CUDA %d.%d\n", "libcuda.so.1", doctor->cuda_version / 1000,
               doctor->cuda_version % 1000 / 10);
    printf("  %-13s  %s\n", "NVML", doctor->nvml ? "found" : "not found");
    if (doctor->library[0])
        printf("  %-13s  found, %s\n", "libkjoule.so", doctor->library);
    else
        printf(
            "  %-13s  not found beside kjoule or in ../lib/kjoule: runs get no kernels; set KJOULE_LIBRARY\n",
            "libkjoule.so");
    if (doctor->cupti)
        printf("  %-13s  found, %s, version %u%s\n", "CUPTI", doctor->cupti, doctor->cupti_version,
               doctor->cupti_known ? ": for --timing cupti"
                                   : ": not one that is known here, so --timing cupti falls back to events");
    else
        printf("  %-13s  not on the loader's path: --timing cupti works in programs that bring it along, as "
               "PyTorch does\n",
               "CUPTI");
    printf("  %-13s  not needed: ptrace, root, a hidepid-free /proc; kjoule looks at the user's own "
           "processes alone\n",
           "privileges");
}

/* In a channel 0 stands for unknown (power.h); here null does. */
static json_t *known_ns(uint64_t ns)
{
    return ns ? json_integer((json_int_t)ns) : json_null();
}

static json_t *known_real(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *channel_json(const struct doctor *doctor, const struct kj_channel *channel)
{
    static const char *const component_names[] = {"", "gpu", "cpu", "dram", "node"};
    static const char *const kind_names[] = {"", "energy_uj", "power_mw", "cpu_busy_ns"};
    double now = doctor->now_mw[channel->id];
    json_t *row =
        json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:o, s:o, s:o, s:s}", "id",
                  (int)channel->id, "source", channel->source, "name", channel->name, "device",
                  channel->device, "model", channel->model, "component", component_names[channel->component],
                  "kind", kind_names[channel->kind], "method", kj_method_name(channel->method), "gain_sd",
                  channel->gain_sd, "low_factor", channel->low_factor, "high_factor", channel->high_factor,
                  "window_ns", known_ns(channel->window_ns), "period_ns", known_ns(channel->period_ns),
                  "now_mw", isnan(now) ? json_null() : json_real(now), "basis", channel->basis);
    if (row && channel->shape)
        json_object_set_new(
            row, "shape",
            json_pack(
                "{s:s, s:s, s:I, s:o, s:o, s:f, s:o, s:o}", "from", kj_shape_origin_name(channel->shape),
                "kernel", kj_sensor_kernel_name(channel->kernel), "delay_ns", (json_int_t)channel->delay_ns,
                "delay_sd_ns", known_real(channel->delay_sd_ns), "gain",
                channel->gain > 0 ? json_real(channel->gain) : json_null(), "gain_mean", channel->gain_mean,
                "noise_mw", known_real(channel->noise_mw), "limit_mw", known_real(channel->limit_mw)));
    return row;
}

static json_t *used_json(const struct doctor *doctor)
{
    static uint32_t ids[CHANNELS_MAX];
    json_t *used = json_object();
    for (size_t c = 0; c < COMPONENTS; c++) {
        size_t count = kj_channels_choose(doctor->channels, doctor->channels_count, components[c].component,
                                          ids, CHANNELS_MAX);
        json_t *list = json_array();
        for (size_t i = 0; i < count; i++)
            json_array_append_new(list, json_integer(ids[i]));
        json_object_set_new(used, components[c].key,
                            json_pack("{s:o, s:o}", "channels", list, "unknown",
                                      count ? json_null() : json_string(why_none(doctor, &components[c]))));
    }
    return used;
}

static json_t *cupti_json(const struct doctor *doctor)
{
    if (!doctor->cupti)
        return json_null();
    return json_pack("{s:s, s:I, s:b}", "library", doctor->cupti, "version",
                     (json_int_t)doctor->cupti_version, "known", doctor->cupti_known);
}

static int print_json(const struct doctor *doctor)
{
    json_t *sources = json_array(), *channels = json_array();
    for (size_t i = 0; i < doctor->statuses_count; i++) {
        const struct kj_source_status *status = &doctor->statuses[i];
        json_array_append_new(sources, json_pack("{s:s, s:b, s:s, s:s}", "name", status->name, "accepted",
                                                 status->accepted, "reason", status->reason, "remedy",
                                                 status->remedy));
    }
    for (size_t i = 0; i < doctor->channels_count; i++)
        json_array_append_new(channels, channel_json(doctor, &doctor->channels[i]));
    json_array_append_new(sources, json_pack("{s:s, s:b, s:s, s:s}", "name", "probe", "accepted",
                                             doctor->probe.running, "reason", doctor->probe_text, "remedy",
                                             doctor->probe.remedy));
    json_t *root =
        json_pack("{s:s, s:s, s:o, s:o, s:o, s:{s:b, s:o, s:b, s:o}, s:o}", "schema", "kjoule.doctor/1",
                  "version", KJ_VERSION, "sources", sources, "channels", channels, "used", used_json(doctor),
                  "driver", "cuda_found", doctor->cuda_version >= 0, "cuda_version",
                  doctor->cuda_version > 0 ? json_integer(doctor->cuda_version) : json_null(), "nvml_found",
                  doctor->nvml, "cupti", cupti_json(doctor), "library",
                  doctor->library[0] ? json_string(doctor->library) : json_null());
    int error = !root || json_dumpf(root, stdout, JSON_INDENT(2));
    json_decref(root);
    printf("\n");
    return error ? KJ_EXIT_FAILURE : 0;
}

static int examine(struct doctor *doctor, const char *replay_file)
{
    struct kj_power_config config = {.replay_file = replay_file};
    struct kj_error error = {0};
    if (kj_power_open(&config, &doctor->power, &error)) {
        kj_say("%s", error.text);
        return replay_file ? KJ_EXIT_USAGE : KJ_EXIT_FAILURE;
    }
    doctor->channels_count = kj_power_channels(doctor->power, &doctor->channels);
    doctor->statuses_count = kj_power_statuses(doctor->power, &doctor->statuses);
    look_for_driver(doctor);
    look_for_cupti(doctor);
    ask_probe(doctor);
    take_readings(doctor);
    return 0;
}

/* The value of "--name VALUE" or "--name=VALUE" at *i, or NULL when it is another word. "" when the value is
 * missing. */
static const char *option_value(int argc, char **argv, int *i, const char *name)
{
    size_t length = strlen(name);
    if (strncmp(argv[*i], name, length))
        return NULL;
    if (argv[*i][length] == '=')
        return argv[*i] + length + 1;
    if (argv[*i][length])
        return NULL;
    return *i + 1 < argc ? argv[++*i] : "";
}

int kj_cmd_doctor(int argc, char **argv)
{
    static const char usage[] =
        "usage: kjoule doctor [--format text|json] [--replay-power FILE]\n"
        "Lists the sources of energy readings on this machine, and what a run would count.\n";
    struct kj_options options;
    struct kj_error error = {0};
    const char *format = "text", *replay = "", *library = "", *value;
    if (kj_options_from_environment(&options, &error) == 0) {
        replay = options.text[KJ_OPT_REPLAY];
        library = options.text[KJ_OPT_LIBRARY];
    } else {
        kj_warn("%s", error.text);
    }
    for (int i = argc > 0 && argv[0][0] != '-' ? 1 : 0; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
        if ((value = option_value(argc, argv, &i, "--format"))) {
            format = value;
        } else if ((value = option_value(argc, argv, &i, "--replay-power"))) {
            replay = value;
        } else {
            kj_say("doctor: unknown argument '%s'; it takes --format text|json and --replay-power FILE",
                   argv[i]);
            return KJ_EXIT_USAGE;
        }
    }
    bool json = !strcmp(format, "json");
    if (!json && strcmp(format, "text")) {
        kj_say("doctor: --format '%s' is not known; text and json are", format);
        return KJ_EXIT_USAGE;
    }
    struct doctor *doctor = calloc(1, sizeof(*doctor));
    int status = doctor ? examine(doctor, replay[0] ? replay : NULL) : KJ_EXIT_FAILURE;
    if (doctor && !status) {
        look_for_library(doctor, library);
        if (json) {
            status = print_json(doctor);
        } else {
            print_sources(doctor);
            print_used(doctor);
            print_shapes(doctor);
            print_rest(doctor);
        }
        if (fflush(stdout) || ferror(stdout)) {
            kj_say("doctor: the output could not be written");
            status = KJ_EXIT_FAILURE;
        }
    }
    if (doctor)
        kj_power_close(doctor->power);
    free(doctor);
    return status;
}
