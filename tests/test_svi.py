"""Plain `pyro.infer.SVI` and Pyro's other ways with the programs: every model of a process trains, or says why not."""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_delta.data.images import ImageSpec
from pyro_delta.data.sequences import TokenSpec
from pyro_delta.distributions import GaussianAR1
from pyro_delta.errors import UserError
from pyro_delta.guides import AntiCausalGuide, GRUGuide
from pyro_delta.inference.elbo import RateDistortionELBO
from pyro_delta.models import AR1Prior, DeltaVAE, GatedPixelCNNLikelihood, GRULikelihood
from pyro_delta.vae import VAE, local_parameters, localise, parameters_of

SPEC = ImageSpec(1, 8, 8, 17)
NET = {"channels": (6, 6), "row_blocks": (1, 1), "pixel_blocks": 1}
Made = tuple[nn.Module, nn.Module, Tensor]


def images(spec: ImageSpec = SPEC, seed: int = 0) -> Made:
    torch.manual_seed(seed)
    prior = AR1Prior(spec, dims=2, rate_nats=4.0)
    model = DeltaVAE(prior, GatedPixelCNNLikelihood(spec, prior, mixtures=2, **NET))
    return model, AntiCausalGuide(spec, prior, features=6, **NET), torch.randint(spec.levels, (4, *spec.shape))


def tokens() -> Made:
    torch.manual_seed(0)
    spec = TokenSpec(12, 5)
    prior = AR1Prior(spec, dims=2, length=6, rate_nats=3.0)
    model = DeltaVAE(prior, GRULikelihood(spec, prior, hidden=8))
    return model, GRUGuide(spec, prior, hidden=8), torch.randint(5, (4, 12))


def moved(made: Made, steps: int = 2, elbo: Trace_ELBO | None = None) -> tuple[int, int]:
    """Weights that a few steps of SVI move, and weights that there are."""
    model, guide, x = made
    weights = [*model.parameters(), *guide.parameters()]
    before = [weight.detach().clone() for weight in weights]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo or Trace_ELBO(max_plate_nesting=1))
    for _ in range(steps):
        svi.step(x)
    return sum(not torch.equal(a, b) for a, b in zip(before, weights, strict=True)), len(weights)


@pytest.mark.parametrize("make", [images, tokens])
def test_every_model_of_a_process_trains(make: Callable[[], Made]) -> None:
    for _ in range(3):
        found, there = moved(make())
        assert found == there
    with pyro.settings.context(module_local_params=True):
        found, there = moved(make())
        assert found == there


def test_a_copy_trains_apart_from_its_original() -> None:
    made = images()
    moved(made)
    copied = copy.deepcopy(made)
    before = copy.deepcopy(made[0].state_dict())
    found, there = moved(copied)
    assert found == there
    torch.testing.assert_close(made[0].state_dict(), before, rtol=0, atol=0)


def test_a_cleared_store_takes_the_same_weights_again() -> None:
    made = images()
    moved(made)
    pyro.clear_param_store()
    found, there = moved(made)
    assert found == there


def test_other_tensors_in_the_store_are_an_error() -> None:
    model, guide, x = images()
    moved((model, guide, x), steps=1)
    store = pyro.get_param_store()
    name = next(name for name, value in store.items() if value.dim() == 4)
    store[name] = torch.zeros_like(store[name])  # as loading a saved store does
    with pytest.raises(UserError, match=r"SVI would not train .*clear_param_store.*load_state_dict"):
        moved((model, guide, x), steps=1)


def test_weights_that_the_store_would_copy_are_an_error() -> None:
    model, guide, x = images()
    with pytest.raises(UserError, match="or it is not contiguous"):
        moved((model.to(memory_format=torch.channels_last), guide, x))


@pytest.mark.parametrize("make", [images, tokens])
def test_jit(make: Callable[[], Made]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of its tracer, and warns of what it takes as fixed
        found, there = moved(make(), elbo=JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True))
    assert found == there


def test_the_librarys_own_elbo_leaves_the_store_empty() -> None:
    model, guide, x = images()
    loss = RateDistortionELBO(max_plate_nesting=1)(model, guide)(x)
    loss.backward()
    assert all(weight.grad is not None for weight in (*model.parameters(), *guide.parameters()))
    assert Predictive(model, num_samples=2)(batch=3)["x"].shape == (2, 3, *SPEC.shape)
    assert len(pyro.get_param_store()) == 0


class Learned(PyroModule):
    """A prior of a user's own, as Pyro's modules are: its correlation is a constrained parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("starts", torch.arange(8))
        self.alpha = pyro.nn.PyroParam(torch.tensor([0.5, 0.6]), dist.constraints.interval(0.1, 0.9))

    def forward(self) -> GaussianAR1:
        return GaussianAR1(self.alpha, 8)


def test_pyro_modules_train_wherever_they_were_built() -> None:
    """Each keeps its own parameters, also where one was built outside the library's context; the store stays empty."""
    _, guide, x = images()
    with local_parameters():
        inside = Learned()
    for prior in (inside, Learned(), Learned()):
        vae = VAE(DeltaVAE(prior, images()[0].likelihood), guide)
        localise(vae)
        before = prior.alpha_unconstrained.detach().clone()
        optimizer = torch.optim.Adam(vae.parameters(), lr=0.1)
        with parameters_of(vae):
            RateDistortionELBO(max_plate_nesting=1)(vae.model, vae.guide)(x).backward()
        optimizer.step()
        assert not torch.equal(before, prior.alpha_unconstrained)
    assert len(pyro.get_param_store()) == 0


def test_a_second_pyro_module_under_svi_is_an_error_with_a_mend() -> None:
    """Pyro itself would give it the first one's parameter, by its name."""
    model, guide, x = images()
    model.prior = Learned()
    found, there = moved((model, guide, x))
    assert found == there
    model, guide, x = images()
    model.prior = Learned()
    with pytest.raises(UserError, match=r"SVI would not train 'prior.alpha_unconstrained' .*clear_param_store"):
        moved((model, guide, x))
    pyro.clear_param_store()
    model.prior = Learned()
    found, there = moved((model, guide, x))
    assert found == there


@pytest.mark.parametrize("spec", [SPEC, ImageSpec(3, 8, 8, 17)])
def test_a_datum_without_its_batch_axis_is_an_error(spec: ImageSpec) -> None:
    model, guide, x = images(spec)
    for program in (model, guide):
        with pytest.raises(UserError, match=r"give it a batch axis, as x\[None\] has one"):
            program(x[0])
    model, guide, x = tokens()
    for program in (model, guide):
        with pytest.raises(UserError, match="give it a batch axis"):
            program(x[0])


@pytest.mark.parametrize("make", [images, tokens])
def test_arrays_are_taken(make: Callable[[], Made]) -> None:
    model, guide, x = make()
    elbo = RateDistortionELBO(max_plate_nesting=1)
    values = []
    for given in (x, np.asarray(x)):
        torch.manual_seed(0)
        values.append(elbo(model, guide)(given).item())
    assert values[0] == values[1]
