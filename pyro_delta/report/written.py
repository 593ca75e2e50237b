"""The page of a run as a file, and the check that it shows; and the page that a training ends with, unchecked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pyro_delta.api.judge import check
from pyro_delta.api.kept import evaluations, is_of, keep, keepable, kept, unasked
from pyro_delta.data.tensors import Given
from pyro_delta.diagnostics.bounds import ignore
from pyro_delta.diagnostics.diagnose import passes
from pyro_delta.errors import UserError
from pyro_delta.files import written_whole
from pyro_delta.hub import check_here, check_no_place
from pyro_delta.inference.run import Run, check_same, load
from pyro_delta.lock import check_no_links
from pyro_delta.protocol import Advance, Data
from pyro_delta.report.page import page, page_of_training

PAGE = "report.html"
"""In the folder of a run."""
Counting = Callable[[int], AbstractContextManager[Advance]]
"""Of so many steps: what is told each one."""


def write_report(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    data: str | Path | Data | Given | None = None,
    control: Run | str | Path | None = None,
    images: int | None = None,
    seed: int = 0,
    root: str | None = None,
    other_data: bool = False,
    device: str = "auto",
    trust: bool = False,
) -> Path:
    """Writes a run as one page, as `pyro-delta report` does, and keeps its check with it if that is its first.

        pyro_delta.write_report("runs/mine", data=x)    # of a run that was trained on the array x

    Args:
        run: with a folder, or that folder.
        path: of the page; report.html in the folder of the run where None.
        data: again, if the run was given data rather than their name, and is read from its folder.
        control: a run without latents, of the same data, or its folder, to stand beside it.
        images: so many random test data of the check; all if None.
        seed: of the check, and of what is drawn.
        root: where the data live now.
        other_data: whether they may be others than the run was trained on.
        device: auto, cpu or cuda, of runs that are read.
        trust: as for `pyro_delta.load`.

    Returns:
        The path of the page.

    Raises:
        UserError: as `check`, or if the run has no folder or there is none for the page.
    """
    named = str(run.folder if isinstance(run, Run) else run)
    if path is None and not isinstance(run, Run):
        check_here(run, "a report without a path")
    loaded, other = (
        given if given is None or isinstance(given, Run) else load(given, device, trust=trust)
        for given in (run, control)
    )
    assert loaded is not None
    if loaded.folder is None:
        raise UserError("the run is in memory alone; give train a folder by out=, and report that.")
    if path is None:
        check_no_links(loaded.folder)
    target = loaded.folder / PAGE if path is None else Path(path)
    check_no_place(target)
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent} for {target.name}; make it or give another.")
    if data is None:
        found = loaded.data(root, other=other_data)
    else:
        found = loaded.in_its_terms(data, root)
        if not other_data:
            check_same(found, loaded.data_record, loaded.folder)
    text, _ = page_of(loaded, found, named=named, control=other, images=images, seed=seed, other_data=other_data)
    with written_whole(target) as file:
        file.write(text.encode())
    return target


def write_page_of_training(run: Run, floor: str, measured: Mapping[str, Any], control: Run | None = None) -> Path:
    """Writes what is known of a run at the end of its training as its page, with no further work.

    Args:
        run: with its folder.
        floor: its committed rate, in words.
        measured: by its newest validation.
        control: a run without latents whose training is drawn beside it.

    Returns:
        The path of the page, in the folder of the run.
    """
    assert run.folder is not None
    check_no_links(run.folder)
    with written_whole(run.folder / PAGE) as file:
        file.write(page_of_training(run, floor, measured, control).encode())
    return run.folder / PAGE


def page_of(
    run: Run,
    data: Data,
    *,
    named: str,
    control: Run | None = None,
    images: int | None = None,
    seed: int = 0,
    other_data: bool = False,
    counting: Counting = lambda total: nullcontext(ignore),
) -> tuple[str, dict[str, Any]]:
    """The HTML of a run, and the numbers of the check that it shows: the one that was kept, or one that is made now.

    Args:
        run: with its folder.
        data: that it was trained on, or others of their kind.
        named: the run, as it was given: its folder or its place on the hub.
        control: the run without latents that stands beside it.
        images: so many random test data of a check that is made now; all if None.
        seed: of it, and of what is drawn.
        other_data: whether the data may be others, of which no check was kept.
        counting: says how a check that is made now comes along.

    Raises:
        UserError: as `check` and `page`.
    """
    assert run.folder is not None
    before = None if images is not None or other_data else kept(run.folder)
    if before is not None and is_of(before.numbers, run, control):
        numbers = before.numbers
    else:
        count = len(data.test) if images is None else images
        with counting(passes(count, control=control is not None)) as advance:
            found = check(run, data=data, images=images, control=control, seed=seed, advance=advance)
        numbers = found.asdict()
        first = images is None and kept(run.folder) is None
        if first and keepable(run, named, numbers):
            with unasked(run):
                keep(run, found)
    evaluated = evaluations(run.folder)
    return page(run, data, numbers, named=named, evaluated=evaluated, control=control, seed=seed), numbers
