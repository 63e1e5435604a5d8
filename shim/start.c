/* SPDX-License-Identifier: Apache-2.0
 *
 * start.c - bare LD_PRELOAD: the first process of a tree starts the recorder, as a stranger to its host:
 * double-forked, in a session of its own, without the host's descriptors. README.md has the contract.
 *
 * Runs in the constructor, before main and before there is a second thread.
 */
#include "shim.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define HELLO_WAIT_MS  2000 /* for the recorder to name its folder */
#define REPORT_WAIT_MS 5000 /* at exit, for the report */

extern char **environ;

static int done_fd = -1; /* end of file: the report is complete */
static pid_t starter;    /* the process that started the recorder and waits for it */
static uint64_t started_ns;

/* The program beside the library: build/kjoule, or bin/kjoule of an installation with
 * lib/kjoule/libkjoule.so. */
static bool find_program(char *ret_path, size_t size)
{
    static const char *const places[] = {"kjoule", "../../bin/kjoule"};
    Dl_info info;
    const char *slash;
    if (!dladdr((void *)(uintptr_t)find_program, &info) || !(slash = strrchr(info.dli_fname, '/')))
        return false;
    for (int i = 0; i < 2; i++) {
        int n = snprintf(ret_path, size, "%.*s/%s", (int)(slash - info.dli_fname), info.dli_fname, places[i]);
        struct stat st;
        if (n > 0 && (size_t)n < size && !access(ret_path, X_OK) && !stat(ret_path, &st) &&
            S_ISREG(st.st_mode))
            return true;
    }
    return false;
}

/* The environment without what would load us into the recorder; entries are shared, only the list is new. */
static char **recorder_environment(void)
{
    size_t count = 0, kept = 0;
    while (environ[count])
        count++;
    char **list = malloc((count + 1) * sizeof(*list));
    for (size_t i = 0; list && i < count; i++)
        if (strncmp(environ[i], "LD_PRELOAD=", 11) && strncmp(environ[i], "LD_AUDIT=", 9))
            list[kept++] = environ[i];
    if (list)
        list[kept] = NULL;
    return list;
}

static void run_recorder(const char *program, char **environment, int hello, int done)
{
    char pid[16];
    snprintf(pid, sizeof(pid), "%d", (int)getppid());
    setsid();
    if (syscall(SYS_fork) != 0) /* raw: no atfork handler of the host runs in this passage */
        _exit(0);
    /* Descriptors 3, 4, 5 as the recorder expects them; nothing else of the host's stays open. */
    int copies[3] = {fcntl(hello, F_DUPFD, 10), fcntl(STDERR_FILENO, F_DUPFD, 10), fcntl(done, F_DUPFD, 10)};
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    for (int i = 0; i < 3; i++)
        if (copies[i] >= 0)
            dup2(copies[i], 3 + i);
        else
            close(3 + i);
    syscall(SYS_close_range, 6u, ~0u, 0u);
    char *argv[] = {(char *)"kjoule", (char *)"record", (char *)"--pid", pid, NULL};
    execve(program, argv, environment);
    _exit(127);
}

static bool read_folder(int fd, char *ret_path, size_t size)
{
    size_t have = 0;
    uint64_t until_ns = kj_now_ns() + HELLO_WAIT_MS * 1000000ULL;
    while (have + 1 < size) {
        uint64_t now_ns = kj_now_ns();
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (now_ns >= until_ns || poll(&wait, 1, (int)((until_ns - now_ns) / 1000000) + 1) <= 0)
            return false;
        ssize_t n = read(fd, ret_path + have, size - 1 - have);
        if (n <= 0)
            return false;
        have += (size_t)n;
        ret_path[have] = 0;
        char *end = strchr(ret_path, '\n');
        if (end) {
            *end = 0;
            return ret_path[0] == '/';
        }
    }
    return false;
}

void kj_recorder_start(void)
{
    char program[PATH_MAX];
    int hello[2], done[2];
    if (!find_program(program, sizeof(program)))
        return; /* nobody to record: look-ups pass through unhooked, silently, as in any process without a run
                 */
    char **environment = recorder_environment();
    if (!environment || pipe2(hello, O_CLOEXEC) || pipe2(done, O_CLOEXEC))
        return;
    starter = getpid();
    started_ns = kj_now_ns();
    /* A child whose end is not announced with SIGCHLD: the host's handlers and waits never meet it. */
    pid_t child = (pid_t)syscall(SYS_clone, 0 /* no signal */, NULL, NULL, NULL, NULL);
    if (child == 0)
        run_recorder(program, environment, hello[1], done[1]);
    close(hello[1]);
    close(done[1]);
    free(environment);
    int status;
    if (child > 0)
        while (waitpid(child, &status, __WCLONE) < 0 && errno == EINTR)
            ;
    if (child > 0 && read_folder(hello[0], kj_config.dir, sizeof(kj_config.dir))) {
        setenv("KJOULE_DIR", kj_config.dir, 1);
        /* High numbers: programs that open files expect the low ones. */
        done_fd = fcntl(done[0], F_DUPFD_CLOEXEC, 900);
    } else {
        kj_config.dir[0] = 0;
        starter = 0;
    }
    close(hello[0]);
    if (done_fd != done[0])
        close(done[0]);
}

void kj_recorder_wait(void)
{
    if (done_fd < 0 || starter != getpid())
        return;
    /* A helper that did nothing worth a report must not be held up. */
    if (!kj_ledger_now() && kj_now_ns() - started_ns < 1000000000u)
        return;
    uint64_t until_ns = kj_now_ns() + REPORT_WAIT_MS * 1000000ULL;
    char word;
    for (;;) {
        uint64_t now_ns = kj_now_ns();
        struct pollfd wait = {.fd = done_fd, .events = POLLIN};
        if (now_ns >= until_ns || poll(&wait, 1, (int)((until_ns - now_ns) / 1000000) + 1) <= 0)
            return;
        if (read(done_fd, &word, 1) <= 0)
            return;
    }
}

void kj_recorder_forget(void)
{
    if (done_fd >= 0)
        close(done_fd);
    done_fd = -1;
    starter = 0;
}
