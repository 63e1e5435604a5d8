/* SPDX-License-Identifier: Apache-2.0
 *
 * switches.c - the scheduler programs' life: choose the set that this kernel takes, attach, make every CPU
 * switch once so that its slot has a beginning, then read.
 */
#include "switches.h"

#include "example.h"

#include "raw.skel.h"
#include "sched.skel.h"

#include <bpf/bpf.h>

#include <errno.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CPUS_MAX = 8192, BATCH = 1024, TRIES = 100, GONE_MAX = 4096 };
#define GONE_NS 2000000000ull

struct running {
    uint32_t tid;
    uint64_t ns;
};

/* A thread that has begun to exit, and that nobody finds any more. */
struct gone {
    uint32_t tid;
    uint64_t since_ns, runtime_ns;
};

struct kj_sched_reader {
    struct kj_sched_options options;
    struct kj_sched *sched; /* one of the two */
    struct kj_raw *raw;
    int processes_fd, threads_fd; /* tables of whichever it is */
    int possible;
    struct kj_cpu_slot *slots;
    size_t slots_bytes;
    int *cycle_fds, *instruction_fds; /* by CPU; -1 none */
    bool cycles;
    struct running *running;
    size_t running_count;
    struct gone gone[GONE_MAX]; /* [tid % GONE_MAX] */
    uint32_t keys[BATCH], dead[BATCH];
    struct kj_tree_thread rows[BATCH];
};

static char complaint[160]; /* libbpf's first */

