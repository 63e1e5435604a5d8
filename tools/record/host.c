/* SPDX-License-Identifier: Apache-2.0
 *
 * host.c - facts of the machine, the job and the command that go into run.json.
 */
#include "base/file.h"
#include "record/cgroup.h"
#include "record/parts.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

static uint64_t clock_ns(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (uint64_t)t.tv_sec * KJ_NS_PER_S + (uint64_t)t.tv_nsec;
}

uint64_t kj_mono_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t kj_wall_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

void kj_host_warn(struct kj_run_info *info, const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int size = vasprintf(&text, format, args);
    va_end(args);
    char **larger = size < 0 ? NULL : realloc(info->warnings, (info->warnings_count + 1) * sizeof(char *));
    if (!larger) {
        if (size >= 0)
            free(text);
        return;
    }
    info->warnings = larger;
    info->warnings[info->warnings_count++] = text;
}

static const char *env(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : NULL;
}

static int32_t env_number(const char *a, const char *b)
{
    const char *text = env(a) ? env(a) : env(b);
    return text ? (int32_t)strtol(text, NULL, 10) : -1;
}

/* What each kind of container leaves to be known by: a file, a variable, or its groups' names. */
static char *container_kind(void)
{
    static const struct {
        const char *kind, *file, *variable, *group;
    } kinds[] = {
        {"kubernetes", NULL, "KUBERNETES_SERVICE_HOST", "kubepods"},
        {"podman", "/run/.containerenv", NULL, "libpod"},
        {"docker", "/.dockerenv", NULL, "docker"},
        {"apptainer", "/.singularity.d", "APPTAINER_CONTAINER", NULL},
        {"singularity", NULL, "SINGULARITY_CONTAINER", NULL},
        {"lxc", NULL, NULL, "/lxc"},
        {"containerd", NULL, NULL, "containerd"},
    };
    char *groups = NULL, *kind = NULL;
    kj_file_read(AT_FDCWD, "/proc/self/cgroup", 1 << 16, &groups, NULL);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds) && !kind; i++)
        if ((kinds[i].file && access(kinds[i].file, F_OK) == 0) ||
            (kinds[i].variable && env(kinds[i].variable)) ||
            (kinds[i].group && groups && strstr(groups, kinds[i].group)))
            kind = strdup(kinds[i].kind);
    free(groups);
    /* systemd's and podman's own word, which also others set. */
    return kind ? kind : env("container") ? strdup(env("container")) : NULL;
}

/* The hypervisor's maker where the firmware tells, "yes" where only the processor does. */
static char *virtual_machine_kind(void)
{
    static const char *const makers[] = {"QEMU",         "KVM",       "Xen",     "VMware",  "Microsoft",
                                         "Amazon EC2",   "Google",    "innotek", "Bochs",   "Parallels",
                                         "DigitalOcean", "OpenStack", "Alibaba", "Hetzner", "Oracle"};
    char *cpu = NULL, vendor[64] = "", type[64];
    kj_file_read(AT_FDCWD, "/proc/cpuinfo", 16 << 20, &cpu, NULL);
    char *flags = cpu ? strstr(cpu, "\nflags") : NULL, *end = flags ? strchr(flags + 1, '\n') : NULL;
    if (end)
        *end = 0;
    const char *flag = flags ? strstr(flags, " hypervisor") : NULL;
    bool is_virtual = flag && (flag[11] == ' ' || !flag[11]), by_flag = flags;
    free(cpu);
    if (kj_file_read_line("/sys/hypervisor/type", type, sizeof(type)) == 0 && *type)
        is_virtual = true;
    kj_file_read_line("/sys/class/dmi/id/sys_vendor", vendor, sizeof(vendor));
    /* Makers of clouds sell bare metal too: on x86 the processor has the last word. */
    for (size_t i = 0; i < sizeof(makers) / sizeof(*makers); i++)
        if (!strncmp(vendor, makers[i], strlen(makers[i])) && (is_virtual || !by_flag))
            return strdup(vendor);
    return is_virtual ? strdup("yes") : NULL;
}

