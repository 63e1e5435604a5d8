/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.c - starting kjoule-probe and taking in its stream.
 */
#include "record/probe.h"

#include "probe_stream.h"
#include "record/parts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SENSORS_MAX = 128, OWN_MAX = 5, SAMPLES_MAX = 4096, UNNAMED_MAX = 64, FINISH_MS = 500 };
enum own { OWN_TREE, OWN_OTHERS, OWN_IDLE, OWN_TREE_CYCLES, OWN_ALL_CYCLES };

struct kj_probe {
    int socket; /* -1: none */
    uint64_t cost_ns;
    enum { STARTING, READY, REFUSED, ENDED } state;
    bool cycles;
    bool watches; /* a function, at least */
    char reason[200], function_reason[200], no_phases[KJ_PROBE_TEXT_BYTES], path[PATH_MAX];
    struct kj_channel channels[SENSORS_MAX + OWN_MAX];
    bool dropped[SENSORS_MAX + OWN_MAX], lost[SENSORS_MAX];
    char lost_reason[SENSORS_MAX][160];
    size_t sensors, count;
    uint64_t tree_ns, last_value[SENSORS_MAX + OWN_MAX], last_ns[SENSORS_MAX + OWN_MAX];
    struct kj_sample samples[SAMPLES_MAX];
    size_t samples_count;
    int32_t unnamed[UNNAMED_MAX];
    size_t unnamed_count;
    struct kj_threads *threads;
    struct kj_cpu_phases_writer *phases;
    struct kj_probe_record batch[KJ_PROBE_BATCH];
};

/* Beside this program in a build folder, else where `make install-probe` puts it. */
static bool find_program(char *ret_path)
{
    static const char *const places[] = {"%s/kjoule-probe", "%s/../libexec/kjoule/kjoule-probe"};
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return false;
    self[n] = 0;
    *strrchr(self, '/') = 0;
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        char candidate[PATH_MAX + 64];
        snprintf(candidate, sizeof(candidate), places[i], self);
        if (realpath(candidate, ret_path) && !access(ret_path, X_OK))
            return true;
    }
    return false;
}

static void become_program(const char *path, int socket, bool phases, const sigset_t *mask)
{
    char *const argv[] = {(char *)"kjoule-probe", (char *)(phases ? "phases" : ""), NULL};
    char *const environment[] = {NULL};
    if (mask)
        sigprocmask(SIG_SETMASK, mask, NULL);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (dup2(socket, 0) >= 0 && null >= 0 && dup2(null, 1) >= 0 && dup2(null, 2) >= 0)
        execve(path, argv, environment);
    _exit(127);
}

/* Forked twice: the command is to be our only child, and our children's CPU time the run's. What starting it
 * cost is told apart from that. */
