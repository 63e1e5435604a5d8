/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_share.c - idle and dynamic energy of a package, and this run's part of each.
 */
#include "account/cpu_share.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WORTH_BY_TIME   2.5
#define WORTH_BY_CYCLES 1.6
#define WINDOW_NS       1e9
#define SPREAD_NEEDED   0.15 /* of utilisation among windows, to tell idle power from their power */

static const struct kj_series_channel *find_channel(const struct kj_series *series, const char *source,
                                                    const char *name)
{
    for (size_t i = 0; series && i < series->count; i++)
        if (!strcmp(series->channels[i].channel.source, source) &&
            !strcmp(series->channels[i].channel.name, name))
            return &series->channels[i];
    return NULL;
}

/* Growth of a cumulative channel over the run, scaled to its whole length. Negative: not known. */
static double growth(const struct kj_series_channel *c, double run_ns)
{
    if (!c || c->count < 2)
        return -1;
    double span_ns = (double)(c->points[c->count - 1].t_ns - c->points[0].t_ns);
    double grown = (double)c->points[c->count - 1].value - (double)c->points[0].value;
    return span_ns > 0 ? grown * fmax(1, run_ns / span_ns) : -1;
}

static double last_value(const struct kj_series_channel *c)
{
    return c && c->count ? (double)c->points[c->count - 1].value : 0;
}

static void find_rule(struct kj_account *a, struct kj_cpu_use *use)
{
    double online = a->run.cores_online ? a->run.cores_online : 1, cores = a->run.cores_allowed;
    if (a->run.cgroup_cpu_quota > 0 && a->run.cgroup_cpu_quota < cores)
        cores = a->run.cgroup_cpu_quota;
    use->reserved = cores > 0 ? fmin(1, cores / online) : 1;
    use->is_reservation = use->reserved < 0.999 || (a->run.job_kind && !strcmp(a->run.job_kind, "slurm"));
    use->rule = a->run.idle_rule;
    if (use->rule == KJ_IDLE_AUTO)
        use->rule = use->is_reservation ? KJ_IDLE_CORES : KJ_IDLE_CPU;
}

void kj_cpu_use_find(struct kj_account *a, struct kj_cpu_use *ret_use)
{
    struct kj_cpu_use use = {
        .run_ns = (double)(a->end_ns - a->start_ns), .others_ns = -1, .cycles_share = NAN};
    double cores = a->run.cores_online ? a->run.cores_online : 1;
    double probe_ns = last_value(find_channel(a->series, "probe", "tree"));
    double others_ns = growth(find_channel(a->series, "probe", "others"), use.run_ns);
    double node_ns = growth(find_channel(a->series, "proc", "node"), use.run_ns);
    double cycles = growth(find_channel(a->series, "probe", "tree_cycles"), use.run_ns),
           all_cycles = growth(find_channel(a->series, "probe", "all_cycles"), use.run_ns);
    use.tree_ns = fmax((double)a->run.tree_cpu_ns, last_value(find_channel(a->series, "proc", "tree")));
    use.tree_ns = fmax(use.tree_ns, probe_ns);
    use.by_probe = others_ns >= 0;
    if (use.by_probe)
        use.others_ns = others_ns;
    else if (node_ns >= 0)
        use.others_ns = fmax(0, node_ns - use.tree_ns); /* both count in ticks */
    if (cycles >= 0 && all_cycles > 0)
        use.cycles_share = fmin(1, cycles / all_cycles);
    if (use.run_ns > 0)
        use.busy = fmin(1, (use.tree_ns + fmax(0, use.others_ns)) / (use.run_ns * cores));
    find_rule(a, &use);
    *ret_use = use;
}

/* The value of a cumulative channel at a time, between its points. */
static double value_at(const struct kj_series_channel *c, double t_ns, size_t *at)
{
    while (*at + 2 < c->count && (double)c->points[*at + 1].t_ns < t_ns)
        ++*at;
    const struct kj_series_point *p = &c->points[*at], *q = &c->points[*at + 1];
    double length_ns = (double)(q->t_ns - p->t_ns);
    double part = length_ns > 0 ? (t_ns - (double)p->t_ns) / length_ns : 0;
    return (double)p->value + ((double)q->value - (double)p->value) * fmax(0, fmin(1, part));
}

