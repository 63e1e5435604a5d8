/* SPDX-License-Identifier: Apache-2.0
 *
 * cupti.h - what the files of the CUPTI back end share: cupti.c finds, attaches, collects and steps aside,
 * cupti_records.c turns records into the ledger's times, cupti_neighbours.c notices who else wants CUPTI.
 */
#ifndef KJ_CUPTI_H
#define KJ_CUPTI_H

#include "cupti_abi.h"
#include "shim.h"

struct kj_cupti_api {
#define CUPTI(name, needed, params) CUptiResult(*name) params;
#include "cupti.def"
};
extern struct kj_cupti_api kj_cupti; /* complete once kj_cupti_attach has been through */

/* The library that the application has loaded, else the one that we have; NULL. A handle that is not closed.
 */
void *kj_cupti_library(void);

/* ---- records (cupti_records.c) */

/* Maps buffers and tables. False: no memory. */
bool kj_cupti_records_start(void);
/* CUPTI's callbacks. The first is called on the launch path. */
void kj_cupti_buffer_request(uint8_t **ret_buffer, size_t *ret_size, size_t *ret_most);
void kj_cupti_buffer_complete(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size,
                              size_t valid_size);
bool kj_cupti_buffer_is_ours(const uint8_t *buffer);
unsigned kj_cupti_buffers_out(void); /* in CUPTI's hands */
bool kj_cupti_has_launched(void);    /* something that a record is due of */
/* Compares the clocks, for records up to now. */
void kj_cupti_tie(struct kj_ledger_header *ledger);
/* Adds what CUPTI says it dropped since it was last asked. */
void kj_cupti_count_dropped(struct kj_ledger_header *ledger, CUcontext context, uint32_t stream);
/* A share of the records that cannot be lived with had no time, or none that can be: `text` says so. */
bool kj_cupti_is_useless(const struct kj_ledger_header *ledger, char *text, size_t size);
void kj_cupti_records_ignore(void); /* from here on: buffers come back, and nobody looks at what they hold */
void kj_cupti_records_forget(void); /* after fork */

/* CUPTI has been given up and cannot be left: the other tool that comes gets our subscriber. */
bool kj_cupti_lend(CUpti_SubscriberHandle *ret_subscriber, CUpti_CallbackFunc callback, void *user_data);

/* ---- neighbours (cupti_neighbours.c) */

/* Somebody else has subscribed or registered for records in this process. */
bool kj_cupti_has_neighbour(void);

#endif
