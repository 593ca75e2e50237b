"""A program in the place of a preset's own: any that fits the data, with the options that mean the same to both."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from networks import SPECS
from test_cli import call

from pyro_delta import programs
from pyro_delta.build import build
from pyro_delta.config import Config, load_preset, preset_names, preset_text, validate
from pyro_delta.data import ArraySpec
from pyro_delta.data.images import ImageSpec
from pyro_delta.data.music import ScoreSpec
from pyro_delta.data.named import build_data, spec_before_data
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.data.series import SeriesSpec
from pyro_delta.errors import UserError
from pyro_delta.inference.run import load
from pyro_delta.protocol import Spec

OF_TOKENS = {"likelihood": {"gru"}, "guide": {"gru"}}
"""Shipped programs that take sequences of tokens or numbers …"""
OF_IMAGES = {
    "likelihood": {"gated_pixelcnn", "pixelsnail"},
    "guide": {"anti_causal", "bidirectional", "contour", "structured"},
    "prior": {"lattice"},
}
"""… or images; the others take both."""
NEEDED = {"matern": {"prior.rate_nats": 4.0}, "lattice": {"prior.rate_nats": 4.0}, "ar1": {"prior.rate_nats": 4.0}}
"""What must be said of a program that has no default for it, unless the preset does."""
PROGRAMS = {kind: list(programs.SHIPPED[kind]) for kind in ("prior", "likelihood", "guide")}


@cache
def spec_of(preset: str) -> Spec:
    program, options = load_preset(preset).data.program, load_preset(preset).data.options
    return spec_before_data(program) or SPECS.get(program) or build_data(program, options).spec


def swaps() -> list[tuple[str, str, str]]:
    """Every preset with every shipped program that fits its data."""
    found = []
    for preset in preset_names():
        others = OF_TOKENS if isinstance(spec_of(preset), ImageSpec) else OF_IMAGES
        for kind, names in PROGRAMS.items():
            found += [(preset, kind, name) for name in names if name not in others.get(kind, ())]
    return found


def types_of(kind: str, name: str) -> dict[str, Any]:
    fields = programs.options_model(kind, programs.find(kind, name)).model_fields
    return {option: field.annotation for option, field in fields.items()}


def defaults_of(kind: str, name: str) -> dict[str, Any]:
    fields = programs.options_model(kind, programs.find(kind, name)).model_fields
    return {option: field.default for option, field in fields.items()}


def test_all_shipped_programs_are_tried() -> None:
    tried = {(kind, name) for _, kind, name in swaps()}
    assert tried == {(kind, name) for kind, names in PROGRAMS.items() for name in names}
    assert {preset for preset, _, _ in swaps()} == set(preset_names())
    assert {type(spec_of(preset)) for preset in preset_names()} == {ImageSpec, TokenSpec, ScoreSpec, SeriesSpec}


@pytest.mark.parametrize(("preset", "kind", "name"), swaps())
def test_a_program_that_fits_the_data_validates_on_a_preset(preset: str, kind: str, name: str) -> None:
    stated = tomllib.loads(preset_text(preset)).get(kind, {})
    own = stated.pop("program", {"prior": "ar1", "likelihood": "gated_pixelcnn", "guide": "anti_causal"}[kind])
    theirs, ours = types_of(kind, own), types_of(kind, name)
    kept = {option for option in stated if option in ours and ours[option] == theirs[option]}
    lacks = name in NEEDED and not kept & {"alpha", "rate_nats", "length_scale"}
    more = NEEDED[name] if lacks and name != own else {}
    config = load_preset(preset, [(f"{kind}.program", name), *more.items()])

    section = getattr(config, kind)
    expected = defaults_of(kind, name) | {option: stated[option] for option in kept}
    expected |= {key.partition(".")[2]: value for key, value in more.items()}
    assert section.program == name
    assert {o: list(v) if isinstance(v, tuple) else v for o, v in section.options.items()} == {
        o: list(v) if isinstance(v, tuple) else v for o, v in expected.items()
    }
    for other in {"data", "prior", "likelihood", "guide", "objective", "training"} - {kind}:
        assert getattr(config, other) == getattr(load_preset(preset), other)
    assert validate(config.model_dump()) == config
    if kind == "prior":
        prior = programs.find("prior", name)(spec_of(preset), **section.options)
        assert prior().event_shape[1] == stated.get("dims", 8)


def swapped(preset: str, **settings: Any) -> Config:
    return load_preset(preset, [(key.replace("__", "."), value) for key, value in settings.items()])


GATED = [
    name
    for name in preset_names()
    if load_preset(name).likelihood.program == "gated_pixelcnn" and "channels" in preset_text(name)
]


@pytest.mark.parametrize("preset", GATED)
def test_a_pixelsnail_takes_the_place_of_a_gated_pixelcnn(preset: str) -> None:
    """Its `channels` are one number, the other's a number for each level; `mixtures` mean the same."""
    before = load_preset(preset).likelihood.options
    assert isinstance(before["channels"], tuple)
    after = swapped(preset, likelihood__program="pixelsnail").likelihood.options
    assert after["channels"] == 64
    assert after["mixtures"] == before["mixtures"]
    assert after["latent_channels"] == before["latent_channels"]
    back = swapped(preset, likelihood__program="gated_pixelcnn")
    assert back == load_preset(preset)


