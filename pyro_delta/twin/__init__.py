"""The NumPyro twin: the same programs written a second time in NumPyro, JAX and Flax, as a witness of every number.

Its distributions and rates are written from the equations, its networks from `docs/architecture.md`, so that a mistake
in one backend is not a mistake in both. Importing this package loads no JAX; its modules do. They need the extra
`pyro-delta[twin]`, which `require` asks for in one sentence.
"""

from importlib.util import find_spec

from pyro_delta.errors import UserError


def require() -> None:
    """Refuse to go on without the extra.

    Raises:
        UserError: if NumPyro, JAX or Flax is not installed.
    """
    missing = [name for name in ("numpyro", "jax", "flax", "optax") if find_spec(name) is None]
    if missing:
        raise UserError(
            f"the NumPyro twin needs {' and '.join(missing)}; install the extra: pip install 'pyro-delta[twin]'."
        )
