"""On a CUDA device: training without host synchronisation, resuming, evaluation and sampling. Run with `-m cuda`."""

import copy
from pathlib import Path

import pyro
import pytest
import torch
from test_autoregressive_image import CASES, Case, Snail, noise
from test_inference import SPEC, config_of, toy_data, trainer_of

from pyro_delta.build import build
from pyro_delta.data.images import ImageSpec
from pyro_delta.diagnostics.bounds import evaluate
from pyro_delta.diagnostics.drawing import draw
from pyro_delta.distributions import AutoregressiveImage
from pyro_delta.distributions.images import replayed
from pyro_delta.distributions.images.replayed import Run, cuda_graph
from pyro_delta.inference.checkpoint import pack, unpack
from pyro_delta.inference.pyro_training import PyroTraining, Window
from pyro_delta.vae import VAE

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def programs_on(device: str) -> VAE:
    torch.manual_seed(0)
    return build(config_of(), SPEC).to(device)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_never_makes_the_host_wait() -> None:
    trainer = trainer_of(vae=programs_on("cuda"), clip=1.0, bf16=True, channels_last=True)
    window = Window(0.0)
    with pyro.validation_enabled(False):
        for step in range(3):
            torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step sets up the optimiser
            try:
                trainer.train_step(trainer.batches.batch(step))
                window.add(trainer.elbo)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    assert trainer.update.norm.isfinite()


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_training_goes_on_where_it_was(elbo: str, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    first = trainer_of(vae=programs_on("cuda"), elbo=elbo)
    first.run()
    kept = pack(first.state())
    first.train_step(first.batches.batch(first.step))
    second = PyroTraining(config_of(elbo=elbo), toy_data(), programs_on("cuda"), [].append)
    second.restore(unpack(kept, path), path)  # the random state, too
    second.train_step(second.batches.batch(second.step))
    torch.testing.assert_close(second.vae.state_dict(), first.vae.state_dict())


def test_numbers_agree_with_the_cpu() -> None:
    on_cpu = programs_on("cpu").double()
    on_cuda = copy.deepcopy(on_cpu).to("cuda")
    images = toy_data().test.x
    ours, theirs = (evaluate(vae, toy_data().test) for vae in (on_cuda, on_cpu))
    # the noise differs; the closed-form rate does not
    assert ours["rate_nats_mean"] == pytest.approx(theirs["rate_nats_mean"], rel=1e-9)
    z = torch.randn(len(images), 4, 2, dtype=torch.float64)
    with torch.no_grad():
        scores = [
            p.model.likelihood(z.to(d)).log_prob(images.to(d)).cpu() for p, d in ((on_cpu, "cpu"), (on_cuda, "cuda"))
        ]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-9, atol=1e-9)


def test_samples_come_from_the_device() -> None:
    assert draw(programs_on("cuda"), 3).shape == (3, *SPEC.shape)


@pytest.mark.parametrize("case", [CASES["4_levels"], Snail(ImageSpec(3, 9, 8, 256), length=3, layers=2)])
def test_rows_that_were_captured_draw_the_pictures_of_the_cpu(
    case: Case | Snail, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[bool] = []

    def captured(run: Run, device: torch.device) -> Run:
        replay = cuda_graph(run, device)
        replays.append(replay is not run)
        return replay

    monkeypatch.setattr(replayed, "cuda_graph", captured)
    network, z, uniforms = case.network(), case.z(5), noise(case, 5)
    expected = AutoregressiveImage(network, z).sample(uniforms=uniforms)
    image = AutoregressiveImage(network.to("cuda"), z.to("cuda"))
    assert torch.equal(image.sample(uniforms=uniforms.to("cuda")).cpu(), expected)
    assert replays == [True]
