#!/bin/sh
# Makes .arm/: an emulated 64-bit ARM machine for the tests (qemu-user, Debian's Python for arm64 and the wheels that
# edgerun needs). Returns at once when it is there already. Nothing is installed on this machine, and no root is needed:
# apt works in a state of its own, packages are only unpacked.
# Use: arm.sh            then QEMU_CPU=cortex-a76 .arm/python PROGRAM
# Ends with status 2 and one line where it cannot be had. The whole output is in .arm/setup.log.
set -u
cd "$(dirname "$0")/.." || exit 1
arm=$(pwd)/.arm
venv=.venv/bin/python
log=$arm/setup.log

cannot() {
    echo "edgerun: no emulated ARM here: $*" >&2
    exit 2
}

$venv -c '' 2>/dev/null || cannot "no .venv; run 'sh .ci/setup.sh export,test,dev' first"
current=$({ pwd; cat .ci/arm.sh pyproject.toml; } | cksum)
[ -x "$arm/python" ] && [ "$(cat "$arm/stamp" 2>/dev/null)" = "$current" ] && exit 0

# ---- what it needs -----------------------------------------------------------------------------------------------
[ "$(uname -s)" = Linux ] || cannot "the emulator runs on Linux only"
for tool in apt-get dpkg; do
    command -v $tool >/dev/null || cannot "it is made of Debian's packages and there is no $tool; use Debian, or a real ARM machine"
done
# Debian has all architectures in one archive; the mirror that apt is set up with has arm64, too.
mirror=$(apt-get indextargets --no-release-info --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
    awk '$1 ~ /debian\/?$/ && $2 ~ /^[a-z]+$/ && $3 == "main" { print $1, $2; exit }')
[ -n "$mirror" ] || cannot "apt knows no archive of Debian's, which has packages for arm64; use Debian, or a real ARM machine"
uri=${mirror% *} suite=${mirror#* }

rm -rf "$arm"
mkdir -p "$arm" || cannot "$arm cannot be made"
echo "Making an emulated ARM machine in .arm (log: $log)" >&2

# apt_for ARCHITECTURE ARGUMENTS...: apt-get with nothing installed and a state of its own.
apt_for() {
    state=$arm/apt/$1
    mkdir -p "$state/lists/partial" "$state/archives/partial"
    : >"$state/status"
    : >"$state/sources.list"
    for release in $suites; do
        echo "deb $uri $release main" >>"$state/sources.list"
    done
    architecture=$1
    shift
    apt-get -q -y -o APT::Sandbox::User= -o Dir::State::lists="$state/lists" -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state" -o Dir::Cache::archives="$state/archives" -o Dir::Etc::sourcelist="$state/sources.list" \
        -o Dir::Etc::sourceparts=- -o Debug::NoLocking=1 -o APT::Architecture="$architecture" \
        -o APT::Architectures="$architecture" -o APT::Install-Recommends=false "$@" </dev/null >>"$log" 2>&1
}

# unpack ARCHITECTURE FOLDER: what was downloaded.
unpack() {
    for package in "$arm/apt/$1"/archives/*.deb; do
        dpkg -x "$package" "$arm/$2" >>"$log" 2>&1 || cannot "$package cannot be unpacked (log: $log)"
    done
}

# ---- the emulator, in the newest version for this Debian: older ones know fewer processors --------------------------
host=$(dpkg --print-architecture)
suites="$suite $suite-backports"
if ! { apt_for "$host" update && apt_for "$host" install --download-only -t "$suite-backports" qemu-user; }; then
    suites=$suite
    apt_for "$host" update && apt_for "$host" install --download-only qemu-user-static ||
        cannot "the emulator cannot be downloaded (log: $log)"
fi
unpack "$host" emulator
qemu=$arm/qemu-aarch64
mv "$(find "$arm/emulator/usr/bin" -name qemu-aarch64 -o -name qemu-aarch64-static | sort | tail -n 1)" "$qemu"
rm -rf "$arm/emulator" # it has all other processors, too
"$qemu" --version >>"$log" 2>&1 || cannot "the emulator does not start (log: $log)"

# ---- Python and its libraries, for arm64 ---------------------------------------------------------------------------
suites=$suite
apt_for arm64 update && apt_for arm64 install --download-only python3 libstdc++6 ||
    cannot "Python for arm64 cannot be downloaded (log: $log)"
unpack arm64 system
python=$(readlink "$arm/system/usr/bin/python3")

# ---- wheels, for arm64 ---------------------------------------------------------------------------------------------
platforms=--platform=manylinux2014_aarch64
for minor in 17 24 26 27 28 31 34 35; do
    platforms="$platforms --platform=manylinux_2_${minor}_aarch64"
done
wanted=$($venv -c "
from importlib.metadata import requires
print(*(r for r in requires('edgerun') if 'extra' not in r), 'pytest', 'hypothesis')")
$venv -m pip install --quiet --disable-pip-version-check --no-input --target "$arm/site" --only-binary=:all: \
    --implementation cp --python-version "${python#python}" $platforms $wanted </dev/null >>"$log" 2>&1 ||
    cannot "its Python packages cannot be downloaded (log: $log)"

# ---- the machine ---------------------------------------------------------------------------------------------------
# A child process is started through the same script, as the system cannot start a program for another processor.
cat >"$arm/site/sitecustomize.py" <<END
import sys
sys.executable = "$arm/python"
END
cat >"$arm/python" <<END
#!/bin/sh
export PYTHONPATH="$arm/site\${PYTHONPATH:+:\$PYTHONPATH}" QEMU_CPU="\${QEMU_CPU:-max}"
exec "$qemu" -L "$arm/system" -E PYTHONHOME="$arm/system/usr" -E PYTHONDONTWRITEBYTECODE=1 \\
    "$arm/system/usr/bin/$python" "\$@"
END
chmod +x "$arm/python"
"$arm/python" -c 'import llvmlite.binding, numpy, tokenizers' >>"$log" 2>&1 || cannot "its Python does not start (log: $log)"
rm -rf "$arm/apt"
echo "$current" >"$arm/stamp"
