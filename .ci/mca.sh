#!/bin/sh
# Gets llvm-mca, which counts the cycles of a piece of code on a processor, in the newest version that Debian has here:
# into .arm/llvm, with what it needs beside. Nothing is installed. Prints the command.
# Ends with status 2 and one line where it cannot be had. The whole output is in .arm/llvm.log.
set -u
cd "$(dirname "$0")/.." || exit 1
llvm=$(pwd)/.arm/llvm
log=$llvm.log
least=19 # older ones have another processor's model for most of ours

cannot() {
    echo "edgerun: no llvm-mca here: $*" >&2
    exit 2
}

if ! [ -x "$llvm/llvm-mca" ]; then
    rm -rf "$llvm" "$llvm.apt"
    mkdir -p "$llvm" || cannot "$llvm cannot be made"
    state=$llvm.apt
    . .ci/debian.sh
    apt_for "$host" "$debian" /var/lib/dpkg/status update || cannot "apt cannot read the archive (log: $log)"
    version=$(apt-cache -o Dir::State::lists="$state/$host/lists" -o Dir::Cache="$state/$host" \
        -o Dir::Etc::sourcelist="$state/$host/sources.list" -o Dir::Etc::sourceparts=- \
        search --names-only '^llvm-[0-9]+$' | sed 's/^llvm-\([0-9]*\) .*/\1/' | sort -n | tail -n 1)
    [ "${version:-0}" -ge $least ] || cannot "Debian $suite has LLVM ${version:-in no version}; $least or later is needed"
    apt_for "$host" "$debian" /var/lib/dpkg/status install --download-only --reinstall "llvm-$version" "libllvm$version" ||
        cannot "LLVM $version cannot be downloaded (log: $log)"
    unpack "$host" "$llvm"
    rm -rf "$state"
    libraries=$(dirname "$(find "$llvm/usr/lib" -name 'libLLVM*.so*' -path '*linux-gnu*' | head -n 1)")
    cat >"$llvm/llvm-mca" <<END
#!/bin/sh
LD_LIBRARY_PATH="$libraries:$llvm/usr/lib/llvm-$version/lib" exec "$llvm/usr/lib/llvm-$version/bin/llvm-mca" "\$@"
END
    chmod +x "$llvm/llvm-mca"
    "$llvm/llvm-mca" --version >>"$log" 2>&1 || {
        rm -f "$llvm/llvm-mca"
        cannot "it does not start (log: $log)"
    }
fi
echo "$llvm/llvm-mca"
