/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.c - kjoule-probe: the one program of kjoule that may hold capabilities. Started by the recorder with
 * one end of a socket pair as descriptor 0. It opens what it needs at places that are fixed, gives up what it
 * does not need any more, and then only reads numbers and sends them. It takes no path and no command.
 */
#include "phase_events.h"
#include "power/power.h"
#include "privileges.h"
#include "probe_stream.h"
#include "requests.h"
#include "switches.h"

#include <errno.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SOCKET = 0, TICK_MS = 100, LIVING_EVERY = 5, SAMPLES = 256, START_S = 20 };

struct probe {
    struct kj_sched_reader *sched;
    struct kj_phases_reader *phases;
    struct kj_power *power;
    bool want_phases, broken; /* broken: nobody reads any more */
    bool send_living;
    struct kj_probe_record batch[KJ_PROBE_BATCH];
    size_t batched;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void flush(struct probe *probe)
{
    size_t size = probe->batched * sizeof(probe->batch[0]);
    probe->batched = 0;
    if (!size || probe->broken)
        return;
    ssize_t sent;
    do
        sent = send(SOCKET, probe->batch, size, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    /* A reader that is stopped for a while makes us wait, and then miss a turn; one that is gone ends us. */
    if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
        probe->broken = true;
}

static struct kj_probe_record *add(struct probe *probe, enum kj_probe_record_kind kind)
{
    if (probe->batched == KJ_PROBE_BATCH)
        flush(probe);
    struct kj_probe_record *record = &probe->batch[probe->batched++];
    memset(record, 0, sizeof(*record));
    record->magic = KJ_PROBE_MAGIC;
    record->kind = kind;
    record->t_ns = now_ns();
    return record;
}

static int refuse(struct probe *probe, const char *text)
{
    struct kj_probe_record *record = add(probe, KJ_PROBE_REFUSED);
    snprintf(record->text, sizeof(record->text), "%s", text);
    flush(probe);
    return EXIT_FAILURE;
}

/* ------------------------------------------------------------------ what is sent */

static bool send_thread(void *context, uint32_t tid, const struct kj_tree_thread *thread)
{
    struct probe *probe = context;
    bool dead = thread->state == KJ_THREAD_DEAD;
    if (!dead && (!probe->send_living || !thread->ns))
        return false;
    struct kj_probe_record *record = add(probe, KJ_PROBE_THREAD);
    record->pid = (int32_t)thread->tgid;
    record->thread.tid = (int32_t)tid;
    record->thread.dead = dead;
    record->thread.cpu_ns = thread->ns;
    record->thread.cycles = thread->cycles;
    record->thread.instructions = thread->instructions;
    memcpy(record->thread.comm, thread->comm, sizeof(record->thread.comm));
    memcpy(record->thread.process, thread->process, sizeof(record->thread.process));
    return true;
}

static void send_phase(void *context, const struct kj_phase_event *event)
{
    if (event->mark == KJ_MARK_UNNAMED) {
        add(context, KJ_PROBE_UNNAMED)->pid = (int32_t)event->tgid;
        return;
    }
    struct kj_probe_record *record = add(context, KJ_PROBE_PHASE);
    record->pid = (int32_t)event->tgid;
    record->phase.tid = (int32_t)event->tid;
    record->phase.mark = event->mark;
    record->phase.start_ns = event->start_ns;
    record->phase.end_ns = event->end_ns;
}

static void send_readings(struct probe *probe)
{
    struct kj_sample samples[SAMPLES];
    size_t count = probe->power ? kj_power_read(probe->power, samples, SAMPLES) : 0;
    for (size_t i = 0; i < count; i++) {
        struct kj_probe_record *record = add(probe, KJ_PROBE_READING);
        record->t_ns = samples[i].t_ns;
        record->id = samples[i].channel;
        record->value = (int64_t)samples[i].value;
    }
    uint32_t channel;
    char reason[160];
    while (probe->power && kj_power_lost(probe->power, &channel, reason, sizeof(reason))) {
        struct kj_probe_record *record = add(probe, KJ_PROBE_LOST);
        record->id = channel;
        snprintf(record->text, sizeof(record->text), "%.150s", reason);
    }
}

static void send_all(struct probe *probe)
{
    struct kj_sched_sums sums;
    uint64_t lost_phases = probe->phases ? kj_phases_read(probe->phases) : 0;
    if (!kj_sched_read(probe->sched, &sums, send_thread, probe)) {
        struct kj_probe_record *record = add(probe, KJ_PROBE_TICK);
        record->t_ns = sums.t_ns;
        record->tick.tree_ns = sums.tree_ns;
        record->tick.others_ns = sums.others_ns;
        record->tick.idle_ns = sums.idle_ns;
        record->tick.tree_cycles = sums.tree_cycles;
        record->tick.tree_instructions = sums.tree_instructions;
        record->tick.all_cycles = sums.all_cycles;
        record->tick.switches = sums.switches;
        record->tick.unlisted = sums.unlisted;
        record->tick.lost_phases = lost_phases;
        record->tick.threads = sums.threads;
    }
    send_readings(probe);
    flush(probe);
}

static void send_channels(struct probe *probe)
{
    const struct kj_channel *channels;
    size_t count = probe->power ? kj_power_channels(probe->power, &channels) : 0;
    for (size_t i = 0; i < count; i++) {
        struct kj_probe_record *record = add(probe, KJ_PROBE_CHANNEL);
        record->id = channels[i].id;
        record->channel.component = channels[i].component;
        record->channel.quantity = channels[i].kind;
        record->channel.gain_sd = channels[i].gain_sd;
        record->channel.period_ns = channels[i].period_ns;
        snprintf(record->channel.source, sizeof(record->channel.source), "%s", channels[i].source);
        snprintf(record->channel.name, sizeof(record->channel.name), "%.31s", channels[i].name);
        snprintf(record->channel.device, sizeof(record->channel.device), "%s", channels[i].device);
    }
}

/* ------------------------------------------------------------------ what is asked */

static void answer(struct probe *probe, const struct kj_probe_request *request, int fd)
{
    char name[KJ_COMM_BYTES];
    const char *why = "";
    int status = kj_request_check(request, fd, name, sizeof(name), &why);
    if (!status && request->kind == KJ_PROBE_WATCH)
        status = kj_sched_watch(probe->sched, request->pid, name);
    if (!status && request->kind == KJ_PROBE_FUNCTION) {
        status = probe->phases
                     ? kj_phases_attach(probe->phases, request->function, request->pid, fd, request->offset)
                     : -ENOTSUP;
    }
    struct kj_probe_record *record = add(probe, KJ_PROBE_WATCHING);
    record->pid = request->pid;
    record->id = request->kind == KJ_PROBE_FUNCTION ? request->function + 1 : 0;
    record->value = status;
    if (status)
        snprintf(record->text, sizeof(record->text), "%s", *why ? why : strerror(-status));
}

/* False: it is over. */
static bool take_requests(struct probe *probe)
{
    for (;;) {
        struct kj_probe_request request;
        int fd = -1, size = kj_request_receive(SOCKET, &request, &fd);
        if (size == -EAGAIN)
            return true;
        if (size <= 0)
            return false;
        bool stop = request.kind == KJ_PROBE_STOP;
        if (!stop)
            answer(probe, &request, fd);
        if (fd >= 0)
            close(fd);
        if (stop)
            return false;
    }
}

static void watch(struct probe *probe)
{
    uint64_t next_ns = now_ns();
    for (unsigned turn = 0; !probe->broken; turn++) {
        next_ns += TICK_MS * 1000000ull;
        for (;;) {
            uint64_t t_ns = now_ns();
            int wait_ms = t_ns < next_ns ? (int)((next_ns - t_ns + 999999) / 1000000) : 0;
            struct pollfd poll_fd = {.fd = SOCKET, .events = POLLIN};
            int ready = poll(&poll_fd, 1, wait_ms);
            if (ready > 0 && !take_requests(probe)) {
                probe->send_living = true;
                send_all(probe);
                return;
            }
            if (ready <= 0 && now_ns() >= next_ns)
                break;
        }
        if (now_ns() > next_ns + 10 * TICK_MS * 1000000ull)
            next_ns = now_ns(); /* we were stopped: no hurry to catch up */
        probe->send_living = turn % LIVING_EVERY == 0;
        send_all(probe);
    }
}

/* ------------------------------------------------------------------ start */

static int open_all(struct probe *probe, const struct kj_sched_options *options)
{
    static const char *const sources[] = {"rapl_perf", "rapl_powercap", "hwmon", NULL};
    const struct kj_power_config config = {.only = sources};
    struct kj_error error = {0};
    char text[KJ_PROBE_TEXT_BYTES] = ""; /* sent whole: nothing of the stack is to go with it */
    if (kj_power_open(&config, &probe->power, &error))
        probe->power = NULL;
    if (kj_sched_open(options, &probe->sched, text, sizeof(text)))
        return refuse(probe, text);
    char how[KJ_PROBE_TEXT_BYTES];
    memcpy(how, text, sizeof(how));
    if (probe->want_phases && kj_phases_open(kj_privileges_have(CAP_SYS_ADMIN), send_phase, probe,
                                             &probe->phases, text, sizeof(text)))
        memcpy(add(probe, KJ_PROBE_NO_PHASES)->text, text, sizeof(text));
    /* Functions appear while the run goes on, and each wants the right to trace anew. */
    const int nothing[] = {-1}, tables[] = {CAP_BPF, -1}, tracing[] = {CAP_BPF, CAP_PERFMON, -1},
              administering[] = {CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, -1};
    const int *kept = !probe->phases ? tables : kj_phases_want_admin(probe->phases) ? administering : tracing;
    kj_privileges_set_aside(CAP_BPF, true);
    bool readable = kj_sched_readable(probe->sched);
    kj_privileges_set_aside(CAP_BPF, false);
    if (kj_privileges_keep(!probe->phases && readable ? nothing : kept))
        return refuse(probe, "it could not give up its capabilities");
    send_channels(probe);
    struct kj_probe_record *record = add(probe, KJ_PROBE_READY);
    record->value = kj_sched_counts_cycles(probe->sched);
    memcpy(record->text, how, sizeof(record->text));
    flush(probe);
    return 0;
}

/* In a process-id namespace of its own the numbers that the kernel uses are not those we are told. */
static bool in_first_pid_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) || st.st_ino == 0xEFFFFFFCu;
}

