/* SPDX-License-Identifier: Apache-2.0 */
#include "folder/csv.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void kj_csv_escape(const char *text, char *ret_text, size_t size)
{
    size_t used = 0;
    for (const unsigned char *p = (const unsigned char *)text; *p && used + 5 < size; p++) {
        if (*p < 0x20 || *p == 0x7f || *p == ',' || *p == '\\')
            used += (size_t)snprintf(ret_text + used, size - used, "\\x%02x", *p);
        else
            ret_text[used++] = (char)*p;
    }
    ret_text[used] = 0;
}

void kj_csv_unescape(const char *text, char *ret_text, size_t size)
{
    size_t used = 0;
    for (const char *p = text; *p && used + 1 < size; p++) {
        if (p[0] == '\\' && p[1] == 'x' && isxdigit((unsigned char)p[2]) && isxdigit((unsigned char)p[3])) {
            const char digits[3] = {p[2], p[3], 0};
            ret_text[used++] = (char)strtoul(digits, NULL, 16);
            p += 3;
        } else {
            ret_text[used++] = *p;
        }
    }
    ret_text[used] = 0;
}

size_t kj_csv_split(char *line, char **ret_fields)
{
    size_t count = 0;
    for (char *rest = line; rest && count < KJ_CSV_FIELDS;)
        ret_fields[count++] = strsep(&rest, ",");
    return count;
}

bool kj_csv_u64(const char *text, uint64_t *ret_value)
{
    char *end;
    errno = 0;
    *ret_value = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && !*end && !errno;
}

char *kj_csv_line(struct kj_csv_lines *lines)
{
    for (;;) {
        char *line = lines->text, *newline = memchr(line, '\n', (size_t)(lines->end - line));
        if (!newline)
            return NULL;
        *newline = 0;
        lines->text = newline + 1;
        if (strlen(line) == (size_t)(newline - line))
            return line;
    }
}