static void describe_job(struct kj_run_info *info)
{
    static const struct {
        const char *kind, *variable;
    } jobs[] = {{"slurm", "SLURM_JOB_ID"}, {"torchelastic", "TORCHELASTIC_RUN_ID"}, {"kjoule", "KJOULE_DIR"}};
    for (size_t i = 0; i < sizeof(jobs) / sizeof(*jobs) && !info->job_kind; i++) {
        const char *id = env(jobs[i].variable);
        /* "none" is what torchrun says when it was not given one: many unrelated jobs share it. */
        if (id && strcmp(id, "none")) {
            info->job_kind = strdup(jobs[i].kind);
            info->job_id = strdup(id);
        }
    }
    info->rank = env_number("RANK", "SLURM_PROCID");
    info->local_rank = env_number("LOCAL_RANK", "SLURM_LOCALID");
    info->world_size = env_number("WORLD_SIZE", "SLURM_NTASKS");
}

void kj_host_describe(struct kj_run_info *info)
{
    struct utsname name;
    char text[512], stamp[32];
    cpu_set_t cpus;
    memset(&name, 0, sizeof(name));
    uname(&name);
    snprintf(text, sizeof(text), "%s %s %s", name.sysname, name.release, name.machine);
    info->os = strdup(text);
    info->host = strdup(name.nodename);
    info->version = strdup(KJ_VERSION);
    info->cwd = getcwd(NULL, 0);
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    info->cores_online = online > 0 ? (uint32_t)online : 1;
    info->cores_allowed =
        sched_getaffinity(0, sizeof(cpus), &cpus) ? info->cores_online : (uint32_t)CPU_COUNT(&cpus);
    info->cgroup_cpu_quota = kj_cgroup_quota("");
    info->container = container_kind();
    info->virtual_machine = virtual_machine_kind();
    info->memory_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    info->start_mono_ns = kj_mono_ns();
    info->start_wall_ns = kj_wall_ns();
    time_t seconds = (time_t)(info->start_wall_ns / KJ_NS_PER_S);
    struct tm utc;
    strftime(stamp, sizeof(stamp), "%Y%m%d-%H%M%S", gmtime_r(&seconds, &utc));
    for (char *p = name.nodename; *p; p++)
        if (*p == '/' || (unsigned char)*p < 0x21)
            *p = '_';
    int pid = info->root_pid ? info->root_pid : (int)getpid();
    snprintf(text, sizeof(text), "%s-%.64s-%d", stamp, name.nodename, pid);
    info->run_id = strdup(text);
    describe_job(info);
}

/* Looks for PT_INTERP. Programs of the other word size or byte order count as not ELF. */
static int read_interpreter(int fd, char *ret_path, size_t size)
{
    Elf64_Ehdr header;
    if (pread(fd, &header, sizeof(header), 0) != sizeof(header) || memcmp(header.e_ident, ELFMAG, SELFMAG) ||
        header.e_ident[EI_CLASS] != ELFCLASS64)
        return -ENOEXEC;
    *ret_path = 0;
    for (unsigned i = 0; i < header.e_phnum && i < 64; i++) {
        Elf64_Phdr segment;
        if (pread(fd, &segment, sizeof(segment), (off_t)(header.e_phoff + i * sizeof(segment))) !=
            sizeof(segment))
            return -ENOEXEC;
        if (segment.p_type != PT_INTERP)
            continue;
        size_t length = segment.p_filesz < size ? segment.p_filesz : size - 1;
        ssize_t n = pread(fd, ret_path, length, (off_t)segment.p_offset);
        ret_path[n > 0 ? n : 0] = 0;
    }
    return 0;
}

char *kj_host_blind_reason(const char *program)
{
    char interpreter[256];
    struct stat st;
    char *reason = NULL;
    int fd = open(program, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    bool elf = read_interpreter(fd, interpreter, sizeof(interpreter)) == 0;
    if (fstat(fd, &st) == 0 && (st.st_mode & (S_ISUID | S_ISGID)) && st.st_uid != getuid())
        reason = strdup("it is set-uid, and no library may be preloaded into it");
    else if (elf && !*interpreter)
        reason = strdup("it is statically linked, and no library can be preloaded into it");
    else if (elf && strstr(interpreter, "ld-musl"))
        reason = strdup("it uses musl libc, and libkjoule.so is built for glibc");
    close(fd);
    return reason;
}
