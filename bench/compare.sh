#!/bin/bash
# compare.sh: Tidemark against nbdkit's file plugin, over unix sockets, interleaved run by run.
# env: ROUNDS=3  WL="W1 W2 W3 W4"  RUNTIME=5  DIR=(a temporary directory)  TIDEMARK=bin/tidemark  SIZE=1g
# Prints a line a run, then a table of medians and ratios. Starts and stops its own servers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ROUNDS=${ROUNDS:-3} WL=${WL:-W1 W2 W3 W4} SIZE=${SIZE:-1g} TIDEMARK=${TIDEMARK:-$here/../bin/tidemark}
export RUNTIME=${RUNTIME:-5} RAMP=1
dir=$(mktemp -d "${DIR:-/tmp}/tidemark-bench-XXXXXX")
tidemark_pid='' nbdkit_pid=''
cleanup() {
  [ -z "$tidemark_pid" ] || { kill "$tidemark_pid"; wait "$tidemark_pid" || true; }
  [ -z "$nbdkit_pid" ] || { kill "$nbdkit_pid"; wait "$nbdkit_pid" || true; }
  rm -rf "$dir"
} 2>/dev/null
trap cleanup EXIT

"$TIDEMARK" serve --data "$dir/data" --nbd "unix:$dir/t.sock" 2>"$dir/log" & tidemark_pid=$!
truncate -s 4g "$dir/file"
nbdkit -f -U "$dir/k.sock" file "file=$dir/file" & nbdkit_pid=$!
export TIDEMARK_API="unix:$dir/data/api.sock"
until "$TIDEMARK" volume create v --size 4GiB >/dev/null 2>&1; do kill -0 $tidemark_pid; done
until [ -S "$dir/k.sock" ]; do kill -0 $nbdkit_pid; done
t="nbd+unix:///v?socket=$dir/t.sock" k="nbd+unix:///?socket=$dir/k.sock"
for uri in "$t" "$k"; do # the same way for both: see README.md
  fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs="${FILL_BS:-64k}" --iodepth=8 --size="$SIZE" >/dev/null
done

for ((r = 0; r < ROUNDS; r++)); do
  for w in $WL; do
    order="t k"; [ $((r % 2)) = 0 ] || order="k t"
    for s in $order; do
      case $s in
        t) NAME=tidemark PID=$tidemark_pid WL=$w SIZE=$SIZE WARM=$(ls "$dir"/data/images/*1.img | head -1) "$here/nbdbench.sh" "$t" ;;
        k) NAME=nbdkit PID=$nbdkit_pid WL=$w SIZE=$SIZE WARM=$dir/file "$here/nbdbench.sh" "$k" ;;
      esac
    done
  done
done | tee "$dir/runs" | jq -c '[.name, .wl, .iops, .p50_us, .p999_us, .srv_cpu_s_per_1000]'
uptime
jq -rs '
  def median: sort | .[(length / 2 | floor)];
  group_by(.wl)[] | .[0].wl as $wl
  | (map(select(.name == "tidemark"))) as $t | (map(select(.name == "nbdkit"))) as $k
  | "\($wl): tidemark \($t | map(.iops) | median) nbdkit \($k | map(.iops) | median) IOPS, ratio \(($t | map(.iops) | median) / ($k | map(.iops) | median) * 100 | round / 100); CPU a request \((($t | map(.srv_cpu_s_per_1000) | median) * 1e6 | round) / 1e3) and \((($k | map(.srv_cpu_s_per_1000) | median) * 1e6 | round) / 1e3) us"
' "$dir/runs"
