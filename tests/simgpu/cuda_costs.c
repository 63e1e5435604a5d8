/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_costs.c - what calls take of the host, by costs.def and the script. With `costs 0` that is a load and
 * a branch. And which calls the script holds up.
 */
#include "cuda_sim.h"

#include <math.h>
#include <string.h>
#include <time.h>

static uint16_t row_of[SIM_EXPORTS]; /* of costs.def, + 1; 0: the call is free */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void find_rows(void)
{
    for (int i = 0; i < SIM_EXPORTS; i++)
        for (int row = 0; row < SIM_COSTS && !row_of[i]; row++)
            if (!strcmp(sim_entries[i].name, sim_cost_names[row]))
                row_of[i] = (uint16_t)(row + 1);
}

static void charge(int export, bool call, uint64_t items)
{
    pthread_once(&once, find_rows);
    if (!row_of[export])
        return;
    const struct sim_cost *cost = &sim_machine()->script.cost[row_of[export] - 1];
    sim_burn((uint64_t)((call ? cost->host_ns : 0) + cost->item_ns * (double)items));
}

void sim_charge_call(int export)
{
    if (sim_machine()->script.calls_cost)
        charge(export, true, 0);
}

void sim_charge_items(int export, uint64_t items)
{
    if (sim_machine()->script.calls_cost)
        charge(export, false, items);
}

void sim_burn(uint64_t cost_ns)
{
    if (cost_ns)
        for (uint64_t until_ns = sim_now_ns() + cost_ns; sim_now_ns() < until_ns;)
            ;
}

static _Atomic uint64_t calls_of[SIM_HOLDS]; /* that a hold of the script is about */

static void sleep_us(double us)
{
    const struct timespec time = {(time_t)(us / 1e6), (long)(fmod(us, 1e6) * 1000)};
    if (us > 0)
        nanosleep(&time, NULL);
}

double sim_hold_begin(int export)
{
    const struct sim_script *script = &sim_machine()->script;
    double before_us = 0, after_us = 0;
    for (int i = 0; i < script->holds; i++) {
        const struct sim_hold *hold = &script->hold[i];
        if (strcmp(hold->call, sim_entries[export].name))
            continue;
        double nth = (double)++calls_of[i] - hold->from;
        if (nth < 0 || fmod(nth, hold->every) || (hold->times && nth / hold->every >= hold->times))
            continue;
        *(hold->after ? &after_us : &before_us) += hold->us;
    }
    sleep_us(before_us);
    return after_us;
}

void sim_hold_end(double us)
{
    sleep_us(us);
}
