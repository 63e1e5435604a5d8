/* SPDX-License-Identifier: Apache-2.0
 *
 * threads.h - CPU time by process and thread name, in the file "threads.csv" of the run folder: replaced as a
 * whole every few seconds, so that a kill loses little. kjoule.threads/1
 *     by,<source>                "probe": at each scheduler switch; "proc": looked at from time to time
 *     t,<pid>,<process>,<name>,<main>,<threads>,<cpu_ns>,<cycles>,<instructions>
 * One row a process and thread name; numbers at a name's end are left out (pt_autograd_0: pt_autograd). pid
 * 0: processes for which there was no row left. Texts are escaped as in series.h.
 */
#ifndef KJ_THREADS_H
#define KJ_THREADS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KJ_THREADS_FILE "threads.csv"
enum { KJ_THREADS_ROWS = 4096 };

struct kj_thread_row {
    int32_t pid;
    uint32_t threads; /* that bore this name, dead and alive */
    bool main;        /* the process's first thread */
    uint64_t cpu_ns, cycles, instructions;
    char process[17], name[17];
};

struct kj_thread_rows {
    char source[8];
    struct kj_thread_row *rows;
    size_t count;
    size_t bad_lines;
};

/* 0 or negative errno. */
int kj_threads_write(int dir_fd, const struct kj_thread_rows *rows);
/* -ENOENT: there is none. Lines that cannot be understood are counted and left out. Free with
 * kj_threads_free. */
int kj_threads_read(int dir_fd, struct kj_thread_rows **ret_rows);
struct kj_thread_rows *kj_threads_free(struct kj_thread_rows *rows);

#endif
