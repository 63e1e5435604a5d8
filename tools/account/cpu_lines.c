/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_lines.c - the CPU's energy by thread name and process, by their CPU time (cycles where counted): the
 * lines add up to the dynamic energy to the microjoule, what no thread was seen to use included.
 */
#include "account/cpu_lines.h"

#include "folder/threads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WORTH_OF_TIME  2.5 /* a CPU-second of one thread against another's, as in cpu_share.h */
#define PROCESSES_MOST 64
#define WAIT_LOW       0.4 /* spinning retires little: it may draw this part of what a busy second does */

static const char unseen_name[] = "(not seen)";

static double worth_of(const struct kj_thread_row *row, bool cycles)
{
    return cycles ? (double)row->cycles : (double)row->cpu_ns;
}

static int by_thread(const void *a, const void *b)
{
    const struct kj_thread_row *x = a, *y = b;
    int order = strcmp(x->process, y->process);
    order = order ? order : y->main - x->main;
    return order ? order : strcmp(x->name, y->name);
}

static int by_pid(const void *a, const void *b)
{
    const struct kj_thread_row *x = a, *y = b;
    return (x->pid > y->pid) - (x->pid < y->pid);
}

static int thread_by_time(const void *a, const void *b)
{
    const struct kj_report_thread *x = a, *y = b;
    return (x->cpu_ns < y->cpu_ns) - (x->cpu_ns > y->cpu_ns);
}

static int process_by_time(const void *a, const void *b)
{
    const struct kj_report_cpu_process *x = a, *y = b;
    return (x->cpu_ns < y->cpu_ns) - (x->cpu_ns > y->cpu_ns);
}

/* A part of the dynamic energy. What one line may be wrong by, the others are too: alone there is no error.
 */
static struct kj_energy part_energy(const struct kj_cpu_sums *sums, double part, int64_t uj)
{
    if (!sums->known)
        return (struct kj_energy){0};
    double high = part * WORTH_OF_TIME / (part * WORTH_OF_TIME + 1 - part),
           low = part / (part + (1 - part) * WORTH_OF_TIME);
    struct kj_energy energy = {.known = true,
                               .method = sums->method == KJ_MODELLED ? KJ_MODELLED : KJ_ESTIMATED,
                               .uj = uj,
                               .low_uj = (int64_t)floor((double)sums->own_dynamic_uj * low * sums->low),
                               .high_uj = (int64_t)ceil((double)sums->own_dynamic_uj * high * sums->high)};
    energy.low_uj = energy.low_uj < uj ? energy.low_uj : uj;
    energy.high_uj = energy.high_uj > uj ? energy.high_uj : uj;
    return energy;
}

/* Shares that add up to the whole: each line gets what the sum has grown by. */
struct sharing {
    double worth, done;
    int64_t given_uj;
    const struct kj_cpu_sums *sums;
};

static struct kj_energy next_part(struct sharing *sharing, double worth)
{
    sharing->done += worth;
    double upto = sharing->worth > 0 ? fmin(1, sharing->done / sharing->worth) : 0;
    int64_t upto_uj = llround((double)sharing->sums->own_dynamic_uj * upto), uj = upto_uj - sharing->given_uj;
    sharing->given_uj = upto_uj;
    return part_energy(sharing->sums, sharing->worth > 0 ? fmin(1, worth / sharing->worth) : 0, uj);
}

