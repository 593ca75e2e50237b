"""Records the validations of finished runs of one configuration, which `train` then sets beside its own."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import pyro_delta
from pyro_delta.inference.run import INFO
from pyro_delta.report.track import curve_of

FOLDER = Path(pyro_delta.__file__).parent / "curves"


def main() -> None:
    """Write the curve of some runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the configuration, and of the file")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished runs that differ in their seeds")
    parser.add_argument("--command", required=True, help="that made them, but for --seed and --out")
    parser.add_argument("--machine", required=True, help="that they were made on")
    arguments = parser.parse_args()
    curve = curve_of(arguments.name, [pyro_delta.load(run) for run in arguments.runs], arguments.command)
    commits = [json.loads((run / INFO).read_text("utf-8"))["commit"] for run in arguments.runs]
    record = {"curve": asdict(curve), "machine": arguments.machine, "commits": commits}
    (FOLDER / f"{arguments.name}.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
