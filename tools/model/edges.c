/* SPDX-License-Identifier: Apache-2.0
 *
 * edges.c - where the edge of a sensor's window lies: like a normal about its place on the grid, cut off by
 * the two looks that it lies between (Johnson, Kotz, Balakrishnan, Continuous Univariate Distributions 1,
 * 1994, 13.10.1). Where the looks are close, that is little else than the room between them.
 */
#include "model/normal.h"
#include "model/parts.h"

#include <math.h>

#define FAR        8    /* sds: no look */
#define INSIDE_MIN 1e-4 /* of the normal, or it is not what the looks saw */
#define NODES_SDS  2.855890339

/* Integral of kj_normal_below up to z. */
static double ramp(double z)
{
    return z * kj_normal_below(z) + kj_normal_density(z);
}

static void complete(struct kj_edge *edge)
{
    double a = (edge->after_ns - edge->place_ns) / edge->sd_ns,
           b = (edge->seen_ns - edge->place_ns) / edge->sd_ns;
    edge->below_after = kj_normal_below(a);
    edge->ramp_after = ramp(a);
    edge->inside = kj_normal_below(b) - edge->below_after;
    if (edge->inside < INSIDE_MIN) { /* off its grid: anywhere between the looks */
        edge->place_ns = (edge->after_ns + edge->seen_ns) / 2;
        edge->sd_ns = edge->seen_ns - edge->after_ns;
        complete(edge);
        return;
    }
    edge->mean_ns =
        edge->place_ns + edge->sd_ns * (kj_normal_density(a) - kj_normal_density(b)) / edge->inside;
}

static struct kj_edge cut_off(double place_ns, double sd_ns, double after_ns, double seen_ns)
{
    struct kj_edge edge = {.place_ns = place_ns, .sd_ns = fmax(sd_ns, 1)};
    bool seen = after_ns < seen_ns;
    edge.after_ns = seen ? after_ns : place_ns - FAR * edge.sd_ns;
    edge.seen_ns = seen ? seen_ns : place_ns + FAR * edge.sd_ns;
    complete(&edge);
    return edge;
}

/* The looks say when the value appeared. What is unseen comes between that and the edge: it adds to the
 * variance, as if it widened the room between the looks like a box, and leaves the mean where it was. Were it
 * to move the mean, each edge would lie elsewhere on its grid by what only its looks happened to be, and a
 * window that looks longer and did not hold more would seem to end where next to nothing is drawn. */
struct kj_edge kj_edge_between(double place_ns, double sd_ns, double after_ns, double seen_ns,
                               double unseen_ns)
{
    struct kj_edge appeared = cut_off(place_ns, sd_ns, after_ns, seen_ns);
    if (unseen_ns <= 0)
        return appeared;
    if (after_ns >= seen_ns)
        return cut_off(place_ns, hypot(sd_ns, unseen_ns), after_ns, seen_ns);
    double room_ns = seen_ns - after_ns,
           wider_ns = (sqrt(room_ns * room_ns + 12 * unseen_ns * unseen_ns) - room_ns) / 2;
    struct kj_edge edge = cut_off(place_ns, hypot(sd_ns, unseen_ns), after_ns - wider_ns, seen_ns + wider_ns);
    return kj_edge_moved(&edge, appeared.mean_ns - edge.mean_ns);
}

struct kj_edge kj_edge_moved(const struct kj_edge *edge, double by_ns)
{
    struct kj_edge moved = *edge;
    moved.place_ns += by_ns, moved.mean_ns += by_ns;
    moved.after_ns += by_ns, moved.seen_ns += by_ns;
    return moved;
}

double kj_edge_passed_ns(const struct kj_edge *edge, double t_ns)
{
    if (t_ns <= edge->after_ns)
        return 0;
    if (t_ns >= edge->seen_ns)
        return t_ns - edge->mean_ns;
    double z = (t_ns - edge->place_ns) / edge->sd_ns;
    return (edge->sd_ns * (ramp(z) - edge->ramp_after) - edge->below_after * (t_ns - edge->after_ns)) /
           edge->inside;
}

void kj_edge_nodes(const struct kj_edge *edge, double *ret_at_ns, double *ret_weight)
{
    double low_ns = fmax(edge->after_ns, edge->place_ns - NODES_SDS * edge->sd_ns), sum = 0;
    double high_ns = fmin(edge->seen_ns, edge->place_ns + NODES_SDS * edge->sd_ns);
    if (low_ns >= high_ns &&
        edge->after_ns > edge->place_ns) { /* far out in a tail: near the look that is inwards */
        low_ns = edge->after_ns;
        high_ns = fmin(edge->seen_ns, low_ns + edge->sd_ns);
    } else if (low_ns >= high_ns) {
        high_ns = edge->seen_ns;
        low_ns = fmax(edge->after_ns, high_ns - edge->sd_ns);
    }
    for (size_t k = 0; k < KJ_EDGE_NODES; k++) {
        ret_at_ns[k] = low_ns + (high_ns - low_ns) * ((double)k + 0.5) / KJ_EDGE_NODES;
        ret_weight[k] = kj_normal_density((ret_at_ns[k] - edge->place_ns) / edge->sd_ns);
        sum += ret_weight[k];
    }
    for (size_t k = 0; k < KJ_EDGE_NODES; k++)
        ret_weight[k] /= sum;
}
