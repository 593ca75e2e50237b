"""What pages of text show: commands, Python, notebook cells, links. README and docs are read in one way."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "reference" / "sweeps").glob("*.md"), *DOCS])
}
"""Name → text, of README and its kin, of the site, and of the tables that it includes."""


def commands(text: str) -> list[str]:
    """`pyro-delta` with arguments, in blocks, cells and running text, where nothing is left out.

    Also what torchrun starts, and in blocks what needs no arguments.
    """
    found = blocks("sh", text) + blocks("bash", text) + [cell for cell in cells(text) if cell.startswith("%%sh")]
    lines = [line.split("  #")[0] for line in "\n".join(found).replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines += [code for code in inline if len(code.split()) > 2]
    shown = (" ".join(line.split()) for line in lines)
    of_us = re.compile(r"(?:OMP_NUM_THREADS=1 )?((?:torchrun \S+ -m pyro_delta|pyro-delta) [a-z].*)")
    ours = [match[1] for line in shown if (match := of_us.fullmatch(line))]
    return [line for line in ours if not re.search("…|(?<!--license )[A-Z]{3}|--help", line)]


def blocks(language: str, text: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def cells(text: str) -> list[str]:
    """Cells of a notebook that is written as Markdown, without their options."""
    found = re.findall(r"```\{code-cell\}[^\n]*\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"\A---\n.*?\n---\n", "", cell, flags=re.DOTALL) for cell in found]


def links(text: str) -> list[str]:
    """Where links and pictures lead, but for those into the network."""
    return re.findall(r"\]\(((?!http)[^)\s]+)\)", without_blocks(text))


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, where the repository is shown and on the site."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_blocks(text: str) -> str:
    """A page but for its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
