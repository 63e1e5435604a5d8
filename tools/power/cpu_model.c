/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_model.c - the last resort for CPUs: power as a function of how busy each package is, from /proc/stat
 * and the part's thermal design power. Never better than a guess with bounds, and tagged so.
 *
 * /proc/stat counts in ticks of 10 ms, so utilisation over one reading interval is coarse. Energy is
 * therefore reckoned over windows of a second, each as power(mean utilisation) x time; inside the running
 * window the same formula is used up to now. It never falls back: with a concave curve P and P(0) > 0, t
 * P(busy/t) grows with t.
 */
#include "power/source.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct part {
    const char *name;
    uint16_t watts, threads;
} parts[] = {
#define PART(name, watts, threads) {name, watts, threads},
#include "power/cpu_parts.def"
#undef PART
};

/* Parts that the table does not know, by family. The table's own servers lie between 1.3 and 5.3 W a thread.
 */
static const struct {
    const char *name_part;
    double watts_per_thread;
} families[] = {
    {"EPYC", 2.4},         {"Xeon", 3.2}, {"Neoverse", 2.5}, {"Ryzen", 5.0},
    {"Threadripper", 4.0}, {"Core", 6.5}, {"", 4.0},
};

/* Shares of the full power at these utilisations. */
static const double loads[] = {0, 0.1, 0.5, 1};
enum { POINTS = sizeof(loads) / sizeof(loads[0]) };

static const struct curve {
    const char *pattern;
    double shares[POINTS];
    const char *source;
} curves[] = {
#define CURVE(pattern, idle, tenth, half, source) {pattern, {idle, tenth, half, 1}, source},
#include "power/cpu_curves.def"
#undef CURVE
};

static const struct curve *curve_of(const char *model_name)
{
    const struct curve *curve = curves;
    while (fnmatch(curve->pattern, model_name, 0)) /* the last fits all */
        curve++;
    return curve;
}

enum { PACKAGES_MAX = 64, LINE_BYTES = 160 };
#define WINDOW_NS KJ_NS_PER_S
#define FRESH_NS  KJ_NS_PER_MS /* channels of one round share one look at /proc/stat */

struct cpu_model {
    int fd;
    long tick_ns;
    char *text;
    size_t text_size;
    uint64_t looked_ns, window_ns; /* when /proc/stat was read last, and when the window began */
    uint16_t package_of_cpu[KJ_CPUS_MAX];
    uint32_t count;
    struct package {
        struct kj_cpu_model model;
        uint32_t number, cpus;
        uint64_t busy_ns, window_busy_ns;
        double settled_uj;
        uint64_t energy_uj;
    } packages[PACKAGES_MAX];
};

static bool names_part(const char *model_name, const char *part)
{
    const char *found = strstr(model_name, part);
    if (!found)
        return false;
    const char *end = found + strlen(part);
    if (*end == 'P')
        end++;
    return !*end || *end == ' ' || *end == '+';
}

void kj_cpu_model_of(const char *model_name, bool virtual_machine, uint32_t cpus,
                     struct kj_cpu_model *ret_model)
{
    const struct part *part = NULL;
    for (size_t i = 0; !part && i < sizeof(parts) / sizeof(parts[0]); i++)
        if (names_part(model_name, parts[i].name))
            part = &parts[i];
    const struct curve *curve = curve_of(model_name);
    memset(ret_model, 0, sizeof(*ret_model));
    ret_model->shares = curve->shares;
    if (part) {
        /* A guest sees a slice of the part; on bare metal fewer CPUs mean that their twins are switched off.
         */
        double share = virtual_machine && cpus < part->threads ? (double)cpus / part->threads : 1;
        ret_model->full_mw = 1000.0 * part->watts * share;
        ret_model->low_factor = virtual_machine ? 0.4 : 0.5;
        ret_model->high_factor = virtual_machine ? 1.8 : 1.5;
        kj_text(ret_model->basis, sizeof(ret_model->basis),
                "%s: %u W for %u threads, %.2f of it here; idle %.0f %% (%s); CPU time from /proc/stat",
                part->name, part->watts, part->threads, share, 100 * curve->shares[0], curve->source);
        return;
    }
    size_t family = 0;
    while (!strstr(model_name, families[family].name_part))
        family++;
    ret_model->full_mw = 1000.0 * families[family].watts_per_thread * cpus;
    ret_model->low_factor = 0.3;
    ret_model->high_factor = 2.2;
    kj_text(ret_model->basis, sizeof(ret_model->basis),
            "part not in the table: %.1f W a thread as %s, %u threads; idle %.0f %% (%s); CPU time from "
            "/proc/stat",
            families[family].watts_per_thread,
            families[family].name_part[0] ? families[family].name_part : "unknown parts", cpus,
            100 * curve->shares[0], curve->source);
}

