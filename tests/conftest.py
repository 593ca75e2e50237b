"""What every test starts from: fixed seeds, an empty parameter store, validation on, float32 in torch and JAX."""

import os
import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pyro
import pytest
import torch

# JAX's programs are small here, and compiling them is most of their time. To be said before JAX starts, which ends the
# process at a flag that it does not know: JAX 0.10 knows the second, 0.12 does not.
QUICK = "--xla_backend_optimization_level=0"
with suppress(PackageNotFoundError):
    QUICK += " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
os.environ.setdefault("XLA_FLAGS", QUICK)


@pytest.fixture(autouse=True, scope="session")
def own_user_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The runs of tests are not noted among the user's own, on Linux; processes that tests start inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("user")))
        yield


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    # Validation is asserted again for each test because `module.compile()` switches it off for the whole process.
    pyro.enable_validation(True)
    torch.distributions.Distribution.set_default_validate_args(True)
    pyro.clear_param_store()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    # Without a GPU, torch.manual_seed writes down the stack of every call for when there is one.
    (torch if torch.cuda.is_available() else torch.default_generator).manual_seed(0)
    torch.set_default_dtype(torch.float32)
    if jax := sys.modules.get("jax"):  # a page's or an example's own setting is one of the process
        jax.config.update("jax_enable_x64", False)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
