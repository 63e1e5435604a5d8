/* SPDX-License-Identifier: Apache-2.0
 *
 * rapl_powercap.c - RAPL through /sys/class/powercap. Its counters wrap after minutes, at
 * max_energy_range_uj. The same zone may appear twice, under intel-rapl and intel-rapl-mmio: the first of a
 * name is taken.
 */
#include "power/source.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POWERCAP "/sys/class/powercap"

enum { ZONES_MAX = 64 };

struct rapl_powercap {
    uint32_t count;
    struct zone {
        int fd;
        uint64_t range_uj;
        struct kj_unwrap unwrap;
        char device[64];
    } zones[ZONES_MAX];
};

struct search {
    const struct kj_source_env *env;
    struct kj_power *power;
    struct rapl_powercap *rapl;
    const char *prefix; /* zones of this controller */
    uint32_t seen;
    int error; /* the first that kept a zone from us */
    char error_zone[64];
};

static int open_energy(const char *root, const char *folder)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s" POWERCAP "/%s/energy_uj", root, folder) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static void drop_die_zero(char *name)
{
    size_t length = strlen(name);
    if (length > 6 && !strcmp(name + length - 6, "-die-0"))
        name[length - 6] = 0;
}

/* Names the device of a zone. False for zones that lie inside another: core, uncore. */
static bool classify(const char *root, const char *folder, struct kj_channel *channel)
{
    char name[48], package[48];
    if (kj_root_line(root, name, sizeof(name), POWERCAP "/%s/name", folder))
        return false;
    drop_die_zero(name);
    kj_text(channel->name, sizeof(channel->name), "%s", name);
    if (!strncmp(name, "package-", 8)) {
        kj_text(channel->name, sizeof(channel->name), "package");
        kj_text(channel->device, sizeof(channel->device), "%s", name);
        channel->component = KJ_COMPONENT_CPU;
        return true;
    }
    if (!strcmp(name, "psys")) {
        kj_text(channel->device, sizeof(channel->device), "node");
        channel->component = KJ_COMPONENT_NODE;
        return true;
    }
    const char *last = strrchr(folder, ':');
    if (strcmp(name, "dram") || !last ||
        kj_root_line(root, package, sizeof(package), POWERCAP "/%.*s/name", (int)(last - folder), folder))
        return false;
    drop_die_zero(package);
    if (strncmp(package, "package-", 8))
        return false;
    kj_text(channel->device, sizeof(channel->device), "dram-%s", package + 8);
    channel->component = KJ_COMPONENT_DRAM;
    return true;
}

static int refuse_zone(struct search *search, const char *zone, int error)
{
    if (!search->error) {
        search->error = error;
        kj_text(search->error_zone, sizeof(search->error_zone), "%s", zone);
    }
    return 0;
}

static int visit_zone(void *context, const char *folder)
{
    struct search *search = context;
    struct rapl_powercap *rapl = search->rapl;
    struct kj_channel channel = {.kind = KJ_ENERGY_UJ, .method = KJ_MEASURED, .period_ns = 976562};
    size_t prefix = strlen(search->prefix);
    if (strncmp(folder, search->prefix, prefix) || folder[prefix] != ':' || rapl->count == ZONES_MAX ||
        !classify(search->env->root, folder, &channel))
        return 0;
    for (uint32_t i = 0; i < rapl->count; i++)
        if (!strcmp(rapl->zones[i].device, channel.device))
            return 0;
    search->seen++;
    struct zone *zone = &rapl->zones[rapl->count];
    memset(zone, 0, sizeof(*zone));
    uint64_t raw;
    int error =
        kj_root_number(search->env->root, &zone->range_uj, POWERCAP "/%s/max_energy_range_uj", folder);
    zone->fd = error ? error : open_energy(search->env->root, folder);
    if (zone->fd < 0)
        return refuse_zone(search, channel.device, zone->fd);
    error = kj_fd_number(zone->fd, &raw);
    if (error) {
        close(zone->fd);
        return refuse_zone(search, channel.device, error);
    }
    kj_unwrap(&zone->unwrap, raw, zone->range_uj);
    kj_text(zone->device, sizeof(zone->device), "%s", channel.device);
    kj_text(channel.model, sizeof(channel.model), "%s", search->env->cpu.model);
    channel.gain_sd = channel.component == KJ_COMPONENT_DRAM ? 0.10 : 0.03;
    kj_text(channel.basis, sizeof(channel.basis),
            "RAPL counter through powercap; gain 3 %% for packages, 10 %% for memory (1 sigma): an "
            "estimate, unmetered");
    error = kj_power_add(search->power, rapl->count, &channel);
    if (error) {
        close(zone->fd);
        return error;
    }
    rapl->count++;
    return 0;
}

