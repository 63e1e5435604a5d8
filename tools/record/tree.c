/* SPDX-License-Identifier: Apache-2.0
 *
 * tree.c - CPU time of a process tree: that of the living by their clocks, that of the dead by what their
 * parents were told (cutime), at last by our own children's usage. Exact to a scheduler tick a living process
 * for a tree that we started, since its orphans come to us; where bare LD_PRELOAD started us, orphans that
 * end are lost, and so are the children of who ignores SIGCHLD - unless the run has a control group to
 * itself, which forgets nobody.
 */
#include "base/file.h"
#include "record/cgroup.h"
#include "record/parts.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PIDS_CAP   65536
#define COST_SHARE 20 /* a scan is repeated after 20 times what it cost: 5 % of one core at most */

struct kj_tree {
    int32_t root;
    bool is_child;
    int32_t *alive; /* from the root down: parents before their children */
    int32_t *before, *sorted;
    size_t alive_count, before_count;
    uint64_t left_out_ns, before_cgroup_ns;
    struct kj_cgroup *cgroup; /* NULL: none that is the run's alone */
    uint32_t seen;
    uint64_t cpu_ns, next_ns, threads_next_ns;
};

struct kj_tree *kj_tree_new(int32_t root_pid, bool is_child)
{
    struct kj_tree *tree = calloc(1, sizeof(*tree));
    if (!tree)
        return NULL;
    tree->root = root_pid;
    tree->is_child = is_child;
    tree->alive = malloc(PIDS_CAP * sizeof(int32_t)); /* untouched pages cost nothing */
    tree->before = malloc(PIDS_CAP * sizeof(int32_t));
    tree->sorted = malloc(PIDS_CAP * sizeof(int32_t));
    return tree->alive && tree->before && tree->sorted ? tree : kj_tree_free(tree);
}

struct kj_tree *kj_tree_free(struct kj_tree *tree)
{
    if (!tree)
        return NULL;
    free(tree->alive);
    free(tree->before);
    free(tree->sorted);
    kj_cgroup_close(tree->cgroup);
    free(tree);
    return NULL;
}

void kj_tree_leave_out(struct kj_tree *tree, uint64_t cpu_ns)
{
    tree->left_out_ns += cpu_ns;
}

/* On-CPU time of the whole process, its dead threads too, to the nanosecond: the kernel tells it of any
 * process through the clock of that name. 0 when it is gone. */
static uint64_t process_ns(int32_t pid)
{
    struct timespec t;
    clockid_t clock =
        (clockid_t)(~(unsigned)pid << 3 | 2); /* CPUCLOCK_SCHED, as clock_getcpuclockid() makes it */
    return clock_gettime(clock, &t) ? 0 : (uint64_t)t.tv_sec * KJ_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Of its children that it waited for, to a tick. */
static uint64_t waited_ns(int32_t pid)
{
    char path[64], text[1024];
    unsigned long long user, system;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    if (kj_file_read_line(path, text, sizeof(text)))
        return 0;
    char *p = strrchr(text, ')');
    if (!p ||
        sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %llu %llu", &user, &system) != 2)
        return 0;
    return (user + system) * (uint64_t)(KJ_NS_PER_S / sysconf(_SC_CLK_TCK));
}

uint64_t kj_tree_process_ns(int32_t pid)
{
    return waited_ns(pid) + process_ns(pid);
}

static void add_children(struct kj_tree *tree, int32_t pid)
{
    char path[300];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "/proc/%d/task/%.20s/children", pid, task->d_name);
        FILE *file = fopen(path, "re");
        int32_t child;
        while (file && fscanf(file, "%d", &child) == 1)
            if (tree->alive_count < PIDS_CAP)
                tree->alive[tree->alive_count++] = child;
        if (file)
            fclose(file);
    }
    if (tasks)
        closedir(tasks);
}

static int compare(const void *a, const void *b)
{
    return (*(const int32_t *)a > *(const int32_t *)b) - (*(const int32_t *)a < *(const int32_t *)b);
}

static void find_processes(struct kj_tree *tree)
{
    int32_t *swap = tree->before;
    tree->before = tree->sorted;
    tree->sorted = swap;
    tree->before_count = tree->alive_count;
    tree->alive_count = 0;
    if (tree->is_child)
        add_children(tree, (int32_t)getpid()); /* the root, and orphans that came to us */
    else
        tree->alive[tree->alive_count++] = tree->root;
    for (size_t i = 0; i < tree->alive_count; i++)
        add_children(tree, tree->alive[i]);
    memcpy(tree->sorted, tree->alive, tree->alive_count * sizeof(int32_t));
    qsort(tree->sorted, tree->alive_count, sizeof(int32_t), compare);
    for (size_t i = 0; i < tree->alive_count; i++)
        if (!bsearch(&tree->sorted[i], tree->before, tree->before_count, sizeof(int32_t), compare))
            tree->seen++;
}

