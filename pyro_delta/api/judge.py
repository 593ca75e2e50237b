"""Judgement: `check` and `evaluate` of a run, `diagnose` and `verify` of anybody's VAE."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from pyro_delta.data.condition import told_alike
from pyro_delta.data.named import as_those_of
from pyro_delta.data.spec import check_answers
from pyro_delta.data.splits import SPLITS, Split, split_digest, subset
from pyro_delta.data.stored import Stored
from pyro_delta.data.tensors import Given, as_split, labels_of
from pyro_delta.data.values import admitted, finite
from pyro_delta.diagnostics import bounds
from pyro_delta.diagnostics.diagnose import Diagnosis, diagnosed
from pyro_delta.diagnostics.told import TOLD_IMAGES, TOLD_SAMPLES
from pyro_delta.diagnostics.trace import device_of, runs
from pyro_delta.diagnostics.verify import Certificate, examples
from pyro_delta.diagnostics.verify import verify as certify
from pyro_delta.errors import UserError, unknown_name
from pyro_delta.inference.provenance import provenance
from pyro_delta.inference.run import DEAF, Run, auxiliary_file, is_control, load, run_of
from pyro_delta.protocol import Advance, Data, Spec
from pyro_delta.vae import VAE
from pyro_delta.validation import at_least


def check(
    run: Run | str | Path,
    *,
    data: str | Path | Data | Given | None = None,
    split: str = "test",
    images: int | None = None,
    control: Run | str | Path | None = None,
    root: str | None = None,
    other_data: bool = False,
    seed: int = 0,
    advance: Advance = bounds.ignore,
    **options: Any,
) -> Diagnosis:
    """Does the KL of a run keep above δ for every datum, and do its latents carry information?

    Args:
        run: a run, or its folder.
        data: in the place of those that it was trained on, or their name, as for `pyro_delta.train`; arrays are read as
            those of the run were.
        split: train, validation or test.
        images: so many random data of the split, for all that is computed; all if None.
        control: a run without latents, of the same data, or its folder: what the latents buy is measured against it.
        root: where the data live now.
        other_data: whether they may be others than the run was trained on; those given by `data` may.
        seed: of posterior samples, of the shuffle and of the random data.
        advance: called with the number of data just done, as for `pyro_delta.diagnose`.
        options: particles, weighed, told_samples and told_images, as for `pyro_delta.diagnose`.

    Raises:
        UserError: if the data cannot be read, there are fewer than four, or the control is of other data or hears z.
    """
    run, data, part, measured = _parts(run, data, split, images, root, seed, other_data)
    other = None if control is None else _control(control, run)
    found = diagnosed(
        run.vae,
        part,
        fit=None if split == "train" else data.train,
        spec=data.spec,
        control=None if other is None else other.vae,
        seed=seed,
        advance=advance,
        **options,
    )
    numbers, advice = found.numbers | measured | _with_auxiliary(run, part, data.spec, seed), found.advice
    numbers |= {f"asked_{name}": value for name, value in options.items() if value != TOLD.get(name, value)}
    if is_control(run.config):
        numbers["is_control"] = True
        advice = DEAF if found.verdict in ("nothing told", "collapsed") else advice
    if measured["data_as_trained"] is False:
        advice += f" {OTHER_DATA}"
    if other is not None:
        numbers |= {f"control_{key}": value for key, value in other.facts.items() if key not in provenance()}
        if other.trained_steps != run.trained_steps:
            advice += (
                f" Run and control have had different numbers of steps, {run.trained_steps} and "
                f"{other.trained_steps}: part of what lies between them is training."
            )
        advice += _unexplained(numbers)
        if not other.facts.get("finished", True):
            advice += " The control's training has not come to its end."
        if apart := _apart(run, other):
            advice += f" Run and control differ in {apart}, too, not in their latents alone."
    return replace(found, numbers=numbers, advice=advice)


def _with_auxiliary(run: Run, part: Split, spec: Spec, seed: int) -> dict[str, Any]:
    """The bound with the auxiliary prior that was trained beside a run, which commits nothing."""
    if run.folder is None or not run.config.auxiliary.enabled or auxiliary_file(run.folder):
        return {}  # one that was trained afterwards is for `evaluate --with-prior auxiliary`
    tighter = load(run.folder, device_of(run.vae), "auxiliary", run.weights)
    numbers = bounds.evaluate(tighter.vae, part, spec=spec, seed=seed)
    return {f"auxiliary_{key}": numbers[key] for key in ("neg_elbo_bpd", "neg_elbo_bpd_se")}


TOLD = {"told_samples": TOLD_SAMPLES, "told_images": TOLD_IMAGES}
"""What of the options of a check is kept with its numbers where it is other than here: data may be too few for it."""
OTHER_DATA = "The data are not those that the run was trained on, or not all of them."
"""Said with numbers of a run whose data are not what they were."""
LARGE_GAIN = 3.0
"""Standard errors beyond which a control is worse by more than the choice of data."""
FREE = {
    "likelihood.use_latents", "training.steps", "training.minutes", "training.skip", "training.log_every",
    "training.validations",
}  # fmt: skip
"""Settings in which a control may differ from its run."""


def _unexplained(numbers: Mapping[str, Any]) -> str:
    """What is to be said of a gain over the control that z does not tell of; nothing where there is none."""
    if numbers["latents_used"] or not numbers["bought_nats"] > LARGE_GAIN * numbers["bought_nats_se"]:
        return ""
    return (
        f" The {numbers['bought_nats']:.3g} nats by which the distortion is below that of the control are not shown to "
        "come from z: two trainings differ by more than their latents."
    )


def _apart(run: Run, control: Run) -> str:
    """Settings of the decoder and of its training that a control has otherwise."""
    mine, other = run.config.model_dump(mode="json"), control.config.model_dump(mode="json")
    return ", ".join(
        f"{section}.{field}"
        for section in ("likelihood", "training")
        for field in mine[section].keys() | other[section].keys()
        if mine[section].get(field) != other[section].get(field) and f"{section}.{field}" not in FREE
    )


def _control(control: Run | str | Path, run: Run) -> Run:
    """A run to compare with, of the same data.

    Raises:
        UserError: if it was trained on others.
    """
    other = run_of(control)
    known = run.data_record is not None and other.data_record is not None
    # The same data may live in another folder.
    if run.data_record is not None and other.data_record is not None:
        apart = run.data_record.splits != other.data_record.splits
    else:
        apart = run.config.data != other.config.data
    if apart or other.spec != run.spec:
        raise UserError(
            f"the control was trained on {_data_in_words(other)}, the run on {_data_in_words(run)}"
            f"{', whose data were others' if known and apart else ''}; give one of the same data."
        )
    return other


def _data_in_words(run: Run) -> str:
    return ", ".join(f"data.{key}={value}" for key, value in run.config.data.model_dump().items())


def evaluate(
    run: Run | str | Path,
    *,
    data: str | Path | Data | Given | None = None,
    split: str = "test",
    images: int | None = None,
    root: str | None = None,
    other_data: bool = False,
    seed: int = 0,
    advance: Advance = bounds.ignore,
    particles: int = 1,
    shared: bool = False,
) -> dict[str, Any]:
    """Bounds on the likelihood, rate and distortion of a run, with standard errors; all are of the same data.

    Arguments as for `check`; particles and shared as for `pyro_delta.diagnostics.bounds.evaluate`.
    """
    run, data, part, measured = _parts(run, data, split, images, root, seed, other_data)
    numbers = bounds.evaluate(
        run.vae, part, spec=data.spec, particles=particles, seed=seed, advance=advance, shared=shared
    )
    return numbers | measured | ({"is_control": True} if is_control(run.config) else {})


def diagnose(
    model: Callable[..., Any] | VAE | Run | str | Path,
    guide: Callable[..., Any] | None = None,
    data: Any = None,
    *,
    labels: Any = None,
    fit: Any = None,
    spec: Spec | None = None,
    params: Mapping[str, Any] | None = None,
    particles: int = 30,
    weighed: int = 200,
    told_samples: int = TOLD_SAMPLES,
    told_images: int = TOLD_IMAGES,
    seed: int = 0,
    advance: Advance = bounds.ignore,
) -> Diagnosis:
    """Looks at any VAE in Pyro or NumPyro: does it use its latents, and does a floor keep it from collapsing?

    Model and guide are run as they are, by their traces: latent and observed sites may have any names, in plates of the
    batch's size. They are not changed.

    Args:
        model: a Pyro model (a module, a function, or a method of a module), a NumPyro model (a function or an
            `nnx.Module`), or a model and its guide in one: a `VAE`, a run or its folder, or whatever has both as
            attributes.
        guide: its guide.
        data: what both are called with: a tensor or an array (N, …); a dict of them, whose keys model and guide name in
            their signatures; a torch data set; a split; or data with splits (`pyro_delta.data`), of which the test
            split is looked at and the probe is fitted to the training split; those of a run where None.
        labels: (N,), for a linear probe on samples of z; those of `data`, if it has some, where None.
        fit: data with labels that the probe is fitted to; without it, the first half of `data`.
        spec: of the data; without it bits are per number that the model observes.
        params: of a NumPyro model and guide that are functions, such as `svi.get_params(state)`, if they have some.
        particles: K of the importance-weighted bound, and of k̂; 1 leaves them out.
        weighed: data, from the start, that this bound is of.
        told_samples: M of what z tells the decoder, which can show at most ln M nats.
        told_images: random data that it is of.
        seed: of posterior samples, of the shuffle and of the random data.
        advance: called with the number of data just done: all data twice, and the passes of what z tells.

    Raises:
        UserError: if the programs cannot be run on the data, there are fewer than four data, or they hold numbers that
            are not finite or that the spec does not admit.
    """
    if isinstance(model, Run | str | Path):
        run = run_of(model)
        model, spec = run.vae, spec or run.spec
        data = (
            run.data()
            if data is None
            else told_alike(data, run.spec)
            if _has_splits(data)
            else as_those_of(data, run.spec)
        )
    vae = _pair(model, guide, params)
    if _has_splits(data):
        spec, fit, data = spec or data.spec, data.train if fit is None else fit, data.test
    if data is None:
        raise UserError("diagnose(model, guide, data) needs data; give what both are called with.")
    split, other = _split(data, labels), None if fit is None else as_split(fit)
    if spec is not None:
        check_answers(spec, "the data")
    at_least(0, seed=seed)
    for name, part in (("data", split), ("fit", other)):
        if part is not None:
            _check_values(part, spec, name)
    return diagnosed(
        vae,
        split,
        fit=other,
        spec=spec,
        particles=particles,
        weighed=weighed,
        told_samples=told_samples,
        told_images=told_images,
        seed=seed,
        advance=advance,
    )


def verify(
    vae: VAE | Run | str | Path,
    spec: Spec | None = None,
    seed: int = 0,
    extras: Mapping[str, Tensor] | None = None,
    *,
    batch: int = 32,
) -> Certificate:
    """The certificate of programs; arguments as for `pyro_delta.diagnostics.verify.verify`.

    Args:
        vae: model and guide, or a run of them, or its folder.
        spec: of the data; that of a run where None.
        seed: as there.
        extras: as there; where None, those of the data of a run, as `extras_of` gives them.
        batch: as there.

    Raises:
        UserError: as there, or if neither a run nor a spec is given.
    """
    if isinstance(vae, Run | str | Path):
        run = run_of(vae)
        extras = extras_of(run) if spec is None and extras is None else extras
        vae, spec = run.vae, spec or run.spec
    if spec is None:
        raise UserError("verify(vae) needs to know the data; call verify(vae, spec), or verify(run).")
    return certify(vae, spec, seed, extras, batch=batch)


def extras_of(run: Run) -> Mapping[str, Tensor] | None:
    """What goes with some of a run's data, where its guide hears of lengths; None where they cannot be read, too."""
    guide = run.vae.guide
    if "lengths" not in inspect.signature(getattr(guide, "forward", guide)).parameters:
        return None
    try:
        return examples(run.data().train).extras
    except UserError:
        return None