int main(int argc, char **argv)
{
    static struct probe probe;
    struct kj_sched_options options = {0};
    int type = 0;
    socklen_t size = sizeof(type);
    if (getsockopt(SOCKET, SOL_SOCKET, SO_TYPE, &type, &size) || type != SOCK_SEQPACKET) {
        fputs("kjoule-probe: started by kjoule itself, not by hand; `kjoule doctor` tells what it adds\n",
              stderr);
        return 2;
    }
    for (int i = 1; i < argc; i++) { /* words that choose, none that name */
        probe.want_phases = probe.want_phases || !strcmp(argv[i], "phases");
        options.raw = options.raw || !strcmp(argv[i], "raw");
        options.wall = options.wall || !strcmp(argv[i], "wall");
        options.unfreed = options.unfreed || !strcmp(argv[i], "unfreed");
        options.clock = options.clock || !strcmp(argv[i], "clock");
    }
    kj_privileges_begin();
    signal(SIGINT, SIG_IGN); /* the terminal's are meant for the command: we end with our socket */
    signal(SIGQUIT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGTSTP, SIG_IGN);
    const struct timeval patience = {.tv_sec = 2};
    setsockopt(SOCKET, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    alarm(START_S); /* nobody would end us if we hung */
    add(&probe, KJ_PROBE_HELLO)->value = KJ_PROBE_VERSION;
    flush(&probe);
    if (!kj_privileges_have(CAP_BPF) && !kj_privileges_have(CAP_SYS_ADMIN))
        return refuse(&probe, "it holds no capabilities");
    if (!in_first_pid_namespace())
        return refuse(&probe, "this container has process ids of its own, which the kernel's do not match");
    int status = open_all(&probe, &options);
    alarm(0);
    if (!status)
        watch(&probe);
    shutdown(SOCKET, SHUT_RDWR); /* detaching takes a while, and nobody need wait for it */
    kj_phases_close(probe.phases);
    kj_sched_close(probe.sched);
    kj_power_close(probe.power);
    return status;
}
