"""Does the posterior collapse, and does δ prevent it? The digits, α = 0 against δ = 4 nats, both ELBOs, several seeds.

The configuration is the preset `digits`; it was chosen with `--split validation` and is frozen. `--set` tries another.
Each run trains and is judged by the same code as `pyro-delta train` and `pyro-delta check`.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
from collections.abc import Sequence
from typing import Any

import torch
from record import add_common_arguments, save, write

import pyro_delta
from pyro_delta.config import parse_settings

ARMS: dict[str, list[tuple[str, Any]]] = {
    "α = 0, Trace": [("prior.alpha", 0.0), ("training.elbo", "trace")],
    "δ = 4, Trace": [("prior.rate_nats", 4.0), ("training.elbo", "trace")],
    "α = 0, mean field": [("prior.alpha", 0.0), ("training.elbo", "mean_field")],
    "δ = 4, mean field": [("prior.rate_nats", 4.0), ("training.elbo", "mean_field")],
    "no latents": [("prior.alpha", 0.0), ("training.elbo", "mean_field"), ("likelihood.use_latents", False)],
}
COLUMNS = {
    "rate_nats_mean": "KL",
    "rate_nats_min": "least KL",
    "mutual_information_nats": "MI",
    "neg_elbo_bpd": "−ELBO bits/dim",
    "distortion_bpd": "distortion bits/dim",
    "shuffled_gap_nats": "shuffled gap",
    "probe_accuracy": "probe",
}


def run(job: tuple[str, int, list[tuple[str, Any]], str]) -> dict[str, Any]:
    """Trains one arm with one seed and checks it."""
    arm, seed, settings, split = job
    torch.set_num_threads(1)
    fixed = {"training.seed": seed, "training.validations": 0}
    trained = pyro_delta.train(dict(ARMS[arm]) | fixed | dict(settings), data="digits")
    numbers = pyro_delta.check(trained, split=split).numbers
    print(f"{arm}, seed {seed}: " + ", ".join(f"{COLUMNS[key]} {numbers[key]:.4g}" for key in COLUMNS), flush=True)
    return {"arm": arm, "seed": seed, "train_s": trained.metrics[-1]["train_s"], **numbers}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds and its standard error."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, math.sqrt(variance / len(values))


def summary(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per arm: mean ± standard error over seeds; the least KL over all images and seeds."""
    rows = []
    for arm in dict.fromkeys(result["arm"] for result in results):
        runs = [result for result in results if result["arm"] == arm]
        row: dict[str, Any] = {"arm": arm, "seeds": len(runs)}
        for key, name in COLUMNS.items():
            mean, error = mean_and_error([result[key] for result in runs])
            digits = 4 if key.endswith("bpd") else 3
            row[name] = f"{mean:.{digits}f} ± {error:.{digits}f}"
        row["least KL"] = f"{min(result['rate_nats_min'] for result in runs):.4f}"
        row["floor holds"] = f"{sum(bool(result['floor_holds']) for result in runs)}/{len(runs)}"
        row["latents used"] = f"{sum(bool(result['latents_used']) for result in runs)}/{len(runs)}"
        rows.append(row)
    return rows


def main() -> None:
    """All arms and seeds, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--set", dest="pairs", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--workers", type=int, default=2)
    add_common_arguments(parser, "digits_collapse")
    arguments = parser.parse_args()
    settings = parse_settings(arguments.pairs)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    jobs = [(arm, seed, settings, arguments.split) for seed in seeds for arm in arguments.arms]
    torch.set_num_threads(1)  # as in the workers
    results = []
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for result in pool.imap(run, jobs):
            results.append(result)
            save(arguments.out, arguments.seed, summary(results), runs=results)
    write(arguments.out, arguments.seed, summary(results), runs=results)


if __name__ == "__main__":
    main()
