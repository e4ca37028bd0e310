#!/bin/bash
# stalls.sh: what a preserve does to the requests around it (stall.py), beside a command that does nothing.
# env: ROUNDS=5  EVERY=0.5  COUNT=50  QD=32  TIDEMARK=bin/tidemark
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ROUNDS=${ROUNDS:-5} EVERY=${EVERY:-0.5} COUNT=${COUNT:-50} QD=${QD:-32} TIDEMARK=${TIDEMARK:-$here/../bin/tidemark}
dir=$(mktemp -d "${DIR:-/tmp}/tidemark-stalls-XXXXXX")
pid=''
cleanup() { [ -z "$pid" ] || { kill "$pid"; wait "$pid" || true; }; rm -rf "$dir"; } 2>/dev/null
trap cleanup EXIT
"$TIDEMARK" serve --data "$dir/data" --nbd "unix:$dir/t.sock" 2>"$dir/log" & pid=$!
export TIDEMARK_API="unix:$dir/data/api.sock"
until "$TIDEMARK" volume list >/dev/null 2>&1; do kill -0 $pid; done
for ((r = 0; r < ROUNDS; r++)); do
  "$TIDEMARK" volume create "v$r" --size 4GiB >/dev/null
  uri="nbd+unix:///v$r?socket=$dir/t.sock"
  fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs=64k --iodepth=8 --size=1g >/dev/null
  "$here/stall.py" "$uri" --every "$EVERY" --count "$COUNT" --qd "$QD" --label control -- true
  "$here/stall.py" "$uri" --every "$EVERY" --count "$COUNT" --qd "$QD" --label preserve -- "$TIDEMARK" preserve "v$r" --name "p{i}"
  "$TIDEMARK" volume delete "v$r" --with-snapshots >/dev/null
done | tee "$dir/runs"
uptime
jq -rs '
  def median: sort | .[(length / 2 | floor)];
  group_by(.label)[] | "\(.[0].label): near/apart p99.9 \(map(.near_to_apart["p99.9"]) | median), max \(map(.near_to_apart.max) | median); second after/before \(map(.iops.second_after / .iops.second_before) | median * 100 | round / 100); command p50 \(map(.command_ms.p50) | median) ms"
' "$dir/runs"
