/* SPDX-License-Identifier: Apache-2.0
 *
 * phase_events.c - uprobes by descriptor, and their ring of finished phases.
 */
#include "phase_events.h"

#include "phases.skel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { LINKS_MAX = 512 };

struct kj_phases_reader {
    struct kj_phases *skeleton;
    struct ring_buffer *ring;
    void (*visit)(void *context, const struct kj_phase_event *event);
    void *context;
    struct bpf_link *links[LINKS_MAX];
    size_t count;
};

static int take(void *context, void *data, size_t size)
{
    struct kj_phases_reader *reader = context;
    if (size >= sizeof(struct kj_phase_event))
        reader->visit(reader->context, data);
    return 0;
}

int kj_phases_open(void (*visit)(void *context, const struct kj_phase_event *event), void *context,
                   struct kj_phases_reader **ret_reader, char *ret_text, size_t size)
{
    struct kj_phases_reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return -ENOMEM;
    reader->visit = visit;
    reader->context = context;
    reader->skeleton = kj_phases__open_and_load();
    int status = reader->skeleton ? 0 : -errno;
    if (!status) {
        reader->ring = ring_buffer__new(bpf_map__fd(reader->skeleton->maps.events), take, reader, NULL);
        status = reader->ring ? 0 : -errno;
    }
    if (status) {
        snprintf(ret_text, size, "the kernel did not take the programs for phases: %s", strerror(-status));
        kj_phases_close(reader);
        return status;
    }
    *ret_reader = reader;
    return 0;
}

struct kj_phases_reader *kj_phases_close(struct kj_phases_reader *reader)
{
    if (!reader)
        return NULL;
    for (size_t i = 0; i < reader->count; i++)
        bpf_link__destroy(reader->links[i]);
    ring_buffer__free(reader->ring);
    kj_phases__destroy(reader->skeleton);
    free(reader);
    return NULL;
}

static int attach(struct kj_phases_reader *reader, struct bpf_program *program, bool at_return, int32_t pid,
                  const char *path, uint64_t offset)
{
    if (reader->count == LINKS_MAX)
        return -E2BIG;
    struct bpf_link *link = bpf_program__attach_uprobe(program, at_return, pid, path, offset);
    if (!link)
        return -errno;
    reader->links[reader->count++] = link;
    return 0;
}

int kj_phases_attach(struct kj_phases_reader *reader, enum kj_probe_function function, int32_t pid, int fd,
                     uint64_t offset)
{
    char path[32];
    struct stat st;
    if (fstat(fd, &st))
        return -errno;
    if (!S_ISREG(st.st_mode) || offset >= (uint64_t)st.st_size)
        return -EINVAL;
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    struct bpf_program *const on_enter[KJ_FUNCTIONS] = {
        [KJ_FUNCTION_ENGINE] = reader->skeleton->progs.engine_enter,
        [KJ_FUNCTION_ANNOUNCE] = reader->skeleton->progs.announce_enter,
        [KJ_FUNCTION_ANNOUNCE_END] = reader->skeleton->progs.announce_leave,
    };
    struct bpf_program *const on_leave[KJ_FUNCTIONS] = {
        [KJ_FUNCTION_ENGINE] = reader->skeleton->progs.engine_leave,
        [KJ_FUNCTION_ANNOUNCE] = reader->skeleton->progs.announce_entered,
    };
    if (function >= KJ_FUNCTIONS)
        return -EINVAL;
    int status = attach(reader, on_enter[function], false, pid, path, offset);
    if (!status && on_leave[function])
        status = attach(reader, on_leave[function], true, pid, path, offset);
    return status;
}

uint64_t kj_phases_read(struct kj_phases_reader *reader)
{
    ring_buffer__consume(reader->ring);
    return reader->skeleton->bss->lost;
}
