"""The one configuration of a run: typed, validated, saved whole. Importing it does not import torch."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidationInfo, model_serializer, model_validator

from pyro_delta import programs
from pyro_delta.errors import UserError, in_a_line, nearest, unknown_name
from pyro_delta.files import json_of, toml_of
from pyro_delta.validation import Section, Seed, first_mistake

EXCLUSIVE = [
    {"prior.alpha", "prior.rate_nats"},
    {"prior.alpha", "prior.bitrate"},
    {"prior.rate_nats", "prior.bitrate"},
    {"prior.length_scale", "prior.rate_nats"},
    {"training.steps", "training.minutes"},
]
"""Settings of which just one holds: setting one of a pair takes the preset's other away."""
DEFAULT_PROGRAMS = {
    "data": "digits",
    "prior": "ar1",
    "likelihood": "gated_pixelcnn",
    "guide": "anti_causal",
    "objective": "elbo",
}


class ProgramConfig(Section):
    """A program and all its options; written as one flat section, `{"program": …, "alpha": …}`.

    Validation takes the folder of a run's own programs as its context.
    """

    kind: ClassVar[str]
    program: str
    """a name of `pyro-delta list`, package.module:Object, or path/to/file.py:Object"""
    options: dict[str, Any]

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, flat: Any, info: ValidationInfo) -> Any:
        if not isinstance(flat, dict) or not isinstance(flat.get("program", ""), str):
            raise ValueError(f"a section of settings is needed, with a program by its name, got {flat!r}")
        given = {key: value for key, value in flat.items() if key != "program"}
        name = flat.get("program", DEFAULT_PROGRAMS[cls.kind])
        if cls.kind == "data":
            name, root = programs.data_name(name)
            if root is not None and given.setdefault("root", root) != root:
                raise UserError(f"data.root={given['root']} and {flat['program']} contradict each other; give one.")
        return {"program": name, "options": programs.checked_options(cls.kind, name, given, info.context)}

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        return {"program": self.program, **self.options}


class DataConfig(ProgramConfig):
    """What is modelled."""

    kind = "data"


class PriorConfig(ProgramConfig):
    """p(z), the prior over the latent sequence."""

    kind = "prior"


class LikelihoodConfig(ProgramConfig):
    """p(x | z)."""

    kind = "likelihood"


class GuideConfig(ProgramConfig):
    """q(z | x)."""

    kind = "guide"


class ObjectiveConfig(ProgramConfig):
    """What is minimised; all but elbo are baselines."""

    kind = "objective"


class TrainingConfig(Section):
    """How to train."""

    backend: Literal["pyro", "numpyro"] = "pyro"
    """numpyro: the twins of the programs are trained, by JAX; bf16, channels_last and compile do not apply to it"""
    elbo: Literal["trace", "mean_field"] = "trace"
    """trace: sampled rate (Trace_ELBO); mean_field: analytic rate (TraceMeanField_ELBO)"""
    steps: int | None = Field(None, ge=1, lt=2**63)
    """of training; this or minutes"""
    minutes: float | None = Field(None, gt=0)
    """training time, in place of steps: compiling, validation and pictures do not count"""
    batch: int = Field(32, ge=1)
    """data of a step, of all processes together"""
    optimizer: Literal["adam", "adamw", "muon"] = "adam"
    """muon: orthogonalised steps for the weights of linear layers and convolutions, Adam for the rest"""
    lr: float = Field(1e-3, gt=0)
    """learning rate, after the warm-up"""
    lr_sqrt: float | None = Field(None, gt=0)
    """the rate is at most this divided by the square root of the step: for trainings of any length"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of Adam: decays of the averages of gradients and of their squares"""
    weight_decay: float = Field(0.0, ge=0)
    """of adamw and muon, apart from the gradient"""
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
    skip: float | None = Field(None, gt=0)
    """gradient norm, before clipping, beyond which a step is skipped: a single one may spoil a large network"""
    ema: float = Field(0.999, ge=0, lt=1)
    """decay of the moving average of weights, with a warm-up; the average is what is evaluated"""
    bf16: bool = False
    """bfloat16 autocast inside the networks, on devices that compute in it; float32 on others"""
    channels_last: bool = False
    """layout of the convolutions' weights; faster on some machines"""
    recompute: bool = False
    """activations of the networks' blocks are computed again in the backward pass: less memory, more time"""
    accumulate: int = Field(1, ge=1)
    """equal parts of a process's share of a batch, one after the other, whose gradients are summed: less memory"""
    compile: bool = False
    """torch.compile the networks (the first call takes a minute)"""
    log_every: int = Field(50, ge=1)
    """steps between lines of metrics"""
    validations: int = Field(10, ge=0)
    """evaluations on the validation split, evenly spread"""
    validation_images: int | None = Field(None, ge=1)
    """of the validation split used while training (default: all)"""
    patience: int | None = Field(None, ge=1)
    """validations in a row without a better bound, after which training ends (default: it never ends early)"""
    checkpoint_minutes: float = Field(2.0, gt=0)
    """between checkpoints"""
    seed: Seed = 0
    """of weights, the order of the data and noise"""

    @model_validator(mode="after")
    def _one_way(self) -> TrainingConfig:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give just one of training.steps and training.minutes")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.betas={list(self.betas)} must lie in [0, 1)")
        return self

    def out_of_patience(self, stale: int) -> bool:
        """Whether training waits no longer, after so many validations in a row without a better bound."""
        return self.patience is not None and stale >= self.patience


