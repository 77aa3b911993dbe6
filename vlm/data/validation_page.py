"""The page of a checked data set: one HTML file that needs nothing else, with counts, pictures and histograms."""

from __future__ import annotations

import base64
import html
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from vlm.data.issues import Issue
from vlm.data.validate import Split, Validation, findings_of
from vlm.types import Study

SHOWN_ISSUES = 20
SHOWN_LABELS = 40
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #3b7dd8; --error: #c62828; --warning: #b26a00 }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse }
td, th { padding: .25em .8em; border-bottom: 1px solid var(--line); text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.error { color: var(--error) } .warning { color: var(--warning) } .quiet { opacity: .7 }
.sheet { display: flex; flex-wrap: wrap; gap: 6px } figure { margin: 0; width: 160px }
figure div { height: 160px; background: #000; display: flex; align-items: center; justify-content: center }
figure img { max-width: 160px; max-height: 160px } figcaption { font-size: 11px; overflow-wrap: anywhere }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1.5em }
svg { width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: currentColor }
svg rect { fill: var(--bar) } details { margin: .3em 0 } summary { cursor: pointer } li { overflow-wrap: anywhere }
"""


def validation_page(title: str, studies: Sequence[Study], result: Validation) -> str:
    """The page as HTML.

    Args:
        title: what was checked. studies, result: as given to and by `vlm.data.validate.validate`.
    """
    errors, total = len(result.errors), len(result.issues)
    verdict = f'<span class="{"error" if errors else ""}">{errors:,} errors</span>, {total - errors:,} warnings'
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{verdict}</p>",
        "<p>" + ", ".join(f"{n:,} {html.escape(name)}" for name, n in result.counts.items()) + "</p>",
        "<h2>Splits</h2>" + _splits(result.splits),
        "<h2>Issues</h2>" + _issues(result.issues),
        _sheets(result),
        '<h2>Histograms</h2><div class="plots">' + "".join(_plots(studies, result)) + "</div>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _splits(splits: dict[str, Split]) -> str:
    numbers = ("studies", "images", "patients", "with findings text", "findings text also in train")
    head = "<tr><th>split</th>" + "".join(f'<th class="n">{n}</th>' for n in numbers) + "<th>ids (sha256)</th></tr>"
    rows = []
    for name, split in splits.items():
        seen = "" if split.seen is None else f"{split.seen:,} ({split.seen / max(1, split.texts):.0%})"
        cells = [f"{n:,}" for n in (split.studies, split.images, split.patients, split.texts)] + [seen]
        shown = "".join(f'<td class="n">{c}</td>' for c in cells)
        rows.append(f"<tr><td>{html.escape(name or '-')}</td>{shown}<td><code>{split.ids}</code></td></tr>")
    return f"<table>{head}{''.join(rows)}</table>"


def _issues(issues: Sequence[Issue]) -> str:
    if not issues:
        return "<p>None.</p>"
    kinds: dict[tuple[str, str], list[Issue]] = defaultdict(list)
    for issue in issues:
        kinds[issue.level, issue.kind].append(issue)
    out = []
    for (level, kind), own in sorted(kinds.items(), key=lambda item: (item[0][0], -len(item[1]))):
        lines = "".join(
            f"<li>{html.escape(i.study + ': ' if i.study else '')}{html.escape(i.message)}</li>"
            for i in own[:SHOWN_ISSUES]
        )
        more = f"<li>... and {len(own) - SHOWN_ISSUES:,} more (--json)</li>" if len(own) > SHOWN_ISSUES else ""
        summary = f'<span class="{level}">{level}</span> {html.escape(kind)}: {len(own):,}'
        out.append(f"<details><summary>{summary}</summary><ul>{lines}{more}</ul></details>")
    return "".join(out)


def _sheets(result: Validation) -> str:
    """The contact sheet, then the pictures of each kind of issue."""
    groups: dict[str, list[str]] = defaultdict(list)
    for study, slot, data, kind in result.pictures:
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        caption = html.escape(study if slot == 0 else f"{study} ({slot + 1})")
        figure = f'<figure><div><img alt="" src="{source}"></div><figcaption>{caption}</figcaption></figure>'
        groups[kind].append(figure)
    out = []
    for kind, figures in sorted(groups.items()):
        heading = html.escape(kind.capitalize()) if kind else "Contact sheet"
        out.append(f'<h2>{heading}</h2><div class="sheet">{"".join(figures)}</div>')
    return "".join(out)


def _plots(studies: Sequence[Study], result: Validation) -> Iterable[str]:
    facts = [image for _, image in result.facts]
    boxes = [box for study in studies for box in study.boxes or ()]
    size_of = {(number, image.slot): image.width * image.height for number, image in result.facts}
    shares = [
        100 * box.area / size_of[number, box.image]
        for number, study in enumerate(studies)
        for box in study.boxes or ()
        if size_of.get((number, box.image))
    ]
    yield _histogram("image width, pixels", [f.width for f in facts])
    yield _histogram("image height, pixels", [f.height for f in facts])
    yield _histogram("mean grey of an image, 0 to 1", [f.mean for f in facts])
    yield _histogram("images of a study", [len(s.images) for s in studies])
    yield _histogram("words of the findings", [len(t.split()) for s in studies if (t := findings_of(s))])
    if boxes:
        yield _histogram("boxes of a study that has any", [len(s.boxes) for s in studies if s.boxes])
        yield _histogram("area of a box, % of its image", shares)
    views = Counter(str(i.view or "unknown") for s in studies for i in s.images)
    modalities = Counter(str(i.modality or "unknown") for s in studies for i in s.images)
    yield _bars("view", views.most_common())
    yield _bars("modality", modalities.most_common())
    if result.labels:
        shown = result.labels.most_common(SHOWN_LABELS)
        rest = len(result.labels) - len(shown)
        yield _bars("studies by label" + (f" ({rest} rarer ones left out)" if rest else ""), shown)


def _histogram(title: str, values: Sequence[float], bins: int = 24) -> str:
    if not values:
        return ""
    array = np.asarray(values, float)
    low, high = float(array.min()), float(array.max())
    whole = all(isinstance(v, int) for v in values[:100])
    if whole and high - low < bins:
        edges = np.arange(low, high + 2) - 0.5
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    counts, _ = np.histogram(array, edges)
    top, width, height = max(1, int(counts.max())), 340, 120
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{14 + height * (1 - c / top):.1f}" width="{max(1.0, step - 1):.1f}" '
        f'height="{height * c / top:.1f}"><title>{edges[i]:.4g} to {edges[i + 1]:.4g}: {c:,}</title></rect>'
        for i, c in enumerate(counts)
    )
    middle = f"median {np.median(array):.4g}, n {len(array):,}"
    axis = (
        f'<text x="0" y="{height + 30}">{low:.4g}</text>'
        f'<text x="{width}" y="{height + 30}" text-anchor="end">{high:.4g}</text>'
        f'<text x="{width / 2}" y="{height + 30}" text-anchor="middle" opacity=".7">{middle}</text>'
        f'<text x="{width}" y="10" text-anchor="end" opacity=".7">most: {top:,}</text>'
    )
    return f'<div><b>{html.escape(title)}</b><svg viewBox="0 0 {width} {height + 36}">{bars}{axis}</svg></div>'


def _bars(title: str, counts: Sequence[tuple[str, int]]) -> str:
    if not counts:
        return ""
    top, row, left, width = max(n for _, n in counts), 16, 160, 340
    lines = []
    for i, (name, count) in enumerate(counts):
        length = (width - left - 48) * count / top
        short = name if len(name) <= 24 else name[:23] + "\u2026"
        lines.append(
            f'<text x="{left - 6}" y="{i * row + 12}" text-anchor="end">{html.escape(short)}<title>{html.escape(name)}'
            f'</title></text><rect x="{left}" y="{i * row + 2}" width="{max(1.0, length):.1f}" height="{row - 4}"/>'
            f'<text x="{left + length + 5:.1f}" y="{i * row + 12}">{count:,}</text>'
        )
    svg = f'<svg viewBox="0 0 {width} {len(counts) * row + 4}">{"".join(lines)}</svg>'
    return f"<div><b>{html.escape(title)}</b>{svg}</div>"
