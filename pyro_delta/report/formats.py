"""A comparison as text, JSON, CSV, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from typing import Any

from pyro_delta.report.comparison import Comparison
from pyro_delta.report.tables import table_text

Cells = list[list[str]]


def written(found: Comparison, form: str) -> str:
    """A comparison in a form of `FORMS`."""
    return FORMS[form](found)


def cells(found: Comparison) -> Cells:
    """The table for people, each cell in one line; its first row is the head."""
    below = f"below {found.baseline}, nats"
    columns = [
        (f"−ELBO, {found.unit}", "neg_elbo_bpd", 4),
        ("with auxiliary prior", "auxiliary_neg_elbo_bpd", 4),
        (f"distortion, {found.unit}", "distortion_bpd", 4),
        ("rate, nats", "rate_nats_mean", 3),
        ("least rate", "rate_nats_min", 4),
        ("δ", "delta_nats", 3),
        ("told, calibrated", "told_calibrated_nats", 3),
        ("MI", "mutual_information_nats", 2),
        ("probe", "probe_accuracy", 3),
        (f"distortion {below}", "distortion_below_nats", 2),
        (f"−ELBO {below}", "neg_elbo_below_nats", 2),
    ]
    columns = [column for column in columns if any(row[column[1]] is not None for row in found.rows)]
    costs = (
        [("parameters", "parameters"), ("data seen", "data_seen"), ("FLOPs", "training_flops")] if found.cited else []
    )
    data = ["data"] if len({row["data"] for row in found.rows}) > 1 else []
    head = ["arm", *data, *(words for words, _, _ in columns), "used", *(words for words, _ in costs)]
    rows = [
        [
            row["arm"],
            *(row[key] for key in data),
            *(_value(row, key, digits) for _, key, digits in columns),
            f"{row['latents_used']}/{row['seeds']}",
            *(f"{row[key]:.2e}" for _, key in costs),
        ]
        for row in found.rows
    ]
    published = [
        [
            cited["name"],
            *("–" for _ in data),
            *(f"{cited[key]:g}" if key in cited else "–" for _, key, _ in columns),
            *["–"] * (1 + len(costs)),
        ]
        for cited in found.cited
    ]
    return [[_in_a_line(cell) for cell in row] for row in (head, *rows, *published)]


def _in_a_line(text: str) -> str:
    return " ".join(text.split())


def _value(row: dict[str, Any], key: str, digits: int) -> str:
    if row[key] is None:
        return "–"
    error = row.get(f"{key}_se")
    spread = error is not None and not (key == "delta_nats" and error == 0)
    return f"{row[key]:.{digits}f}".replace("-", "−") + (f" ± {error:.{digits}f}" if spread else "")


def _as_text(found: Comparison) -> str:
    head, *body = cells(found)
    narrow = [words.replace(", ", ",\n").replace(" below", "\nbelow").replace("with ", "with\n") for words in head]
    return "\n".join([table_text(found.title, [narrow, *body]), *map(_in_a_line, found.notes)]) + "\n"


def _as_json(found: Comparison) -> str:
    return json.dumps(found.asdict(), ensure_ascii=False) + "\n"


def _as_csv(found: Comparison) -> str:
    """All numbers, unrounded, with their unit and baseline in each row; what others have published stands below."""
    tree = found.asdict()
    own = {"unit": tree["unit"], "baseline": tree["baseline"]}
    published = [{"arm": cited["name"], "neg_elbo_bpd": cited["neg_elbo_bpd"]} for cited in tree["cited"]]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*found.rows[0], *own], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | own for row in (*tree["rows"], *published))
    return file.getvalue()


def _as_markdown(found: Comparison) -> str:
    head, *body = [[_markdown(cell) for cell in row] for row in cells(found)]
    lines = [head, ["---"] * len(head), *body]
    notes = [_markdown(_in_a_line(note)) for note in found.notes]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + "\n".join(notes) + "\n"


def _markdown(text: str) -> str:
    """Text that means itself: _ within a word does."""
    return re.sub(r"[\\`*<|$\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _as_latex(found: Comparison) -> str:
    """For the package booktabs."""
    # What begins with [ or * would be taken for an argument of the \\ before it.
    head, *body = ["{}" * row[0].startswith(("[", "*")) + " & ".join(map(_latex, row)) + r" \\" for row in cells(found)]
    columns = "l" + "r" * (len(cells(found)[0]) - 1)
    lines = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([*lines, *(f"% {_in_a_line(note)}" for note in found.notes)]) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "€": "EUR", "⁄": "/",
    "‐": "-", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th",
    "ß": "ß", "æ": "æ", "Æ": "Æ", "ø": "ø", "Ø": "Ø", "œ": "œ", "Œ": "Œ", "ł": "ł", "Ł": "Ł", "ı": "ı",
}  # fmt: skip
"""Characters that TeX takes for something else, or that pdfLaTeX has words for or takes as they are."""
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ζ": "zeta", "η": "eta", "θ": "theta",
    "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "ς": "varsigma",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "varphi", "χ": "chi", "ψ": "psi", "ω": "omega", "Γ": "Gamma",
    "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Υ": "Upsilon", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
LIKE_LATIN = dict(zip("οΑΒΕΖΗΙΚΜΝΟΡΤΧ", "oABEZHIKMNOPTX", strict=True))
"""Greek letters that TeX has no words for, as they look like Latin ones."""
SIGNS = {
    "−": "-", "±": r"\pm", "∓": r"\mp", "×": r"\times", "÷": r"\div", "·": r"\cdot", "≤": r"\leq", "≥": r"\geq",
    "≠": r"\neq", "≈": r"\approx", "≪": r"\ll", "≫": r"\gg", "∞": r"\infty", "∑": r"\sum", "∏": r"\prod",
    "√": r"\surd", "∂": r"\partial", "∇": r"\nabla", "∈": r"\in", "∥": r"\parallel", "‖": r"\|", "∼": r"\sim",
    "→": r"\rightarrow", "←": r"\leftarrow", "↔": r"\leftrightarrow", "⇒": r"\Rightarrow", "↑": r"\uparrow",
    "↓": r"\downarrow", "°": r"^\circ", "¬": r"\neg", "∅": r"\emptyset", "ℓ": r"\ell",
}  # fmt: skip
IN_MATHS = SIGNS | {letter: rf"\{word}" for letter, word in GREEK.items()}
IN_MATHS |= {letter: rf"\mathrm{{{latin}}}" for letter, latin in LIKE_LATIN.items()}
ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""That LaTeX sets over or under letters in any encoding of its fonts."""


def _latex(text: str) -> str:
    """Text for pdfLaTeX, which stops at a character that it does not know."""
    return "".join(map(_latex_of, unicodedata.normalize("NFC", text)))


def _latex_of(character: str) -> str:
    """A character: by the tables, as it is, or as what it is made of; a script that fonts of TeX lack by its number."""
    if character in LATEX:
        return LATEX[character]
    if character in IN_MATHS:
        return f"${IN_MATHS[character]}$"
    base, *marks = list(unicodedata.normalize("NFD", character))
    if " " <= character <= "~" or ("A" <= base <= "z" and character < "\u0180" and ACCENTS.issuperset(marks)):
        return character
    kind, *codes = unicodedata.decomposition(character).split() or [""]
    if kind in ("<super>", "<sub>"):
        parts = "".join(_latex_of(chr(int(code, 16))) for code in codes)
        return rf"\text{kind[1:-1]}script{{{parts}}}"
    simpler = [part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)]
    if simpler and simpler != [character]:
        return "".join(map(_latex_of, simpler))
    return f"U+{ord(character):04X}"


FORMS = {"text": _as_text, "json": _as_json, "csv": _as_csv, "markdown": _as_markdown, "latex": _as_latex}
