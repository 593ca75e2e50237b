"""Does the posterior collapse, and does δ prevent it? The digits: α = 0 against δ = 4 nats, both ELBOs, several seeds.

The configuration is the preset `digits`; it was chosen with `--split validation` and is frozen. `--set` tries another.
Each run trains and is judged by the same code as `pyro-delta train` and `pyro-delta check --control`: at the step that
was best on the validation split, and against the run without latents of the same seed.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import add_common_arguments, add_jobs_argument, in_parallel, save, write

import pyro_delta
from pyro_delta.config import parse_settings

CONTROL = "no latents"
ARMS: dict[str, list[tuple[str, Any]]] = {
    "α = 0, Trace": [("prior.alpha", 0.0), ("training.elbo", "trace")],
    "δ = 4, Trace": [("prior.rate_nats", 4.0), ("training.elbo", "trace")],
    "α = 0, mean field": [("prior.alpha", 0.0), ("training.elbo", "mean_field")],
    "δ = 4, mean field": [("prior.rate_nats", 4.0), ("training.elbo", "mean_field")],
    "δ = 4, contour": [
        ("prior.program", "standard_normal"),
        ("guide.program", "contour"),
        ("guide.rate_nats", 4.0),
        ("training.elbo", "mean_field"),
    ],
    CONTROL: [("prior.alpha", 0.0), ("training.elbo", "mean_field"), ("likelihood.use_latents", False)],
}
COLUMNS = {
    "step": "step",
    "rate_nats_mean": "KL",
    "rate_nats_min": "least KL",
    "told_calibrated_nats": "told, calibrated",
    "told_nats": "told",
    "told_tau": "τ",
    "mutual_information_nats": "MI",
    "neg_elbo_bpd": "−ELBO bits/dim",
    "distortion_bpd": "distortion bits/dim",
    "bought_nats": "bought",
    "net_bought_nats": "bought less rate",
    "shuffled_gap_nats": "cost of another's z",
    "probe_accuracy": "probe",
}


def folder_of(runs: Path, arm: str, seed: int) -> Path:
    """Where a run is kept until all are judged."""
    return runs / f"{list(ARMS).index(arm)}-{seed}"


def train(job: tuple[Path, str, int, list[tuple[str, Any]]]) -> str:
    """Trains one arm with one seed."""
    runs, arm, seed, settings = job
    chosen = dict(ARMS[arm]) | {"training.seed": seed} | dict(settings)
    trained = pyro_delta.train(chosen, data="digits", out=folder_of(runs, arm, seed))
    return f"{arm}, seed {seed}: trained in {trained.metrics[-1]['train_s']:.0f} s"


def judge(job: tuple[Path, str, int, str, bool]) -> dict[str, Any]:
    """Checks one run, against the control of its seed if there is one."""
    runs, arm, seed, split, controlled = job
    run = pyro_delta.load(folder_of(runs, arm, seed))
    control = folder_of(runs, CONTROL, seed) if controlled and arm != CONTROL else None
    numbers = pyro_delta.check(run, split=split, control=control).numbers
    return {"arm": arm, **numbers, "seed": seed, "train_s": run.metrics[-1]["train_s"]}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds and its standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, math.sqrt(variance / len(values))


def summary(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm: mean ± standard error over seeds; the least KL over all images and seeds."""
    rows = []
    for arm in ARMS:
        if not (runs := [result for result in results if result["arm"] == arm]):
            continue
        row: dict[str, Any] = {"arm": arm, "seeds": len(runs)}
        for key, name in COLUMNS.items():
            values = [result[key] for result in runs if result.get(key) is not None]
            mean, error = mean_and_error(values) if values else (math.nan, math.nan)
            digits = 4 if key.endswith("bpd") else 3
            row[name] = f"{mean:.{digits}f} ± {error:.{digits}f}" if values else ""
        row["least KL"] = f"{min(result['rate_nats_min'] for result in runs):.4f}"
        row["floor holds"] = f"{sum(bool(result['floor_holds']) for result in runs)}/{len(runs)}"
        row["latents used"] = f"{sum(bool(result['latents_used']) for result in runs)}/{len(runs)}"
        rows.append(row)
    return rows


def main() -> None:
    """Trains all arms with all seeds, then judges them, several at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE")
    add_jobs_argument(parser)
    add_common_arguments(parser, "digits_collapse")
    arguments = parser.parse_args()
    settings = parse_settings(arguments.pairs)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    pairs = [(arm, seed) for arm in arguments.arms for seed in seeds]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        trained = in_parallel(train, [(runs, *pair, settings) for pair in pairs], arguments.jobs)
        for line in trained:
            print(line, flush=True)
        jobs = [(runs, *pair, arguments.split, CONTROL in arguments.arms) for pair in pairs]
        for found in in_parallel(judge, jobs, arguments.jobs):
            shown = (f"{name} {found[key]:.4g}" for key, name in COLUMNS.items() if found.get(key) is not None)
            print(f"{found['arm']}, seed {found['seed']}: " + ", ".join(shown), flush=True)
            results.append(found)
            save(arguments.out, arguments.seed, summary(results), runs=in_order(results))
    write(arguments.out, arguments.seed, summary(results), runs=in_order(results))


def in_order(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By seed and arm, however they came."""
    return sorted(results, key=lambda result: (result["seed"], list(ARMS).index(result["arm"])))


if __name__ == "__main__":
    main()
