#!/bin/bash
# Puts newer NBD clients beside the machine's own: Debian 12 has qemu 7.2 and
# libnbd 1.14, and extended headers came with 8.2 and 1.18. They are those of
# Debian 13 with all that they need, libc included, in a directory of their own,
# started by their own loader; nothing of the machine changes. What is called
# from DIRECTORY/bin: qemu-io, qemu-img, nbdinfo, nbdcopy, and python3 with nbd.
set -euo pipefail

root=${1:-/opt/tidemark-clients}
packages=(qemu-utils libnbd-bin python3-libnbd)
programs=(qemu-io qemu-img nbdinfo nbdcopy python3)
release=trixie

if [[ -x $root/bin/python3 ]]; then
  exit 0
fi
echo "ci/clients.sh: installing ${packages[*]} of $release in $root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work/root/bin"
: >"$work/status" # nothing is installed there, so apt names all that is needed
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $release main" >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
APT::Sandbox::User "$(id -un)";
END
export APT_CONFIG=$work/apt.conf
apt-get update -q
apt-get install -q -y --no-install-recommends --download-only "${packages[@]}"
for package in "$work"/archives/*.deb; do
  dpkg-deb --extract "$package" "$work/root"
done

for program in "${programs[@]}"; do
  cat >"$work/root/bin/$program" <<END
#!/bin/sh
exec $root/usr/lib64/ld-linux-x86-64.so.2 --library-path $root/usr/lib/x86_64-linux-gnu $root/usr/bin/$program "\$@"
END
  chmod +x "$work/root/bin/$program"
done
rm -rf "$root"
mkdir -p "$(dirname "$root")"
mv "$work/root" "$root"
