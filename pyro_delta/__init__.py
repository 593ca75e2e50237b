"""δ-VAEs as probabilistic programs in Pyro.

    import pyro_delta

    run = pyro_delta.train({"prior.rate_nats": 4.0}, data="digits", out="runs/first")
    print(pyro_delta.check(run))
    print(pyro_delta.diagnose(my_model, my_guide, x))     # any VAE in Pyro or NumPyro

Importing this package is cheap: torch and Pyro are loaded with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_delta.api.judge import check, diagnose, evaluate, verify
    from pyro_delta.api.train import resume, train, train_control
    from pyro_delta.data.named import load as load_data
    from pyro_delta.diagnostics.diagnose import Diagnosis
    from pyro_delta.distributions import GaussianAR1
    from pyro_delta.inference.run import Run, load
    from pyro_delta.rate import committed_rate
    from pyro_delta.report.comparison import compare
    from pyro_delta.report.written import write_report
    from pyro_delta.share.export import export

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "GaussianAR1",
    "Run",
    "check",
    "committed_rate",
    "compare",
    "diagnose",
    "evaluate",
    "export",
    "load",
    "load_data",
    "resume",
    "train",
    "train_control",
    "verify",
    "write_report",
]

_PLACES = {
    "Diagnosis": "diagnostics.diagnose:Diagnosis",
    "GaussianAR1": "distributions:GaussianAR1",
    "Run": "inference.run:Run",
    "check": "api.judge:check",
    "committed_rate": "rate:committed_rate",
    "compare": "report.comparison:compare",
    "diagnose": "api.judge:diagnose",
    "evaluate": "api.judge:evaluate",
    "export": "share.export:export",
    "load": "inference.run:load",
    "load_data": "data.named:load",
    "resume": "api.train:resume",
    "train": "api.train:train",
    "train_control": "api.train:train_control",
    "verify": "api.judge:verify",
    "write_report": "report.written:write_report",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
