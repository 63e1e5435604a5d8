/* SPDX-License-Identifier: Apache-2.0
 *
 * log.h - what kjoule says to people: one line, on stderr, beginning "kjoule: ". Only programs (cmd_*.c, the
 * recorder) print; library rooms return negative errno and a text.
 *
 * A message says what, where, and what to do. Warnings end with the way out.
 */
#ifndef KJ_LOG_H
#define KJ_LOG_H

#define KJ_EXIT_USAGE   2   /* bad input */
#define KJ_EXIT_FAILURE 125 /* kjoule's own failure */

/* The text of an error that a library room returns beside its negative errno. Zero-initialise; never contains
 * a newline. */
struct kj_error {
    char text[512];
};

void kj_error_set(struct kj_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));
void kj_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void kj_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
