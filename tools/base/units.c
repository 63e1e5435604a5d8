/* SPDX-License-Identifier: Apache-2.0
 *
 * units.c - human forms of quantities: three significant digits and the unit that fits. One table a quantity.
 */
#include "base/units.h"

#include <math.h>
#include <stddef.h>
#include <stdio.h>

struct scale {
    double from; /* smallest magnitude that is shown in this unit */
    double divisor;
    const char *unit;
};

static char *format_scaled(char *buf, int size, double value, const struct scale *scales)
{
    const struct scale *s = scales;
    double magnitude = fabs(value);
    while (s[1].unit && magnitude >= s[1].from)
        s++;
    double shown = value / s->divisor;
    double a = fabs(shown);
    int decimals = a == 0 || a >= 99.95 ? 0 : a >= 9.995 ? 1 : 2;
    snprintf(buf, (size_t)size, "%.*f %s", decimals, shown, s->unit);
    return buf;
}

const char *kj_method_name(enum kj_method method)
{
    switch (method) {
    case KJ_MEASURED:
        return "measured";
    case KJ_ESTIMATED:
        return "estimated";
    case KJ_MODELLED:
        return "modelled";
    }
    return "unknown";
}

char *kj_format_energy(char *buf, int size, double uj)
{
    static const struct scale scales[] = {
        {0, 1, "uJ"},       {1e3, 1e3, "mJ"},      {1e6, 1e6, "J"},         {1e9, 1e9, "kJ"},
        {1e12, 1e12, "MJ"}, {1e14, 3.6e12, "kWh"}, {3.6e15, 3.6e15, "MWh"}, {0, 0, NULL},
    };
    return format_scaled(buf, size, uj, scales);
}

char *kj_format_watt_hours(char *buf, int size, double uj)
{
    static const struct scale scales[] = {{0, 3.6e3, "uWh"},
                                          {3.6e6, 3.6e6, "mWh"},
                                          {3.6e9, 3.6e9, "Wh"},
                                          {3.6e12, 3.6e12, "kWh"},
                                          {0, 0, NULL}};
    return format_scaled(buf, size, uj, scales);
}

char *kj_format_time(char *buf, int size, double ns)
{
    static const struct scale scales[] = {
        {0, 1, "ns"},         {1e3, 1e3, "us"},       {1e6, 1e6, "ms"}, {1e9, 1e9, "s"},
        {600e9, 60e9, "min"}, {36000e9, 3600e9, "h"}, {0, 0, NULL},
    };
    return format_scaled(buf, size, ns, scales);
}

char *kj_format_power(char *buf, int size, double mw)
{
    static const struct scale scales[] = {
        {0, 1, "mW"}, {1e3, 1e3, "W"}, {1e7, 1e6, "kW"}, {1e10, 1e9, "MW"}, {0, 0, NULL}};
    return format_scaled(buf, size, mw, scales);
}

char *kj_format_mass(char *buf, int size, double g)
{
    static const struct scale scales[] = {{0, 1e-6, "ug"},  {1e-3, 1e-3, "mg"}, {1, 1, "g"},
                                          {1e3, 1e3, "kg"}, {1e6, 1e6, "t"},    {0, 0, NULL}};
    return format_scaled(buf, size, g, scales);
}
