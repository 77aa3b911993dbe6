"""What `vlm evaluate` does: reads, joins, scores, prints, writes, and tests the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vlm.evaluation import output
from vlm.evaluation.explain import row_of
from vlm.evaluation.gate import gate, parts_of
from vlm.evaluation.inputs import Joined, Reports, join, read_reports
from vlm.evaluation.result import Evaluation
from vlm.evaluation.run import Settings, evaluate_reports
from vlm.types import InputError


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line of `vlm evaluate`, in its order; see the options' help there."""

    predictions: Sequence[Path]
    references: Path | None = None
    train: Path | None = None
    train_predictions: Path | None = None
    labels: Path | None = None
    split: str | None = None
    train_split: str = "train"
    id_column: str | None = None
    text_column: str | None = None
    reference_id: str | None = None
    reference_text: str | None = None
    names: Sequence[str] | None = None
    profile: str = "canonical"
    allow_missing: bool = False
    meteor: str = "stem"
    rouge_beta: float = 1.2
    view: str = "radscribe"
    coded_view: str = "openi20"
    clinical: bool = True
    plugins: Sequence[str] = ()
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    fail_if: Sequence[str] = ()
    json_file: Path | None = None
    markdown_file: Path | None = None
    csv_file: Path | None = None
    html: Path | None = None
    explain: str | None = None
    scorers: bool = False
    perturb: bool = False
    quiet: bool = False


def run(arguments: Arguments, console: Console, extra: Mapping[str, float] | None = None) -> list[str]:
    """Runs one evaluation.

    Args:
        arguments: the command line.
        console: where to print.
        extra: further numbers by name (reruns of a checkpoint), for the JSON file and the gate.

    Returns:
        Why the gate failed; empty when it passed.

    Raises:
        InputError: anything wrong with a file or an option.
    """
    _check(arguments)
    joined, train = _read(arguments)
    if arguments.explain is not None:
        row_of(joined, arguments.explain)
    settings = Settings(
        arguments.profile,
        arguments.resamples,
        arguments.seed,
        arguments.level,
        arguments.rouge_beta,
        arguments.meteor,
        arguments.clinical,
        arguments.view,
        arguments.coded_view,
    )
    neighbours = read_reports(arguments.train_predictions) if arguments.train_predictions is not None else None
    result = evaluate_reports(joined, settings, train, neighbours, arguments.labels)
    result.extra.update(extra or {})
    if arguments.plugins:
        from vlm.evaluation.plugins import add_plugins

        add_plugins(result, joined, arguments.plugins, settings)
    output.print_tables(result, console, verbose=not arguments.quiet)
    _extras(arguments, joined, console)
    _write(arguments, result, joined)
    return gate(arguments.fail_if, result.flat(), list(joined.systems)) if arguments.fail_if else []


def _check(arguments: Arguments) -> None:
    """Refuses wrong options before anything is read or scored."""
    if arguments.meteor not in ("stem", "java", "off"):
        raise InputError(f"--meteor {arguments.meteor!r} is unknown; choose stem, java or off")
    if arguments.meteor == "java":
        from vlm.evaluation.meteor_java import JavaMeteor

        JavaMeteor()
    for condition in arguments.fail_if:
        parts_of(condition)
    if arguments.plugins:
        from vlm.evaluation.plugins import load_plugin

        for name in arguments.plugins:
            load_plugin(name)


def _read(arguments: Arguments) -> tuple[Joined, Reports | None]:
    if arguments.references is None:
        raise InputError("give the reference reports with --references FILE")
    names = list(arguments.names or _names(arguments.predictions))
    if len(names) != len(arguments.predictions) or len(set(names)) != len(names):
        raise InputError(
            f"--names gives {len(names)} names for {len(arguments.predictions)} files; give one different name each"
        )
    systems = {
        name: read_reports(path, arguments.id_column, arguments.text_column, _part(path, arguments.split))
        for name, path in zip(names, arguments.predictions, strict=True)
    }
    references = read_reports(arguments.references, arguments.reference_id, arguments.reference_text, arguments.split)
    train = None
    if arguments.train is not None:
        # A table with a column "split" holds test reports too, and floors must not be chosen on them.
        tabular = arguments.train.suffix.lower() != ".json"
        part = arguments.train_split if tabular else _part(arguments.train, arguments.train_split)
        train = read_reports(arguments.train, arguments.reference_id, arguments.reference_text, part)
        if not any(train.texts.values()):
            raise InputError(
                f"{arguments.train}: every training reference is empty; name their column with --reference-text"
            )
    return join(systems, references, arguments.allow_missing), train


def _part(path: Path, split: str | None) -> str | None:
    """Returns the split only for files that have parts: a JSON file of lists."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with path.open("rb") as stream:
        head = stream.read(200).lstrip(b"\xef\xbb\xbf \n\r\t")
    return split if head.startswith(b"{") and b"[" in head else None


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns a short name for each file: its stem, with its folder's name where stems repeat."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems) and not (len(stems) > 1 and "reports" in stems):
        return stems
    return [f"{path.parent.name or '.'}/{path.stem}" for path in paths]


def _extras(arguments: Arguments, joined: Joined, console: Console) -> None:
    if arguments.explain is not None:
        from vlm.evaluation.explain import print_explanation

        print_explanation(joined, arguments.explain, console)
    if arguments.scorers:
        from vlm.evaluation.scorers import print_scorers

        print_scorers(joined, console)
    if arguments.perturb:
        from vlm.evaluation.perturb import print_perturbations

        print_perturbations(joined, arguments.clinical, arguments.seed, console)


def _write(arguments: Arguments, result: Evaluation, joined: Joined) -> None:
    if arguments.json_file is not None:
        output.write(arguments.json_file, output.as_json(result))
    if arguments.markdown_file is not None:
        output.write(arguments.markdown_file, output.markdown(result))
    if arguments.csv_file is not None:
        output.write(arguments.csv_file, output.by_study_csv(result))
    if arguments.html is not None:
        from vlm.evaluation.page import write_page

        write_page(arguments.html, result, joined)


def review(folder: Path, console: Console, json_file: Path | None = None) -> None:
    """Writes the review page of a folder of systems, or summarises the ratings that lie in it."""
    from vlm.evaluation.review import review_folder

    review_folder(folder, console, json_file)
