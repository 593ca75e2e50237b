"""How long `pyro-delta --help` takes, beside a Python that does nothing: medians of interleaved runs."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

from record import add_common_arguments, timings, write


def seconds(command: list[str]) -> float:
    """Wall-clock time of a command that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def installed_command() -> str:
    """The `pyro-delta` that belongs to this Python."""
    beside = Path(sys.executable).with_name("pyro-delta")
    found = str(beside) if beside.exists() else shutil.which("pyro-delta")
    if found is None:
        raise SystemExit("pyro-delta is not installed; run `pip install .` first.")
    return found


def main() -> None:
    """Alternate the two, and report medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    add_common_arguments(parser, "startup")
    arguments = parser.parse_args()
    commands = {"pyro-delta --help": [installed_command(), "--help"], "python -c pass": [sys.executable, "-c", "pass"]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():
        seconds(command)  # the first run fills the file cache
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            times[name].append(seconds(command))
    write(arguments.out, arguments.seed, timings("command", times))


if __name__ == "__main__":
    main()
