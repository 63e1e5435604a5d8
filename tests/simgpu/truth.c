/* SPDX-License-Identifier: Apache-2.0
 *
 * truth.c - `simgpu-truth STATE`: prints the truth of a machine whose processes may all be dead.
 */
#include "device.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    struct sim_machine *machine = argc == 2 ? sim_machine_open(argv[1]) : NULL;
    if (!machine) {
        fprintf(stderr, "usage: simgpu-truth STATE (a file made by way of KJ_SIM_STATE)\n");
        return 2;
    }
    return sim_truth_write(machine, "-") != 0;
}
