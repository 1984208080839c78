#!/bin/sh
# Makes .arm/: an emulated 64-bit ARM machine for the tests (qemu-user, Debian's Python for arm64 and the wheels that
# edgerun needs). Returns at once when it is there already. Nothing is installed on this machine; no root is needed.
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
current=$({ pwd; cat .ci/arm.sh .ci/debian.sh pyproject.toml; } | cksum)
[ -x "$arm/python" ] && [ "$(cat "$arm/stamp" 2>/dev/null)" = "$current" ] && exit 0

# ---- what it needs -----------------------------------------------------------------------------------------------
[ "$(uname -s)" = Linux ] || cannot "the emulator runs on Linux only"
rm -rf "$arm/site" "$arm/system" "$arm/emulator" "$arm/apt" "$arm/stamp"
mkdir -p "$arm" || cannot "$arm cannot be made"
echo "Making an emulated ARM machine in .arm (log: $log)" >&2

state=$arm/apt
. .ci/debian.sh

# ---- the emulator, in the newest version for this Debian: older ones know fewer processors --------------------------
backports=$(echo "$debian" | awk -v suite="$suite" '$3 == suite { $3 = suite "-backports"; print }')
newest() {
    apt_for "$host" "$debian
$backports" /dev/null "$@"
}
if ! { newest update && newest install --download-only -t "$suite-backports" qemu-user; }; then
    rm -rf "${state:?}/$host"
    apt_for "$host" "$debian" /dev/null update &&
        apt_for "$host" "$debian" /dev/null install --download-only qemu-user-static ||
        cannot "the emulator cannot be downloaded (log: $log)"
fi
unpack "$host" "$arm/emulator"
qemu=$arm/qemu-aarch64
mv "$(find "$arm/emulator/usr/bin" -name qemu-aarch64 -o -name qemu-aarch64-static | sort | tail -n 1)" "$qemu"
rm -rf "$arm/emulator" # it has all other processors, too
"$qemu" --version >>"$log" 2>&1 || cannot "the emulator does not start (log: $log)"

# ---- Python and its libraries, for arm64 ---------------------------------------------------------------------------
apt_for arm64 "$debian" /dev/null update &&
    apt_for arm64 "$debian" /dev/null install --download-only python3 libstdc++6 ||
    cannot "Python for arm64 cannot be downloaded (log: $log)"
unpack arm64 "$arm/system"
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
rm -rf "$state"
echo "$current" >"$arm/stamp"
