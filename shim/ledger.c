/* SPDX-License-Identifier: Apache-2.0
 *
 * ledger.c - makes the ledger and appends to it. Space is allocated on disk before it is mapped: a store into
 * a page that the file system cannot back would kill the host with SIGBUS.
 */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

KJ_EACH_LAUNCH _Atomic(struct kj_ledger_header *) kj_ledger;
atomic_flag kj_cold_lock = ATOMIC_FLAG_INIT;
static atomic_flag ring_lock = ATOMIC_FLAG_INIT;

/* Names that are in the arena, by hash: the same kernel may be loaded a million times. Linear probing; what
 * finds no place here is stored again. Under the cold lock. */
enum { NAMED = 131072, NAMED_PROBES = 64 };
static uint32_t named[NAMED];
static bool named_used;

static const struct {
    uint32_t row_size, cap;
} layout[KJ_SECTION_COUNT] = {
#define X(name, type, cap, doc) [KJ_SECTION_##name] = {sizeof(type), cap},
    KJ_LEDGER_SECTIONS(X)
#undef X
};

_Static_assert(KJ_HOOK_COUNT <= KJ_LEDGER_COUNTS_CAP - KJ_LEDGER_CALLS_BASE, "a count cell for every hook");

void kj_lock_cold(void)
{
    while (atomic_flag_test_and_set_explicit(&kj_cold_lock, memory_order_acquire))
        ;
}

void kj_unlock_cold(void)
{
    atomic_flag_clear_explicit(&kj_cold_lock, memory_order_release);
}

/* Field 22 of /proc/self/stat; the command name in field 2 may hold anything, so count from its last ')'. */
static uint64_t start_ticks(void)
{
    char text[1024];
    int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t size = read(fd, text, sizeof(text) - 1);
    close(fd);
    text[size > 0 ? size : 0] = 0;
    char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p ? strtoull(p + 1, NULL, 10) : 0;
}

static int32_t number_from(const char *name, const char *other)
{
    const char *text = getenv(name);
    if (!text || !*text)
        text = getenv(other);
    return text && *text ? (int32_t)strtol(text, NULL, 10) : -1;
}

static void fill_header(struct kj_ledger_header *ledger, uint64_t size, uint64_t ticks)
{
    uint64_t offset = 4096;
    for (int s = 0; s < KJ_SECTION_COUNT; s++) {
        ledger->sections[s].offset = offset;
        ledger->sections[s].row_size = layout[s].row_size;
        ledger->sections[s].cap = layout[s].cap;
        offset += ((uint64_t)layout[s].row_size * layout[s].cap + 63) & ~63ULL;
    }
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    ledger->version = KJ_LEDGER_VERSION;
    ledger->header_size = sizeof(*ledger);
    ledger->file_size = size;
    ledger->pid = getpid();
    ledger->ppid = getppid();
    ledger->start_ticks = ticks;
    ledger->start_mono_ns = kj_now_ns();
    ledger->start_wall_ns = (uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec;
    ledger->state = KJ_LEDGER_OPEN;
    ledger->flags = KJ_LEDGER_CUDA_LOADED;
    ledger->timing_asked = kj_config.cupti    ? KJ_TIMING_CUPTI
                           : kj_config.events ? KJ_TIMING_EVENTS
                                              : KJ_TIMING_COUNT;
    ledger->timing_backend = kj_config.events ? KJ_TIMING_EVENTS : KJ_TIMING_COUNT;
    if (kj_config.cupti) /* until it is */
        strcpy(ledger->timing_reason, "cuInit was not seen, so CUPTI was not attached");
    ledger->rank = number_from("RANK", "SLURM_PROCID");
    ledger->local_rank = number_from("LOCAL_RANK", "SLURM_LOCALID");
    ledger->world_size = number_from("WORLD_SIZE", "SLURM_NTASKS");
    char exe[1024];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
    n = n < 0 ? 0 : n;
    exe[n] = 0;
    memcpy(ledger->exe, n > 127 ? exe + n - 127 : exe, n > 127 ? 127 : (size_t)n);
    ledger->sections[KJ_SECTION_NAMES].used = 1; /* offset 0: the empty string */
    ledger->sections[KJ_SECTION_COUNTS].used = layout[KJ_SECTION_COUNTS].cap;
}

/* The names of the hooked functions, in the order of their rows. */
static void fill_calls(struct kj_ledger_header *ledger)
{
    static const char *const symbols[] = {
#define HOOK(symbol, name, version, lane, params, args) #symbol,
#include "hooks_each.h"
    };
    struct kj_ledger_call *calls = kj_section(ledger, KJ_SECTION_CALLS);
    for (int hook = 0; hook < KJ_HOOK_COUNT; hook++)
        calls[hook].name = kj_name_store(ledger, symbols[hook]);
    kj_rest_mark_calls(calls);
    ledger->sections[KJ_SECTION_CALLS].used = KJ_HOOK_COUNT;
    /* Activity 0 takes what does not fit the table. */
    struct kj_ledger_activity *others = kj_section(ledger, KJ_SECTION_ACTIVITIES);
    others->name = kj_name_store(ledger, "(other kernels: table full)");
    others->kind = KJ_ACTIVITY_KERNEL;
    ledger->sections[KJ_SECTION_ACTIVITIES].used = 1;
}

static bool allocate(int fd, uint64_t size, const char **ret_reason)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < size) {
        *ret_reason = "the file size limit (ulimit -f) is below the ledger's size";
        return false;
    }
    if (fallocate(fd, 0, 0, (off_t)size) == 0)
        return true;
    struct statvfs fs;
    bool unsupported = errno == EOPNOTSUPP || errno == ENOSYS;
    if (unsupported && fstatvfs(fd, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize > 4 * size)
        return ftruncate(fd, (off_t)size) == 0;
    *ret_reason = "no room for the ledger in the run folder";
    return false;
}

