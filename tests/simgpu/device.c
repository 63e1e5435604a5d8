/* SPDX-License-Identifier: Apache-2.0
 *
 * device.c - the shared machine: its mapping, its work, its energy, its sensors.
 */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define GRID_NS 1000000u

static struct sim_machine *machine;
static pthread_once_t once = PTHREAD_ONCE_INIT;

uint64_t sim_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void sim_sleep_until(uint64_t t_ns)
{
    /* Sleep most of it, spin the rest: a sleep alone ends some 60 us late. */
    uint64_t now_ns = sim_now_ns();
    if (t_ns > now_ns + 150000 && sim_machine()->script.spin <= 0) {
        struct timespec t = {(time_t)((t_ns - 80000) / 1000000000u), (long)((t_ns - 80000) % 1000000000u)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
            ;
    }
    while (sim_now_ns() < t_ns)
        ;
}

static void machine_make(struct sim_machine *m)
{
    sim_script_read(&m->script, getenv("KJ_SIM_SCRIPT"));
    m->zero_ns = sim_now_ns();
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < SIM_DEVICES; i++) {
        struct sim_device *d = &m->device[i];
        pthread_mutex_init(&d->lock, &attr);
        pthread_mutex_init(&d->arrivals_lock, &attr);
        pthread_mutex_init(&d->sensor_lock, &attr);
        d->zero_ns = d->folded_ns = m->zero_ns;
        d->grid_next = 1;
        d->random = 88172645463325252ULL + (uint64_t)i;
    }
    pthread_mutexattr_destroy(&attr);
    __atomic_store_n(&m->ready, SIM_LAYOUT, __ATOMIC_RELEASE);
}

static void truth_at_exit(void)
{
    const char *path = getenv("KJ_SIM_TRUTH");
    if (path && *path)
        sim_truth_write(machine, path);
}

/* The state file's machine, which may be unmade yet (ready is 0). NULL: said why not. */
static struct sim_machine *state_map(int fd, const char *path)
{
    struct stat st;
    struct sim_machine *found = MAP_FAILED;
    if (fstat(fd, &st) == 0 && (size_t)st.st_size == sizeof(*found))
        found = mmap(NULL, sizeof(*found), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED &&
        (!found->ready || (found->ready == SIM_LAYOUT && found->zero_ns <= sim_now_ns())))
        return found;
    fprintf(stderr,
            "simgpu: %s: cannot be used as KJ_SIM_STATE: it is of another build of simgpu, from before a "
            "reboot, or damaged; remove it\n",
            path);
    return NULL;
}

static void machine_find(void)
{
    if (machine) /* opened by sim_machine_open */
        return;
    const char *path = getenv("KJ_SIM_STATE");
    int fd = -1;
    if (path && *path) {
        struct stat st;
        fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd < 0 || flock(fd, LOCK_EX) || fstat(fd, &st) ||
            (!st.st_size && ftruncate(fd, sizeof(*machine)))) {
            fprintf(stderr, "simgpu: %s: %s\n", path, strerror(errno));
            abort();
        }
        machine = state_map(fd, path);
    } else {
        machine = mmap(NULL, sizeof(*machine), PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    if (!machine || machine == MAP_FAILED)
        abort();
    if (!machine->ready)
        machine_make(machine);
    if (fd >= 0) {
        flock(fd, LOCK_UN); /* the mapping would keep it beyond the close */
        close(fd);
    }
    atexit(truth_at_exit);
}

struct sim_machine *sim_machine(void)
{
    pthread_once(&once, machine_find);
    return machine;
}

struct sim_machine *sim_machine_open(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || !st.st_size) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    struct sim_machine *found = state_map(fd, path);
    close(fd);
    if (!found)
        exit(2);
    if (!__atomic_load_n(&found->ready, __ATOMIC_ACQUIRE)) {
        munmap(found, sizeof(*found));
        return NULL;
    }
    return machine = found;
}

static void take(pthread_mutex_t *mutex)
{
    if (pthread_mutex_lock(mutex) == EOWNERDEAD)
        pthread_mutex_consistent(mutex); /* each update below leaves a state that can be gone on from */
}

static void lock(struct sim_device *d)
{
    take(&d->lock);
}

static void unlock(struct sim_device *d)
{
    pthread_mutex_unlock(&d->lock);
}

/* ---- energy
 * ------------------------------------------------------------------------------------------------------ */

