# What the guest's jobs share: tidemark with its data directory on /data, its
# volume as /dev/nbd0, ext4 on that at /mnt, and SQLite there. Sourced.

PATH=$PATH:/share
modprobe -a ext4 nbd loop
mkdir -p /data
export TIDEMARK_API=unix:/run/api.sock
server=""

fail() {
  echo "FAILED: $*"
  tail -n 20 /run/server.log
  dmesg | tail -n 5
  exit 1
}

serve() {
  tidemark serve --data /data/tidemark --nbd 127.0.0.1:10809 --api $TIDEMARK_API >>/run/server.log 2>&1 &
  server=$!
  local i
  for ((i = 0; i < 600; i++)); do
    tidemark volume list >/dev/null 2>&1 && return
    kill -0 $server 2>/dev/null || fail "the server did not start"
    sleep 0.1
  done
  fail "the server does not answer"
}

kill_server() {
  kill -9 "$server"
  wait "$server" 2>/dev/null
}

check() {
  tidemark check --data /data/tidemark || fail "tidemark check"
}

# attach EXPORT DEVICE: by ioctl, so that the death of the server fails what is in
# flight at once; a device made by netlink waits for another connection.
attach() {
  nbd-client -nonetlink 127.0.0.1 10809 "$2" -N "$1" >/run/attach 2>&1 || fail "attach $1: $(cat /run/attach)"
}

# detach DEVICE: it may be on its way out by itself.
detach() {
  nbd-client -nonetlink -d "$1" >/dev/null 2>&1
  local i
  for ((i = 0; i < 600; i++)); do
    [[ -e /sys/block/${1#/dev/}/pid ]] || return 0
    sleep 0.1
  done
  fail "detach $1"
}

# whole DEVICE: a file system that a crash left is clean once its journal is
# replayed, and so is the database in it. It says how far the numbers go, that were
# inserted one after the other.
whole() {
  e2fsck -p "$1" >/run/fsck 2>&1
  (($? <= 1)) || fail "e2fsck -p $1: $(cat /run/fsck)"
  e2fsck -fn "$1" >/run/fsck 2>&1 || fail "e2fsck -fn $1: $(cat /run/fsck)"
  mkdir -p /run/whole
  mount "$1" /run/whole || fail "mount $1"
  local is count last
  is=$(sqlite3 /run/whole/db 'pragma integrity_check')
  [[ $is == ok ]] || fail "$1: pragma integrity_check: $is"
  IFS='|' read -r count last <<<"$(sqlite3 /run/whole/db 'select count(*), coalesce(max(n), 0) from t')"
  umount /run/whole
  ((count == last)) || fail "$1: $count numbers up to $last"
  echo "$last"
}

new_database() {
  mke2fs -q -t ext4 -J size=4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0 || fail mke2fs
  mount /dev/nbd0 /mnt || fail "mount /dev/nbd0"
  sqlite3 /mnt/db "pragma journal_mode=$1; create table t(n integer primary key, filler)" >/dev/null || fail sqlite3
  sync -f /mnt
}

# insert inserts numbers from $1 on, each a transaction, until one fails. Each one
# that SQLite has acknowledged it gives to acknowledged.
insert() {
  local n got
  coproc sqlite3 -batch -bail /mnt/db 2>/run/sqlite.log
  # extra: full does not sync the removal of a rollback journal, and so may lose the
  # last transaction.
  echo 'pragma synchronous=extra;' >&"${COPROC[1]}"
  for ((n = $1; ; n++)); do
    echo "insert into t values($n, randomblob(abs(random()) % 6000)); select n from t where n = $n;" >&"${COPROC[1]}" || return 0
    read -r got <&"${COPROC[0]}" || return 0
    [[ $got == "$n" ]] || return 0
    acknowledged "$n"
  done 2>/dev/null
}
