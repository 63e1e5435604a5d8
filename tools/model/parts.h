/* SPDX-License-Identifier: Apache-2.0
 *
 * parts.h - what the model is made of. Inside the room only.
 */
#ifndef KJ_MODEL_PARTS_H
#define KJ_MODEL_PARTS_H

#include "model/attribution.h"

/* A copy in order of start; NULL when there are none, or no memory. The caller frees. */
struct kj_model_interval *kj_model_sorted_intervals(const struct kj_model_input *input);
void kj_model_warn(struct kj_model_result *result, enum kj_model_warning_code code, const char *text);

#define KJ_R_ESTIMATED 0.5 /* of a method: identifiability, at least */

/* time_proportional.c: totals, times, idle, and a first split by time. */
void kj_model_split_by_time(const struct kj_model_input *input, struct kj_model_result *result);
/* The part of the run with a context, and how much of the idle time is outside of it. */
struct kj_model_span kj_model_context(const struct kj_model_input *input);
double kj_model_bare_ns(const struct kj_model_input *input, const struct kj_model_result *result);

/* What class c took of the device's time, all launches together: a 90 % interval. */
double kj_model_time_low_ns(const struct kj_model_input *input, const struct kj_model_result *result,
                            size_t c);
double kj_model_time_high_ns(const struct kj_model_input *input, const struct kj_model_result *result,
                             size_t c);

/* labels.c: labels from classes that were split by time; and from draws of all classes' energies, in rows of
 * a class, in uJ; gains: of the sensor, one a draw. 0 or -ENOMEM. spread_mw: of the prior of a class's power.
 */
void kj_model_labels_by_time(const struct kj_model_input *input, struct kj_model_result *result);
int kj_model_labels_by_draws(const struct kj_model_input *input, struct kj_model_result *result,
                             double spread_mw, const double *draws, const double *gains, size_t draw_count);
/* The intervals of labels once more, for parts that are guesses. After the classes have theirs. */
void kj_model_labels_widen(const struct kj_model_input *input, struct kj_model_result *result);
/* energies.c: an energy with the intervals of its draws, which are sorted by it, and of as many gains of the
 * sensor; and its R, by the sd of its prior and, where not 0, its own sd without bounds. */
struct kj_model_estimate kj_model_estimate_of(int64_t energy_uj, double *draws, const double *gains,
                                              size_t count);
double kj_model_identifiability(const struct kj_model_estimate *e, double prior_uj, double loose_uj);

/* regression.c: splits anew by what the sensors saw; leaves the result as it is where they saw too little. */
int kj_model_regress(const struct kj_model_input *input, const struct kj_model_options *options,
                     struct kj_model_result *result);

/* updates.c: when the value of a series was renewed. */
struct kj_update {
    double t_ns;              /* of the renewal, on a regular grid where the series keeps one */
    double after_ns, seen_ns; /* looks that did not see it yet, and that did: it lies between */
    double value;             /* power: mW. Counter: uJ */
};
struct kj_grid {
    double period_ns;            /* 0: irregular */
    double sd_ns, stretch_sd_ns; /* how far its middle, and its ends beyond that, may be off, 1 sigma */
    double jitter_ns;            /* of one update around it, 1 sigma */
    double jitter_sd;            /* relative, of that; 0: irregular, and not known */
};
/* Returns how many; *ret_updates is the caller's to free. */
size_t kj_model_updates(const struct kj_sensor_series *series, struct kj_update **ret_updates,
                        struct kj_grid *ret_grid);

/* Of a power sensor that nobody knows: the shortest of today's boards, until another is found to fit better.
 */
#define KJ_WINDOW_UNKNOWN_NS 25e6

/* edges.c: where an edge lies: a normal about its place, cut off by two looks. */
enum { KJ_EDGE_NODES = 7 };
struct kj_edge {
    double place_ns, sd_ns, after_ns, seen_ns;
    double mean_ns, below_after, ramp_after, inside; /* from those */
};
/* After the one look, before the other; after >= seen: no look, a normal alone. unseen_ns: 1 sigma of what
 * comes between the edge and what looks see of it. */
struct kj_edge kj_edge_between(double place_ns, double sd_ns, double after_ns, double seen_ns,
                               double unseen_ns);
/* All of it, looks too: the other edge of a window of fixed length, or a sensor that shows its values late.
 */
struct kj_edge kj_edge_moved(const struct kj_edge *edge, double by_ns);
/* Mean over where it may lie of how long it is past at t, 0 while it is not. */
double kj_edge_passed_ns(const struct kj_edge *edge, double t_ns);
/* Some moments where it may lie and their weights, which add up to 1. */
void kj_edge_nodes(const struct kj_edge *edge, double *ret_at_ns, double *ret_weight);

/* One equation: the mean power that a sensor saw over [start, end). */
struct kj_row {
    struct kj_edge start, end;
    double start_ns, end_ns, mw; /* the edges' means */
    uint32_t series;
    bool counter; /* its two edges err each by itself; else together, as a window moves */
    bool chained; /* begins where the row before it ends: that edge's error is in both */
};
/* Where a series lies in time: how much later than its updates say, in the middle of the run; and how much
 * more at its end than in its middle. */
struct kj_shift {
    double middle_ns, stretch_ns;
    double sd_ns;     /* what is not known of it: the windows' edges are blurred by as much */
    double jitter_ns; /* of one update around its grid, 1 sigma, and */
    double unseen_ns; /* beside what the looks see of it: these blur as well */
};
/* rows.c: whether the timeline holds all that ran in between. */
bool kj_model_is_complete(const struct kj_model_input *input, double start_ns, double end_ns);
/* -1 at the start of the run, 1 at its end. */
double kj_model_place(const struct kj_model_input *input, double t_ns);
/* rows.c: the equations of all series within the complete part of the timeline, while there is a context.
 * windows_ns[s] overrides that of series s where not 0; shifts[s]
 * moves its windows. Both may be NULL. */
size_t kj_model_rows(const struct kj_model_input *input, const double *windows_ns,
                     const struct kj_shift *shifts, struct kj_row **ret_rows);

#endif
