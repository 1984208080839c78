#!/bin/sh
# Sets up .venv with edgerun (editable) and the given extras; returns at once when nothing changed since.
# Use: setup.sh EXTRAS      EXTRAS is comma-separated, e.g. "export" or "export,test,dev"
# Set PYTHON to choose the interpreter. The whole output of pip is in .venv/setup.log.
set -u
cd "$(dirname "$0")/.." || exit 1
extras=$1
venv=.venv
log=$venv/setup.log

fail() {
    echo "edgerun: $*" >&2
    exit 1
}

free_mib() {
    df -P . | awk 'NR == 2 { print int($4 / 1024) }'
}

disk_full() {
    fail "the disk is full ($1 MiB free in $(pwd)): set-up needs 0.5 GiB, with the test tools 2.5 GiB: make room and run the same command again"
}

# ---- nothing to do? ----------------------------------------------------------------------------------------------
# What an install depends on: the metadata, the kernels (compiled at install) and where the checkout lies.
state() {
    pwd
    {
        cat pyproject.toml setup.py
        find kernels -name '*.py' -type f | LC_ALL=C sort | while read -r file; do cat "$file"; done
    } | cksum
}
current=$(state)
# The test set-up holds all that the chat set-up holds.
for done_extras in "$extras" "export,test,dev"; do
    stamp=$venv/setup-$done_extras.stamp
    [ -x $venv/bin/edgerun ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$current" ] && exit 0
done

# ---- a Python ----------------------------------------------------------------------------------------------------
supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
if ! { [ -x $venv/bin/python ] && $venv/bin/python -c "$supported" && $venv/bin/python -m pip --version; } >/dev/null 2>&1
then
    python= without_venv=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
        "$candidate" -c "$supported" >/dev/null 2>&1 || continue
        if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            python=$candidate
            break
        fi
        without_venv=${without_venv:-$candidate}
    done
    if [ -z "$python" ] && [ -n "$without_venv" ]; then
        version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        fail "Python $version has no venv module: install it (Debian, Ubuntu: apt install python$version-venv)"
    fi
    [ -n "$python" ] || fail "no Python 3.10 to 3.13 found: install one, or name it with PYTHON=/path/to/python make ..."
    echo "Creating $venv with $("$python" --version 2>&1)" >&2
    rm -rf $venv
    message=$("$python" -m venv $venv 2>&1) || {
        free=$(free_mib)
        rm -rf $venv
        [ "$free" -ge 50 ] || disk_full "$free"
        fail "cannot create $(pwd)/$venv: $(echo "$message" | tail -n 1)"
    }
fi

# ---- install, with one line of progress --------------------------------------------------------------------------
echo "Installing edgerun[$extras] into $venv (log: $log)" >&2
: 2>/dev/null >$log || fail "cannot write $(pwd)/$log: is the disk full or the folder read-only?"
PIP_DISABLE_PIP_VERSION_CHECK=1 $venv/bin/python -m pip install --no-input --progress-bar off --retries 3 \
    --editable ".[$extras]" </dev/null >$log 2>&1 &
pip=$!
# A background job of a script ignores ctrl-C, so it is passed on.
trap 'kill $pip 2>/dev/null; echo >&2; fail "set-up interrupted; run the same command to go on"' INT TERM HUP

# What pip is doing, as "Collecting numpy" or "Building editable for edgerun".
activity() {
    grep -E '^ *(Collecting|Downloading|Using cached|Installing|Building|Preparing|Getting) ' $log 2>/dev/null | tail -n 1 |
        sed -E -e 's/^ +//' -e 's/ \(from .*//' -e 's/ (started|\.\.\.).*//' -e 's#https?://[^ ]*/##' -e 's/; extra.*//' |
        cut -c 1-70
}
seconds=0
while kill -0 $pip 2>/dev/null; do
    if [ -t 2 ]; then
        printf '\r\033[K%4d s  %s' $seconds "$(activity)" >&2
    elif [ $((seconds % 20)) -eq 19 ]; then
        printf '%4d s  %s\n' $seconds "$(activity)" >&2
    fi
    sleep 1
    seconds=$((seconds + 1))
done
[ -t 2 ] && printf '\r\033[K' >&2
wait $pip
status=$?
trap - INT TERM HUP

# ---- one clear error ---------------------------------------------------------------------------------------------
if [ $status -ne 0 ]; then
    if grep -q -i -E 'No space left|Errno 28|disk quota' $log; then
        disk_full "$(free_mib)"
    elif grep -q -i -E 'Retrying \(|ConnectionError|NewConnection|ConnectTimeout|ReadTimeout|timed out|name resolution|ProxyError' $log; then
        fail "the package index cannot be reached: check the network and run the same command again (log: $log)"
    fi
    reason=$(grep -i -E '^ *(error|fatal)[: ]|[a-z]Error: ' $log | grep -v -i -E 'subprocess-exited|exit code|Failed to build|metadata-generation' | tail -n 1 | sed -E 's/^ *(ERROR|error): *//')
    [ -n "$reason" ] || reason=$(grep -v '^ *$' $log | tail -n 1)
    fail "installing failed: $(echo "$reason" | cut -c 1-200) (log: $log)"
fi
echo "$current" >"$venv/setup-$extras.stamp" || fail "cannot write into $(pwd)/$venv: is the disk full?"
echo "Ready in $seconds s" >&2
