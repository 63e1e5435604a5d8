/* SPDX-License-Identifier: Apache-2.0
 *
 * functions.c - from /proc/PID/maps to symbols' places in a file. The file is the user's and may hold
 * anything: every offset and size in it is checked against its length.
 */
#include "record/functions.h"

#include "base/file.h"
#include "record/parts.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "probe_stream.h"

enum { PROCESSES_MAX = 512, FILES_MAX = 16, SYMBOLS_MAX = 4 << 20, COST_SHARE = 50 };
#define STRINGS_MAX (256u << 20)

/* Where the functions are. The second is there in Python alone. */
enum { CPU, PYTHON, LIBRARIES };
static const char *const library_names[LIBRARIES] = {"/libtorch_cpu.so", "/libtorch_python.so"};

/* Mangled names as they begin: what follows differs with the version of PyTorch. */
static const struct {
    enum kj_probe_function function;
    const char *start;
    int library;
} wanted[] = {
    {KJ_FUNCTION_ENGINE, "_ZN5torch8autograd6Engine7executeE", CPU},
    {KJ_FUNCTION_ENGINE_END, "_ZNK3c106IValue14toTensorVectorEv", CPU},
    {KJ_FUNCTION_ENGINE_END, "_ZNK3c106IValue14toTensorVectorEv",
     PYTHON}, /* inline: a copy each, one of use */
    {KJ_FUNCTION_ENGINE_FAIL, "_ZN5torch8autograd6Engine19thread_on_exceptionE", CPU},
    {KJ_FUNCTION_CALL, "_ZN5torch3jit37_get_operation_for_overload_or_packetERKSt6vectorI", PYTHON},
    {KJ_FUNCTION_RECORD, "_ZN2at14RecordFunctionC1ENS_11RecordScopeE", CPU},
    {KJ_FUNCTION_RECORD_END, "_ZN2at14RecordFunction3endEv", CPU},
    /* c10::optional: 1.13 to 2.2. Without the first of these two the second would take others' for handles.
     */
    {KJ_FUNCTION_RECORD_NEW,
     "_ZN5torch8autograd8profiler25record_function_enter_newERKNSt7__cxx1112basic_stringIcSt11char_traitsIcE"
     "SaIcEEERKN3c108optional",
     CPU},
    {KJ_FUNCTION_HANDLE, "_ZN2at4_ops5zeros4callEN3c108ArrayRefINS2_6SymIntEEENS2_8optional", CPU},
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops5zero_4callE", CPU},        /* zero_grad */
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops11add__Tensor4callE", CPU}, /* SGD */
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops8addcdiv_4callE", CPU},     /* Adam and its kin */
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops18_foreach_add__List4callE", CPU},
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops24_foreach_addcdiv__Scalar4callE", CPU},
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops28_foreach_addcdiv__ScalarList4callE", CPU},
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops12_fused_adam_4callE", CPU},
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops13_fused_adamw_4callE", CPU},
    {KJ_FUNCTION_UPDATE, "_ZN2at4_ops11_fused_sgd_4callE", CPU},
};
enum { WANTED = sizeof(wanted) / sizeof(*wanted) };

struct library {
    dev_t device;
    ino_t inode;
    uint64_t offsets[WANTED]; /* in the file; 0: not there */
};

struct kj_functions {
    struct library libraries[FILES_MAX];
    size_t libraries_count;
    int32_t done[PROCESSES_MAX];
    size_t done_count;
    uint64_t next_ns;
    bool seen;
    char reason[200];
};

struct kj_functions *kj_functions_new(void)
{
    struct kj_functions *functions = calloc(1, sizeof(*functions));
    if (functions)
        snprintf(functions->reason, sizeof(functions->reason),
                 "no process of this run has loaded libtorch_cpu.so");
    return functions;
}

struct kj_functions *kj_functions_free(struct kj_functions *functions)
{
    free(functions);
    return NULL;
}

const char *kj_functions_reason(const struct kj_functions *functions)
{
    return functions->seen ? "" : functions->reason;
}

/* ------------------------------------------------------------------ symbols */

static void *read_part(int fd, uint64_t offset, uint64_t size, uint64_t max)
{
    char *data = size && size <= max ? malloc(size + 1) : NULL;
    uint64_t done = 0;
    while (data && done < size) {
        ssize_t n = pread(fd, data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            free(data);
            return NULL;
        }
        done += (uint64_t)n;
    }
    if (data)
        data[size] = 0;
    return data;
}

