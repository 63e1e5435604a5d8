/* SPDX-License-Identifier: Apache-2.0
 *
 * attribution.h - writers of `kjoule attribute`'s answer: JSON (schema/kjoule.attribution.1.json), CSV of the
 * windows, text for people. As report.h's writers: no clock, no hardware, no files.
 */
#ifndef KJ_REPORT_ATTRIBUTION_H
#define KJ_REPORT_ATTRIBUTION_H

#include "trace/attribute.h"

#include <stdio.h>

#define KJ_ATTRIBUTION_SCHEMA "kjoule.attribution/1"

/* 0, or -EIO, -ENOMEM. */
int kj_write_attribution_json(const struct kj_trace_answer *answer, FILE *out);
/* start_ns,end_ns,sensor,measured_uj,modelled_uj: what each reading looked at, on the power log's clock. */
int kj_write_attribution_windows(const struct kj_trace_answer *answer, FILE *out);
int kj_write_attribution_text(const struct kj_trace_answer *answer, FILE *out);

/* "unknown" "given" "meter" */
const char *kj_trace_gain_source_name(enum kj_trace_gain_source source);

#endif
