/* SPDX-License-Identifier: Apache-2.0
 *
 * text.c - files, lines, fields and names, for all readers of the room.
 */
#include "trace/text.h"

#include "base/file.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <search.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define FILE_MOST ((size_t)2 << 30)

static int read_all(gzFile file, struct kj_trace_text *text)
{
    size_t cap = 1 << 20, used = 0;
    char *data = malloc(cap + 1);
    while (data) {
        int n = gzread(file, data + used, (unsigned)(cap - used > (1u << 30) ? 1u << 30 : cap - used));
        if (n < 0 || (n == 0 && !gzeof(file))) {
            free(data);
            return -EBADMSG;
        }
        used += (size_t)n;
        if (n == 0)
            break;
        if (used < cap)
            continue;
        if (cap >= FILE_MOST) {
            free(data);
            return -EFBIG;
        }
        cap *= 2;
        char *larger = realloc(data, cap + 1);
        if (!larger)
            free(data);
        data = larger;
    }
    if (!data)
        return -ENOMEM;
    data[used] = 0;
    text->data = text->at = data;
    text->end = data + used;
    return 0;
}

int kj_trace_text_open(const char *path, struct kj_trace_text *ret_text, struct kj_error *error)
{
    *ret_text = (struct kj_trace_text){.path = path};
    int fd = kj_file_open_read(AT_FDCWD, path);
    if (fd < 0) {
        kj_error_set(error, "%s cannot be read: %s", path,
                     fd == -ELOOP    ? "it is a symbolic link; name the file it points to"
                     : fd == -EINVAL ? "it is no regular file; write it to one first"
                                     : strerror(-fd));
        return fd;
    }
    gzFile file = gzdopen(fd, "rb");
    if (!file)
        close(fd);
    int status = file ? read_all(file, ret_text) : -ENOMEM;
    int closed = file ? gzclose_r(file) : Z_OK;
    if (!status && closed == Z_BUF_ERROR)
        status = -EBADMSG;
    if (status)
        kj_error_set(error, "%s cannot be read: %s", path,
                     status == -EBADMSG ? "the compressed file is damaged or cut short"
                     : status == -EFBIG ? "it holds more than 2 GiB; cut it into parts"
                                        : strerror(-status));
    if (status)
        kj_trace_text_close(ret_text);
    return status;
}

void kj_trace_text_close(struct kj_trace_text *text)
{
    free(text->data);
    text->data = text->at = text->end = NULL;
}

int kj_trace_complain(const struct kj_trace_text *text, struct kj_error *error, const char *format, ...)
{
    char what[400];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof(what), format, args);
    va_end(args);
    kj_error_set(error, "%s:%zu: %s", text->path, text->line ? text->line : 1, what);
    return -EINVAL;
}

/* Takes one field from *at on; *at: past it. false: a quote without its end. */
static bool take_field(char **at, char **ret_field)
{
    char *p = *at, *out;
    while (*p == ' ' || *p == '\t')
        p++;
    if (*p == '"') {
        *ret_field = out = ++p;
        while (*p && (*p != '"' || p[1] == '"')) {
            p += *p == '"';
            *out++ = *p++;
        }
        if (!*p)
            return false;
        p++;
        while (*p == ' ' || *p == '\t')
            p++;
        if (*p && *p != ',')
            return false;
        bool more = *p == ',';
        *out = 0;
        *at = more ? p + 1 : NULL;
        return true;
    }
    *ret_field = p;
    p += strcspn(p, ",");
    *at = *p ? p + 1 : NULL;
    for (*p = 0; p > *ret_field && isblank((unsigned char)p[-1]);)
        *--p = 0;
    return true;
}

int kj_trace_line(struct kj_trace_text *text, char **ret_fields, size_t *ret_count, struct kj_error *error)
{
    *ret_count = 0;
    while (text->at < text->end) {
        char *line = text->at, *newline = memchr(line, '\n', (size_t)(text->end - line));
        char *stop = newline ? newline : text->end;
        text->at = newline ? newline + 1 : text->end;
        text->line++;
        *stop = 0;
        if (strlen(line) != (size_t)(stop - line))
            return kj_trace_complain(text, error, "a zero byte; this is no text file, or it is damaged");
        if (stop > line && stop[-1] == '\r')
            stop[-1] = 0;
        if (text->line == 1 && !strncmp(line, "\xef\xbb\xbf", 3))
            line += 3;
        if (!line[strspn(line, " \t")])
            continue;
        for (char *at = line; at;) {
            if (*ret_count == KJ_TRACE_FIELDS)
                return kj_trace_complain(text, error, "more than %d fields", KJ_TRACE_FIELDS);
            if (!take_field(&at, &ret_fields[(*ret_count)++]))
                return kj_trace_complain(text, error,
                                         "a quoted field does not end, or is not followed by a comma");
        }
        return 0;
    }
    return 0;
}

bool kj_trace_whole(const char *text, int64_t *ret_value)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    *ret_value = strtoll(text, &end, 10);
    return !*end && !errno;
}

bool kj_trace_number(const char *text, double *ret_value, const char **ret_rest)
{
    char *end;
    if (!isdigit((unsigned char)*text) && !(*text == '.' && isdigit((unsigned char)text[1])))
        return false; /* strtod would also take signs, inf and nan */
    if (*text == '0' && tolower((unsigned char)text[1]) == 'x')
        return false;
    *ret_value = strtod(text, &end);
    if (ret_rest)
        *ret_rest = end;
    return isfinite(*ret_value) && (ret_rest || !*end);
}

struct name {
    const char *text;
    size_t index;
};

static int by_text(const void *a, const void *b)
{
    return strcmp(((const struct name *)a)->text, ((const struct name *)b)->text);
}

int kj_trace_grow(void **array, size_t count, size_t *cap, size_t size)
{
    if (count < *cap)
        return 0;
    size_t more = *cap ? *cap * 2 : 64;
    void *larger = reallocarray(*array, more, size);
    if (!larger)
        return -ENOMEM;
    *array = larger;
    *cap = more;
    return 0;
}

int64_t kj_trace_name(struct kj_trace_names *names, const char *text)
{
    const struct name wanted = {.text = text};
    struct name **found = tfind(&wanted, &names->tree, by_text);
    if (found)
        return (int64_t)(*found)->index;
    if (kj_trace_grow((void **)&names->names, names->count, &names->cap, sizeof(*names->names)))
        return -ENOMEM;
    struct name *name = malloc(sizeof(*name));
    char *copy = strdup(text);
    if (!name || !copy) {
        free(name);
        free(copy);
        return -ENOMEM;
    }
    *name = (struct name){.text = copy, .index = names->count};
    if (!tsearch(name, &names->tree, by_text)) {
        free(name);
        free(copy);
        return -ENOMEM;
    }
    names->names[names->count] = copy;
    return (int64_t)names->count++;
}

char **kj_trace_names_take(struct kj_trace_names *names, size_t *ret_count)
{
    char **list = names->names;
    *ret_count = names->count;
    tdestroy(names->tree, free);
    *names = (struct kj_trace_names){0};
    return list;
}

void kj_trace_names_drop(struct kj_trace_names *names)
{
    size_t count;
    char **list = kj_trace_names_take(names, &count);
    for (size_t i = 0; i < count; i++)
        free(list[i]);
    free(list);
}
