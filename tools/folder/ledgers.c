/* SPDX-License-Identifier: Apache-2.0
 *
 * ledgers.c - reading ledgers. They are read with pread, never mapped: a file that shrinks underneath is a
 * short read and not a SIGBUS, and what was checked stays as it was checked.
 */
#include "folder/ledgers.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Files that belong to a ledger: a magic of 8 bytes, then rows. */
enum { MAGIC_SIZE = 8 };
struct rows_file {
    char magic[MAGIC_SIZE + 1];
    size_t row_size, cap;
};
static const struct rows_file intervals_file = {"kintvls1", sizeof(struct kj_ledger_interval), 256u << 20};
static const struct rows_file rests_file = {"kjrests1", sizeof(struct kj_ledger_rest), 16u << 20};

static const struct {
    uint32_t row_size, cap;
} layout[KJ_SECTION_COUNT] = {
#define X(name, type, cap, doc) [KJ_SECTION_##name] = {sizeof(type), cap},
    KJ_LEDGER_SECTIONS(X)
#undef X
};

struct kj_ledger_view {
    struct kj_ledger_header header;
    char name[80];
    void *rows[KJ_SECTION_COUNT]; /* copies of what was complete; RING is read when asked for */
    uint32_t count[KJ_SECTION_COUNT];
    int fd;
};

