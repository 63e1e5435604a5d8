/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_phase_lines.c - phases of a training on the CPU that kjoule-probe saw by uprobes: how long, and what
 * the packages drew for this run meanwhile. Phases that enclose each other go to the inner one's line; where
 * several threads are in a phase at once, the time counts once.
 */
#include "account/cpu_lines.h"

#include "folder/cpu_phases.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WORTH_WITHIN 1.6 /* power of one phase against another's inside one interval of the sensor */

struct edge {
    uint64_t t_ns;
    int32_t step; /* +1 begins, -1 ends */
    enum kj_cpu_phase phase;
};

static int by_time(const void *a, const void *b)
{
    const struct edge *x = a, *y = b;
    if (x->t_ns != y->t_ns)
        return x->t_ns < y->t_ns ? -1 : 1;
    return x->step - y->step; /* an end before a beginning at the same moment */
}

/* The course of the run's CPU energy: 0 at its start, 1 at its end. */
static double course(const struct kj_account *a, const struct kj_series_channel *c, double t_ns)
{
    double start_ns = (double)a->start_ns, end_ns = (double)a->end_ns;
    double even = end_ns > start_ns ? (t_ns - start_ns) / (end_ns - start_ns) : 0;
    if (!c || c->channel.kind != KJ_ENERGY_UJ || c->count < 2)
        return even;
    double first = (double)c->points[0].value, whole = (double)c->points[c->count - 1].value - first;
    size_t low = 0, high = c->count - 1;
    if (whole <= 0 || t_ns <= (double)c->points[0].t_ns || t_ns >= (double)c->points[high].t_ns)
        return whole <= 0 ? even : t_ns <= (double)c->points[0].t_ns ? 0 : 1;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if ((double)c->points[middle].t_ns <= t_ns)
            low = middle;
        else
            high = middle;
    }
    const struct kj_series_point *p = &c->points[low], *q = &c->points[high];
    double length_ns = (double)(q->t_ns - p->t_ns);
    double value =
        (double)p->value +
        (length_ns > 0 ? ((double)q->value - (double)p->value) * (t_ns - (double)p->t_ns) / length_ns : 0);
    return (value - first) / whole;
}

/* What is open of one phase. */
struct opened {
    int32_t count;
    uint64_t last_ns; /* when one last began */
};

/* The innermost of those that are open is the one that began last: an optimizer may evaluate by itself and
 * run backward inside its step, or backward may run an optimizer for each gradient that is done. */
static int innermost(const struct opened *open)
{
    int found = -1;
    for (int i = 0; i < KJ_CPU_PHASES; i++)
        if (open[i].count > 0 && (found < 0 || open[i].last_ns >= open[found].last_ns))
            found = i;
    return found;
}

static struct kj_energy phase_energy(const struct kj_cpu_sums *sums, double part, int64_t uj)
{
    double all_uj = (double)(sums->own_dynamic_uj + sums->own_idle_uj), w = WORTH_WITHIN;
    if (!sums->known)
        return (struct kj_energy){0};
    struct kj_energy energy = {.known = true,
                               .method = sums->method == KJ_MODELLED ? KJ_MODELLED : KJ_ESTIMATED,
                               .uj = uj,
                               .low_uj = (int64_t)floor(all_uj * sums->low * part / (part + (1 - part) * w)),
                               .high_uj =
                                   (int64_t)ceil(all_uj * sums->high * part * w / (part * w + 1 - part))};
    energy.low_uj = energy.low_uj < uj ? energy.low_uj : uj;
    energy.high_uj = energy.high_uj > uj ? energy.high_uj : uj;
    return energy;
}

struct tally {
    uint64_t count[KJ_CPU_PHASES + 1];
    double time_ns[KJ_CPU_PHASES + 1], part[KJ_CPU_PHASES + 1]; /* last: none of them */
};

static int walk(const struct kj_account *a, const struct kj_cpu_phases *phases,
                const struct kj_series_channel *c, struct tally *tally)
{
    struct edge *edges = malloc((phases->count * 2 + 1) * sizeof(*edges));
    size_t count = 0;
    if (!edges)
        return -1;
    for (size_t i = 0; i < phases->count; i++) {
        const struct kj_cpu_phase_row *row = &phases->rows[i];
        uint64_t start_ns = row->start_ns > a->start_ns ? row->start_ns : a->start_ns;
        uint64_t end_ns = row->end_ns < a->end_ns ? row->end_ns : a->end_ns;
        if (start_ns >= end_ns)
            continue;
        tally->count[row->phase]++;
        edges[count++] = (struct edge){start_ns, 1, row->phase};
        edges[count++] = (struct edge){end_ns, -1, row->phase};
    }
    qsort(edges, count, sizeof(*edges), by_time);
    struct opened open[KJ_CPU_PHASES] = {0};
    double before_ns = (double)a->start_ns, before = 0;
    for (size_t i = 0; i <= count; i++) {
        double t_ns = i < count ? (double)edges[i].t_ns : (double)a->end_ns;
        double now = i < count ? course(a, c, t_ns) : 1;
        int phase = innermost(open), line = phase < 0 ? KJ_CPU_PHASES : phase;
        tally->time_ns[line] += t_ns - before_ns;
        tally->part[line] += now - before;
        before_ns = t_ns, before = now;
        if (i == count)
            break;
        open[edges[i].phase].count += edges[i].step;
        if (edges[i].step > 0)
            open[edges[i].phase].last_ns = edges[i].t_ns;
    }
    free(edges);
    return 0;
}

int kj_cpu_phase_lines(struct kj_account *a, const struct kj_cpu_use *use, const struct kj_cpu_sums *sums)
{
    struct kj_cpu_phases *phases = NULL;
    struct tally tally = {0};
    (void)use;
    if (kj_cpu_phases_read(a->dir_fd, &phases))
        return 0;
    int status = phases->count ? walk(a, phases, sums->channel, &tally) : 0;
    double done = 0;
    int64_t all_uj = sums->own_dynamic_uj + sums->own_idle_uj, given_uj = 0;
    for (int i = 0; !status && phases->count && i <= KJ_CPU_PHASES; i++) {
        struct kj_report_cpu_phase *line = kj_report_add_cpu_phase(a->report);
        if (!line) {
            status = -1;
            break;
        }
        done += tally.part[i];
        int64_t upto_uj = i == KJ_CPU_PHASES ? all_uj : llround((double)all_uj * done),
                uj = upto_uj - given_uj;
        given_uj = upto_uj;
        *line = (struct kj_report_cpu_phase){
            .name = strdup(i < KJ_CPU_PHASES ? kj_cpu_phase_name((enum kj_cpu_phase)i) : "rest"),
            .count = tally.count[i],
            .time_ns = tally.time_ns[i],
            .energy = phase_energy(sums, fmax(0, fmin(1, tally.part[i])), uj)};
    }
    if (phases->full)
        kj_report_warn(a->report, "phases on the CPU were recorded until " KJ_CPU_PHASES_FILE
                                  " was full, and count as rest after that; a shorter run shows all");
    kj_cpu_phases_free(phases);
    return status;
}
