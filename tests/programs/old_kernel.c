/* SPDX-License-Identifier: Apache-2.0
 *
 * old_kernel.c - preloaded into kjoule-probe: a kernel before 6.6, which knows no link of many uprobes.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>

enum { LINK_CREATE = 28, ATTACH_TYPE_AT = 8, TRACE_UPROBE_MULTI = 48 };

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    long a[6];
    __builtin_va_list list;
    __builtin_va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = __builtin_va_arg(list, long);
    __builtin_va_end(list);
    if (!real)
        real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_bpf && a[0] == LINK_CREATE) {
        uint32_t type;
        memcpy(&type, (const char *)a[1] + ATTACH_TYPE_AT, sizeof(type));
        if (type == TRACE_UPROBE_MULTI) {
            errno = EINVAL;
            return -1;
        }
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
