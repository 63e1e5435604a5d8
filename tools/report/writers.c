/* SPDX-License-Identifier: Apache-2.0
 *
 * writers.c - the table of formats.
 */
#include "report/writers.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *format;
    int (*write)(const struct kj_report *report, FILE *out);
} writers[] = {{"text", kj_write_text}, {"json", kj_write_json}};

int kj_report_write(const struct kj_report *report, const char *format, FILE *out, struct kj_error *error)
{
    for (size_t i = 0; i < sizeof(writers) / sizeof(*writers); i++)
        if (!strcmp(writers[i].format, format))
            return writers[i].write(report, out);
    kj_error_set(error, "--format: '%s' is not a format; choose text or json", format);
    return -EINVAL;
}

int kj_report_render(const struct kj_report *report, const char *format, char **ret_text, size_t *ret_size,
                     struct kj_error *error)
{
    FILE *out = open_memstream(ret_text, ret_size);
    if (!out)
        return -ENOMEM;
    int status = kj_report_write(report, format, out, error);
    return fclose(out) && !status ? -ENOMEM : status;
}

/* The C++ runtime has the demangler; it is looked for only when a name wants it, and is no dependency. */
char *kj_demangle(const char *name)
{
    static char *(*demangle)(const char *, char *, size_t *, int *);
    static bool looked;
    if (!looked) {
        looked = true;
        void *runtime = strncmp(name, "_Z", 2) ? NULL : dlopen("libstdc++.so.6", RTLD_LAZY | RTLD_LOCAL);
        if (strncmp(name, "_Z", 2))
            looked = false;
        if (runtime)
            *(void **)&demangle = dlsym(runtime, "__cxa_demangle");
    }
    int status = -1;
    char *text = demangle && !strncmp(name, "_Z", 2) ? demangle(name, NULL, NULL, &status) : NULL;
    return text ? text : strdup(name);
}
