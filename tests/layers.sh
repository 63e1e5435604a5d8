#!/bin/sh
# Fails on an include that goes up, on a .c over 600 lines, on an unknown room. The order is the architecture: top to bottom.
set -eu
order="record account report carbon folder trace power model base"
status=0
rank() { n=0; for r in $order; do [ "$r" = "$1" ] && echo $n && return; n=$((n + 1)); done; echo -1; }
for file in $(git ls-files 'tools/*/*.c' 'tools/*/*.h'); do
    room=$(echo "$file" | cut -d/ -f2)
    own=$(rank "$room")
    for inc in $(sed -n 's/^#include "\([a-z]*\)\/.*/\1/p' "$file" | sort -u); do
        other=$(rank "$inc")
        if [ "$other" -ge 0 ] && [ "$other" -lt "$own" ]; then
            echo "layers: $file includes $inc/, which is above $room/" >&2
            status=1
        fi
    done
done
for file in $(git ls-files 'shim/*.c' 'shim/*.h'); do
    grep -nE '^#include "(record|account|report|carbon|folder|power|model|base)/' "$file" && status=1
done
big=$(git ls-files '*.c' | xargs wc -l | awk '$1>600 && $2!="total"{print "layers: " $2 " has " $1 " lines, over 600"}')
[ -z "$big" ] || { echo "$big" >&2; status=1; }
exit $status
