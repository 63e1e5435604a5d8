/* SPDX-License-Identifier: Apache-2.0
 *
 * child.c - finding and starting the command: its own environment but for LD_PRELOAD, NVTX_INJECTION64_PATH
 * and a few KJOULE_ names.
 */
#include "record/parts.h"
#include "record/recorder.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int check_file(const char *path)
{
    struct stat st;
    if (stat(path, &st))
        return errno;
    return S_ISDIR(st.st_mode) ? EISDIR : access(path, X_OK) ? errno : 0;
}

int kj_command_find(const char *name, char **ret_path, struct kj_error *error)
{
    int status = ENOENT;
    char *found = NULL;
    if (strchr(name, '/')) {
        status = check_file(name);
        found = status ? NULL : strdup(name);
    } else if (*name) {
        const char *path = getenv("PATH");
        char *copy = strdup(path && *path ? path : "/usr/local/bin:/usr/bin:/bin"), *one;
        for (char *rest = copy; !found && (one = strsep(&rest, ":"));) {
            char file[PATH_MAX];
            if (snprintf(file, sizeof(file), "%s/%s", *one ? one : ".", name) >= (int)sizeof(file))
                continue;
            int rc = check_file(file);
            if (rc == 0)
                found = strdup(file);
            else if (rc == EACCES)
                status = EACCES;
        }
        free(copy);
    }
    if (found) {
        *ret_path = found;
        return 0;
    }
    bool missing = status == ENOENT || status == ENOTDIR;
    kj_error_set(error,
                 missing ? "%s: command not found; check its spelling and PATH"
                         : "%s: cannot be run (%s); is it a program with execute permission?",
                 name, strerror(status));
    return missing ? 127 : 126;
}

/* Beside this program in a build folder, else where `make install` puts it. */
static bool find_library(char *ret_path, size_t size)
{
    const char *set = getenv("KJOULE_LIBRARY");
    if (set && *set)
        return snprintf(ret_path, size, "%s", set) < (int)size && access(set, R_OK) == 0;
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return false;
    self[n] = 0;
    *strrchr(self, '/') = 0;
    static const char *const places[] = {"%s/libkjoule.so", "%s/../lib/kjoule/libkjoule.so"};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        char candidate[PATH_MAX + 64], *real;
        snprintf(candidate, sizeof(candidate), places[i], self);
        if ((real = realpath(candidate, NULL))) {
            bool fits = snprintf(ret_path, size, "%s", real) < (int)size;
            free(real);
            return fits;
        }
    }
    return false;
}

/* A library that the user preloads stays before ours: some (ASan) insist on being first. */
static void set_environment(const struct kj_child *child)
{
    char library[PATH_MAX], preload[2 * PATH_MAX];
    setenv("KJOULE_DIR", child->folder, 1);
    static const enum kj_option_id of_the_shim[] = {KJ_OPT_TIMING, KJ_OPT_BUDGET, KJ_OPT_PHASE_WALK};
    for (size_t i = 0; i < sizeof(of_the_shim) / sizeof(*of_the_shim); i++)
        if (child->options->given[of_the_shim[i]])
            setenv(kj_option_table[of_the_shim[i]].environment, child->options->text[of_the_shim[i]], 1);
    if (!find_library(library, sizeof(library)))
        return;
    setenv("NVTX_INJECTION64_PATH", library, 0); /* unless another tool listens to the ranges */
    const char *before = getenv("LD_PRELOAD");
    if (before && strstr(before, library))
        return;
    if (snprintf(preload, sizeof(preload), "%s%s%s", before ? before : "", before && *before ? ":" : "",
                 library) < (int)sizeof(preload))
        setenv("LD_PRELOAD", preload, 1);
}

int kj_child_spawn(const struct kj_child *child)
{
    int report[2];
    if (pipe2(report, O_CLOEXEC))
        return -errno;
    pid_t pid = fork();
    if (pid == 0) {
        set_environment(child);
        sigprocmask(SIG_SETMASK, child->mask, NULL);
        execvp(child->program, child->argv); /* execvp: a script without #! runs by the shell */
        int reason = errno;
        ssize_t ignored = write(report[1], &reason, sizeof(reason));
        (void)ignored;
        _exit(127);
    }
    int status = pid < 0 ? -errno : (int)pid, reason;
    close(report[1]);
    ssize_t n;
    do
        n = read(report[0], &reason, sizeof(reason));
    while (n < 0 && errno == EINTR);
    close(report[0]);
    return pid > 0 && n == sizeof(reason) ? -reason : status;
}