struct idle_power {
    double uw, low_uw, high_uw; /* uJ a second */
    bool fitted;
};

/* Power against utilisation of the machine over windows of a second, as a straight line: what it says of
 * utilisation 0 is the idle power, if the windows differ enough to tell. */
static bool fit_idle(const struct kj_account *a, const struct kj_series_channel *energy,
                     struct idle_power *ret_idle)
{
    const struct kj_series_channel *busy = find_channel(a->series, "proc", "node");
    if (energy->channel.kind != KJ_ENERGY_UJ || energy->count < 4 || !busy || busy->count < 4)
        return false;
    double cores = a->run.cores_online ? a->run.cores_online : 1, n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0,
           syy = 0;
    double lowest_u = 1, highest_u = 0, lowest_uw = INFINITY;
    size_t at_energy = 0, at_busy = 0;
    double start_ns = fmax((double)energy->points[0].t_ns, (double)busy->points[0].t_ns);
    double end_ns =
        fmin((double)energy->points[energy->count - 1].t_ns, (double)busy->points[busy->count - 1].t_ns);
    double uj = value_at(energy, start_ns, &at_energy), ns = value_at(busy, start_ns, &at_busy);
    for (double t_ns = start_ns + WINDOW_NS; t_ns <= end_ns; t_ns += WINDOW_NS) {
        double next_uj = value_at(energy, t_ns, &at_energy), next_ns = value_at(busy, t_ns, &at_busy);
        double u = fmax(0, fmin(1, (next_ns - ns) / (WINDOW_NS * cores))), uw = next_uj - uj;
        n++, sx += u, sy += uw, sxx += u * u, sxy += u * uw, syy += uw * uw;
        lowest_u = fmin(lowest_u, u), highest_u = fmax(highest_u, u), lowest_uw = fmin(lowest_uw, uw);
        uj = next_uj, ns = next_ns;
    }
    double spread = n * sxx - sx * sx;
    if (n < 5 || highest_u - lowest_u < SPREAD_NEEDED || spread <= 0)
        return false;
    double slope = (n * sxy - sx * sy) / spread, level = (sy - slope * sx) / n;
    double residual = fmax(0, syy - level * sy - slope * sxy) / (n - 2);
    double sd = sqrt(residual * sxx / spread);
    if (slope <= 0 || level <= 0)
        return false;
    level = fmin(level, lowest_uw);
    *ret_idle =
        (struct idle_power){level, fmax(0, level - KJ_Z90 * sd), fmin(lowest_uw, level + KJ_Z90 * sd), true};
    return true;
}

/* Where the run's own windows cannot tell: the models' curve at the mean utilisation, and wide bounds. */
static struct idle_power guess_idle(const struct kj_cpu_use *use, const char *model_name, double mean_uw,
                                    bool modelled)
{
    double part = kj_cpu_load_curve(model_name, 0) / kj_cpu_load_curve(model_name, use->busy);
    struct idle_power idle = {.uw = mean_uw * part, .low_uw = mean_uw * part * 0.4, .high_uw = mean_uw};
    idle.high_uw = fmin(mean_uw, idle.uw * 3); /* servers idle at up to 0.4 of their full power */
    if (modelled)
        idle.low_uw = idle.high_uw = idle.uw; /* the model's own bounds hold that */
    return idle;
}

/* s of the energy if all CPU-seconds were worth the same; here one of this run's is worth w of another's. */
static double weighted(double s, double w)
{
    return s > 0 ? s * w / (s * w + 1 - s) : 0;
}