static int spawn(const char *path, int socket, bool phases, const sigset_t *mask, uint64_t *ret_cost_ns)
{
    struct rusage usage = {0};
    pid_t pid = fork();
    if (pid < 0)
        return -errno;
    if (pid == 0) {
        if (fork() == 0)
            become_program(path, socket, phases, mask);
        _exit(0);
    }
    while (wait4(pid, NULL, 0, &usage) < 0 && errno == EINTR)
        ;
    *ret_cost_ns = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * KJ_NS_PER_S +
                   (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
    return 0;
}

struct kj_probe *kj_probe_start(bool phases, const sigset_t *mask)
{
    struct kj_probe *probe = calloc(1, sizeof(*probe));
    int pair[2];
    if (!probe)
        return NULL;
    probe->socket = -1;
    probe->state = REFUSED;
    if (!find_program(probe->path)) {
        *probe->path = 0;
        snprintf(probe->reason, sizeof(probe->reason), "kjoule-probe is not installed");
        return probe;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        snprintf(probe->reason, sizeof(probe->reason), "no socket for kjoule-probe: %s", strerror(errno));
        return probe;
    }
    int status = spawn(probe->path, pair[1], phases, mask, &probe->cost_ns);
    close(pair[1]);
    if (status) {
        snprintf(probe->reason, sizeof(probe->reason), "kjoule-probe cannot be started: %s",
                 strerror(-status));
        close(pair[0]);
        return probe;
    }
    probe->socket = pair[0];
    probe->state = STARTING;
    return probe;
}

struct kj_probe *kj_probe_adopt(int socket)
{
    struct kj_probe *probe = calloc(1, sizeof(*probe));
    if (probe)
        probe->socket = socket;
    return probe;
}

uint64_t kj_probe_cost_ns(const struct kj_probe *probe)
{
    return probe->cost_ns;
}

/* ------------------------------------------------------------------ the stream */

static void end(struct kj_probe *probe, int state, const char *why)
{
    if (probe->socket >= 0)
        close(probe->socket);
    probe->socket = -1;
    probe->state = state;
    if (why)
        snprintf(probe->reason, sizeof(probe->reason), "%s", why);
}

static void add_sample(struct kj_probe *probe, size_t channel, uint64_t t_ns, uint64_t value)
{
    if (channel >= probe->count || probe->dropped[channel] || probe->samples_count == SAMPLES_MAX ||
        t_ns < probe->last_ns[channel] || t_ns > kj_mono_ns())
        return;
    /* A slice that still runs is counted by the clock, and corrected when it ends: never backwards. */
    if (probe->channels[channel].kind != KJ_POWER_MW && value < probe->last_value[channel])
        value = probe->last_value[channel];
    probe->last_value[channel] = value;
    probe->last_ns[channel] = t_ns;
    probe->samples[probe->samples_count++] =
        (struct kj_sample){.channel = (uint32_t)channel, .t_ns = t_ns, .value = value};
}

static bool is_text(const char *text, size_t size)
{
    return *text && memchr(text, 0, size);
}

static bool take_channel(struct kj_probe *probe, const struct kj_probe_record *record)
{
    if (probe->state != STARTING || probe->sensors == SENSORS_MAX || record->id != probe->sensors ||
        record->channel.component < KJ_COMPONENT_CPU || record->channel.component > KJ_COMPONENT_NODE ||
        (record->channel.quantity != KJ_ENERGY_UJ && record->channel.quantity != KJ_POWER_MW) ||
        !(record->channel.gain_sd >= 0 && record->channel.gain_sd < 1) ||
        !is_text(record->channel.source, sizeof(record->channel.source)) ||
        !is_text(record->channel.name, sizeof(record->channel.name)) ||
        !is_text(record->channel.device, sizeof(record->channel.device)))
        return false;
    struct kj_channel *channel = &probe->channels[probe->sensors];
    *channel = (struct kj_channel){.id = (uint32_t)probe->sensors,
                                   .component = (enum kj_component)record->channel.component,
                                   .kind = (enum kj_quantity_kind)record->channel.quantity,
                                   .method = KJ_MEASURED,
                                   .gain_sd = record->channel.gain_sd,
                                   .low_factor = 1,
                                   .high_factor = 1,
                                   .period_ns = record->channel.period_ns};
    snprintf(channel->source, sizeof(channel->source), "%s", record->channel.source);
    snprintf(channel->name, sizeof(channel->name), "%s", record->channel.name);
    snprintf(channel->device, sizeof(channel->device), "%s", record->channel.device);
    snprintf(channel->basis, sizeof(channel->basis),
             "read by kjoule-probe; gain %.0f %% (1 sigma): an estimate, unmetered", 100 * channel->gain_sd);
    probe->count = ++probe->sensors;
    return true;
}

static void add_own_channels(struct kj_probe *probe)
{
    static const char *const names[OWN_MAX] = {"tree", "others", "idle", "tree_cycles", "all_cycles"};
    for (size_t i = 0; i < (probe->cycles ? OWN_MAX : OWN_TREE_CYCLES); i++) {
        struct kj_channel *channel = &probe->channels[probe->count];
        *channel = (struct kj_channel){.id = (uint32_t)probe->count,
                                       .component = KJ_COMPONENT_CPU,
                                       .kind = i < OWN_TREE_CYCLES ? KJ_CPU_BUSY_NS : KJ_CPU_CYCLES,
                                       .method = KJ_MEASURED,
                                       .low_factor = 1,
                                       .high_factor = 1};
        snprintf(channel->source, sizeof(channel->source), "probe");
        snprintf(channel->name, sizeof(channel->name), "%s", names[i]);
        snprintf(channel->device, sizeof(channel->device), "%s",
                 i == OWN_TREE || i == OWN_TREE_CYCLES ? "tree" : "node");
        snprintf(channel->basis, sizeof(channel->basis), "kjoule-probe, at each scheduler switch");
        probe->count++;
    }
}

static void take_tick(struct kj_probe *probe, const struct kj_probe_record *record)
{
    const uint64_t values[OWN_MAX] = {record->tick.tree_ns, record->tick.others_ns, record->tick.idle_ns,
                                      record->tick.tree_cycles, record->tick.all_cycles};
    for (size_t i = 0; probe->sensors + i < probe->count; i++)
        add_sample(probe, probe->sensors + i, record->t_ns, values[i]);
    /* Also where it is less than before: what runs is told by the clock, with what a host steals of it, and
     * by the scheduler's sum once it has switched. */
    probe->tree_ns = record->tick.tree_ns;
}

static void take_thread(struct kj_probe *probe, const struct kj_probe_record *record)
{
    char comm[KJ_PROBE_NAME_BYTES + 1] = "", process[KJ_PROBE_NAME_BYTES + 1] = "";
    memcpy(comm, record->thread.comm, KJ_PROBE_NAME_BYTES);
    memcpy(process, record->thread.process, KJ_PROBE_NAME_BYTES);
    const struct kj_thread_seen seen = {.pid = record->pid,
                                        .tid = record->thread.tid,
                                        .dead = record->thread.dead != 0,
                                        .cpu_ns = record->thread.cpu_ns,
                                        .cycles = record->thread.cycles,
                                        .instructions = record->thread.instructions,
                                        .comm = comm,
                                        .process = process};
    if (probe->threads && seen.pid > 0 && seen.tid > 0)
        kj_threads_note(probe->threads, &seen);
}

static void take_phase(struct kj_probe *probe, const struct kj_probe_record *record)
{
    if (!probe->phases || record->phase.mark >= KJ_CPU_PHASES || record->pid <= 0 || record->phase.tid <= 0 ||
        record->phase.start_ns > record->phase.end_ns || record->phase.end_ns > kj_mono_ns())
        return;
    struct kj_cpu_phase_row row = {.pid = record->pid,
                                   .tid = record->phase.tid,
                                   .phase = (enum kj_cpu_phase)record->phase.mark,
                                   .start_ns = record->phase.start_ns,
                                   .end_ns = record->phase.end_ns};
    kj_cpu_phases_append(probe->phases, &row);
}

static void take_loss(struct kj_probe *probe, const struct kj_probe_record *record)
{
    if (record->id >= probe->sensors || probe->lost[record->id])
        return;
    probe->lost[record->id] = true;
    snprintf(probe->lost_reason[record->id], sizeof(probe->lost_reason[0]), "%.*s", KJ_PROBE_TEXT_BYTES - 1,
             record->text);
}

/* A process that ended before we asked is no error; a function that cannot be watched is worth a word. */
static void take_answer(struct kj_probe *probe, const struct kj_probe_record *record, const char *text)
{
    unsigned function = record->id - 1, bit = function == KJ_FUNCTION_ENGINE ? 1 : 2;
    if (record->id == 0 || function >= KJ_FUNCTIONS || record->pid <= 0)
        return;
    probe->watches = probe->watches || record->value == 0;
    if (record->value == 0 && probe->phases &&
        (function == KJ_FUNCTION_ENGINE || function == KJ_FUNCTION_RECORD_END ||
         function == KJ_FUNCTION_UPDATE))
        kj_cpu_phases_seen(probe->phases, record->pid, record->t_ns, bit);
    else if (record->value < 0 && record->value != -ESRCH && !*probe->function_reason)
        snprintf(probe->function_reason, sizeof(probe->function_reason),
                 "process %d cannot be watched: %.120s", record->pid, text);
}

/* False: no record of this protocol at this place. */
static bool take(struct kj_probe *probe, const struct kj_probe_record *record)
{
    if (record->magic != KJ_PROBE_MAGIC)
        return false;
    char text[KJ_PROBE_TEXT_BYTES];
    memcpy(text, record->text, sizeof(text));
    text[sizeof(text) - 1] = 0;
    switch (record->kind) {
    case KJ_PROBE_HELLO:
        if (record->value != KJ_PROBE_VERSION)
            end(probe, REFUSED, "it is of another version than kjoule: install both together");
        return true;
    case KJ_PROBE_REFUSED:
        end(probe, REFUSED, text);
        return true;
    case KJ_PROBE_CHANNEL:
        return take_channel(probe, record);
    case KJ_PROBE_READY:
        if (probe->state != STARTING)
            return false;
        probe->state = READY;
        probe->cycles = record->value == 1;
        snprintf(probe->reason, sizeof(probe->reason), "%s", text);
        add_own_channels(probe);
        return true;
    case KJ_PROBE_WATCHING:
        take_answer(probe, record, text);
        return true;
    case KJ_PROBE_NO_PHASES:
        memcpy(probe->no_phases, text, sizeof(text));
        return true;
    }
    if (probe->state != READY)
        return false;
    switch (record->kind) {
    case KJ_PROBE_TICK:
        take_tick(probe, record);
        return true;
    case KJ_PROBE_THREAD:
        take_thread(probe, record);
        return true;
    case KJ_PROBE_READING:
        if (record->id < probe->sensors && record->value >= 0)
            add_sample(probe, record->id, record->t_ns, (uint64_t)record->value);
        return true;
    case KJ_PROBE_LOST:
        take_loss(probe, record);
        return true;
    case KJ_PROBE_PHASE:
        take_phase(probe, record);
        return true;
    case KJ_PROBE_UNNAMED:
        if (probe->unnamed_count < UNNAMED_MAX && record->pid > 0)
            probe->unnamed[probe->unnamed_count++] = record->pid;
        return true;
    }
    return false;
}

bool kj_probe_read(struct kj_probe *probe)
{
    while (probe->socket >= 0) {
        ssize_t size = recv(probe->socket, probe->batch, sizeof(probe->batch), MSG_DONTWAIT | MSG_TRUNC);
        if (size < 0 && errno == EINTR)
            continue;
        if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        size_t whole = size > 0 ? (size_t)size / sizeof(probe->batch[0]) : 0;
        if (size <= 0 || (size_t)size > sizeof(probe->batch) ||
            (size_t)size != whole * sizeof(probe->batch[0])) {
            end(probe, probe->state == READY ? ENDED : REFUSED,
                size > 0                ? "kjoule-probe said what cannot be understood"
                : probe->state == READY ? NULL
                                        : "kjoule-probe ended before it measured");
            return false;
        }
        for (size_t i = 0; i < whole && probe->socket >= 0; i++)
            if (!take(probe, &probe->batch[i])) {
                end(probe, probe->state == READY ? ENDED : REFUSED,
                    "kjoule-probe said what cannot be understood");
                return false;
            }
    }
    return false;
}

void kj_probe_await(struct kj_probe *probe, int32_t root_pid, int timeout_ms)
{
    uint64_t until_ns = kj_mono_ns() + (uint64_t)timeout_ms * KJ_NS_PER_MS;
    while (probe->state == STARTING) {
        siginfo_t info = {0};
        if (root_pid && !waitid(P_PID, (id_t)root_pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid) {
            end(probe, REFUSED, "the run ended before kjoule-probe measured");
            return;
        }
        if (kj_mono_ns() > until_ns) {
            end(probe, REFUSED, "kjoule-probe did not answer in time");
            return;
        }
        struct pollfd poll_fd = {.fd = probe->socket, .events = POLLIN};
        poll(&poll_fd, 1, root_pid ? 2 : 20);
        kj_probe_read(probe);
    }
}

void kj_probe_get_status(const struct kj_probe *probe, struct kj_probe_status *ret_status)
{
    memset(ret_status, 0, sizeof(*ret_status));
    ret_status->running = probe->state == READY;
    snprintf(ret_status->reason, sizeof(ret_status->reason), "%s", probe->reason);
    if (probe->state == READY || probe->state == ENDED)
        return;
    if (!*probe->path)
        snprintf(ret_status->remedy, sizeof(ret_status->remedy), "sudo make install-probe");
    else if (strstr(probe->reason, "capabilities"))
        snprintf(ret_status->remedy, sizeof(ret_status->remedy),
                 "sudo setcap cap_bpf,cap_perfmon,cap_dac_read_search=ep %.300s", probe->path);
}

const char *kj_probe_function_reason(const struct kj_probe *probe)
{
    return probe->function_reason;
}

bool kj_probe_watches(const struct kj_probe *probe)
{
    return probe->watches;
}

const char *kj_probe_no_phases(const struct kj_probe *probe)
{
    return probe->no_phases;
}

bool kj_probe_unnamed(struct kj_probe *probe, int32_t *ret_pid)
{
    if (!probe->unnamed_count)
        return false;
    *ret_pid = probe->unnamed[--probe->unnamed_count];
    return true;
}

size_t kj_probe_channels(const struct kj_probe *probe, const struct kj_channel **ret_channels)
{
    *ret_channels = probe->channels;
    return probe->count;
}

void kj_probe_drop_channel(struct kj_probe *probe, uint32_t channel)
{
    if (channel < probe->count)
        probe->dropped[channel] = true;
}

void kj_probe_connect(struct kj_probe *probe, struct kj_threads *threads, struct kj_cpu_phases_writer *phases)
{
    probe->threads = threads;
    probe->phases = phases;
}

size_t kj_probe_samples(struct kj_probe *probe, struct kj_sample *ret_samples, size_t cap)
{
    size_t count = probe->samples_count < cap ? probe->samples_count : cap;
    memcpy(ret_samples, probe->samples, count * sizeof(*ret_samples));
    memmove(probe->samples, probe->samples + count, (probe->samples_count - count) * sizeof(*ret_samples));
    probe->samples_count -= count;
    return count;
}

bool kj_probe_lost(struct kj_probe *probe, uint32_t *ret_channel, char *ret_reason, size_t size)
{
    for (uint32_t i = 0; i < probe->sensors; i++) {
        if (!probe->lost[i] || probe->dropped[i])
            continue;
        probe->dropped[i] = true;
        *ret_channel = i;
        snprintf(ret_reason, size, "%s", probe->lost_reason[i]);
        return true;
    }
    return false;
}

uint64_t kj_probe_tree_ns(const struct kj_probe *probe)
{
    return probe->tree_ns;
}

/* ------------------------------------------------------------------ requests */

static int request(struct kj_probe *probe, struct kj_probe_request asked, int fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    asked.magic = KJ_PROBE_MAGIC;
    struct iovec data = {.iov_base = &asked, .iov_len = sizeof(asked)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};
    if (probe->socket < 0)
        return -ENOTCONN;
    if (fd >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof(control);
        control.header = (struct cmsghdr){
            .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(&control.header), &fd, sizeof(int));
    }
    return sendmsg(probe->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -errno : 0;
}

void kj_probe_watch(struct kj_probe *probe, int32_t pid)
{
    request(probe, (struct kj_probe_request){.kind = KJ_PROBE_WATCH, .pid = pid}, -1);
}

int kj_probe_function(struct kj_probe *probe, int32_t pid, unsigned function, int fd, uint64_t offset)
{
    return request(probe,
                   (struct kj_probe_request){
                       .kind = KJ_PROBE_FUNCTION, .pid = pid, .function = function, .offset = offset},
                   fd);
}

void kj_probe_finish(struct kj_probe *probe)
{
    if (probe->state != READY || request(probe, (struct kj_probe_request){.kind = KJ_PROBE_STOP}, -1))
        return;
    uint64_t until_ns = kj_mono_ns() + FINISH_MS * (uint64_t)KJ_NS_PER_MS;
    while (kj_probe_read(probe) && kj_mono_ns() < until_ns) {
        struct pollfd poll_fd = {.fd = probe->socket, .events = POLLIN};
        poll(&poll_fd, 1, 20);
    }
}

struct kj_probe *kj_probe_close(struct kj_probe *probe)
{
    if (!probe)
        return NULL;
    if (probe->socket >= 0)
        close(probe->socket);
    free(probe);
    return NULL;
}
