/* SPDX-License-Identifier: Apache-2.0
 *
 * card.h - what the programs that measure a card share: the driver by dlopen, one context and stream, kernels
 * of a chosen length. They are PTX, which the driver compiles, so no compiler is needed. Knows nothing of
 * kjoule.
 */
#ifndef CARD_H
#define CARD_H

#define DRIVER_LIST_ONLY
#include "../programs/driver.h"

#include <stdbool.h>

struct driver {
/* cu<name>, NULL where the driver does not have it */
#define X(name, parameters) int(*name) parameters;
    DRIVER_FUNCTIONS(X)
#undef X
};
extern struct driver cu;

/* The kernels. `nothing` returns at once; all others multiply for as many rounds as they are told, and only
 * their names differ. */
#define CARD_KERNELS(K)                                                                                      \
    K(burn)                                                                                                  \
    K(burn_2us)                                                                                              \
    K(burn_5us)                                                                                              \
    K(burn_10us)                                                                                             \
    K(burn_50us)                                                                                             \
    K(queued_2us)                                                                                            \
    K(queued_5us) K(queued_10us) K(queued_50us) K(once) K(square) K(in_graph_5us) K(in_graph_50us)
enum kernel {
#define K(name) KERNEL_##name,
    CARD_KERNELS(K)
#undef K
        KERNEL_COUNT
};

/* All kernels as PTX. */
extern const char card_image[];

struct card {
    handle library, context, stream, module, nothing, kernels[KERNEL_COUNT], begin, end;
    unsigned multiprocessors;
};
extern struct card card;

/* Finds the driver's functions; status 4 and the reason where there is no driver. */
void card_find_driver(void);

/* Another function of the driver, NULL where it has none. */
void *card_symbol(const char *name);

/* Also the primary context of device 0, and in it what card_load makes. */
void card_open(void);

/* The kernels, a stream and two events in the current context. */
void card_load(void);

double card_now_s(void);

/* One kernel of that many rounds on the card's stream: `blocks_each` blocks of 256 threads a multiprocessor.
 */
void card_launch(enum kernel kernel, unsigned blocks_each, unsigned rounds);

/* Rounds for a kernel of `us`, from batches of `batch` of them. The card warms up meanwhile. ret_launches:
 * how many it took. */
unsigned card_rounds(enum kernel kernel, unsigned blocks_each, double us, int batch, int *ret_launches);

/* Milliseconds of the stream between two events of our own around `count` such kernels, and waits for them.
 */
double card_timed_ms(enum kernel kernel, unsigned blocks_each, unsigned rounds, int count);

#endif
