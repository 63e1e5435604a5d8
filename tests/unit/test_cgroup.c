/* SPDX-License-Identifier: Apache-2.0
 *
 * test_cgroup.c - quotas of control groups as hosts, containers and pods lay them.
 */
#include "record/cgroup.h"

#include <ftw.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

static char root[64];

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    return remove(path);
}

static int lay_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/kj_test_cgroup.XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int clear_root(void **state)
{
    (void)state;
    return nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *file, const char *text)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s%s", root, file);
    for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        mkdir(path, 0755);
        *slash = '/';
    }
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    fclose(out);
}

#define V2 "/sys/fs/cgroup"

static void test_none(void **state)
{
    (void)state;
    assert_true(kj_cgroup_quota(root) == 0);
    put("/proc/self/cgroup", "");
    assert_true(kj_cgroup_quota(root) == 0);
    put("/proc/self/cgroup", "no colon\n1:\n:::\n0::/../../etc\n");
    assert_true(kj_cgroup_quota(root) == 0);
}

/* A name space of its own: the container's group is the root. */
static void test_v2_container(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/\n");
    put(V2 "/cgroup.procs", "1\n");
    put(V2 "/cpu.max", "250000 100000\n");
    assert_true(kj_cgroup_quota(root) == 2.5);
    put(V2 "/cpu.max", "max 100000\n");
    assert_true(kj_cgroup_quota(root) == 0);
    put(V2 "/cpu.max", "nonsense\n");
    assert_true(kj_cgroup_quota(root) == 0);
}

/* The pod's limit is less than the container's, and a slice above has none. */
static void test_v2_limit_above(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/kubepods.slice/pod1/container\n");
    put(V2 "/cgroup.procs", "");
    put(V2 "/kubepods.slice/cpu.max", "max 100000\n");
    put(V2 "/kubepods.slice/pod1/cpu.max", "50000 100000\n");
    put(V2 "/kubepods.slice/pod1/container/cpu.max", "400000 100000\n");
    put(V2 "/kubepods.slice/pod1/container/cgroup.procs", "");
    assert_true(kj_cgroup_quota(root) == 0.5);
}

static void test_v1(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "5:cpuset:/a\n4:cpu,cpuacct:/job/step\n1:name=systemd:/\n0::/\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/step/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "150000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "50000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
    assert_true(kj_cgroup_quota(root) == 3);
}

/* Without a name space the path is the host's, and the mount is the container's own group. */
static void test_v1_container(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "4:cpuacct,cpu:/docker/0123456789\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "75000\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_true(kj_cgroup_quota(root) == 0.75);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, lay_root, clear_root)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_none), TEST(test_v2_container), TEST(test_v2_limit_above),
                                       TEST(test_v1), TEST(test_v1_container)};
    return cmocka_run_group_tests_name("cgroup", tests, NULL, NULL);
}
