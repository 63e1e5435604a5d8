/* SPDX-License-Identifier: Apache-2.0
 *
 * recorder.c - the life of a run: folder, command, sensors, the loop, the end.
 */
#include "record/recorder.h"

#include "base/file.h"
#include "carbon/carbon.h"
#include "folder/ledgers.h"
#include "record/events.h"
#include "record/functions.h"
#include "record/parts.h"
#include "record/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DRAIN_NS   (KJ_NS_PER_S / 2)
#define THREADS_NS (5 * KJ_NS_PER_S) /* how often threads.csv is renewed */
#define PROBE_MS   2000 /* the probe's time to begin; on an idle machine a tenth of it is enough */
#define BRIEF_NS                                                                                             \
    KJ_NS_PER_S /* without wrapper and CUDA, a shorter run leaves nothing; start.c of the shim has the same  \
                 */

struct kj_recorder {
    struct kj_run_info info;
    char *folder;
    int dir_fd;
    struct kj_power *power;
    struct kj_owners *owners;
    struct kj_tree *tree;
    struct kj_probe *probe;
    struct kj_threads *threads;
    struct kj_cpu_phases_writer *phases;
    struct kj_functions *functions; /* NULL: no phases on the CPU are wanted, or none can be had */
    struct kj_sampler *sampler;
    struct kj_events *events;
    struct kj_blind *blind;
    struct kj_rests *rests;
    uint64_t drain_next_ns, threads_next_ns;
    bool ended;
};

/* One line as a shell would take it, for people. */
static char *join(char *const *argv)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    for (char *const *word = argv; *word; word++) {
        bool plain = **word && !strpbrk(*word, " \t\n'\"\\$`*?[]#~=%&|;<>(){}!");
        fputs(word == argv ? "" : " ", out);
        if (plain) {
            fputs(*word, out);
            continue;
        }
        fputc('\'', out);
        for (const char *p = *word; *p; p++)
            *p == '\'' ? (void)fputs("'\\''", out) : (void)fputc(*p, out);
        fputc('\'', out);
    }
    return fclose(out) ? NULL : text;
}

static char **copy_words(char *const *argv)
{
    size_t count = 0;
    while (argv[count])
        count++;
    char **copy = calloc(count + 1, sizeof(*copy));
    for (size_t i = 0; copy && i < count; i++)
        copy[i] = strdup(argv[i]);
    return copy;
}

static char **command_of(int32_t pid)
{
    char path[64], *data;
    size_t size;
    snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
    if (kj_file_read(AT_FDCWD, path, 1 << 20, &data, &size))
        return NULL;
    size_t count = 0, i = 0;
    for (size_t at = 0; at < size; at++)
        count += data[at] == 0;
    char **argv = calloc(count + 2, sizeof(*argv));
    for (size_t at = 0; argv && at < size && i <= count; at += strlen(data + at) + 1)
        argv[i++] = strdup(data + at);
    free(data);
    return argv;
}

static int locate(struct kj_recorder *r, const struct kj_options *options, struct kj_error *error)
{
    struct kj_factor_choice choice;
    char zone[80];
    bool own = options->given[KJ_OPT_CARBON_INTENSITY];
    const struct kj_zone_request request = {.zone = options->text[KJ_OPT_ZONE],
                                            .root = "",
                                            .g_per_kwh = own ? options->number[KJ_OPT_CARBON_INTENSITY] : -1};
    int status = kj_carbon_choose(&request, &choice, error);
    if (status)
        return status;
    const struct kj_location *at = &choice.location;
    if (*at->cloud_provider && *at->cloud_region)
        snprintf(zone, sizeof(zone), "%s:%s", at->cloud_provider, at->cloud_region);
    else
        snprintf(zone, sizeof(zone), "%s", at->code);
    r->info.place_zone = strdup(zone);
    r->info.place_method = strdup(at->method);
    r->info.place_evidence = strdup(at->evidence);
    r->info.place_confidence = at->confidence;
    r->info.place_is_default = at->is_default;
    return 0;
}

