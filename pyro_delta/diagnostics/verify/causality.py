"""What may depend on what: the order of the data, the starts of the latents, and one datum apart from another.

By derivatives in double precision, which see the smallest leak, and by what changes when what must not be seen is
replaced: a look-up or a rounding has no derivative. After each replacement *all* outputs that must not move are
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from pyro_delta.diagnostics.trace import Drawn, observed, posteriors, seeded
from pyro_delta.diagnostics.verify.case import (
    Case,
    Finding,
    as_trained,
    first,
    in_both_modes,
    moved,
    replacements,
)
from pyro_delta.diagnostics.verify.distributions import by_type, unwrapped
from pyro_delta.distributions.any_gaussian import title_of
from pyro_delta.distributions.scored import as_scored
from pyro_delta.vae import VAE

TARGETS = 12
"""Groups of numbers (besides the corners), positions and latent steps whose derivatives are taken."""
CUTS = 1024
"""Groups of numbers from which on the data are replaced: all of them, if there are no more; of longer data fewer, so
that as many numbers are looked at, …"""
FEWEST = 64
"""… but so many at least."""
CHUNK = 16
"""Data in a batch of those, …"""
COPIES = 4
"""… and of the data whose derivatives are taken at once."""


# --- The likelihood's network ---


def check_network(title: str, case: Case, swept: str | None) -> Finding:
    """What is said of a group of numbers does not depend on itself or later ones in their order, nor on other data.

    Args:
        title: of the finding.
        case: in double precision.
        swept: what `sweep` found in single precision, in which it is twice as fast.
    """
    if _outputs(case, case.vae, case.x, case.latents()) is None:
        return Finding(title, None, _not_inside(case))
    z = case.latents()
    for mode, vae in in_both_modes(case, lambda vae: look(case, vae, case.x, z)[0]):
        plain, strict = look(case, vae, case.x, z)
        found = _derivatives_of_groups(case, vae, z, strict) or _other_data(case, vae, z, plain)
        for base in range(case.count):  # random, blank and full, and of other classes
            found = found or _cut(case, vae, z, base, _targets(case), strict, fills=1 if base else 3)
        if found:
            return Finding(title, False, f"{found} ({mode})")
    if swept is not None:
        return Finding(title, False, swept)
    count, groups = len(_cuts(case)), len(case.group_place)
    return Finding(title, True, f"strictly in the order of the data at {count} of {groups} places, both modes")


@torch.no_grad()
def sweep(case: Case) -> str | None:
    """Replaces all that comes from a group on, for every group; the first fault, if there is one."""
    z = case.latents()
    if _outputs(case, case.vae, case.x, z) is None:
        return None
    for mode, vae in in_both_modes(case, lambda vae: look(case, vae, case.x, z)[0]):
        _, strict = look(case, vae, case.x[:1], first(z, 1))
        if found := _cut(case, vae, z, 0, _cuts(case), strict, fills=1):
            return f"{found} ({mode})"
    return None


def _derivatives_of_groups(case: Case, vae: VAE, z: Mapping[str, Tensor], strict: bool) -> str | None:
    """The first group, of some, that has a derivative by what it must not see."""
    targets = torch.tensor(_targets(case))
    for group in targets[[0, -1]].tolist():
        leaf = _leaf(case.x.double())
        grad = gradient_of(partial(_of_group, case, vae, z, group), leaf)
        if grad is None:
            return None
        if (grad[1:] != 0).any():
            return f"{case.name(group)} of one {case.what} sees other {case.others}"
    for chosen in targets.split(COPIES):
        leaf = _leaf(copies(case.x[0].double(), len(chosen)))
        grad = gradient_of(partial(_of_groups, case, vae, _of_first(z, len(chosen)), chosen), leaf)
        if grad is None:
            return None
        late = _like(chosen, case.order) <= case.order if strict else _like(chosen, case.order) < case.order
        seen = (grad != 0) & late
        if seen.any():
            row = int(seen.flatten(1).any(1).nonzero()[0])
            return f"{case.name(int(chosen[row]))} sees {case.name(int(case.order[seen[row]].min()))}"
    return None


def _other_data(case: Case, vae: VAE, z: Mapping[str, Tensor], plain: Tensor) -> str | None:
    for fill in replacements(case):
        mixed, _ = look(case, vae, torch.cat((case.x[:1], fill[1:])), z)
        if moved(plain[0], mixed[0]).any():
            return f"one {case.what} changes with other {case.others}"
    return None


def _cut(
    case: Case, vae: VAE, z: Mapping[str, Tensor], base: int, cuts: list[int], strict: bool, fills: int
) -> str | None:
    """Replaces all that comes from a group on, for each of the cuts; what is said up to there must not move."""
    groups = torch.arange(len(case.group_place))
    one = {name: value[base : base + 1] for name, value in z.items()}
    alone, _ = look(case, vae, case.x[base : base + 1], one, like=base)
    for fill in replacements(case)[:fills]:
        for start in range(0, len(cuts), CHUNK):
            chosen = torch.tensor(cuts[start : start + CHUNK])
            x = copies(case.x[base], len(chosen))
            latents = {name: copies(value[base], len(chosen)) for name, value in z.items()}
            after = case.order >= _like(chosen, case.order) if strict else case.order > _like(chosen, case.order)
            # Noise, such as that of dropout, is the same for a batch of the same size.
            plain = look(case, vae, x, latents, like=base)[0] if vae.training else alone
            changed, _ = look(case, vae, torch.where(after, fill[base].to(x.dtype), x), latents, like=base)
            still = int(chosen.max()) + 1  # those after may all move
            hidden = groups[:still] <= chosen[:, None]
            before, changed = plain[:, :still], changed[:, :still]
            if ((before - changed).abs().amax(-1) <= case.same)[hidden].all():
                continue
            off = moved(before.expand_as(changed), changed, case.same).any(-1) & hidden
            if off.any() and not vae.training:
                # One datum and many may go through other kernels, whose roundings differ: ask again of as many.
                before = look(case, vae, x, latents, like=base)[0][:, :still]
                off = moved(before, changed, case.same).any(-1) & hidden
            if off.any():
                row, group = (int(i) for i in off.nonzero()[0])
                cut = int(chosen[row])
                if group == cut:
                    return f"{case.name(group)} changes with {'itself or later ones' if strict else 'later ones'}"
                return f"{case.name(group)} changes with {case.name(cut)} or later ones"
    return None


def copies(one: Tensor, count: int) -> Tensor:
    """A batch of `count` times the same."""
    return one.expand(count, *one.shape)


def _of_first(z: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Latents of `count` copies of the first datum."""
    return {name: copies(value[0], count) for name, value in z.items()}


