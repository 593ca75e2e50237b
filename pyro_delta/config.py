"""The one configuration of a run: typed, validated, saved whole. Importing it does not import torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pyro_delta.errors import UserError, unknown_name
from pyro_delta.files import written_whole

EXCLUSIVE = [{"prior.alpha", "prior.rate_nats"}, {"training.steps", "training.minutes"}]
"""Settings of which just one holds: setting one of a pair takes the preset's other away."""

OBJECTIVES = {
    "elbo": None,
    "beta": "beta",
    "free_bits": "free_nats",
    "free_bits_per_dim": "free_nats",
    "annealed": "anneal_steps",
    "target_rate": "target_nats",
}
"""The setting of section `training` that each objective needs; it goes with no other objective."""


class Section(BaseModel):
    """A part of the configuration: unknown settings are errors, values are fixed once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Which images."""

    name: str = "digits"
    """digits, photos, cifar10, mnist or folder:PATH"""
    root: str = "data"
    """where data sets live"""
    validation: int | None = Field(None, ge=1)
    """images held out of train (default: the data set's own)"""
    seed: int = Field(0, ge=0)
    """of the validation split"""


class PriorConfig(Section):
    """The prior over the latent sequence."""

    program: Literal["ar1"] = "ar1"
    dims: int = Field(8, ge=1)
    """d, size of one latent step"""
    length: int | None = Field(None, ge=1)
    """n, latent steps (default: one per image row)"""
    alpha: str | float | None = None
    """one number, LO:HI for a linear spread, or d numbers with commas"""
    rate_nats: float | None = Field(None, ge=0)
    """committed rate from which one shared α is solved, in place of alpha"""

    @model_validator(mode="after")
    def _one_way(self) -> PriorConfig:
        if (self.alpha is None) == (self.rate_nats is None):
            raise ValueError("give just one of prior.alpha and prior.rate_nats")
        return self


class NetworkConfig(Section):
    """A Gated PixelCNN trunk."""

    channels: tuple[int, ...] = (32, 48)
    """width of each level of the rows-above stream, finest first; each level halves the resolution"""
    row_blocks: tuple[int, ...] = (1, 2)
    """gated blocks of each level of the rows-above stream"""
    pixel_blocks: int = Field(2, ge=1)
    """gated blocks of the within-row stream"""
    row_kernel: tuple[int, int] = (2, 3)
    """(rows, columns) of the rows-above stream's convolutions"""
    pixel_kernel: int = Field(3, ge=2)
    """columns of the within-row stream's convolutions"""

    @model_validator(mode="after")
    def _sizes(self) -> NetworkConfig:
        if (
            not self.channels
            or len(self.channels) != len(self.row_blocks)
            or min(self.channels) < 1
            or min(self.row_blocks) < 0
        ):
            raise ValueError(
                f"channels={list(self.channels)} and row_blocks={list(self.row_blocks)} must name the same levels, "
                "with 1 or more channels and 0 or more blocks for each"
            )
        if self.row_kernel[0] < 2 or self.row_kernel[1] < 1 or self.row_kernel[1] % 2 == 0:
            raise ValueError(f"row_kernel={list(self.row_kernel)} needs 2 or more rows and an odd number of columns")
        return self


class LikelihoodConfig(NetworkConfig):
    """p(x | z)."""

    program: Literal["gated_pixelcnn"] = "gated_pixelcnn"
    use_latents: bool = True
    """false: the latent-free control"""
    mixtures: int = Field(5, ge=1)
    """components of the mixture of discretised logistics"""
    latent_channels: int = Field(16, ge=1)
    """channels of the map that carries z to the pixels"""


class GuideConfig(NetworkConfig):
    """q(z | x)."""

    program: Literal["anti_causal"] = "anti_causal"
    features: int = Field(64, ge=1)
    """features pooled from each row"""


