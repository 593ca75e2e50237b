"""Muon: against the singular value decomposition, torch's own Muon and torch's AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_delta.build import build
from pyro_delta.config import load_preset
from pyro_delta.data.images import ImageSpec
from pyro_delta.inference.muon import Muon, matrices_of, orthogonalised


@pytest.mark.parametrize("shape", [(1, 6, 20), (1, 20, 6), (1, 12, 12), (3, 6, 20)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_values_go_to_about_one(shape: tuple[int, ...], scale: float) -> None:
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    spectrum = torch.linspace(0.2, 1.0, min(shape[-2:]), dtype=torch.float64)
    found = orthogonalised(scale * (left * spectrum) @ right)
    turned = left.mT @ found @ right.mT  # diagonal, if singular vectors stay as they are
    values = turned.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(turned, torch.diag_embed(values), rtol=0, atol=1e-12)
    assert values.min() > 0.65
    assert values.max() < 1.25


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 5, (2, 3)), nn.Flatten(), nn.Linear(40, 7), nn.SiLU(), nn.Linear(7, 3))


def gradients(net: nn.Module, x: Tensor) -> None:
    net(x).square().mean().backward()


def muon_of(net: nn.Module, **settings: float) -> Muon:
    matrices = set(matrices_of(net))
    groups = [
        {"params": [p for p in net.parameters() if (p in matrices) is chosen], "matrices": chosen}
        for chosen in (False, True)
    ]
    return Muon([group for group in groups if group["params"]], **settings)


def test_hooks_are_called_once_a_step() -> None:
    """Also where an Adam and an AdamW were made before, which torch gives hooks by changing their classes."""
    weight = nn.Parameter(torch.randn(3, 4))
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        kind([nn.Parameter(torch.zeros(1))])
    optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.1)
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert called == ["before", "after"]


def test_matrices_are_said_to_be_some_and_have_two_dimensions() -> None:
    """Groups of others are AdamW's; those without numbers are left."""
    weight, empty = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.empty(0, 4))
    optimizer = Muon([weight], lr=0.1)
    assert optimizer.param_groups[0]["matrices"] is False
    optimizer.add_param_group({"params": [empty], "matrices": True})
    weight.grad, empty.grad = torch.ones_like(weight), torch.zeros_like(empty)
    optimizer.step()
    assert "exp_avg" in optimizer.state[weight]
    with pytest.raises(ValueError, match=r"two dimensions or more, not the shape \(3,\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "matrices": True})
    assert len(optimizer.param_groups) == 2


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_the_first_step_of_a_matrix_is_that_of_torch_s_muon() -> None:
    """Which iterates in bfloat16, and forgets its momentum's start at zero: so the direction, and the first step."""
    layer = nn.Linear(40, 24, bias=False)
    theirs = nn.Linear(40, 24, bias=False)
    theirs.load_state_dict(layer.state_dict())
    before = layer.weight.detach().clone()
    x = torch.randn(64, 40)
    for net in (layer, theirs):
        gradients(net, x)
    muon_of(layer, lr=0.01, weight_decay=0.5).step()
    torch.optim.Muon([theirs.weight], lr=0.01, weight_decay=0.5, adjust_lr_fn="match_rms_adamw").step()
    change, expected = layer.weight - before, theirs.weight - before
    assert (change - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_rest_is_adamw_s_and_kernels_are_matrices(memory_format: torch.memory_format) -> None:
    net, reference = network().to(memory_format=memory_format), network()
    reference.load_state_dict(net.state_dict())
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    ours, theirs = muon_of(net, **settings), torch.optim.AdamW(reference.parameters(), fused=True, **settings)
    momentum: dict[str, Tensor] = {}
    for step in range(1, 4):
        x = torch.randn(6, 2, 3, 6)
        # The same gradients for both: from the weights of ours.
        reference.load_state_dict(net.state_dict())
        for each in (net, reference):
            each.zero_grad()
            gradients(each, x)
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        ours.step()
        theirs.step()
        for (name, p), (_, q) in zip(net.named_parameters(), reference.named_parameters(), strict=True):
            if p.dim() < 2:
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
                continue
            gradient = q.grad.flatten(1)
            momentum[name] = 0.95 * momentum.get(name, torch.zeros_like(gradient)) + 0.05 * gradient
            mixed = 0.95 * momentum[name] / (1 - 0.95 ** (step + 1)) + 0.05 * gradient / (1 - 0.95**step)
            change = orthogonalised(mixed[None])[0] * 0.2 * max(gradient.shape) ** 0.5
            expected = before[name] * (1 - 1e-2 * 0.1) - 1e-2 * change.view(p.shape)
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("maximize", [False, True])
def test_a_closure_makes_the_gradients_and_the_sign_is_adamw_s(maximize: bool) -> None:
    net, x = network(), torch.randn(6, 2, 3, 6)
    other = network()
    other.load_state_dict(net.state_dict())
    with_closure, without = muon_of(net, lr=0.01, maximize=maximize), muon_of(other, lr=0.01)

    def loss() -> Tensor:
        with_closure.zero_grad()
        value = net(x).square().mean()
        value.backward()
        return value

    for _ in range(3):
        expected = other(x).square().mean()
        without.zero_grad()
        ((-1 if maximize else 1) * expected).backward()
        without.step()
        torch.testing.assert_close(with_closure.step(loss), expected)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_parameters_without_a_gradient_stay() -> None:
    net = network()
    net[2].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = muon_of(net, lr=0.1)
    gradients(net, torch.randn(6, 2, 3, 6))
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - {"2.weight", "2.bias"}


@pytest.mark.parametrize("preset", ["cifar10-small", "cifar10-pixelsnail", "digits"])
def test_the_ends_of_shipped_networks_are_left_to_adam(preset: str) -> None:
    vae = build(load_preset(preset), ImageSpec(3, 32, 32, 256))
    matrices = set(matrices_of(vae))
    left = {name for name, p in vae.named_parameters() if p.dim() > 1 and p not in matrices}
    ends = {"stem_rows.conv", "stem_pixels.conv", "trunk.out", "trunk.place", "encoder.out", "attention.pixel"}
    others = {"position", "query", "attention.place", "step_scale", "step_shift"}  # and what multiplies no features
    for name in left:
        assert any(name.removesuffix(".weight").endswith(end) for end in ends | others), name
    assert sum(p.numel() for p in matrices) > 0.6 * sum(p.numel() for p in vae.parameters())
