/* SPDX-License-Identifier: Apache-2.0
 *
 * preload.c - the session: configuration at the first call of any kind, the ledger at the first sign of CUDA,
 * an end in the destructor.
 *
 * Nothing says that our constructor runs before anybody calls us. Libraries of the program, or threads that
 * their constructors start, may ask for the driver earlier (libcublasLt does). So whatever comes first does
 * the start, and everybody else waits for it: a launch that went on meanwhile would be lost.
 */
#include "shim.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What pthread_atfork of glibc calls, which refers to it strongly: other libcs must still be able to load us.
 */
extern int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *dso)
    __attribute__((weak));
extern void *__dso_handle __attribute__((visibility("hidden")));

struct kj_config kj_config;

enum { NOT_YET, UNDER_WAY, DONE };
#define POLL_NS 50000
static atomic_int configured, touched; /* one of these */
static __thread bool starting;         /* this thread does either */

static void say_once(const char *what, const char *reason)
{
    char line[512];
    int size = snprintf(line, sizeof(line), "kjoule: %s: %s\n", what, reason);
    if (size > 0) {
        ssize_t ignored =
            write(STDERR_FILENO, line, (size_t)size < sizeof(line) ? (size_t)size : sizeof(line) - 1);
        (void)ignored;
    }
}

void kj_session_disable(const char *reason)
{
    if (!kj_config.off)
        say_once("not recording this process", reason);
    kj_config.off = true;
}

/* Does `action` once. Other threads wait until it is done; it calls nothing that could wait for them, nor
 * the dynamic loader, whose lock one of them may hold. A system call, for nanosleep() is a place where a
 * thread may be cancelled. */
static void run_once(atomic_int *state, void (*action)(void))
{
    const struct timespec poll = {0, POLL_NS};
    int expected = NOT_YET;
    if (starting) /* a call of our own, or of a signal's handler meanwhile */
        return;
    if (atomic_compare_exchange_strong(state, &expected, UNDER_WAY)) {
        starting = true;
        action();
        atomic_store(state, DONE);
        starting = false;
        return;
    }
    int before = errno;
    while (atomic_load(state) == UNDER_WAY)
        syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &poll, NULL);
    errno = before;
}

static void configure(void);
void kj_session_configure(void)
{
    if (unlikely(atomic_load(&configured) != DONE))
        run_once(&configured, configure);
}

static void open_ledger(void)
{
    if (!kj_config.off && kj_config.dir[0]) {
        const char *reason = "";
        if (!kj_ledger_create(kj_config.dir, &reason)) {
            kj_session_disable(reason);
        } else {
            kj_governor_start(kj_now_ns());
            kj_walk_start(kj_ledger_now());
        }
    } else if (!kj_config.off) {
        kj_session_disable(kj_config.no_dir);
    }
}

void kj_session_touch(void)
{
    if (likely(atomic_load_explicit(&touched, memory_order_acquire) == DONE))
        return;
    kj_session_configure();
    run_once(&touched, open_ledger);
}

/* The child of a fork leaves the parent's ledger alone and starts its own when it first touches CUDA. Where
 * the parent had touched none, the tables are as new, and clearing them would cost each helper of a shell
 * 2 ms of page faults. */
static void after_fork_in_child(void)
{
    atomic_flag_clear(&kj_cold_lock);
    if (!starting &&
        atomic_load(&configured) == UNDER_WAY) /* the thread that does it is not in this process */
        atomic_store(&configured, NOT_YET);
    if (atomic_load(&touched) == NOT_YET)
        return;
    atomic_store(&kj_ledger, NULL);
    kj_threads_forget();
    kj_dependent_forget();
    kj_contexts_forget();
    kj_names_forget();
    kj_graphs_forget();
    kj_cupti_forget();
    atomic_store(&touched, NOT_YET);
}

static void configure(void)
{
    const char *disable = getenv("KJOULE_DISABLE");
    if (getauxval(AT_SECURE) || kj_libc_is_foreign() || (disable && *disable && strcmp(disable, "0"))) {
        kj_config.off = true;
        return;
    }
    __register_atfork(NULL, NULL, after_fork_in_child, __dso_handle);
    const char *timing = getenv("KJOULE_TIMING");
    kj_config.events = !timing || strcmp(timing, "count");
    kj_config.cupti = timing && !strcmp(timing, "cupti");
    const char *budget = getenv("KJOULE_BUDGET");
    double percent = budget && *budget ? strtod(budget, NULL) : 1.0;
    kj_config.budget = percent >= 0 && percent <= 100 ? percent / 100 : 0.01;
    const char *walk = getenv("KJOULE_PHASE_WALK");
    percent = walk && *walk ? strtod(walk, NULL) : 0;
    kj_config.walk = percent > 0 && percent <= 20 ? percent / 100 : 0;
    const char *dir = getenv("KJOULE_DIR");
    if (!dir || !*dir)
        kj_recorder_start(); /* fills kj_config.dir, or leaves it empty and says why */
    else if (dir[0] == '/' && strlen(dir) < sizeof(kj_config.dir))
        strcpy(kj_config.dir, dir);
    else
        kj_config.no_dir = "KJOULE_DIR is not an absolute path";
}

__attribute__((constructor)) static void start(void)
{
    kj_session_configure();
}

__attribute__((destructor)) static void end(void)
{
    kj_ledger_end();
    kj_recorder_wait();
}
