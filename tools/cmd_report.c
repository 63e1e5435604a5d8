/* SPDX-License-Identifier: Apache-2.0
 *
 * cmd_report.c - `kjoule report DIR`: the report again, from the files of a run; of a killed or a running one
 * too.
 */
#include "account/account.h"
#include "base/file.h"
#include "base/options.h"
#include "commands.h"
#include "report/report.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: kjoule report DIR [--format text|json] [-o FILE] [--zone ZONE] [--pue RATIO]\n"
    "                         [--carbon-intensity G_PER_KWH]\n"
    "Computes the report of a run folder again. What is not given here is as it was recorded.\n";

/* Options of the common list that this command takes. */
static const struct {
    const char *name;
    enum kj_option_id id;
} common[] = {
    {"--zone", KJ_OPT_ZONE}, {"--pue", KJ_OPT_PUE}, {"--carbon-intensity", KJ_OPT_CARBON_INTENSITY}};

struct request {
    const char *folder, *format, *file;
    bool given[KJ_OPT_COUNT]; /* in the command line: the environment of today changes no recorded run */
    struct kj_options options;
};

/* --format, -o and DIR are of this command; the rest goes to the common list. */
static int parse(int argc, char **argv, struct request *request, struct kj_error *error)
{
    char *words[16];
    int count = 0, used = 0;
    request->format = "text";
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        size_t length = strcspn(word, "=");
        int is_common = -1;
        bool format = length == 8 && !memcmp(word, "--format", 8);
        bool file = !strcmp(word, "-o") || (length == 8 && !memcmp(word, "--output", 8));
        for (int c = 0; c < 3; c++)
            if (strlen(common[c].name) == length && !memcmp(common[c].name, word, length))
                is_common = c;
        if (*word != '-' && !request->folder) {
            request->folder = word;
            continue;
        }
        if (is_common < 0 && !format && !file) {
            kj_error_set(error, "report: '%s' is not understood; kjoule report --help shows how", word);
            return -EINVAL;
        }
        bool apart = word[length] != '=';
        if (apart && i + 1 >= argc) {
            kj_error_set(error, "report: %s needs a value", word);
            return -EINVAL;
        }
        char *value = apart ? argv[++i] : argv[i] + length + 1;
        if (format)
            request->format = value;
        else if (file)
            request->file = value;
        else if (count + 2 <= 16) {
            request->given[common[is_common].id] = true;
            words[count++] = apart ? argv[i - 1] : argv[i];
            if (apart)
                words[count++] = value;
        }
    }
    if (!request->folder) {
        kj_error_set(
            error,
            "report: no run folder given; say which, as in: kjoule report kjoule.20260101-120000-host-42");
        return -EINVAL;
    }
    return kj_options_parse(count, words, &request->options, &used, error);
}

static int print(const struct request *request, const char *text, size_t size, struct kj_error *error)
{
    if (request->file && strcmp(request->file, "-")) {
        int status = kj_file_replace(AT_FDCWD, request->file, text, size);
        if (status)
            kj_error_set(error, "%s cannot be written: %s", request->file, strerror(-status));
        return status;
    }
    if (fwrite(text, 1, size, stdout) == size && !fflush(stdout))
        return 0;
    kj_error_set(error, "standard output cannot be written: %s", strerror(errno));
    return -EIO;
}

int kj_cmd_report(int argc, char **argv)
{
    struct request request = {0};
    struct kj_error error = {0};
    struct kj_report *report = NULL;
    char *text = NULL;
    size_t size = 0;
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(usage, stdout);
            return 0;
        }
    int status = parse(argc, argv, &request, &error);
    const struct kj_options *options = &request.options;
    const struct kj_account_options account = {
        .zone = request.given[KJ_OPT_ZONE] ? options->text[KJ_OPT_ZONE] : NULL,
        .carbon_intensity_g_per_kwh =
            request.given[KJ_OPT_CARBON_INTENSITY] ? options->number[KJ_OPT_CARBON_INTENSITY] : -1,
        .pue = request.given[KJ_OPT_PUE] ? options->number[KJ_OPT_PUE] : 0};
    if (!status)
        status = kj_account_folder(request.folder, &account, &report, &error);
    if (!status)
        status = kj_report_render(report, request.format, &text, &size, &error);
    if (!status)
        status = print(&request, text, size, &error);
    if (status)
        kj_say("%s", *error.text ? error.text : strerror(-status));
    free(text);
    kj_report_free(report);
    return status ? KJ_EXIT_USAGE : 0;
}
