/* SPDX-License-Identifier: Apache-2.0
 *
 * csv.h - lines of comma-separated fields as the files of the run folder have them: no quotes; comma,
 * newline, backslash and control bytes of texts as \xHH. Inside the room only.
 */
#ifndef KJ_CSV_H
#define KJ_CSV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { KJ_CSV_FIELDS = 16 };

void kj_csv_escape(const char *text, char *ret_text, size_t size);
void kj_csv_unescape(const char *text, char *ret_text, size_t size);
/* Cuts the line at its commas. Returns how many fields, KJ_CSV_FIELDS at most. */
size_t kj_csv_split(char *line, char **ret_fields);
/* Digits alone, in range. */
bool kj_csv_u64(const char *text, uint64_t *ret_value);

/* The lines of a text one after the other, NUL-terminated in place. One with a NUL inside, and what stands
 * after the last newline, torn by a kill, are left out. NULL at the end. */
struct kj_csv_lines {
    char *text, *end;
};
char *kj_csv_line(struct kj_csv_lines *lines);

#endif