/* Straight between the points. */
static double share_at(const double *shares, double utilisation)
{
    double u = utilisation > 0 ? utilisation < 1 ? utilisation : 1 : 0; /* a NaN counts as idle */
    size_t i = 1;
    while (u > loads[i])
        i++;
    double slope = (shares[i] - shares[i - 1]) / (loads[i] - loads[i - 1]);
    return shares[i - 1] + slope * (u - loads[i - 1]);
}

double kj_cpu_load_curve(const char *model_name, double utilisation)
{
    return share_at(curve_of(model_name)->shares, utilisation);
}

double kj_cpu_model_power_mw(const struct kj_cpu_model *model, double utilisation)
{
    return model->full_mw * share_at(model->shares, utilisation);
}

static struct package *find_package(struct cpu_model *model, uint32_t number)
{
    for (uint32_t i = 0; i < model->count; i++)
        if (model->packages[i].number == number)
            return &model->packages[i];
    return NULL;
}

static int read_text(struct cpu_model *model)
{
    size_t done = 0;
    while (done < model->text_size - 1) {
        ssize_t got = pread(model->fd, model->text + done, model->text_size - 1 - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        done += (size_t)got;
        model->text[done] = 0;
        if (!got || strstr(model->text, "\nintr")) /* what follows the CPUs is long and not wanted */
            break;
    }
    return 0;
}

/* "cpu3 user nice system idle iowait irq softirq steal guest guest_nice"; guest time is in user already, and
 * stolen time is another machine's. */
static void add_cpu_line(struct cpu_model *model, const char *line)
{
    unsigned cpu;
    unsigned long long user, nice, system, idle, iowait, irq, softirq;
    if (sscanf(line, "cpu%u %llu %llu %llu %llu %llu %llu %llu", &cpu, &user, &nice, &system, &idle, &iowait,
               &irq, &softirq) != 8 ||
        cpu >= KJ_CPUS_MAX)
        return;
    struct package *package = find_package(model, model->package_of_cpu[cpu]);
    if (!package)
        return;
    package->cpus++;
    package->busy_ns += (user + nice + system + irq + softirq) * (uint64_t)model->tick_ns;
}

static int look(struct cpu_model *model, uint64_t now_ns)
{
    int error = read_text(model);
    if (error)
        return error;
    uint64_t before[PACKAGES_MAX];
    for (uint32_t i = 0; i < model->count; i++) {
        before[i] = model->packages[i].busy_ns;
        model->packages[i].busy_ns = 0;
        model->packages[i].cpus = 0;
    }
    uint32_t lines = 0;
    for (char *line = model->text; line && *line;) {
        if (!strncmp(line, "cpu", 3) && isdigit((unsigned char)line[3])) {
            add_cpu_line(model, line);
            lines++;
        }
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    for (uint32_t i = 0; i < model->count; i++) /* a CPU taken offline takes its count along */
        if (model->packages[i].busy_ns < before[i])
            model->packages[i].busy_ns = before[i];
    model->looked_ns = now_ns;
    return lines ? 0 : -EPROTO;
}

/* Brings the energy of all packages up to now. */
static int advance(struct cpu_model *model)
{
    uint64_t now_ns = kj_power_now_ns();
    if (now_ns - model->looked_ns < FRESH_NS)
        return 0;
    int error = look(model, now_ns);
    if (error)
        return error;
    uint64_t elapsed_ns = now_ns - model->window_ns;
    bool settle = elapsed_ns >= WINDOW_NS;
    for (uint32_t i = 0; i < model->count; i++) {
        struct package *package = &model->packages[i];
        double offered_ns = (double)elapsed_ns * (package->cpus ? package->cpus : 1);
        double busy = (double)(package->busy_ns - package->window_busy_ns) / offered_ns;
        /* mW x ns = 1e-12 J = 1e-6 uJ */
        double window_uj = kj_cpu_model_power_mw(&package->model, busy) * (double)elapsed_ns * 1e-6;
        uint64_t energy_uj = (uint64_t)(package->settled_uj + window_uj);
        if (energy_uj > package->energy_uj)
            package->energy_uj = energy_uj;
        if (settle) {
            package->settled_uj += window_uj;
            package->window_busy_ns = package->busy_ns;
        }
    }
    if (settle)
        model->window_ns = now_ns;
    return 0;
}

static void cpu_model_close(void *state)
{
    struct cpu_model *model = state;
    if (!model)
        return;
    if (model->fd >= 0)
        close(model->fd);
    free(model->text);
    free(model);
}

static int add_packages(struct cpu_model *model, const struct kj_source_env *env, struct kj_power *power)
{
    for (uint32_t i = 0; i < model->count; i++) {
        struct package *package = &model->packages[i];
        kj_cpu_model_of(env->cpu.model, env->cpu.virtual_machine, package->cpus, &package->model);
        package->window_busy_ns = package->busy_ns;
        struct kj_channel channel = {.component = KJ_COMPONENT_CPU,
                                     .kind = KJ_ENERGY_UJ,
                                     .method = KJ_MODELLED,
                                     .low_factor = package->model.low_factor,
                                     .high_factor = package->model.high_factor};
        kj_text(channel.name, sizeof(channel.name), "utilisation_model");
        kj_package_name(channel.device, sizeof(channel.device), package->number, 0);
        kj_text(channel.model, sizeof(channel.model), "%s", env->cpu.model);
        kj_text(channel.basis, sizeof(channel.basis), "%s", package->model.basis);
        int error = kj_power_add(power, i, &channel);
        if (error)
            return error;
    }
    return 0;
}

static int prepare(struct cpu_model *model, const struct kj_source_env *env, struct kj_power *power)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/proc/stat", env->root) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    model->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (model->fd < 0)
        return -errno;
    long ticks = sysconf(_SC_CLK_TCK);
    model->tick_ns = KJ_NS_PER_S / (ticks > 0 ? ticks : 100);
    uint32_t cpus = env->cpu.cpus ? env->cpu.cpus : 1;
    model->text_size = ((size_t)cpus + 16) * LINE_BYTES;
    model->text = malloc(model->text_size);
    if (!model->text)
        return -ENOMEM;
    memcpy(model->package_of_cpu, env->cpu.package_of_cpu, sizeof(model->package_of_cpu));
    for (uint32_t cpu = 0; cpu < KJ_CPUS_MAX && cpu < cpus; cpu++)
        if (!find_package(model, model->package_of_cpu[cpu]) && model->count < PACKAGES_MAX)
            model->packages[model->count++].number = model->package_of_cpu[cpu];
    model->window_ns = kj_power_now_ns();
    int error = look(model, model->window_ns);
    return error ? error : add_packages(model, env, power);
}

static int cpu_model_open(const struct kj_source_env *env, struct kj_power *power,
                          struct kj_source_status *status, void **ret_state)
{
    struct cpu_model *model = calloc(1, sizeof(*model));
    if (!model)
        return -ENOMEM;
    model->fd = -1;
    int error = prepare(model, env, power);
    if (error) {
        kj_text(status->reason, sizeof(status->reason), "/proc/stat cannot be read: %s", strerror(-error));
        cpu_model_close(model);
        return error;
    }
    kj_text(status->reason, sizeof(status->reason),
            "modelled, %.1f to %.1f times: %s, %u CPU%s, full load %.0f W",
            model->packages[0].model.low_factor, model->packages[0].model.high_factor,
            env->cpu.model[0] ? env->cpu.model : "unknown processor", env->cpu.cpus,
            env->cpu.cpus == 1 ? "" : "s", model->packages[0].model.full_mw * model->count / 1000);
    *ret_state = model;
    return 0;
}

static int cpu_model_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    struct cpu_model *model = state;
    int error = advance(model);
    *ret_value = model->packages[slot].energy_uj;
    return error;
}

const struct kj_source_ops kj_source_cpu_model = {
    .name = "cpu_model", .open = cpu_model_open, .read = cpu_model_read, .close = cpu_model_close};
