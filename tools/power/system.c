/* SPDX-License-Identifier: Apache-2.0
 *
 * system.c - small readings of /sys and /proc under a root that tests can lay, shared by the sources.
 */
#include "base/file.h"
#include "power/source.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

uint64_t kj_power_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * KJ_NS_PER_S + (uint64_t)now.tv_nsec;
}

void kj_text(char *ret_text, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(ret_text, size, format, args);
    va_end(args);
}

static int line_at(const char *root, char *ret_line, size_t size, const char *format, va_list args)
{
    char path[PATH_MAX];
    int prefix = snprintf(path, sizeof(path), "%s", root);
    if (prefix < 0 || prefix >= (int)sizeof(path))
        return -ENAMETOOLONG;
    int rest = vsnprintf(path + prefix, sizeof(path) - (size_t)prefix, format, args);
    if (rest < 0 || rest >= (int)sizeof(path) - prefix)
        return -ENAMETOOLONG;
    return kj_file_read_line(path, ret_line, size);
}

int kj_root_line(const char *root, char *ret_line, size_t size, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int error = line_at(root, ret_line, size, format, args);
    va_end(args);
    return error;
}

static int parse_number(const char *text, uint64_t *ret_value)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)*text) || errno || (*end && !isspace((unsigned char)*end)))
        return -EINVAL;
    *ret_value = value;
    return 0;
}

int kj_root_number(const char *root, uint64_t *ret_value, const char *format, ...)
{
    char line[64];
    va_list args;
    va_start(args, format);
    int error = line_at(root, line, sizeof(line), format, args);
    va_end(args);
    return error ? error : parse_number(line, ret_value);
}

int kj_fd_number(int fd, uint64_t *ret_value)
{
    char text[64];
    ssize_t size = pread(fd, text, sizeof(text) - 1, 0);
    if (size < 0)
        return -errno;
    text[size] = 0;
    return parse_number(text, ret_value);
}

static int by_version(const struct dirent **a, const struct dirent **b)
{
    return strverscmp((*a)->d_name, (*b)->d_name);
}

int kj_root_each(const char *root, const char *folder, int (*visit)(void *context, const char *name),
                 void *context)
{
    char path[PATH_MAX];
    struct dirent **names;
    if (snprintf(path, sizeof(path), "%s%s", root, folder) >= (int)sizeof(path))
        return -ENAMETOOLONG;
    int count = scandir(path, &names, NULL, by_version);
    if (count < 0)
        return -errno;
    int error = 0;
    for (int i = 0; i < count; i++) {
        if (names[i]->d_name[0] != '.' && error >= 0)
            error = visit(context, names[i]->d_name);
        free(names[i]);
    }
    free(names);
    return error < 0 ? error : 0;
}

/* Arm cores carry numbers, not names. Part numbers of implementer 0x41. */
static const char *arm_name(unsigned long part)
{
    switch (part) {
    case 0xd0c:
        return "Arm Neoverse-N1";
    case 0xd40:
        return "Arm Neoverse-V1";
    case 0xd49:
        return "Arm Neoverse-N2";
    case 0xd4f:
        return "Arm Neoverse-V2";
    default:
        return "Arm";
    }
}

static void read_cpu_line(struct kj_cpu_info *cpu, const char *key, const char *value, long *processor)
{
    if (!strcmp(key, "processor")) {
        *processor = strtol(value, NULL, 10);
        cpu->cpus++;
    } else if (!strcmp(key, "model name") && !cpu->model[0]) {
        kj_text(cpu->model, sizeof(cpu->model), "%s", value);
    } else if (!strcmp(key, "CPU part") && !cpu->model[0]) {
        kj_text(cpu->model, sizeof(cpu->model), "%s", arm_name(strtoul(value, NULL, 16)));
    } else if (!strcmp(key, "physical id") && *processor >= 0 && *processor < KJ_CPUS_MAX) {
        cpu->package_of_cpu[*processor] = (uint16_t)strtoul(value, NULL, 10);
    } else if (!strcmp(key, "flags") && !cpu->virtual_machine) {
        const char *flag = strstr(value, " hypervisor");
        cpu->virtual_machine = flag && (flag[11] == ' ' || !flag[11]);
    }
}

void kj_cpu_info_read(const char *root, struct kj_cpu_info *ret_cpu)
{
    memset(ret_cpu, 0, sizeof(*ret_cpu));
    char path[PATH_MAX], *text;
    kj_text(path, sizeof(path), "%s/proc/cpuinfo", root);
    if (kj_file_read(AT_FDCWD, path, 16 << 20, &text, NULL))
        return;
    long processor = -1;
    char *save;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *colon = strchr(line, ':');
        if (!colon)
            continue;
        char *end = colon;
        while (end > line && isspace((unsigned char)end[-1]))
            end--;
        *end = 0;
        read_cpu_line(ret_cpu, line, colon[1] ? colon + 2 : colon + 1, &processor);
    }
    free(text);
}

void kj_package_name(char *ret_name, size_t size, unsigned package, unsigned die)
{
    if (die)
        kj_text(ret_name, size, "package-%u-die-%u", package, die);
    else
        kj_text(ret_name, size, "package-%u", package);
}

uint64_t kj_unwrap(struct kj_unwrap *unwrap, uint64_t raw, uint64_t range)
{
    if (!unwrap->begun)
        unwrap->begun = true;
    else if (raw >= unwrap->last)
        unwrap->sum += raw - unwrap->last;
    else if (range >= unwrap->last)
        unwrap->sum += range - unwrap->last + raw;
    else
        unwrap->sum += raw; /* the range is not to be trusted: count what is certain */
    unwrap->last = raw;
    return unwrap->sum;
}
