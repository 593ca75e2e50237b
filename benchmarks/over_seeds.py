"""Makes one recorded comparison, with errors over the seeds, of records of the same sweep that are of one seed each."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.sweep_record import put
from pyro_delta.report.comparison import BELOW, MEANS, Comparison, mean_and_error

COUNTED = ("seeds", "floor_holds", "latents_used", "unfinished", "diverged", "paired_seeds")


def over_seeds(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of an arm; of one seed alone its own."""
    if len(rows) == 1:
        return rows[0] | {"on_front": False}
    found = {**rows[-1], "errors": "seeds"}
    for key in (*MEANS, *BELOW):
        values = [row[key] for row in rows if row[key] is not None]
        found[key], found[f"{key}_se"] = mean_and_error(values) if values else (None, None)
    found |= {f"{key}_se_data": None for key in BELOW}  # the data are not at hand
    found |= {key: sum(row.get(key, 0) for row in rows) for key in COUNTED}
    least = [row["rate_nats_min"] for row in rows if row["rate_nats_min"] is not None]
    return found | {"rate_nats_min": min(least, default=None), "on_front": False}


def main() -> None:
    """Write the record as JSON and Markdown, and its figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", type=Path, help="of the record, without its ending")
    parser.add_argument("records", nargs="+", type=Path, metavar="JSON", help="of one seed each")
    arguments = parser.parse_args()
    trees = [json.loads(path.read_text("utf-8")) for path in arguments.records]
    arms = list(dict.fromkeys(row["arm"] for tree in reversed(trees) for row in tree["rows"]))
    rows = [
        {"data": None} | over_seeds([row for tree in trees for row in tree["rows"] if row["arm"] == arm])
        for arm in arms
    ]
    first, *others = trees[-1]["notes"]
    seeds = ", ".join(f"{row['arm']} {row['seeds']}" for row in rows)
    notes = [
        f"{first.partition(';')[0]}; standard errors over the seeds, over the data in arms of one seed.",
        f"Seeds: {seeds}.",
        *(note for note in others if not note.startswith("Pareto")),
    ]
    of = {key: trees[0][key] for key in ("title", "unit", "baseline", "cited")}
    found = Comparison(rows=rows, notes=notes, **of)
    commits = "; ".join(tree["commit"] for tree in trees)
    command = "; ".join(tree["command"] for tree in trees)
    put(arguments.name, found, command=command, machine=trees[0]["machine"], commit=commits)


if __name__ == "__main__":
    main()
