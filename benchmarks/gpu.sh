#!/usr/bin/env bash
# What a CUDA machine shows, in some minutes and a line for each thing: the tests that need a device, then
# benchmarks/gpu.py (whether a step waits, images a second, sampling, the twin's step), then a training of MINUTES on
# CIFAR-10, which must lie in data/cifar10, with its bounds. Records go to OUT. TOY=1 is a dry run on any
# machine, without the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
export XLA_PYTHON_CLIENT_PREALLOCATE=false # JAX would take most of the card from torch
PYTHON=${PYTHON:-python} OUT=${OUT:-reference/gpu} TOY=${TOY:-} MINUTES=${MINUTES:-5}
PRESET=${PRESET:-cifar10-ablation-l6}
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
mkdir -p "$OUT"

[ -n "$TOY" ] || $PYTHON -m pytest -m cuda -q -p no:cacheprovider tests/test_cuda.py | tail -n 1
$PYTHON benchmarks/gpu.py ${TOY:+--toy} --out "$OUT/speed.json"
if [ -n "$TOY" ]; then
    train=(--dataset digits --steps 2)
elif [ -d data/cifar10 ]; then
    train=(--dataset cifar10 --preset "$PRESET" --minutes "$MINUTES" --set training.compile=true)
else
    echo "training: left out, because CIFAR-10 does not lie in data/cifar10"
    exit
fi
$PYTHON -m pyro_delta train "${train[@]}" --out "$run/run" > /dev/null
$PYTHON -m pyro_delta evaluate "$run/run" --json > "$OUT/training.json"
cp "$run/run/metrics.jsonl" "$OUT/training.metrics.jsonl"
$PYTHON - "$OUT/training.json" << 'END'
import json, sys
found = json.load(open(sys.argv[1]))
print(" · ".join(f"{name} {value}" for name, value in found.items() if "bpd" in name or name == "trained_steps"))
END
