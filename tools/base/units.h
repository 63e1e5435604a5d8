/* SPDX-License-Identifier: Apache-2.0
 *
 * units.h - the units kjoule counts in. Every name of a quantity ends in its unit: _uj _mw _ns _g _mg.
 */
#ifndef KJ_UNITS_H
#define KJ_UNITS_H

#include <stdint.h>

#define KJ_UJ_PER_J   1000000LL
#define KJ_UJ_PER_KWH 3600000000000LL
#define KJ_NS_PER_S   1000000000LL
#define KJ_NS_PER_MS  1000000LL

/* How a number was obtained. */
enum kj_method {
    KJ_MEASURED = 1,  /* a sensor said so */
    KJ_ESTIMATED = 2, /* computed from measured quantities by a rule */
    KJ_MODELLED = 3,  /* from a table or a power model */
};

/* "measured", "estimated", "modelled" */
const char *kj_method_name(enum kj_method method);

/* The 90 % interval is what is meant wherever a number carries low and high. */
#define KJ_INTERVAL_COVERAGE 0.90
#define KJ_Z90               1.6449 /* half-width of a normal 90 % interval in standard deviations */

/* Human forms for the text report: "12.3 kJ", "1.25 kWh", "4.1 s", "310 W". Writes at most size bytes,
 * returns buf. */
char *kj_format_energy(char *buf, int size, double uj);
char *kj_format_watt_hours(char *buf, int size, double uj); /* "4.47 mWh": what is priced per kWh */
char *kj_format_time(char *buf, int size, double ns);
char *kj_format_power(char *buf, int size, double mw);
char *kj_format_mass(char *buf, int size, double g);

#endif
