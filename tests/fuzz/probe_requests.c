/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_requests.c - whatever a user may send to kjoule-probe: messages with and without descriptors. Input:
 * a byte that chooses what descriptor comes along, then the message.
 */
#include "probe_stream.h"
#include "requests.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_descriptors(void)
{
    int next = dup(0);
    close(next);
    return next; /* the lowest that is free: a leak moves it */
}

static void send_with(int socket, const void *data, size_t size, const int *fds, size_t count)
{
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control = {0};
    struct iovec part = {.iov_base = (void *)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
    }
    if (sendmsg(socket, &message, MSG_NOSIGNAL) < 0 && errno != EMSGSIZE)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int plain = -1, device = -1;
    int pair[2], fd = -1;
    if (plain < 0) {
        plain = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        device = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    }
    int before = open_descriptors();
    if (!size || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
        return 0;
    const int fds[9] = {plain, device, plain, device, plain, device, plain, device, plain};
    send_with(pair[1], data + 1, size - 1, fds + (data[0] >> 7),
              (size_t)data[0] % 9 % (data[0] & 64 ? 9 : 2));
    struct kj_probe_request request;
    char name[16];
    const char *why = "";
    int got = kj_request_receive(pair[0], &request, &fd);
    if (got > 0) {
        int status = kj_request_check(&request, fd, name, sizeof(name), &why);
        bool known = request.kind == KJ_PROBE_WATCH || request.kind == KJ_PROBE_FUNCTION;
        if (status == 0 && (!known || request.pid <= 0 || strlen(name) >= sizeof(name)))
            abort();
        if (status == 0 && request.kind == KJ_PROBE_FUNCTION && (fd < 0 || request.function >= KJ_FUNCTIONS))
            abort();
        if (status && !*why)
            abort();
    } else if (fd >= 0) {
        abort(); /* what is not taken must not leave a descriptor */
    }
    if (fd >= 0)
        close(fd);
    close(pair[0]);
    close(pair[1]);
    if (open_descriptors() != before)
        abort();
    return 0;
}

size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap);
size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap)
{
    struct kj_probe_request request = {.magic = KJ_PROBE_MAGIC,
                                       .kind = 1 + (uint32_t)i % 3,
                                       .pid = getpid(),
                                       .function = (uint32_t)i % KJ_FUNCTIONS,
                                       .offset = 0x100};
    (void)cap;
    if (i == 6)
        return 0;
    ret_data[0] = (uint8_t)(i % 2 ? 1 : 64 + i);
    memcpy(ret_data + 1, &request, sizeof(request));
    return 1 + sizeof(request);
}
