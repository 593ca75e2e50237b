"""What makes a run again: the commands, or the Python, of its training and its check."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pprint import pformat
from types import MappingProxyType
from typing import Any

from pyro_delta.api.kept import told_asked
from pyro_delta.config import Config, TrainingConfig, load_preset
from pyro_delta.describe import flat as flat_settings
from pyro_delta.describe import written
from pyro_delta.errors import UserError
from pyro_delta.inference.optim import learning_rate
from pyro_delta.programs import find, options_model

GIVEN = "given"
"""The program of data that were given in Python, which no command finds."""
CONTROL = "CONTROL"
"""In the place of the folder of a control, which numbers do not hold."""


def command_of(config: Config, preset: str, folder: Path) -> str:
    """The command line that trains with the same settings, as far as they differ from those of the preset."""
    data = config.data.program
    root = config.data.options.get("root")
    given = [("data.program", data)]
    if root is not None and options_model("data", find("data", data)).model_fields["root"].is_required():
        given.append(("data.root", root))
    before = dict(flat_settings(load_preset(preset, given)))
    changed = {key: value for key, value in flat_settings(config) if before.get(key) != value}
    words = ["pyro-delta", "train", "--dataset", ":".join(value for _, value in given), "--preset", preset]
    if root is not None and changed.get("data.root") == root:
        words += ["--data-root", str(root)]
    for key, value in changed.items():
        if key not in ("data.root", "data.program"):
            words += ["--set", f"{key}={written(value)}"]
    return shlex.join([*words, "--out", str(folder)])


def commands_of_training(
    config: Config, preset: str, folder: Path, lines: Sequence[Mapping[str, Any]]
) -> tuple[list[str], str]:
    """The command of a training, and those that made it longer, one after the other.

    Args:
        config: as it is now.
        preset: of the run.
        folder: of the run.
        lines: of its metrics.

    Returns:
        the commands, and what is to be said of them.
    """
    ends = stages(config.training, lines)
    if not ends:
        return [command_of(config, preset, folder)], (
            "The training was made longer by --resume, from how many steps is not known: one of all its steps at once, "
            "as below, has other learning rates and validations."
        )
    first = config.training.model_copy(update={"steps": ends[0]})
    commands = [command_of(config.model_copy(update={"training": first}), preset, folder)]
    for steps in ends[1:]:
        commands.append(shlex.join(["pyro-delta", "train", "--out", str(folder), "--resume", "--steps", str(steps)]))
    longer = "" if len(ends) == 1 else ", which was made longer by --resume"
    return commands, f"The training{longer}, from its settings, and what was done with it:"


def stages(training: TrainingConfig, lines: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """The steps that a training was to have, each time that it was made longer; the last are those that it has now.

    They are not written down. But learning rates and validations of its lines follow from them, so that they are those
    steps of which all of that comes again.

    Args:
        training: settings as they are now.
        lines: of metrics.

    Returns:
        none if no such steps are found: it was made longer before it had come to its end.
    """
    if training.steps is None:
        return [None]
    trained = {line["step"]: line["lr"] for line in lines if line["split"] == "train"}
    validated = {line["step"] for line in lines if line["split"] == "validation"}
    ends: list[int | None] = []
    begin = made = 0
    while begin < training.steps:
        later = [step for step in trained if step > begin]
        for end in (training.steps, *sorted(later, reverse=True)):
            made_then = _follows(
                training, end, [step for step in later if step <= end], trained, validated, begin, made
            )
            if made_then is not None:
                break
        else:
            return []
        ends.append(end)
        begin, made = end, made_then
    return ends or [training.steps]


def _follows(
    training: TrainingConfig,
    steps: int,
    logged: Sequence[int],
    trained: Mapping[int, float | None],
    validated: set[int],
    begin: int,
    made: int,
) -> int | None:
    """Validations at the end of so many steps, if rates and validations of the lines from `begin` follow from them."""

    def due(step: int) -> int:
        return math.floor(min(step / steps, 1.0) * training.validations + 1e-9)

    made = min(made, due(begin))
    for step in logged:
        rate, found = learning_rate(training, step - 1, (step - 1) / steps), trained[step]
        if found is None or not math.isclose(rate, found, rel_tol=1e-4) or (due(step) > made) != (step in validated):
            return None
        made = max(made, due(step))
    return made


def command_of_check(run: str, numbers: Mapping[str, Any], control: str | None = None) -> str:
    """The command line that makes the numbers of a check again.

    Args:
        run: as it is named.
        numbers: as `pyro-delta check --json` prints them.
        control: that they were made with, where that is known.
    """
    words = ["pyro-delta", "check", run]
    if numbers["split"] != "test":
        words += ["--split", numbers["split"]]
    if numbers["n_images"] < numbers["split_images"]:
        words += ["--images", str(numbers["n_images"])]
    for name, asked in told_asked(numbers).items():
        words += [f"--{name.replace('_', '-')}", str(asked)]
    if "bought_nats" in numbers:
        words += ["--control", control or CONTROL]
    if numbers.get("weights") == "last":
        words += ["--weights", "last"]
    if numbers["seed"]:
        words += ["--seed", str(numbers["seed"])]
    if numbers.get("data_as_trained") is False:
        words.append("--other-data")
    return shlex.join(words)


def python_of_training(
    config: Config, preset: str, folder: str, copies: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The Python that trains with the same settings, on data that were given there.

    Args:
        config: of the run.
        preset: of the run.
        folder: of the run.
        copies: names of programs of one's own → where they are to be found.
    """
    settings = dict(flat_settings(config))
    with suppress(UserError):  # of a run of no preset, all are said
        known = dict(flat_settings(load_preset(preset, [("data.program", GIVEN)])))
        settings = {key: value for key, value in settings.items() if known.get(key) != value}
    settings = {
        key: copies.get(value, value) if isinstance(value, str) else value
        for key, value in settings.items()
        if not key.startswith("data.") or key == "data.levels"
    }
    return (
        f"settings = {pformat(settings, sort_dicts=False, width=100)}\n"
        f'run = pyro_delta.train(settings, data=x, preset="{preset}", out={folder!r})'
    )


def python_of_check(run: str, numbers: Mapping[str, Any], control: str | None = None) -> str:
    """The Python that makes the numbers of a check again, on data that were given there; arguments as there."""
    words = [f"{run!r}", "data=x"]
    if numbers["split"] != "test":
        words.append(f"split={numbers['split']!r}")
    if numbers["n_images"] < numbers["split_images"]:
        words.append(f"images={numbers['n_images']}")
    words += [f"{name}={asked}" for name, asked in told_asked(numbers).items()]
    if "bought_nats" in numbers:
        words.append(f"control={control or CONTROL!r}")
    if numbers["seed"]:
        words.append(f"seed={numbers['seed']}")
    return f"pyro_delta.check({', '.join(words)})"