double sim_base_w(const struct sim_device *d)
{
    const struct sim_script *s = &sim_machine()->script;
    return d->contexts > 0 ? s->context_w : s->idle_w;
}

static void grid_fill(struct sim_device *d, uint64_t from_ns, uint64_t to_ns, double watts)
{
    while (d->zero_ns + d->grid_next * GRID_NS <= to_ns) {
        uint64_t at_ns = d->zero_ns + d->grid_next * GRID_NS;
        d->grid_nj[d->grid_next % SIM_GRID] = d->energy_nj + watts * (double)(at_ns - from_ns);
        d->grid_next++;
    }
}

/* One stretch in which the set of running work does not change. */
static void stretch(struct sim_device *d, uint64_t from_ns, uint64_t to_ns, struct sim_interval **active,
                    uint32_t count)
{
    if (to_ns <= from_ns)
        return;
    double base = sim_base_w(d), dynamic = 0, cap = sim_machine()->script.cap_w;
    for (uint32_t i = 0; i < count; i++)
        dynamic += (double)active[i]->dynamic_w;
    double scale = base + dynamic > cap && dynamic > 0 ? fmax(cap - base, 0) / dynamic : 1;
    double watts = base + dynamic * scale, ns = (double)(to_ns - from_ns);
    grid_fill(d, from_ns, to_ns, watts);
    d->energy_nj += watts * ns;
    if (!count) {
        d->idle_nj += watts * ns;
    } else {
        d->busy_ns += to_ns - from_ns;
        for (uint32_t i = 0; i < count; i++) {
            double own_nj = (base / count + (double)active[i]->dynamic_w * scale) * ns;
            d->kernel[active[i]->kernel].energy_nj += own_nj;
            d->mark[active[i]->mark].energy_nj += own_nj;
        }
    }
}

static int by_start(const void *a, const void *b)
{
    const struct sim_interval *x = a, *y = b;
    return x->start_ns < y->start_ns ? -1 : x->start_ns > y->start_ns;
}

/* What has been launched meanwhile, as far as there is room. What arrives later starts later than now, and
 * goes into the other half: nobody waits for this copy. Under the device's lock. */
static void arrive(struct sim_device *d)
{
    take(&d->arrivals_lock);
    struct sim_interval *arrived = d->arrival[d->arrival_half];
    uint32_t room = SIM_PENDING - d->pending_count, count = d->arrival_count;
    if (count <= room) {
        d->arrival_half ^= 1;
        d->arrival_count = 0;
    } else {
        count = 0;
    }
    pthread_mutex_unlock(&d->arrivals_lock);
    memcpy(d->pending + d->pending_count, arrived, count * sizeof(*arrived));
    d->pending_count += count;
}

/* Integrates up to t. Under the device's lock. */
static void fold(struct sim_device *d, uint64_t t_ns)
{
    enum { ACTIVE = 4096 };
    static __thread struct sim_interval *active[ACTIVE];
    if (t_ns <= d->folded_ns)
        return;
    arrive(d);
    qsort(d->pending, d->pending_count, sizeof(*d->pending), by_start);
    uint64_t at_ns = d->folded_ns;
    uint32_t next = 0, count = 0;
    while (at_ns < t_ns) {
        while (next < d->pending_count && d->pending[next].start_ns <= at_ns && count < ACTIVE)
            active[count++] = &d->pending[next++];
        uint64_t until_ns = t_ns;
        if (next < d->pending_count && d->pending[next].start_ns < until_ns)
            until_ns = d->pending[next].start_ns;
        for (uint32_t i = 0; i < count; i++)
            if (active[i]->end_ns < until_ns)
                until_ns = active[i]->end_ns;
        if (until_ns > at_ns)
            stretch(d, at_ns, until_ns, active, count);
        at_ns = until_ns > at_ns ? until_ns : at_ns;
        for (uint32_t i = 0; i < count;)
            if (active[i]->end_ns <= at_ns)
                active[i] = active[--count];
            else
                i++;
    }
    d->folded_ns = t_ns;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < d->pending_count; i++)
        if (d->pending[i].end_ns > t_ns) {
            struct sim_interval left = d->pending[i];
            if (left.start_ns < t_ns)
                left.start_ns = t_ns;
            d->pending[kept++] = left;
        }
    d->pending_count = kept;
}

