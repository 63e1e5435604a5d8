/* SPDX-License-Identifier: Apache-2.0
 *
 * events.c - signals, children and the clock through descriptors.
 *
 * Terminal and job control stay as without us: the command shares our process group, so what the terminal
 * sends reaches it directly, and is recognised by its origin (SI_KERNEL) and not sent twice. When the
 * terminal stops the command we stop too, and the shell sees a stopped job.
 */
#include "record/events.h"

#include "record/parts.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const int forwarded[] = {SIGHUP,  SIGINT,   SIGQUIT, SIGTERM, SIGUSR1,
                                SIGUSR2, SIGWINCH, SIGCONT, SIGTSTP};

enum source { SIGNALS, TIMER, PROCESS, LISTENER, SOURCES };

struct kj_events {
    struct pollfd poll[SOURCES];
    sigset_t outer_mask;
    bool masked;
    int32_t root;
    int dir_fd, waiting_fd; /* a process that waits for its report */
    char socket_name[32];
};

static int open_signals(struct kj_events *events)
{
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof(forwarded) / sizeof(*forwarded); i++)
        sigaddset(&set, forwarded[i]);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, &events->outer_mask);
    events->masked = true;
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

/* By descriptor: the folder's path may be longer than a socket's address. */
static int listen_for_end(struct kj_events *events, int32_t pid)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(events->socket_name, sizeof(events->socket_name), "end.%d", pid);
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", events->dir_fd,
             events->socket_name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 4))) {
        close(fd);
        fd = -1;
    }
    return fd; /* -1: nobody can wait for us, no more */
}

int kj_events_open(int32_t watch_pid, int dir_fd, struct kj_events **ret_events, struct kj_error *error)
{
    struct kj_events *events = calloc(1, sizeof(*events));
    if (!events)
        return -ENOMEM;
    for (int i = 0; i < SOURCES; i++)
        events->poll[i] = (struct pollfd){.fd = -1, .events = POLLIN};
    events->waiting_fd = -1;
    events->dir_fd = dir_fd;
    events->root = watch_pid;
    int status = 0;
    events->poll[TIMER].fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (watch_pid) {
        events->poll[PROCESS].fd = (int)syscall(SYS_pidfd_open, watch_pid, 0);
        if (events->poll[PROCESS].fd < 0)
            status = -errno;
        else
            events->poll[LISTENER].fd = listen_for_end(events, watch_pid);
    } else {
        status = events->poll[SIGNALS].fd = open_signals(events);
    }
    if (status < 0 || events->poll[TIMER].fd < 0) {
        kj_error_set(error, "cannot watch the process: %s", strerror(status < 0 ? -status : errno));
        kj_events_close(events);
        return status < 0 ? status : -EMFILE;
    }
    *ret_events = events;
    return 0;
}

const sigset_t *kj_events_outer_mask(const struct kj_events *events)
{
    return &events->outer_mask;
}

void kj_events_set_root(struct kj_events *events, int32_t pid)
{
    events->root = pid;
}

void kj_events_tick_at(struct kj_events *events, uint64_t t_ns)
{
    /* 0 would stop it; what is past comes at once */
    const struct itimerspec timer = {
        .it_value = {.tv_sec = (time_t)(t_ns / KJ_NS_PER_S), .tv_nsec = (long)(t_ns % KJ_NS_PER_S) + !t_ns}};
    timerfd_settime(events->poll[TIMER].fd, TFD_TIMER_ABSTIME, &timer, NULL);
}

/* Reaps whoever ended: the root, or an orphan of its that came to us. */
static bool reap(struct kj_events *events, struct kj_ending *ret_ending)
{
    bool ended = false;
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG | WUNTRACED)) > 0) {
        if (pid != events->root)
            continue;
        if (WIFSTOPPED(status)) {
            if (WSTOPSIG(status) == SIGTSTP || WSTOPSIG(status) == SIGTTIN || WSTOPSIG(status) == SIGTTOU)
                raise(SIGSTOP);
            continue;
        }
        ended = true;
        ret_ending->status_known = true;
        ret_ending->exit_signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
        ret_ending->exit_status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
    return ended;
}

static bool handle_signals(struct kj_events *events, struct kj_ending *ret_ending)
{
    struct signalfd_siginfo info;
    bool ended = false;
    while (read(events->poll[SIGNALS].fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGCHLD)
            ended = reap(events, ret_ending) || ended;
        else if (info.ssi_code != SI_KERNEL && !ended)
            kill(events->root, (int)info.ssi_signo);
    }
    return ended;
}

bool kj_events_wait(struct kj_events *events, struct kj_ending *ret_ending)
{
    for (;;) {
        int rc = poll(events->poll, SOURCES, -1);
        if (rc < 0 && errno != EINTR)
            return true;
        if (rc <= 0)
            continue;
        if (events->poll[SIGNALS].revents && handle_signals(events, ret_ending))
            return true;
        if (events->poll[LISTENER].revents) {
            events->waiting_fd = accept4(events->poll[LISTENER].fd, NULL, NULL, SOCK_CLOEXEC);
            if (events->waiting_fd >= 0)
                return true;
        }
        if (events->poll[PROCESS].revents)
            return true;
        uint64_t ticks;
        if (events->poll[TIMER].revents &&
            read(events->poll[TIMER].fd, &ticks, sizeof(ticks)) == sizeof(ticks))
            return false;
    }
}

struct kj_events *kj_events_close(struct kj_events *events)
{
    if (!events)
        return NULL;
    if (*events->socket_name)
        unlinkat(events->dir_fd, events->socket_name, 0);
    for (int i = 0; i < SOURCES; i++)
        if (events->poll[i].fd >= 0)
            close(events->poll[i].fd);
    if (events->waiting_fd >= 0)
        close(events->waiting_fd);
    free(events);
    return NULL;
}
