"""The direction of imports: who may import whom is drawn once here, and every file is read against it.

    cli -> batch, training, pipeline, writing, seeing, assembly, validation, training_data, run_state, optimization
        -> checkpoint
        -> export, evaluation, generation, models, losses, data -> config, types, compat -> knowledge

The packages of the row from `export` to `data` never import one another. `checkpoint` lies one layer above them, for a
checkpoint has to rebuild its model; of that row it imports `models` alone. The modules above it may import one another
where that makes no circle; nothing but `cli` is built on `batch` and `training`.

Imports are read with `ast`, those inside functions and under TYPE_CHECKING too: nothing is executed and nothing hides.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vlm", "knowledge")
TOP = (
    "batch",
    "training",
    "pipeline",
    "ensemble",
    "writing",
    "request",
    "report_folder",
    "demo_scores",
    "team",
    "seeing",
    "selecting",
    "explaining",
    "assembly",
    "validation",
    "training_data",
    "run_state",
    "optimization",
    "ablation",
    "adapter_folder",
    "processes",
    "steps",
    "run_folder",
    "rewards",
    "doctor",
    "weightless",
    "memory",
    "tally",
    "sizing",
    "fitting",
    "watching",
    "zero",
)
MIDDLE = ("export", "evaluation", "generation", "models", "losses", "data")
LOW = frozenset({"knowledge", "vlm", "types", "config", "compat"})

# Part -> the parts that it may import. A part is `knowledge` or what follows `vlm.`; `vlm` alone is vlm/__init__.py.
ALLOWED: dict[str, frozenset[str]] = {
    "knowledge": frozenset(),
    "vlm": frozenset(),
    "compat": frozenset(),
    "types": frozenset({"knowledge", "vlm"}),
    "config": frozenset({"knowledge", "vlm", "types"}),
    **dict.fromkeys(MIDDLE, LOW),
    "checkpoint": LOW | {"models"},
    **{part: LOW | {"checkpoint", *MIDDLE, *TOP} - {part} for part in TOP},
    "cli": LOW | {"checkpoint", *MIDDLE, *TOP},
    "__main__": frozenset({"cli", "vlm"}),
}
# Nothing is built on these: they are what a verb calls.
ENDS = ("batch", "training")
for part in TOP:
    ALLOWED[part] = ALLOWED[part] - frozenset(ENDS)


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a file below `root`; a package's name for its `__init__.py`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file, for every Python file of the two packages."""
    return {module_name(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}


def imports(path: Path, name: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, with the line; `from a import b` yields `a.b`, which may be an attribute."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def is_module(name: str) -> bool:
    """Whether a dotted name is a file or a package of this repository."""
    base = ROOT.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or base.is_dir()


def part_of(name: str) -> str | None:
    """The part of the drawing that a dotted name belongs to; None for a name outside the two packages."""
    first, _, rest = name.partition(".")
    if first != "vlm":
        return "knowledge" if first == "knowledge" else None
    second = rest.partition(".")[0]
    # `from vlm import __version__` names an attribute of vlm/__init__.py, not a part.
    return second if second in ALLOWED or (second and is_module(f"vlm.{second}")) else "vlm"


def wrong_arrows(files: dict[str, Path]) -> list[str]:
    """One line for every import that the drawing does not hold."""
    found = []
    for name, path in files.items():
        part = part_of(name)
        for target, line in imports(path, name):
            other = part_of(target)
            if other is None or other == part:
                continue
            if part not in ALLOWED or other not in ALLOWED[part]:
                found.append(f"{path.name}:{line}: {name} -> {target} ({part} may not import {other})")
    return found


def circles(files: dict[str, Path]) -> list[list[str]]:
    """Groups of modules that import one another."""
    graph = nx.DiGraph()
    for name, path in files.items():
        for target, _ in imports(path, name):
            while target and target not in files:
                target = target.rpartition(".")[0]
            # A module imports its own packages by being imported; only what it names counts.
            if target and target != name and not name.startswith(f"{target}."):
                graph.add_edge(name, target)
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def test_every_part_is_in_the_drawing() -> None:
    unknown = {name for name in source_files() if part_of(name) not in ALLOWED}
    assert not unknown, f"new parts must be drawn in ALLOWED (and in CONTRIBUTING.md): {sorted(unknown)}"


def test_no_arrow_outside_the_drawing() -> None:
    found = wrong_arrows(source_files())
    assert not found, "\n".join(found)


def test_no_circle() -> None:
    assert not circles(source_files())


def test_init_files_import_nothing_of_ours() -> None:
    """Every import circle seen in this field's codebases passed through an `__init__.py` that re-exports."""
    found = [
        f"{name}: {target}"
        for name, path in source_files().items()
        if path.name == "__init__.py"
        for target, _ in imports(path, name)
        if part_of(target) is not None
    ]
    assert not found, found


def test_knowledge_needs_no_torch() -> None:
    heavy = {"torch", "torchvision", "transformers", "timm", "peft", "accelerate"}
    found = [
        f"{name}:{line}: {target}"
        for name, path in source_files().items()
        if name.startswith("knowledge")
        for target, line in imports(path, name)
        if target.partition(".")[0] in heavy
    ]
    assert not found, found


def test_only_build_reads_a_config_or_a_graph_in_models() -> None:
    found = [
        f"{name}:{line}: {target}"
        for name, path in source_files().items()
        if name.startswith("vlm.models.") and name != "vlm.models.build"
        for target, line in imports(path, name)
        if target.startswith(("vlm.config", "knowledge.graph"))
    ]
    assert not found, found


def test_cli_modules_load_no_heavy_library_at_the_top() -> None:
    """`vlm --help` answers at once only while torch and its kin are imported inside the verbs' functions."""
    heavy = {
        "torch",
        "torchvision",
        "transformers",
        "timm",
        "peft",
        "cv2",
        "pydicom",
        "accelerate",
        "datasets",
        "matplotlib",
    }
    found = []
    for path in sorted((ROOT / "vlm" / "cli").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{path.name}:{node.lineno}: {name}" for name in names if name.partition(".")[0] in heavy]
    assert not found, found


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("vlm/export/a.py", "from vlm.models.b import C", "export may not import models"),
        ("vlm/export/a.py", "def f():\n    import vlm.data.b", "export may not import data"),
        ("vlm/export/a.py", "from ..models import b", "export may not import models"),
        ("vlm/export/a.py", "from vlm import pipeline", "export may not import pipeline"),
        ("vlm/models/a.py", "import importlib\nimportlib.import_module('vlm.losses')", "models may not import losses"),
        ("vlm/checkpoint.py", "from vlm.data import images", "checkpoint may not import data"),
        ("vlm/models/a.py", "from vlm.checkpoint import b", "models may not import checkpoint"),
        ("vlm/types.py", "from vlm.config import C", "types may not import config"),
        ("vlm/pipeline.py", "from vlm.training import fit", "pipeline may not import training"),
        ("knowledge/a.py", "import vlm.types", "knowledge may not import types"),
    ],
)
def test_a_wrong_arrow_is_found(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = wrong_arrows({module_name(path, tmp_path): path})
    assert len(found) == 1
    assert message in found[0]


def test_a_circle_is_found(tmp_path: Path) -> None:
    (tmp_path / "knowledge").mkdir()
    (tmp_path / "vlm").mkdir()
    (tmp_path / "knowledge" / "a.py").write_text("from knowledge.b import x")
    (tmp_path / "knowledge" / "b.py").write_text("def f():\n    from knowledge import a")
    assert circles(source_files(tmp_path)) == [["knowledge.a", "knowledge.b"]]
