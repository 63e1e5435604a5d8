/* SPDX-License-Identifier: Apache-2.0
 *
 * start.c - bare LD_PRELOAD: the first process of a tree starts the recorder, and at its end lets it finish
 * its report. README.md has the contract of the two.
 *
 * The host never notices the recorder: it is forked twice and so nobody's child here, has a session of its
 * own and none of the host's descriptors but a copy of stderr. The host keeps no descriptor either. It finds
 * the recorder again, also after an exec, by the socket end.<pid> in the run folder.
 */
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    READY_WITHIN_MS = 2000,  /* the recorder's time to answer with its folder */
    REPORT_WITHIN_MS = 5000, /* the host's patience at its end */
    BRIEF_NS = 1000000000,   /* a process without CUDA that lives less does not wait */
    CHILD_STACK = 65536,
    FIRST_HIGH_FD = 10, /* above those that are rearranged for the recorder */
};

extern char **environ;
static uint64_t started_ns;

/* What the twice-forked child needs, made before the fork: after it, system calls alone. */
struct launch {
    char program[PATH_MAX];
    char pid[16];
    char **environment;
    int ready_fd; /* write end */
    int null_fd;
    char *stacks; /* of the two children */
};

static bool is_program(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

static int is_own_object(struct dl_phdr_info *object, size_t size, void *ret_path)
{
    uintptr_t own = (uintptr_t)&is_own_object;
    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        if (part->p_type == PT_LOAD && own - object->dlpi_addr - part->p_vaddr < part->p_memsz)
            return realpath(object->dlpi_name, ret_path) ? 1 : -1;
    }
    return 0;
}

/* Not by dladdr: it waits while another thread's dlopen runs constructors, which may wait for us. */
bool kj_own_library(char ret_path[PATH_MAX])
{
    return dl_iterate_phdr(is_own_object, ret_path) == 1;
}

/* KJOULE_PROGRAM, else beside libkjoule.so (a build folder), else ../../bin from it (an installed one). */
static bool find_program(char *ret_path)
{
    const char *set = getenv("KJOULE_PROGRAM");
    if (set && *set)
        return snprintf(ret_path, PATH_MAX, "%s", set) < PATH_MAX && is_program(ret_path);
    char library[PATH_MAX];
    if (!kj_own_library(library))
        return false;
    *strrchr(library, '/') = 0;
    int beside = snprintf(ret_path, PATH_MAX, "%s/kjoule", library);
    if (beside < PATH_MAX && is_program(ret_path))
        return true;
    int installed = snprintf(ret_path, PATH_MAX, "%s/../../bin/kjoule", library);
    return installed < PATH_MAX && is_program(ret_path);
}

/* kjoule itself under an exported LD_PRELOAD is not a run to be recorded. */
static bool is_own_program(const char *program)
{
    struct stat own, other;
    return stat("/proc/self/exe", &own) == 0 && stat(program, &other) == 0 && own.st_dev == other.st_dev &&
           own.st_ino == other.st_ino;
}

/* The environment without what would load us into the recorder. A mapping: malloc may be a preloaded one that
 * is not ready yet. */
static char **recorder_environment(size_t *ret_size)
{
    size_t count = 0;
    while (environ && environ[count])
        count++;
    *ret_size = (count + 1) * sizeof(char *);
    char **copy = mmap(NULL, *ret_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return NULL;
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (strncmp(environ[i], "LD_PRELOAD=", 11) && strncmp(environ[i], "LD_AUDIT=", 9))
            copy[kept++] = environ[i];
    copy[kept] = NULL;
    return copy;
}

static void close_from(unsigned first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0U, 0) == 0)
        return;
#endif
    for (int fd = (int)first; fd < 4096; fd++)
        close(fd);
}

/* In the grandchild, which shares our memory until the exec. */
static int become_recorder(void *argument)
{
    const struct launch *launch = argument;
    char *const argv[] = {(char *)"kjoule", (char *)"record", (char *)"--pid", (char *)launch->pid, NULL};
    sigset_t none;
    sigemptyset(&none);
    setsid();
    bool has_stderr = dup2(STDERR_FILENO, 4) == 4;
    dup2(launch->ready_fd, 3);
    for (int fd = 0; fd < 3; fd++)
        dup2(launch->null_fd, fd);
    close_from(has_stderr ? 5 : 4);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(launch->program, argv, launch->environment);
    return (int)syscall(SYS_exit_group, 0);
}

static pid_t vfork_into(int (*run)(void *), char *stack, struct launch *launch)
{
    return clone(run, stack + CHILD_STACK, CLONE_VM | CLONE_VFORK | SIGCHLD, launch);
}

static int become_orphan_maker(void *argument)
{
    struct launch *launch = argument;
    vfork_into(become_recorder, launch->stacks + CHILD_STACK, launch);
    return (int)syscall(SYS_exit_group, 0);
}

