"""What every benchmark leaves behind: a table for people and a JSON file that says where its numbers come from."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from pyro_delta.inference.provenance import provenance

Job = TypeVar("Job")
Result = TypeVar("Result")
FOLDER = Path(__file__).parents[1] / "reference" / "benchmarks"


def add_common_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """`--seed` and `--out`."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FOLDER / f"{name}.json", help="where the numbers go")


def add_jobs_argument(parser: argparse.ArgumentParser) -> None:
    """`--jobs`."""
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time, each a process of one thread")


def in_parallel(run: Callable[[Job], Result], jobs: Sequence[Job], processes: int) -> Iterator[Result]:
    """The results of jobs as they come, each of which runs in a process of one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for the workers, which are started anew
    torch.set_num_threads(1)  # as in the workers, for the record
    with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(run, jobs)


def timings(what: str, times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """A row for each of the contestants, whose names stand under `what`: the median, the fastest, the slowest run."""
    return [
        {what: name, "median_s": median(s), "fastest_s": min(s), "slowest_s": max(s), "runs": len(s)}
        for name, s in times.items()
    ]


def write(out: Path, seed: int, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Prints the rows as a table and saves them."""
    print_table(rows)
    save(out, seed, rows, **more)
    print(f"written to {out.name}")


def save(out: Path, seed: int, rows: Sequence[dict[str, Any]], **more: Any) -> None:
    """Writes the rows, and whatever more, with machine, versions, commit, seed and command.

    Rows of runs that `pyro_delta.check` judged carry the digest of their configuration.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "seed": seed,
        "machine": machine(),
        **provenance(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "pyro-ppl", "jax", "numpyro")},
        },
        "rows": list(rows),
        **more,
    }
    out.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """The processor, its cores, how many of them torch uses, and the GPU if there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
    }


def peak_gib() -> float:
    """Resident memory of this process at its highest so far; on Linux.

    `resource.getrusage` would count what the process that started this one had, too.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Aligned columns under the keys of the first row."""
    columns = list(rows[0])
    cells = [columns, *([text(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def text(value: Any) -> str:
    """Four significant figures for numbers."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
