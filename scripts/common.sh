# Sourced by the other scripts: where things are, and how to fail with one sentence.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Used by the scripts that source this file.
# shellcheck disable=SC2034
venv=$root/.venv

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# as_root COMMAND...: runs it as root, or fails when that is not possible without a question.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@" 2>/dev/null; fi
}

# install_debian PACKAGE: installs a Debian package where that can be done without a question.
install_debian() {
    command -v apt-get >/dev/null && as_root true 2>/dev/null || return 1
    printf 'Installing %s\n' "$1"
    { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$1"; } >/dev/null 2>&1
}

# need_debian PROGRAM PACKAGE: installs a Debian package when a program is missing.
need_debian() {
    command -v "$1" >/dev/null && return
    install_debian "$2" || fail "$1 is missing: install it (on Debian: apt-get install $2) and start again."
}

need_engine() {
    command -v docker >/dev/null || fail "The docker command is missing: install Docker (https://docs.docker.com/engine/install/) and start again."
    local answer
    answer=$(docker version --format '{{.Server.Version}}' 2>&1) && return
    case $answer in
        *"permission denied"*) fail "This user may not use the Docker engine: add the user to the group docker and log in again." ;;
        *) fail "No Docker engine answers: start it (systemctl start docker) or set DOCKER_HOST. Docker says: ${answer##*$'\n'}" ;;
    esac
}

need_build_tools() {
    local python=${PYTHON:-python3} version
    command -v "$python" >/dev/null || fail "$python is missing: install Python 3.10 or newer and start again."
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "Python 3.10 or newer is needed; set PYTHON=/path/to/python3."
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_debian python3-venv \
        || fail "Python's venv is missing: install it (on Debian: apt-get install python3-venv) and start again."
    command -v cargo >/dev/null || fail "cargo is missing: install Rust (https://rustup.rs) and start again."
    version=$(rustc --version 2>/dev/null | cut -d' ' -f2)
    [ "$(printf '1.88\n%s\n' "$version" | sort -V | head -1)" = 1.88 ] \
        || fail "Rust 1.88 or newer is needed and this is ${version:-no Rust}: run rustup update (https://rustup.rs) and start again."
    need_debian cc gcc
}
