/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti.c - CUPTI times every launch, on request. Found when the application looks for the driver, attached
 * when its cuInit is done, asked for its records at the application's own waits, and given up for good as
 * soon as anything is not as it should be: then event pairs do the work and the ledger says why.
 *
 * When: the library is opened within the application's first look-up of a driver function, whose caller has
 * itself just opened the driver, so that whatever locks it holds have met the loader's already. CUPTI is
 * attached behind cuInit, where NVIDIA's own injection attaches it. Never on the launch path.
 */
#include "cupti.h"

#include <dlfcn.h>
#include <limits.h>
#include <link.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#pragma weak pthread_create /* in an older glibc it is in a library of its own, which CUDA brings along */
#pragma weak pthread_detach

enum {
    HARVEST_EVERY_NS = 100000000,
    FLUSH_PERIOD_MS = 1000, /* CUPTI's own thread gives full buffers back, also where nobody waits */
    EXIT_WITHIN_MS = 2000,
    EXIT_LOOKS_PER_MS = 10,
    EMPTY_HARVESTS = 5, /* in a row, that told of nothing */
};

/* RESTING: it has been given up, and stays attached; LENT: so it does, for another tool. */
enum state { IDLE, ATTACHING, ATTACHED, RESTING, LENT, GONE };

struct kj_cupti_api kj_cupti;
KJ_EACH_LAUNCH atomic_int kj_cupti_on;
static _Atomic int state;
static bool inherited;        /* over a fork */
static atomic_int looked_for; /* the library: 1 under way, 2 done */
static void *library;
static char opened[PATH_MAX]; /* where that is, if it was not in the process before */
static CUpti_SubscriberHandle subscriber;
static atomic_flag busy = ATOMIC_FLAG_INIT; /* somebody collects */
static _Atomic uint64_t harvested_ns;

static const int kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY,
                            CUPTI_ACTIVITY_KIND_MEMSET, CUPTI_ACTIVITY_KIND_MEMCPY2};
enum { KINDS = sizeof(kinds) / sizeof(kinds[0]) };

static void say_why(struct kj_ledger_header *ledger, const char *reason)
{
    if (ledger)
        snprintf(ledger->timing_reason, sizeof(ledger->timing_reason), "%s", reason);
}

/* ---- the library
 * ------------------------------------------------------------------------------------------------------ */

struct search {
    char loaded[PATH_MAX]; /* a libcupti in this process */
    char beside[PATH_MAX]; /* the folder of a libcudart in this process */
    char major[8];         /* of that: "13" */
};

static int look_at(struct dl_phdr_info *info, size_t size, void *argument)
{
    (void)size;
    struct search *search = argument;
    const char *path = info->dlpi_name, *base = path ? strrchr(path, '/') : NULL;
    if (!base || strlen(path) >= PATH_MAX)
        return 0;
    if (!strncmp(base, "/libcupti.so", 12) && !*search->loaded && strcmp(path, opened))
        strcpy(search->loaded, path);
    if (!strncmp(base, "/libcudart.so.", 14) && !*search->beside) {
        memcpy(search->beside, path, (size_t)(base - path));
        search->beside[base - path] = 0;
        snprintf(search->major, sizeof(search->major), "%.*s", (int)strcspn(base + 14, "."), base + 14);
    }
    return 0;
}

void *kj_cupti_library(void)
{
    struct search search = {.loaded = ""};
    if (library && !*opened)
        return library;
    dl_iterate_phdr(look_at, &search);
    void *theirs = *search.loaded ? dlopen(search.loaded, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL) : NULL;
    return theirs ? theirs : library;
}

/* Toolkits and Python's packages lay it out otherwise. */
static void *open_beside(const struct search *search)
{
    static const char *const places[] = {"%s/libcupti.so.%s", "%s/../../cuda_cupti/lib/libcupti.so.%s",
                                         "%s/../extras/CUPTI/lib64/libcupti.so.%s"};
    char path[PATH_MAX + 64];
    void *found = NULL;
    for (size_t i = 0; *search->beside && i < sizeof(places) / sizeof(places[0]) && !found; i++) {
        snprintf(path, sizeof(path), places[i], search->beside, search->major);
        found = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    }
    return found;
}

