/* SPDX-License-Identifier: Apache-2.0
 *
 * device_script.c - reads the script that README.md describes. A mistake in it ends the program with its
 * line.
 */
#include "device.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void mistake(const char *path, int line, const char *what)
{
    fprintf(stderr, "simgpu: %s line %d: %s\n", path, line, what);
    abort();
}

static const struct setting {
    const char *directive, *key;
    size_t offset;
} settings[] = {
#define S(directive, key, field)                                                                             \
    {                                                                                                        \
        directive, key, offsetof(struct sim_script, field)                                                   \
    }
    S("power", "idle", idle_w),
    S("power", "context", context_w),
    S("overlap", "cap", cap_w),
    S("dependent", "overlap", dependent_overlap),
    S("copy", "bandwidth_gbs", copy_gbs),
    S("copy", "power", copy_w),
    S("copy", "latency_us", copy_latency_us),
    S("copy", "wait", copies_wait),
    S("sensor", "window_ms", window_ms),
    S("sensor", "period_ms", period_ms),
    S("sensor", "delay_ms", delay_ms),
    S("sensor", "lag_ms", lag_ms),
    S("sensor", "gain", gain),
    S("sensor", "offset_w", offset_w),
    S("sensor", "noise", noise),
    S("counter", "period_ms", counter_period_ms),
    S("counter", "gain", counter_gain),
    S("clock", "drift_ppm", drift_ppm),
    S("wait", "spin", spin),
    S("handles", "abort", handles_abort),
    S("handles", "reuse", handles_reuse),
    S("mig", "instances", mig_instances),
    S("mig", "board_uuid", mig_board_uuid),
    S("conditional", "runs", body_runs),
    S("counter", "window_ms", counter_window_ms),
    S("ring", "period_ms", ring_period_ms),
    S("ring", "window_ms", ring_window_ms),
#undef S
};

const char *const sim_cost_names[SIM_COSTS] = {
#define COST(call, host_ns, item_ns, device_ns) #call,
#include "costs.def"
#undef COST
};
static const struct sim_cost costs[SIM_COSTS] = {
#define COST(call, host_ns, item_ns, device_ns) {host_ns, item_ns, device_ns},
#include "costs.def"
#undef COST
};
#define UNSAID (-1) /* by the script: costs.def counts */

static bool set(struct sim_script *script, const char *directive, const char *key, const char *value)
{
    for (size_t i = 0; i < sizeof(settings) / sizeof(*settings); i++)
        if (!strcmp(settings[i].directive, directive) && !strcmp(settings[i].key, key)) {
            *(double *)((char *)script + settings[i].offset) = strtod(value, NULL);
            return true;
        }
    return false;
}

static bool set_cost(struct sim_script *script, const char *call, const char *key, const char *value)
{
    double ns = strtod(value, NULL);
    if (!call || ns < 0)
        return false;
    for (int i = 0; i < SIM_COSTS; i++) {
        if (strcmp(sim_cost_names[i], call))
            continue;
        if (!strcmp(key, "host_ns"))
            script->cost[i].host_ns = ns;
        else if (!strcmp(key, "item_ns"))
            script->cost[i].item_ns = ns;
        else if (!strcmp(key, "device_ns"))
            script->cost[i].device_ns = ns;
        else
            return false;
        return true;
    }
    return false;
}

/* Older words for the same. */
static bool set_event_cost(struct sim_script *script, const char *key, const char *value)
{
    return set_cost(script, "cuEventRecord", key, value) &&
           set_cost(script, "cuEventRecordWithFlags", key, value);
}

static bool set_launch_cost(struct sim_script *script, const char *value)
{
    return set_cost(script, "cuLaunchKernel", "host_ns", value) &&
           set_cost(script, "cuLaunchKernelEx", "host_ns", value) &&
           set_cost(script, "cuLaunchCooperativeKernel", "host_ns", value);
}

