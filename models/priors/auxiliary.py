"""The auxiliary prior as a program: what the posteriors of a trained model look like taken together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_delta.distributions import SequentialGaussian
from pyro_delta.errors import UserError
from pyro_delta.protocol import Prior


class LSTMNetwork(nn.Module):
    """Parameters of the next latent step from those before it: one LSTM layer and a linear one.

    The linear layer starts at zero, so that one component starts as N(0, 1) at every step, the marginal of AR(1). Of
    several, equal ones would stay equal for ever: their means start apart, drawn from N(0, ½²).

    Args:
        dims: d, size of a latent step.
        hidden: size of the LSTM's state.
        mixtures: K, components of every step.
    """

    def __init__(self, dims: int, *, hidden: int, mixtures: int) -> None:
        super().__init__()
        self.dims, self.mixtures = dims, mixtures
        self.lstm = nn.LSTM(dims, hidden, batch_first=True)
        self.out = nn.Linear(hidden, SequentialGaussian.parameter_count(dims, mixtures))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if mixtures > 1:
            with torch.no_grad():
                self.out.bias[mixtures - 1 :][: mixtures * dims].normal_(std=0.5)

    def forward(self, previous_btd: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The z before each step (B, t, d), and the state left by earlier ones → parameters (B, t, P), new state."""
        hidden_bth, state = self.lstm(previous_btd.to(self.out.weight.dtype), state)
        return self.out(hidden_bth), state


class LSTMPrior(nn.Module):
    """The auxiliary prior of the δ-VAE paper [1], p_aux(z_t | z_{<t}) from a single-layer LSTM with Gaussian outputs.

    A prior program like any other, so that a model may generate from it and be scored with it
    (`pyro_delta.vae.with_prior`). It is trained on samples of q(z | x) alone
    (`pyro_delta.inference.auxiliary`), never as a part of the model: a prior that learns to follow the posterior
    commits no rate.

    NOTE: the paper gives neither the size of its LSTM nor its initial weights, and has no mixtures.

    Args:
        prior: the program it stands in for: gives n, d and `starts`.
        hidden: size of the LSTM's state.
        mixtures: diagonal Gaussians that are mixed at every step; 1 is the paper's single one.

    Raises:
        UserError: if `hidden` or `mixtures` is below 1.

    References:
        1. A. Razavi et al., "Preventing Posterior Collapse with δ-VAEs", ICLR 2019.
    """

    starts: Tensor

    def __init__(self, prior: Prior, *, hidden: int = 128, mixtures: int = 1) -> None:
        super().__init__()
        for name, value in (("hidden", hidden), ("mixtures", mixtures)):
            if value < 1:
                raise UserError(f"LSTMPrior got {name} {value}; give a whole number, 1 or more.")
        self.length, dims = prior().event_shape
        self.register_buffer("starts", prior.starts.clone())
        self.network = LSTMNetwork(dims, hidden=hidden, mixtures=mixtures)

    def forward(self) -> SequentialGaussian:
        """The prior over z, event shape (n, d)."""
        return SequentialGaussian(self.network, self.length)
