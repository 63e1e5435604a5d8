/* SPDX-License-Identifier: Apache-2.0
 *
 * file.h - opening files safely: never through a symbolic link, private to the user, replaced in one step.
 * All return 0 or a descriptor, or negative errno.
 */
#ifndef KJ_FILE_H
#define KJ_FILE_H

#include <stddef.h>
#include <stdio.h>

/* Opens for reading a regular file; refuses links, devices and FIFOs (-ELOOP, -EINVAL). dir_fd may be
 * AT_FDCWD. */
int kj_file_open_read(int dir_fd, const char *name);

/* Reads a whole regular file of at most max_bytes. *ret_data is NUL-terminated, the caller frees it. -EFBIG
 * when larger. */
int kj_file_read(int dir_fd, const char *name, size_t max_bytes, char **ret_data, size_t *ret_size);

/* The same of a descriptor from kj_file_open_read, which it closes: for who looked at the file's owner first.
 */
int kj_file_read_close(int fd, size_t max_bytes, char **ret_data, size_t *ret_size);

/* Reads the first line of a small file such as a sysfs attribute, without its newline. No allocation. */
int kj_file_read_line(const char *path, char *ret_line, size_t size);

/* Creates a new file 0600, never an existing one (-EEXIST). */
int kj_file_create(int dir_fd, const char *name);

/* Writes a file beside its final name, flushes it, renames it over. A reader sees the old or the new, never a
 * half. */
int kj_file_replace(int dir_fd, const char *name, const char *data, size_t size);

#endif