/* As vfork, twice: no copy of the host's page tables, none of its atfork handlers. The children end by system
 * call, for the host's exit handlers are not theirs to run. Not vfork itself: AddressSanitizer's keeps one
 * return address, and with a second vfork in the child the parent would return to the child's. */
static pid_t fork_twice(struct launch *launch)
{
    launch->stacks = mmap(NULL, 2 * CHILD_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (launch->stacks == MAP_FAILED)
        return -1;
    pid_t child = vfork_into(become_orphan_maker, launch->stacks, launch);
    munmap(launch->stacks, 2 * CHILD_STACK);
    return child;
}

static int high_fd(int fd)
{
    int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FIRST_HIGH_FD);
    if (fd >= 0)
        close(fd);
    return high;
}

/* Milliseconds left until `deadline_ns`, rounded up. */
static int left_ms(uint64_t deadline_ns)
{
    uint64_t now_ns = kj_now_ns();
    return now_ns >= deadline_ns ? 0 : (int)((deadline_ns - now_ns + 999999) / 1000000);
}

/* Reads one line, the path. False: none came in time. */
static bool read_path(int fd, char *ret_path, size_t cap)
{
    uint64_t deadline_ns = kj_now_ns() + READY_WITHIN_MS * 1000000ull;
    size_t size = 0;
    while (size < cap) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        int rc = poll(&wait, 1, left_ms(deadline_ns));
        if (rc < 0 && errno == EINTR)
            continue;
        if (rc <= 0)
            return false;
        ssize_t n = read(fd, ret_path + size, cap - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        size += (size_t)n;
        char *newline = memchr(ret_path, '\n', size);
        if (newline) {
            *newline = 0;
            return ret_path[0] == '/';
        }
    }
    return false;
}

static bool launch_recorder(struct launch *launch, char *ret_dir, size_t cap)
{
    int ready[2];
    size_t environment_size;
    launch->environment = recorder_environment(&environment_size);
    if (!launch->environment)
        return false;
    bool answered = false;
    if (pipe2(ready, O_CLOEXEC) == 0) {
        launch->null_fd = high_fd(open("/dev/null", O_RDWR | O_CLOEXEC));
        launch->ready_fd = high_fd(ready[1]);
        sigset_t all, before;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, &before); /* no handler of the host may run in the children */
        pid_t child = launch->null_fd >= 0 && launch->ready_fd >= 0 ? fork_twice(launch) : -1;
        while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
            ;
        sigprocmask(SIG_SETMASK, &before, NULL);
        if (launch->null_fd >= 0)
            close(launch->null_fd);
        if (launch->ready_fd >= 0)
            close(launch->ready_fd);
        answered = child > 0 && read_path(ready[0], ret_dir, cap);
        close(ready[0]);
    }
    munmap(launch->environment, environment_size);
    return answered;
}

void kj_recorder_start(void)
{
    struct launch launch = {.ready_fd = -1, .null_fd = -1};
    started_ns = kj_now_ns();
    if (!find_program(launch.program)) {
        kj_config.no_dir = "no kjoule program beside libkjoule.so; set KJOULE_PROGRAM to its path";
        return;
    }
    if (is_own_program(launch.program)) {
        kj_config.off = true;
        return;
    }
    snprintf(launch.pid, sizeof(launch.pid), "%d", (int)getpid());
    if (launch_recorder(&launch, kj_config.dir, sizeof(kj_config.dir))) {
        setenv("KJOULE_DIR", kj_config.dir, 1);
        kj_ranges_ask();
        return;
    }
    kj_config.dir[0] = 0;
    kj_config.no_dir = "the recorder did not start; `kjoule doctor` tells what is wrong";
    setenv("KJOULE_DISABLE", "1", 1); /* nor would it for our children, each after a wait */
}

void kj_recorder_wait(void)
{
    bool brief = started_ns && kj_now_ns() - started_ns < BRIEF_NS;
    if (kj_config.off || !kj_config.dir[0] || (brief && !kj_ledger_now()))
        return;
    int dir_fd = open(kj_config.dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = dir_fd < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0) {
        /* By descriptor: the folder's path may be longer than a socket's address. */
        struct sockaddr_un end = {.sun_family = AF_UNIX};
        snprintf(end.sun_path, sizeof(end.sun_path), "/proc/self/fd/%d/end.%d", dir_fd, (int)getpid());
        bool waiting = connect(fd, (struct sockaddr *)&end, sizeof(end)) == 0;
        uint64_t deadline_ns = kj_now_ns() + REPORT_WITHIN_MS * 1000000ull;
        while (waiting) {
            struct pollfd wait = {.fd = fd, .events = POLLIN};
            int rc = poll(&wait, 1, left_ms(deadline_ns));
            waiting = rc < 0 && errno == EINTR; /* it says nothing: what can come is its end */
        }
        close(fd);
    }
    if (dir_fd >= 0)
        close(dir_fd);
}
