"""`pyro-delta verify`."""

from __future__ import annotations

import click

from pyro_delta.cli.options import (
    dataset_option,
    json_option,
    new_root_option,
    preset_option,
    print_json,
    program_options,
    set_option,
    settings_of,
)
from pyro_delta.errors import CheckFailed, NothingCertified


@click.command()
@dataset_option
@new_root_option
@preset_option
@program_options
@set_option
@json_option
def verify(
    dataset: str | None,
    data_root: str | None,
    preset: str | None,
    prior: str | None,
    likelihood: str | None,
    guide: str | None,
    pairs: tuple[str, ...],
    as_json: bool,
) -> None:
    """What does a combination of prior, likelihood and guide commit, and is it causal? No training, and no data
    if their kind is known before.

    Exits with 1 if a check fails, with 3 if none does but nothing is certified. The data give shape and order; what
    they are filled with is random, blank and full, of each class where they are conditioned on one.

    \b
    pyro-delta verify --prior ar1 --guide anti_causal
    pyro-delta verify --prior my_prior.py:Prior --set prior.alpha=0.9
    """  # noqa: D301 (click wants the backspace itself)
    settings = settings_of(
        pairs,
        {
            "data.program": dataset,
            "data.root": data_root,
            "prior.program": prior,
            "likelihood.program": likelihood,
            "guide.program": guide,
        },
    )
    import torch

    from pyro_delta.build import build, load_data
    from pyro_delta.call import required
    from pyro_delta.config import choose
    from pyro_delta.data.condition import KEY
    from pyro_delta.data.named import spec_before_data
    from pyro_delta.diagnostics.verify import examples
    from pyro_delta.diagnostics.verify import verify as certify

    config, _ = choose(settings, preset)
    extras, example = None, None
    spec = None if KEY in config.data.options else spec_before_data(config.data.program)
    if spec is not None:
        plain = build(config, spec, check=False)
        more = required(plain.guide, 1) + required(plain.model.likelihood, 1)  # what only data can give
    if spec is None or more:
        data = load_data(config)
        some = examples(data.train)
        spec, extras, example = data.spec, some.extras, some.batch(slice(None))
    torch.manual_seed(config.training.seed)
    vae = build(config, spec, example=example)
    certificate = certify(vae, spec, extras=extras, batch=config.training.batch)
    if as_json:
        print_json(certificate.asdict())
    else:
        click.echo(str(certificate))
    if certificate.failure:
        raise CheckFailed(certificate.failure)
    if certificate.lack:
        raise NothingCertified(certificate.lack)
