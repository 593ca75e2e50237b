"""All checks of a combination of programs, and what they certify."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from pyro_delta.data.condition import some_conditions
from pyro_delta.data.spec import check_answers
from pyro_delta.diagnostics import table
from pyro_delta.diagnostics.trace import seeded, trace
from pyro_delta.diagnostics.verify.case import (
    CLASSES,
    COUNT,
    Case,
    Finding,
    apart,
    batch_norms,
    passes_on,
    with_every_class,
)
from pyro_delta.diagnostics.verify.causality import check_conditioning, check_guide, check_network, sweep
from pyro_delta.diagnostics.verify.distributions import check_normalised, check_posterior, check_prior, check_support
from pyro_delta.diagnostics.verify.gradient import check_gradient
from pyro_delta.diagnostics.verify.rate import check_rate
from pyro_delta.diagnostics.verify.sites import (
    DRAWN,
    MODES,
    Found,
    after_calls,
    as_drawn,
    check_sites,
    in_single_precision,
)
from pyro_delta.errors import UserError, in_a_line
from pyro_delta.protocol import Spec
from pyro_delta.vae import VAE, copied, owner_of

T = TypeVar("T")

RESTS_ON = ("committed rate", "sites", "normalisation", "causality of the network")
"""Checks that must have been made for a certificate; none of the others may have failed."""


MARKS = {True: "ok", False: "FAIL", None: "–"}
"""Of checks that passed, that failed, and that could not be made."""


@dataclass(frozen=True)
class Certificate:
    """All findings, and what they certify.

    Attributes:
        findings: in order.
        delta_nats: the committed rate, if it is certified: no check failed, and those that it rests on were made.
        certified_by: "by formula", "by type" or "by probing, up to 27 nats"; None if nothing is certified.
        guarantee: of which rate it is the least; None if nothing is certified.
    """

    findings: tuple[Finding, ...]
    delta_nats: float | None
    certified_by: str | None = None
    guarantee: str | None = None

    def asdict(self) -> dict[str, Any]:
        """Plain values, as `pyro-delta verify --json` prints them."""
        checks = [{"name": f.name, "passed": f.passed, "found": f.found} for f in self.findings]
        return {
            "passed": self.failure is None,
            "delta_nats": self.delta_nats,
            "certified_by": self.certified_by,
            "guarantee": self.guarantee,
            "checks": checks,
        }

    def __str__(self) -> str:
        """A line for each check, as `pyro-delta verify` prints them."""
        return "\n".join(f"{mark:4}  {name:30}  {found}" for mark, name, found in self._rows())

    def _repr_html_(self) -> str:
        certified = None if self.delta_nats is None else f"δ = {self.delta_nats:.6g} nats {self.certified_by}"
        return table.html(certified or "nothing is certified", self._rows(), self.failure or self.lack or "")

    def _rows(self) -> list[table.Row]:
        return [(MARKS[finding.passed], finding.name, finding.found) for finding in self.findings]

    @property
    def failure(self) -> str | None:
        """The first check that failed, in a sentence; None if none did."""
        failed = [finding for finding in self.findings if finding.passed is False]
        return f"verify failed: {failed[0].name}: {failed[0].found}." if failed else None

    @property
    def lack(self) -> str | None:
        """Why nothing is certified although no check failed, in a sentence; None if something is."""
        if self.failure or self.delta_nats is not None:
            return None
        open_ = [finding for finding in self.findings if finding.name in RESTS_ON and finding.passed is None]
        return f"nothing is certified: {open_[0].name}: {open_[0].found}."


def verify(
    vae: VAE, spec: Spec, seed: int = 0, extras: Mapping[str, Tensor] | None = None, *, batch: int = 32
) -> Certificate:
    """Checks rate, sites, distributions, causality, support and gradients of programs for data of `spec`.

    Args:
        vae: model and guide; they are copied, not changed.
        spec: of the data.
        seed: of weights, data and noise.
        extras: what goes with `COUNT` data in a batch, by name, for programs that take it; without it, what data of
            the spec are conditioned on is made up. Where that is a class, one datum of each of the first `CLASSES`
            classes is tried.
        batch: data in a batch of the training to come; the programs are tried with 1, those data and so many.

    Raises:
        UserError: for a malformed spec, or programs that cannot be copied or cannot be run on data of it.
    """
    check_answers(spec, "the data")
    extras = with_every_class(spec, extras or some_conditions(spec, COUNT), CLASSES)
    for name, program in (("model", vae.model), ("guide", vae.guide)):
        if not isinstance(program, nn.Module) and owner_of(program) is None:
            raise UserError(
                f"the {name} is a {type(program).__name__}, whose weights cannot be copied and drawn anew; give a "
                "torch.nn.Module, or a method of one."
            )
    for name, weight in vae.named_parameters():
        if isinstance(weight, UninitializedParameter):
            raise UserError(
                f"the weight {name} has no shape yet; call model and guide on a batch once, and verify then."
            )
    with _copied(), apart(vae, double=False):
        seeded(seed)
        single = Case(vae, spec, extras, batch, double=False)
        single.batch_norms = _tried(single)
        single = _faster(single)
        singles = in_single_precision(single)
        swept = _made(partial(sweep, single), lambda words: None)  # double precision fails, too, and says so
        drawn = _made(partial(as_drawn, single), _undrawn)
        later = _made(partial(after_calls, single), lambda words: None)  # double precision fails, too, and says so
    with _copied(), apart(vae):
        seeded(seed)
        case = Case(vae, spec, extras, batch)
        case.batch_norms = _tried(case)
        title = RESTS_ON[0]
        rate, known = _made(partial(check_rate, title, case), lambda words: (_failed(title, words), None))
        case = _faster(case)
        checks: dict[str, Callable[[str, Case], Finding]] = {
            "distribution of the prior": check_prior,
            "distribution of the posterior": check_posterior,
            "support": check_support,
            "normalisation": check_normalised,
            "causality of the network": lambda title, case: check_network(title, case, swept),
            "causality of the conditioning": check_conditioning,
            "causality of the guide": check_guide,
            "gradient": check_gradient,
            "sites": lambda title, case: check_sites(title, case, singles, drawn, later),
        }
        made = (_made(partial(check, title, case), partial(_failed, title)) for title, check in checks.items())
        findings = (rate, *made)
    failed = any(finding.passed is False for finding in findings)
    if failed or any(finding.passed is None for finding in findings if finding.name in RESTS_ON):
        known = None
    if known is None:
        return Certificate(findings, None)
    return Certificate(findings, known.throughout, known.way, known.guarantee)


@contextmanager
def _copied() -> Iterator[None]:
    """Says what is the matter with programs that cannot be copied."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if "deepcopy" not in str(error) and "pickle" not in str(error):
            raise
        raise UserError(
            f"the programs cannot be copied ({in_a_line(error)}); keep tensors in parameters and buffers, and nothing "
            "else that copy.deepcopy refuses."
        ) from error