static int describe(struct kj_recorder *r, const struct kj_recorder_config *config, struct kj_error *error)
{
    const struct kj_options *options = config->options;
    struct kj_run_info *info = &r->info;
    info->wrapped = config->argv != NULL;
    info->root_pid = config->root_pid;
    info->argv = config->argv ? copy_words(config->argv) : command_of(config->root_pid);
    if (!info->argv || !info->argv[0]) {
        kj_error_set(error, "process %d is gone, or not ours; give the pid of a running process",
                     config->root_pid);
        return -ESRCH;
    }
    info->command_line = join(info->argv);
    info->zone = *options->text[KJ_OPT_ZONE] ? strdup(options->text[KJ_OPT_ZONE]) : NULL;
    info->carbon_intensity_g_per_kwh =
        options->given[KJ_OPT_CARBON_INTENSITY] ? options->number[KJ_OPT_CARBON_INTENSITY] : -1;
    info->pue = options->given[KJ_OPT_PUE] ? options->number[KJ_OPT_PUE] : 0;
    static const char *const rules[] = {"auto", "cores", "cpu", "all", "none"};
    for (int i = 0; i < 5; i++)
        if (!strcmp(options->text[KJ_OPT_IDLE_SHARE], rules[i]))
            info->idle_rule = i;
    const char *per = options->text[KJ_OPT_PER], *equals = strchr(per, '=');
    if (*per && equals && (info->per = calloc(1, sizeof(*info->per)))) {
        info->per[0] = (struct kj_run_per){strndup(per, (size_t)(equals - per)), strtod(equals + 1, NULL)};
        info->per_count = 1;
    }
    int status = locate(r, options, error);
    kj_host_describe(info);
    return status;
}

/* False: another recorder of this job counts it. */
static bool claim(struct kj_recorder *r, const char *device)
{
    struct kj_run_info *info = &r->info;
    char owner[160];
    for (size_t i = 0; i < info->devices_count; i++)
        if (!strcmp(info->devices[i].device, device))
            return info->devices[i].owned;
    bool owned = kj_owners_claim(r->owners, device, owner, sizeof(owner));
    info->devices[info->devices_count++] =
        (struct kj_run_device){strdup(device), owned, owned ? NULL : strdup(owner)};
    return owned;
}

/* The same counter, read by ourselves: then the probe's reading of it is not wanted. */
static bool is_ours(const struct kj_channel *channels, size_t count, const struct kj_channel *probed)
{
    for (size_t i = 0; i < count; i++)
        if (!strcmp(channels[i].source, probed->source) && !strcmp(channels[i].device, probed->device) &&
            !strcmp(channels[i].name, probed->name))
            return true;
    return false;
}

static void claim_devices(struct kj_recorder *r)
{
    struct kj_run_info *info = &r->info;
    const struct kj_channel *channels = NULL, *probed = NULL;
    size_t count = r->power ? kj_power_channels(r->power, &channels) : 0;
    size_t probed_count = r->probe ? kj_probe_channels(r->probe, &probed) : 0;
    info->devices = calloc(count + probed_count + 1, sizeof(*info->devices));
    r->owners = kj_owners_open(info->job_kind ? info->job_kind : "kjoule",
                               info->job_id ? info->job_id : r->folder, info->run_id);
    if (!info->devices)
        return;
    /* A GPU is counted whole, by one; of packages and memory each counts its own part. */
    for (size_t i = 0; i < count; i++)
        if (!claim(r, channels[i].device) && channels[i].component == KJ_COMPONENT_GPU)
            kj_power_exclude_device(r->power, channels[i].device);
    for (size_t i = 0; i < probed_count; i++) {
        if (probed[i].kind >= KJ_CPU_BUSY_NS)
            continue;
        claim(r, probed[i].device);
        if (is_ours(channels, count, &probed[i]))
            kj_probe_drop_channel(r->probe, (uint32_t)i);
    }
}

static void note_sources(struct kj_recorder *r)
{
    const struct kj_source_status *statuses = NULL;
    size_t count = r->power ? kj_power_statuses(r->power, &statuses) : 0;
    r->info.sources = calloc(count + 2, sizeof(*r->info.sources));
    for (size_t i = 0; i < count; i++)
        if (statuses[i].warning[0])
            kj_host_warn(&r->info, "%s", statuses[i].warning);
    for (size_t i = 0; r->info.sources && i < count; i++, r->info.sources_count++)
        r->info.sources[i] = (struct kj_run_source){strdup(statuses[i].name), statuses[i].accepted,
                                                    strdup(statuses[i].reason), strdup(statuses[i].remedy)};
    if (!r->info.sources)
        return;
    struct kj_probe_status probe = {0};
    if (r->probe) {
        kj_probe_get_status(r->probe, &probe);
        r->info.sources[r->info.sources_count++] = (struct kj_run_source){
            strdup("probe"), probe.running, strdup(probe.reason), strdup(probe.remedy)};
    }
    if (probe.running)
        return;
    /* Only now: where the probe refuses, it has ended, and is in no group any more. */
    bool alone = kj_tree_use_cgroup(r->tree);
    r->info.sources[r->info.sources_count++] = (struct kj_run_source){
        strdup("cgroup"), alone,
        strdup(alone ? "CPU time of the control group, which holds this run alone: of children too that "
                       "nobody waits for"
                     : "the control group's CPU time cannot be read, or is not this run's alone"),
        strdup(alone ? "" : "systemd-run --user --scope kjoule ...")};
}