static int add_threads(struct kj_report *report, struct kj_thread_rows *rows, bool cycles, double unseen,
                       struct sharing sharing)
{
    qsort(rows->rows, rows->count, sizeof(*rows->rows), by_thread);
    for (size_t i = 0; i < rows->count;) {
        struct kj_report_thread *line = kj_report_add_thread(report);
        if (!line)
            return -1;
        *line = (struct kj_report_thread){.process = strdup(rows->rows[i].process),
                                          .name = strdup(rows->rows[i].name),
                                          .main = rows->rows[i].main};
        double worth = 0;
        size_t first = i;
        for (; i < rows->count && !by_thread(&rows->rows[first], &rows->rows[i]); i++) {
            line->threads += rows->rows[i].threads;
            line->cpu_ns += rows->rows[i].cpu_ns;
            line->cycles += rows->rows[i].cycles;
            line->instructions += rows->rows[i].instructions;
            worth += worth_of(&rows->rows[i], cycles);
        }
        line->energy = next_part(&sharing, worth);
    }
    if (unseen <= 0)
        return 0;
    struct kj_report_thread *line = kj_report_add_thread(report);
    if (!line)
        return -1;
    *line = (struct kj_report_thread){.process = strdup(unseen_name),
                                      .name = strdup(unseen_name),
                                      .cpu_ns = cycles ? 0 : (uint64_t)unseen,
                                      .cycles = cycles ? (uint64_t)unseen : 0,
                                      .energy = next_part(&sharing, unseen)};
    return 0;
}

static int add_processes(struct kj_report *report, struct kj_thread_rows *rows, bool cycles, double unseen,
                         struct sharing sharing)
{
    qsort(rows->rows, rows->count, sizeof(*rows->rows), by_pid);
    for (size_t i = 0; i < rows->count;) {
        struct kj_report_cpu_process *line = kj_report_add_cpu_process(report);
        if (!line)
            return -1;
        *line = (struct kj_report_cpu_process){.pid = rows->rows[i].pid,
                                               .process = strdup(rows->rows[i].process)};
        double worth = 0;
        for (; i < rows->count && rows->rows[i].pid == line->pid; i++) {
            line->cpu_ns += rows->rows[i].cpu_ns;
            worth += worth_of(&rows->rows[i], cycles);
        }
        line->energy = next_part(&sharing, worth);
    }
    qsort(report->cpu_processes, report->cpu_processes_count, sizeof(*report->cpu_processes),
          process_by_time);
    /* All beyond the most busy in one line, with what was not seen. */
    struct kj_report_cpu_process rest = {.pid = 0, .cpu_ns = cycles ? 0 : (uint64_t)fmax(0, unseen)};
    rest.energy = next_part(&sharing, fmax(0, unseen));
    while (report->cpu_processes_count > PROCESSES_MOST) {
        struct kj_report_cpu_process *last = &report->cpu_processes[--report->cpu_processes_count];
        rest.cpu_ns += last->cpu_ns;
        rest.energy.uj += last->energy.uj;
        rest.energy.low_uj += last->energy.low_uj;
        rest.energy.high_uj += last->energy.high_uj;
        free(last->process);
    }
    struct kj_report_cpu_process *line =
        rest.cpu_ns || rest.energy.uj ? kj_report_add_cpu_process(report) : NULL;
    if (line) {
        *line = rest;
        line->process = strdup("(others)");
    }
    return 0;
}

/* A thread that waits inside a synchronise call either spins or sleeps; the driver does not say. Of a thread
 * that was there for h and used c of the run's length t, at least h + c - t and at most the lesser of h and c
 * was spinning; in proportion it is h x c / t. */
