"""What a training would take, before it is begun in earnest."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from pyro_delta.api.train import prepare
from pyro_delta.config import Config
from pyro_delta.data.images.cache import keeping_nothing
from pyro_delta.diagnostics.cost import flops_per_datum, parameters
from pyro_delta.diagnostics.trace import device_of

STEPS = 3
"""That are timed, after one that is not: it compiles, and fills caches."""


def plan(config: Config, device: str) -> dict[str, Any]:
    """Weights, δ, memory and time of a training, by its first few steps.

    Nothing is written but data sets that are downloaded, and decoded images of a set that is larger than memory.

    Args:
        config: all settings.
        device: auto, cpu or cuda.

    Raises:
        UserError: as `pyro_delta.train`.
    """
    # Some trainings go from one line of metrics to the next in one go.
    quick = config.model_copy(update={"training": config.training.model_copy(update={"log_every": 1})})
    with keeping_nothing():
        training = prepare(quick, device)
    place, settings, count = device_of(training.vae), config.training, len(training.data.train)
    with training.running():
        training.advance()
        training.wait()
        began = time.perf_counter()
        for _ in range(STEPS):
            training.advance()
        training.wait()
        seconds = (time.perf_counter() - began) / STEPS
    steps = settings.steps if settings.steps is not None else int(60 * (settings.minutes or 0) / seconds)
    if place.type == "cuda":
        peak = torch.cuda.max_memory_allocated(place) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "device": str(place),
        "training_data": count,
        "weights": parameters(training.vae),
        "committed_rate": training.committed.sentence,
        "operations_per_datum": float(flops_per_datum(training.vae, training.data.train.batch(slice(2)))),
        "seconds_per_step": seconds,
        "data_per_second": settings.batch / seconds,
        "steps": steps,
        "passes_over_the_data": steps * settings.batch / count,
        "minutes_of_training": steps * seconds / 60,
        "peak_memory_GiB": peak,
    }
