/* SPDX-License-Identifier: Apache-2.0 */
#include "privileges.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int get(uint64_t *ret_effective, uint64_t *ret_permitted)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data))
        return -errno;
    *ret_effective = data[0].effective | (uint64_t)data[1].effective << 32;
    *ret_permitted = data[0].permitted | (uint64_t)data[1].permitted << 32;
    return 0;
}

static int set(uint64_t effective, uint64_t permitted)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {
        {.effective = (uint32_t)effective, .permitted = (uint32_t)permitted},
        {.effective = (uint32_t)(effective >> 32), .permitted = (uint32_t)(permitted >> 32)}};
    return syscall(SYS_capset, &header, data) ? -errno : 0;
}

void kj_privileges_begin(void)
{
    const struct rlimit no_core = {0, 0};
    clearenv();
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= 2);
    syscall(SYS_close_range, 3u, ~0u, 0u);
    setrlimit(RLIMIT_CORE, &no_core);
    umask(077);
}

bool kj_privileges_have(int capability)
{
    uint64_t effective = 0, permitted = 0;
    return !get(&effective, &permitted) && (effective & 1ull << capability);
}

int kj_privileges_keep(const int *capabilities)
{
    uint64_t effective = 0, permitted = 0, kept = 0;
    int status = get(&effective, &permitted);
    for (; *capabilities >= 0; capabilities++)
        kept |= 1ull << *capabilities;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (!status)
        status = set(effective & kept, permitted & kept);
    if (!status && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        status = -errno;
    return status;
}

void kj_privileges_set_aside(int capability, bool aside)
{
    uint64_t effective = 0, permitted = 0, one = 1ull << capability;
    if (!get(&effective, &permitted))
        set(aside ? effective & ~one : (effective | one) & permitted, permitted);
}
