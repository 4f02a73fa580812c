#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs, upgrades, removes and purges packages on a copy of this machine that nobody else sees and that is gone
# afterwards: try-deb.sh OLDER.deb NEWER.deb. For root, on a machine with dpkg, systemd's tools and overlayfs.
# Exit code 0 when all is as it should be, 77 where it cannot be tried, 1 with what is wrong.
set -euo pipefail

if [ $# -ne 2 ]; then
    echo "usage: try-deb.sh OLDER.deb NEWER.deb" >&2
    exit 64
fi

skip() { echo "SKIPPED: $1"; exit 77; }
fail() { echo "not as it should be: $1" >&2; exit 1; }

if [ -z "${TRY_DEB_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || skip "only root makes such a copy"
    for tool in dpkg unshare systemd-sysusers systemctl systemd-analyze man; do
        command -v "$tool" >/dev/null || skip "there is no $tool"
    done
    unshare --mount --pid --fork true 2>/dev/null || skip "no namespaces of its own"
    # Processes, mounts and network of its own: what a maintainer's script does wrong, it does to the copy.
    TRY_DEB_INSIDE=1 exec unshare --mount --pid --net --fork --kill-child --propagation private "$0" "$@"
fi

older=$(readlink -f -- "$1")
newer=$(readlink -f -- "$2")
work=$(mktemp -d)
trap 'umount -R "$work" 2>/dev/null || true; rmdir "$work" 2>/dev/null || true' EXIT
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$work/root" 2>/dev/null || skip "no overlayfs"
root=$work/root
mount -t proc proc "$root/proc"
for place in run tmp; do mount -t tmpfs tmpfs "$root/$place"; done
mount --bind /dev "$root/dev"
cp -- "$older" "$root/tmp/older.deb"
cp -- "$newer" "$root/tmp/newer.deb"

inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
# Whatever is not the package's own matter: dpkg's records, caches, logs, accounts.
changed() {
    (cd "$work/upper" && find . ! -type d) | grep -v -E \
        '^\./(var/lib/dpkg|var/log|var/cache|var/lib/systemd|run|tmp)/|^\./etc/((passwd|group|shadow|gshadow|subuid|subgid)-?|\.pwd\.lock)$' | sort || true
}
state() { inside dpkg-query -W -f '${db:Status-Status} ${Version}' chrysalis-host-agent 2>/dev/null || echo none; }

# The index of manual pages takes longer than everything else, and nothing here asks it.
rm -f "$root/var/lib/man-db/auto-update"
# A package of this name that is on the machine already is gone in the copy.
inside dpkg --purge chrysalis-host-agent >/dev/null 2>&1 || true
inside getent passwd chrysalis >/dev/null && inside userdel chrysalis >/dev/null 2>&1
before=$(changed)

inside dpkg --install /tmp/older.deb >"$root/tmp/log" 2>&1 || { cat "$root/tmp/log" >&2; fail "it does not install"; }
case $(state) in "installed "*) ;; *) fail "after the installation it is: $(state)" ;; esac

# The user, by the package's own file; its home is not made by anybody before the daemon starts.
user=$(inside getent passwd chrysalis) || fail "there is no user chrysalis"
[ "$(echo "$user" | cut -d: -f6)" = /var/lib/chrysalis ] || fail "the user's home: $user"
case $(echo "$user" | cut -d: -f7) in */nologin) ;; *) fail "the user's shell: $user" ;; esac
[ "$(echo "$user" | cut -d: -f3)" -lt 1000 ] || fail "the user is no system user: $user"
inside id -nG chrysalis | tr ' ' '\n' | grep -qx kvm || fail "the user is not in the group kvm"
[ ! -e "$root/run/systemd/system" ] || fail "the copy believes that systemd runs"

# What the administrator makes.
mkdir -p "$root/etc/chrysalis" "$root/etc/systemd/system/chrysalis-agent.service.d" "$root/var/lib/chrysalis/cache"
cp "$root/usr/share/doc/chrysalis-host-agent/agent.toml" "$root/etc/chrysalis/agent.toml"
echo '# mine' >> "$root/etc/chrysalis/agent.toml"
printf '[Service]\nTasksMax=17\n' > "$root/etc/systemd/system/chrysalis-agent.service.d/mine.conf"
echo state > "$root/var/lib/chrysalis/cache/state"
inside systemctl enable chrysalis-agent.service chrysalis-guest@one.service >/dev/null 2>&1 || fail "units cannot be enabled"
wants=$root/etc/systemd/system/multi-user.target.wants
[ -L "$wants/chrysalis-agent.service" ] && [ -L "$wants/chrysalis-guest@one.service" ] || fail "units are not enabled"
ours=$(sha256sum "$root/etc/chrysalis/agent.toml" "$root/etc/systemd/system/chrysalis-agent.service.d/mine.conf")

inside dpkg --install /tmp/newer.deb >"$root/tmp/log" 2>&1 || { cat "$root/tmp/log" >&2; fail "it does not upgrade"; }
version=$(inside dpkg-deb -f /tmp/newer.deb Version)
[ "$(state)" = "installed $version" ] || fail "after the upgrade it is: $(state)"
echo "$ours" | sha256sum --check --quiet || fail "the upgrade changed the administrator's files"
[ -L "$wants/chrysalis-agent.service" ] || fail "the upgrade disabled a unit"
[ "$(inside getent passwd chrysalis)" = "$user" ] || fail "the upgrade changed the user"
[ -e "$root/var/lib/chrysalis/cache/state" ] || fail "the upgrade removed state"

