/* SPDX-License-Identifier: Apache-2.0
 *
 * cgroup.c - what the control groups that this process is in tell, v1 and v2: the quota that holds for the
 * run, and, where the group holds nobody but the run, its CPU time to the nanosecond, of children too that
 * nobody waited for. A container sees its own group as the root, or, with v1 and no name space of its own,
 * under a path that it cannot see: then the mount itself is its group.
 */
#include "record/cgroup.h"
#include "base/file.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MOUNT "/sys/fs/cgroup"

enum { ABOVE_MAX = 32 };

/* Where this process's group is, of one hierarchy. */
struct group {
    char path[PATH_MAX];
    size_t mount; /* length of path that is the mount: nothing to see above */
};

static bool has_file(const struct group *group, const char *file)
{
    char path[PATH_MAX + 64];
    snprintf(path, sizeof(path), "%s/%s", group->path, file);
    return access(path, R_OK) == 0;
}

/* The group's own folder; else the mount, as a container may see it. */
static bool try_mount(const char *root, const char *mount, const char *name, const char *file,
                      struct group *ret_group)
{
    int length = snprintf(ret_group->path, sizeof(ret_group->path), "%s%s", root, mount);
    ret_group->mount = (size_t)length;
    if (length >= PATH_MAX - 1)
        return false;
    if (strcmp(name, "/") && !strstr(name, ".."))
        snprintf(ret_group->path + length, sizeof(ret_group->path) - (size_t)length, "%s", name);
    if (has_file(ret_group, file))
        return true;
    ret_group->path[length] = 0;
    return has_file(ret_group, file);
}

static bool names_controller(const char *list, const char *controller)
{
    size_t length = strlen(controller);
    for (const char *p = list; p && *p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
        if (!strncmp(p, controller, length) && (p[length] == ',' || !p[length]))
            return true;
    return false;
}

/* controller: of v1; NULL: v2. file: must be there. */
static bool find_group(const char *root, const char *controller, const char *file, struct group *ret_group)
{
    char *text, path[PATH_MAX], mount[300];
    bool found = false;
    snprintf(path, sizeof(path), "%s/proc/self/cgroup", root);
    if (kj_file_read(AT_FDCWD, path, 1 << 16, &text, NULL))
        return false;
    for (char *rest = text, *row; !found && (row = strsep(&rest, "\n"));) {
        char *list = strchr(row, ':'), *name = list ? strchr(list + 1, ':') : NULL;
        if (!name)
            continue;
        *name++ = 0;
        list++;
        if (!controller && !*list) {
            found = try_mount(root, MOUNT, name, file, ret_group) ||
                    try_mount(root, MOUNT "/unified", name, file, ret_group);
        } else if (controller && names_controller(list, controller)) {
            snprintf(mount, sizeof(mount), MOUNT "/%.200s", list);
            found = try_mount(root, mount, name, file, ret_group);
            snprintf(mount, sizeof(mount), MOUNT "/%s", controller);
            found = found || try_mount(root, mount, name, file, ret_group);
        }
    }
    free(text);
    return found;
}

/* ------------------------------------------------------------------ quota */

static double number_at(const struct group *group, const char *file)
{
    char path[PATH_MAX + 64], line[64];
    snprintf(path, sizeof(path), "%s/%s", group->path, file);
    return kj_file_read_line(path, line, sizeof(line)) ? 0 : strtod(line, NULL);
}

static double quota_at(const struct group *group, bool v2)
{
    char path[PATH_MAX + 64], line[64];
    double quota = 0, period = 0;
    if (v2) {
        snprintf(path, sizeof(path), "%s/cpu.max", group->path); /* "max 100000", or quota and period in us */
        if (kj_file_read_line(path, line, sizeof(line)) || sscanf(line, "%lf %lf", &quota, &period) != 2)
            return 0;
    } else {
        quota = number_at(group, "cpu.cfs_quota_us"); /* -1: none */
        period = number_at(group, "cpu.cfs_period_us");
    }
    return quota > 0 && period > 0 ? quota / period : 0;
}

/* A limit further up binds as well: a pod's, a slice's. */
static double least_quota(struct group *group, bool v2)
{
    double least = 0;
    for (int i = 0; i < ABOVE_MAX; i++) {
        double quota = quota_at(group, v2);
        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
        char *slash = strrchr(group->path, '/');
        if (!slash || (size_t)(slash - group->path) < group->mount)
            break;
        *slash = 0;
    }
    return least;
}

double kj_cgroup_quota(const char *root)
{
    struct group group;
    double one = 0, other = 0;
    if (find_group(root, NULL, "cgroup.procs", &group))
        one = least_quota(&group, true);
    if (find_group(root, "cpu", "cpu.cfs_quota_us", &group))
        other = least_quota(&group, false);
    return one > 0 && (other == 0 || one < other) ? one : other;
}

/* ------------------------------------------------------------------ CPU time */

struct kj_cgroup {
    struct group group;
    bool v2, shared;
    uint64_t first_ns, self_first_ns, above_first_ns;
    int32_t above[ABOVE_MAX]; /* who started us: in the group, and not the run's */
    size_t above_count;
};

static bool read_usage(const struct kj_cgroup *cgroup, uint64_t *ret_ns)
{
    char path[PATH_MAX + 64], line[64];
    snprintf(path, sizeof(path), "%s/%s", cgroup->group.path, cgroup->v2 ? "cpu.stat" : "cpuacct.usage");
    if (kj_file_read_line(path, line, sizeof(line)))
        return false;
    if (!cgroup->v2) {
        *ret_ns = strtoull(line, NULL, 10);
        return isdigit((unsigned char)*line);
    }
    if (strncmp(line, "usage_usec ", 11)) /* the first line, since 4.15 */
        return false;
    *ret_ns = strtoull(line + 11, NULL, 10) * 1000;
    return true;
}

static uint64_t self_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * KJ_NS_PER_S + (uint64_t)t.tv_nsec;
}

