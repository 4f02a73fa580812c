#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the Debian package of the host agent: build-deb.sh HOST-AGENT OUT.deb
# The same program gives the same package, byte for byte. DEB_COMPRESSION: xz (default), zstd, gzip, none.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: build-deb.sh HOST-AGENT OUT.deb" >&2
    exit 64
fi
program=$1
out=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-0}"
umask 022

version=$("$program" --version | sed -n 's/^host-agent \([0-9][0-9A-Za-z.+~-]*\)$/\1/p')
if [ -z "$version" ]; then
    echo "build-deb: $program does not say its version" >&2
    exit 1
fi

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT INT TERM
share=$tree/usr/share
documents=$share/doc/chrysalis-host-agent
mkdir -p "$tree/DEBIAN" "$documents"

install -D -m 0755 "$program" "$tree/usr/bin/host-agent"
"$program" manual --out "$share"
find "$share/man" -type f -exec gzip -9n {} +
for unit in "$here"/../units/*.service; do
    install -D -m 0644 "$unit" "$tree/usr/lib/systemd/system/$(basename "$unit")"
done
install -D -m 0644 "$here/sysusers.conf" "$tree/usr/lib/sysusers.d/chrysalis.conf"
install -D -m 0644 "$here/modules.conf" "$tree/usr/lib/modules-load.d/chrysalis.conf"
install -m 0644 "$here/../../docs/provider.md" "$here/../../docs/host-agent.md" "$here/../../docs/status-codes.md" \
    "$here/agent.toml" "$documents/"
install -m 0644 "$here/../../LICENSE" "$documents/copyright"
install -m 0755 "$here/postinst" "$here/prerm" "$here/postrm" "$tree/DEBIAN/"

size=$(du -sk --apparent-size "$tree/usr" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@SIZE@/$size/" "$here/control.in" > "$tree/DEBIAN/control"
chmod 0755 "$tree"
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

dpkg-deb --root-owner-group -Z"${DEB_COMPRESSION:-xz}" --build "$tree" "$out.new" >&2
mv -- "$out.new" "$out"