static void find_wait(struct kj_account *a, const struct kj_cpu_use *use, const struct kj_cpu_sums *sums,
                      const struct kj_thread_rows *rows)
{
    struct kj_report_cpu *cpu = &a->report->cpu;
    double inside_ns = 0, thread_ns = 0;
    for (size_t i = 0; i < a->report->calls_count; i++)
        inside_ns += (double)a->report->calls[i].host_ns;
    if (inside_ns <= 0 || use->run_ns <= 0)
        return;
    size_t processes = 0;
    for (size_t i = 0; i < a->report->processes_count; i++) {
        double most_ns = 0;
        for (size_t r = 0; rows && r < rows->count; r++)
            if (rows->rows[r].pid == a->report->processes[i].pid && rows->rows[r].threads)
                most_ns = fmax(most_ns, (double)rows->rows[r].cpu_ns / rows->rows[r].threads);
        thread_ns += most_ns;
        processes += most_ns > 0;
    }
    if (!processes) { /* no thread of a process with a GPU was seen: the whole tree is the bound */
        processes = 1;
        thread_ns = use->tree_ns;
    }
    double length_ns = use->run_ns * (double)processes;
    double likely_ns = fmin(inside_ns * fmin(1, thread_ns / length_ns), use->tree_ns);
    double low_ns = fmax(0, inside_ns + thread_ns - length_ns),
           high_ns = fmin(inside_ns, fmin(thread_ns, use->tree_ns));
    cpu->wait_known = true;
    cpu->wait_inside_ns = (uint64_t)inside_ns;
    cpu->wait_cpu_ns = (uint64_t)likely_ns;
    cpu->wait_low_ns = (uint64_t)fmin(low_ns, likely_ns);
    cpu->wait_high_ns = (uint64_t)fmax(high_ns, likely_ns);
    if (!sums->known || use->tree_ns <= 0)
        return;
    double each_uj = (double)sums->own_dynamic_uj / use->tree_ns;
    cpu->wait = (struct kj_energy){
        .known = true,
        .method = sums->method == KJ_MODELLED ? KJ_MODELLED : KJ_ESTIMATED,
        .uj = llround(each_uj * likely_ns),
        .low_uj = (int64_t)floor(each_uj * (double)cpu->wait_low_ns * WAIT_LOW * sums->low),
        .high_uj = (int64_t)ceil(each_uj * (double)cpu->wait_high_ns * sums->high)};
}

int kj_cpu_lines(struct kj_account *a, const struct kj_cpu_use *use, const struct kj_cpu_sums *sums)
{
    static const char *const rules[] = {"auto", "cores", "cpu", "all", "none"};
    struct kj_report_cpu *cpu = &a->report->cpu;
    struct kj_thread_rows *rows = NULL;
    int status = 0;
    kj_threads_read(a->dir_fd, &rows);
    cpu->known = sums->known;
    cpu->method = sums->method;
    cpu->time_source = strdup(use->by_probe ? "probe" : "proc");
    cpu->threads_source = rows ? strdup(rows->source) : NULL;
    cpu->others_ns = use->others_ns;
    cpu->idle_rule = strdup(rules[use->rule]);
    cpu->reserved = use->reserved;
    cpu->packages_unknown = sums->packages_unknown;
    cpu->dynamic_uj = sums->own_dynamic_uj;
    cpu->idle_uj = sums->own_idle_uj;
    if (rows) {
        bool cycles = !isnan(use->cycles_share);
        double seen = 0, seen_ns = 0;
        for (size_t i = 0; i < rows->count; i++) {
            seen += worth_of(&rows->rows[i], cycles);
            seen_ns += (double)rows->rows[i].cpu_ns;
        }
        double whole =
            cycles && seen_ns > 0 ? seen * fmax(1, use->tree_ns / seen_ns) : fmax(seen, use->tree_ns);
        struct sharing sharing = {.worth = whole, .sums = sums};
        find_wait(a, use, sums, rows);
        status = add_threads(a->report, rows, cycles, whole - seen, sharing) ||
                         add_processes(a->report, rows, cycles, whole - seen, sharing)
                     ? -1
                     : 0;
        if (a->report->threads_count)
            qsort(a->report->threads, a->report->threads_count, sizeof(*a->report->threads), thread_by_time);
        if (rows->bad_lines)
            kj_report_warn(a->report,
                           "%zu lines of " KJ_THREADS_FILE
                           " were not understood and left out; was the folder edited?",
                           rows->bad_lines);
        kj_threads_free(rows);
    } else {
        find_wait(a, use, sums, NULL);
    }
    return status ? status : kj_cpu_phase_lines(a, use, sums);
}
