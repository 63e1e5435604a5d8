/* SPDX-License-Identifier: Apache-2.0 */
#include "finish.h"

#include "account/account.h"
#include "base/file.h"
#include "folder/folder.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_all(int fd, const char *text, size_t size)
{
    while (size) {
        ssize_t n = write(fd, text, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return; /* nobody listens: the report is in the folder */
        text += n;
        size -= (size_t)n;
    }
}

static int save(const struct kj_report *report, const char *folder, struct kj_error *error)
{
    char *text = NULL;
    size_t size = 0;
    int dir_fd = kj_folder_open(folder, error);
    int status = dir_fd < 0 ? dir_fd : kj_report_render(report, "json", &text, &size, error);
    if (!status) {
        status = kj_file_replace(dir_fd, KJ_REPORT_FILE, text, size);
        if (status)
            kj_error_set(error,
                         "%s/" KJ_REPORT_FILE
                         " cannot be written: %s; `kjoule report` computes it again from the folder",
                         folder, strerror(-status));
    }
    free(text);
    if (dir_fd >= 0)
        close(dir_fd);
    return status;
}

int kj_finish_run(const char *folder, int summary_fd, struct kj_error *error)
{
    const struct kj_account_options as_recorded = {.carbon_intensity_g_per_kwh = -1};
    struct kj_report *report;
    int status = kj_account_folder(folder, &as_recorded, &report, error);
    if (status)
        return status;
    status = save(report, folder, error);
    char *text = NULL;
    size_t size = 0;
    struct kj_error ignored;
    if (summary_fd >= 0 && !kj_report_render(report, "text", &text, &size, &ignored))
        write_all(summary_fd, text, size);
    free(text);
    kj_report_free(report);
    return status;
}
