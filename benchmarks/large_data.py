"""Data larger than memory: how much of it is resident while it is converted, trained on and read, and how fast it is.

As many random images as ImageNet has, 32×32 in colour, in files like those of its downsampled release, in a folder that
is deleted afterwards. Each row is a process of its own: the conversion; a short training of a tiny model; random
batches of 64 from the file, in the system's cache, whose checksums are compared in the first pass alone; and
batches of `IN_MEMORY` images in memory. Images a second are those of processor time, of the conversion by the clock.
Resident memory is the peak of the process; what the imports take before any data are read is a row, too. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import add_common_arguments, peak_gib, write

import pyro_delta
from pyro_delta.data import Batches, Split, load
from pyro_delta.data.images.imagenet import BATCHES

TINY = {
    "training.steps": 30, "training.batch": 32, "training.validations": 1, "training.validation_images": 100,
    "likelihood.channels": [8], "likelihood.row_blocks": [1], "likelihood.pixel_blocks": 1, "guide.channels": [8],
    "guide.row_blocks": [1], "guide.pixel_blocks": 1, "guide.features": 8, "prior.dims": 1,
}  # fmt: skip
VALIDATION = 5000
STEPS = 3000
IN_MEMORY = 160_000


def make(home: Path, images: int, seed: int) -> None:
    """The files of a release with so many training images."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(BATCHES):
        count = 5000 if name == BATCHES[-1] else images // 10
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = rng.integers(1, 1001, count).tolist()
        with (home / name).open("wb") as file:
            pickle.dump({"data": data, "labels": labels, "mean": data[:100].mean(0)}, file, protocol=2)
        print(f"{name}: {number + 1} of {len(BATCHES)}", file=sys.stderr)


def nothing(root: str, seed: int) -> dict[str, Any]:
    """Imports alone."""
    return {}


def conversion(root: str, seed: int) -> dict[str, Any]:
    """The first load."""
    began = time.perf_counter()
    data = load("imagenet32", root=root, validation=VALIDATION, seed=seed)
    return {"images_per_s": (len(data.train) + VALIDATION) / (time.perf_counter() - began)}


def opening(root: str, seed: int) -> dict[str, Any]:
    """Every later load."""
    began = time.perf_counter()
    load("imagenet32", root=root, validation=VALIDATION, seed=seed)
    return {"seconds": time.perf_counter() - began}


def training(root: str, seed: int) -> dict[str, Any]:
    """30 steps, a validation and its files."""
    data = load("imagenet32", root=root, validation=VALIDATION, seed=seed)
    with tempfile.TemporaryDirectory() as out:
        pyro_delta.train({**TINY, "training.seed": seed}, data=data, preset="photos", out=Path(out) / "run")
    return {}


def reading(root: str, seed: int, batch: int = 64) -> dict[str, Any]:
    """Batches of training images, twice."""
    split: Any = load("imagenet32", root=root, validation=VALIDATION, seed=seed).train
    first, later = passes(split, batch, seed)
    return {"first_pass_images_per_s": first, "images_per_s": later}


def memory(root: str, seed: int, batch: int = 64) -> dict[str, Any]:
    """The same of some of them in memory."""
    split: Any = load("imagenet32", root=root, validation=VALIDATION, seed=seed).train
    return {"images_per_s": passes(Split(split.x[:IN_MEMORY]), batch, seed)[1]}


def passes(split: Split, batch: int, seed: int) -> list[float]:
    """Images a second of processor time, of so many random batches, and of the same again."""
    batches, rates = Batches(split, batch, seed, "cpu"), []
    steps = min(batches.batches_per_epoch, STEPS)
    for _ in range(2):
        began = time.process_time()
        for step in range(steps):
            batches.batch(step)
        rates.append(batch * steps / (time.process_time() - began))
    return rates


WORK = {work.__name__: work for work in (nothing, conversion, opening, training, reading, memory)}


def main() -> None:
    """Makes the files, and runs each of `WORK` in a process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, "large_data")
    parser.add_argument("--images", type=int, default=1_280_000)
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        found = WORK[arguments.work](arguments.root, arguments.seed)
        print(json.dumps({"work": arguments.work, "peak_gib": peak_gib(), **found}))
        return
    rows = []
    with tempfile.TemporaryDirectory() as root:
        make(Path(root), arguments.images, arguments.seed)
        for work in WORK:
            again = [sys.executable, __file__, "--seed", str(arguments.seed), "--work", work, "--root", root]
            said = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = json.loads(said.splitlines()[-1])
            columns = ("work", "peak_gib", "seconds", "first_pass_images_per_s", "images_per_s")
            rows.append({column: row.get(column) for column in columns})
    write(arguments.out, arguments.seed, rows, images=arguments.images)


if __name__ == "__main__":
    main()
