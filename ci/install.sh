#!/bin/bash
# Installs the Debian packages that the tests need and the machine lacks: those of
# make test, with "guest" those of make guest, and so with "bench" and "filesystems".
set -euo pipefail

packages=(
  gcc libc6-dev                           # the race detector
  fio jq qemu-utils                       # stock clients: fio, qemu-io, qemu-img
  nbdkit libnbd-bin python3-libnbd fuse3  # nbdkit, nbdinfo, nbdcopy, nbdfuse, nbdsh
  e2fsprogs                               # a file system on a volume
  systemd curl                            # the unit file; the API as scripts use it
)
if [[ ${1:-} == guest ]]; then
  packages=(qemu-system-x86 cpio xz-utils python3-minimal) # what runs in the guest is not installed
elif [[ ${1:-} == filesystems ]]; then
  packages=(gcc libc6-dev xfsprogs btrfs-progs)
elif [[ ${1:-} == bench ]]; then
  packages=(fio nbdkit nbd-server qemu-utils qemu-system-common) # the last has qemu-storage-daemon
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ((EUID != 0)); then
  echo "ci/install.sh: these packages are missing, and only root can install them: ${missing[*]}" >&2
  exit 1
fi
echo "ci/install.sh: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
