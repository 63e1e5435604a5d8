# SPDX-License-Identifier: Apache-2.0
# Turns the tables of this folder into rows of C macros: awk -v hash=SHA256 -f tables.awk sources.csv factors.csv ...
# Fields hold no comma and no quote (make_tables.py checks it), so splitting at commas is enough.
function fail(text) {
    print "tables.awk: " FILENAME ":" FNR ": " text >"/dev/stderr"
    failed = 1
    exit 1
}
function quoted(text) {
    if (text ~ /["\\]/)
        fail("a quote or a backslash in a field")
    return "\"" text "\""
}
function source(key) {
    if (!(key in title))
        fail("source " key " is not in sources.csv")
    return quoted(title[key]) ", " quoted(licence[key])
}
BEGIN {
    FS = ","
    print "/* Generated from tools/carbon/data by tables.awk. The includer defines the macros of the rows it wants. */"
    count = split("TABLES_SHA256 WORLD FACTOR ALIAS CLOUD CLOUD_OWN TIMEZONE", macro, " ")
    for (i = 1; i <= count; i++)
        print "#ifndef " macro[i] "\n#define " macro[i] "(...)\n#endif"
    print "TABLES_SHA256(" quoted(hash) ")"
}
FNR == 1 { # the header tells which table this is
    table = $1
    columns = NF
    next
}
NF != columns { fail(NF " fields, expected " columns) }
table == "key" {
    title[$1] = $2
    licence[$1] = $3
}
table == "code" {
    known[$1] = 1
    row = quoted($1) ", " quoted($2) ", " quoted($3) ", " $4 ", " $5 ", " $6 ", " $7 ", " source($8)
    print ($1 == "WORLD" ? "WORLD(" : "FACTOR(") row ")"
}
table == "alias" || table == "tz" {
    if (!($2 in known))
        fail("zone " $2 " has no factor")
    print (table == "tz" ? "TIMEZONE(" : "ALIAS(") quoted($1) ", " quoted($2) ")"
}
table == "provider" {
    if (!($3 in known))
        fail("zone " $3 " has no factor")
    row = quoted($1) ", " quoted($2) ", " quoted($3)
    print ($4 == "" ? "CLOUD(" row ")" : "CLOUD_OWN(" row ", " $4 ", " $5 ", " source($6) ")")
}
END {
    for (i = 1; !failed && i <= count; i++)
        print "#undef " macro[i]
}