/* The place in the file of an address as it was linked. */
static uint64_t file_offset(const Elf64_Phdr *segments, size_t count, uint64_t address)
{
    for (size_t i = 0; i < count; i++)
        if (segments[i].p_type == PT_LOAD && address >= segments[i].p_vaddr &&
            address - segments[i].p_vaddr < segments[i].p_filesz)
            return address - segments[i].p_vaddr + segments[i].p_offset;
    return 0;
}

static void take_symbols(const Elf64_Sym *symbols, size_t count, const char *strings, uint64_t strings_size,
                         const Elf64_Phdr *segments, size_t segments_count, uint64_t *ret_offsets)
{
    for (size_t i = 0; i < count; i++) {
        if (ELF64_ST_TYPE(symbols[i].st_info) != STT_FUNC || symbols[i].st_shndx == SHN_UNDEF ||
            symbols[i].st_name >= strings_size)
            continue;
        const char *name = strings + symbols[i].st_name; /* a NUL follows the strings */
        for (int w = 0; w < WANTED; w++)
            if (!ret_offsets[w] && !strncmp(name, wanted[w].start, strlen(wanted[w].start)))
                ret_offsets[w] = file_offset(segments, segments_count, symbols[i].st_value);
    }
}

/* The kernel runs a push or a jump under a probe by itself; any other instruction it steps through, which
 * costs twenty times as much. RecordFunction::end, the one that is called for every operator of backward,
 * begins with cmpb $0,N(%rdi) and je: the jump does as well, where it is that. */
static uint64_t cheaper_place(int fd, uint64_t offset)
{
    uint8_t code[5];
    bool compares = pread(fd, code, sizeof(code), (off_t)offset) == sizeof(code) && code[0] == 0x80 &&
                    code[1] == 0x7f && code[3] == 0 && code[4] == 0x74;
    return compares ? offset + 4 : offset;
}

static int find_symbols(int fd, uint64_t *ret_offsets)
{
    Elf64_Ehdr header;
    int status = -ENOEXEC;
    if (pread(fd, &header, sizeof(header), 0) != sizeof(header) || memcmp(header.e_ident, ELFMAG, SELFMAG) ||
        header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_shentsize != sizeof(Elf64_Shdr) ||
        header.e_phentsize != sizeof(Elf64_Phdr))
        return status;
    Elf64_Shdr *sections = read_part(fd, header.e_shoff, header.e_shnum * sizeof(*sections), 1 << 20);
    Elf64_Phdr *segments = read_part(fd, header.e_phoff, header.e_phnum * sizeof(*segments), 1 << 20);
    for (size_t i = 0; sections && segments && i < header.e_shnum; i++) {
        const Elf64_Shdr *table = &sections[i];
        if (table->sh_type != SHT_DYNSYM || table->sh_link >= header.e_shnum)
            continue;
        const Elf64_Shdr *texts = &sections[table->sh_link];
        Elf64_Sym *symbols =
            read_part(fd, table->sh_offset, table->sh_size, (uint64_t)SYMBOLS_MAX * sizeof(*symbols));
        char *strings = read_part(fd, texts->sh_offset, texts->sh_size, STRINGS_MAX);
        if (symbols && strings) {
            take_symbols(symbols, table->sh_size / sizeof(*symbols), strings, texts->sh_size, segments,
                         header.e_phnum, ret_offsets);
            status = 0;
        }
        free(symbols);
        free(strings);
    }
    for (int w = 0; w < WANTED && header.e_machine == EM_X86_64; w++)
        if (ret_offsets[w])
            ret_offsets[w] = cheaper_place(fd, ret_offsets[w]);
    free(sections);
    free(segments);
    return status;
}

/* ------------------------------------------------------------------ processes */

/* Opens the file that the process has mapped under that name: the very one, by its inode. */
static int open_library(int32_t pid, const char *wanted_name, char *ret_path, size_t size,
                        struct stat *ret_st)
{
    char maps[64], *line = NULL, path[PATH_MAX];
    size_t room = 0;
    int fd = -ENOENT;
    snprintf(maps, sizeof(maps), "/proc/%d/maps", pid);
    FILE *file = fopen(maps, "re");
    if (!file)
        return -errno;
    while (fd == -ENOENT && getline(&line, &room, file) > 0) {
        unsigned major, minor;
        unsigned long inode;
        char *name = strchr(line, '/');
        if (!name || !strstr(name, wanted_name) ||
            sscanf(line, "%*s %*s %*s %x:%x %lu", &major, &minor, &inode) != 3)
            continue;
        name[strcspn(name, "\n")] = 0;
        snprintf(path, sizeof(path), "/proc/%d/root%s", pid,
                 name); /* as the process sees it, in a container too */
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd >= 0 && (fstat(fd, ret_st) || !S_ISREG(ret_st->st_mode) || ret_st->st_ino != inode)) {
            close(fd);
            fd = -ESTALE;
        } else if (fd < 0) {
            fd = -errno;
        }
        snprintf(ret_path, size, "%s", name);
    }
    free(line);
    fclose(file);
    return fd;
}