static void *open_by_name(void)
{
    static const struct {
        const char *name;
        int driver;
    } names[] = {
#define X(name, driver) {name, driver},
        KJ_CUPTI_LIBRARIES(X)
#undef X
    };
    int version = 0;
    if (!kj_driver.cuDriverGetVersion || kj_driver.cuDriverGetVersion(&version))
        version = INT_MAX;
    void *found = NULL;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && !found; i++)
        if (names[i].driver <= version)
            found = dlopen(names[i].name, RTLD_LAZY | RTLD_LOCAL);
    return found;
}

void kj_cupti_load(void)
{
    int expected = 0;
    if (kj_config.off || !atomic_compare_exchange_strong(&looked_for, &expected, 1))
        return;
    struct search search = {.loaded = ""};
    dl_iterate_phdr(look_at, &search);
    bool inside = kj_self.inside;
    kj_self.inside = true;
    void *found = *search.loaded ? dlopen(search.loaded, RTLD_NOLOAD | RTLD_LAZY | RTLD_LOCAL) : NULL;
    if (!found && ((found = open_beside(&search)) || (found = open_by_name()))) {
        struct link_map *map = NULL;
        if (!dlinfo(found, RTLD_DI_LINKMAP, &map) && map && strlen(map->l_name) < sizeof(opened))
            strcpy(opened, map->l_name);
    }
    library = found;
    kj_self.inside = inside;
    atomic_store(&looked_for, 2);
}

