"""What becomes of single bits that flip in the files of a run: each is detected, passed over with a word, or harmless.

    python benchmarks/damage.py --flips 600 --seed 0

Trains a small run of the embedded digits with a check and an auxiliary prior, flips one random bit of one file at a
time (files in turn), and reads all that is read of a run: weights, auxiliary prior, settings, spec, metrics, check.
A loss is a flip after which other numbers came back without a word. Prints a table, writes
reference/benchmarks/damage.json, and exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from record import add_common_arguments, write
from tiny import TINY

import pyro_delta
from pyro_delta.api.kept import keep, kept
from pyro_delta.cli import main as command_line
from pyro_delta.errors import UserError

SETTINGS = TINY | {
    "training.steps": 10,
    "training.log_every": 5,
    "training.validations": 2,
}


def everything(run: Path) -> tuple[Any, bool]:
    """All numbers that come out of a run, and whether something was said."""
    loaded, check = pyro_delta.load(run, prior="auxiliary"), kept(run)
    assert check is not None
    weights = {name: value.numpy().tobytes() for name, value in loaded.vae.state_dict().items()}
    terms = check.rate_b.tobytes(), check.distortion_b.tobytes()
    found = weights, loaded.facts, loaded.metrics, check.numbers, terms, loaded.spec, loaded.config
    return found, bool(loaded.notes)


def flip(path: Path, bit: int) -> None:
    """Flips a bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def main() -> int:
    """Flips, counts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, "damage")
    parser.add_argument("--flips", type=int, default=600, metavar="N")
    given = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        trained = pyro_delta.train(SETTINGS, data="digits", out=run, device="cpu")
        keep(trained, pyro_delta.check(trained, told_samples=2, told_images=4))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
            command_line(["train-prior", str(run), "--steps", "1", "--hidden", "2"])
        before, _ = everything(run)
        generator = random.Random(given.seed)
        files = sorted(path for path in run.iterdir() if path.is_file() and path.name != ".lock")
        for number in range(given.flips):
            path = files[number % len(files)]
            bit = generator.randrange(8 * path.stat().st_size)
            flip(path, bit)
            try:
                found, said = everything(run)
                outcome = "harmless" if found == before else "passed over" if said else "LOST"
            except UserError:
                outcome = "detected"
            counts.setdefault(path.name, Counter())[outcome] += 1
            flip(path, bit)
        assert everything(run)[0] == before
    kinds = ("detected", "passed over", "harmless", "LOST")
    counts["all"] = sum(counts.values(), Counter())
    rows = [{"file": name} | {kind: outcomes[kind] for kind in kinds} for name, outcomes in counts.items()]
    write(given.out, given.seed, rows, flips=given.flips, losses=counts["all"]["LOST"])
    return int(counts["all"]["LOST"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
