/* SPDX-License-Identifier: Apache-2.0
 *
 * cpu_files.c - threads.csv and phases.cpu.csv of a run folder, as anybody may have left them. Input: the
 * file; its first byte chooses which.
 */
#include "folder/cpu_phases.h"
#include "folder/threads.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int folder(void)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        snprintf(path, sizeof(path), "/tmp/kj_fuzz.XXXXXX");
        if (!mkdtemp(path) || (fd = open(path, O_RDONLY | O_DIRECTORY)) < 0)
            abort();
    }
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kj_thread_rows *rows;
    struct kj_cpu_phases *phases;
    int dir_fd = folder();
    const char *name = size && data[0] == 't' ? KJ_THREADS_FILE : KJ_CPU_PHASES_FILE;
    int fd = size ? openat(dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600) : -1;
    if (fd < 0 || write(fd, data + 1, size - 1) != (ssize_t)size - 1)
        return 0;
    close(fd);
    if (!kj_threads_read(dir_fd, &rows)) {
        for (size_t i = 0; i < rows->count; i++)
            if (rows->rows[i].pid < 0 || strlen(rows->rows[i].name) > 16 ||
                strlen(rows->rows[i].process) > 16)
                abort();
        kj_threads_free(rows);
    }
    if (!kj_cpu_phases_read(dir_fd, &phases)) {
        for (size_t i = 0; i < phases->count; i++)
            if (phases->rows[i].phase >= KJ_CPU_PHASES || phases->rows[i].end_ns < phases->rows[i].start_ns)
                abort();
        kj_cpu_phases_free(phases);
    }
    unlinkat(dir_fd, name, 0);
    return 0;
}

size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap);
size_t kj_fuzz_seed(size_t i, uint8_t *ret_data, size_t cap)
{
    static const char *const seeds[] = {
        "tkjoule.threads/"
        "1\nby,probe\nt,12,python3,pt_autograd,0,4,123456789,0,0\nt,12,python3,python3,1,1,5,6,7\n",
        "tkjoule.threads/1\nby,proc\nt,0,\\x2c\\x0a,a\\x5cb,0,4294967295,18446744073709551615,1,1\n",
        "pkjoule.cpu-phases/"
        "1\nseen,12,1000,3\np,12,12,backward,1000,2000\np,12,13,optimizer,1500,2500\nfull,9\n",
        "pkjoule.cpu-phases/1\np,12,12,backward,2000,1000\np,1,1,data,1,2\n",
    };
    if (i >= sizeof(seeds) / sizeof(*seeds))
        return 0;
    snprintf((char *)ret_data, cap, "%s", seeds[i]);
    return strlen(seeds[i]);
}