class TrainingConfig(Section):
    """How to train."""

    elbo: Literal["trace", "mean_field"] = "trace"
    """trace: sampled rate (Trace_ELBO); mean_field: analytic rate (TraceMeanField_ELBO)"""
    objective: Literal["elbo", "beta", "free_bits", "free_bits_per_dim", "annealed", "target_rate"] = "elbo"
    """what is minimised; all but elbo are baselines and need the setting that they are named after"""
    beta: float | None = Field(None, ge=0)
    """beta: weight of the rate"""
    free_nats: float | None = Field(None, gt=0)
    """free_bits, free_bits_per_dim: nats per image that cost nothing, in all or shared evenly by the dimensions"""
    anneal_steps: int | None = Field(None, ge=1)
    """annealed: steps over which the weight of the rate rises from 0 to 1"""
    target_nats: float | None = Field(None, gt=0)
    """target_rate: least rate in nats per image, held by a learned multiplier"""
    multiplier_lr: float = Field(0.002, gt=0)
    """target_rate: what the multiplier gains in a step whose rate is 0"""
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    """training time, in place of steps: compiling, validation and pictures do not count"""
    batch: int = Field(32, ge=1)
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(100, ge=0)
    """steps of linear warm-up"""
    guide_lr: float = Field(1.0, gt=0, le=1)
    """the guide's rate as a part of lr: at a high rate its means are noise to the decoder, which then ignores z"""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    """of the rate, over all steps or minutes"""
    final: float = Field(0.02, ge=0, le=1)
    """last rate as a part of lr"""
    clip: float | None = Field(None, gt=0)
    """largest gradient norm (of the loss in nats per image dimension)"""
    ema: float = Field(0.999, ge=0, lt=1)
    """decay of the moving average of weights, with a warm-up; the average is what is evaluated"""
    bf16: bool = False
    """bfloat16 autocast inside the networks"""
    channels_last: bool = False
    compile: bool = False
    """torch.compile the networks (the first call takes a minute)"""
    log_every: int = Field(50, ge=1)
    """steps between lines of metrics"""
    validations: int = Field(10, ge=0)
    """evaluations on the validation split, evenly spread"""
    validation_images: int | None = Field(None, ge=1)
    """of the validation split used while training (default: all)"""
    checkpoint_minutes: float = Field(2.0, gt=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _one_way(self) -> TrainingConfig:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give just one of training.steps and training.minutes")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.betas={list(self.betas)} must lie in [0, 1)")
        return self

    @model_validator(mode="after")
    def _objective(self) -> TrainingConfig:
        needed = OBJECTIVES[self.objective]
        for option in sorted({option for option in OBJECTIVES.values() if option}):
            given = getattr(self, option) is not None
            if given and option != needed:
                raise ValueError(
                    f"training.{option} has no meaning for training.objective={self.objective}; set it to null"
                )
            if option == needed and not given:
                raise ValueError(f"training.objective={self.objective} needs training.{option}")
        return self


class Config(Section):
    """All of a run's settings."""

    data: DataConfig
    prior: PriorConfig
    likelihood: LikelihoodConfig
    guide: GuideConfig
    training: TrainingConfig


def preset_names() -> list[str]:
    """Names of the shipped presets."""
    files = resources.files("pyro_delta.presets").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """The TOML text of a shipped preset; its first line is a comment that describes it."""
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    return (resources.files("pyro_delta.presets") / f"{name}.toml").read_text(encoding="utf-8")


def load_preset(name: str, settings: Sequence[tuple[str, Any]] = ()) -> Config:
    """A shipped preset with settings laid over it.

    Args:
        name: of the preset.
        settings: (dotted key, value) pairs; values may be text as typed on a command line.

    Raises:
        UserError: for an unknown preset or setting (with the nearest name), or a value that does not fit.
    """
    return overlaid(tomllib.loads(preset_text(name)), settings)


def overlaid(tree: dict[str, Any], settings: Sequence[tuple[str, Any]]) -> Config:
    """A configuration from a tree of sections, which is changed, with settings laid over it.

    Raises:
        UserError: as `load_preset`.
    """
    for key, _ in settings:
        for pair in EXCLUSIVE:
            if key in pair:
                section, _, field = (pair - {key}).pop().partition(".")
                tree.get(section, {}).pop(field, None)
    for key, value in settings:
        _check_key(key)
        section, _, field = key.partition(".")
        tree.setdefault(section, {})[field] = value
    return validate(tree)


def parse_settings(pairs: Iterable[str]) -> list[tuple[str, Any]]:
    """Reads `key=value` texts; a value is JSON where it can be (true, 3, [64, 96], null), else text."""
    settings = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r} is not of the form key=value.")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        settings.append((key.strip(), value))
    return settings


def setting_names() -> list[str]:
    """Every dotted setting."""
    return [
        f"{section}.{field}"
        for section, info in Config.model_fields.items()
        for field in info.annotation.model_fields  # type: ignore[union-attr]
    ]


def validate(tree: dict[str, Any]) -> Config:
    """A checked configuration; the first thing wrong becomes one sentence."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][:2])
        if first["type"] == "extra_forbidden":
            raise unknown_name("setting", key, setting_names()) from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if first["type"] in ("value_error", "missing") else f", got {first['input']!r}"
        raise UserError(f"{key}: {message}{given}.") from None


def save(config: Config, path: Path) -> None:
    """Writes the configuration as JSON."""
    with written_whole(path) as file:
        file.write((config.model_dump_json(indent=2) + "\n").encode())


def load(path: Path) -> Config:
    """Reads a configuration that `save` wrote.

    Raises:
        UserError: if the file is missing or not a configuration.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is no run: it has no {path.name}; give a folder that `pyro-delta train` wrote."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is damaged: it is not JSON.") from None
    try:
        return validate(tree)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _check_key(key: str) -> None:
    if key not in setting_names():
        raise unknown_name("setting", key, setting_names())
