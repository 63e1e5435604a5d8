/* SPDX-License-Identifier: Apache-2.0
 *
 * requests.h - taking and judging what the recorder asks. Whoever may start the probe may send anything.
 */
#ifndef KJ_PROBE_REQUESTS_H
#define KJ_PROBE_REQUESTS_H

#include "probe_stream.h"

#include <stddef.h>

/* One message that waits. Its size; 0 when the other side is gone; -EAGAIN when there is none; another
 * negative errno when it is no request. *ret_fd: a descriptor that came along, or -1; the caller closes it.
 */
int kj_request_receive(int socket, struct kj_probe_request *ret_request, int *ret_fd);

/* 0, or negative errno and why: an unknown kind, a process that is not the caller's, no plain file for a
 * function. ret_name: the process's name. */
int kj_request_check(const struct kj_probe_request *request, int fd, char *ret_name, size_t size,
                     const char **ret_why);

#endif