bool kj_ledger_create(const char *dir, const char **ret_reason)
{
    uint64_t size = 4096;
    for (int s = 0; s < KJ_SECTION_COUNT; s++)
        size += ((uint64_t)layout[s].row_size * layout[s].cap + 63) & ~63ULL;
    uint64_t ticks = start_ticks();
    char name[64];
    snprintf(name, sizeof(name), KJ_LEDGER_PREFIX "%d.%llu", (int)getpid(), (unsigned long long)ticks);
    *ret_reason = "the run folder cannot be opened";
    int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir_fd < 0)
        return false;
    *ret_reason = "the ledger cannot be created in the run folder";
    /* An exec'd image has the pid and start time of the one before: a suffix tells them apart. */
    int fd = -1;
    for (int image = 1; fd < 0 && image < 100; image++) {
        fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0 && errno != EEXIST)
            break;
        if (fd < 0)
            snprintf(name, sizeof(name), KJ_LEDGER_PREFIX "%d.%llu.%d", (int)getpid(),
                     (unsigned long long)ticks, image);
    }
    void *map = MAP_FAILED;
    if (fd >= 0) {
        if (allocate(fd, size, ret_reason))
            map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED)
            unlinkat(dir_fd, name, 0);
        close(fd);
    }
    close(dir_fd);
    if (map == MAP_FAILED)
        return false;
    struct kj_ledger_header *ledger = map;
    if (named_used) /* not where it is new: clearing it would touch all of it */
        memset(named, 0, sizeof(named));
    fill_header(ledger, size, ticks);
    fill_calls(ledger);
    __atomic_store_n(&ledger->magic, KJ_LEDGER_MAGIC, __ATOMIC_RELEASE);
    kj_activities_reset();
    atomic_store_explicit(&kj_ledger, ledger, memory_order_release);
    return true;
}

void kj_ledger_end(void)
{
    struct kj_ledger_header *ledger = kj_ledger_now();
    if (!ledger || ledger->pid != getpid())
        return;
    ledger->end_mono_ns = kj_now_ns();
    __atomic_store_n(&ledger->state, KJ_LEDGER_CLOSED, __ATOMIC_RELEASE);
}

int64_t kj_row_reserve(struct kj_ledger_header *ledger, enum kj_ledger_section section)
{
    struct kj_ledger_section_entry *entry = &ledger->sections[section];
    if (entry->used < entry->cap)
        return (int64_t)entry->used;
    entry->dropped++;
    if (section == KJ_SECTION_ACTIVITIES || section == KJ_SECTION_GRAPH_NODES)
        __atomic_fetch_or(&ledger->flags, KJ_LEDGER_PARTIAL, __ATOMIC_RELAXED);
    return -1;
}

void kj_row_publish(struct kj_ledger_header *ledger, enum kj_ledger_section section)
{
    __atomic_fetch_add(&ledger->sections[section].used, 1, __ATOMIC_RELEASE);
}

static uint32_t *named_place(const char *arena, const char *name, size_t length)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < length; i++)
        h = (h ^ (unsigned char)name[i]) * 16777619u;
    for (uint32_t i = 0; i < NAMED_PROBES; i++) {
        uint32_t *place = &named[((h ^ h >> 15) + i) % NAMED];
        if (!*place || (!strncmp(arena + *place, name, length) && !arena[*place + length]))
            return place;
    }
    return NULL;
}

uint32_t kj_name_store(struct kj_ledger_header *ledger, const char *name)
{
    struct kj_ledger_section_entry *entry = &ledger->sections[KJ_SECTION_NAMES];
    char *arena = kj_section(ledger, KJ_SECTION_NAMES);
    size_t length = strnlen(name, 8191);
    uint32_t *place = named_place(arena, name, length);
    if (place && *place)
        return *place;
    if (entry->used + length + 1 > entry->cap) {
        entry->dropped++;
        ledger->flags |= KJ_LEDGER_PARTIAL;
        return 0;
    }
    uint32_t offset = (uint32_t)entry->used;
    memcpy(arena + offset, name, length);
    arena[offset + length] = 0;
    __atomic_store_n(&entry->used, entry->used + length + 1, __ATOMIC_RELEASE);
    if (place)
        *place = offset;
    named_used = true;
    return offset;
}

void kj_interval_publish(struct kj_ledger_header *ledger, const struct kj_ledger_interval *interval)
{
    struct kj_ledger_section_entry *entry = &ledger->sections[KJ_SECTION_RING];
    struct kj_ledger_interval *ring = kj_section(ledger, KJ_SECTION_RING);
    while (atomic_flag_test_and_set_explicit(&ring_lock, memory_order_acquire))
        ;
    static bool dropped; /* under the lock */
    uint64_t tail = __atomic_load_n(&ledger->ring_tail, __ATOMIC_ACQUIRE);
    if (entry->used - tail < entry->cap) {
        struct kj_ledger_interval *row = &ring[entry->used % entry->cap];
        *row = *interval;
        row->flags |= dropped ? KJ_INTERVAL_GAP_BEFORE : 0;
        dropped = dropped && interval->flags & KJ_INTERVAL_ALONE;
        __atomic_store_n(&entry->used, entry->used + 1, __ATOMIC_RELEASE);
    } else {
        entry->dropped++; /* nobody drains: the sums still count it */
        dropped = true;
    }
    atomic_flag_clear_explicit(&ring_lock, memory_order_release);
}

void kj_self_time_add(struct kj_ledger_header *ledger, uint64_t ns)
{
    __atomic_fetch_add(&ledger->self_ns, ns, __ATOMIC_RELAXED);
}