double sim_energy_at(int device, uint64_t t_ns)
{
    struct sim_device *d = &sim_machine()->device[device];
    lock(d);
    fold(d, sim_now_ns());
    double energy_nj;
    if (t_ns <= d->zero_ns) {
        energy_nj = 0;
    } else if (t_ns >= d->folded_ns) {
        energy_nj = d->energy_nj;
    } else {
        uint64_t i = (t_ns - d->zero_ns) / GRID_NS;
        double before = i ? d->grid_nj[i % SIM_GRID] : 0;
        uint64_t before_ns = d->zero_ns + i * GRID_NS;
        bool last = i + 1 >= d->grid_next;
        double after = last ? d->energy_nj : d->grid_nj[(i + 1) % SIM_GRID];
        uint64_t after_ns = last ? d->folded_ns : before_ns + GRID_NS;
        double part = after_ns > before_ns ? (double)(t_ns - before_ns) / (double)(after_ns - before_ns) : 0;
        energy_nj = before + (after - before) * part;
    }
    unlock(d);
    return energy_nj;
}

/* ---- work
 * ------------------------------------------------------------------------------------------------------- */

static double random_unit(struct sim_device *d)
{
    d->random ^= d->random << 13;
    d->random ^= d->random >> 7;
    d->random ^= d->random << 17;
    return (double)(d->random >> 11) / 9007199254740992.0;
}

static double random_normal(struct sim_device *d)
{
    return sqrt(-2 * log(random_unit(d) + 1e-300)) * cos(6.283185307179586 * random_unit(d));
}

