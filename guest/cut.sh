#!/bin/bash
# Run in the guest: cut.sh ROUNDS JOURNAL_MODE SEED. dm-log-writes records all that
# the server's own disk is told while SQLite commits on ext4 on its volume, and
# snapshots are made. Then the disk as a power cut at random moments would leave
# it: tidemark check finds nothing, every transaction that was acknowledged by then
# is there, and so is every snapshot.
set -u
. /share/lib.sh
modprobe dm-log-writes
dmsetup create logged --table "0 $(blockdev --getsz /dev/vda) log-writes /dev/vda /dev/vdb" || fail dmsetup
mke2fs -q -t ext4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/logged && mount /dev/mapper/logged /data || fail "the server's disk"
serve
tidemark volume create v --size 24MiB >/dev/null || fail "volume create"
attach v /dev/nbd0
new_database "$2"
mark() { dmsetup message logged 0 mark "$1" || fail "mark $1"; }
acknowledged() {
  echo "$1" >/run/acknowledged
  mark "acknowledged=$1"
}

echo 0 >/run/acknowledged
mark acknowledged=0
insert 1 &
writer=$!
for ((i = 1; i <= 6; i++)); do
  before=$(cat /run/acknowledged)
  tidemark preserve v --name "s$i" >/dev/null || fail "preserve s$i"
  mark "preserved=s$i=$before"
  sleep 1
done
kill_server
wait $writer
umount /mnt
detach /dev/nbd0
umount /data && dmsetup remove logged || fail "end of the log"
entries=$(replay /dev/vdb) || fail replay
echo "$entries entries, $(cat /run/acknowledged) transactions"

RANDOM=$3
snapshots=0
for ((round = 1; round <= $1; )); do
  at=$((entries * 3 / 20 + (RANDOM * 32768 + RANDOM) % (entries * 17 / 20)))
  blkdiscard -f -z /dev/vdc || fail "zero the copy"
  replay /dev/vdb /dev/vdc $at $round >/run/marks || fail "replay up to $at"
  acked=$(awk -F= '$1 == "acknowledged" { n = $2 } END { print n + 0 }' /run/marks)
  [[ -s /run/marks ]] || continue # the database was not made yet
  mount /dev/vdc /data || fail "cut at $at: the server's disk"
  check
  serve
  attach v /dev/nbd0
  n=$(whole /dev/nbd0) || { echo "cut at $at: $n"; exit 1; }
  ((n >= acked)) || fail "cut at $at: $acked was acknowledged, and there is $n"
  while IFS== read -r _ name before; do
    attach "v@$name" /dev/nbd1
    dd if=/dev/nbd1 of=/tmp/snapshot bs=1M status=none || fail "read v@$name"
    detach /dev/nbd1
    n=$(whole /tmp/snapshot) || { echo "cut at $at: $n"; exit 1; }
    ((n >= before)) || fail "cut at $at: v@$name: $before was acknowledged before it, and there is $n"
    snapshots=$((snapshots + 1))
  done < <(grep '^preserved' /run/marks)
  detach /dev/nbd0
  kill_server
  umount /data || fail "umount"
  echo "cut $round at $at: $acked acknowledged, $snapshots snapshots so far"
  round=$((round + 1))
done
echo "cut the power $1 times: all acknowledged transactions and $snapshots snapshots are whole"
