/* SPDX-License-Identifier: Apache-2.0
 *
 * hello - says so and exits with 7; after a while, when told one. Built against glibc, statically, and
 * against musl.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    puts("hello");
    fflush(stdout);
    if (argc > 1)
        usleep((unsigned)atoi(argv[1]) * 1000u);
    return 7;
}
