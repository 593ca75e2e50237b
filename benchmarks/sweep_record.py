"""Records a finished sweep: its comparison as JSON and Markdown, and its figure, with the command and the machine."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyro_delta
from pyro_delta.inference.run import read_info
from pyro_delta.report.comparison import Comparison
from pyro_delta.report.comparison_figure import comparison_figure
from pyro_delta.report.delta_figure import save_figure
from pyro_delta.report.formats import written


def put(name: Path, found: Comparison, **made: str) -> None:
    """Writes a comparison and how it was made."""
    name.with_suffix(".json").write_text(json.dumps(made | found.asdict(), indent=1) + "\n", "utf-8")
    name.with_suffix(".md").write_text(written(found, "markdown"), "utf-8")
    save_figure(str(name.with_suffix(".png")), comparison_figure(found))


def main() -> None:
    """Write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", type=Path, help="of the record, without its ending")
    parser.add_argument("sweep", type=Path, help="its folder")
    parser.add_argument("--command", required=True, help="that made the runs")
    parser.add_argument("--machine", required=True, help="that they were made on")
    arguments = parser.parse_args()
    runs = [path.parent for path in arguments.sweep.glob("*/seed-*/run.json")]
    commits = sorted({str(read_info(run).commit)[:12] for run in runs})
    found = pyro_delta.compare(arguments.sweep)
    put(arguments.name, found, command=arguments.command, machine=arguments.machine, commit=", ".join(commits))


if __name__ == "__main__":
    main()
