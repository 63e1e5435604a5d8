/* SPDX-License-Identifier: Apache-2.0
 *
 * owners.c - within one job each device is counted by one recorder: it holds a lock on a file named after job
 * and device, in a folder of the user's own. Unrelated jobs use other files and so do not block each other.
 * The kernel lets go of the lock when its holder dies, however it dies.
 */
#include "record/parts.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLAIMS_CAP 256

struct kj_owners {
    int dir_fd;
    char prefix[64], run_id[160];
    size_t claims;
    struct {
        int fd;
        char name[160];
    } claim[CLAIMS_CAP];
};

/* FNV-1a: names a job's files, and need not withstand an enemy: the folder is the user's own. */
static uint64_t hash(const char *text)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *text; text++)
        h = (h ^ (unsigned char)*text) * 0x100000001b3u;
    return h;
}

/* $XDG_RUNTIME_DIR/kjoule, else /tmp/kjoule-<uid>; refused when it is a link or someone else's. */
static int open_folder(void)
{
    char path[512];
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    struct stat st;
    for (int i = 0; i < 2; i++) {
        if (i == 0 && (!runtime || runtime[0] != '/'))
            continue;
        if (i == 0)
            snprintf(path, sizeof(path), "%s/kjoule", runtime);
        else
            snprintf(path, sizeof(path), "/tmp/kjoule-%u", (unsigned)geteuid());
        if (mkdir(path, 0700) && errno != EEXIST)
            continue;
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd >= 0 && fstat(fd, &st) == 0 && st.st_uid == geteuid() && !(st.st_mode & 022))
            return fd;
        if (fd >= 0)
            close(fd);
    }
    return -1;
}

struct kj_owners *kj_owners_open(const char *job_kind, const char *job_id, const char *run_id)
{
    struct kj_owners *owners = calloc(1, sizeof(*owners));
    if (!owners)
        return NULL;
    owners->dir_fd = open_folder();
    if (owners->dir_fd < 0) {
        free(owners);
        return NULL;
    }
    snprintf(owners->prefix, sizeof(owners->prefix), "%.24s-%016llx", job_kind,
             (unsigned long long)hash(job_id));
    snprintf(owners->run_id, sizeof(owners->run_id), "%s", run_id);
    return owners;
}

bool kj_owners_claim(struct kj_owners *owners, const char *device, char *ret_owner, size_t size)
{
    char name[160];
    *ret_owner = 0;
    if (!owners || owners->claims == CLAIMS_CAP)
        return true;
    snprintf(name, sizeof(name), "%s.%.64s.lock", owners->prefix, device);
    for (char *p = name; *p; p++)
        if (*p == '/')
            *p = '_';
    for (int attempt = 0; attempt < 3; attempt++) {
        int fd = openat(owners->dir_fd, name, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0)
            return true;
        struct stat held, named;
        if (flock(fd, LOCK_EX | LOCK_NB)) {
            ssize_t n = pread(fd, ret_owner, size - 1, 0);
            ret_owner[n > 0 ? n : 0] = 0;
            close(fd);
            return false;
        }
        /* Its last owner may have removed the file between our open and our lock. */
        if (fstat(fd, &held) || fstatat(owners->dir_fd, name, &named, AT_SYMLINK_NOFOLLOW) ||
            held.st_ino != named.st_ino) {
            close(fd);
            continue;
        }
        size_t length = strlen(owners->run_id);
        if (ftruncate(fd, 0) || pwrite(fd, owners->run_id, length, 0) != (ssize_t)length)
            errno = 0; /* the name is a courtesy, the lock is what counts */
        snprintf(owners->claim[owners->claims].name, sizeof(name), "%s", name);
        owners->claim[owners->claims++].fd = fd;
        return true;
    }
    return true;
}

struct kj_owners *kj_owners_close(struct kj_owners *owners)
{
    if (!owners)
        return NULL;
    for (size_t i = 0; i < owners->claims; i++) {
        unlinkat(owners->dir_fd, owners->claim[i].name, 0);
        close(owners->claim[i].fd);
    }
    close(owners->dir_fd);
    free(owners);
    return NULL;
}
