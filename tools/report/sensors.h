/* SPDX-License-Identifier: Apache-2.0
 *
 * sensors.h - the sensors' part of a report. Inside the room only.
 */
#ifndef KJ_REPORT_SENSORS_H
#define KJ_REPORT_SENSORS_H

#include "report/report.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

json_t *kj_report_sensors_json(const struct kj_report *report);
/* One line on the sensors of a device; none when nothing is to be said. */
void kj_report_sensors_text(const struct kj_report *report, const char *device, FILE *out);

#endif
