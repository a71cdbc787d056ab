# Sourced by the other scripts: where things are, and how to fail with one sentence.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
# Used by the scripts that source this file.
# shellcheck disable=SC2034
zenml_version=0.98.0

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# as_root COMMAND...: runs it as root, or fails when that is not possible without a question.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# need_debian PROGRAM PACKAGE: installs a Debian package when a program is missing and that can be done.
need_debian() {
    command -v "$1" >/dev/null && return
    if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
        printf 'Installing %s\n' "$2"
        { as_root apt-get update -qq && as_root apt-get install -y -qq "$2"; } >/dev/null 2>&1 && return
    fi
    fail "$1 is missing: install it (on Debian: apt-get install $2) and start again."
}

need_engine() {
    command -v docker >/dev/null || fail "The docker command is missing: install Docker (https://docs.docker.com/engine/install/) and start again."
    local answer
    answer=$(docker version --format '{{.Server.Version}}' 2>&1) && return
    case $answer in
        *"permission denied"*) fail "This user may not use the Docker engine: add the user to the group docker and log in again." ;;
        *) fail "No Docker engine answers: start it (systemctl start docker) or set DOCKER_HOST." ;;
    esac
}
