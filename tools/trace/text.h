/* SPDX-License-Identifier: Apache-2.0
 *
 * text.h - files of lines and fields. Inside the room only.
 */
#ifndef KJ_TRACE_TEXT_H
#define KJ_TRACE_TEXT_H

#include "trace/trace.h"

enum { KJ_TRACE_FIELDS = 64 };

struct kj_trace_text {
    const char *path;
    char *data, *at, *end;
    size_t line; /* of what kj_trace_line returned last */
};

int kj_trace_text_open(const char *path, struct kj_trace_text *ret_text, struct kj_error *error);
void kj_trace_text_close(struct kj_trace_text *text);

/* "FILE:LINE: " and the rest. Returns -EINVAL. */
int kj_trace_complain(const struct kj_trace_text *text, struct kj_error *error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The next line that is not empty, cut into fields in place: commas, double quotes as in RFC 4180 within one
 * line, blanks around fields left out. *ret_count 0: the end of the file. */
int kj_trace_line(struct kj_trace_text *text, char **ret_fields, size_t *ret_count, struct kj_error *error);

/* Digits alone; 63 bits. */
bool kj_trace_whole(const char *text, int64_t *ret_value);
/* A decimal number of at least 0, with fraction or exponent; not nan, inf or hexadecimal. `rest`: where it
 * ended, NULL: it must be all. */
bool kj_trace_number(const char *text, double *ret_value, const char **ret_rest);

/* Texts, each once. */
struct kj_trace_names {
    void *tree;
    char **names;
    size_t count, cap;
};
/* Index of a text, new or old; negative errno. */
int64_t kj_trace_name(struct kj_trace_names *names, const char *text);
/* Hands the list over; frees the tree. */
char **kj_trace_names_take(struct kj_trace_names *names, size_t *ret_count);
void kj_trace_names_drop(struct kj_trace_names *names);

/* room for one more; -ENOMEM */
int kj_trace_grow(void **array, size_t count, size_t *cap, size_t size);

int kj_trace_timeline_csv(struct kj_trace_text *text, struct kj_trace_timeline *timeline,
                          struct kj_error *error);
int kj_trace_timeline_chrome(struct kj_trace_text *text, struct kj_trace_timeline *timeline,
                             struct kj_error *error);
/* fields: the header's. */
int kj_trace_power_smi(struct kj_trace_text *text, char **fields, size_t count, struct kj_trace_power *power,
                       struct kj_error *error);
/* A new empty series at the end; NULL without memory. */
struct kj_trace_series *kj_trace_power_add(struct kj_trace_power *power, const char *device,
                                           const char *channel, bool counter);
void kj_trace_power_ignore(struct kj_trace_power *power, const char *column);

#endif
