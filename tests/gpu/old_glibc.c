/* SPDX-License-Identifier: Apache-2.0
 *
 * old_glibc.c - what compilers and headers of a glibc of 2.33 or newer ask for, and an older one does not
 * have. Linked into each program and library of the bundle, with -Wl,--wrap=__libc_start_main into programs.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HIDDEN __attribute__((visibility("hidden")))

/* 2.33: before, these were macros over __xstat. The kernel's structure is struct stat on both machines. */
#if !defined(__x86_64__) && !defined(__aarch64__)
#error "whether struct stat is the kernel's here is not known"
#endif
HIDDEN int fstatat(int folder, const char *restrict path, struct stat *restrict ret_status, int flags)
{
    return (int)syscall(SYS_newfstatat, folder, path, ret_status, flags);
}
HIDDEN int stat(const char *restrict path, struct stat *restrict ret_status)
{
    return fstatat(AT_FDCWD, path, ret_status, 0);
}
HIDDEN int lstat(const char *restrict path, struct stat *restrict ret_status)
{
    return fstatat(AT_FDCWD, path, ret_status, AT_SYMLINK_NOFOLLOW);
}
HIDDEN int fstat(int file, struct stat *ret_status)
{
    return (int)syscall(SYS_fstat, file, ret_status);
}

/* 2.38: what _GNU_SOURCE makes of these names, because of 0b101. The plain ones by their symbols. */
#define OLD_STRTO(type, name)                                                                                \
    type plain_##name(const char *text, char **ret_end, int base) __asm__(#name);                            \
    type __isoc23_##name(const char *text, char **ret_end, int base);                                        \
    HIDDEN type __isoc23_##name(const char *text, char **ret_end, int base)                                  \
    {                                                                                                        \
        return plain_##name(text, ret_end, base);                                                            \
    }
OLD_STRTO(long, strtol)
OLD_STRTO(unsigned long, strtoul)
OLD_STRTO(long long, strtoll)
OLD_STRTO(unsigned long long, strtoull)

#define OLD_SCANF(type, name)                                                                                \
    int plain_v##name(type from, const char *format, va_list values) __asm__("__isoc99_v" #name);            \
    int __isoc23_##name(type from, const char *format, ...);                                                 \
    HIDDEN int __isoc23_##name(type from, const char *format, ...)                                           \
    {                                                                                                        \
        va_list values;                                                                                      \
        va_start(values, format);                                                                            \
        int found = plain_v##name(from, format, values);                                                     \
        va_end(values);                                                                                      \
        return found;                                                                                        \
    }
OLD_SCANF(const char *, sscanf)
OLD_SCANF(FILE *, fscanf)

/* 2.32, and 2.36: of libstdc++. */
HIDDEN char __libc_single_threaded;
HIDDEN uint32_t arc4random(void)
{
    uint32_t value = 0;
    return getrandom(&value, sizeof(value), 0) == sizeof(value) ? value : 0;
}

/* 2.35: of libgcc, where exceptions look for the tables of a place in the code. */
#if __GLIBC_PREREQ(2, 35)
struct sought {
    uintptr_t at;
    struct dl_find_object *object;
};

static int is_in(struct dl_phdr_info *info, size_t size, void *data)
{
    struct sought *sought = data;
    const ElfW(Phdr) *in = NULL, *tables = NULL;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && sought->at - (info->dlpi_addr + part->p_vaddr) < part->p_memsz)
            in = part;
        if (part->p_type == PT_GNU_EH_FRAME)
            tables = part;
    }
    if (!in || !tables)
        return 0;
    sought->object->dlfo_map_start = (void *)(info->dlpi_addr + in->p_vaddr);
    sought->object->dlfo_map_end = (void *)(info->dlpi_addr + in->p_vaddr + in->p_memsz);
    sought->object->dlfo_eh_frame = (void *)(info->dlpi_addr + tables->p_vaddr);
    return 1;
}

HIDDEN int _dl_find_object(void *address, struct dl_find_object *ret_object)
{
    struct sought sought = {(uintptr_t)address, ret_object};
    return dl_iterate_phdr(is_in, &sought) ? 0 : -1;
}
#endif

/* 2.34: the C library runs a program's constructors; before, crt1.o named a function that does. */
typedef void (*constructor)(int, char **, char **);
extern const constructor __preinit_array_start[] __attribute__((weak, visibility("hidden")));
extern const constructor __preinit_array_end[] __attribute__((weak, visibility("hidden")));
extern const constructor __init_array_start[] __attribute__((weak, visibility("hidden")));
extern const constructor __init_array_end[] __attribute__((weak, visibility("hidden")));
int __real___libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, constructor init,
                             void (*fini)(void), void (*loader_fini)(void), void *stack_end)
    __attribute__((weak));
int __wrap___libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, constructor init,
                             void (*fini)(void), void (*loader_fini)(void), void *stack_end);

static void construct(int argc, char **argv, char **environment)
{
    for (const constructor *at = __preinit_array_start; at < __preinit_array_end; at++)
        (*at)(argc, argv, environment);
    for (const constructor *at = __init_array_start; at < __init_array_end; at++)
        (*at)(argc, argv, environment);
}

HIDDEN int __wrap___libc_start_main(int (*main)(int, char **, char **), int argc, char **argv,
                                    constructor init, void (*fini)(void), void (*loader_fini)(void),
                                    void *stack_end)
{
    return __real___libc_start_main(main, argc, argv, init ? init : construct, fini, loader_fini, stack_end);
}