static int note_complaint(enum libbpf_print_level level, const char *format, va_list args)
{
    if (level == LIBBPF_WARN && !complaint[0]) {
        vsnprintf(complaint, sizeof(complaint), format, args);
        complaint[strcspn(complaint, "\n")] = 0;
    }
    return 0;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A switch on each CPU that we may run on: before its first one, a slot does not know who runs. */
static void touch_cpus(int cpus)
{
    size_t bytes = CPU_ALLOC_SIZE(cpus);
    cpu_set_t *before = CPU_ALLOC(cpus), *one = CPU_ALLOC(cpus);
    if (before && one && !sched_getaffinity(0, bytes, before)) {
        for (int cpu = 0; cpu < cpus; cpu++) {
            if (!CPU_ISSET_S(cpu, bytes, before))
                continue;
            CPU_ZERO_S(bytes, one);
            CPU_SET_S(cpu, bytes, one);
            if (!sched_setaffinity(0, bytes, one)) {
                const struct timespec moment = {.tv_nsec = 1000};
                nanosleep(&moment, NULL);
            }
        }
        sched_setaffinity(0, bytes, before);
    }
    CPU_FREE(before);
    CPU_FREE(one);
}

static int open_counter(bool by_clock, uint64_t config, int cpu)
{
    struct perf_event_attr attr = {.type = by_clock ? PERF_TYPE_SOFTWARE : PERF_TYPE_HARDWARE,
                                   .size = sizeof(attr),
                                   .config = by_clock ? PERF_COUNT_SW_CPU_CLOCK : config};
    return (int)syscall(SYS_perf_event_open, &attr, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
}

/* Cycles and instructions on every CPU, or not at all. */
static void open_counters(struct kj_sched_reader *reader)
{
    bool by_clock = reader->options.clock;
    reader->cycles = true;
    for (int cpu = 0; cpu < reader->possible; cpu++) {
        reader->cycle_fds[cpu] = open_counter(by_clock, PERF_COUNT_HW_CPU_CYCLES, cpu);
        reader->instruction_fds[cpu] = open_counter(by_clock, PERF_COUNT_HW_INSTRUCTIONS, cpu);
        if (reader->cycle_fds[cpu] < 0 && errno != ENODEV) /* ENODEV: offline */
            reader->cycles = false;
        if (cpu == 0 && !reader->cycles)
            break;
    }
}

static void choose_programs(struct kj_raw *raw, bool example)
{
    struct bpf_program *program;
    bpf_object__for_each_program(program, raw->obj)
        bpf_program__set_autoload(program, (program == raw->progs.copy_example) == example);
}

/* What the scheduler has charged this thread; asking brings its sum up to now. */
static uint64_t charged_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Has us switched out and copied, under a name of its own and after CPU time enough that the sum differs from
 * what it was at the switch before, by another step each time. */
static int make_example(struct kj_raw *raw, unsigned number, struct kj_example *ret_example)
{
    const struct timespec moment = {.tv_nsec = 50000};
    uint64_t start_ns = charged_ns();
    uint32_t zero = 0;
    snprintf(ret_example->name, sizeof(ret_example->name), "kj-example-%u", number % 10);
    prctl(PR_SET_NAME, ret_example->name);
    while (charged_ns() < start_ns + 5000 * (number + 1))
        ;
    for (int tries = 0; tries < 10; tries++) {
        uint32_t copies = *(volatile uint32_t *)&raw->bss->examples;
        ret_example->before_ns = charged_ns();
        nanosleep(&moment, NULL);
        bool copied = *(volatile uint32_t *)&raw->bss->examples != copies;
        int status = bpf_map__lookup_elem(raw->maps.example, &zero, sizeof(zero), ret_example->task,
                                          sizeof(ret_example->task), 0);
        ret_example->after_ns = charged_ns(); /* last: we may have been switched out again meanwhile */
        if (status || copied)
            return status;
    }
    return -EAGAIN;
}

/* Where the fields that the programs read stand in this kernel's task structure. */
static int find_offsets(struct kj_task_offsets *ret_offsets)
{
    static struct kj_example examples[KJ_EXAMPLES];
    char own[KJ_COMM_BYTES] = "";
    struct kj_raw *raw = kj_raw__open();
    if (!raw)
        return -errno;
    choose_programs(raw, true);
    raw->rodata->example_tid = (uint32_t)syscall(SYS_gettid);
    int status = bpf_map__set_max_entries(raw->maps.threads, 1); /* not used here: their room takes a while */
    if (!status)
        status = bpf_map__set_max_entries(raw->maps.processes, 1);
    if (!status)
        status = kj_raw__load(raw);
    if (!status)
        status = kj_raw__attach(raw);
    prctl(PR_GET_NAME, own);
    for (unsigned i = 0; !status && i < KJ_EXAMPLES; i++)
        status = make_example(raw, i, &examples[i]);
    prctl(PR_SET_NAME, own);
    kj_raw__destroy(raw);
    if (!status && !kj_example_search(examples, KJ_EXAMPLES, (uint32_t)syscall(SYS_gettid),
                                      (uint32_t)getpid(), ret_offsets))
        status = -ENOENT;
    return status;
}

static int map_slots(struct kj_sched_reader *reader, int cpus_fd)
{
    long page = sysconf(_SC_PAGESIZE);
    size_t bytes = sizeof(struct kj_cpu_slot) * (size_t)reader->possible;
    reader->slots_bytes = (bytes + (size_t)page - 1) / (size_t)page * (size_t)page;
    void *memory = mmap(NULL, reader->slots_bytes, PROT_READ, MAP_SHARED, cpus_fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    reader->slots = memory;
    return 0;
}

static int open_object(struct kj_sched_reader *reader, bool raw)
{
    if (!raw) {
        reader->sched = kj_sched__open();
        if (reader->sched)
            reader->sched->rodata->count_cycles = reader->cycles;
        return reader->sched ? 0 : -errno;
    }
    struct kj_task_offsets offsets = {0};
    int status = find_offsets(&offsets);
    reader->raw = status ? NULL : kj_raw__open();
    if (!reader->raw)
        return status ? status : -errno;
    choose_programs(reader->raw, false);
    bpf_program__set_autoload(reader->raw->progs.raw_on_free, !reader->options.unfreed);
    reader->raw->rodata->offset_pid = offsets.pid;
    reader->raw->rodata->offset_comm = offsets.comm;
    reader->raw->rodata->offset_runtime = reader->options.wall ? 0 : offsets.runtime;
    reader->raw->rodata->count_cycles = reader->cycles;
    return 0;
}

static struct bpf_object *object_of(const struct kj_sched_reader *reader)
{
    return reader->sched ? reader->sched->obj : reader->raw->obj;
}

/* The tables that have a row a CPU. */
static int size_tables(struct kj_sched_reader *reader)
{
    static const char *const names[] = {"cpus", "cycles", "instructions"};
    int status = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names) && !status; i++)
        status = bpf_map__set_max_entries(bpf_object__find_map_by_name(object_of(reader), names[i]),
                                          (uint32_t)reader->possible);
    return status;
}

static int fill_counters(struct kj_sched_reader *reader)
{
    const int *const fds[] = {reader->cycle_fds, reader->instruction_fds};
    const int maps[] = {bpf_object__find_map_fd_by_name(object_of(reader), "cycles"),
                        bpf_object__find_map_fd_by_name(object_of(reader), "instructions")};
    for (int cpu = 0; reader->cycles && cpu < reader->possible; cpu++)
        for (int i = 0; i < 2; i++)
            if (fds[i][cpu] >= 0 && bpf_map_update_elem(maps[i], &cpu, &fds[i][cpu], BPF_ANY))
                return -errno;
    return 0;
}

static void unload(struct kj_sched_reader *reader)
{
    if (reader->slots)
        munmap(reader->slots, reader->slots_bytes);
    reader->slots = NULL;
    kj_sched__destroy(reader->sched);
    kj_raw__destroy(reader->raw);
    reader->sched = NULL;
    reader->raw = NULL;
}

static int load(struct kj_sched_reader *reader, bool raw)
{
    int status = open_object(reader, raw);
    if (!status)
        status = size_tables(reader);
    if (!status)
        status = raw ? kj_raw__load(reader->raw) : kj_sched__load(reader->sched);
    if (!status)
        status = fill_counters(reader);
    if (!status)
        status = map_slots(reader, bpf_object__find_map_fd_by_name(object_of(reader), "cpus"));
    if (!status) {
        reader->processes_fd = bpf_object__find_map_fd_by_name(object_of(reader), "processes");
        reader->threads_fd = bpf_object__find_map_fd_by_name(object_of(reader), "threads");
        *(raw ? &reader->raw->bss->begin_ns : &reader->sched->bss->begin_ns) = now_ns();
        status = raw ? kj_raw__attach(reader->raw) : kj_sched__attach(reader->sched);
    }
    if (status)
        unload(reader);
    return status;
}

static void explain(int status, char *ret_text, size_t size)
{
    if (status == -EPERM || status == -EACCES)
        snprintf(ret_text, size, "the kernel does not let it load BPF programs (%s)", strerror(-status));
    else
        snprintf(ret_text, size, "the kernel did not take the BPF programs: %s%s%.90s", strerror(-status),
                 complaint[0] ? "; " : "", complaint);
}

/* How a task's time is taken. */
static const char *time_source(const struct kj_sched_reader *reader)
{
    return reader->raw && !reader->raw->rodata->offset_runtime
               ? "the clock, with what the host of a virtual machine steals"
               : "the scheduler's own sum";
}

int kj_sched_open(const struct kj_sched_options *options, struct kj_sched_reader **ret_reader, char *ret_text,
                  size_t size)
{
    struct kj_sched_reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return -ENOMEM;
    reader->options = *options;
    libbpf_set_print(note_complaint);
    reader->possible = libbpf_num_possible_cpus();
    if (reader->possible < 1 || reader->possible > CPUS_MAX)
        reader->possible = 1;
    size_t count = (size_t)reader->possible;
    reader->cycle_fds = malloc(count * sizeof(int));
    reader->instruction_fds = malloc(count * sizeof(int));
    reader->running = calloc(count, sizeof(*reader->running));
    int status = reader->cycle_fds && reader->instruction_fds && reader->running ? 0 : -ENOMEM;
    if (!status) {
        memset(reader->cycle_fds, -1, count * sizeof(int));
        memset(reader->instruction_fds, -1, count * sizeof(int));
        open_counters(reader);
        status = options->raw ? -ENOTSUP : load(reader, false);
        if (status && status != -EPERM && status != -EACCES)
            status = load(reader, true);
    }
    if (status) {
        explain(status, ret_text, size);
        kj_sched_close(reader);
        return status;
    }
    touch_cpus(reader->possible);
    snprintf(ret_text, size, "scheduler switches by %s, time by %s%s",
             reader->raw ? "raw tracepoint" : "BTF tracepoint", time_source(reader),
             reader->cycles ? ", cycles and instructions" : "; no hardware counters here");
    *ret_reader = reader;
    return 0;
}

struct kj_sched_reader *kj_sched_close(struct kj_sched_reader *reader)
{
    if (!reader)
        return NULL;
    unload(reader);
    for (int cpu = 0; cpu < reader->possible; cpu++) {
        if (reader->cycle_fds && reader->cycle_fds[cpu] >= 0)
            close(reader->cycle_fds[cpu]);
        if (reader->instruction_fds && reader->instruction_fds[cpu] >= 0)
            close(reader->instruction_fds[cpu]);
    }
    free(reader->cycle_fds);
    free(reader->instruction_fds);
    free(reader->running);
    free(reader);
    return NULL;
}

bool kj_sched_readable(const struct kj_sched_reader *reader)
{
    uint32_t key = 0;
    struct kj_tree_process process;
    return bpf_map_lookup_elem(reader->processes_fd, &key, &process) == 0 || errno == ENOENT;
}

bool kj_sched_counts_cycles(const struct kj_sched_reader *reader)
{
    return reader->cycles;
}

int kj_sched_watch(struct kj_sched_reader *reader, int32_t pid, const char *name)
{
    uint32_t key = (uint32_t)pid;
    struct kj_tree_process process = {.seeded = 1};
    snprintf(process.name, sizeof(process.name), "%s", name);
    if (bpf_map_update_elem(reader->processes_fd, &key, &process, BPF_NOEXIST))
        return errno == EEXIST ? 0 : -errno;
    return 0;
}

/* A copy that no switch fell into. */
static struct kj_cpu_slot read_slot(const struct kj_cpu_slot *shared)
{
    struct kj_cpu_slot copy;
    for (int i = 0; i < TRIES; i++) {
        uint64_t before = __atomic_load_n(&shared->sequence, __ATOMIC_ACQUIRE);
        copy = *(const volatile struct kj_cpu_slot *)shared;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (!(before & 1) && __atomic_load_n(&shared->sequence, __ATOMIC_ACQUIRE) == before)
            return copy;
    }
    copy.since_ns = 0; /* sums that are a switch apart, and no running slice */
    return copy;
}

static uint64_t read_counter(int fd)
{
    uint64_t value = 0;
    return fd >= 0 && read(fd, &value, sizeof(value)) == sizeof(value) ? value : 0;
}

static void sum_cpus(struct kj_sched_reader *reader, struct kj_sched_sums *sums)
{
    reader->running_count = 0;
    for (int cpu = 0; cpu < reader->possible; cpu++) {
        struct kj_cpu_slot slot = read_slot(&reader->slots[cpu]);
        struct kj_tree_process process;
        uint64_t t_ns = now_ns(), slice_ns = slot.since_ns && t_ns > slot.since_ns ? t_ns - slot.since_ns : 0;
        sums->tree_ns += slot.tree_ns;
        sums->others_ns += slot.others_ns;
        sums->idle_ns += slot.idle_ns;
        sums->tree_cycles += slot.tree_cycles;
        sums->tree_instructions += slot.tree_instructions;
        sums->switches += slot.switches;
        sums->unlisted += slot.unlisted;
        if (reader->cycles)
            sums->all_cycles += read_counter(reader->cycle_fds[cpu]);
        if (!slice_ns)
            continue;
        if (!slot.tid) {
            sums->idle_ns += slice_ns;
        } else if (bpf_map_lookup_elem(reader->processes_fd, &slot.tgid, &process)) {
            sums->others_ns += slice_ns;
        } else {
            sums->tree_ns += slice_ns;
            reader->running[reader->running_count++] = (struct running){slot.tid, slice_ns};
        }
    }
}

/* On some machines the kernel lets go of a task without the tracepoint having called the program: one in a
 * few thousand on a virtual machine whose CPUs are all busy, some in a row. So a thread that has begun to
 * exit is dead, too, where it has been gone for long and has not been switched out meanwhile, as it is a last
 * time. */
static bool is_gone(struct kj_sched_reader *reader, uint32_t tid, const struct kj_tree_thread *row)
{
    struct gone *gone = &reader->gone[tid % GONE_MAX];
    uint64_t t_ns = now_ns();
    bool own = gone->tid == tid && gone->runtime_ns == row->runtime_ns;
    bool found = !syscall(SYS_tgkill, row->tgid, tid, 0) || errno != ESRCH;
    if (!found && own && t_ns - gone->since_ns >= GONE_NS) {
        gone->tid = 0;
        return true;
    }
    if (found && own)
        gone->tid = 0;
    /* Its place may be another's, which has its turn first. */
    else if (!found && !own && (!gone->tid || gone->tid == tid || t_ns - gone->since_ns >= 2 * GONE_NS))
        *gone = (struct gone){tid, t_ns, row->runtime_ns};
    return false;
}

/* Since the row was read, a thread that execs may have taken its number: then it is a living one. */
static void forget_dead(struct kj_sched_reader *reader, uint32_t tid)
{
    struct kj_tree_thread row;
    struct kj_tree_process process;
    if (bpf_map_lookup_elem(reader->threads_fd, &tid, &row) || row.state == KJ_THREAD_LIVE)
        return;
    bpf_map_delete_elem(reader->threads_fd, &tid);
    if (row.state == KJ_THREAD_EXITING && !bpf_map_lookup_elem(reader->processes_fd, &row.tgid, &process) &&
        !process.seeded && kill((pid_t)row.tgid, 0) && errno == ESRCH)
        bpf_map_delete_elem(reader->processes_fd, &row.tgid);
}

/* One batch of rows. Returns how many are to be forgotten. */
static size_t visit_rows(struct kj_sched_reader *reader, size_t count,
                         bool (*visit)(void *, uint32_t, const struct kj_tree_thread *), void *context)
{
    size_t dead = 0;
    for (size_t i = 0; i < count; i++) {
        struct kj_tree_thread *row = &reader->rows[i];
        row->comm[KJ_COMM_BYTES - 1] = row->process[KJ_COMM_BYTES - 1] = 0;
        if (row->state == KJ_THREAD_EXITING && is_gone(reader, reader->keys[i], row))
            row->state = KJ_THREAD_DEAD;
        for (size_t r = 0; r < reader->running_count && row->state != KJ_THREAD_DEAD; r++)
            if (reader->running[r].tid == reader->keys[i])
                row->ns += reader->running[r].ns;
        if (visit(context, reader->keys[i], row) && row->state == KJ_THREAD_DEAD)
            reader->dead[dead++] = reader->keys[i];
    }
    return dead;
}

int kj_sched_read(struct kj_sched_reader *reader, struct kj_sched_sums *ret_sums,
                  bool (*visit)(void *context, uint32_t tid, const struct kj_tree_thread *thread),
                  void *context)
{
    int fd = reader->threads_fd, status = 0;
    uint32_t place = 0;
    memset(ret_sums, 0, sizeof(*ret_sums));
    sum_cpus(reader, ret_sums);
    ret_sums->t_ns = now_ns();
    LIBBPF_OPTS(bpf_map_batch_opts, options);
    for (bool first = true; !status; first = false) {
        uint32_t count = BATCH;
        status = bpf_map_lookup_batch(fd, first ? NULL : &place, &place, reader->keys, reader->rows, &count,
                                      &options);
        if (status && errno != ENOENT) /* ENOENT: these were the last */
            return -errno;
        ret_sums->threads += count;
        size_t dead = visit_rows(reader, count, visit, context);
        for (size_t i = 0; i < dead; i++)
            forget_dead(reader, reader->dead[i]);
    }
    return 0;
}
