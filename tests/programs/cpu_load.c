/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_load.c - burns CPU in known ways, and says at its end what the kernel charged it: its own rusage and
 * that of all its children, which it waited for. Work is done until the thread's own clock shows the time.
 *
 *     cpu_load spin MS [THREADS]     one thread, or several at once
 *     cpu_load children COUNT US     short-lived children one after the other
 *     cpu_load threads COUNT MS      threads that come and go, four at a time
 *     cpu_load forks DEPTH MS        a chain: each forks the next, burns, waits for it
 *     cpu_load orphans COUNT MS      children that outlive their parents; not in the rusage that it says
 *     cpu_load ignored COUNT MS      children that nobody waits for; not in that rusage either
 *     cpu_load exec MS               a second thread, which execs this program anew
 *     cpu_load exec MS PROGRAM       a second thread, which burns and execs another, to be read from disk
 *     cpu_load rest MS [THREADS]     threads that burn with many pauses and then block, all of them, until
 *                                    standard input ends; says "resting" when they have burnt
 *     cpu_load switches S [RATE]     two threads that hand a byte to and fro, RATE switches a second at most
 *     cpu_load sleep MS
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void burn(uint64_t ns)
{
    uint64_t until_ns = now_ns(CLOCK_THREAD_CPUTIME_ID) + ns;
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < until_ns)
        for (volatile int i = 0; i < 2000; i++)
            ;
}

static void *burning_thread(void *ns)
{
    prctl(PR_SET_NAME, "load_worker_0");
    burn(*(uint64_t *)ns);
    return NULL;
}

static void burn_threads(int count, uint64_t ns)
{
    pthread_t threads[64];
    count = count > 64 ? 64 : count;
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, burning_thread, &ns);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void run_children(int count, uint64_t ns)
{
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            burn(ns);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
}

static void run_chain(int depth, uint64_t ns)
{
    pid_t pid = depth > 1 ? fork() : -1;
    if (pid == 0) {
        run_chain(depth - 1, ns);
        _exit(0);
    }
    burn(ns);
    if (pid > 0)
        waitpid(pid, NULL, 0);
}

/* Each child leaves a grandchild that goes on after it; a pipe tells when all are done. */
static void run_orphans(int count, uint64_t ns)
{
    int done[2];
    char byte;
    if (pipe(done))
        exit(3);
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            if (fork() == 0)
                burn(ns);
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    close(done[1]);
    while (read(done[0], &byte, 1) > 0)
        ;
}

/* SIGCHLD ignored: the kernel reaps them itself, and tells nobody what they used. */
static void run_ignored(int count, uint64_t ns)
{
    signal(SIGCHLD, SIG_IGN);
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            burn(ns);
            _exit(0);
        }
        waitpid(pid, NULL, 0); /* until it is gone; fails then */
    }
}

static char **own_argv;

static void *exec_anew(void *ms)
{
    burn(20000000);
    if (own_argv[3]) {
        burn(1000000 * strtoull(ms, NULL, 10));
        int fd = open(own_argv[3], O_RDONLY);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
        usleep(250000); /* who counts threads has heard of all that ended */
        execl(own_argv[3], own_argv[3], "-c", "pass", NULL);
        exit(3);
    }
    execl("/proc/self/exe", own_argv[0], "spin", (char *)ms, NULL);
    exit(3);
}

static sem_t burnt;

static void *resting_thread(void *ns)
{
    for (int i = 0; i < 200; i++) {
        burn(*(uint64_t *)ns / 200);
        usleep(50);
    }
    sem_post(&burnt);
    for (;;)
        pause();
    return NULL;
}

static void burn_and_rest(int count, uint64_t ns)
{
    pthread_t thread;
    char byte;
    sem_init(&burnt, 0, 0);
    for (int i = 0; i < count; i++)
        pthread_create(&thread, NULL, resting_thread, &ns);
    for (int i = 0; i < count; i++)
        sem_wait(&burnt);
    puts("resting");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
}

static int to[2], fro[2];

static void *answering_thread(void *nothing)
{
    char byte;
    while (read(to[0], &byte, 1) == 1 && write(fro[1], &byte, 1) == 1)
        ;
    return nothing;
}

/* Returns the number of switches a second: each hand-over is one on the CPU of who waits for it. */
static double hand_over(double seconds, double rate)
{
    pthread_t thread;
    char byte = 0;
    uint64_t count = 0, start_ns = now_ns(CLOCK_MONOTONIC), end_ns;
    if (pipe(to) || pipe(fro))
        exit(3);
    pthread_create(&thread, NULL, answering_thread, NULL);
    do {
        if (write(to[1], &byte, 1) != 1 || read(fro[0], &byte, 1) != 1)
            exit(3);
        count += 2;
        do
            end_ns = now_ns(CLOCK_MONOTONIC);
        while ((double)count > rate * (double)(end_ns - start_ns) * 1e-9);
    } while ((double)(end_ns - start_ns) < seconds * 1e9);
    close(to[1]);
    pthread_join(thread, NULL);
    return (double)count / ((double)(end_ns - start_ns) / 1e9);
}

static double used_s(int who)
{
    struct rusage usage;
    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[1] : "";
    int number = argc > 2 ? atoi(argv[2]) : 0, second = argc > 3 ? atoi(argv[3]) : 1;
    double rate = 0;
    own_argv = argv;
    if (!strcmp(mode, "spin") && second == 1)
        burn((uint64_t)number * 1000000u);
    else if (!strcmp(mode, "spin"))
        burn_threads(second, (uint64_t)number * 1000000u);
    else if (!strcmp(mode, "children"))
        run_children(number, (uint64_t)second * 1000u);
    else if (!strcmp(mode, "threads"))
        for (int i = 0; i < number; i += 4)
            burn_threads(4, (uint64_t)second * 1000000u);
    else if (!strcmp(mode, "forks"))
        run_chain(number, (uint64_t)second * 1000000u);
    else if (!strcmp(mode, "orphans"))
        run_orphans(number, (uint64_t)second * 1000000u);
    else if (!strcmp(mode, "ignored"))
        run_ignored(number, (uint64_t)second * 1000000u);
    else if (!strcmp(mode, "rest"))
        burn_and_rest(second, (uint64_t)number * 1000000u);
    else if (!strcmp(mode, "switches"))
        rate = hand_over(number, argc > 3 ? second : 1e9);
    else if (!strcmp(mode, "sleep"))
        usleep((useconds_t)number * 1000u);
    else if (!strcmp(mode, "exec")) {
        pthread_t thread;
        pthread_create(&thread, NULL, exec_anew, argv[2]);
        burn(50000000);
        for (;;)
            pause();
    } else {
        fprintf(
            stderr,
            "usage: cpu_load spin|children|threads|forks|orphans|ignored|exec|rest|switches|sleep N [M]\n");
        return 2;
    }
    printf("{\"cpu_s\": %.6f, \"switches_per_s\": %.0f}\n", used_s(RUSAGE_SELF) + used_s(RUSAGE_CHILDREN),
           rate);
    return 0;
}