class AuxiliaryConfig(Section):
    """An auxiliary prior, trained beside the model on samples of its posterior."""

    enabled: bool = False
    """whether it is trained beside the model"""
    hidden: int = Field(default=128, ge=1)
    """size of the LSTM's state"""
    mixtures: int = Field(default=1, ge=1)
    """Gaussians that are mixed at every step"""
    lr: float = Field(default=3e-3, gt=0)
    """learning rate of its Adam"""
    ema: float = Field(default=0.999, ge=0, lt=1)
    """decay of the moving average of its weights"""


class Config(Section):
    """All of a run's settings."""

    data: DataConfig
    prior: PriorConfig
    likelihood: LikelihoodConfig
    guide: GuideConfig
    objective: ObjectiveConfig = Field(default_factory=lambda: ObjectiveConfig.model_validate({}))
    training: TrainingConfig
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()


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


def preset_of_data(name: str) -> str:
    """The preset that data of a name ask for.

    Raises:
        UserError: if there are no such data.
    """
    return str(getattr(programs.find("data", programs.data_name(name)[0]), "preset", "default"))


def program_in_preset(kind: str, preset: str) -> str:
    """The program of a kind that a shipped preset names, or else the default.

    Raises:
        UserError: if there is no such preset.
    """
    return str(tomllib.loads(preset_text(preset)).get(kind, {}).get("program", DEFAULT_PROGRAMS[kind]))


def choose(settings: Sequence[tuple[str, Any]], preset: str | None = None) -> tuple[Config, str]:
    """A preset with settings laid over it, and its name; without one, the preset that the data ask for.

    Raises:
        UserError: as `load_preset`, or if there are no such data.
    """
    if preset is None:
        preset = preset_of_data(str(dict(settings).get("data.program", DEFAULT_PROGRAMS["data"])))
    return load_preset(preset, settings), preset


def overlaid(tree: dict[str, Any], settings: Sequence[tuple[str, Any]], folder: Path | None = None) -> Config:
    """A configuration from a tree of sections, which is changed, with settings laid over it.

    A program that takes the place of the tree's own keeps those of its options that mean the same to both.

    Args:
        tree: sections of settings.
        settings: as for `load_preset`.
        folder: of a run's own programs.

    Raises:
        UserError: as `load_preset`.
    """
    given = dict(settings)
    for pair in EXCLUSIVE:
        if pair <= given.keys():
            raise UserError(f"{' and '.join(sorted(pair))} contradict each other; give one of them.")
        for key in pair & given.keys():
            section, _, field = (pair - {key}).pop().partition(".")
            tree.get(section, {}).pop(field, None)
    program, root = programs.data_name(str(given.get("data.program", "")))
    if root is not None and "data.root" not in given:  # it takes the place of the tree's own
        given |= {"data.program": program, "data.root": root}
    for kind in programs.KINDS:
        name, section = given.get(f"{kind}.program"), tree.setdefault(kind, {})
        before = section.get("program", DEFAULT_PROGRAMS[kind])
        if name not in (None, before):
            same = programs.options_in_common(kind, before, programs.data_name(str(name))[0], folder) if section else ()
            tree[kind] = {key: value for key, value in section.items() if key in same}
    for key, value in given.items():
        section_name, _, field = key.partition(".")
        if section_name not in Config.model_fields or not field:
            raise _unknown_setting(key, tree)
        tree.setdefault(section_name, {})[field] = value
    return validate(tree, folder)


