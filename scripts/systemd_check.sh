#!/usr/bin/env bash
# Runs systemd/ckptd@.service under a real systemd, booted as PID 1 of namespaces of its own on a throw-away overlay of
# this machine's /, with the real programs and a small training. One line per check; exit 1 if any fails.
#   scripts/systemd_check.sh [FOLDER OF ckptd AND ckptd-gpt2]
# Needs root and a kernel that lets it: else it says "not run" and why, and exits 0.
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$(realpath "${1:-target/release}")

not_run() { echo "systemd-check: not run: $1"; exit 0; }
[ "$(id -u)" = 0 ] || not_run "it needs root"
systemd=$(command -v /lib/systemd/systemd /usr/lib/systemd/systemd | head -1) || true
[ -n "$systemd" ] || not_run "no systemd on this machine"
for tool in unshare nsenter systemctl systemd-analyze findmnt python3; do
  command -v "$tool" >/dev/null || not_run "$tool is missing"
done
for program in ckptd ckptd-gpt2; do
  [ -x "$programs/$program" ] || not_run "$programs/$program is missing; run make build first"
done
cgroups=$(findmnt -n -t cgroup2 -o TARGET | head -1)
[ -n "$cgroups" ] || not_run "no cgroup2 file system is mounted"
unshare --fork --pid --mount --cgroup --uts --ipc --net true 2>/dev/null || not_run "no namespaces may be made here"
# libtorch with what it needs beside it, wherever this project lies.
packages=$(dirname "$(dirname "$(dirname "$(ldd "$programs/ckptd-gpt2" | awk '/libtorch_cpu/ { print $3 }')")")")
[ -d "$packages/torch/lib" ] || not_run "libtorch is not where ckptd-gpt2 looks for it; run make build"

work=$(mktemp -d /tmp/ckptd-systemd.XXXXXX)
group=$cgroups/$(basename "$work")
boot=
finish() {
  [ -z "$boot" ] || { kill -KILL "$boot" 2>/dev/null || true; wait "$boot" 2>/dev/null || true; }
  # The kernel needs a moment to see that all processes are gone.
  for _ in $(seq 50); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    read -rt 0.1 <> <(:) || true
  done
  rm -rf "$work"
}
trap finish EXIT

state=$work/state
unit=/run/systemd/system/ckptd@.service
# A job of its own: name, steps, what else.
job() {
  mkdir -p "$state/$1"
  awk 'BEGIN { for (i = 1; i < 20000; i++) printf "%d ", (i * i / 7) % 1013 }' >"$state/$1/text.txt"
  cat >"$state/$1/$1.toml" <<EOF
[job]
threads = 1
[model]
preset = "gpt2-mini"
[data]
text = ["text.txt"]
[train]
steps = $2
batch_size = 1
sequence_length = 32
eval_every = 0
[snapshot]
every_steps = 20
$3
EOF
}
job long 1000000 ''
job short 30 ''
job broken 0 ''
job limited 1000000 ''
job slow 1000000 '[worker]
command = ["/bin/sh", "/var/lib/ckptd/slow/worker.sh"]'
job rows 1000000 ''
# Hears only after four seconds that it is to stop. The worker is this process; what passes the lines on ends when nobody
# takes them any more.
cat >"$state/slow/worker.sh" <<'EOF'
exec 3<&0
pipe=$(mktemp -u /tmp/slow.XXXXXX)
mkfifo "$pipe"
while IFS= read -r line <&3; do
  case $line in *'"command":"stop"'*) sleep 4 ;; esac
  printf '%s\n' "$line" || exit
done 2>/dev/null >"$pipe" &
exec /usr/local/bin/ckptd-gpt2 <"$pipe" 3<&-
EOF

