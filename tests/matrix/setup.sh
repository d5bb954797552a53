#!/bin/bash
# What `make setup` runs: installs what is missing and leaves a working .venv in the checkout.
#
# Nothing is asked of apt or pip when nothing is missing: a second run takes well under a second.
# pip is left to its own configuration for where packages come from.
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "$*" >&2; }
fail() { say "setup: $*"; exit 1; }

packages=(
    fuse3 libfuse3-dev pkg-config gcc libc6-dev     # the mount, and building pyfuse3
    attr acl strace groff-base                                 # looking at it from outside
    zfs-fuse exfat-fuse exfatprogs ntfs-3g          # volumes that fold case
    e2fsprogs                                       # one that is damaged
    make binutils dpkg-dev patch bzip2 xz-utils linux-libc-dev  # building the guest root
    tcl                                             # building sqlite for the guest programs
    perl libacl1-dev libattr1-dev libcap-dev        # building and running coreutils' own tests
    clang                                           # compiling in other spellings than stored
)

# A python3 from 3.11 on that has venv and headers: the first one of these names.
usable_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        command -v "$name" >/dev/null && "$name" - 2>/dev/null <<'PY' && { echo "$name"; return; }
import os, sys, sysconfig
import ensurepip, venv
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not (sys.version_info >= (3, 11) and os.path.exists(header)))
PY
    done
    return 1
}

missing_packages() {
    local status name
    status=" $(dpkg-query -W -f '${Package}=${db:Status-Status} ' "${packages[@]}" 2>/dev/null || :)"
    for name in "${packages[@]}"; do
        [[ $status == *" $name=installed "* ]] || printf '%s ' "$name"
    done
}

install_packages() {
    local missing
    missing=$(missing_packages)
    usable_python >/dev/null || missing+="python3 python3-venv python3-dev"
    [[ -z $missing ]] && return
    [[ $(id -u) == 0 ]] || fail "as root, run: apt-get install $missing"
    say "setup: installing $missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update </dev/null || say "setup: apt-get update failed, going on with old lists"
    # shellcheck disable=SC2086 # one word a package
    apt-get -qq install --no-install-recommends $missing </dev/null >&2 ||
        fail "apt-get could not install: $missing"
}

# Without dpkg the names differ, so only what the programs themselves need is looked for.
require_tools() {
    pkg-config --exists fuse3 2>/dev/null && command -v fusermount3 gcc >/dev/null &&
        usable_python >/dev/null && return
    fail "this machine has no apt: install fuse3 with its headers, pkg-config, a C compiler and" \
        "python 3.11 or newer with its headers by other means, then try again."
}

make_venv() {
    local python
    python=$(usable_python) || fail "no python3 from 3.11 on with venv and headers was found"
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        say "setup: making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    say "setup: installing pinned dependencies"
    .venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt \
        pyfuse3 trio attrs pyelftools pytest pytest-xdist hypothesis pyte ruff mypy >&2 ||
        fail "pip could not install the dependencies"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e . >&2 ||
        fail "pip could not install the project into .venv"
}

# Where Python may not write bytecode itself, each start would compile all that it imports: as long
# again as everything else that a start does.
compile_sources() {
    .venv/bin/python -m compileall -q sidecar sysroot_fs
}

# The environment is remade when what it is made from has changed, or when the checkout has moved.
wanted=$( { pwd; cat pyproject.toml constraints.txt tests/matrix/setup.sh; } | sha256sum)
stamp=.venv/setup-stamp

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
    [[ -f $stamp && -z $(missing_packages) ]] || install_packages
else
    require_tools
fi
if [[ -f $stamp && $(<$stamp) == "$wanted" && -x .venv/bin/sysroot-fs ]]; then
    compile_sources
    exit 0
fi
rm -f "$stamp"
make_venv
compile_sources
printf '%s\n' "$wanted" >$stamp
say "setup: .venv is ready"
