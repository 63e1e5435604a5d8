/* SPDX-License-Identifier: Apache-2.0 */
#include "requests.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int kj_request_receive(int socket, struct kj_probe_request *ret_request, int *ret_fd)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(4 * sizeof(int))];
    } control;
    struct iovec data = {.iov_base = ret_request, .iov_len = sizeof(*ret_request)};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    ssize_t size;
    do
        size = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (size < 0 && errno == EINTR);
    *ret_fd = -1;
    if (size < 0)
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (*ret_fd < 0)
                *ret_fd = fd;
            else
                close(fd);
        }
    }
    if (size == (ssize_t)sizeof(*ret_request) && !(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) &&
        ret_request->magic == KJ_PROBE_MAGIC)
        return (int)size;
    if (*ret_fd >= 0)
        close(*ret_fd);
    *ret_fd = -1;
    return size ? -EPROTO : 0;
}

/* Root may watch all; others what is theirs, as far as /proc shows it to be. */
static int check_process(int32_t pid, char *ret_name, size_t size, const char **ret_why)
{
    char path[64];
    struct stat st;
    snprintf(path, sizeof(path), "/proc/%d", pid);
    if (pid <= 0 || stat(path, &st)) {
        *ret_why = "there is no such process";
        return -ESRCH;
    }
    if (getuid() != 0 && st.st_uid != getuid()) {
        *ret_why = "that process is another user's";
        return -EPERM;
    }
    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    ssize_t length = fd < 0 ? 0 : read(fd, ret_name, size - 1);
    if (fd >= 0)
        close(fd);
    ret_name[length > 0 ? length : 0] = 0;
    ret_name[strcspn(ret_name, "\n")] = 0;
    return 0;
}

int kj_request_check(const struct kj_probe_request *request, int fd, char *ret_name, size_t size,
                     const char **ret_why)
{
    struct stat st;
    if (request->kind != KJ_PROBE_WATCH && request->kind != KJ_PROBE_FUNCTION) {
        *ret_why = "the request is not known";
        return -EINVAL;
    }
    int status = check_process(request->pid, ret_name, size, ret_why);
    if (status || request->kind == KJ_PROBE_WATCH)
        return status;
    if (request->function >= KJ_FUNCTIONS || fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
        request->offset >= (uint64_t)st.st_size) {
        *ret_why = "the function is not known, or its file did not come along";
        return -EINVAL;
    }
    return 0;
}
