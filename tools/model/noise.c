/* SPDX-License-Identifier: Apache-2.0
 *
 * noise.c - why a row differs from what it should be: the sensor's own noise, launches of a class that differ
 * among themselves, and an update that came off its grid while power was changing. The variance of a row is
 * a sum of the three, whose shares are learned from the squares of the residuals (variance components by
 * Fisher scoring: Searle, Casella, McCulloch, Variance Components, 1992, 8.3).
 */
#include "model/fit.h"

#include <math.h>
#include <string.h>

/* Before the data: 1 % of a reading, 3 % of a launch's power, timing as assumed; each as sure as one that may
 * as well be nothing or twice as much, but timing may be any times worse than assumed. And the least: no
 * board sensor is better. */
static const double first[KJ_NOISE_PARTS] = {1e-4, 9e-4, 1};
static const double least[KJ_NOISE_PARTS] = {6.25e-6, 2.5e-5, 0.04};
#define UNSEEN_MOST_NS 10e6
#define FLOOR_MW2      1e5 /* readings are whole milliwatts or millijoules, and not always good ones */

double kj_noise_variance(const struct kj_noise *noise, const double *features)
{
    double sum = FLOOR_MW2;
    for (size_t k = 0; k < KJ_NOISE_PARTS; k++)
        sum += noise->share[k] * features[k];
    return sum;
}

void kj_noise_add(struct kj_noise *noise, const double *features, double target, double variance2)
{
    for (size_t k = 0; k < KJ_NOISE_PARTS; k++) {
        for (size_t j = 0; j < KJ_NOISE_PARTS; j++)
            noise->features[k][j] += features[k] * features[j] / variance2;
        noise->target[k] += features[k] * target / variance2;
    }
}

static void solve_shares(struct kj_noise *noise, const double *prior, const bool *held, double freedom)
{
    double a[KJ_NOISE_PARTS * KJ_NOISE_PARTS], x[KJ_NOISE_PARTS];
    for (size_t k = 0; k < KJ_NOISE_PARTS; k++) {
        x[k] = noise->target[k] * freedom;
        for (size_t j = 0; j < KJ_NOISE_PARTS; j++)
            a[k * KJ_NOISE_PARTS + j] = noise->features[k][j];
    }
    for (size_t k = 0; k < KJ_NOISE_PARTS; k++) {
        double sd = k == KJ_NOISE_TIMING ? fmax(prior[k], 1) : prior[k];
        double precision = 1 / (sd * sd), at = prior[k];
        if (held[k])
            precision = 1e6 * (precision + noise->features[k][k]), at = least[k] * prior[k] / first[k];
        a[k * KJ_NOISE_PARTS + k] += precision;
        x[k] += precision * at;
    }
    if (!kj_cholesky(a, KJ_NOISE_PARTS))
        return;
    kj_cholesky_solve(a, KJ_NOISE_PARTS, x);
    memcpy(noise->share, x, sizeof(noise->share));
}

void kj_noise_learn(struct kj_noise *noise, double freedom)
{
    double prior[KJ_NOISE_PARTS];
    bool held[KJ_NOISE_PARTS] = {false}, again = true;
    memcpy(prior, first, sizeof(prior));
    prior[KJ_NOISE_TIMING] *= pow(KJ_UNSEEN_NS / noise->unseen_ns, 2);
    for (size_t round = 0; again && round < KJ_NOISE_PARTS; round++) {
        again = false;
        solve_shares(noise, prior, held, freedom);
        for (size_t k = 0; k < KJ_NOISE_PARTS; k++) {
            bool low = noise->share[k] < least[k] * prior[k] / first[k];
            again = again || (low && !held[k]);
            held[k] = held[k] || low;
        }
    }
    for (size_t k = 0; k < KJ_NOISE_PARTS; k++)
        noise->share[k] = fmax(noise->share[k], least[k] * prior[k] / first[k]);
    /* What is unseen takes the change, and the jitter as far as looks let it: edges are blurred by as much.
     */
    double most = UNSEEN_MOST_NS / noise->unseen_ns;
    double factor = fmin(fmin(sqrt(noise->share[KJ_NOISE_TIMING]), 3), most);
    noise->unseen_ns *= factor;
    noise->jitter_ns = fmin(fmax(noise->jitter_ns * factor, noise->jitter_least_ns), noise->jitter_most_ns);
    noise->share[KJ_NOISE_TIMING] /= factor * factor;
}
