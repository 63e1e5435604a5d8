/* SPDX-License-Identifier: Apache-2.0
 *
 * short_name.c - a demangled kernel name for a narrow column. What tells PyTorch's kernels apart is the
 * functor among the template arguments, behind a long common name: so namespaces, parameters, lambdas and
 * tuning constants go, and the name in front of the arguments is cut first.
 */
#include "report/writers.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_KEPT 16 /* bytes at least of the name in front of the template arguments */

static bool is_word(char c)
{
    return isalnum((unsigned char)c) || c == '_' || c == '$' || (unsigned char)c >= 0x80;
}

/* Past the closing partner of the bracket at p; the end where there is none. */
static const char *past_group(const char *p)
{
    int depth = 0;
    do {
        depth += *p == '(' || *p == '{';
        depth -= *p == ')' || *p == '}';
        p++;
    } while (*p && depth > 0);
    return p;
}

/* 4, 3ul, true: constants that kernels are tuned by. */
static bool is_constant(const char *word, size_t length)
{
    if (isdigit((unsigned char)*word) || (*word == '-' && length > 1))
        return true;
    return (length == 4 && !strncmp(word, "true", 4)) || (length == 5 && !strncmp(word, "false", 5));
}

/* Namespaces that are behind every second kernel of a framework, or nobody's own. */
static bool is_common_namespace(const char *word, size_t length)
{
    static const char *const names[] = {"at",   "native", "std",      "c10",
                                        "cuda", "detail", "internal", "cutlass"};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        if (strlen(names[i]) == length && !strncmp(names[i], word, length))
            return true;
    return false;
}

/* Appends one word unless it says nothing; returns past it. */
static const char *take_word(const char *p, bool brief, char *out, size_t *used)
{
    const char *end = p;
    while (is_word(*end))
        end++;
    size_t length = (size_t)(end - p);
    bool in_arguments = memchr(out, '<', *used) != NULL;
    bool qualifier = end[0] == ':' && end[1] == ':' && end[2] != '{' && strncmp(end + 2, "operator", 8);
    if (qualifier && (brief || is_common_namespace(p, length)))
        return end + 2;
    if ((length == 5 && !strncmp(p, "const", 5)) || (length == 8 && !strncmp(p, "operator", 8)) ||
        (in_arguments && is_constant(p, length)))
        return end;
    if (*used && is_word(out[*used - 1]))
        out[(*used)++] = ' ';
    memcpy(out + *used, p, length);
    *used += length;
    if (qualifier) {
        memcpy(out + *used, "::", 2);
        *used += 2;
        end += 2;
    }
    return end;
}

/* Commas and brackets that nothing is left between. */
static void take_mark(char c, char *out, size_t *used)
{
    char last = *used ? out[*used - 1] : 0;
    if (c == ',' && last != '<' && last != ',' && last)
        out[(*used)++] = ',';
    if (c == '<' && last)
        out[(*used)++] = '<';
    if (c == '>') {
        while (*used && out[*used - 1] == ',')
            (*used)--;
        if (*used && out[*used - 1] == '<')
            (*used)--;
        else
            out[(*used)++] = '>';
    }
}

static size_t take_all(const char *name, bool brief, char *out)
{
    size_t used = 0;
    const char *p = strncmp(name, "void ", 5) ? name : name + 5;
    while (*p) {
        if (*p == '(' || *p == '{')
            p = past_group(p);
        else if (is_word(*p))
            p = take_word(p, brief, out, &used);
        else
            take_mark(*p++, out, &used);
    }
    out[used] = 0;
    return used;
}

char *kj_short_name(const char *name, size_t width)
{
    char *out = malloc(2 * strlen(name) + 1);
    if (!out)
        return NULL;
    size_t used = take_all(name, false, out);
    if (used > width)
        used = take_all(name, true, out);
    char *open = strchr(out, '<');
    if (!used)
        memcpy(out, name, strlen(name) + 1);
    else if (used > width && open) {
        size_t head = (size_t)(open - out), arguments = used - head + 2;
        size_t kept = arguments + HEAD_KEPT < width ? width - arguments : HEAD_KEPT;
        if (head > kept + 2) {
            memmove(out + kept + 2, open, strlen(open) + 1);
            memcpy(out + kept, "..", 2);
        }
    }
    return out;
}
