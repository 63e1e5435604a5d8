/* SPDX-License-Identifier: Apache-2.0
 *
 * hwmon.c - the few hwmon drivers whose reading is known to be of a whole node or package. An unknown
 * driver's watts may be those of any rail, so it is left alone.
 */
#include "power/source.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HWMON "/sys/class/hwmon"

enum { SENSORS_MAX = 32 };

/* label: file that must hold label_start, "" for none. On Grace the CPU socket is taken alone: "Grace Power"
 * holds its memory too. */
static const struct known {
    const char *driver, *value_file, *label_file, *label_start, *name;
    enum kj_component component;
    const char *basis;
} known_sensors[] = {
    {"power_meter", "power1_average", "power1_oem_info", "CPU Power Socket", "socket_power", KJ_COMPONENT_CPU,
     "Grace socket power; gain 5 % (1 sigma): an estimate"},
    {"power_meter", "power1_average", "power1_oem_info", "Module Power Socket", "module_power",
     KJ_COMPONENT_NODE, "Grace module, GPU and memory included; gain 5 % (1 sigma): an estimate"},
    {"power_meter", "power1_average", "", "", "acpi_power_meter", KJ_COMPONENT_NODE,
     "ACPI 4.0 power meter of the platform; gain 5 % (1 sigma): an estimate"},
    {"fam15h_power", "power1_average", "", "", "package_power", KJ_COMPONENT_CPU,
     "AMD family 15h package power; gain 5 % (1 sigma): an estimate"},
    {"corsairpsu", "power1_input", "power1_label", "power total", "psu_power", KJ_COMPONENT_NODE,
     "power supply's own total; gain 5 % (1 sigma): an estimate"},
};

struct hwmon {
    uint32_t count;
    int fds[SENSORS_MAX];
    uint32_t packages, nodes;
};

struct search {
    const struct kj_source_env *env;
    struct kj_power *power;
    struct hwmon *hwmon;
    uint32_t seen;
    int error;
};

/* *ret_rest: what follows label_start, such as the number of the socket. */
static bool label_fits(const char *root, const char *folder, const struct known *known, char *ret_rest,
                       size_t size)
{
    char label[96];
    ret_rest[0] = 0;
    int error = kj_root_line(root, label, sizeof(label), HWMON "/%s/%s", folder,
                             known->label_file[0] ? known->label_file : "power1_oem_info");
    if (!known->label_file[0]) /* a plain meter; one that carries a rail's name is another row's */
        return error || !strstr(label, "Socket");
    size_t start = strlen(known->label_start);
    if (error || strncmp(label, known->label_start, start))
        return false;
    kj_text(ret_rest, size, "%s", label + start);
    return true;
}

static int open_value(const char *root, const char *folder, const char *file)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s" HWMON "/%s/%s", root, folder, file) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

static int add_sensor(struct search *search, const char *folder, const struct known *known, const char *rest)
{
    struct hwmon *hwmon = search->hwmon;
    if (hwmon->count == SENSORS_MAX)
        return 0;
    search->seen++;
    int fd = open_value(search->env->root, folder, known->value_file);
    uint64_t uw = 0;
    int error = fd < 0 ? fd : kj_fd_number(fd, &uw);
    if (!error && !uw)
        error = -ENODATA; /* a meter that shows nothing is not wired */
    if (error) {
        search->error = error;
        if (fd >= 0)
            close(fd);
        return 0;
    }
    struct kj_channel channel = {
        .component = known->component, .kind = KJ_POWER_MW, .method = KJ_MEASURED, .gain_sd = 0.05};
    kj_text(channel.name, sizeof(channel.name), "%s", known->name);
    if (known->component == KJ_COMPONENT_CPU)
        kj_package_name(channel.device, sizeof(channel.device),
                        *rest ? (unsigned)strtoul(rest, NULL, 10) : hwmon->packages++, 0);
    else if (hwmon->nodes++ == 0)
        kj_text(channel.device, sizeof(channel.device), "node");
    else
        kj_text(channel.device, sizeof(channel.device), "node-%u", hwmon->nodes - 1);
    uint64_t interval_ms;
    if (!kj_root_number(search->env->root, &interval_ms, HWMON "/%s/power1_average_interval", folder) &&
        interval_ms < 100000)
        channel.window_ns = interval_ms * (uint64_t)KJ_NS_PER_MS;
    kj_text(channel.basis, sizeof(channel.basis), "%s", known->basis);
    error = kj_power_add(search->power, hwmon->count, &channel);
    if (error) {
        close(fd);
        return error;
    }
    hwmon->fds[hwmon->count++] = fd;
    return 0;
}

static int visit(void *context, const char *folder)
{
    struct search *search = context;
    char driver[48];
    char rest[32];
    if (kj_root_line(search->env->root, driver, sizeof(driver), HWMON "/%s/name", folder))
        return 0;
    for (size_t i = 0; i < sizeof(known_sensors) / sizeof(known_sensors[0]); i++)
        if (!strcmp(driver, known_sensors[i].driver) &&
            label_fits(search->env->root, folder, &known_sensors[i], rest, sizeof(rest)))
            return add_sensor(search, folder, &known_sensors[i], rest);
    return 0;
}

static void hwmon_close(void *state)
{
    struct hwmon *hwmon = state;
    for (uint32_t i = 0; hwmon && i < hwmon->count; i++)
        close(hwmon->fds[i]);
    free(hwmon);
}

static int hwmon_open(const struct kj_source_env *env, struct kj_power *power,
                      struct kj_source_status *status, void **ret_state)
{
    struct search search = {.env = env, .power = power, .hwmon = calloc(1, sizeof(struct hwmon))};
    if (!search.hwmon)
        return -ENOMEM;
    int error = kj_root_each(env->root, HWMON, visit, &search);
    if (!search.hwmon->count || error == -ENOMEM) {
        hwmon_close(search.hwmon);
        if (search.error) {
            kj_text(status->reason, sizeof(status->reason),
                    "a power meter is there, but gives no reading: %s", strerror(-search.error));
            if (search.error == -EACCES)
                kj_text(status->remedy, sizeof(status->remedy),
                        "sudo chmod a+r " HWMON "/*/power1_* (until the next boot)");
        } else {
            kj_text(status->reason, sizeof(status->reason),
                    "no meter of a whole node or package under " HWMON);
            if (!env->cpu.virtual_machine)
                kj_text(status->remedy, sizeof(status->remedy),
                        "sudo modprobe acpi_power_meter (servers that have one)");
        }
        return error == -ENOMEM ? error : search.error ? search.error : -ENODEV;
    }
    kj_text(status->reason, sizeof(status->reason), "%u power meter%s", search.hwmon->count,
            search.hwmon->count == 1 ? "" : "s");
    *ret_state = search.hwmon;
    return 0;
}

static int hwmon_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    uint64_t uw;
    int error = kj_fd_number(((struct hwmon *)state)->fds[slot], &uw);
    if (error)
        return error;
    *ret_value = uw / 1000;
    return 0;
}

const struct kj_source_ops kj_source_hwmon = {
    .name = "hwmon", .open = hwmon_open, .read = hwmon_read, .close = hwmon_close};
