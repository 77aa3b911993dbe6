"""One HTML page of an evaluation: plots, tables, floors, signatures. It needs no network and no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from vlm.evaluation.inputs import Joined
from vlm.evaluation.output import footnotes, tables_of, write
from vlm.evaluation.plots import make_plots
from vlm.evaluation.result import Evaluation

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem; }
td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #8883; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
tr.floor td { opacity: .7; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
.plots img { max-width: 100%; width: 29rem; background: white; }
.plots img.wide { width: 100%; } .scroll { overflow-x: auto; } code { font-size: .78rem; overflow-wrap: anywhere; }
"""


def write_page(path: Path, result: Evaluation, joined: Joined) -> None:
    """Writes the page, and each plot as a PNG in the folder `<name of the page>_plots` beside it.

    Args:
        path: of the page.
        result: the evaluation.
        joined: for the references' lengths.
    """
    plots = make_plots(result, [len(text.split()) for text in joined.references])
    for name, png in plots.items():
        write(path.parent / f"{path.stem}_plots" / f"{name}.png", png)
    write(path, page(result, plots))


def page(result: Evaluation, plots: dict[str, bytes]) -> str:
    """Returns the page's HTML, the plots inside it."""
    images = "".join(
        f'<img class="{"wide" if name == "scores" else ""}" alt="{html.escape(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for name, png in plots.items()
    )
    systems = ", ".join(system.name for system in result.systems if not system.floor)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Evaluation of {html.escape(systems)}</title><style>{_STYLE}</style>",
        f"<h1>Evaluation of {html.escape(systems)}</h1><p>{len(result.ids)} studies. Floors stand below the systems: ",
        "a report generator that does not beat them says nothing of its images. ",
        "Research software, not a medical device.</p>",
        f"<div class=plots>{images}</div>",
    ]
    for title, header, rows in tables_of(result):
        parts.append(f"<h2>{html.escape(title)}</h2>{_table(header, rows)}")
    parts.append(
        "<h2>Notes</h2><ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in footnotes(result)) + "</ul>"
    )
    lines = "".join(f"<li><code>{html.escape(text)}</code></li>" for text in result.signatures.values())
    parts.append(f"<h2>Signatures</h2><ul>{lines}</ul></html>")
    return "\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr{' class=floor' if row[0].startswith('  ') else ''}>"
        + "".join(f"<td>{html.escape(cell.strip())}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
