#!/bin/bash
# Runs the tests of everything that lies on a disk on XFS and on btrfs, each made in
# a file and mounted over a loop device: as root, in a kernel that has them. Both can
# share storage between files, which folds then use.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'umount "$work/mounted" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/mounted"
for kind in xfs btrfs; do
  rm -f "$work/disk"
  truncate -s 8G "$work/disk"
  "mkfs.$kind" -q "$work/disk"
  mount -o loop "$work/disk" "$work/mounted"
  echo "on $kind:"
  TMPDIR="$work/mounted" go test -count=1 ./internal/vfs -vfs.clones
  TMPDIR="$work/mounted" go test -count=1 -timeout 60m ./image/... ./journal ./catalog ./store
  umount "$work/mounted"
done