/* Everybody who is there already; who comes later is followed by the probe itself. Twice: a child that was
 * born between our look and the probe's knowing its parent is seen the second time. */
static void watch_tree(struct kj_recorder *r)
{
    for (int i = 0; i < 2; i++) {
        const int32_t *pids;
        kj_tree_cpu_ns(r->tree);
        size_t count = kj_tree_alive(r->tree, &pids);
        for (size_t p = 0; p < count; p++)
            kj_probe_watch(r->probe, pids[p]);
    }
}

static void open_probe(struct kj_recorder *r, bool wants_phases)
{
    struct kj_probe_status status = {0};
    if (r->probe) {
        kj_tree_leave_out(r->tree, kj_probe_cost_ns(r->probe));
        kj_probe_await(r->probe, r->info.wrapped ? r->info.root_pid : 0, PROBE_MS);
        kj_probe_get_status(r->probe, &status);
    }
    r->threads = kj_threads_new(status.running ? "probe" : "proc");
    if (!status.running) {
        if (wants_phases)
            kj_host_warn(&r->info,
                         "--probe-phases: no phases on the CPU: %s; `kjoule doctor` tells what mends it",
                         r->probe ? status.reason : "--probe off");
        return;
    }
    watch_tree(r);
    kj_probe_connect(r->probe, r->threads, r->phases);
    if (wants_phases && *kj_probe_no_phases(r->probe))
        kj_host_warn(&r->info, "--probe-phases: no phases on the CPU: %s", kj_probe_no_phases(r->probe));
    else if (r->phases)
        r->functions = kj_functions_new();
}

/* After the command has started: a slow sensor delays nobody. What fails here is a warning of the report. */
static void open_sensors(struct kj_recorder *r, const struct kj_options *options)
{
    struct kj_error error = {0};
    const struct kj_power_config power = {.sysfs_root = ""};
    if (!r->power && kj_power_open(&power, &r->power, &error))
        kj_host_warn(&r->info, "no sensor could be opened: %s; `kjoule doctor` tells more", error.text);
    open_probe(r, *options->text[KJ_OPT_PROBE_PHASES]);
    claim_devices(r);
    note_sources(r);
    double cores = r->info.cores_allowed;
    if (r->info.cgroup_cpu_quota > 0 && r->info.cgroup_cpu_quota < cores)
        cores = r->info.cgroup_cpu_quota;
    const struct kj_sampler_config sampler = {
        .dir_fd = r->dir_fd,
        .power = r->power,
        .tree = r->tree,
        .probe = r->probe,
        .cores = cores,
        .start_ns = r->info.start_mono_ns,
        .interval_ns = (uint64_t)(options->number[KJ_OPT_INTERVAL] * KJ_NS_PER_MS)};
    if (kj_sampler_new(&sampler, &r->sampler))
        kj_host_warn(&r->info, "power samples cannot be written to the run folder; is its disk full?");
    else
        kj_sampler_tick(r->sampler);
}

static int start_command(struct kj_recorder *r, const struct kj_recorder_config *config, int *ret_exit_status,
                         struct kj_error *error)
{
    const struct kj_child child = {.program = config->program,
                                   .argv = config->argv,
                                   .folder = r->folder,
                                   .mask = kj_events_outer_mask(r->events),
                                   .options = config->options};
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    r->info.start_mono_ns = kj_mono_ns();
    r->info.start_wall_ns = kj_wall_ns();
    int pid = kj_child_spawn(&child);
    if (pid < 0) {
        *ret_exit_status = pid == -ENOENT ? 127 : 126;
        kj_error_set(error, "%s: cannot be run: %s", config->argv[0], strerror(-pid));
        return -ENOEXEC;
    }
    r->info.root_pid = pid;
    return 0;
}

