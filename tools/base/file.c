/* SPDX-License-Identifier: Apache-2.0
 *
 * file.c - safe files. O_NOFOLLOW guards the last step of a path; folders are held by descriptor, not by
 * name.
 */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int kj_file_open_read(int dir_fd, const char *name)
{
    /* O_NONBLOCK: opening a FIFO must not wait for its writer; harmless on regular files. */
    int fd = openat(dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    struct stat st;
    int error = fstat(fd, &st) ? -errno : S_ISREG(st.st_mode) ? 0 : -EINVAL;
    if (error) {
        close(fd);
        return error;
    }
    return fd;
}

/* Reads to the end or to `cap` bytes; files of /proc and /sys have no size to go by. */
static ssize_t read_all(int fd, char *data, size_t cap)
{
    size_t done = 0;
    while (done < cap) {
        ssize_t n = read(fd, data + done, cap - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

int kj_file_read(int dir_fd, const char *name, size_t max_bytes, char **ret_data, size_t *ret_size)
{
    int fd = kj_file_open_read(dir_fd, name);
    return fd < 0 ? fd : kj_file_read_close(fd, max_bytes, ret_data, ret_size);
}

int kj_file_read_close(int fd, size_t max_bytes, char **ret_data, size_t *ret_size)
{
    struct stat st;
    size_t cap = fstat(fd, &st) == 0 && st.st_size > 0 ? (size_t)st.st_size : 1 << 16;
    if (cap > max_bytes)
        cap = max_bytes;
    char *data = malloc(cap + 2);
    if (!data) {
        close(fd);
        return -ENOMEM;
    }
    ssize_t size = read_all(fd, data, cap + 1);
    while (size > (ssize_t)cap && cap < max_bytes) { /* it grew, or had no size */
        size_t more = cap * 2 < max_bytes ? cap * 2 : max_bytes;
        char *larger = realloc(data, more + 2);
        if (!larger) {
            size = -ENOMEM;
            break;
        }
        data = larger;
        ssize_t rest = read_all(fd, data + size, more + 1 - (size_t)size);
        size = rest < 0 ? rest : size + rest;
        cap = more;
    }
    close(fd);
    if (size < 0 || size > (ssize_t)max_bytes) {
        free(data);
        return size < 0 ? (int)size : -EFBIG;
    }
    data[size] = 0;
    *ret_data = data;
    if (ret_size)
        *ret_size = (size_t)size;
    return 0;
}

int kj_file_read_line(const char *path, char *ret_line, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return -errno;
    ssize_t n = read_all(fd, ret_line, size - 1);
    close(fd);
    if (n < 0)
        return (int)n;
    ret_line[n] = 0;
    ret_line[strcspn(ret_line, "\n")] = 0;
    return 0;
}

int kj_file_create(int dir_fd, const char *name)
{
    int fd = openat(dir_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    return fd < 0 ? -errno : fd;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

int kj_file_replace(int dir_fd, const char *name, const char *data, size_t size)
{
    char temporary[300];
    struct stat old;
    /* A rename would put a file in the place of /dev/null, or of somebody's link. */
    if (!fstatat(dir_fd, name, &old, AT_SYMLINK_NOFOLLOW) && !S_ISREG(old.st_mode))
        return S_ISDIR(old.st_mode) ? -EISDIR : -EEXIST;
    int length = snprintf(temporary, sizeof(temporary), "%s.%d.tmp", name, (int)getpid());
    if (length < 0 || length >= (int)sizeof(temporary))
        return -ENAMETOOLONG;
    int fd = kj_file_create(dir_fd, temporary);
    if (fd == -EEXIST) { /* left by a killed process of the same pid */
        unlinkat(dir_fd, temporary, 0);
        fd = kj_file_create(dir_fd, temporary);
    }
    if (fd < 0)
        return fd;
    int error = write_all(fd, data, size);
    if (!error && fsync(fd))
        error = -errno;
    if (close(fd) && !error)
        error = -errno;
    if (!error && renameat(dir_fd, temporary, dir_fd, name))
        error = -errno;
    if (error)
        unlinkat(dir_fd, temporary, 0);
    return error;
}
