/* SPDX-License-Identifier: Apache-2.0
 *
 * dcmi.c - what the board's management controller (BMC) reads at the power supplies: "Get Power Reading" of
 * DCMI 1.5, section 6.6.1, through the kernel's IPMI device. A controller takes tens of milliseconds to
 * answer, so each read() takes in what has been answered, asks anew, and never waits.
 */
#include "power/source.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/ipmi.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    NETFN_GROUP = 0x2c,
    NETFN_GROUP_ANSWER = 0x2d,
    GROUP_DCMI = 0xdc,
    GET_POWER_READING = 0x02,
    SYSTEM_POWER = 0x01,
    ANSWER_BYTES = 19, /* code, group, now, least, most, mean (2 each), time, period (4 each), state */
    ACTIVE = 0x40,     /* of the state: it measures */
    FIRST_MS = 500,
};
#define ASK_NS  (KJ_NS_PER_S / 2)
#define LOST_NS (10 * KJ_NS_PER_S)

struct dcmi {
    int fd;
    bool asked;
    long id; /* of the question: a late answer to another is not taken for its */
    uint64_t asked_ns, answered_ns, power_mw;
};

static int system_ioctl(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument) < 0 ? -errno : 0;
}

int (*kj_ipmi_ioctl)(int fd, unsigned long request, void *argument) = system_ioctl;

static int ask(struct dcmi *dcmi)
{
    struct ipmi_system_interface_addr bmc = {.addr_type = IPMI_SYSTEM_INTERFACE_ADDR_TYPE,
                                             .channel = IPMI_BMC_CHANNEL};
    unsigned char data[] = {GROUP_DCMI, SYSTEM_POWER, 0, 0};
    struct ipmi_req request = {
        .addr = (unsigned char *)&bmc,
        .addr_len = sizeof(bmc),
        .msgid = ++dcmi->id,
        .msg = {.netfn = NETFN_GROUP, .cmd = GET_POWER_READING, .data_len = sizeof(data), .data = data}};
    dcmi->asked_ns = kj_power_now_ns();
    int error = kj_ipmi_ioctl(dcmi->fd, IPMICTL_SEND_COMMAND, &request);
    dcmi->asked = !error;
    return error;
}

/* 0: a power was taken in. -EAGAIN: no answer yet. */
static int take(struct dcmi *dcmi)
{
    struct ipmi_addr from;
    unsigned char data[IPMI_MAX_MSG_LENGTH] = {0};
    struct ipmi_recv answer = {.addr = (unsigned char *)&from,
                               .addr_len = sizeof(from),
                               .msg = {.data = data, .data_len = sizeof(data)}};
    int error = kj_ipmi_ioctl(dcmi->fd, IPMICTL_RECEIVE_MSG_TRUNC, &answer);
    if (error)
        return error;
    if (answer.recv_type != IPMI_RESPONSE_RECV_TYPE || answer.msgid != dcmi->id ||
        answer.msg.netfn != NETFN_GROUP_ANSWER || answer.msg.cmd != GET_POWER_READING)
        return -EAGAIN;
    dcmi->asked = false;
    if (answer.msg.data_len < 1 || data[0])
        return -ENOTSUP; /* 0xc1 and the like: it knows no such command */
    if (answer.msg.data_len < ANSWER_BYTES || data[1] != GROUP_DCMI)
        return -EPROTO;
    unsigned watts = data[2] | (unsigned)data[3] << 8;
    if (!(data[18] & ACTIVE) || !watts)
        return -ENODATA;
    dcmi->power_mw = watts * 1000ull;
    dcmi->answered_ns = kj_power_now_ns();
    return 0;
}

static int open_device(const char *root)
{
    static const char *const places[] = {"/dev/ipmi0", "/dev/ipmi/0", "/dev/ipmidev/0"};
    int error = -ENOENT;
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        char path[PATH_MAX];
        if (snprintf(path, sizeof(path), "%s%s", root, places[i]) >= (int)sizeof(path))
            continue;
        int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd >= 0)
            return fd;
        if (errno != ENOENT)
            error = -errno;
    }
    return error;
}