@torch.no_grad()
def _tried(case: Case) -> tuple[str, ...]:
    """Runs the programs once, and says the guide's batch normalisations; what they fail with is the user's to mend."""
    try:
        trace(case.vae, case.batch(case.x))
        return batch_norms(case.vae, case.batch(case.x))
    except Exception as error:
        if passes_on(error):
            raise
        raise UserError(f"model and guide cannot be run on data of {case.spec}: {in_a_line(error)}.") from error


@torch.no_grad()
def _faster(case: Case) -> Case:
    """The case with its convolutions' weights in channels_last, up to four times as fast, if the programs run so."""
    other = copy.copy(case)
    other.vae = copied(case.vae)
    for weight in other.vae.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        trace(other.vae, other.batch(other.x))
    except RuntimeError:  # a view needs the layout that was
        return case
    return other


def _made(make: Callable[[], T], otherwise: Callable[[str], T]) -> T:
    """What `make` gives or, where a program fails in it, what is made of what it fails with, in words."""
    try:
        return make()
    except Exception as error:
        if passes_on(error):
            raise
        return otherwise(in_a_line(error))


def _failed(title: str, words: str) -> Finding:
    """A check that the programs do not let be made has failed."""
    return Finding(title, False, f"it cannot be checked: {words}")


def _undrawn(words: str) -> dict[str, Found]:
    return dict.fromkeys(MODES, (False, f"the guide cannot draw for a batch of {DRAWN}: {words}"))
