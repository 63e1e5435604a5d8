/* SPDX-License-Identifier: Apache-2.0
 *
 * musl.c - in a program of another libc the shim steps aside, and must not be in the way: it refers weakly to
 * what only glibc has, and still hands dlsym on. There is no dlvsym to find the real one behind our own
 * export, so it is looked up in the symbol tables of the loaded objects (ELF gABI, "Hash Table Section").
 */
#include "shim.h"

#include <elf.h>
#include <link.h>
#include <string.h>

extern const char *gnu_get_libc_version(void) __attribute__((weak));

bool kj_libc_is_foreign(void)
{
    return !gnu_get_libc_version;
}

struct symbols {
    const ElfW(Sym) * table;
    const char *names;
    size_t count;
};

/* As many as the GNU hash table reaches: the end of the longest chain. */
static size_t count_by_gnu_hash(const uint32_t *hash)
{
    uint32_t buckets = hash[0], first = hash[1], bloom = hash[2], last = 0;
    const uint32_t *bucket = (const uint32_t *)((const ElfW(Addr) *)(hash + 4) + bloom);
    const uint32_t *chain = bucket + buckets;
    for (uint32_t i = 0; i < buckets; i++)
        if (bucket[i] > last)
            last = bucket[i];
    if (last < first)
        return first;
    while (!(chain[last - first] & 1))
        last++;
    return last + 1;
}

static struct symbols symbols_of(const struct dl_phdr_info *object)
{
    struct symbols s = {0};
    for (int i = 0; i < object->dlpi_phnum; i++) {
        if (object->dlpi_phdr[i].p_type != PT_DYNAMIC)
            continue;
        const ElfW(Dyn) *d = (const ElfW(Dyn) *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
        for (; d->d_tag != DT_NULL; d++) {
            /* musl leaves addresses as they are in the file */
            ElfW(Addr) at = d->d_un.d_ptr;
            at += at < object->dlpi_addr ? object->dlpi_addr : 0;
            if (d->d_tag == DT_SYMTAB)
                s.table = (const ElfW(Sym) *)at;
            else if (d->d_tag == DT_STRTAB)
                s.names = (const char *)at;
            else if (d->d_tag == DT_HASH)
                s.count = ((const uint32_t *)at)[1];
            else if (d->d_tag == DT_GNU_HASH && !s.count)
                s.count = count_by_gnu_hash((const uint32_t *)at);
        }
    }
    return s;
}

struct wanted {
    const char *name;
    const void *not_this;
    void *found;
};

static int look(struct dl_phdr_info *object, size_t size, void *argument)
{
    struct wanted *wanted = argument;
    struct symbols s = symbols_of(object);
    (void)size;
    for (size_t i = 1; s.table && s.names && i < s.count; i++) {
        const ElfW(Sym) *symbol = &s.table[i];
        void *at = (void *)(object->dlpi_addr + symbol->st_value);
        if (symbol->st_shndx != SHN_UNDEF && at != wanted->not_this &&
            !strcmp(s.names + symbol->st_name, wanted->name)) {
            wanted->found = at;
            return 1;
        }
    }
    return 0;
}

void *kj_symbol_behind(const char *name, const void *own)
{
    struct wanted wanted = {.name = name, .not_this = own};
    dl_iterate_phdr(look, &wanted);
    return wanted.found;
}
