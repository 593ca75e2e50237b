"""What is done on a CUDA machine is done on any: a dry run of benchmarks/gpu.sh, of four processes."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_the_dry_run_leaves_all_records(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
    environment = {**os.environ, "TOY": "1", "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "training.json", "training.metrics.jsonl"]
    rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["sampling", "twin", "twin", "training"]
    assert all(row.get("images_per_s", 1) > 0 for row in rows)
    assert json.loads((tmp_path / "training.json").read_text())["trained_steps"] == 2
    assert "trained_steps 2" in done.stdout
