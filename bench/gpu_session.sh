#!/usr/bin/env bash
# Everything that needs a GPU, unattended: parts of at most nine minutes in order of priority, each saved as it ends.
#
#   bench/gpu_session.sh OUTPUT_FOLDER [--one] [--tiny]
#
# A part that is done is skipped by the next call; one that ran out of time goes on from its checkpoints.
# OUTPUT_FOLDER/PART.txt is what a part printed, PART.log what it printed before it failed or was stopped, and summary.txt
# says MEASURED or NOT MEASURED of each.  --one: only the first part that is neither done nor failed.
# --tiny: the same path in under three minutes, on a CPU if there is no GPU, in OUTPUT_FOLDER/tiny; its numbers mean nothing.
# Datasets are looked for in $DATA_DIR (default: data), and downloaded there if they are missing.
set -u
cd "$(dirname "$0")/.." || exit 2
export OMP_NUM_THREADS=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
LIMIT=540 KILL_AFTER=15 DATA_DIR="${DATA_DIR:-data}" OUT="" ONE="" TINY=""
for argument in "$@"; do
  case "$argument" in
    --one) ONE=yes ;;
    --tiny) TINY=--tiny ;;
    -*) echo "gpu_session.sh: wanted --one or --tiny, found $argument" >&2; exit 2 ;;
    *) OUT="$argument" ;;
  esac
done
[ -n "$OUT" ] || { echo "gpu_session.sh: wanted an output folder: bench/gpu_session.sh OUTPUT_FOLDER" >&2; exit 2; }
OUT="$OUT${TINY:+/tiny}" WORD="MEASURED"; [ -z "$TINY" ] || WORD="PASSED (tiny: nothing is measured)"
mkdir -p "$OUT" && OUT="$(cd "$OUT" && pwd)" || exit 2
PYTHON="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
HAS_GPU=$("$PYTHON" -c 'import torch; print("yes" if torch.cuda.is_available() else "")')
DEVICE=cuda; [ -n "$HAS_GPU" ] || DEVICE=cpu
PARTS_RUN=0 PARTS_LEFT=0
: > "$OUT/summary.txt"

tell() { echo "$1" | tee -a "$OUT/summary.txt"; }

# part NAME COMMAND...: run it once, in at most LIMIT seconds.
part() {
  local name="$1" code; shift
  [ -e "$OUT/$name.txt" ] && { tell "$name: $WORD, see $name.txt"; return; }
  [ -n "$HAS_GPU$TINY" ] || { PARTS_LEFT=$((PARTS_LEFT + 1)); tell "$name: NOT MEASURED (no GPU that torch can use)"; return; }
  if [ -n "$ONE" ] && { [ "$PARTS_RUN" -gt 0 ] || [ -e "$OUT/$name.failed" ]; }; then
    PARTS_LEFT=$((PARTS_LEFT + 1)); tell "$name: NOT MEASURED ($([ -e "$OUT/$name.failed" ] && echo "failed, see $name.log" || echo "its turn is later"))"; return
  fi
  PARTS_RUN=$((PARTS_RUN + 1)); rm -f "$OUT/$name.failed"
  echo "$name: $*"
  timeout --signal=TERM --kill-after="$KILL_AFTER" "$((LIMIT - KILL_AFTER))" "$@" > "$OUT/$name.log" 2>&1; code=$?
  case "$code" in
    0) mv "$OUT/$name.log" "$OUT/$name.txt"; tell "$name: $WORD, see $name.txt" ;;
    75|124|137) PARTS_LEFT=$((PARTS_LEFT + 1)); tell "$name: NOT MEASURED (out of time; the next call goes on)" ;;
    *) PARTS_LEFT=$((PARTS_LEFT + 1)); touch "$OUT/$name.failed"; tell "$name: NOT MEASURED (exit $code, see $name.log)" ;;
  esac
}

# runs SCALE EXHIBIT NUM: the first NUM runs of an exhibit (0: all), going on from their checkpoints. Replaces its shell, so that
# the signal at the limit reaches it and it is waited for.
runs() {
  exec "$PYTHON" - "$DEVICE" "$OUT" "$DATA_DIR" "$@" <<'PY'
import sys
from pathlib import Path
from nap_bench import plan
from nap_bench.cli import main
device, out, data_dir, scale, exhibit, num = sys.argv[1:]
run_ids = [line["run_id"] for line in plan.load(Path("config/plan.jsonl")) if exhibit in line["uses"].get(scale, {})]
where = ["--device", device, "--data-dir", data_dir, "--store", f"{out}/store", "--results", f"{out}/results", "--scale", scale]
sys.exit(main(["run", "--pack", *where, *run_ids[: int(num) or None]]))
PY
}
export -f runs; export PYTHON DEVICE OUT DATA_DIR

# In order of priority; a new part is one line.
part gpu_tests "$PYTHON" -m pytest -m gpu ${TINY:+--collect-only}
part stacked_seeds "$PYTHON" bench/seeds.py --device "$DEVICE" $TINY
part projection "$PYTHON" bench/projection.py --device "$DEVICE" $TINY
part cnn "$PYTHON" bench/cnn.py --device "$DEVICE" $TINY
part methods "$PYTHON" bench/methods.py --device "$DEVICE" $TINY
part images "$PYTHON" bench/images.py --device "$DEVICE" $TINY
part lm "$PYTHON" bench/lm.py --device "$DEVICE" $TINY
part rainbow "$PYTHON" bench/rainbow.py --device "$DEVICE" $TINY
if [ -n "$TINY" ]; then
  part exhibits_tiny bash -c 'runs laptop fig1_dead_units 1'
else
  part mnist_data "$PYTHON" -c 'import sys; from nap_bench.cli import main; sys.exit(main(sys.argv[1:]))' data mnist --data-dir "$DATA_DIR"
  part mnist_fig1 bash -c 'runs workstation fig1_dead_units 0'
  part mnist_arms bash -c 'runs workstation arms 0'
  part cifar10_data "$PYTHON" -c 'import sys; from nap_bench.cli import main; sys.exit(main(sys.argv[1:]))' data cifar10 --data-dir "$DATA_DIR"
  part cifar10_fig2 bash -c 'runs workstation fig2_norm_growth 0'
  part cifar10_fig5 bash -c 'runs workstation fig5_continual 0'
  part cifar10_table1 bash -c 'runs workstation table1_images 3'
fi
[ "$PARTS_LEFT" = 0 ]