def _has_splits(data: Any) -> bool:
    return hasattr(data, "test") and hasattr(data, "train")


def _pair(model: Any, guide: Any, params: Mapping[str, Any] | None) -> Any:
    if guide is None and runs(model):
        return model
    if guide is None and hasattr(model, "model") and hasattr(model, "guide"):
        model, guide = model.model, model.guide
    if guide is None:
        raise UserError("diagnose(model, guide, data) needs a guide; give the one that the model is trained with.")
    for name, program in (("model", model), ("guide", guide)):
        if not callable(program):
            raise UserError(
                f"the {name} is a {type(program).__name__}, not callable; call diagnose(model, guide, data)."
            )
    if params is None and not any(_is_flax(program) or _is_numpyro(program) for program in (model, guide)):
        return VAE(model, guide)
    from pyro_delta.twin import require

    require()
    from pyro_delta.twin.diagnose import NumPyroVAE

    return NumPyroVAE(model, guide, params)


def _is_flax(program: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "flax" for cls in type(program).__mro__)


def _is_numpyro(program: Any, deep: int = 3) -> bool:
    """Whether a program is one of NumPyro: its handler or guide, or a function that uses it, itself or by another.

    Args:
        program: behind any `functools.partial`s and decorators.
        deep: functions that call one another.
    """
    while isinstance(program, partial):
        program = program.func
    if _is_of_numpyro(program):
        return True
    program = inspect.unwrap(program)
    function = getattr(program, "__func__", program)
    if not inspect.isfunction(function):
        function = inspect.getattr_static(type(program), "__call__", None)
    if not inspect.isfunction(function) or not deep:
        return False
    used = dis.get_instructions(function)
    names = [(i.opname, i.argval) for i in used if i.opname in ("LOAD_GLOBAL", "LOAD_DEREF", "IMPORT_NAME")]
    if any(opname == "IMPORT_NAME" and name.partition(".")[0] == "numpyro" for opname, name in names):
        return True
    values = {**function.__globals__, **_enclosed(function)}
    found = [values[name] for _, name in names if name in values]
    return any(_is_of_numpyro(value) or (callable(value) and _is_numpyro(value, deep - 1)) for value in found)


