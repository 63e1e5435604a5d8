/* SPDX-License-Identifier: Apache-2.0
 *
 * log.c - one line at a time on stderr, written whole, so that lines of several processes do not mix.
 */
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A message is one line: control bytes, which a file name may hold, become '?'. */
static void flatten(char *text)
{
    for (unsigned char *p = (unsigned char *)text; *p; p++)
        if (*p < 0x20 || *p == 0x7f)
            *p = '?';
}

static void say_line(const char *prefix, const char *format, va_list args)
{
    char text[1024], line[1100];
    vsnprintf(text, sizeof(text), format, args);
    flatten(text);
    int length = snprintf(line, sizeof(line), "%s%s\n", prefix, text);
    if (length > (int)sizeof(line) - 1)
        length = sizeof(line) - 1;
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)length);
    (void)ignored; /* nobody is left to tell */
}

void kj_error_set(struct kj_error *error, const char *format, ...)
{
    if (!error)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    flatten(error->text);
}

void kj_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say_line("kjoule: ", format, args);
    va_end(args);
}

void kj_warn(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say_line("kjoule: warning: ", format, args);
    va_end(args);
}
