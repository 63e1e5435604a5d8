/* SPDX-License-Identifier: Apache-2.0
 *
 * privileges.h - what the probe may do, and giving it up.
 */
#ifndef KJ_PROBE_PRIVILEGES_H
#define KJ_PROBE_PRIVILEGES_H

#include <stdbool.h>

/* Before anything else: an empty environment, descriptors 0, 1 and 2 in place, none above them, no core. */
void kj_privileges_begin(void);
/* True: the capability is in our effective set. */
bool kj_privileges_have(int capability);
/* Keeps the listed capabilities (ended by -1) out of those we have, and loses all others for good. Negative
 * errno. */
int kj_privileges_keep(const int *capabilities);
/* Whether we may use BPF at this moment; what was set aside can be taken up again until it is lost. */
void kj_privileges_set_aside(int capability, bool aside);

#endif
