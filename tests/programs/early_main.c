/* SPDX-License-Identifier: Apache-2.0
 *
 * early_main - linked to the library of early.c, which may have used the driver before main.
 */
#include <stdio.h>

void early_launch(int count);
int early_finish(void);

int main(void)
{
    early_launch(100);
    int rc = early_finish();
    printf("early_main: %d\n", rc);
    return rc;
}
