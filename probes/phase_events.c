/* SPDX-License-Identifier: Apache-2.0
 *
 * phase_events.c - uprobes by descriptor, and their ring of finished phases.
 */
#include "phase_events.h"

#include "phases.skel.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LINKS_MAX = 4096, TRACE_UPROBE_MULTI = 48 };

/* BPF_LINK_CREATE for many uprobes at once, as Linux 6.6 and later take it. Older headers do not have it; and
 * it wants no right beyond those to load, where uprobes by perf_event_open want CAP_SYS_ADMIN. */
struct uprobe_multi {
    uint32_t program_fd, target_fd, attach_type, link_flags;
    uint64_t path, offsets, reference_offsets, cookies;
    uint32_t count, flags, pid, padding;
};

struct kj_phases_reader {
    struct kj_phases *skeleton;
    struct ring_buffer *ring;
    void (*visit)(void *context, const struct kj_phase_event *event);
    void *context;
    struct bpf_link *links[LINKS_MAX]; /* by perf_event_open */
    int link_fds[LINKS_MAX];           /* by BPF_LINK_CREATE */
    size_t count;
    bool multi;
};

/* Links a program to many uprobes, of which we want one. A descriptor or negative errno. */
static int link_multi(const struct bpf_program *program, int32_t pid, const char *path, uint64_t offset)
{
    struct uprobe_multi link = {.program_fd = (uint32_t)bpf_program__fd(program),
                                .attach_type = TRACE_UPROBE_MULTI,
                                .path = (uintptr_t)path,
                                .offsets = (uintptr_t)&offset,
                                .count = 1,
                                .pid = (uint32_t)pid};
    int fd = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &link, sizeof(link));
    return fd < 0 ? -errno : fd;
}

static int take(void *context, void *data, size_t size)
{
    struct kj_phases_reader *reader = context;
    if (size >= sizeof(struct kj_phase_event))
        reader->visit(reader->context, data);
    return 0;
}

/* A kernel before 6.6 loads the programs all the same; one that can link them says what is wrong with "/". */
static int try_multi(const struct kj_phases_reader *reader)
{
    int fd = link_multi(reader->skeleton->progs.engine_enter, 0, "/", 0);
    if (fd >= 0)
        close(fd);
    return fd == -EBADF || fd >= 0 ? 0 : fd;
}

static int load(struct kj_phases_reader *reader, bool multi)
{
    struct bpf_program *program;
    reader->skeleton = kj_phases__open();
    if (!reader->skeleton)
        return -errno;
    bpf_object__for_each_program(program, reader->skeleton->obj) if (multi)
        bpf_program__set_expected_attach_type(program, (enum bpf_attach_type)TRACE_UPROBE_MULTI);
    reader->multi = multi;
    int status = kj_phases__load(reader->skeleton);
    if (!status && multi)
        status = try_multi(reader);
    if (status) {
        kj_phases__destroy(reader->skeleton);
        reader->skeleton = NULL;
    }
    return status;
}

int kj_phases_open(bool admin, void (*visit)(void *context, const struct kj_phase_event *event),
                   void *context, struct kj_phases_reader **ret_reader, char *ret_text, size_t size)
{
    struct kj_phases_reader *reader = calloc(1, sizeof(*reader));
    if (!reader)
        return -ENOMEM;
    reader->visit = visit;
    reader->context = context;
    int status = load(reader, true);
    if (status && admin)
        status = load(reader, false);
    if (!status) {
        reader->ring = ring_buffer__new(bpf_map__fd(reader->skeleton->maps.events), take, reader, NULL);
        status = reader->ring ? 0 : -errno;
    }
    if (status) {
        snprintf(ret_text, size, "the kernel refuses uprobes: they want Linux 6.6, or root (%s)",
                 strerror(-status));
        kj_phases_close(reader);
        return status;
    }
    *ret_reader = reader;
    return 0;
}

bool kj_phases_want_admin(const struct kj_phases_reader *reader)
{
    return !reader->multi;
}

struct kj_phases_reader *kj_phases_close(struct kj_phases_reader *reader)
{
    if (!reader)
        return NULL;
    for (size_t i = 0; i < reader->count; i++) {
        if (reader->multi)
            close(reader->link_fds[i]);
        else
            bpf_link__destroy(reader->links[i]);
    }
    ring_buffer__free(reader->ring);
    kj_phases__destroy(reader->skeleton);
    free(reader);
    return NULL;
}

static int attach(struct kj_phases_reader *reader, struct bpf_program *program, int32_t pid, const char *path,
                  uint64_t offset)
{
    if (reader->count == LINKS_MAX)
        return -E2BIG;
    if (!reader->multi) {
        reader->links[reader->count] = bpf_program__attach_uprobe(program, false, pid, path, offset);
        return reader->links[reader->count] ? (int)(reader->count++, 0) : -errno;
    }
    int fd = link_multi(program, pid, path, offset);
    if (fd < 0)
        return fd;
    reader->link_fds[reader->count++] = fd;
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
    const struct kj_phases *skeleton = reader->skeleton;
    struct bpf_program *const programs[KJ_FUNCTIONS] = {
        [KJ_FUNCTION_ENGINE] = skeleton->progs.engine_enter,
        [KJ_FUNCTION_ENGINE_END] = skeleton->progs.engine_leave,
        [KJ_FUNCTION_ENGINE_FAIL] = skeleton->progs.engine_fail,
        [KJ_FUNCTION_RECORD] = skeleton->progs.record_enter,
        [KJ_FUNCTION_RECORD_END] = skeleton->progs.record_leave,
        [KJ_FUNCTION_UPDATE] = skeleton->progs.update,
        [KJ_FUNCTION_CALL] = skeleton->progs.call,
        [KJ_FUNCTION_HANDLE] = skeleton->progs.handle,
        [KJ_FUNCTION_RECORD_NEW] = skeleton->progs.record_new,
    };
    return function < KJ_FUNCTIONS ? attach(reader, programs[function], pid, path, offset) : -EINVAL;
}

uint64_t kj_phases_read(struct kj_phases_reader *reader)
{
    ring_buffer__consume(reader->ring);
    return reader->skeleton->bss->lost;
}
