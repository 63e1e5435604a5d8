/* SPDX-License-Identifier: Apache-2.0
 *
 * looks.h - when the sensors of a GPU are looked at. No clock and no sensor in here: told of looks, it says
 * when the next are worth it.
 *
 * Sensors are renewed every 10, 20 or 100 ms. How well short kernels are told apart depends on how well the
 * moment of each renewal is known (model/METHOD.md), which lies between the last look that saw the old value
 * and the first that saw the new one.
 *
 * Even looks: all sensors, all the time. Those that keep step with a sensor would see each renewal equally
 * late; by the golden ratio they come at all of its phases. A sensor that is new at every other look is
 * renewed faster than they can tell when: they come closer, by the golden ratio again.
 *
 * Looks at renewals: once the even ones have told period and place of a sensor, some more about the moment
 * when it is next due. A renewal that comes otherwise is seen by the even ones, as before.
 *
 * Neither closer even looks nor those at one sensor's renewals may take more than a hundredth of one core.
 */
#ifndef KJ_LOOKS_H
#define KJ_LOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KJ_LOOKS_JUDGED = 64 }; /* even looks, before they are judged */

/* How far even looks are apart at first, for an interval that the user chose. */
uint64_t kj_looks_first_ns(uint64_t interval_ns);
/* From then on. new_share: of the looks saw something new of the fastest sensor; each took cost_ns. */
uint64_t kj_looks_next_ns(uint64_t period_ns, uint64_t interval_ns, double new_share, double cost_ns);

/* When one sensor renews. All zero: nothing is known yet. Times are of any one clock, in ns. */
enum { KJ_RENEWALS_LEARNED = 12 };
struct kj_renewals {
    double after_ns[KJ_RENEWALS_LEARNED], seen_ns[KJ_RENEWALS_LEARNED]; /* until the period is known */
    size_t count;
    double period_ns;       /* 0: not known */
    double learned_ns;      /* it, at first */
    double due_ns, half_ns; /* the next: so far from then */
    double followed;        /* renewals, since it is known */
    double last_look_ns;    /* the last of all, */
    double next_look_ns;    /* and the next; 0: none but the even ones */
    double cost_ns;         /* of one look, smoothed */
    unsigned missed;        /* renewals in a row */
};

/* A look at t_ns saw a new value, or the old one. even_ns: how far even looks are apart. */
void kj_renewals_saw(struct kj_renewals *renewals, uint64_t t_ns, bool is_new, uint64_t even_ns,
                     double cost_ns);
/* The sensor could not be looked at: not again before then. */
void kj_renewals_rest(struct kj_renewals *renewals, uint64_t until_ns);
/* When to look beside the even looks; UINT64_MAX: not. */
uint64_t kj_renewals_next_ns(const struct kj_renewals *renewals);

#endif