/* Before the command, so that it can begin meanwhile; nobody waits for it yet. */
static void start_probe(struct kj_recorder *r, const struct kj_options *options)
{
    if (!strcmp(options->text[KJ_OPT_PROBE], "off"))
        return;
    bool phases = *options->text[KJ_OPT_PROBE_PHASES];
    r->probe = kj_probe_start(phases, r->info.wrapped ? kj_events_outer_mask(r->events) : NULL);
    if (phases)
        r->phases = kj_cpu_phases_create(r->dir_fd);
}

static void tell_ready(struct kj_recorder *r, int fd)
{
    char line[4200];
    int size = snprintf(line, sizeof(line), "%s\n", r->folder);
    ssize_t ignored = size < (int)sizeof(line) ? write(fd, line, (size_t)size) : 0;
    (void)ignored;
    close(fd);
}

int kj_recorder_start(const struct kj_recorder_config *config, struct kj_recorder **ret_recorder,
                      int *ret_exit_status, struct kj_error *error)
{
    struct kj_recorder *r = calloc(1, sizeof(*r));
    if (!r)
        return -ENOMEM;
    r->dir_fd = -1;
    int status = describe(r, config, error);
    const char *replay = config->options->text[KJ_OPT_REPLAY];
    const struct kj_power_config power = {.replay_file = replay, .sysfs_root = ""};
    if (!status && *replay)
        status = kj_power_open(&power, &r->power, error);
    if (!status) {
        r->dir_fd = kj_folder_create(config->options->text[KJ_OPT_OUTPUT], r->info.run_id, &r->folder, error);
        status = r->dir_fd < 0 ? r->dir_fd : 0;
    }
    if (!status)
        status = kj_events_open(config->argv ? 0 : config->root_pid, r->dir_fd, &r->events, error);
    if (!status)
        start_probe(r, config->options);
    if (!status && config->argv)
        status = start_command(r, config, ret_exit_status, error);
    if (!status) {
        char executable[64];
        snprintf(executable, sizeof(executable), "/proc/%d/exe", r->info.root_pid);
        r->info.blind_reason = kj_host_blind_reason(config->program ? config->program : executable);
        r->info.static_or_setuid = r->info.blind_reason != NULL;
        status = kj_folder_write_run(r->dir_fd, &r->info);
        if (status)
            kj_host_warn(&r->info, "the run folder cannot be written: %s", strerror(-status));
        status = 0; /* the command runs: nothing may stop it now */
        if (config->ready_fd >= 0)
            tell_ready(r, config->ready_fd);
        r->tree = kj_tree_new(r->info.root_pid, r->info.wrapped);
        r->blind = kj_blind_new(r->dir_fd);
        r->rests = kj_rests_new(r->dir_fd);
        if (r->tree)
            open_sensors(r, config->options);
        kj_events_set_root(r->events, r->info.root_pid);
        kj_folder_write_run(r->dir_fd, &r->info); /* now with its sensors */
        *ret_recorder = r;
        return 0;
    }
    if (r->folder)
        kj_recorder_discard(r);
    kj_recorder_close(r);
    return status;
}

static void drain_ledgers(struct kj_recorder *r)
{
    char **names;
    size_t count;
    if (kj_folder_list_ledgers(r->dir_fd, &names, &count))
        return;
    for (size_t i = 0; i < count; i++)
        kj_ledger_drain(r->dir_fd, names[i]);
    kj_strings_free(names);
}

static void look_at_threads(struct kj_recorder *r, bool last)
{
    uint64_t now_ns = kj_mono_ns();
    if (!r->threads || !r->tree)
        return;
    if (!r->probe || !kj_probe_tree_ns(r->probe))
        kj_tree_threads(r->tree, r->threads);
    if (!last && now_ns < r->threads_next_ns)
        return;
    r->threads_next_ns = now_ns + THREADS_NS;
    kj_threads_save(r->threads, r->dir_fd);
}