static void explain(const struct kj_source_env *env, int error, struct kj_source_status *status)
{
    switch (error) {
    case -ENOENT:
        kj_text(status->reason, sizeof(status->reason), "no IPMI device (/dev/ipmi0)%s",
                env->cpu.virtual_machine ? ": this is a virtual machine" : "");
        if (!env->cpu.virtual_machine)
            kj_text(status->remedy, sizeof(status->remedy),
                    "on a server with a management controller: sudo modprobe -a ipmi_si ipmi_devintf");
        break;
    case -EACCES:
    case -EPERM:
        kj_text(status->reason, sizeof(status->reason), "permission denied: /dev/ipmi0 is for root alone");
        kj_text(status->remedy, sizeof(status->remedy),
                "sudo setfacl -m u:$USER:rw /dev/ipmi0 (until the next boot)");
        break;
    case -ENOTSUP:
    case -ENODATA:
        kj_text(status->reason, sizeof(status->reason),
                "the management controller offers no power reading by DCMI");
        break;
    default:
        kj_text(status->reason, sizeof(status->reason), "the management controller does not answer: %s",
                strerror(error == -EAGAIN ? ETIMEDOUT : -error));
    }
}

static int first_answer(struct dcmi *dcmi)
{
    int error = ask(dcmi);
    if (error)
        return error;
    struct pollfd poll_fd = {.fd = dcmi->fd, .events = POLLIN};
    uint64_t until_ns = dcmi->asked_ns + FIRST_MS * KJ_NS_PER_MS;
    do {
        poll(&poll_fd, 1, FIRST_MS / 10);
        error = take(dcmi);
    } while (error == -EAGAIN && kj_power_now_ns() < until_ns);
    return error;
}

static void dcmi_close(void *state)
{
    struct dcmi *dcmi = state;
    close(dcmi->fd);
    free(dcmi);
}

static int dcmi_open(const struct kj_source_env *env, struct kj_power *power, struct kj_source_status *status,
                     void **ret_state)
{
    struct dcmi *dcmi = calloc(1, sizeof(*dcmi));
    if (!dcmi)
        return -ENOMEM;
    dcmi->fd = open_device(env->root);
    int error = dcmi->fd < 0 ? dcmi->fd : first_answer(dcmi);
    struct kj_channel channel = {.component = KJ_COMPONENT_NODE,
                                 .kind = KJ_POWER_MW,
                                 .method = KJ_MEASURED,
                                 .gain_sd = 0.05,
                                 .period_ns = KJ_NS_PER_S};
    kj_text(channel.name, sizeof(channel.name), "power_reading");
    kj_text(channel.device, sizeof(channel.device), "node");
    kj_text(channel.basis, sizeof(channel.basis),
            "DCMI power reading of the management controller, whole watts; gain 5 %% (1 sigma): an estimate");
    if (!error)
        error = kj_power_add(power, 0, &channel);
    if (error) {
        explain(env, error, status);
        if (dcmi->fd >= 0)
            close(dcmi->fd);
        free(dcmi);
        return error;
    }
    kj_text(status->reason, sizeof(status->reason), "the management controller reads %.0f W",
            (double)dcmi->power_mw / 1000);
    *ret_state = dcmi;
    return 0;
}

static int dcmi_read(void *state, uint32_t slot, uint64_t *ret_value)
{
    struct dcmi *dcmi = state;
    uint64_t now_ns = kj_power_now_ns();
    (void)slot;
    int error = dcmi->asked ? take(dcmi) : 0;
    if (error && error != -EAGAIN && error != -ENODATA)
        return error;
    if (now_ns > dcmi->answered_ns + LOST_NS)
        return -ENODATA;
    if (!dcmi->asked && now_ns >= dcmi->asked_ns + ASK_NS && (error = ask(dcmi)) && error != -EAGAIN)
        return error;
    *ret_value = dcmi->power_mw;
    return 0;
}

const struct kj_source_ops kj_source_dcmi = {
    .name = "dcmi", .open = dcmi_open, .read = dcmi_read, .close = dcmi_close};
