#!/bin/bash
# Run in the guest: kill.sh ROUNDS JOURNAL_MODE. The server is killed with -9 while
# SQLite commits on ext4 on its volume and snapshots are made. After each: fsck is
# clean, the database is whole and has every acknowledged transaction; so is every
# snapshot, with every transaction that was acknowledged before its preserve.
set -u
. /share/lib.sh
mke2fs -q -t ext4 -E nodiscard /dev/vda && mount /dev/vda /data || fail "the server's disk"
serve
tidemark volume create v --size 24MiB >/dev/null || fail "volume create"
attach v /dev/nbd0
new_database "$2"
acknowledged() { echo "$1" >/run/acknowledged; }

preserves() { # one after the other, until one fails
  local i before
  for ((i = 1; ; i++)); do
    before=$(cat /run/acknowledged)
    tidemark preserve v --name "r$1-$i" >/dev/null 2>&1 || return 0
    echo "r$1-$i $before" >>/run/preserved
    sleep 0.7
  done
}

snapshots=0 last=0
echo 0 >/run/acknowledged
for ((round = 1; round <= $1; round++)); do
  : >/run/preserved
  insert $((last + 1)) &
  writer=$!
  preserves $round &
  preserver=$!
  target=$((last + 1 + RANDOM % 20))
  until (($(cat /run/acknowledged) + 0 >= target)); do # empty while it is written
    kill -0 $writer 2>/dev/null || fail "round $round: no more transactions: $(cat /run/sqlite.log)"
    sleep "0.0$((RANDOM % 10))"
  done
  kill_server
  wait $writer $preserver
  umount /mnt || fail "umount after the kill"
  detach /dev/nbd0
  check
  serve
  attach v /dev/nbd0
  last=$(whole /dev/nbd0) || { echo "$last"; exit 1; }
  acked=$(cat /run/acknowledged)
  ((last >= acked)) || fail "round $round: $acked was acknowledged, and there is $last"
  while read -r name before; do
    attach "v@$name" /dev/nbd1
    dd if=/dev/nbd1 of=/tmp/snapshot bs=1M status=none || fail "read v@$name"
    detach /dev/nbd1
    n=$(whole /tmp/snapshot) || { echo "$n"; exit 1; }
    ((n >= before)) || fail "v@$name: $before was acknowledged before it, and there is $n"
    snapshots=$((snapshots + 1))
  done </run/preserved
  rm -f /tmp/snapshot
  mount /dev/nbd0 /mnt || fail "mount in round $round"
  echo "round $round: $last transactions, $snapshots snapshots"
done
echo "killed the server $1 times: $last transactions and $snapshots snapshots are whole"