static void tick(struct kj_recorder *r)
{
    uint64_t now_ns = kj_mono_ns();
    if (r->probe)
        kj_probe_read(r->probe);
    if (r->functions && r->tree) {
        const int32_t *pids;
        size_t count = kj_tree_alive(r->tree, &pids);
        kj_functions_look(r->functions, r->probe, pids, count);
    }
    if (r->sampler)
        kj_sampler_tick(r->sampler);
    kj_rests_tick(r->rests);
    if (now_ns < r->drain_next_ns)
        return;
    r->drain_next_ns = now_ns + DRAIN_NS;
    drain_ledgers(r);
    look_at_threads(r, false);
    kj_cpu_phases_flush(r->phases);
    const int32_t *pids;
    size_t count = r->tree ? kj_tree_alive(r->tree, &pids) : 0;
    if (count && r->blind)
        kj_blind_look(r->blind, pids, count, &r->info);
    if (r->sampler)
        kj_sampler_flush(r->sampler);
}

/* True: the root has ended. */
static bool wait_for_turn(struct kj_recorder *r, struct kj_ending *ret_ending)
{
    kj_events_tick_at(r->events, r->sampler ? kj_sampler_next_ns(r->sampler) : kj_mono_ns() + DRAIN_NS);
    return kj_events_wait(r->events, ret_ending);
}

int kj_recorder_watch(struct kj_recorder *r)
{
    struct kj_ending ending = {0};
    while (!wait_for_turn(r, &ending))
        if (!r->sampler || !kj_sampler_look(r->sampler))
            tick(r);
    r->info.end_mono_ns = kj_mono_ns();
    r->info.exited = ending.status_known;
    r->info.exit_status = ending.exit_status;
    r->info.exit_signal = ending.exit_signal;
    if (r->probe)
        kj_probe_finish(r->probe);
    if (r->tree) {
        r->info.tree_cpu_ns = kj_tree_cpu_ns(r->tree);
        if (r->probe && kj_probe_tree_ns(r->probe) > r->info.tree_cpu_ns)
            r->info.tree_cpu_ns = kj_probe_tree_ns(r->probe);
        r->info.processes_seen = kj_tree_processes_seen(r->tree);
    }
    look_at_threads(r, true);
    if (r->functions && *kj_functions_reason(r->functions))
        kj_host_warn(&r->info, "--probe-phases: no phases on the CPU: %s", kj_functions_reason(r->functions));
    else if (r->functions && *kj_probe_function_reason(r->probe))
        kj_host_warn(&r->info, "--probe-phases: %s: %s",
                     kj_probe_watches(r->probe) ? "phases on the CPU are incomplete" : "no phases on the CPU",
                     kj_probe_function_reason(r->probe));
    r->functions = kj_functions_free(r->functions);
    r->phases = kj_cpu_phases_close(r->phases);
    r->sampler = kj_sampler_close(r->sampler);
    r->rests = kj_rests_close(r->rests);
    drain_ledgers(r);
    kj_folder_write_run(r->dir_fd, &r->info);
    r->ended = true;
    return ending.exit_status;
}

const char *kj_recorder_folder(const struct kj_recorder *r)
{
    return r->folder;
}

bool kj_recorder_is_void(const struct kj_recorder *r)
{
    char **names = NULL;
    size_t count = 0;
    if (r->info.wrapped || r->info.end_mono_ns - r->info.start_mono_ns >= BRIEF_NS)
        return false;
    kj_folder_list_ledgers(r->dir_fd, &names, &count);
    kj_strings_free(names);
    return count == 0;
}

void kj_recorder_discard(struct kj_recorder *r)
{
    r->sampler = kj_sampler_close(r->sampler);
    r->events = kj_events_close(r->events);
    unlinkat(r->dir_fd, KJ_RUN_FILE, 0);
    unlinkat(r->dir_fd, "series.000.csv", 0);
    unlinkat(r->dir_fd, KJ_THREADS_FILE, 0);
    rmdir(r->folder); /* keeps what is not empty */
}

struct kj_recorder *kj_recorder_close(struct kj_recorder *r)
{
    if (!r)
        return NULL;
    kj_sampler_close(r->sampler);
    kj_probe_close(r->probe);
    kj_threads_close(r->threads);
    kj_cpu_phases_close(r->phases);
    kj_functions_free(r->functions);
    kj_power_close(r->power);
    kj_owners_close(r->owners);
    kj_events_close(r->events);
    kj_tree_free(r->tree);
    kj_blind_free(r->blind);
    kj_rests_close(r->rests);
    if (r->dir_fd >= 0)
        close(r->dir_fd);
    free(r->folder);
    kj_run_info_clear(&r->info);
    free(r);
    return NULL;
}
