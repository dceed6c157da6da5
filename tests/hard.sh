#!/bin/sh
# `make test`'s suite where tests that lean on the machine's speed or on each other's order fall over: beside four busy loops
# REPEATS times, in random order each time; in the files' own order in one process; and on one core.
# PYTEST= adds options or names files, as in: PYTHON=python PYTEST='tests/test_cli.py' tests/hard.sh
set -u
PYTHON=${PYTHON:-python3} REPEATS=${REPEATS:-5} PYTEST=${PYTEST:-} failed=
export OMP_NUM_THREADS=1

try() { # a name, then a command
    name=$1
    shift
    started=$(date +%s)
    # shellcheck disable=SC2086  # PYTEST holds words
    if "$@" -p no:benchmark -q -m 'not slow' $PYTEST; then said=passed; else said=FAILED failed="$failed $name"; fi
    echo "== $name: $said after $(($(date +%s) - started)) s, $(cut -d ' ' -f 1 /proc/loadavg 2>/dev/null) of load"
}

loops=
for _ in 1 2 3 4; do
    (while :; do :; done) &
    loops="$loops $!"
done
# shellcheck disable=SC2064,SC2086  # these very processes
trap "kill $loops 2>/dev/null" EXIT INT TERM

for run in $(seq "$REPEATS"); do
    try "beside-four-loops-$run" "$PYTHON" -m pytest --numprocesses auto --dist worksteal
done
try in-order-in-one-process "$PYTHON" -m pytest -n 0 -p no:randomly
if command -v taskset >/dev/null; then
    try on-one-core taskset -c 0 "$PYTHON" -m pytest -n 0
fi
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
