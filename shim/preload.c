/* SPDX-License-Identifier: Apache-2.0
 *
 * preload.c - the session: configuration in the constructor, the ledger at the first sign of CUDA, an end in
 * the destructor.
 */
#include "shim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>

/* What pthread_atfork of glibc calls, which refers to it strongly: other libcs must still be able to load us.
 */
extern int __register_atfork(void (*prepare)(void), void (*parent)(void), void (*child)(void), void *dso)
    __attribute__((weak));
extern void *__dso_handle __attribute__((visibility("hidden")));

struct kj_config kj_config;
static atomic_int touched; /* 0 not yet, 1 being opened, 2 done */

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

void kj_session_touch(void)
{
    if (likely(atomic_load_explicit(&touched, memory_order_relaxed) == 2))
        return;
    int expected = 0;
    if (!atomic_compare_exchange_strong(&touched, &expected, 1))
        return; /* another thread is at it; what it does meanwhile is look-ups, not launches */
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
    atomic_store(&touched, 2);
}

/* The child of a fork leaves the parent's ledger alone and starts its own when it first touches CUDA. Where
 * the parent had touched none, the tables are as new, and clearing them would cost each helper of a shell
 * 2 ms of page faults. */
static void after_fork_in_child(void)
{
    atomic_flag_clear(&kj_cold_lock);
    if (atomic_load(&touched) == 0)
        return;
    atomic_store(&kj_ledger, NULL);
    kj_threads_forget();
    kj_contexts_forget();
    kj_names_forget();
    kj_graphs_forget();
    kj_cupti_forget();
    atomic_store(&touched, 0);
}

__attribute__((constructor)) static void start(void)
{
    const char *disable = getenv("KJOULE_DISABLE");
    if (getauxval(AT_SECURE) || kj_libc_is_foreign() || (disable && *disable && strcmp(disable, "0"))) {
        kj_config.off = true;
        return;
    }
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
    __register_atfork(NULL, NULL, after_fork_in_child, __dso_handle);
}

__attribute__((destructor)) static void end(void)
{
    kj_ledger_end();
    kj_recorder_wait();
}
