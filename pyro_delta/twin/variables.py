"""What a module of the twin holds that is not learned."""

from flax import nnx


class Buffer(nnx.Variable):
    """A fixed array: torch's buffer. It is saved, and converts by its name."""