static void rapl_powercap_close(void *state)
{
    struct rapl_powercap *rapl = state;
    for (uint32_t i = 0; rapl && i < rapl->count; i++)
        close(rapl->zones[i].fd);
    free(rapl);
}

static void explain(const struct search *search, int folder_error, struct kj_source_status *status)
{
    bool virtual_machine = search->env->cpu.virtual_machine;
    if (search->error == -EACCES || search->error == -EPERM) {
        kj_text(status->reason, sizeof(status->reason),
                "permission denied: energy_uj of %s is for root alone since Linux 5.10 (CVE-2020-8694)",
                search->error_zone);
        kj_text(status->remedy, sizeof(status->remedy),
                "sudo chmod a+r " POWERCAP "/*/energy_uj (until the next boot)");
    } else if (search->error) {
        kj_text(status->reason, sizeof(status->reason), "energy_uj of %s cannot be read: %s",
                search->error_zone, strerror(-search->error));
    } else if (folder_error == -ENOENT || !search->seen) {
        kj_text(status->reason, sizeof(status->reason), "no RAPL zone under " POWERCAP "%s",
                virtual_machine ? ": this is a virtual machine, whose host keeps it back"
                                : " (not loaded, or masked in this container)");
        if (!virtual_machine)
            kj_text(status->remedy, sizeof(status->remedy),
                    "sudo modprobe intel_rapl_msr; in a container: -v " POWERCAP ":" POWERCAP ":ro");
    } else {
        kj_text(status->reason, sizeof(status->reason), POWERCAP ": %s", strerror(-folder_error));
    }
}

static int rapl_powercap_open(const struct kj_source_env *env, struct kj_power *power,
                              struct kj_source_status *status, void **ret_state)
{
    static const char *const controllers[] = {"intel-rapl", "intel-rapl-mmio"};
    struct search search = {.env = env, .power = power, .rapl = calloc(1, sizeof(*search.rapl))};
    if (!search.rapl)
        return -ENOMEM;
    int error = 0;
    for (size_t i = 0; !error && i < sizeof(controllers) / sizeof(controllers[0]); i++) {
        search.prefix = controllers[i];
        error = kj_root_each(env->root, POWERCAP, visit_zone, &search);
    }
    if (error == -ENOMEM || !search.rapl->count) {
        explain(&search, error, status);
        rapl_powercap_close(search.rapl);
        return error == -ENOMEM ? error : search.error ? search.error : -ENODEV;
    }
    int used = snprintf(status->reason, sizeof(status->reason), "%u RAPL zone%s", search.rapl->count,
                        search.rapl->count == 1 ? "" : "s");
    if (search.error)
        kj_text(status->reason + used, sizeof(status->reason) - (size_t)used, "; %s refuses: %s",
                search.error_zone, strerror(-search.error));
    *ret_state = search.rapl;
    return 0;
}

static int rapl_powercap_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    struct zone *zone = &((struct rapl_powercap *)state)->zones[slot];
    uint64_t raw;
    int error = kj_fd_number(zone->fd, &raw);
    if (error)
        return error;
    *ret_value = kj_unwrap(&zone->unwrap, raw, zone->range_uj);
    return 0;
}

const struct kj_source_ops kj_source_rapl_powercap = {.name = "rapl_powercap",
                                                      .open = rapl_powercap_open,
                                                      .read = rapl_powercap_read,
                                                      .close = rapl_powercap_close};
