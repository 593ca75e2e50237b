"""Run folders that were changed, with or without the checksums that go with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_delta.inference import manifest as manifests
from pyro_delta.inference.checkpoint import FORMER, pack, unpack
from pyro_delta.inference.manifest import METRICS, sha256


def newest(run: Path) -> Path:
    """The file of the newest checkpoint of a run."""
    return max(run.glob("checkpoint-*.safetensors"))


def state_of(run: Path) -> dict[str, Any]:
    """The newest state of a run."""
    return unpack(newest(run).read_bytes(), newest(run))


def forge(run: Path) -> None:
    """Makes the manifest of a run fit whatever its files are now: checksums are no shield against malice."""
    manifest = manifests.read(run)
    assert manifest is not None
    files = {name: [sha256((run / name).read_bytes())] for name in manifest.files if (run / name).exists()}
    metrics = (run / METRICS).read_bytes()
    checkpoints = [
        saved.model_copy(
            update={
                "sha256": sha256((run / manifests.checkpoint_name(saved.step)).read_bytes()),
                "metrics_bytes": len(metrics[: saved.metrics_bytes]),
                "metrics_sha256": sha256(metrics[: saved.metrics_bytes]),
            }
        )
        for saved in manifest.checkpoints
        if (run / manifests.checkpoint_name(saved.step)).exists()
    ]
    manifests.write(run, manifests.Manifest(files=files, checkpoints=checkpoints))


def former(run: Path) -> None:
    """Makes a run one of the former format: checkpoints by torch.save, no manifest, no fingerprints."""
    state = state_of(run)
    torch.save({**state, "format": FORMER}, run / "checkpoint.pt")
    info = json.loads((run / "run.json").read_text())
    programs = {kind: {key: record[key] for key in ("name", "digest")} for kind, record in info["programs"].items()}
    kept = {key: value for key, value in info.items() if key not in ("data", "threads")}
    (run / "run.json").write_text(json.dumps({**kept, "format": 2, "data_digest": "0123", "programs": programs}))
    for path in (*run.glob("checkpoint-*"), run / "manifest.json"):
        path.unlink()


def edit_json(run: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Edits a file of JSON, and its checksum with it."""
    path = run / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    forge(run)


def edit_state(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edits all checkpoints of a run, and their checksums with them."""
    for path in run.glob("checkpoint-*.safetensors"):
        state = unpack(path.read_bytes(), path)
        state.pop("format")
        change(state)
        path.write_bytes(pack(state))
    forge(run)
