# For arm.sh and mca.sh: packages from the Debian archive that this machine's apt is set up with, for any architecture,
# downloaded and unpacked into a folder. Nothing is installed and no root is needed: apt gets a state of its own.
# Before it is read: $log names a file, and cannot() ends the script with a line.

for tool in apt-get dpkg; do
    command -v $tool >/dev/null || cannot "it is made of Debian's packages and there is no $tool; use Debian, or a real ARM machine"
done

# Lines of sources.list. All architectures are in one archive at Debian, unlike at Ubuntu.
debian=$(apt-get indextargets --no-release-info --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 2>/dev/null |
    awk '$2 ~ /\/debian(-security)?\/?$/ && $4 == "main"' | sort -u)
suite=$(echo "$debian" | awk '$3 ~ /^[a-z]+$/ { print $3; exit }')
[ -n "$suite" ] || cannot "apt knows no archive of Debian's, which has packages for arm64; use Debian, or a real ARM machine"
host=$(dpkg --print-architecture)

# apt_for ARCHITECTURE SOURCES STATE ARGUMENTS...: apt-get with its state in the folder $state/ARCHITECTURE.
apt_for() {
    place=$state/$1
    mkdir -p "$place/lists/partial" "$place/archives/partial" &&
        echo "$2" >"$place/sources.list" || cannot "$place cannot be written"
    installed=$3 architecture=$1
    shift 3
    apt-get -q -y -o APT::Sandbox::User= -o Dir::State::lists="$place/lists" -o Dir::State::status="$installed" \
        -o Dir::Cache="$place" -o Dir::Cache::archives="$place/archives" -o Dir::Etc::sourcelist="$place/sources.list" \
        -o Dir::Etc::sourceparts=- -o Debug::NoLocking=1 -o APT::Architecture="$architecture" \
        -o APT::Architectures="$architecture" -o APT::Install-Recommends=false "$@" </dev/null >>"$log" 2>&1
}

# unpack ARCHITECTURE FOLDER: what was downloaded.
unpack() {
    mkdir -p "$2"
    for package in "$state/$1"/archives/*.deb; do
        dpkg -x "$package" "$2" >>"$log" 2>&1 || cannot "$package cannot be unpacked (log: $log)"
    done
    rm -rf "${state:?}/$1"
}