static bool read_at(int fd, void *data, size_t size, uint64_t offset)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(fd, (char *)data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static int check_header(const struct kj_ledger_header *header, uint64_t size, const char *name,
                        struct kj_error *error)
{
    if (header->magic != KJ_LEDGER_MAGIC) {
        kj_error_set(error,
                     "%s is no ledger, or was cut off while it was made; its process is not in the report",
                     name);
        return -EPROTO;
    }
    if (header->version != KJ_LEDGER_VERSION || header->header_size != sizeof(*header)) {
        kj_error_set(error, "%s is of another version (%u); use the kjoule that wrote it", name,
                     header->version);
        return -ENOTSUP;
    }
    if (header->file_size > size || size > KJ_LEDGER_MAX_BYTES) {
        kj_error_set(error, "%s is truncated (%llu of %llu bytes); its process is not in the report", name,
                     (unsigned long long)size, (unsigned long long)header->file_size);
        return -EPROTO;
    }
    for (int s = 0; s < KJ_SECTION_COUNT; s++) {
        const struct kj_ledger_section_entry *e = &header->sections[s];
        if (e->row_size != layout[s].row_size || e->cap != layout[s].cap || e->offset % 64 ||
            e->offset < sizeof(*header) || e->offset > size ||
            size - e->offset < (uint64_t)e->row_size * e->cap || (s != KJ_SECTION_RING && e->used > e->cap)) {
            kj_error_set(error, "%s is corrupt (section %d); its process is not in the report", name, s);
            return -EPROTO;
        }
    }
    return 0;
}

int kj_ledger_view_open(int dir_fd, const char *name, struct kj_ledger_view **ret_view,
                        struct kj_error *error)
{
    struct kj_ledger_view *view = calloc(1, sizeof(*view));
    if (!view)
        return -ENOMEM;
    snprintf(view->name, sizeof(view->name), "%s", name);
    view->fd = kj_file_open_read(dir_fd, name);
    struct stat st;
    int status = view->fd < 0 ? view->fd : 0;
    if (status || fstat(view->fd, &st)) {
        kj_error_set(error, "%s cannot be read: %s", name, strerror(status ? -status : errno));
        status = -EPROTO;
    } else if (!read_at(view->fd, &view->header, sizeof(view->header), 0)) {
        kj_error_set(error, "%s is truncated (%lld bytes); its process is not in the report", name,
                     (long long)st.st_size);
        status = -EPROTO;
    } else {
        status = check_header(&view->header, (uint64_t)st.st_size, name, error);
    }
    for (int s = 0; !status && s < KJ_SECTION_COUNT; s++) {
        const struct kj_ledger_section_entry *e = &view->header.sections[s];
        view->count[s] = e->used > e->cap ? e->cap : (uint32_t)e->used;
        size_t bytes = (size_t)view->count[s] * e->row_size;
        if (s == KJ_SECTION_RING || !bytes)
            continue;
        view->rows[s] = malloc(bytes);
        if (!view->rows[s])
            status = -ENOMEM;
        else if (!read_at(view->fd, view->rows[s], bytes, e->offset)) {
            kj_error_set(error, "%s is truncated; its process is not in the report", name);
            status = -EPROTO;
        }
    }
    if (status) {
        kj_ledger_view_close(view);
        return status;
    }
    char *texts = view->rows[KJ_SECTION_NAMES];
    if (texts)
        texts[view->count[KJ_SECTION_NAMES] - 1] = 0;
    view->header.exe[sizeof(view->header.exe) - 1] = 0;
    view->header.disabled_reason[sizeof(view->header.disabled_reason) - 1] = 0;
    *ret_view = view;
    return 0;
}

struct kj_ledger_view *kj_ledger_view_close(struct kj_ledger_view *view)
{
    if (!view)
        return NULL;
    for (int s = 0; s < KJ_SECTION_COUNT; s++)
        free(view->rows[s]);
    if (view->fd >= 0)
        close(view->fd);
    free(view);
    return NULL;
}

const struct kj_ledger_header *kj_ledger_view_header(const struct kj_ledger_view *view)
{
    return &view->header;
}

uint32_t kj_ledger_view_rows(const struct kj_ledger_view *view, enum kj_ledger_section section)
{
    return view->count[section];
}

bool kj_ledger_view_row(const struct kj_ledger_view *view, enum kj_ledger_section section, uint32_t index,
                        void *ret_row)
{
    if (section == KJ_SECTION_RING || index >= view->count[section])
        return false;
    memcpy(ret_row, (const char *)view->rows[section] + (size_t)index * layout[section].row_size,
           layout[section].row_size);
    return true;
}

const char *kj_ledger_view_name(const struct kj_ledger_view *view, uint32_t offset)
{
    return offset < view->count[KJ_SECTION_NAMES] ? (const char *)view->rows[KJ_SECTION_NAMES] + offset : "";
}

static uint64_t sum_of_shards(const struct kj_ledger_view *view, uint32_t cell)
{
    uint64_t sum = 0, one;
    for (uint32_t s = 0; s < KJ_LEDGER_SHARDS; s++)
        if (kj_ledger_view_row(view, KJ_SECTION_COUNTS, s * KJ_LEDGER_COUNTS_CAP + cell, &one))
            sum += one;
    return sum;
}

uint64_t kj_ledger_view_launches(const struct kj_ledger_view *view, uint32_t activity)
{
    return activity < KJ_LEDGER_ACTIVITIES_CAP ? sum_of_shards(view, activity) : 0;
}

uint64_t kj_ledger_view_calls(const struct kj_ledger_view *view, uint32_t call)
{
    return call < KJ_LEDGER_COUNTS_CAP - KJ_LEDGER_CALLS_BASE
               ? sum_of_shards(view, KJ_LEDGER_CALLS_BASE + call)
               : 0;
}

static void name_of_rows_file(const char *kind, const char *ledger_name, char *ret_name, size_t size)
{
    snprintf(ret_name, size, "%s.%s", kind, ledger_name + strlen(KJ_LEDGER_PREFIX));
}

/* Returns how many whole rows there are, behind the magic in *ret_data; the caller frees. */
static size_t read_rows(int dir_fd, const char *name, const struct rows_file *file, char **ret_data)
{
    size_t size = 0;
    *ret_data = NULL;
    if (kj_file_read(dir_fd, name, file->cap + 64, ret_data, &size) || size < MAGIC_SIZE ||
        memcmp(*ret_data, file->magic, MAGIC_SIZE) != 0)
        return 0;
    return (size - MAGIC_SIZE) / file->row_size; /* a torn last row falls away */
}

/* Reads ring rows [first, first + count) into rows. */
static bool read_ring(int fd, const struct kj_ledger_section_entry *ring, uint64_t first, uint64_t count,
                      struct kj_ledger_interval *rows)
{
    uint64_t at = first % ring->cap;
    uint64_t straight = ring->cap - at < count ? ring->cap - at : count;
    return read_at(fd, rows, straight * sizeof(*rows), ring->offset + at * sizeof(*rows)) &&
           (count == straight ||
            read_at(fd, rows + straight, (count - straight) * sizeof(*rows), ring->offset));
}

int kj_ledger_view_intervals(int dir_fd, const struct kj_ledger_view *view,
                             struct kj_ledger_interval **ret_intervals, size_t *ret_count,
                             uint64_t *ret_dropped)
{
    char name[96], *data;
    name_of_rows_file("intervals", view->name, name, sizeof(name));
    const struct kj_ledger_section_entry *ring = &view->header.sections[KJ_SECTION_RING];
    size_t drained = read_rows(dir_fd, name, &intervals_file, &data);
    /* Killed between writing the file and advancing the tail: those rows are in both. */
    uint64_t first = view->header.ring_tail > drained ? view->header.ring_tail : drained;
    uint64_t left = ring->used > first ? ring->used - first : 0;
    if (left > ring->cap)
        left = 0; /* not a ring that we could have written */
    struct kj_ledger_interval *rows = malloc((drained + left + 1) * sizeof(*rows));
    if (!rows) {
        free(data);
        return -ENOMEM;
    }
    if (drained)
        memcpy(rows, data + MAGIC_SIZE, drained * sizeof(*rows));
    free(data);
    if (left && !read_ring(view->fd, ring, first, left, rows + drained))
        left = 0;
    *ret_intervals = rows;
    *ret_count = drained + left;
    *ret_dropped = ring->dropped;
    return 0;
}

/* Appends; a failed write is taken back, so that the file holds the magic and whole rows, or nothing. */
static int append_rows(int dir_fd, const char *name, const struct rows_file *file, const void *rows,
                       uint64_t count)
{
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
    struct stat st;
    int status = fd < 0 || fstat(fd, &st) ? -errno : 0;
    size_t bytes = count * file->row_size;
    if (!status && (uint64_t)st.st_size + bytes > file->cap)
        status = -EFBIG;
    if (!status && ((st.st_size == 0 && write(fd, file->magic, MAGIC_SIZE) != MAGIC_SIZE) ||
                    write(fd, rows, bytes) != (ssize_t)bytes)) {
        status = -EIO;
        if (ftruncate(fd, st.st_size))
            status = -errno;
    }
    if (fd >= 0)
        close(fd);
    return status;
}

int kj_ledger_drain(int dir_fd, const char *ledger_name)
{
    struct kj_ledger_header header;
    struct kj_error ignored;
    struct stat st;
    char name[96];
    int fd = openat(dir_fd, ledger_name, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    int status =
        fstat(fd, &st) || !S_ISREG(st.st_mode) || !read_at(fd, &header, sizeof(header), 0) ? -EPROTO : 0;
    if (!status)
        status = check_header(&header, (uint64_t)st.st_size, ledger_name, &ignored);
    const struct kj_ledger_section_entry *ring = &header.sections[KJ_SECTION_RING];
    uint64_t count = status || ring->used < header.ring_tail ? 0 : ring->used - header.ring_tail;
    if (count > layout[KJ_SECTION_RING].cap)
        status = -EPROTO;
    if (!status && count) {
        struct kj_ledger_interval *rows = malloc(count * sizeof(*rows));
        name_of_rows_file("intervals", ledger_name, name, sizeof(name));
        status = !rows ? -ENOMEM
                 : !read_ring(fd, ring, header.ring_tail, count, rows)
                     ? -EPROTO
                     : append_rows(dir_fd, name, &intervals_file, rows, count);
        free(rows);
        uint64_t tail = header.ring_tail + count;
        if (!status &&
            pwrite(fd, &tail, sizeof(tail), offsetof(struct kj_ledger_header, ring_tail)) != sizeof(tail))
            status = -EIO;
    }
    close(fd);
    return status ? status : (int)count;
}

/* ---- rest
 * -------------------------------------------------------------------------------------------------------------
 */

int kj_ledger_view_rests(int dir_fd, const struct kj_ledger_view *view, struct kj_ledger_rest **ret_rests,
                         size_t *ret_count)
{
    char name[96], *data;
    name_of_rows_file("rests", view->name, name, sizeof(name));
    size_t count = read_rows(dir_fd, name, &rests_file, &data);
    struct kj_ledger_rest *rests = malloc((count + 1) * sizeof(*rests));
    if (rests && count)
        memcpy(rests, data + MAGIC_SIZE, count * sizeof(*rests));
    free(data);
    *ret_rests = rests;
    *ret_count = rests ? count : 0;
    return rests ? 0 : -ENOMEM;
}

struct kj_ledger_watch {
    int dir_fd, fd;
    char name[80];
    struct kj_ledger_header header;
    uint32_t call_count;
    bool works[KJ_LEDGER_COUNTS_CAP - KJ_LEDGER_CALLS_BASE]; /* KJ_CALL_WORKS */
};

int kj_ledger_watch_open(int dir_fd, const char *ledger_name, struct kj_ledger_watch **ret_watch)
{
    struct kj_ledger_view *view;
    struct kj_error ignored = {0};
    int status = kj_ledger_view_open(dir_fd, ledger_name, &view, &ignored);
    if (status)
        return status;
    struct kj_ledger_watch *watch = calloc(1, sizeof(*watch));
    if (watch) {
        struct kj_ledger_call call;
        *watch = (struct kj_ledger_watch){.dir_fd = dir_fd, .fd = view->fd, .header = view->header};
        snprintf(watch->name, sizeof(watch->name), "%s", ledger_name);
        for (; watch->call_count < sizeof(watch->works) / sizeof(*watch->works) &&
               kj_ledger_view_row(view, KJ_SECTION_CALLS, watch->call_count, &call);
             watch->call_count++)
            watch->works[watch->call_count] = call.flags & KJ_CALL_WORKS;
        view->fd = -1;
    }
    kj_ledger_view_close(view);
    *ret_watch = watch;
    return watch ? 0 : -ENOMEM;
}

struct kj_ledger_watch *kj_ledger_watch_close(struct kj_ledger_watch *watch)
{
    if (watch)
        close(watch->fd);
    free(watch);
    return NULL;
}

const struct kj_ledger_header *kj_ledger_watch_header(const struct kj_ledger_watch *watch)
{
    return &watch->header;
}

/* What stands in the header comes first: a wait that ends meanwhile is seen at the next reading. */
int kj_ledger_watch_rests(struct kj_ledger_watch *watch, uint64_t *ret_calls)
{
    uint64_t cells[KJ_LEDGER_COUNTS_CAP - KJ_LEDGER_CALLS_BASE], calls = 0;
    struct kj_ledger_header now;
    if (!read_at(watch->fd, &now, sizeof(now), 0) || now.state != KJ_LEDGER_OPEN)
        return -ESRCH;
    if (!now.settled_calls || now.copies_under_way)
        return 0;
    uint64_t threads = now.sections[KJ_SECTION_THREADS].used;
    for (uint64_t s = 0; s < threads && s < KJ_LEDGER_SHARDS; s++) {
        uint64_t at = watch->header.sections[KJ_SECTION_COUNTS].offset +
                      (s * KJ_LEDGER_COUNTS_CAP + KJ_LEDGER_CALLS_BASE) * sizeof(uint64_t);
        if (!read_at(watch->fd, cells, watch->call_count * sizeof(*cells), at))
            return -ESRCH;
        for (uint32_t i = 0; i < watch->call_count; i++)
            calls += watch->works[i] ? cells[i] : 0;
    }
    *ret_calls = calls;
    return calls + 1 == now.settled_calls;
}

int kj_ledger_watch_save(struct kj_ledger_watch *watch, const struct kj_ledger_rest *rest)
{
    char name[96];
    name_of_rows_file("rests", watch->name, name, sizeof(name));
    return append_rows(watch->dir_fd, name, &rests_file, rest, 1);
}