def _like(cuts: Tensor, order: Tensor) -> Tensor:
    return cuts.reshape(-1, *[1] * order.dim())


def _cuts(case: Case) -> list[int]:
    """Every group where there are no more than `CUTS`; else some at random, and those of `_targets`."""
    count = len(case.group_place)
    if count <= CUTS:
        return list(range(count))
    generator = torch.Generator().manual_seed(count)
    some = torch.randperm(count, generator=generator)[: max(FEWEST, CUTS**2 // count)]
    return sorted({*some.tolist(), *_targets(case)})


def _spread(count: int) -> set[int]:
    """At most `TARGETS` of `count` things, the first and the last among them."""
    return set(torch.linspace(0, count - 1, min(TARGETS, count)).long().tolist()) if count else set()


def _targets(case: Case) -> list[int]:
    """Groups spread over the datum, and the ends of its first and last position."""
    count = len(case.group_place)
    ends = []
    for place in (int(case.group_place.min()), int(case.group_place.max())):
        here = (case.group_place == place).nonzero()
        ends += [int(here[0]), int(here[-1])]
    return sorted(_spread(count) | set(ends))


# --- What it makes of the latents ---


def check_conditioning(title: str, case: Case) -> Finding:
    """What is said at a position depends on z_t only if starts[t] ≤ position, unless conditioning is declared full.

    What a likelihood does to z before its network sees it counts as well.
    """
    starts, z = case.starts, case.latents()
    if starts is None:
        return Finding(title, None, "not checked: the prior says no starts, so every position may use all of z")
    if len(z) > 1:
        return Finding(title, None, f"not checked: the starts are of one of the latent sites {', '.join(z)}")
    if _outputs(case, case.vae, case.x, z) is None:
        return Finding(title, None, _not_inside(case))
    ((name, z_bnd),) = z.items()
    likelihood = getattr(case.vae.model, "likelihood", None)
    full = getattr(likelihood, "conditioning", "causal") == "full"
    # Without a likelihood that declares it, what looks ahead may be meant to.
    passed, words = (None, ", and the model has no likelihood that declares it") if likelihood is None else (False, "")
    used = torch.zeros(len(starts), dtype=torch.bool)
    other = z_bnd + 3 * torch.randn_like(z_bnd)
    derived = torch.tensor(sorted(_spread(case.spec.positions)))
    for mode, vae in in_both_modes(case, lambda vae: look(case, vae, case.x, z)[0]):
        plain, _ = look(case, vae, case.x, z)
        for place in derived[[0, -1]].tolist():
            grad = gradient_of(partial(_of_place, case, vae, name, case.group_place == place), _leaf(z_bnd))
            if grad is not None and (grad[1:] != 0).any():
                where = f"{case.where} {place} of one {case.what}"
                return Finding(title, False, f"{where} sees latents of other {case.others} ({mode})")
        for chosen in derived.split(COPIES):
            grad = gradient_of(partial(_of_places, case, vae, name, chosen), _leaf(copies(z_bnd[0], len(chosen))))
            for place, of_place in zip(chosen.tolist(), (grad if grad is not None else ()), strict=False):
                seen = (of_place != 0).any(-1)
                used |= seen
                early = (seen & (starts > place)).nonzero()
                if early.numel() and not full:
                    t = int(early[0])
                    found = f"{case.where} {place} sees z_{t + 1}, which starts at {case.where} {starts[t]} ({mode})"
                    return Finding(title, passed, found + words)
        for base in () if full else range(case.count):  # random, blank and full, and of other classes
            places = derived if base else torch.arange(int(starts.max()))
            if (least := _later(case, vae, name, z_bnd, other, base, places)) is not None:
                found = f"{case.where} {least} changes with latents of later {case.where}s ({mode})"
                return Finding(title, passed, found + words)
        mixed, _ = look(case, vae, case.x, {name: torch.cat((z_bnd[:1], other[1:]))})
        if moved(plain[0], mixed[0]).any():
            return Finding(title, False, f"one {case.what} changes with latents of other {case.others} ({mode})")
    if not used.any():
        return Finding(title, True, f"no {case.where} sees any latent: a latent-free likelihood")
    rule = (
        f"every {case.where} sees all of z" if full else f"{case.where}s see {{z_t : starts[t] ≤ {case.where}}} alone"
    )
    return Finding(title, True, rule)


def _later(case: Case, vae: VAE, name: str, z: Tensor, other: Tensor, base: int, places: Tensor) -> int | None:
    """The first position that changes when latents that start after it are replaced, for each of the places."""
    assert case.starts is not None
    for chosen in places.split(CHUNK) if len(places) else ():  # of none, torch gives one part, of none
        x, same = copies(case.x[base], len(chosen)), copies(z[base], len(chosen))
        later = (case.starts > chosen[:, None])[..., None]
        plain, _ = look(case, vae, x, {name: same}, like=base)
        changed, _ = look(case, vae, x, {name: torch.where(later, other[base], same)}, like=base)
        off = moved(plain, changed).flatten(2).any(-1) & (case.group_place <= chosen[:, None])
        if off.any():
            return int(case.group_place[off.any(0)].min())
    return None


# --- The guide ---


def check_guide(title: str, case: Case) -> Finding:
    """The posterior of z_t depends, if anti-causal, on no position before starts[t]; and on no other datum."""
    causality, starts = getattr(case.vae.guide, "causality", None), case.starts
    several = len(case.latents()) > 1
    if starts is None or causality is None or several:
        lacks = "guide declares no causality" if causality is None else "prior says no starts"
        lacks = "starts are of one of several latent sites" if several else lacks
        starts, causality = torch.zeros(0, dtype=torch.int64), "none"
        note = f"not checked over positions: the {lacks}"
    else:
        note = ""
    sees_first = torch.zeros(case.spec.positions, dtype=torch.bool)
    anti_causal, differentiable = causality == "anti_causal", True
    fills, z, derived = replacements(case), case.latents(), _spread(len(starts))
    for mode, vae in in_both_modes(case, lambda vae: _moments(case, vae, z, case.x, whole=True)):
        plain = _moments(case, vae, z, case.x)
        across = not (case.in_the_mean and vae.training)  # batch statistics are what its guarantee is of
        for t in range(len(starts)):
            above = case.place < starts[t]
            grad = None
            if t in derived:
                grad = gradient_of(partial(_of_step, case, vae, z, t), _leaf(case.x.double()))
                differentiable = differentiable and grad is not None
            if grad is not None:
                if across and (grad[1:] != 0).any():
                    return Finding(title, False, f"z_{t + 1} of one {case.what} sees other {case.others} ({mode})")
                seen = torch.zeros(case.spec.positions, dtype=torch.bool)
                seen[case.place[grad[0] != 0]] = True
                if t == 0:
                    sees_first = seen
                early = case.place[(grad[0] != 0) & above]
                if early.numel() and anti_causal:
                    where = f"{case.where} {int(early.min())}, before its start at {case.where} {starts[t]}"
                    return Finding(title, False, f"z_{t + 1} sees {where} ({mode})")
            for fill in fills[: None if t in derived else 1] if anti_causal and above.any() else ():
                changed = _moments(case, vae, z, torch.where(above, fill, case.x))
                off = moved(plain, changed).flatten(2).any(-1).any(0) & (starts >= starts[t])
                if off.any():
                    step = int(off.nonzero()[0])
                    before = f"{case.where}s before its start at {case.where} {starts[step]}"
                    return Finding(title, False, f"z_{step + 1} changes with {before} ({mode})")
        for fill in fills if across else ():
            mixed = _moments(case, vae, z, torch.cat((case.x[:1], fill[1:])), whole=True)
            if moved(_moments(case, vae, z, case.x, whole=True)[0], mixed[0]).any():
                return Finding(title, False, f"z of one {case.what} changes with other {case.others} ({mode})")
    if note:
        return Finding(title, None, note)
    kind = "anti-causal" if anti_causal else "not causal, as declared"
    if case.coupled:
        found = (
            f"{kind}, but for batch statistics: in training mode z of one {case.what} depends on the {case.others} of "
            "its batch, and what is committed is of each given its batch"
        )
        return Finding(title, None, found)
    if not differentiable:
        return Finding(
            title, True, f"{kind}, by {len(fills)} replacements of what is not to be seen (there is no derivative)"
        )
    return Finding(title, True, f"{kind}; z_1 sees {int(sees_first.sum())} of {len(sees_first)} {case.where}s")


def _moments(
    case: Case, vae: VAE, z: Mapping[str, Tensor], x: Tensor, *, gradient: bool = False, whole: bool = False
) -> Tensor:
    """What tells the posteriors of data from others, (B, n, …) of the only site, or with `whole` (B, K) of all."""
    with _same_noise(vae, gradient):
        parts = [_told(drawn, z[name]) for name, drawn in posteriors(vae, case.batch(x), z).items()]
    found = torch.cat([part.reshape(len(x), -1) for part in parts], 1) if whole else parts[0]
    return found if gradient else found.detach()


def _told(drawn: Drawn, z: Tensor) -> Tensor:
    """Moments of a posterior, (B, …), or its density of fixed latents where it has none."""
    moments = drawn.moments()
    if not moments or moments["mean"].isnan().all():
        return drawn.log_q
    parts = (moments["mean"], moments["scale"])
    return torch.cat(parts, dim=-1) if parts[0].dim() > 1 else torch.stack(parts, dim=-1)


# --- Looking ---


@contextmanager
def _same_noise(vae: VAE, gradient: bool) -> Iterator[None]:
    """The programs run as in their mode, with or without a gradient, and with the same noise at each call."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradient), as_trained(vae):
        seeded(0)
        yield


def _outputs(
    case: Case, vae: VAE, x: Tensor, z: Mapping[str, Tensor], like: int | None = None
) -> tuple[Tensor, bool] | None:
    """What the likelihood says of every group of numbers given those before it, (B, G, …), and how it must be read.

    Parameters at a group must depend on earlier groups alone; they are asked of a class that is known to make its
    probabilities of those. Log-probabilities depend on the group itself, too, so with those the second entry is False.
    Of a distribution that is independent over numbers the log-probability of fixed values is asked, through which what
    the model does with x shows. None if it tells of the whole alone.
    """
    distribution = unwrapped(observed(vae, case.batch(x, like), z)[0])
    has_terms = hasattr(distribution, "terms")
    if hasattr(distribution, "parameters_at") and (by_type(distribution) or not has_terms):
        found = distribution.parameters_at(x)
        return found.reshape(len(x), len(case.group_place), -1), True
    if has_terms:
        return distribution.terms(x).reshape(len(x), len(case.group_place), 1), False
    base: Distribution = distribution
    while isinstance(base, Independent):
        base = base.base_dist
    fixed = as_scored(base, case.x[:1].expand(len(x), *case.spec.shape))
    if by_type(base) and base.event_shape == torch.Size(case.spec.shape) != torch.Size():
        # One for all the numbers: what is said of fixed values may depend on nothing of the data.
        return base.log_prob(fixed).reshape(len(x), 1, 1).expand(-1, len(case.group_place), 1), True
    if base.batch_shape[len(base.batch_shape) - len(case.spec.shape) :] != torch.Size(case.spec.shape) or len(
        base.event_shape
    ):
        return None
    terms = base.log_prob(fixed).reshape(len(x), -1)
    groups = terms.new_zeros(len(x), len(case.group_place))
    return groups.index_add(1, case.order.reshape(-1), terms).unsqueeze(-1), True


def look(
    case: Case,
    vae: VAE,
    x: Tensor,
    z: Mapping[str, Tensor],
    gradient: bool = False,
    like: int | None = None,
) -> tuple[Tensor, bool]:
    """`_outputs` with the same noise at each call, such as that of dropout; `like` as for `Case.batch`."""
    with _same_noise(vae, gradient):
        found = _outputs(case, vae, x, z, like)
    assert found is not None
    return found if gradient else (found[0].detach(), found[1])


def _not_inside(case: Case) -> str:
    likelihood, _ = observed(case.vae, case.batch(case.x), case.latents())
    return (
        f"not checked: {title_of(likelihood)} tells the log-probability of the whole alone; give it parameters_at(x) "
        "or terms(x)"
    )


def _of_group(case: Case, vae: VAE, z: Mapping[str, Tensor], group: int, x: Tensor) -> Tensor:
    """What the likelihood says of a group of the first datum, with a gradient by the data."""
    return look(case, vae, x, z, True)[0][0, group]


def _of_groups(case: Case, vae: VAE, z: Mapping[str, Tensor], groups: Tensor, x: Tensor) -> Tensor:
    """What it says of one group of each of some copies of the first datum."""
    return look(case, vae, x, z, True, like=0)[0][torch.arange(len(groups)), groups]


def _of_place(case: Case, vae: VAE, name: str, here: Tensor, z: Tensor) -> Tensor:
    """What it says at a position of the first datum, with a gradient by the latents."""
    return look(case, vae, case.x, {name: z}, True)[0][0, here]


def _of_places(case: Case, vae: VAE, name: str, places: Tensor, z: Tensor) -> Tensor:
    """What it says at one position of each of some copies of the first datum, with a gradient by the latents."""
    x = copies(case.x[0], len(places))
    return look(case, vae, x, {name: z}, True, like=0)[0][case.group_place == places[:, None]]


def _leaf(values: Tensor) -> Tensor:
    """What a derivative is taken by."""
    return values.clone().requires_grad_()


def _of_step(case: Case, vae: VAE, z: Mapping[str, Tensor], t: int, x: Tensor) -> Tensor:
    """What the guide says of a latent step of the first datum, with a gradient by the data."""
    return _moments(case, vae, z, x, gradient=True)[0, t]


def gradient_of(function: Callable[[Tensor], Tensor], leaf: Tensor) -> Tensor | None:
    """Gradient of what a function gives for `leaf`, along a random direction; None where there is no derivative."""
    try:
        out = function(leaf)
    except (RuntimeError, IndexError, TypeError):
        return None  # tokens that index a table cannot be real numbers
    if not out.requires_grad:
        return None
    (grad,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), leaf, allow_unused=True)
    return grad