# Runs inside, in the new namespaces: lays the file systems out and becomes systemd.
cat >"$work/boot.sh" <<'EOF'
set -euo pipefail
work=$1 programs=$2 packages=$3 systemd=$4
mkdir "$work/overlay"
mount -t tmpfs -o size=512m overlay "$work/overlay"
cd "$work/overlay"
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=upper,workdir=work" overlay root
root=$work/overlay/root
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mkdir -p "$root/opt/ckptd/packages" "$root/var/lib/ckptd" "$root/usr/local/bin"
mount --bind "$packages" "$root/opt/ckptd/packages"
mount --bind "$work/state" "$root/var/lib/ckptd"
install "$programs/ckptd" "$programs/ckptd-gpt2" "$root/usr/local/bin/"
mkdir -p "$root/run/systemd/system"
cp -r "$work/units/." "$root/run/systemd/system/"
# What a user has: a checkout, and in /etc nothing of ours.
cp -r "$work/checkout" "$root/opt/ckptd/systemd"
rm -rf "${root:?}/etc/sysusers.d"
# What a machine of its own would have to do is none of this one's business.
for other in systemd-udevd systemd-udev-trigger systemd-networkd systemd-resolved systemd-timesyncd systemd-logind \
  systemd-binfmt systemd-modules-load systemd-sysctl systemd-random-seed systemd-pstore systemd-remount-fs; do
  ln -sf /dev/null "$root/run/systemd/system/$other.service"
done
rm -f "$root/etc/machine-id"
touch "$root/etc/machine-id"
cd "$root"
mkdir -p oldroot
pivot_root . oldroot
umount -l /oldroot
hostname ckptd-check
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=unshare \
  "$systemd" --system --unit=basic.target --log-level=warning --log-target=console --show-status=0
EOF

mkdir -p "$work/units"/ckptd@.service.d "$work/units"/ckptd@{limited,slow,rows}.service.d
cp 'systemd/ckptd@.service' "$work/units/"
cp -r systemd "$work/checkout"
cp systemd/drop-ins/go-on.conf "$work/units/ckptd@rows.service.d/go-on.conf"
# What makes the check short, and where its log and its libtorch are. Nothing of it loosens the unit.
cat >"$work/units/ckptd@.service.d/check.conf" <<'EOF'
[Unit]
StartLimitBurst=100
[Service]
Environment=LD_LIBRARY_PATH=/opt/ckptd/packages/torch/lib
StandardError=append:/var/lib/ckptd/%i.log
ExecStopPost=/bin/sh -c 'echo $SERVICE_RESULT $EXIT_CODE $EXIT_STATUS >>ends'
RestartSec=300ms
WatchdogSec=8s
EOF
printf '[Service]\nRuntimeMaxSec=20s\n' >"$work/units/ckptd@limited.service.d/limit.conf"
printf '[Service]\nTimeoutStopSec=2s\n' >"$work/units/ckptd@slow.service.d/stop.conf"
# Short sessions in a row, under the unit's own start limit, with the journal as their log.
printf '[Unit]\nStartLimitBurst=5\n[Service]\nRuntimeMaxSec=6s\nStandardError=journal\n' \
  >"$work/units/ckptd@rows.service.d/zz-rows.conf"

mkdir "$group"
(
  echo "$BASHPID" >"$group/cgroup.procs"
  exec unshare --fork --pid --mount --cgroup --uts --ipc --net --kill-child --propagation private \
    bash "$work/boot.sh" "$work" "$programs" "$packages" "$systemd"
) >"$work/console" 2>&1 &
boot=$!