static uint64_t reaped_ns(const struct kj_tree *tree)
{
    struct rusage usage;
    if (getrusage(RUSAGE_CHILDREN, &usage))
        return 0;
    uint64_t ns = (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * KJ_NS_PER_S +
                  (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
    return ns > tree->left_out_ns ? ns - tree->left_out_ns : 0;
}

static uint64_t at_least_cgroup(struct kj_tree *tree, uint64_t sum_ns)
{
    const struct kj_cgroup_run run = {tree->root, tree->sorted, tree->alive_count};
    uint64_t ns;
    if (!tree->cgroup || !kj_cgroup_read(tree->cgroup, &run, &ns))
        return sum_ns;
    return tree->before_cgroup_ns + ns > sum_ns ? tree->before_cgroup_ns + ns : sum_ns;
}

/* From the top down: a process that ends meanwhile is missing for a moment, and never counted twice. */
uint64_t kj_tree_cpu_ns(struct kj_tree *tree)
{
    uint64_t now_ns = kj_mono_ns();
    if (now_ns >= tree->next_ns) {
        find_processes(tree);
        tree->next_ns = now_ns + COST_SHARE * (kj_mono_ns() - now_ns);
    }
    uint64_t sum_ns = tree->is_child ? reaped_ns(tree) : 0;
    for (size_t i = 0; i < tree->alive_count; i++)
        sum_ns += kj_tree_process_ns(tree->alive[i]);
    sum_ns = at_least_cgroup(tree, sum_ns);
    if (sum_ns > tree->cpu_ns)
        tree->cpu_ns = sum_ns;
    return tree->cpu_ns;
}

bool kj_tree_use_cgroup(struct kj_tree *tree)
{
    tree->before_cgroup_ns = kj_tree_cpu_ns(tree);
    const struct kj_cgroup_run run = {tree->root, tree->sorted, tree->alive_count};
    tree->cgroup = kj_cgroup_open(&run);
    return tree->cgroup;
}

size_t kj_tree_alive(const struct kj_tree *tree, const int32_t **ret_pids)
{
    *ret_pids = tree->sorted;
    return tree->alive_count;
}

/* The program's name as a thread's would be: 15 characters of its file's. */
static void process_name(int32_t pid, char *ret_name, size_t size)
{
    char path[64], link[512] = "";
    snprintf(path, sizeof(path), "/proc/%d/exe", pid);
    ssize_t n = readlink(path, link, sizeof(link) - 1);
    link[n > 0 ? n : 0] = 0;
    const char *slash = strrchr(link, '/');
    snprintf(ret_name, size, "%.15s", slash ? slash + 1 : "");
}

static void note_thread(struct kj_threads *threads, int32_t pid, const char *task, const char *process)
{
    char path[96], text[128], comm[32];
    snprintf(path, sizeof(path), "/proc/%d/task/%.20s/schedstat", pid, task);
    if (kj_file_read_line(path, text, sizeof(text)))
        return;
    struct kj_thread_seen seen = {.pid = pid,
                                  .tid = (int32_t)strtol(task, NULL, 10),
                                  .cpu_ns = strtoull(text, NULL, 10),
                                  .comm = comm,
                                  .process = process};
    snprintf(path, sizeof(path), "/proc/%d/task/%.20s/comm", pid, task);
    if (kj_file_read_line(path, comm, sizeof(comm)) || seen.tid <= 0)
        return;
    comm[15] = 0;
    /* /usr/bin/python3.11, started by the link python3 */
    if (seen.tid == pid && *process && !strncmp(process, comm, strlen(comm)))
        seen.process = comm;
    kj_threads_note(threads, &seen);
}

void kj_tree_threads(struct kj_tree *tree, struct kj_threads *threads)
{
    uint64_t now_ns = kj_mono_ns();
    if (now_ns < tree->threads_next_ns)
        return;
    for (size_t i = 0; i < tree->alive_count; i++) {
        char path[64], process[32];
        snprintf(path, sizeof(path), "/proc/%d/task", tree->alive[i]);
        process_name(tree->alive[i], process, sizeof(process));
        DIR *tasks = opendir(path);
        for (struct dirent *task; tasks && (task = readdir(tasks));)
            if (task->d_name[0] != '.')
                note_thread(threads, tree->alive[i], task->d_name, process);
        if (tasks)
            closedir(tasks);
    }
    tree->threads_next_ns = now_ns + 5 * COST_SHARE * (kj_mono_ns() - now_ns);
}

uint32_t kj_tree_processes_seen(const struct kj_tree *tree)
{
    return tree->seen ? tree->seen : 1;
}

uint64_t kj_node_busy_ns(void)
{
    char text[512];
    unsigned long long user, nice, system, irq, softirq, steal;
    if (kj_file_read_line("/proc/stat", text, sizeof(text)) ||
        sscanf(text, "cpu %llu %llu %llu %*u %*u %llu %llu %llu", &user, &nice, &system, &irq, &softirq,
               &steal) != 6)
        return 0;
    return (user + nice + system + irq + softirq) * (uint64_t)(KJ_NS_PER_S / sysconf(_SC_CLK_TCK));
}
