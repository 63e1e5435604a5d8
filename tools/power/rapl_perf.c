/* SPDX-License-Identifier: Apache-2.0
 *
 * rapl_perf.c - RAPL through the kernel's "power" PMU: 64-bit counts, no wraparound to mind. One event a
 * domain and package; RAPL events cannot be grouped.
 */
#include "power/source.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PMU "/sys/bus/event_source/devices/power"

enum { EVENTS_MAX = 128 };

static int system_perf_event_open(struct perf_event_attr *attr, pid_t pid, int cpu)
{
    long fd = syscall(SYS_perf_event_open, attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
    return fd < 0 ? -errno : (int)fd;
}

int (*kj_perf_event_open)(struct perf_event_attr *attr, pid_t pid, int cpu) = system_perf_event_open;

static const struct domain {
    const char *event, *name, *device_format;
    enum kj_component component;
} domains[] = {
    {"energy-pkg", "package", "package", KJ_COMPONENT_CPU},
    {"energy-ram", "dram", "dram", KJ_COMPONENT_DRAM},
    {"energy-psys", "psys", "node", KJ_COMPONENT_NODE},
};

struct rapl_perf {
    uint32_t count;
    struct event {
        int fd;
        double uj_per_count;
        uint64_t base;
    } events[EVENTS_MAX];
};

static int read_count(int fd, uint64_t *ret_count)
{
    ssize_t got = read(fd, ret_count, sizeof(*ret_count));
    return got == sizeof(*ret_count) ? 0 : got < 0 ? -errno : -EIO;
}

/* "event=0x02" and, on some PMUs, more terms; only the event matters for RAPL. */
static int read_event(const char *root, const char *name, uint64_t *ret_config, double *ret_uj_per_count)
{
    char line[128], *end;
    int error = kj_root_line(root, line, sizeof(line), PMU "/events/%s", name);
    if (error)
        return error;
    const char *term = strstr(line, "event=");
    if (!term)
        return -EPROTO;
    *ret_config = strtoull(term + 6, NULL, 0);
    error = kj_root_line(root, line, sizeof(line), PMU "/events/%s.scale", name);
    if (error)
        return error;
    double scale = strtod(line, &end);
    if (end == line || !(scale > 0))
        return -EPROTO;
    error = kj_root_line(root, line, sizeof(line), PMU "/events/%s.unit", name);
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
    for (uint32_t i = 0; rapl && i < rapl->count; i++)
        close(rapl->events[i].fd);
    free(rapl);
}

/* Opens one domain on the nth reader CPU. */
static int add_event(struct rapl_perf *rapl, const struct kj_source_env *env, struct kj_power *power,
                     const struct domain *domain, uint64_t type, int cpu, const char *package)
{
    uint64_t config;
    struct event *event = &rapl->events[rapl->count];
    if (rapl->count == EVENTS_MAX)
        return -E2BIG;
    int error = read_event(env->root, domain->event, &config, &event->uj_per_count);
    if (error)
        return error;
    event->fd = open_event((uint32_t)type, config, cpu);
    if (event->fd < 0)
        return event->fd;
    error = read_count(event->fd, &event->base);
    struct kj_channel channel = {.component = domain->component,
                                 .kind = KJ_ENERGY_UJ,
                                 .method = KJ_MEASURED,
                                 .gain_sd = domain->component == KJ_COMPONENT_DRAM ? 0.10 : 0.03,
                                 .period_ns = 976562};
    kj_text(channel.name, sizeof(channel.name), "%s", domain->name);
    kj_text(channel.model, sizeof(channel.model), "%s", env->cpu.model);
    if (domain->component == KJ_COMPONENT_NODE)
        kj_text(channel.device, sizeof(channel.device), "node");
    else
        kj_text(channel.device, sizeof(channel.device), "%s%.40s", domain->name, package + strlen("package"));
    kj_text(channel.basis, sizeof(channel.basis),
            "RAPL counter through perf; gain 3 %% for packages, 10 %% for memory (1 sigma): an estimate, "
            "unmetered");
    if (!error)
        error = kj_power_add(power, rapl->count, &channel);
    if (error)
        close(event->fd);
    else
        rapl->count++;
    return error;
}

static void explain(const struct kj_source_env *env, int error, struct kj_source_status *status)
{
    char paranoid[32] = "unknown";
    switch (error) {
    case -ENOENT:
        kj_text(status->reason, sizeof(status->reason), "the kernel has no RAPL PMU (" PMU ")%s",
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

static int rapl_perf_open(const struct kj_source_env *env, struct kj_power *power,
                          struct kj_source_status *status, void **ret_state)
{
    uint64_t type = 0;
    char mask[256];
    int cpus[64], error = kj_root_number(env->root, &type, PMU "/type");
    if (!error)
        error = kj_root_line(env->root, mask, sizeof(mask), PMU "/cpumask");
    if (error) {
        explain(env, error, status);
        return error;
    }
    struct rapl_perf *rapl = calloc(1, sizeof(*rapl));
    if (!rapl)
        return -ENOMEM;
    int readers = parse_cpus(mask, cpus, 64), first_error = -ENODEV;
    unsigned dies[KJ_CPUS_MAX / 16] = {0};
    for (int i = 0; i < readers; i++) {
        uint64_t package = 0;
        char name[48];
        if (kj_root_number(env->root, &package, "/sys/devices/system/cpu/cpu%d/topology/physical_package_id",
                           cpus[i]))
            package = 0;
        if (package >= sizeof(dies) / sizeof(dies[0]))
            continue;
        kj_package_name(name, sizeof(name), (unsigned)package, dies[package]++);
        for (size_t d = 0; d < sizeof(domains) / sizeof(domains[0]); d++) {
            if (domains[d].component == KJ_COMPONENT_NODE && i > 0)
                continue; /* psys counts on the first package alone; the others show 0 */
            error = add_event(rapl, env, power, &domains[d], type, cpus[i], name);
            if (error && error != -ENOENT && first_error == -ENODEV)
                first_error = error;
        }
    }
    if (!rapl->count) {
        explain(env, first_error, status);
        rapl_perf_close(rapl);
        return first_error;
    }
    kj_text(status->reason, sizeof(status->reason), "%u RAPL counter%s of %d package%s", rapl->count,
            rapl->count == 1 ? "" : "s", readers, readers == 1 ? "" : "s");
    *ret_state = rapl;
    return 0;
}

static int rapl_perf_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    struct event *event = &((struct rapl_perf *)state)->events[slot];
    uint64_t count;
    int error = read_count(event->fd, &count);
    if (error)
        return error;
    *ret_value = (uint64_t)((long double)(count - event->base) * event->uj_per_count);
    return 0;
}

const struct kj_source_ops kj_source_rapl_perf = {
    .name = "rapl_perf", .open = rapl_perf_open, .read = rapl_perf_read, .close = rapl_perf_close};
