/* SPDX-License-Identifier: Apache-2.0
 *
 * cuda_costs.c - what calls take of the host, by costs.def and the script. With `costs 0` that is a load and
 * a branch.
 */
#include "cuda_sim.h"

#include <string.h>

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