def parse_settings(pairs: Iterable[str], option: str = "--set", example: str = "") -> list[tuple[str, Any]]:
    """Reads `key=value` texts; a value is JSON where it can be (true, 3, [64, 96], null), else text."""
    settings = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            known = example or (nearest(key.strip(), setting_names({})) or ["prior.dims"])[0]
            raise UserError(f"{option} {pair!r} is not of the form key=value; write {known}=VALUE, for one.")
        try:
            value = json.loads(text, parse_constant=str)  # NaN is for the setting to judge, which may be a text
        except (ValueError, RecursionError):  # of JSON, of numbers with thousands of digits
            value = text
        settings.append((key.strip(), value))
    return settings


def settings_of_file(path: Path, over: Sequence[tuple[str, Any]] = ()) -> list[tuple[str, Any]]:
    """Settings of a TOML file in sections, or of a run's config.json.

    Args:
        path: of the file.
        over: settings that take the place of the file's; with a program go the file's options of the one that it had.

    Raises:
        UserError: if the file cannot be read, or does not hold sections of settings.
    """
    form = "JSON" if path.suffix.lower() == ".json" else "TOML"
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig")) if form == "JSON" else toml_of(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); give a TOML file, or a run's config.json.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not {form} ({in_a_line(error)}); mend it.") from None
    if not isinstance(tree, dict) or not all(isinstance(fields, dict) for fields in tree.values()):
        raise UserError(f"{path} does not hold sections of settings; write them as [training] and steps = 100.")
    given = dict(over)
    gone = given.keys() | {key for pair in EXCLUSIVE if pair & given.keys() for key in pair}
    programs_of = {section: tree.get(section, {}).get("program") for section in programs.KINDS}
    other = {section for section, name in programs_of.items() if given.get(f"{section}.program", name) != name}
    return [
        (f"{section}.{field}", value)
        for section, fields in tree.items()
        for field, value in fields.items()
        if value is not None and section not in other and f"{section}.{field}" not in gone
    ]


def setting_names(tree: dict[str, Any]) -> list[str]:
    """Every dotted setting, with the options of the programs that a tree of sections names."""
    found = []
    for section, info in Config.model_fields.items():
        if section in programs.KINDS:
            name = tree.get(section, {}).get("program", DEFAULT_PROGRAMS[section])
            name = programs.data_name(name)[0] if section == "data" else name
            fields = ["program", *programs.option_names(section, name)]
        else:
            fields = list(info.annotation.model_fields)  # type: ignore[union-attr]
        found += [f"{section}.{field}" for field in fields]
    return found


def validate(tree: dict[str, Any], folder: Path | None = None) -> Config:
    """A checked configuration; the first thing wrong becomes one sentence.

    Args:
        tree: sections of settings.
        folder: of a run's own programs.
    """
    try:
        return Config.model_validate(tree, context=folder)
    except ValidationError as error:
        key, mistake = first_mistake(error)
        raise (mistake or _unknown_setting(key, tree)) from None


def _unknown_setting(key: str, tree: dict[str, Any]) -> UserError:
    return unknown_name("setting", key, setting_names(tree), listed="the config.json of any run")


def as_text(config: Config) -> bytes:
    """The configuration as JSON, with which a run is kept."""
    return (config.model_dump_json(indent=2) + "\n").encode()


def digest(config: Config) -> str:
    """A fingerprint of all settings: that of their sections."""
    return digest_of(config.model_dump(mode="json"))


def digest_of(tree: dict[str, Any]) -> str:
    """A fingerprint of sections of settings: 16 hexadecimal digits of the SHA-256 of their JSON, keys in order."""
    text = json.dumps(tree, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tree_of(content: bytes, path: Path) -> dict[str, Any]:
    """The sections of settings in a file that `as_text` made; no program of them is imported.

    Args:
        content: of the file.
        path: of it.

    Raises:
        UserError: if it is something else.
    """
    try:
        tree = json_of(content)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} is damaged: it holds {str(tree)[:40]!r} rather than sections of settings; restore it.")
    for kind in programs.KINDS:
        section = tree.get(kind)
        if not isinstance(section, dict) or not isinstance(section.get("program"), str):
            raise UserError(f"{path} is damaged: {kind} is not a section of settings with a program; restore it.")
    return tree


def of_tree(tree: dict[str, Any], path: Path, folder: Path | None = None) -> Config:
    """The configuration of the sections of a file.

    Args:
        tree: as `tree_of` gives it.
        path: of the file.
        folder: of the run's own programs.

    Raises:
        UserError: if it is none.
    """
    try:
        return validate(tree, folder)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except RecursionError:
        raise UserError(f"{path} is damaged: it is nested too deep; restore it.") from None
