/* SPDX-License-Identifier: Apache-2.0
 *
 * truth.c - `simgpu-truth STATE`: prints the truth of a machine whose processes may all be dead.
 * `simgpu-truth --watch MS STATE`: reads its energy that often and prints nothing, until it is ended. Whoever
 * looks integrates the past, and spares it the program: benches that compare runs with and without readers of
 * sensors need one in both.
 * `simgpu-truth --at NS STATE`: the devices' energy in microjoules up to that moment of CLOCK_MONOTONIC, one
 * of the last half minute: truth up to the end of a program, whoever came after it.
 */
#include "device.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Noreturn void watch(const char *path, useconds_t every_us)
{
    struct sim_machine *machine;
    while (!(machine = sim_machine_open(path)))
        usleep(every_us);
    for (;; usleep(every_us))
        for (int i = 0; i < machine->script.devices; i++)
            sim_energy_at(i, UINT64_MAX);
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "--watch") && atoi(argv[2]) > 0)
        watch(argv[3], (useconds_t)atoi(argv[2]) * 1000);
    bool at = argc == 4 && !strcmp(argv[1], "--at");
    if (at)
        argv[1] = argv[3], argc = 2;
    struct sim_machine *machine = argc == 2 ? sim_machine_open(argv[1]) : NULL;
    if (!machine) {
        fprintf(stderr, "usage: simgpu-truth STATE (a file made by way of KJ_SIM_STATE)\n");
        return 2;
    }
    for (int i = 0; at && i < machine->script.devices; i++)
        printf("%.0f\n", sim_energy_at(i, strtoull(argv[2], NULL, 10)) / 1e3);
    return !at && sim_truth_write(machine, "-") != 0;
}