static uint64_t hash(const char *name)
{
    uint64_t h = 1469598103934665603ULL;
    for (const char *p = name; *p; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211ULL;
    return h;
}

static void kernel_make(struct sim_kernel *k, const char *name, bool copy)
{
    const struct sim_script *s = &sim_machine()->script;
    snprintf(k->name, sizeof(k->name), "%s", name);
    uint64_t h = hash(name);
    double power_w = copy ? s->copy_w : 150 + (double)((h >> 20) % 400);
    k->duration_us = -1;
    k->copy = copy;
    for (int i = 0; i < s->rules; i++) {
        if (fnmatch(s->rule[i].glob, name, 0))
            continue;
        k->duration_us = s->rule[i].duration_us;
        k->sd_us = s->rule[i].sd_us;
        power_w = s->rule[i].power_w >= 0 ? s->rule[i].power_w : power_w;
        break;
    }
    k->dynamic_w = power_w > s->context_w ? power_w - s->context_w : 0;
}

uint32_t sim_kernel_find(int device, const char *name, bool copy)
{
    struct sim_device *d = &sim_machine()->device[device];
    char key[sizeof(d->kernel[0].name)];
    snprintf(key, sizeof(key), "%s", name);
    lock(d);
    uint32_t slot = (uint32_t)(hash(key) >> 7) % SIM_HASH, i;
    while ((i = d->kernel_at[slot]) && strcmp(d->kernel[i - 1].name, key))
        slot = (slot + 1) % SIM_HASH;
    if (!i && d->kernels < SIM_KERNELS) {
        kernel_make(&d->kernel[d->kernels], key, copy);
        d->kernel_at[slot] = i = ++d->kernels;
    }
    unlock(d);
    return i ? i - 1 : SIM_KERNELS - 1; /* beyond that, all are one */
}

static __thread char mark_name[SIM_MARK_BYTES];

void sim_mark_set(const char *name)
{
    snprintf(mark_name, sizeof(mark_name), "%s", name ? name : "");
}

const char *sim_mark_now(void)
{
    if (!*mark_name)
        prctl(PR_GET_NAME, mark_name);
    return mark_name;
}

/* Under the device's lock; beyond the last place, all are one. */
static uint32_t mark_find(struct sim_device *d, const char *name)
{
    uint32_t i = 0;
    while (i < d->marks && strcmp(d->mark[i].name, name))
        i++;
    if (i == SIM_MARKS)
        return i - 1;
    if (i == d->marks)
        snprintf(d->mark[d->marks++].name, SIM_MARK_BYTES, "%s", name);
    return i;
}

/* More in flight than the lists hold: a driver would make the caller wait. */
static void make_room(struct sim_device *d)
{
    lock(d);
    fold(d, sim_now_ns());
    bool full = SIM_PENDING - d->pending_count < SIM_ARRIVALS;
    uint64_t until_ns = full ? d->pending[SIM_ARRIVALS - 1].end_ns : 0;
    unlock(d);
    sim_sleep_until(until_ns);
}

uint64_t sim_work(int device, uint32_t kernel, uint64_t not_before_ns, uint64_t ahead_ns,
                  uint64_t grid_blocks, uint64_t bytes, bool graph, uint64_t *ret_start_ns)
{
    struct sim_machine *m = sim_machine();
    struct sim_device *d = &m->device[device];
    struct sim_kernel *k = &d->kernel[kernel];
    const uint64_t given_ns = not_before_ns;
    take(&d->arrivals_lock);
    uint64_t now_ns = sim_now_ns();
    double us = k->duration_us;
    if (k->copy)
        us = m->script.copy_latency_us + (double)bytes / (m->script.copy_gbs * 1e3);
    else if (us < 0)
        us = 4 + (double)grid_blocks * 0.02;
    if (k->sd_us > 0)
        us = fmax(us + k->sd_us * random_normal(d), us * 0.1);
    double shorter_ns = fmin((double)ahead_ns, us * 1e3);
    not_before_ns -= (uint64_t)(shorter_ns * m->script.dependent_overlap);
    uint64_t start_ns = not_before_ns > now_ns ? not_before_ns : now_ns;
    uint64_t end_ns = start_ns + (uint64_t)(us * 1e3 + 0.5);
    if (d->arrival_count == SIM_ARRIVALS) {
        pthread_mutex_unlock(&d->arrivals_lock);
        make_room(d);
        return sim_work(device, kernel, given_ns, ahead_ns, grid_blocks, bytes, graph, ret_start_ns);
    }
    uint32_t mark = mark_find(d, sim_mark_now());
    d->arrival[d->arrival_half][d->arrival_count++] =
        (struct sim_interval){start_ns, end_ns, kernel, mark, (float)k->dynamic_w};
    d->mark[mark].launches += !k->copy;
    d->mark[mark].copies += k->copy;
    d->mark[mark].time_ns += end_ns - start_ns;
    k->launches++;
    k->graph_launches += graph;
    k->time_ns += end_ns - start_ns;
    *ret_start_ns = start_ns;
    sim_timeline_add(device, start_ns, end_ns, k->name);
    pthread_mutex_unlock(&d->arrivals_lock);
    return end_ns;
}

void sim_context_made(int device)
{
    struct sim_device *d = &sim_machine()->device[device];
    lock(d);
    fold(d, sim_now_ns());
    for (int i = 0; i < SIM_CONTEXTS; i++)
        if (!d->context_pid[i]) {
            d->context_pid[i] = getpid();
            d->contexts++;
            break;
        }
    unlock(d);
}

static void context_remove(struct sim_device *d, int i)
{
    fold(d, sim_now_ns());
    d->context_pid[i] = 0;
    d->contexts--;
}

void sim_context_gone(int device)
{
    struct sim_device *d = &sim_machine()->device[device];
    lock(d);
    for (int i = 0; i < SIM_CONTEXTS; i++)
        if (d->context_pid[i] == getpid()) {
            context_remove(d, i);
            break;
        }
    unlock(d);
}

/* A killed process takes its contexts with it. */
void sim_bury(struct sim_device *d)
{
    lock(d);
    for (int i = 0; i < SIM_CONTEXTS; i++)
        if (d->context_pid[i] && kill(d->context_pid[i], 0) && errno == ESRCH)
            context_remove(d, i);
    unlock(d);
}

void sim_uuid(int device, uint8_t ret_uuid[16])
{
    static const uint8_t uuid[16] = {0x5e, 0xed, 0x00, 0x00, 0x6b, 0x6a, 0x40, 0x75,
                                     0x80, 0x6c, 0x65, 0x73, 0x69, 0x6d, 0x75, 0x00};
    memcpy(ret_uuid, uuid, 16);
    ret_uuid[15] = (uint8_t)device;
}

void sim_instance_uuid(int device, int instance, uint8_t ret_uuid[16])
{
    sim_uuid(device, ret_uuid);
    ret_uuid[0] = 0x4d;
    ret_uuid[14] = (uint8_t)(instance + 1);
}

void sim_uuid_text(const char *prefix, const uint8_t u[16], char ret_text[SIM_UUID_TEXT])
{
    snprintf(ret_text, SIM_UUID_TEXT,
             "%s-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", prefix, u[0], u[1],
             u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}