static const struct library *library_of(struct kj_functions *functions, int fd, const struct stat *st)
{
    for (size_t i = 0; i < functions->libraries_count; i++)
        if (functions->libraries[i].device == st->st_dev && functions->libraries[i].inode == st->st_ino)
            return &functions->libraries[i];
    if (functions->libraries_count == FILES_MAX)
        return NULL;
    struct library *library = &functions->libraries[functions->libraries_count++];
    *library = (struct library){.device = st->st_dev, .inode = st->st_ino};
    find_symbols(fd, library->offsets);
    return library;
}

static void attach(struct kj_functions *functions, struct kj_probe *probe, int32_t pid,
                   const int fds[LIBRARIES], const struct library *const libraries[LIBRARIES],
                   const char *path, bool late)
{
    bool there[KJ_FUNCTIONS] = {false};
    uint64_t offsets[WANTED];
    for (int w = 0; w < WANTED; w++) {
        const struct library *library = libraries[wanted[w].library];
        offsets[w] = library ? library->offsets[w] : 0;
        there[wanted[w].function] = there[wanted[w].function] || offsets[w];
    }
    bool engine = there[KJ_FUNCTION_ENGINE] && there[KJ_FUNCTION_ENGINE_END],
         optimizer = there[KJ_FUNCTION_RECORD] && there[KJ_FUNCTION_RECORD_END] && there[KJ_FUNCTION_UPDATE];
    for (int w = 0; w < WANTED; w++) {
        enum kj_probe_function function = wanted[w].function;
        bool spare = function == KJ_FUNCTION_UPDATE && there[KJ_FUNCTION_CALL]; /* names tell, and better */
        if (spare != late || (function == KJ_FUNCTION_HANDLE && !there[KJ_FUNCTION_RECORD_NEW]))
            continue;
        bool of_engine = function == KJ_FUNCTION_ENGINE || function == KJ_FUNCTION_ENGINE_END ||
                         function == KJ_FUNCTION_ENGINE_FAIL;
        if (offsets[w] && (of_engine ? engine : optimizer))
            kj_probe_function(probe, pid, function, fds[wanted[w].library], offsets[w]);
    }
    if (engine || optimizer) {
        functions->seen = true;
    } else {
        snprintf(functions->reason, sizeof(functions->reason),
                 "%.120s exports none of the functions that mark phases", path);
    }
}

/* late: it is watched already, but for what tells where there are no names. */
static void look_at(struct kj_functions *functions, struct kj_probe *probe, int32_t pid, bool late)
{
    char paths[LIBRARIES][PATH_MAX] = {"", ""};
    struct stat st;
    int fds[LIBRARIES] = {-1, -1};
    const struct library *libraries[LIBRARIES] = {NULL, NULL};
    for (int i = 0; i < LIBRARIES && (i == CPU || fds[CPU] >= 0); i++) {
        fds[i] = open_library(pid, library_names[i], paths[i], sizeof(paths[i]), &st);
        if (fds[i] >= 0)
            libraries[i] = library_of(functions, fds[i], &st);
    }
    if (libraries[CPU])
        attach(functions, probe, pid, fds, libraries, paths[CPU], late);
    if (fds[CPU] >= 0 && !late)
        functions->done[functions->done_count++] = pid;
    for (int i = 0; i < LIBRARIES; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static bool is_done(struct kj_functions *functions, int32_t pid)
{
    for (size_t i = 0; i < functions->done_count; i++)
        if (functions->done[i] == pid)
            return true;
    return functions->done_count == PROCESSES_MAX;
}

void kj_functions_look(struct kj_functions *functions, struct kj_probe *probe, const int32_t *pids,
                       size_t count)
{
    int32_t pid;
    while (kj_probe_unnamed(probe, &pid))
        look_at(functions, probe, pid, true);
    uint64_t now_ns = kj_mono_ns();
    if (now_ns < functions->next_ns)
        return;
    for (size_t i = 0; i < count; i++)
        if (!is_done(functions, pids[i]))
            look_at(functions, probe, pids[i], false);
    functions->next_ns = now_ns + COST_SHARE * (kj_mono_ns() - now_ns);
}