inside dpkg --verify chrysalis-host-agent || fail "installed files are not those of the package"
[ "$(inside host-agent --version)" = "host-agent $version" ] || fail "the program says another version"
writable=$(inside dpkg-query -L chrysalis-host-agent | while read -r path; do
    inside find "$path" -maxdepth 0 ! -type l \( -perm /022 -o ! -user root -o ! -group root -o -perm /6000 \)
done)
[ -z "$writable" ] || fail "others than root can write, or it runs as another user: $writable"

# systemd's own reading, with a drop-in that was there before. Older ones than 254 do not know DelegateSubgroup=.
verified=$(inside systemd-analyze verify --man=yes /usr/lib/systemd/system/chrysalis-{agent,gpus}.service \
    /usr/lib/systemd/system/chrysalis-guest@.service 2>&1 | grep -i chrysalis | grep -v DelegateSubgroup || true)
[ -z "$verified" ] || fail "systemd says: $verified"

# Pages render without a warning and are found by name; their first lines can be read by `apropos`.
pages=$(inside dpkg-query -L chrysalis-host-agent | grep '/man1/.*\.gz$')
[ "$(echo "$pages" | wc -l)" -gt 20 ] || fail "there are few manual pages: $pages"
for page in $pages; do
    warned=$(inside man --warnings=all --local-file --encoding=UTF-8 -P cat "$page" 2>&1 >/dev/null || true)
    [ -z "$warned" ] || fail "$page: $warned"
    inside lexgrog "$page" >/dev/null 2>&1 || fail "$page has no NAME that can be read"
done

# Completions load in bash, know the commands, and say nothing while loading.
# shellcheck disable=SC2016 # it is expanded inside
loaded=$(inside bash -c 'set -e
    . /usr/share/bash-completion/completions/host-agent
    function=$(complete -p host-agent | sed "s/.* -F \([^ ]*\) .*/\1/")
    COMP_WORDS=(host-agent pref) COMP_CWORD=1
    "$function" host-agent pref host-agent
    echo "${COMPREPLY[*]}"' 2>&1) || true
[ "$loaded" = preflight ] || fail "bash completes pref to: $loaded"

# Removed where systemd seems to run: programs in systemctl's and the agent's place write down what they are asked. The daemon
# answers at once and ends two questions later; only then may it be told to stop, and GPUs given back.
mkdir -p "$root/run/systemd/system" "$root/tmp/asked" "$root/var/lib/chrysalis/agent/guests/one/g7"
cat > "$root/tmp/asked/systemctl" <<'END'
#!/bin/sh
echo "systemctl $*" >> /tmp/asked/log
case "$*" in
*is-active*) [ "$(grep -c is-active /tmp/asked/log)" -le 3 ] ;;
*disable*) exec /usr/bin/systemctl "$@" ;;
esac
END
cat > "$root/tmp/asked/host-agent" <<'END'
#!/bin/sh
echo "host-agent $*" >> /tmp/asked/log
END
chmod +x "$root/tmp/asked/systemctl" "$root/tmp/asked/host-agent"
inside env PATH=/tmp/asked:/usr/sbin:/usr/bin:/sbin:/bin dpkg --remove chrysalis-host-agent >"$root/tmp/log" 2>&1 || { cat "$root/tmp/log" >&2; fail "it cannot be removed"; }
asked=$(grep -v -E 'is-active|disable|daemon-reload' "$root/tmp/asked/log" | head -4)
expected="host-agent stop --all
systemctl stop chrysalis-agent.service chrysalis-guest@*.service
host-agent stop --run-dir /var/lib/chrysalis/agent/guests/one/g7
systemctl stop chrysalis-gpus.service"
[ "$asked" = "$expected" ] || fail "removal did not stop guests in order: $asked"
waited=$(sed -n '/^host-agent stop --all$/,/^systemctl stop chrysalis-agent/p' "$root/tmp/asked/log" | grep -c is-active || true)
[ "$waited" -ge 3 ] || fail "removal did not wait for the daemon's end"
rm -r "$root/run/systemd" "$root/tmp/asked"
[ -e "$root/var/lib/chrysalis/cache/state" ] || fail "removal without purge removed state"
[ ! -e "$root/usr/bin/host-agent" ] || fail "the program is still there"
for link in "$wants"/chrysalis-*; do [ ! -L "$link" ] || fail "removal left $link"; done
inside dpkg --purge chrysalis-host-agent >"$root/tmp/log" 2>&1 || { cat "$root/tmp/log" >&2; fail "it cannot be purged"; }
echo "$ours" | sha256sum --check --quiet || fail "purging changed the administrator's files"
[ ! -e "$root/var/lib/chrysalis" ] || fail "purging left /var/lib/chrysalis"
rm -r "$root/etc/chrysalis" "$root/etc/systemd/system/chrysalis-agent.service.d"
left=$(comm -13 <(echo "$before") <(changed))
[ -z "$left" ] || fail "purging left: $left"
[ "$(inside dpkg-query -W -f '${db:Status-Status}' chrysalis-host-agent 2>/dev/null || echo none)" != installed ] || fail "it is still there"
echo "installed, upgraded to $version, removed and purged"