def _is_of_numpyro(value: Any) -> bool:
    """Whether it is NumPyro itself, or defined in it."""
    of = value if inspect.isfunction(value) or isinstance(value, type) else type(value)
    name = value.__name__ if inspect.ismodule(value) else of.__module__
    return str(name).partition(".")[0] == "numpyro"


def _enclosed(function: Any) -> dict[str, Any]:
    """What a function knows of those around it; what they have not said yet is left out."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):
            found[name] = cell.cell_contents
    return found


def _check_values(split: Split, spec: Spec | None, name: str) -> None:
    """Refuses data that any model would seem to have diverged on."""
    for key, values in split.extras.items():
        finite(values, f"{name}[{key!r}]")
    if isinstance(split.x, Stored):  # bytes, of which every one is admitted
        return
    if spec is None:
        finite(split.x, name)
    else:
        admitted(spec, split.x, name)


def _split(data: Any, labels: Any) -> Split:
    split = as_split(data, named=True)
    if labels is None:
        return split
    labels = labels_of(labels)
    if len(labels) != len(split):
        raise UserError(f"{len(labels)} labels do not fit {len(split)} data; give one for each.")
    return replace(split, labels=labels)


def _parts(
    run: Run | str | Path,
    data: str | Path | Data | Given | None,
    split: str,
    images: int | None,
    root: str | None,
    seed: int,
    other_data: bool,
) -> tuple[Run, Data, Split, dict[str, Any]]:
    """Run, data, the part of them that is looked at, and what is to be said of it."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    at_least(0, seed=seed)
    run = run_of(run)
    data = run.data(root, other=other_data) if data is None else run.in_its_terms(data, root)
    whole = getattr(data, split)
    measured = {
        "split": split,
        "split_images": len(whole),
        "seed": seed,
        "data_as_trained": run.trained_on(data),
        **run.facts,
    }
    part = subset(whole, images, seed)
    return run, data, part, measured | {"judged_digest": split_digest(part)}
