/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_phases.h - phases of a training on the CPU, as kjoule-probe saw them by uprobes, in the file
 * "phases.cpu.csv" of the run folder, appended line by line: kjoule.cpu-phases/1
 *     seen,<pid>,<t_ns>,<functions>          from when on a function that marks phases is watched; which: a
 *                                            bit each, 1 autograd engine (backward), 2 records (optimizer)
 *     p,<pid>,<tid>,<phase>,<start_ns>,<end_ns>
 * phase: backward or optimizer, which is step and zero_grad as PyTorch's optimizers announce them. Times are
 * CLOCK_MONOTONIC. Phases of one thread may enclose each other. Past 64 MiB nothing more is appended, and the
 * last line says so: full,<t_ns>
 */
#ifndef KJ_CPU_PHASES_H
#define KJ_CPU_PHASES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KJ_CPU_PHASES_FILE "phases.cpu.csv"

enum kj_cpu_phase { KJ_CPU_BACKWARD, KJ_CPU_OPTIMIZER, KJ_CPU_PHASES };
/* "backward", ...; NULL for a number that is none. */
const char *kj_cpu_phase_name(enum kj_cpu_phase phase);

struct kj_cpu_phase_row {
    int32_t pid, tid;
    enum kj_cpu_phase phase;
    uint64_t start_ns, end_ns;
};

/* The recorder's side. The file is made with the first line. */
struct kj_cpu_phases_writer;
struct kj_cpu_phases_writer *kj_cpu_phases_create(int dir_fd);
void kj_cpu_phases_seen(struct kj_cpu_phases_writer *writer, int32_t pid, uint64_t t_ns, unsigned functions);
void kj_cpu_phases_append(struct kj_cpu_phases_writer *writer, const struct kj_cpu_phase_row *row);
void kj_cpu_phases_flush(struct kj_cpu_phases_writer *writer);
/* NULL-safe, returns NULL. */
struct kj_cpu_phases_writer *kj_cpu_phases_close(struct kj_cpu_phases_writer *writer);

/* The reader's side: rows in order of the file, which is of their end. */
struct kj_cpu_phases {
    struct kj_cpu_phase_row *rows;
    size_t count;
    struct kj_cpu_phases_seen {
        int32_t pid;
        uint64_t t_ns;
        unsigned functions;
    } * seen;
    size_t seen_count;
    bool full;
    size_t bad_lines;
};
/* -ENOENT: no phases were asked for, or none could be seen. */
int kj_cpu_phases_read(int dir_fd, struct kj_cpu_phases **ret_phases);
struct kj_cpu_phases *kj_cpu_phases_free(struct kj_cpu_phases *phases);

#endif
