"""What a training costs: weights, data and floating-point operations."""

from __future__ import annotations

import torch

from pyro_delta.data.splits import size_of
from pyro_delta.diagnostics.trace import trace
from pyro_delta.protocol import Batch
from pyro_delta.vae import VAE, copied


def parameters(vae: VAE) -> int:
    """Weights of model and guide that learn, each once."""
    return sum(weight.numel() for weight in vae.parameters() if weight.requires_grad)


def flops_per_datum(vae: VAE, batch: Batch) -> int:
    """Floating-point operations that a datum takes in a step of training, forwards and backwards.

    A multiplication and the addition that follows it are two. Those of matrix products, convolutions and attention are
    counted: what else there is hardly counts beside them.

    Args:
        vae: model and guide; a copy of them is run.
        batch: one or a few data.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode  # here, because it takes a while to import

    vae = copied(vae)
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    # Attention as matrix products: of the fused kernels of CPUs the counter knows nothing.
    attention, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), attention, counter:
        seen = trace(vae, batch)
        loss = (seen.log_q - seen.log_p - seen.log_px).sum()
        torch.autograd.grad(loss, weights, allow_unused=True)
    return counter.get_total_flops() // size_of(batch)
