#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes factors.csv, cloud.csv and timezones.csv from collected facts, and checks them. A maintainer's tool: the build needs only the CSV.

    make_tables.py FACTS_DIR     rewrite the tables (FACTS_DIR holds grid_intensity_all.csv, cloud_regions.csv, tz_country.csv)
    make_tables.py --check       only check the tables that are here

What is taken, left out and corrected is told in SOURCES.md; corrections are in the tables below, not in the facts.
"""
import csv
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent

# (start of the source's name in the facts, year) -> key in sources.csv. A fact whose source is not here is left out.
SOURCE_KEYS = {
    ("Ember Yearly", "2022"): "ember-2025", ("Ember Yearly", "2023"): "ember-2025", ("Ember Yearly", "2024"): "ember-2025",
    ("US EPA eGRID2023 rev2", "2023"): "egrid-2023", ("US EPA eGRID2023 state", "2023"): "egrid-2023",
    ("ECCC Emission factors", "2024"): "eccc-4.0", ("DCCEEW NGA Factors 2026", "2026"): "nga-2026",
    ("DESNZ/DEFRA 2025", "2025"): "desnz-2025", ("EEA ", "2024"): "eea-2026",
}
RENAME = {
    "EU27": "European Union (27)", "HKG": "Hong Kong", "MAC": "Macao", "TWN": "Taiwan", "LAO": "Laos", "PHL": "Philippines",
    "TZA": "Tanzania", "PSE": "Palestine", "VNM": "Vietnam", "COK": "Cook Islands", "FLK": "Falkland Islands", "BRN": "Brunei",
    "BIH": "Bosnia and Herzegovina", "VGB": "British Virgin Islands", "VIR": "US Virgin Islands", "CIV": "Ivory Coast",
    "TUR": "Türkiye", "AU-ACT": "Australian Capital Territory", "AU-WA": "Western Australia", "AU-NT": "Northern Territory",
}
DROPPED = {"CAF"}  # 0 g/kWh with no plant reported is a gap in the data, not a clean grid: the place falls to WORLD
# Direct above lifecycle: the two sources disagree by more than the basis explains; neither is taken to be wrong.
DIRECT_ABOVE = {"BEL", "EST"}
ISO2_CORRECTED = {"CYP": "CY", "CYM": "KY", "XKX": "XK"}  # missing or wrong in the time zone facts

# Cloud sites of countries whose grid is finer than the country. eGRID by the site's county and utility.
SITE_ZONE = {
    "aws:us-east-1": "US-EGRID-SRVC", "aws:us-east-2": "US-EGRID-RFCW", "aws:us-west-1": "US-EGRID-CAMX",
    "aws:us-west-2": "US-EGRID-NWPP", "aws:us-gov-east-1": "US-EGRID-RFCW", "aws:us-gov-west-1": "US-EGRID-NWPP",
    "azure:centralus": "US-EGRID-MROW", "azure:eastus": "US-EGRID-SRVC", "azure:eastus2": "US-EGRID-SRVC",
    "azure:eastus3": "US-EGRID-SRSO", "azure:northcentralus": "US-EGRID-RFCW", "azure:southcentralus": "US-EGRID-ERCT",
    "azure:westcentralus": "US-EGRID-RMPA", "azure:westus": "US-EGRID-CAMX", "azure:westus2": "US-EGRID-NWPP",
    "azure:westus3": "US-EGRID-AZNM", "azure:usgovvirginia": "US-EGRID-SRVC", "azure:usgovtexas": "US-EGRID-ERCT",
    "azure:usgovarizona": "US-EGRID-AZNM",
    "gcp:us-central1": "US-EGRID-MROW", "gcp:us-central2": "US-EGRID-SPSO", "gcp:us-east1": "US-EGRID-SRVC", "gcp:us-east2": "USA",
    "gcp:us-east4": "US-EGRID-SRVC", "gcp:us-east5": "US-EGRID-RFCW", "gcp:us-south1": "US-EGRID-ERCT",
    "gcp:us-west1": "US-EGRID-NWPP", "gcp:us-west2": "US-EGRID-CAMX", "gcp:us-west3": "US-EGRID-NWPP", "gcp:us-west4": "US-EGRID-AZNM",
    "ovh:us-hillsboro": "US-EGRID-NWPP", "ovh:us-vint_hill": "US-EGRID-SRVC",
    "aws:ap-east-2": "TWN",
}
TIMEZONES_MORE = {  # names that zone.tab has not: links kept for old configurations, and whole families by their prefix
    "Asia/Nicosia": "CYP", "Asia/Famagusta": "CYP", "Asia/Calcutta": "IND", "Asia/Katmandu": "NPL", "Asia/Rangoon": "MMR",
    "Asia/Saigon": "VNM", "Europe/Kiev": "UKR", "Europe/Belfast": "GBR", "America/Buenos_Aires": "ARG", "America/Indianapolis": "USA",
    "America/Montreal": "CAN", "GB": "GBR", "Eire": "IRL", "Egypt": "EGY", "Hongkong": "HKG", "Iceland": "ISL", "Iran": "IRN",
    "Israel": "ISR", "Jamaica": "JAM", "Japan": "JPN", "Libya": "LBY", "NZ": "NZL", "PRC": "CHN", "Poland": "POL",
    "Portugal": "PRT", "ROC": "TWN", "ROK": "KOR", "Singapore": "SGP", "Turkey": "TUR", "Cuba": "CUB",
    "US/*": "USA", "Canada/*": "CAN", "Australia/*": "AUS", "Brazil/*": "BRA", "Chile/*": "CHL", "Mexico/*": "MEX",
}


def read(path):
    with open(path, encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def write(name, header, rows):
    with open(HERE / name, "w", encoding="utf-8", newline="") as handle:
        out = csv.writer(handle, lineterminator="\n")
        out.writerow(header)
        out.writerows(rows)


def factor_rows(facts, iso2_of):
    kept = {}
    for row in facts:
        key = next((k for (start, year), k in SOURCE_KEYS.items() if row["source"].strip().startswith(start) and row["year"] == year), None)
        if key is None or row["code"] in DROPPED:
            continue
        code = "USA" if row["code"] == "US-EGRID-US" else row["code"]
        basis = row["basis"].split(" ")[0]
        boundary = row["boundary"].split(",")[0].split(" ")[0]
        kept[(code, basis)] = [code, row["name"], row["gco2e_per_kwh"], row["year"], basis, boundary, key]
    lifecycle_name = {c: r[1] for (c, b), r in kept.items() if b == "lifecycle"}
    rows = []
    for (code, basis), row in kept.items():
        row[1] = RENAME.get(code, lifecycle_name.get(code, row[1]))
        rows.append([code, iso2_of.get(code, ""), *row[1:]])
    order = {"WORLD": 0, "EU27": 1}
    rows.sort(key=lambda r: (order.get(r[0], 2 if len(r[0]) == 3 else 3 if r[0].startswith("US-EGRID") else 4), r[0], r[5] != "lifecycle"))
    return rows


def cloud_rows(facts, iso2_of, codes):
    iso3_of = {v: k for k, v in iso2_of.items()}
    rows = {}
    for row in facts:
        site = row["provider"] + ":" + row["region"]
        zone = SITE_ZONE.get(site) or row["grid_code"] or row["zone"]
        if zone not in codes:
            zone = iso3_of[zone.split("-")[0]]
        own = row["source"].startswith("Google")
        rows[site] = [row["provider"], row["region"], zone, row["gco2e_per_kwh"] if own else "", row["year"] if own else "",
                      "google-2024" if own else ""]
    for site, zone in SITE_ZONE.items():
        rows.setdefault(site, [*site.split(":"), zone, "", "", ""])
    return [rows[site] for site in sorted(rows)]


def check():
    factors, cloud = read(HERE / "factors.csv"), read(HERE / "cloud.csv")
    zones, aliases, sources = read(HERE / "timezones.csv"), read(HERE / "aliases.csv"), read(HERE / "sources.csv")
    codes, keys = {r["code"] for r in factors}, {r["key"] for r in sources}
    problems = []

    def want(truth, text):
        if not truth:
            problems.append(text)

    want(len({(r["code"], r["basis"]) for r in factors}) == len(factors), "a code has two rows of one basis")
    for r in factors:
        g = float(r["g_per_kwh"])
        want(1 <= g <= 1400, f"{r['code']}: {g} g/kWh is out of range")
        want(2020 <= int(r["year"]) <= 2026, f"{r['code']}: year {r['year']}")
        want(r["basis"] in ("lifecycle", "direct") and r["boundary"] in ("generation", "consumption"), f"{r['code']}: basis or boundary")
        want(r["source"] in keys, f"{r['code']}: source {r['source']} is not in sources.csv")
    iso2 = {(r["iso2"], r["code"]) for r in factors if r["iso2"]}
    want(len(iso2) == len({two for two, _ in iso2}) == len({code for _, code in iso2}), "a two-letter code is of two places")
    direct = {r["code"]: float(r["g_per_kwh"]) for r in factors if r["basis"] == "direct"}
    for r in factors:  # lifecycle holds the direct part, up to what the boundary and the year explain
        if r["basis"] == "lifecycle" and r["code"] in direct:
            want(r["code"] in DIRECT_ABOVE or direct[r["code"]] <= 1.1 * float(r["g_per_kwh"]), f"{r['code']}: direct {direct[r['code']]} above lifecycle")
    states = [float(r["g_per_kwh"]) for r in factors if r["code"].startswith("US-") and "EGRID" not in r["code"]]
    want(len(states) == 51 and min(states) < direct["USA"] < max(states), "US states do not surround the US average")
    for r in cloud:
        want(r["zone"] in codes, f"{r['provider']}:{r['region']}: zone {r['zone']} has no factor")
        want(not r["region"].startswith("us-") or r["zone"].startswith("US"), f"{r['provider']}:{r['region']} is not in the US")
        want(not r["g_per_kwh"] or 1 <= float(r["g_per_kwh"]) <= 1400, f"{r['provider']}:{r['region']}: out of range")
    for r in zones:
        want(r["code"] in codes, f"{r['tz']}: {r['code']} has no factor")
    for r in aliases:
        want(r["code"] in codes, f"alias {r['alias']}: {r['code']} has no factor")
    want(not any("," in v or '"' in v for t in (factors, cloud, zones, aliases, sources) for r in t for v in r.values()),
         "a field holds a comma or a quote: the build splits at commas")
    for text in problems:
        print("make_tables: " + text, file=sys.stderr)
    return 1 if problems else 0


def main():
    if sys.argv[1:] != ["--check"]:
        facts = pathlib.Path(sys.argv[1])
        timezone_facts = read(facts / "tz_country.csv")
        iso2_of = {r["iso3"]: r["iso2"] for r in timezone_facts} | ISO2_CORRECTED
        factors = factor_rows(read(facts / "grid_intensity_all.csv"), iso2_of)
        codes = {r[0] for r in factors}
        write("factors.csv", ["code", "iso2", "name", "g_per_kwh", "year", "basis", "boundary", "source"], factors)
        write("cloud.csv", ["provider", "region", "zone", "g_per_kwh", "year", "source"],
              cloud_rows(read(facts / "cloud_regions.csv"), iso2_of, codes))
        tz = {r["tz"]: r["iso3"] for r in timezone_facts if r["iso3"] in codes} | TIMEZONES_MORE
        write("timezones.csv", ["tz", "code"], sorted(tz.items()))
    return check()


if __name__ == "__main__":
    sys.exit(main())
