"""How Sphinx builds the site: `make docs`. Nothing here, and nothing in the pages, needs a network."""

import os
import re
from functools import partialmethod
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from nbclient import NotebookClient

import pyro_delta

ROOT = Path(__file__).parents[1]

project = "pyro-delta"
author = "The authors of pyro-delta"
release = version = pyro_delta.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
suppress_warnings = ["ref.python"]  # an attribute `mean` of several classes
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "pyro-delta"
html_show_sourcelink = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # see below: pages need no network to show an equation

# Pages are Markdown. Headings are named in links as they are where the repository is shown.
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 4

# Notebooks are run once; what has not changed comes from the cache.
nb_execution_mode = os.environ.get("DOCS_EXECUTE", "cache")
nb_execution_cache_path = str(ROOT / "docs" / "_build" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_output_stderr = "remove"
# What a shell prints comes in pieces of a hundred bytes, which are put together; and in lines that fit the page.
NotebookClient.__init__ = partialmethod(NotebookClient.__init__, coalesce_streams=True)
os.environ["COLUMNS"] = "104"
if nb_execution_mode == "off":
    suppress_warnings.append("myst-nb.lexer")  # the kernel would say it

# Docstrings: a name in single backticks is code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Types of other libraries cannot be looked up without a network; all other references must lead somewhere.
nitpick_ignore_regex = [(r"py:.*", r".*")]


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: |α| refers to nothing, (N, *shape) stresses nothing, `Module`s are several."""
    inside = ""
    for at, line in enumerate(lines):
        code = re.split(r"(``[^`]+``|`[^`]+`)", line)
        code[::2] = [re.sub(r"\||_(?=\W)|\*(?=\w+[,)\]])", r"\\\g<0>", part) for part in code[::2]]
        line = re.sub(r"`(?=s\b)", r"`\\ ", "".join(code))
        # A numbered source becomes an item of a list, and what goes on with it stands below its first word.
        if found := re.match(r"( +)\[\d+\] ", line):
            inside, line = found[1], f"{found[1]}* {line.strip()}"
        elif inside and line.startswith(f"{inside}    "):
            line = f"{inside}  {line.strip()}"
        else:
            inside = ""
        lines[at] = re.sub(r"(?<=: )(\w\.)$", r"\\\1", line)  # "length: n." begins no list
    if what in UNTYPED and lines:
        lines[0] = lines[0].replace(":", "::")


def untyped(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """After napoleon, which would take what is before a colon for a type."""
    if what in UNTYPED and lines:
        lines[0] = lines[0].replace("::", ":")


UNTYPED = ("attribute", "data", "property")
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
"""Files of the repository that a page of the site shows."""


def within(app: Any, docname: str, source: list[str]) -> None:
    """Links that lead out of docs/: to the page that shows the file, or, of a folder of records, to its name alone."""
    page = ROOT / "docs" / docname

    def lead(link: re.Match[str]) -> str:
        words, path = link[1], (page.parent / link[2]).resolve()
        if not path.is_relative_to(ROOT) or path.is_relative_to(ROOT / "docs"):
            return link[0]
        name = path.relative_to(ROOT).as_posix()
        up = "../" * docname.count("/")
        if name in PAGES:
            return f"[{words}]({up}{PAGES[name]})"
        if name.startswith("reference/sweeps/") and path.suffix == ".md":
            return f"[{words}]({up}sweeps.md#{path.stem})"
        return f"`{words}`" if path.is_dir() else link[0]

    source[0] = re.sub(r"(?<!!)\[([^]]+)\]\((\.\./[^)#]+)\)", lead, source[0])


def mathml(writer: Any, node: nodes.math | nodes.math_block) -> None:
    """An equation as MathML, which browsers show by themselves."""
    block = isinstance(node, nodes.math_block)
    writer.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("autodoc-process-docstring", plain, priority=400)
    app.connect("autodoc-process-docstring", untyped, priority=600)
    app.connect("source-read", within)