static int32_t parent_of(int32_t pid)
{
    char path[64], text[1024], *p;
    int32_t parent;
    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    if (kj_file_read_line(path, text, sizeof(text)) || !(p = strrchr(text, ')')))
        return -1;
    return sscanf(p + 1, " %*c %d", &parent) == 1 ? parent : -1;
}

static bool is_listed(const int32_t *pids, size_t count, int32_t pid)
{
    for (size_t i = 0; i < count; i++)
        if (pids[i] == pid)
            return true;
    return false;
}

/* Of the run: known already, or born since. A pid of 0 is of another name space. */
static bool is_ours(const struct kj_cgroup_run *run, int32_t pid)
{
    for (int i = 0; i < 1000 && pid > 0; i++) {
        if (pid == (int32_t)getpid() || pid == run->root || is_listed(run->pids, run->count, pid))
            return true;
        int32_t parent = parent_of(pid);
        if (parent < 0)
            return i == 0; /* it has ended meanwhile */
        pid = parent;
    }
    return false;
}

static bool holds_groups(const char *path)
{
    DIR *folder = opendir(path);
    bool found = !folder;
    for (struct dirent *entry; folder && !found && (entry = readdir(folder));)
        found = entry->d_type == DT_DIR && entry->d_name[0] != '.';
    if (folder)
        closedir(folder);
    return found;
}

static char *read_members(const struct kj_cgroup *cgroup)
{
    char path[PATH_MAX + 64], *text;
    snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup->group.path);
    return kj_file_read(AT_FDCWD, path, 1 << 20, &text, NULL) ? NULL : text;
}

/* Who started us, as far as they are in the group: a shell that waits. */
static void find_above(struct kj_cgroup *cgroup, const struct kj_cgroup_run *run)
{
    char *text = read_members(cgroup);
    for (char *rest = text, *row; text && (row = strsep(&rest, "\n"));) {
        int32_t member = (int32_t)strtol(row, NULL, 10);
        for (int32_t pid = getppid(); pid > 0 && member > 0; pid = parent_of(pid))
            if (pid == member && pid != run->root && !is_listed(run->pids, run->count, pid) &&
                cgroup->above_count < ABOVE_MAX)
                cgroup->above[cgroup->above_count++] = pid;
    }
    free(text);
}

static bool is_alone(const struct kj_cgroup *cgroup, const struct kj_cgroup_run *run)
{
    bool alone = true;
    if (holds_groups(cgroup->group.path)) /* whose CPU time is counted in ours */
        return false;
    char *text = read_members(cgroup);
    if (!text)
        return false;
    for (char *rest = text, *row; alone && (row = strsep(&rest, "\n"));) {
        int32_t pid = (int32_t)strtol(row, NULL, 10);
        alone = !*row || is_listed(cgroup->above, cgroup->above_count, pid) || is_ours(run, pid);
    }
    free(text);
    return alone;
}

static uint64_t above_ns(const struct kj_cgroup *cgroup)
{
    uint64_t sum_ns = 0;
    for (size_t i = 0; i < cgroup->above_count; i++)
        sum_ns += kj_tree_process_ns(cgroup->above[i]);
    return sum_ns;
}

static bool try_open(struct kj_cgroup *cgroup, bool v2, const struct kj_cgroup_run *run)
{
    memset(cgroup, 0, sizeof(*cgroup));
    cgroup->v2 = v2;
    if (!find_group("", v2 ? NULL : "cpuacct", v2 ? "cpu.stat" : "cpuacct.usage", &cgroup->group))
        return false;
    find_above(cgroup, run);
    cgroup->above_first_ns = above_ns(cgroup);
    cgroup->self_first_ns = self_ns();
    return read_usage(cgroup, &cgroup->first_ns) && is_alone(cgroup, run);
}

struct kj_cgroup *kj_cgroup_open(const struct kj_cgroup_run *run)
{
    struct kj_cgroup *cgroup = malloc(sizeof(*cgroup));
    /* Both may be there, and hold different processes. */
    if (cgroup && (try_open(cgroup, false, run) || try_open(cgroup, true, run)))
        return cgroup;
    return kj_cgroup_close(cgroup);
}

struct kj_cgroup *kj_cgroup_close(struct kj_cgroup *cgroup)
{
    free(cgroup);
    return NULL;
}

bool kj_cgroup_read(struct kj_cgroup *cgroup, const struct kj_cgroup_run *run, uint64_t *ret_ns)
{
    uint64_t usage_ns = 0;
    cgroup->shared = cgroup->shared || !is_alone(cgroup, run);
    if (cgroup->shared || !read_usage(cgroup, &usage_ns))
        return false;
    uint64_t not_ours_ns =
        self_ns() - cgroup->self_first_ns + above_ns(cgroup) - cgroup->above_first_ns + cgroup->first_ns;
    *ret_ns = usage_ns > not_ours_ns ? usage_ns - not_ours_ns : 0;
    return true;
}
