#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs the bundle on the simulated driver in a root folder that holds glibc, Python and nothing that builds. Needs to be root.
#     minimal_root.sh BUNDLE SIMGPU FOLDER [debian SUITE | host] [options of check.py]
# debian: a debootstrap'ped minimal SUITE; bullseye has glibc 2.31 and Python 3.9. host: this machine's glibc, Python and bash, copied.
# Without either, bullseye where debootstrap is installed, else host. The root is kept in FOLDER/root, the results in FOLDER/results.
set -euo pipefail
bundle=$(realpath "$1") simgpu=$(realpath "$2") folder=$(realpath -m "$3")
shift 3
kind=host
if command -v debootstrap >/dev/null; then kind=debian; fi
suite=bullseye
case ${1-} in
debian) kind=debian suite=$2; shift 2 ;;
host) kind=host; shift ;;
esac
[ $kind = host ] || kind=$suite
root=$folder/root.$kind
mkdir -p "$folder"

# A file and the libraries that it needs, at the places where they are here.
copy() {
    for file in "$@"; do
        [ -e "$root$file" ] || install -D "$file" "$root$file"
        { ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; } | while read -r library; do
            [ -e "$root$library" ] || install -D "$library" "$root$library"
        done
    done
}

if [ ! -e "$root/complete" ]; then
    rm -rf "$root"
    if [ $kind != host ]; then
        debootstrap --variant=minbase --include=python3 "$suite" "$root" http://deb.debian.org/debian >"$folder/debootstrap.log"
    else
        library=$(/usr/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
        mkdir -p "$root"/{proc,dev,tmp,sys,bin,usr/bin}
        copy "$(realpath /usr/bin/python3)" /bin/bash
        libraries=$(ldd /bin/bash | sed -n 's|.* => \(/.*\)/libc.so.6 .*|\1|p')
        copy "$libraries"/lib{m.so.6,pthread.so.0,dl.so.2,rt.so.1}
        ln -sf "$(realpath /usr/bin/python3)" "$root/usr/bin/python3"
        ln -sf bash "$root/bin/sh"
        mkdir -p "$root$library" && cp -a "$library/." "$root$library"
        rm -rf "$root$library"/{test,idlelib,dist-packages,site-packages}
        find "$root$library" -name '*.so' | sed "s|^$root||" | while read -r file; do copy "$file"; done
    fi
    touch "$root/complete"
fi
rm -rf "$root"/{bundle,driver,results} && cp -a "$bundle" "$root/bundle" && cp -aL "$simgpu" "$root/driver" && mkdir -p "$root/results"
cp "$(dirname "$0")/simgpu.script" "$root/driver/script"
start=$SECONDS status=0
unshare --mount --pid --fork --net --propagation private /bin/bash -c '
    root=$0; mount -t proc proc "$root/proc"; mount -t tmpfs tmpfs "$root/tmp"; mount -t tmpfs tmpfs "$root/dev"
    for name in null zero urandom; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
    mkdir "$root/dev/shm"
    exec env -i PATH=/usr/bin:/bin HOME=/tmp LD_LIBRARY_PATH=/driver:/driver/cupti KJ_SIM_SCRIPT=/driver/script KJ_SIM_STATE=/tmp/state \
        /usr/sbin/chroot "$root" /bin/bash /bundle/run /results "$@"' "$root" "$@" || status=$?
rm -rf "$folder/results" && cp -a "$root/results" "$folder/results"
echo "  ROOT    $kind: $((SECONDS - start)) s, results in $folder/results"
exit $status
