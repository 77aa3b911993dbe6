"""`vlm knowledge`: look into the graph, build one's own, and label reports with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from knowledge.graph import KnowledgeGraph

app = typer.Typer(no_args_is_help=True, help="The knowledge graph: show, build, check, draw, export, label reports.")

GraphOption = Annotated[
    Path | None,
    typer.Option("--graph", help="Folder of tables or JSON file; default: shipped."),
]


@app.command()
def show(
    term: Annotated[str, typer.Argument(help="Id, name, synonym, abbreviation or cross-reference.")],
    graph: GraphOption = None,
) -> None:
    """Shows a concept: how it is written, what it is, where it is, what it is tied to, and who says so."""
    from rich.console import Console
    from rich.table import Table

    from knowledge.queries import find

    g = _load(graph)
    with _one_line():
        c = g.concepts[find(g, term)]
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    labels = [f"{view}: {', '.join(names[c.id])}" for view in g.views if c.id in (names := g.label_of(view))]
    rows = [("name", c.name), ("id", c.id), ("kind", c.kind.value), ("synonyms", ", ".join(c.synonyms)),
            ("adjectives", ", ".join(c.adjectives)), ("cross-references", ", ".join(c.xrefs)), ("source", c.source),
            ("labels", "; ".join(labels)),
            ("places", ", ".join(g.concepts[p].name for p in g.places(c.id)))]  # fmt: skip
    for name, value in rows:
        if value:
            table.add_row(name, value)
    for e in g.edges:
        if c.id in (e.source, e.target):
            weight = f" {e.weight:g}" if e.weight < 1 else ""
            line = (
                f"{g.concepts[e.source].name} {e.relation.value.replace('_', ' ')} {g.concepts[e.target].name}{weight}"
            )
            table.add_row("edge", f"{line}  [dim]{e.provenance}[/dim]")
    Console().print(table)


@app.command()
def path(
    start: Annotated[str, typer.Argument(help="A concept.")],
    end: Annotated[str, typer.Argument(help="Another.")],
    graph: GraphOption = None,
) -> None:
    """Shows the shortest chain of relations between two concepts."""
    from rich.console import Console

    from knowledge.queries import find
    from knowledge.queries import path as chain

    g = _load(graph)
    with _one_line():
        steps = chain(g, find(g, start), find(g, end))
    console = Console()
    if not steps:
        console.print("the two are one concept")
    for edge, _ in steps:
        names = g.concepts[edge.source].name, edge.relation.value.replace("_", " "), g.concepts[edge.target].name
        console.print(f"{names[0]} [bold]{names[1]}[/bold] {names[2]}", highlight=False)


@app.command()
def stats(graph: GraphOption = None) -> None:
    """Counts concepts, terms, edges, cross-references and labels; prints version and hash."""
    from rich.console import Console
    from rich.table import Table

    from knowledge.queries import statistics

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in statistics(_load(graph)).items():
        table.add_row(name, str(value))
    Console().print(table)


@app.command()
def validate(graph: Annotated[Path | None, typer.Argument(help="Folder of tables or JSON file.")] = None) -> None:
    """Checks a graph: circles, synonyms of two concepts, findings without a place, exclusions. Exit 1 on a fault."""
    from rich.console import Console

    from knowledge.graph import KnowledgeGraph
    from knowledge.validation import located_faults

    console = Console()
    with _one_line():
        content = KnowledgeGraph.read(graph)
        g = KnowledgeGraph(content.concepts, content.edges, content.views, content.version, check=False)
        messages = located_faults(g, content)
    for message in messages:
        console.print(message, markup=False, highlight=False, soft_wrap=True)
    if messages:
        raise typer.Exit(1)
    console.print(
        f"sound: {len(g.concepts)} concepts, {len(g.edges)} edges, hash {g.hash}", highlight=False, soft_wrap=True
    )


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A graph: folder, JSON file, or 'shipped'.")],
    new: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """Shows what changed from one graph to another, one line a change."""
    from rich.console import Console

    from knowledge.queries import difference

    console = Console()
    graphs = [_load(None if str(p) == "shipped" else p) for p in (old, new)]
    lines = difference(*graphs)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(lines)} changes", highlight=False)


@app.command()
def draw(
    around: Annotated[str, typer.Option("--around", help="The concept in the middle.")],
    out: Annotated[Path | None, typer.Option("--out", help=".svg, .png or .pdf; default: CONCEPT.svg.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=60, help="Neighbours at most, the strongest edges first.")] = 28,
    graph: GraphOption = None,
) -> None:
    """Draws a concept and its neighbours."""
    from rich.console import Console

    from knowledge.drawing import draw as draw_graph
    from knowledge.queries import find

    g = _load(graph)
    with _one_line():
        id = find(g, around)
        out = out or Path(f"{id}.svg")
        left_out = draw_graph(g, id, out, limit)
    Console().print(f"{out}" + (f" ({left_out} weaker neighbours not shown)" if left_out else ""), highlight=False)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help=".graphml, .jsonld or .json.")],
    graph: GraphOption = None,
) -> None:
    """Writes the graph for other programs."""
    from rich.console import Console

    from knowledge.exporting import export as export_graph

    g = _load(graph)
    with _one_line():
        export_graph(g, out)
    Console().print(f"{out}: {len(g.concepts)} concepts, {len(g.edges)} edges", highlight=False)


@app.command()
def build(
    sources: Annotated[list[Path], typer.Argument(help="OBO, triples, keyword lists, CSV, JSON, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="JSON file to write.")],
    base: Annotated[str, typer.Option(help="Graph that wins conflicts: a path, 'shipped', or 'none'.")] = "shipped",
    reports: Annotated[Path | None, typer.Option(help="Reports to count co-occurrence in.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the report file, where it has parts.")] = None,
    min_count: Annotated[int, typer.Option(min=1, help="Reports in which a pair must be present together.")] = 5,
    min_lift: Annotated[float, typer.Option(help="Times more often than by chance, above 1.")] = 1.5,
    version: Annotated[str | None, typer.Option(help="Version to write into the graph.")] = None,
    conflicts: Annotated[
        Path | None, typer.Option(help="Write every conflict, a line each; default: print them.")
    ] = None,
) -> None:
    """Merges knowledge files into a graph, reports every conflict, and adds edges from co-occurrence in reports."""
    from rich.console import Console

    from knowledge.building import build as build_graph
    from knowledge.graph import KnowledgeGraph, write_atomic

    start = KnowledgeGraph({}) if base == "none" else _load(None if base == "shipped" else Path(base))
    texts = (list(_texts(reports, split).values()), reports.name) if reports else None
    with _one_line():
        built = build_graph(start, sources, texts, min_count, min_lift, version)
        built.graph.save(out)
    console = Console()
    for line in built.summary:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    lines = [f"conflict ({c.kind}): {c.message}" for c in built.conflicts]
    if conflicts:
        write_atomic(conflicts, "".join(f"{line}\n" for line in lines))
        console.print(f"{len(lines)} conflicts in {conflicts}", highlight=False)
    else:
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    g = built.graph
    console.print(f"{out}: {len(g.concepts)} concepts, {len(g.edges)} edges, {len(lines)} conflicts, hash {g.hash}",
                  highlight=False, soft_wrap=True)  # fmt: skip


@app.command()
def label(
    reports: Annotated[Path, typer.Argument(help="JSONL, CSV, Parquet, annotation.json, or indiana_reports.csv.")],
    out: Annotated[Path, typer.Option("--out", help="CSV file to write.")],
    view: Annotated[str, typer.Option(help="openi20, chexpert14, radscribe, or all (every finding).")] = "openi20",
    uncertain: Annotated[
        str, typer.Option(help="Value of an uncertain finding: 'empty' (torchxrayvision), '-1' (CheXpert), '1' or '0'.")
    ] = "empty",
    split: Annotated[str | None, typer.Option(help="Part of the file, where it has parts.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column of the ids.")] = None,
    text_column: Annotated[
        str | None, typer.Option("--text", help="Column of the reports; default: all their sections.")
    ] = None,
    graph: GraphOption = None,
) -> None:
    """Labels reports: a row a report, a column a label; 1 said to be present, 0 said to be absent, empty not said."""
    from rich.console import Console

    from knowledge.labelling import label_table

    g = _load(graph)
    texts = _texts(reports, split, id_column, text_column)
    with _one_line():
        rows = label_table(texts, g, view, uncertain, out)
    Console().print(f"{out}: {rows} reports", highlight=False)


def _load(path: Path | None) -> KnowledgeGraph:
    from knowledge.graph import KnowledgeGraph

    with _one_line():
        return KnowledgeGraph.load(path)


def _texts(
    path: Path, split: str | None = None, id_column: str | None = None, text_column: str | None = None
) -> dict[str, str]:
    """Id -> report, findings and impression together where the file keeps them apart."""
    from vlm.evaluation.inputs import read_reports

    found = read_reports(path, id_column, text_column, split)
    if text_column is not None:
        return found.texts
    return {id: _sections(found.records.get(id, {})) or text for id, text in found.texts.items()}


def _sections(record: object) -> str:
    """Findings and impression of a record that keeps them apart, as headed sections; empty when it does not."""
    if not isinstance(record, dict):
        return ""
    inner = record.get("sections")
    sections = inner if isinstance(inner, dict) else record
    lower = {str(k).lower(): v for k, v in sections.items()}
    if not isinstance(lower.get("findings"), str) and not isinstance(lower.get("impression"), str):
        return ""
    parts = [lower.get(name) for name in ("findings", "impression")]
    return "\n".join(p.strip() for p in parts if isinstance(p, str) and p.strip())


class _OneLine:
    """Turns the errors of `knowledge` into the one that the command line prints in one line."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from knowledge.errors import KnowledgeError
        from vlm.types import InputError

        if isinstance(error, KnowledgeError):
            raise InputError(str(error)) from error


def _one_line() -> _OneLine:
    return _OneLine()