failed=0
row() { printf '%-5s %-52s %s\n' "$1" "$2" "$3"; }
# A check: what must hold, and a command that says so; what it prints stands behind it.
check() {
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then
    row ok "$what" "$(tail -1 <<<"$said")"
  else
    failed=1
    row FAIL "$what" "$(tail -1 <<<"$said")"
    { echo "$said"; tail -n 12 "$work/console" "$state"/*.log 2>/dev/null || true; } | sed 's/^/      /' >&2
  fi
}
init() { cat "/proc/$boot/task/$boot/children" 2>/dev/null | tr -d ' '; }
inside() { nsenter -t "$(init)" -m -p -C -n -i -u -- "$@"; }
# Waits for a command to succeed, for 90 s at most.
await() {
  local until=$((SECONDS + 90))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$until" ] || { echo "waited in vain for: $*"; return 1; }
    read -rt 0.2 <> <(:) || true
  done
}
show() { inside systemctl show -P "$1" "ckptd@$2"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
# How a service ended last, and how often it has.
ended() { [ "$(tail -1 "$state/$1/ends")" = "$2" ] || { tail -1 "$state/$1/ends"; return 1; }; }
ends() { grep -c . "$state/$1/ends"; }
says() { grep -q -- "$2" "$state/$1.log"; }
count() { grep -c -- "$2" "$state/$1.log" || true; }
worker_of() { inside ckptd status --json "/var/lib/ckptd/$1/$1.toml" | python3 -c 'import json, sys; print(json.load(sys.stdin)["worker"]["pid"])'; }
# The newest snapshot of a store on this side: "step state".
newest() { "$programs/ckptd" list --json "$state/$1/$1.toml" | python3 -c 'import json, sys; s = json.load(sys.stdin)[0]; print(s["step"], s["state"])'; }

verifies() {
  local said
  said=$(inside systemd-analyze verify /run/systemd/system/ckptd@.service 2>&1)
  [ -z "$said" ] && echo "systemd-analyze verify is silent" || { echo "$said"; return 1; }
}
is_hardened() {
  local level
  level=$(systemd-analyze security --offline=true --no-pager 'systemd/ckptd@.service' | awk '/Overall exposure/ { print $(NF - 2) }')
  echo "systemd-analyze security: $level"
  awk -v level="$level" 'BEGIN { exit !(level > 0 && level <= 2.0) }'
}
starts() {
  # It returns when READY=1 has come.
  inside systemctl start ckptd@long && is ActiveState long active && echo "READY=1 came; $(show StatusText long)"
}
tells() {
  await eval 'show StatusText long | grep -q "^step [0-9]*/1000000, loss [0-9.]*.*; step [0-9]* saved and verified$"' &&
    show StatusText long
}
reloads() {
  local pid
  pid=$(show MainPID long)
  inside systemctl reload ckptd@long && await says long 'SIGHUP: reading the job file again' &&
    await says long 'the job file is unchanged' && await is ActiveState long active && is MainPID long "$pid" &&
    echo "RELOADING=1 and READY=1 came; the same process"
}
# After $2 the service is restarted and goes on from a snapshot.
comes_back() {
  local job=$1 restarts resumed
  shift
  restarts=$(show NRestarts "$job") resumed=$(count "$job" 'resuming from step')
  "$@" || return 1
  await eval "[ \$(show NRestarts $job) -gt $restarts ] && [ \$(count $job 'resuming from step') -gt $resumed ]" || return 1
  await eval "show StatusText $job | grep -q '^step .*saved and verified'" || return 1
  grep -o 'resuming from step.*' "$state/$job.log" | tail -1
}
crash() { inside systemctl kill --signal=KILL --kill-whom=main ckptd@long; }
hang_daemon() { inside kill -STOP "$(show MainPID long)"; }
hang_worker() { inside kill -STOP "$(worker_of long)"; }
stops() {
  inside systemctl stop ckptd@long && ended long 'success exited 75' && is ActiveState long inactive &&
    says long 'session over (SIGTERM): .* is saved and verified' && [[ $(newest long) == *verified ]] &&
    echo "exit 75, no failure; newest: step $(newest long)"
}
takes_its_time() {
  inside systemctl start ckptd@slow && await says slow 'verified step' && inside systemctl stop ckptd@slow || return 1
  ended slow 'success exited 75' && says slow 'session over (SIGTERM): .* is saved and verified' &&
    echo "TimeoutStopSec 2 s, the last snapshot after 4 s: exit 75, not killed"
}
refuses() {
  ! inside systemctl start ckptd@broken 2>/dev/null && await is ActiveState broken failed && is ExecMainStatus broken 78 &&
    is NRestarts broken 0 && echo "exit 78, not restarted: $(grep -o '\[train\].*' "$state/broken.log" | tail -1)"
}
ends_before_its_limit() {
  await is ActiveState limited inactive || return 1
  ended limited 'success exited 75' && [ "$(ends limited)" = 1 ] && says limited 'session over (systemd' &&
    grep -o 'session over (systemd.*' "$state/limited.log" | tail -1
}
finishes() {
  inside systemctl start ckptd@short && await is ActiveState short inactive && ended short 'success exited 0' &&
    says short 'finished: all 30 steps are done' || return 1
  inside systemctl start ckptd@short && await is ActiveState short inactive && ended short 'success exited 0' &&
    [ "$(ends short)" = 2 ] && says short 'the training is finished: step 30 of 30' &&
    echo "exit 0, not restarted; started again: exit 0 at once"
}
# The lines of systemd/README.md that install something, as they stand there.
installs() {
  local lines
  lines=$(grep -E '^install -D ' systemd/README.md)
  [ "$(grep -c . <<<"$lines")" = 3 ] || { echo "not three install lines: $lines"; return 1; }
  inside sh -euc "cd /opt/ckptd
    $lines
    id -u ckptd
    systemctl cat ckptd@x | grep '^# /etc/systemd/system/ckptd@.service'
    rm -r /etc/systemd/system/ckptd@.service /etc/systemd/system/ckptd@.service.d
    systemctl daemon-reload" && echo "user ckptd and the unit are there, on a machine that had no folder for them"
}
# More sessions than StartLimitBurst allows starts, each of them good.
counts_failures_only() {
  inside systemctl start ckptd@rows || return 1
  await eval '[ -e "$state/rows/ends" ] && [ "$(ends rows)" -ge 7 ] || is ActiveState rows failed' || return 1
  if is ActiveState rows failed; then show Result rows; return 1; fi
  ! grep -qv '^success exited 75$' "$state/rows/ends" || { tail -3 "$state/rows/ends"; return 1; }
  echo "StartLimitBurst=5, and $(ends rows) sessions ended with 75 so far"
}
tells_the_journal() {
  local worker said all
  await eval '[ -n "$(worker_of rows | grep "^[0-9]")" ]' || return 1
  worker=$(worker_of rows)
  inside kill -KILL "$worker"
  await eval 'inside journalctl -q -o cat -p warning -u ckptd@rows | grep -q "warning: the worker failed"' || return 1
  said=$(inside journalctl -q -o cat -p warning -u ckptd@rows)
  all=$(inside journalctl -q -o cat -u ckptd@rows)
  grep -q 'training .* parameters' <<<"$all" || { echo "no log in the journal"; return 1; }
  ! grep -q 'training .* parameters' <<<"$said" || { echo "all lines are warnings"; return 1; }
  inside systemctl stop ckptd@rows
  echo "journalctl -p warning: $(grep -m1 -o 'warning: the worker failed.*' <<<"$said" | cut -c1-60)"
}
powers_off() {
  local over
  over=$(count long 'session over (SIGTERM)')
  inside systemctl start ckptd@long && await eval "show StatusText long | grep -q '^step '" || return 1
  inside systemctl poweroff || true
  await eval "! kill -0 $boot" || return 1
  boot=
  [ "$(count long 'session over (SIGTERM)')" -gt "$over" ] && [[ $(newest long) == *verified ]] &&
    "$programs/ckptd" verify "$state/long/long.toml" latest >/dev/null && echo "newest, read on the other side: step $(newest long)"
}

if ! await eval 'inside systemctl is-system-running | grep -qE "running|degraded|starting" && inside systemctl is-active -q basic.target'; then
  tail -20 "$work/console"
  not_run "systemd does not boot here"
fi
check "the install lines" installs
inside systemctl start dbus.service 2>/dev/null || true
inside systemctl start systemd-journald.service 2>/dev/null || true
row ok "boots" "$(inside systemctl --version | head -1)"
check "the unit is valid" verifies
check "the unit is hardened" is_hardened
# It takes its time, and is looked at below.
inside systemctl start --no-block ckptd@limited
check "start: READY=1" starts
check "STATUS=: step, loss, last verified snapshot" tells
check "reload" reloads
check "the daemon crashes: restarted, resumed" comes_back long crash
check "the worker hangs: watchdog, restarted, resumed" comes_back long hang_worker
check "the daemon hangs: watchdog, restarted, resumed" comes_back long hang_daemon
check "stop: final snapshot" stops
check "a slow stop is given its time" takes_its_time
check "a wrong job file: failed, not restarted" refuses
check "RuntimeMaxSec: ended before it" ends_before_its_limit
check "a finished training stays finished" finishes
check "good sessions do not count towards the start limit" counts_failures_only
check "warnings have their priority in the journal" tells_the_journal
check "poweroff: final snapshot" powers_off
exit $failed