/* NULL, or why it is of no use. */
static const char *check_library(struct kj_ledger_header *ledger, char *text, size_t size)
{
    if (!library)
        return "libcupti was not found: not loaded by the program, not beside its libcudart and not on the "
               "loader's path; see LD_LIBRARY_PATH";
#define CUPTI(name, needed, params)                                                                          \
    kj_cupti.name = (__typeof__(kj_cupti.name))kj_dlsym_behind(library, #name);                              \
    if ((needed) && !kj_cupti.name)                                                                          \
        return "the libcupti in this process lacks " #name;
#include "cupti.def"
    uint32_t version = 0;
    if (kj_cupti.cuptiGetVersion(&version))
        return "libcupti does not tell its version";
    ledger->cupti_version = version;
#define X(lowest, highest, what)                                                                             \
    if (version >= (lowest) && version <= (highest))                                                         \
        return NULL;
    KJ_CUPTI_KNOWN(X)
#undef X
#define X(lowest, highest, what) what ", "
    snprintf(text, size, "CUPTI's records are known of " KJ_CUPTI_KNOWN(X) "and this is version %u", version);
#undef X
    return text;
}

/* ---- executable graphs
 * ------------------------------------------------------------------------------------------------------ */

/* Leaving CUPTI while a process had executable graphs has crashed it (before CUDA 12.6: pytorch#112507,
 * #101879, #150957). How many there are is what the hooks counted; those of a context that has ended stay in
 * the sum, which errs on the safe side. */
static bool graphs_exist(struct kj_ledger_header *ledger)
{
    static const enum kj_hook makers[] = {
#define INSTANTIATE(symbol, name, version, lane, params, args) KJ_HOOK_##symbol,
#include "hooks_none.h"

#include "hooks.def"
#include "hooks_undef.h"
    };
    const uint64_t *counts = kj_section(ledger, KJ_SECTION_COUNTS);
    uint64_t made = 0, destroyed = 0;
    for (size_t shard = 0; shard < KJ_LEDGER_SHARDS; shard++) {
        const uint64_t *calls = counts + shard * KJ_LEDGER_COUNTS_CAP + KJ_LEDGER_CALLS_BASE;
        for (size_t i = 0; i < sizeof(makers) / sizeof(makers[0]); i++)
            made += __atomic_load_n(&calls[makers[i]], __ATOMIC_RELAXED);
        destroyed += __atomic_load_n(&calls[KJ_HOOK_cuGraphExecDestroy], __ATOMIC_RELAXED);
    }
    return made > destroyed;
}

/* ---- attaching
 * ------------------------------------------------------------------------------------------------------ */

/* Whom the subscriber has been lent to. */
static struct borrower {
    _Atomic(CUpti_CallbackFunc) callback;
    void *user_data;
} borrower;

/* Its id is the one in the records of what this call starts. */
static void on_call(void *user_data, int domain, uint32_t cbid, const void *data)
{
    (void)user_data;
    CUpti_CallbackFunc theirs = atomic_load_explicit(&borrower.callback, memory_order_acquire);
    if (unlikely(theirs)) {
        theirs(borrower.user_data, domain, cbid, data);
        return;
    }
    const struct kj_cupti_call *call = data;
    bool runtime = domain == CUPTI_CB_DOMAIN_RUNTIME_API;
    if (call->callbackSite == CUPTI_API_ENTER)
        kj_self.correlation[runtime] = call->correlationId;
    else if (runtime)
        kj_self.correlation[1] = 0;
}

static const char *subscribe(char *text, size_t size)
{
    char holder[80] = "";
    struct kj_cupti_subscriber_params params = {sizeof(params), "kjoule", holder, sizeof(holder) - 1};
    CUptiResult rc = kj_cupti.cuptiSubscribe_v2
                         ? kj_cupti.cuptiSubscribe_v2(&subscriber, on_call, NULL, &params)
                         : kj_cupti.cuptiSubscribe(&subscriber, on_call, NULL);
    holder[sizeof(holder) - 1] = 0;
    if (!rc)
        return NULL;
    if (rc == CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED || rc == CUPTI_ERROR_MAX_LIMIT_REACHED)
        snprintf(text, size, "another tool uses CUPTI in this process (error %d%s%s)", rc,
                 *holder ? ": " : "", holder);
    else
        snprintf(text, size, "CUPTI refused a subscriber (error %d)", rc);
    return text;
}

static void disable(unsigned count)
{
    while (count)
        kj_cupti.cuptiActivityDisable(kinds[--count]);
}

/* NULL, or why not; nothing is left behind then. */
static const char *enable(struct kj_ledger_header *ledger, char *text, size_t size)
{
    if (!kj_cupti_records_start())
        return "no memory for CUPTI's records";
    const char *reason = subscribe(text, size);
    if (reason)
        return reason;
    CUptiResult rc =
        kj_cupti.cuptiActivityRegisterCallbacks(kj_cupti_buffer_request, kj_cupti_buffer_complete);
    unsigned enabled = 0;
    kj_cupti_tie(ledger);
    while (!rc && enabled < KINDS && !(rc = kj_cupti.cuptiActivityEnable(kinds[enabled])))
        enabled++;
    if (rc) {
        disable(enabled);
        kj_cupti.cuptiUnsubscribe(subscriber);
        snprintf(text, size, "CUPTI refused to record activity (error %d%s)", rc,
                 rc == CUPTI_ERROR_INSUFFICIENT_PRIVILEGES
                     ? ": profiling is restricted to administrators here"
                     : "");
        return text;
    }
    /* An older library does not know the newest functions: what they start is found by name. */
#define CALL(domain, name, number)                                                                           \
    kj_cupti.cuptiEnableCallback(1, subscriber, CUPTI_CB_DOMAIN_##domain##_API, number);
#include "cupti_calls.def"
    if (kj_cupti.cuptiActivityFlushPeriod)
        kj_cupti.cuptiActivityFlushPeriod(FLUSH_PERIOD_MS);
    return NULL;
}

static void at_exit(void);

void kj_cupti_attach(struct kj_ledger_header *ledger)
{
    int expected = IDLE;
    char text[sizeof(ledger->timing_reason)];
    if (inherited)
        say_why(ledger, "this process was forked from one in which CUPTI was attached");
    if (!kj_config.cupti || !atomic_compare_exchange_strong(&state, &expected, ATTACHING))
        return;
    bool inside = kj_self.inside;
    kj_self.inside = true;
    const char *reason = atomic_load(&looked_for) != 2 ? "libcupti was still being looked for at cuInit"
                         : kj_cupti_has_neighbour()    ? "another tool uses CUPTI in this process"
                                                       : check_library(ledger, text, sizeof(text));
    reason = reason ? reason : enable(ledger, text, sizeof(text));
    kj_self.inside = inside;
    say_why(ledger, reason ? reason : "");
    atomic_store(&state, reason ? GONE : ATTACHED);
    if (reason)
        return;
    atexit(at_exit); /* runs before what CUDA and CUPTI registered up to here */
    __atomic_store_n(&ledger->timing_backend, KJ_TIMING_CUPTI, __ATOMIC_RELEASE);
    atomic_store(&kj_timing_on, 0);
    atomic_store(&kj_cupti_on, 1);
}

/* ---- collecting
 * ------------------------------------------------------------------------------------------------------ */

static void flush(struct kj_ledger_header *ledger, uint32_t flag)
{
    bool inside = kj_self.inside;
    kj_self.inside = true;
    kj_cupti_tie(ledger);
    kj_cupti.cuptiActivityFlushAll(flag);
    kj_self.inside = inside;
}

/* Profilers have been seen to be attached, and told of no kernel ever. */
static const char nothing_told[] = "CUPTI was attached, and told of nothing that ran";

static bool tells_nothing(const struct kj_ledger_header *ledger)
{
    return kj_cupti_has_launched() && !ledger->cupti_records && !ledger->cupti_incomplete &&
           !ledger->cupti_dropped;
}

void kj_cupti_harvest(struct kj_ledger_header *ledger, uint64_t now_ns, bool at_once)
{
    if (atomic_load(&state) != ATTACHED || atomic_load(&kj_captures) || kj_self.inside)
        return;
    if (!at_once && now_ns - atomic_load(&harvested_ns) < HARVEST_EVERY_NS)
        return;
    static int empty;
    if (atomic_flag_test_and_set(&busy))
        return;
    atomic_store(&harvested_ns, now_ns);
    uint64_t begun_ns = kj_now_ns();
    flush(ledger, 0);
    atomic_flag_clear(&busy);
    kj_self_time_add(ledger, kj_now_ns() - begun_ns);
    char text[128];
    if (tells_nothing(ledger) && ++empty >= EMPTY_HARVESTS) {
        kj_cupti_yield(nothing_told);
    } else if (ledger->cupti_dropped) {
        snprintf(text, sizeof(text), "CUPTI's records came faster than they could be taken: %llu were lost",
                 (unsigned long long)ledger->cupti_dropped);
        kj_cupti_yield(text);
    } else if (kj_cupti_is_useless(ledger, text, sizeof(text))) {
        kj_cupti_yield(text);
    }
}

/* Event pairs take over. */
static void give_up(struct kj_ledger_header *ledger, const char *reason)
{
    atomic_store(&kj_cupti_on, 0);
    say_why(ledger, reason);
    __atomic_store_n(&ledger->timing_backend, KJ_TIMING_EVENTS, __ATOMIC_RELEASE);
    kj_governor_resume();
}

static void detach(struct kj_ledger_header *ledger)
{
    bool inside = kj_self.inside;
    kj_self.inside = true;
    disable(KINDS);
    /* Forced: the buffers come back before somebody else registers. */
    flush(ledger, CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    kj_cupti_count_dropped(ledger, NULL, 0);
    if (kj_cupti.cuptiActivityFlushPeriod)
        kj_cupti.cuptiActivityFlushPeriod(0);
    kj_cupti.cuptiUnsubscribe(subscriber);
    kj_self.inside = inside;
}

void kj_cupti_yield(const char *reason)
{
    struct kj_ledger_header *ledger = kj_ledger_now();
    int expected = ATTACHED;
    if (!ledger)
        return;
    bool stays = graphs_exist(ledger);
    if (!atomic_compare_exchange_strong(&state, &expected, stays ? RESTING : GONE)) {
        /* It had been given up. Somebody comes, and the way is free by now. */
        expected = RESTING;
        if (!stays && atomic_compare_exchange_strong(&state, &expected, GONE))
            detach(ledger);
        return;
    }
    for (int i = 0; i < 1000000 && atomic_flag_test_and_set(&busy); i++)
        sched_yield();
    if (stays) {
        char text[sizeof(ledger->timing_reason)];
        snprintf(text, sizeof(text),
                 "%s; CUPTI stays attached and idle: leaving it is not safe while graphs exist", reason);
        flush(ledger, 0); /* as at every wait: what is complete is still ours */
        kj_cupti_records_ignore();
        give_up(ledger, text);
    } else {
        atomic_store(&kj_cupti_on, 0);
        detach(ledger);
        give_up(ledger, reason);
    }
    atomic_flag_clear(&busy);
}

bool kj_cupti_lend(CUpti_SubscriberHandle *ret_subscriber, CUpti_CallbackFunc callback, void *user_data)
{
    int expected = RESTING;
    if (!callback || !atomic_compare_exchange_strong(&state, &expected, LENT))
        return false;
    /* What we had asked for is no business of theirs. */
    bool inside = kj_self.inside;
    kj_self.inside = true;
#define CALL(domain, name, number)                                                                           \
    kj_cupti.cuptiEnableCallback(0, subscriber, CUPTI_CB_DOMAIN_##domain##_API, number);
#include "cupti_calls.def"
    kj_self.inside = inside;
    borrower.user_data = user_data;
    atomic_store_explicit(&borrower.callback, callback, memory_order_release);
    *ret_subscriber = subscriber;
    return true;
}

/* ---- the end
 * ------------------------------------------------------------------------------------------------------ */

static void *flush_at_exit(void *done)
{
    struct kj_ledger_header *ledger = kj_ledger_now();
    if (ledger)
        flush(ledger, 0);
    atomic_store((atomic_int *)done, 1);
    return NULL;
}

/* CUPTI has been seen to wait forever at exit (a context that is broken, a thread that ended in the driver),
 * so somebody else waits for it, and the host goes on after a while in any case. */
static void at_exit(void)
{
    static atomic_int done;
    pthread_t thread;
    sigset_t all, before;
    if (atomic_load(&state) != ATTACHED || !kj_ledger_now() || !pthread_create || !pthread_detach ||
        atomic_flag_test_and_set(&busy))
        return;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    bool started = !pthread_create(&thread, NULL, flush_at_exit, &done);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started)
        pthread_detach(thread);
    for (int i = 0; started && i < EXIT_WITHIN_MS * EXIT_LOOKS_PER_MS && !atomic_load(&done); i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000 / EXIT_LOOKS_PER_MS}, NULL);
    if (started && !atomic_load(&done)) {
        say_why(kj_ledger_now(), "CUPTI did not hand over its last records within 2 s of the end");
        atomic_store(&state, GONE); /* whatever it says from now on is not waited for */
        atomic_store(&kj_cupti_on, 0);
        return;
    }
    atomic_flag_clear(&busy);
    char text[128];
    if (tells_nothing(kj_ledger_now()))
        say_why(kj_ledger_now(), nothing_told);
    else if (kj_cupti_is_useless(kj_ledger_now(), text, sizeof(text)))
        say_why(kj_ledger_now(), text);
}

void kj_cupti_forget(void)
{
    /* What the parent attached is its own: in this process CUPTI is not to be touched again. */
    inherited = atomic_load(&state) != IDLE;
    if (inherited)
        atomic_store(&state, GONE);
    atomic_store(&kj_cupti_on, 0);
    atomic_flag_clear(&busy);
    kj_cupti_records_forget();
}
