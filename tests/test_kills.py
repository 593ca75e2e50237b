"""Trainings that are killed at any moment and go on end as one that nobody disturbed: a few of benchmarks/kills.py."""

import json
import subprocess
import sys
from pathlib import Path


def test_killed_trainings_end_as_undisturbed_ones(tmp_path: Path) -> None:
    script, out = Path(__file__).parents[1] / "benchmarks" / "kills.py", tmp_path / "kills.json"
    command = [sys.executable, str(script), "--kills", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["losses"] == 0
    assert found["kills"] >= 2
    assert sum(row["kills"] for row in found["rows"]) == found["kills"]
