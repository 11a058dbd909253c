# Sourced by the other scripts: messages, and programs from the system's packages. `need` is for a program that starts
# nothing; the rest of this head is for servers.
#
# Debian's packages make servers of the system's own and start them. Both are prevented, and so is their start
# with the system, unless they were there before. The script that sources this defines
#   what_to_type              what to type on which system
#   forbid_more, allow_more   what else is to be prevented during an installation, and allowed after it
# and may define
#   refuse_candidate VERSION  fails where the packages' version is too old
# shellcheck shell=bash

readonly POLICY=/usr/sbin/policy-rc.d

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
progress() { if [ -t 2 ]; then say "$*"; fi; }
fail() {
    say "$*"
    exit 1
}

port_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

is_root() { [ "$(id -u)" = 0 ]; }

as_root() { if is_root; then "$@"; else sudo -n "$@"; fi; }

write_as_root() {
    local file=$1
    shift
    printf '%s\n' "$@" | as_root tee "$file" >/dev/null
    as_root chmod 644 "$file"
}

apt() {
    local output
    output=$(as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 "$@" 2>&1 </dev/null) && return
    say "apt-get $*:"
    printf '%s\n' "$output" | tail -n 10 | sed 's/^/    /' >&2
    return 1
}

apt_candidate() { LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: \([^(]\)/\1/p'; }

# The function $1 finds the programs of the package $2, whose units are $3….
have() {
    local find=$1 package=$2 apt
    shift
    # One start installs, others wait for it; the lock ends with the descriptor.
    if apt=$(command -v apt-get) && command -v flock >/dev/null; then
        exec 9<"$apt"
        flock --wait 900 9 || fail "another start has been installing packages for 15 minutes"
    fi
    "$find" || install "$@"
    exec 9<&-
    "$find" || fail "$package was installed, but is not where it is expected"
}

# Installs a package for its program if that is missing. In a shell of its own, since an installation sets traps.
need() (
    program=$1 package=$2
    find_program() { command -v "$program" >/dev/null; }
    forbid_more() { :; }
    allow_more() { :; }
    what_to_type() { say "install $package with the system's package manager, then try again"; }
    have find_program "$package"
)

NEW_UNITS=()

install() {
    local package=$1 candidate unit
    shift
    if ! command -v apt-get >/dev/null; then
        say "$package is not installed"
        what_to_type
        exit 1
    fi
    if ! as_root true 2>/dev/null; then
        say "$package is not installed, and installing it takes root or password-less sudo"
        what_to_type
        exit 1
    fi

    candidate=$(apt_candidate "$package")
    if [ -z "$candidate" ]; then
        apt update || true # one source that fails need not matter
        candidate=$(apt_candidate "$package")
    fi
    if [ -z "$candidate" ]; then
        say "this system's packages have no $package"
        what_to_type
        exit 1
    fi
    if declare -F refuse_candidate >/dev/null; then refuse_candidate "$candidate"; fi

    say "installing $package $candidate with apt-get"
    for unit in "$@"; do
        unit_exists "$unit" || NEW_UNITS+=("$unit")
    done
    trap after_install EXIT # also when interrupted
    forbid_starts
    forbid_more
    apt install --yes --no-install-recommends "$package" ||
        { apt update && apt install --yes --no-install-recommends "$package"; } ||
        { what_to_type && exit 1; }
    trap - EXIT
    after_install
}

after_install() {
    local unit
    for unit in "${NEW_UNITS[@]}"; do
        switch_off "$unit"
    done
    NEW_UNITS=()
    allow_more
    allow_starts
}

# invoke-rc.d and its kind ask this program before they start anything. One that
# was there before is left alone; one of ours that a kill -9 left is taken over.
forbid_starts() {
    if [ -e "$POLICY" ] && ! grep -q 'consent-gate scripts/' "$POLICY"; then
        return
    fi
    write_as_root "$POLICY" '#!/bin/sh' '# Temporary: written by consent-gate scripts/packages.sh.' 'exit 101'
    as_root chmod 755 "$POLICY"
}

allow_starts() {
    if grep -qs 'consent-gate scripts/' "$POLICY"; then
        as_root rm -f "$POLICY"
    fi
}

unit_exists() {
    local folder
    for folder in /etc /lib /usr/lib; do
        [ ! -e "$folder/systemd/system/$1" ] || return 0
    done
    return 1
}

# What `systemctl disable` does, also where systemd is not there or not running:
# packages leave their links in either case.
switch_off() {
    as_root rm -f /etc/systemd/system/*.wants/"$1"
    if [ -d /run/systemd/system ]; then
        as_root systemctl daemon-reload
        as_root systemctl stop "$1" >/dev/null 2>&1 || true
    fi
    if [ -e "/etc/init.d/${1%.*}" ]; then
        as_root update-rc.d "${1%.*}" disable >/dev/null 2>&1 || true
    fi
}