def test_a_gated_pixelcnn_takes_the_place_of_a_pixelsnail() -> None:
    before = load_preset("cifar10-paper").likelihood.options
    after = swapped("cifar10-paper", likelihood__program="gated_pixelcnn").likelihood.options
    assert before["channels"] == 256
    assert after["channels"] == (32, 48)
    assert (after["mixtures"], after["latent_channels"]) == (before["mixtures"], before["latent_channels"]) == (10, 64)


@pytest.mark.parametrize("preset", ["digits", "photos", "descriptions", "default"])
def test_a_length_scale_takes_the_place_of_a_rate(preset: str) -> None:
    assert load_preset(preset).prior.options["rate_nats"] is not None
    before = load_preset(preset).prior.options
    options = swapped(preset, prior__program="matern", prior__length_scale=2).prior.options
    assert options == {
        "dims": before["dims"], "length": before["length"], "smoothness": "3/2", "length_scale": 2.0, "rate_nats": None,
    }  # fmt: skip
    rate = swapped(preset, prior__program="matern").prior.options
    assert (rate["length_scale"], rate["rate_nats"]) == (None, before["rate_nats"])


@pytest.mark.parametrize("preset", ["mnist", "cifar10-small", "cifar10-paper"])
def test_a_length_scale_on_presets_with_an_alpha(preset: str) -> None:
    options = swapped(preset, prior__program="matern", prior__length_scale=2).prior.options
    assert (options["length_scale"], options["rate_nats"]) == (2.0, None)
    with pytest.raises(UserError, match=r"none of prior\.length_scale and prior\.rate_nats given"):
        build(swapped(preset, prior__program="matern"), spec_of(preset), check=False)


@pytest.mark.parametrize(
    ("args", "program", "options"),
    [
        (["--likelihood", "pixelsnail", "--set", "likelihood.channels=8", "--set", "likelihood.layers=1"],
         ("likelihood", "pixelsnail"), {"channels": 8, "layers": 1, "mixtures": 5, "blocks": 2}),
        (["--prior", "matern", "--set", "prior.length_scale=2"],
         ("prior", "matern"), {"length_scale": 2.0, "rate_nats": None, "dims": 2}),
    ],
)  # fmt: skip
def test_from_the_command_line(
    args: list[str], program: tuple[str, str], options: dict[str, Any], tmp_path: Path
) -> None:
    small = ["--set", "guide.channels=[8]", "--set", "guide.row_blocks=[1]", "--set", "training.bf16=false"]
    if program[0] == "prior":
        small += ["--set", "likelihood.channels=[8]", "--set", "likelihood.row_blocks=[1]"]
    run = tmp_path / "run"
    code, _, err = call("train", "--preset", "digits", *args, *small, "--steps", 1, "--device", "cpu", "--out", run)
    assert code == 0, err
    section = getattr(load(run).config, program[0])
    assert section.program == program[1]
    assert section.options.items() >= options.items()


MISFITS = {
    "text in an image likelihood": ("descriptions", "likelihood", "gated_pixelcnn", "images, not data of TokenSpec"),
    "text in an image guide": ("descriptions", "guide", "anti_causal", "images, not data of TokenSpec"),
    "a lattice over text": ("descriptions", "prior", "lattice", "images, not data of TokenSpec"),
    "images in a likelihood of text": ("digits", "likelihood", "gru", "sequences of tokens, not data of ImageSpec"),
    "images in a guide of text": ("digits", "guide", "gru", "sequences of tokens, not data of ImageSpec"),
}


@pytest.mark.parametrize(("preset", "kind", "name", "words"), MISFITS.values(), ids=MISFITS)
def test_programs_of_other_data_are_refused_in_a_sentence(preset: str, kind: str, name: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"takes {words}; name another with --{kind}\.$"):
        build(load_preset(preset, [(f"{kind}.program", name)]), spec_of(preset))


def test_shipped_programs_of_images_refuse_plain_arrays() -> None:
    with pytest.raises(UserError, match="takes images, not data of ArraySpec"):
        build(load_preset("default"), ArraySpec((8, 8), 17))


def test_an_option_of_the_program_before_is_refused_when_it_is_set() -> None:
    with pytest.raises(UserError, match=r"unknown setting of the likelihood 'pixelsnail' 'likelihood\.row_blocks'"):
        swapped("digits", likelihood__program="pixelsnail", likelihood__row_blocks=[1])
    with pytest.raises(UserError, match=r"likelihood\.channels: Input should be a valid integer"):
        swapped("digits", likelihood__program="pixelsnail", likelihood__channels=[8, 8])