static double idle_share(const struct kj_cpu_use *use, enum kj_idle_rule rule, double time_share, bool owner)
{
    switch (rule) {
    case KJ_IDLE_CORES:
        return owner || use->reserved < 0.999 ? use->reserved : 0;
    case KJ_IDLE_ALL:
        return owner ? 1 : 0;
    case KJ_IDLE_NONE:
        return 0;
    default:
        return time_share;
    }
}

static void describe(const struct kj_cpu_use *use, const struct kj_cpu_split *split, bool fitted, bool cycles,
                     bool modelled, char *ret_text, size_t size)
{
    static const char *const rules[] = {[KJ_IDLE_AUTO] = "",
                                        [KJ_IDLE_CORES] = "cores that the run may use",
                                        [KJ_IDLE_CPU] = "CPU time",
                                        [KJ_IDLE_ALL] = "wish, all of it",
                                        [KJ_IDLE_NONE] = "wish, none of it"};
    double whole_uj = split->idle_uj + split->dynamic_uj;
    snprintf(ret_text, size,
             "%s: %.2f s of this run's processes, %.2f s of all (%s); idle %.0f %% of the energy (%s), by %s",
             cycles ? "cycles" : "CPU time", use->tree_ns / 1e9,
             (use->tree_ns + fmax(0, use->others_ns)) / 1e9, use->by_probe ? "kjoule-probe" : "/proc",
             whole_uj > 0 ? 100 * split->idle_uj / whole_uj : 0,
             modelled ? "modelled"
             : fitted ? "fitted"
                      : "guessed",
             rules[use->rule]);
}

void kj_cpu_split(const struct kj_account *a, const struct kj_cpu_use *use,
                  const struct kj_series_channel *channel, double total_uj, bool owner,
                  struct kj_cpu_split *ret_split)
{
    struct kj_cpu_split split = {0};
    bool modelled = channel->channel.method == KJ_MODELLED, cycles = !isnan(use->cycles_share);
    double run_s = use->run_ns / 1e9, mean_uw = run_s > 0 ? total_uj / run_s : 0;
    struct idle_power idle;
    if (modelled || !fit_idle(a, channel, &idle))
        idle = guess_idle(use, channel->channel.model, mean_uw, modelled);
    idle.high_uw = fmin(idle.high_uw, mean_uw);
    idle.uw = fmin(idle.uw, idle.high_uw);
    idle.low_uw = fmin(idle.low_uw, idle.uw);
    double busy_ns = use->tree_ns + fmax(0, use->others_ns);
    double time_share = busy_ns > 0 ? fmin(1, use->tree_ns / busy_ns) : 0;
    double share = cycles ? use->cycles_share : time_share, worth = cycles ? WORTH_BY_CYCLES : WORTH_BY_TIME;
    split.idle_uj = idle.uw * run_s;
    split.dynamic_uj = fmax(0, total_uj - split.idle_uj);
    double own = idle_share(use, use->rule, time_share, owner);
    split.own_idle_uj = own * split.idle_uj;
    split.own_dynamic_uj = share * split.dynamic_uj;
    split.low = INFINITY;
    for (int i = 0; i < 4 && total_uj > 0; i++) {
        /* Idle power and the worth of a CPU-second err apart; the rule for idle is a choice, not an error,
         * but where it was not made by the user the other choices are bounds. */
        double idle_uj = (i & 1 ? idle.low_uw : idle.high_uw) * run_s;
        double dynamic_share = weighted(share, i & 2 ? worth : 1 / worth);
        double least = own, most = own;
        if (a->run.idle_rule == KJ_IDLE_AUTO) {
            least = fmin(own, time_share);
            most = fmax(own, idle_share(use, KJ_IDLE_CORES, time_share, owner));
        }
        split.low = fmin(split.low, (least * idle_uj + dynamic_share * (total_uj - idle_uj)) / total_uj);
        split.high = fmax(split.high, (most * idle_uj + dynamic_share * (total_uj - idle_uj)) / total_uj);
    }
    if (!(split.low <= 1))
        split.low = 0;
    describe(use, &split, idle.fitted, cycles, modelled, split.basis, sizeof(split.basis));
    *ret_split = split;
}