/* What the script did not say is as in costs.def, times its scale. */
static void settle_costs(struct sim_script *script)
{
    for (int i = 0; i < SIM_COSTS; i++) {
        double *said = (double *)&script->cost[i];
        const double *usual = (const double *)&costs[i];
        for (size_t k = 0; k < sizeof(costs[i]) / sizeof(double); k++)
            if (said[k] < 0)
                said[k] = usual[k] * script->costs_scale;
        script->calls_cost |= script->cost[i].host_ns > 0 || script->cost[i].item_ns > 0;
    }
}

/* What is told in words. */
static bool set_word(struct sim_script *script, const char *directive, const char *key, const char *value)
{
    static const struct {
        const char *name;
        int clock;
    } clocks[] = {{"realtime", CLOCK_REALTIME},
                  {"monotonic", CLOCK_MONOTONIC},
                  {"boottime", CLOCK_BOOTTIME},
                  {"cputime", CLOCK_PROCESS_CPUTIME_ID}};
    if (!strcmp(directive, "board") && !strcmp(key, "architecture")) {
        script->architecture = atoi(value);
    } else if (!strcmp(directive, "board") && !strcmp(key, "driver")) {
        snprintf(script->driver, sizeof(script->driver), "%s", value);
    } else if (!strcmp(directive, "board") && !strcmp(key, "name")) {
        snprintf(script->board, sizeof(script->board), "%s", value);
        for (char *p = script->board; *p; p++)
            *p = *p == '_' ? ' ' : *p;
    } else if (!strcmp(directive, "ring") && !strcmp(key, "clock")) {
        for (size_t i = 0; i < sizeof(clocks) / sizeof(*clocks); i++)
            if (!strcmp(clocks[i].name, value)) {
                script->ring_clock = clocks[i].clock;
                return true;
            }
        return false;
    } else {
        return false;
    }
    return true;
}

static void read_kernel(struct sim_script *script, char *words, const char *path, int line)
{
    if (script->rules == SIM_RULES)
        mistake(path, line, "too many kernel rules");
    struct sim_rule *rule = &script->rule[script->rules++];
    *rule = (struct sim_rule){.duration_us = -1, .power_w = -1};
    char *save, *word = strtok_r(words, " \t", &save);
    if (!word || strlen(word) >= sizeof(rule->glob))
        mistake(path, line, "kernel needs a name");
    strcpy(rule->glob, word);
    while ((word = strtok_r(NULL, " \t", &save))) {
        char *value = strchr(word, '=');
        if (!value)
            mistake(path, line, "kernel settings are key=value");
        *value++ = 0;
        double number = !strcmp(value, "auto") ? -1 : strtod(value, NULL);
        if (!strcmp(word, "duration_us"))
            rule->duration_us = number;
        else if (!strcmp(word, "sd_us"))
            rule->sd_us = number;
        else if (!strcmp(word, "power"))
            rule->power_w = number;
        else
            mistake(path, line, "unknown kernel setting");
    }
}

static void read_hold(struct sim_script *script, char *words, const char *path, int line)
{
    static const struct setting keys[] = {{NULL, "from", offsetof(struct sim_hold, from)},
                                          {NULL, "every", offsetof(struct sim_hold, every)},
                                          {NULL, "times", offsetof(struct sim_hold, times)},
                                          {NULL, "us", offsetof(struct sim_hold, us)},
                                          {NULL, "after", offsetof(struct sim_hold, after)}};
    if (script->holds == SIM_HOLDS)
        mistake(path, line, "too many holds");
    struct sim_hold *hold = &script->hold[script->holds++];
    *hold = (struct sim_hold){.from = 1, .every = 1};
    char *save, *word = strtok_r(words, " \t", &save);
    if (!word || strlen(word) >= sizeof(hold->call))
        mistake(path, line, "hold needs a call");
    strcpy(hold->call, word);
    while ((word = strtok_r(NULL, " \t", &save))) {
        char *value = strchr(word, '=');
        size_t i = 0, count = sizeof(keys) / sizeof(*keys);
        if (value)
            *value++ = 0;
        while (i < count && strcmp(word, keys[i].key))
            i++;
        if (!value || i == count)
            mistake(path, line, "unknown setting of hold");
        *(double *)((char *)hold + keys[i].offset) = strtod(value, NULL);
    }
    if (hold->every < 1)
        mistake(path, line, "every: 1 or more");
}

