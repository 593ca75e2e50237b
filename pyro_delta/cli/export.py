"""`pyro-delta export`."""

from __future__ import annotations

from pathlib import Path

import click

from pyro_delta.cli.options import (
    json_option,
    next_command,
    print_json,
    root_option,
    run_argument,
    trust_option,
    weights_option,
)


@click.command()
@run_argument
@click.argument("out", metavar="[DIR|FILE.zip]", required=False, type=click.Path(path_type=Path))
@click.option("--to", metavar="hf:USER/NAME", help="Upload it to the Hugging Face hub (needs pyro-delta[hub]).")
@click.option("--private", is_flag=True, help="A new repository of the hub is shown to you alone.")
@click.option("--license", "licence", metavar="SPDX", help="Of the weights, such as CC-BY-4.0 (default: as before).")
@click.option("--torch", "torch_programs", is_flag=True, help="With guide, decoder and its steps, by torch.export.")
@weights_option
@root_option
@trust_option
@json_option
def export(
    run: Path,
    out: Path | None,
    to: str | None,
    private: bool,
    licence: str | None,
    torch_programs: bool,
    weights: str,
    data_root: str | None,
    trust: bool,
    as_json: bool,
) -> None:
    """RUN as a folder that others read: averaged weights, settings, check, own programs, and a model card.

    What comes out is a run, which all commands and pyro_delta.load take (a FILE.zip once it is unpacked); but
    training cannot go on from it. The check that `check --keep` has left goes with it. No path of this machine does,
    and no data.

    \b
    pyro-delta check runs/first --keep
    pyro-delta export runs/first first --license CC-BY-4.0
    pyro-delta sample first --num 16 --out samples.png
    pyro-delta export runs/first first.zip
    pyro-delta export runs/first with-torch --torch       # guide.pt2, decoder.pt2, …, which need torch alone
    pyro-delta export runs/first --to hf:me/first --license MIT
    pyro-delta sample hf:me/first --num 16 --out samples.png
    """  # noqa: D301 (click wants the backspace itself)
    from pyro_delta.errors import UserError
    from pyro_delta.share.export import export as export_run

    if private and to is None:
        raise UserError("--private is of a repository on the hub; give --to hf:USER/NAME, too, or leave it out.")
    found = export_run(
        run,
        out,
        to=to,
        weights=weights,
        license=licence,
        torch_programs=torch_programs,
        private=private,
        data_root=data_root,
        trust=trust,
    )
    for note in found.notes:
        click.echo(f"pyro-delta: {note}", err=True)
    if as_json:
        path = None if found.path is None else str(found.path)
        print_json({"path": path, "address": found.address, "files": found.files, "notes": found.notes})
    else:
        for place in (found.path, found.address):
            if place is not None:
                click.echo(str(place))
    place = to or (str(out) if out is not None and out.suffix.lower() != ".zip" else None)
    if place is not None and found.data_named:
        next_command("check", place)
