/* SPDX-License-Identifier: Apache-2.0
 *
 * rapl_perf.c - RAPL through the kernel's "power" PMU: 64-bit counts, no wraparound to mind. One event a
 * domain and package; RAPL events cannot be grouped. AMD's cores have a PMU of their own, "power_core" (Linux
 * 6.14): a part of the package, told beside it, summed over its cores.
 */
#include "power/source.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PMUS "/sys/bus/event_source/devices/"

enum { CHANNELS_MAX = 128, FDS_MAX = 1024 };

static int system_perf_event_open(struct perf_event_attr *attr, pid_t pid, int cpu)
{
    long fd = syscall(SYS_perf_event_open, attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    return fd < 0 ? -errno : (int)fd;
}

int (*kj_perf_event_open)(struct perf_event_attr *attr, pid_t pid, int cpu) = system_perf_event_open;

static const struct domain {
    const char *pmu, *event, *name;
    enum kj_component component;
    bool once; /* counts on the first package alone, for all; the others show 0 */
} domains[] = {
    {"power", "energy-pkg", "package", KJ_COMPONENT_CPU, false},
    {"power", "energy-ram", "dram", KJ_COMPONENT_DRAM, false},
    {"power", "energy-psys", "psys", KJ_COMPONENT_NODE, true},
    {"power_core", "energy-core", "cores", KJ_COMPONENT_NODE, false},
};

struct rapl_perf {
    uint32_t count, fds_count;
    struct counter {
        const struct domain *domain;
        char device[64];
        double uj_per_count;
        uint64_t base;
    } counters[CHANNELS_MAX];
    int fds[FDS_MAX];
    uint32_t counter_of_fd[FDS_MAX];
};

static int read_count(int fd, uint64_t *ret_count)
{
    ssize_t got = read(fd, ret_count, sizeof(*ret_count));
    return got == sizeof(*ret_count) ? 0 : got < 0 ? -errno : -EIO;
}

/* "event=0x02" and, on some PMUs, more terms; only the event matters for RAPL. */
static int read_event(const char *root, const struct domain *domain, uint64_t *ret_config,
                      double *ret_uj_per_count)
{
    char line[128], *end;
    const char *pmu = domain->pmu, *name = domain->event;
    int error = kj_root_line(root, line, sizeof(line), PMUS "%s/events/%s", pmu, name);
    if (error)
        return error;
    const char *term = strstr(line, "event=");
    if (!term)
        return -EPROTO;
    *ret_config = strtoull(term + 6, NULL, 0);
    error = kj_root_line(root, line, sizeof(line), PMUS "%s/events/%s.scale", pmu, name);
    if (error)
        return error;
    double scale = strtod(line, &end);
    if (end == line || !(scale > 0))
        return -EPROTO;
    error = kj_root_line(root, line, sizeof(line), PMUS "%s/events/%s.unit", pmu, name);
    if (error || strcmp(line, "Joules"))
        return error ? error : -EPROTO;
    *ret_uj_per_count = scale * 1e6;
    return 0;
}

/* Reads "0,18" or "0-1,4". Returns how many. */
static int parse_cpus(const char *text, int *ret_cpus, int cap)
{
    int count = 0;
    while (isdigit((unsigned char)*text)) {
        char *end;
        long first = strtol(text, &end, 10), last = first;
        if (*end == '-')
            last = strtol(end + 1, &end, 10);
        for (long cpu = first; cpu <= last && count < cap; cpu++)
            ret_cpus[count++] = (int)cpu;
        text = *end == ',' ? end + 1 : end;
    }
    return count;
}

static int open_event(uint32_t type, uint64_t config, int cpu)
{
    struct perf_event_attr attr = {.type = type, .size = sizeof(attr), .config = config};
    return kj_perf_event_open(&attr, -1, cpu);
}

static void rapl_perf_close(void *state)
{
    struct rapl_perf *rapl = state;
    for (uint32_t i = 0; rapl && i < rapl->fds_count; i++)
        close(rapl->fds[i]);
    free(rapl);
}

static int sum_counts(const struct rapl_perf *rapl, uint32_t counter, uint64_t *ret_count)
{
    *ret_count = 0;
    for (uint32_t i = 0; i < rapl->fds_count; i++) {
        uint64_t one = 0;
        int error = rapl->counter_of_fd[i] == counter ? read_count(rapl->fds[i], &one) : 0;
        if (error)
            return error;
        *ret_count += one;
    }
    return 0;
}

/* One more event for the counter of that device, which is made with its first. */
static int add_event(struct rapl_perf *rapl, const struct kj_source_env *env, const struct domain *domain,
                     uint64_t type, int cpu, const char *device)
{
    uint64_t config;
    uint32_t c = 0;
    while (c < rapl->count && strcmp(rapl->counters[c].device, device))
        c++;
    struct counter *counter = &rapl->counters[c];
    if (c == CHANNELS_MAX || rapl->fds_count == FDS_MAX)
        return -E2BIG;
    int error = read_event(env->root, domain, &config, &counter->uj_per_count);
    if (error)
        return error;
    int fd = open_event((uint32_t)type, config, cpu);
    if (fd < 0)
        return fd;
    if (c == rapl->count) {
        rapl->count++;
        counter->domain = domain;
        kj_text(counter->device, sizeof(counter->device), "%s", device);
    }
    rapl->counter_of_fd[rapl->fds_count] = c;
    rapl->fds[rapl->fds_count++] = fd;
    return 0;
}

static int add_channels(struct rapl_perf *rapl, const struct kj_source_env *env, struct kj_power *power)
{
    int error = 0;
    for (uint32_t c = 0; c < rapl->count && !error; c++) {
        struct counter *counter = &rapl->counters[c];
        const struct domain *domain = counter->domain;
        struct kj_channel channel = {.component = domain->component,
                                     .kind = KJ_ENERGY_UJ,
                                     .method = KJ_MEASURED,
                                     .gain_sd = domain->component == KJ_COMPONENT_DRAM ? 0.10 : 0.03,
                                     .period_ns = 976562};
        kj_text(channel.name, sizeof(channel.name), "%s", domain->name);
        kj_text(channel.model, sizeof(channel.model), "%s", env->cpu.model);
        kj_text(channel.device, sizeof(channel.device), "%s", counter->device);
        kj_text(channel.basis, sizeof(channel.basis),
                "RAPL counter through perf; gain 3 %% for packages, 10 %% for memory (1 sigma): an estimate, "
                "unmetered");
        if (!sum_counts(rapl, c, &counter->base)) /* what cannot be read is no channel */
            error = kj_power_add(power, c, &channel);
    }
    return error;
}

static void explain(const struct kj_source_env *env, int error, struct kj_source_status *status)
{
    char paranoid[32] = "unknown";
    switch (error) {
    case -ENOENT:
        kj_text(status->reason, sizeof(status->reason), "the kernel has no RAPL PMU (" PMUS "power)%s",
                env->cpu.virtual_machine ? ": this is a virtual machine, whose host keeps it back" : "");
        if (!env->cpu.virtual_machine)
            kj_text(status->remedy, sizeof(status->remedy), "sudo modprobe rapl");
        break;
    case -EACCES:
    case -EPERM:
        kj_root_line(env->root, paranoid, sizeof(paranoid), "/proc/sys/kernel/perf_event_paranoid");
        kj_text(status->reason, sizeof(status->reason),
                "permission denied: perf_event_paranoid is %s, and reading a package needs 0 or CAP_PERFMON",
                paranoid);
        kj_text(status->remedy, sizeof(status->remedy),
                "sudo sysctl kernel.perf_event_paranoid=0; or sudo setcap cap_perfmon+ep \"$(command -v "
                "kjoule)\"; "
                "in a container: --cap-add PERFMON");
        break;
    default:
        kj_text(status->reason, sizeof(status->reason), "RAPL PMU found, but it cannot be read: %s",
                strerror(-error));
    }
}

/* "package-0-die-1" of CPUs that read for one die each; of CPUs that read for their cores, the package. */
static void name_device(const struct kj_source_env *env, const struct domain *domain, int cpu,
                        unsigned *dies_of_package, char *ret_device, size_t size)
{
    uint64_t package = 0;
    char name[48];
    bool cores = !strcmp(domain->name, "cores");
    if (kj_root_number(env->root, &package, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id",
                       cpu) ||
        package >= KJ_CPUS_MAX)
        package = 0;
    kj_package_name(name, sizeof(name), (unsigned)package, cores ? 0 : dies_of_package[package]++);
    if (domain->once)
        kj_text(ret_device, size, "node");
    else
        kj_text(ret_device, size, "%s%.40s", domain->name, name + strlen("package"));
}

/* A sum that lacks a part is none. */
static void roll_back(struct rapl_perf *rapl, uint32_t count, uint32_t fds_count)
{
    while (rapl->fds_count > fds_count)
        close(rapl->fds[--rapl->fds_count]);
    rapl->count = count;
}

/* Of one domain, on each CPU that its PMU reads by. */
static int add_domain(struct rapl_perf *rapl, const struct kj_source_env *env, const struct domain *domain,
                      int *ret_readers)
{
    uint64_t type = 0;
    char mask[4096], device[64];
    int cpus[FDS_MAX], error = kj_root_number(env->root, &type, PMUS "%s/type", domain->pmu);
    if (!error)
        error = kj_root_line(env->root, mask, sizeof(mask), PMUS "%s/cpumask", domain->pmu);
    unsigned *dies = error ? NULL : calloc(KJ_CPUS_MAX, sizeof(*dies));
    if (!dies)
        return error ? error : -ENOMEM;
    uint32_t count = rapl->count, fds_count = rapl->fds_count;
    int readers = parse_cpus(mask, cpus, FDS_MAX), first_error = 0;
    for (int i = 0; i < readers && !(domain->once && i); i++) {
        name_device(env, domain, cpus[i], dies, device, sizeof(device));
        error = add_event(rapl, env, domain, type, cpus[i], device);
        first_error = first_error ? first_error : error;
    }
    free(dies);
    if (first_error && !strcmp(domain->name, "cores"))
        roll_back(rapl, count, fds_count);
    *ret_readers = readers;
    return first_error;
}

static int rapl_perf_open(const struct kj_source_env *env, struct kj_power *power,
                          struct kj_source_status *status, void **ret_state)
{
    struct rapl_perf *rapl = calloc(1, sizeof(*rapl));
    int readers = 0, ignored, first_error = 0;
    if (!rapl)
        return -ENOMEM;
    for (size_t d = 0; d < sizeof(domains) / sizeof(domains[0]); d++) {
        int error = add_domain(rapl, env, &domains[d], d ? &ignored : &readers);
        /* A PMU without memory or platform is no fault; the packages are what is wanted. */
        if (error && (d == 0 || error != -ENOENT) && !first_error)
            first_error = error;
    }
    int error = rapl->count ? add_channels(rapl, env, power) : first_error ? first_error : -ENODEV;
    if (error) {
        explain(env, error, status);
        rapl_perf_close(rapl);
        return error;
    }
    kj_text(status->reason, sizeof(status->reason), "%u RAPL counter%s of %d package%s", rapl->count,
            rapl->count == 1 ? "" : "s", readers, readers == 1 ? "" : "s");
    *ret_state = rapl;
    return 0;
}

static int rapl_perf_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    const struct rapl_perf *rapl = state;
    const struct counter *counter = &rapl->counters[slot];
    uint64_t count;
    int error = sum_counts(rapl, slot, &count);
    if (error)
        return error;
    *ret_value = (uint64_t)((long double)(count - counter->base) * counter->uj_per_count);
    return 0;
}

const struct kj_source_ops kj_source_rapl_perf = {
    .name = "rapl_perf", .open = rapl_perf_open, .read = rapl_perf_read, .close = rapl_perf_close};