static void read_line(struct sim_script *script, char *text, const char *path, int line)
{
    text[strcspn(text, "#\r\n")] = 0;
    char *save, *directive = strtok_r(text, " \t", &save);
    if (!directive)
        return;
    if (!strcmp(directive, "kernel")) {
        read_kernel(script, save, path, line);
        return;
    }
    if (!strcmp(directive, "hold")) {
        read_hold(script, save, path, line);
        return;
    }
    const char *call = !strcmp(directive, "cost") ? strtok_r(NULL, " \t", &save) : NULL;
    for (char *word; (word = strtok_r(NULL, " \t", &save));) {
        char *value = strchr(word, '=');
        bool known = true;
        if (value)
            *value++ = 0;
        if (!strcmp(directive, "devices"))
            script->devices = atoi(word);
        else if (!strcmp(directive, "driver_version"))
            script->driver_version = atoi(word);
        else if (!strcmp(directive, "launch_cost_ns"))
            known = set_launch_cost(script, word);
        else if (!strcmp(directive, "costs"))
            script->costs_scale = strtod(word, NULL);
        else if (!strcmp(directive, "cost"))
            known = value && set_cost(script, call, word, value);
        else if (!strcmp(directive, "event"))
            known = value && set_event_cost(script, word, value);
        else if (!strcmp(directive, "refuse") && !strcmp(word, "counter"))
            script->refuse_counter = true;
        else if (!strcmp(directive, "refuse") && !strcmp(word, "power"))
            script->refuse_power = true;
        else if (!strcmp(directive, "refuse") && !strcmp(word, "ring"))
            script->refuse_ring = true;
        else
            known =
                value && (set(script, directive, word, value) || set_word(script, directive, word, value));
        if (!known)
            mistake(path, line, "unknown directive");
    }
    if (script->devices < 1 || script->devices > SIM_DEVICES)
        mistake(path, line, "devices: 1 to 8");
}

static void read_file(struct sim_script *script, const char *path)
{
    FILE *file = fopen(path, "re");
    if (!file)
        mistake(path, 0, "cannot be read");
    char text[1024];
    for (int line = 1; fgets(text, sizeof(text), file); line++)
        read_line(script, text, path, line);
    fclose(file);
}

void sim_script_read(struct sim_script *script, const char *path)
{
    *script = (struct sim_script){
        .devices = 1,
        .costs_scale = 1,
        .driver_version = 13030,
        .dependent_overlap = 0.3,
        .idle_w = 60,
        .context_w = 85,
        .cap_w = 700,
        .copy_gbs = 50,
        .copy_w = 110,
        .copy_latency_us = 8,
        .window_ms = 25,
        .period_ms = 100,
        .gain = 1,
        .counter_period_ms = 100,
        .counter_gain = 1,
        .body_runs = 3,
        .ring_period_ms = 20,
        .ring_window_ms = 20,
        .ring_clock = CLOCK_REALTIME,
        .architecture = 9, /* Hopper */
        .handles_abort = 1,
        .handles_reuse = 1,
        .mig_board_uuid = 1,
        .board = "NVIDIA H100 80GB HBM3",
        .driver = "580.65.06",
    };
    for (int i = 0; i < SIM_COSTS; i++)
        script->cost[i] = (struct sim_cost){UNSAID, UNSAID, UNSAID};
    if (path && *path)
        read_file(script, path);
    settle_costs(script);
}
