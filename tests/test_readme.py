"""The README keeps its promises: its marked commands run as written, its links exist, no gap is left.

A block is run when an HTML comment `<!-- test: NAME -->` stands on the line before its fence. It runs in a temporary
folder in which the function `lay_NAME` has laid out tiny data, with `vlm` on the path. Where no checkpoint is shipped a
tiny untrained one stands in for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- test: (\w+) -->\n```bash\n(.*?)```", README, re.DOTALL))
sys.path.insert(0, str(ROOT / "tests" / "vlm"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHIM = """#!{python}
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
import vlm.checkpoint
if not (vlm.checkpoint.SHIPPED / vlm.checkpoint.RECORD).is_file():
    vlm.checkpoint.SHIPPED = Path({tiny!r})
from vlm.cli.main import main
main()
"""


def draw(path: Path, number: int) -> None:
    """A grey picture, another one for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = np.tile(np.linspace(20, 160, 96), (96, 1)) + rng.normal(0, 6, (96, 96))
    assert cv2.imwrite(str(path), pixels.clip(0, 255).astype(np.uint8))


def lay_generate(folder: Path, language: Path) -> None:
    from vlm.data.phantoms.chest_ct import write_phantom

    (study,) = write_phantom(folder / "drawn", 1, 0)
    assert study.images[0].path is not None
    study.images[0].path.rename(folder / "chest.dcm")
    rows = ["id,image,view,indication"]
    for number in range(3):
        draw(folder / "scans" / f"{number}.png", number)
        rows.append(f"s{number},scans/{number}.png,frontal,Cough.")
    (folder / "studies.csv").write_text("\n".join(rows) + "\n")


def lay_openi(folder: Path, language: Path) -> None:
    """Twelve studies in the Indiana layout, and a configuration of the shipped one's name that fits them."""
    root = folder / "data" / "openi"
    texts = ["The heart is normal. The lungs are clear.", "There is cardiomegaly. No pleural effusion."]
    reports = ["uid,MeSH,Problems,image,indication,comparison,findings,impression"]
    projections = ["uid,filename,projection"]
    splits: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    labels = {}
    for uid in range(1, 13):
        name = f"{uid}_IM-0001-4001.dcm.png"
        draw(root / "images" / "images_normalized" / name, uid)
        reports.append(f"{uid},normal,normal,x,Cough.,None.,{texts[uid % 2]},Stable.")
        projections.append(f"{uid},{name},Frontal")
        entry = {"id": f"CXR{uid}_IM-0001-4001", "report": texts[uid % 2], "image_path": [f"CXR{uid}/0.png"]}
        splits["train" if uid < 9 else "val"].append(entry)
        labels[str(uid)] = ["cardiomegaly"] if uid % 2 else ["normal / no indexing"]
    (root / "indiana_reports.csv").write_text("\n".join(reports) + "\n")
    (root / "indiana_projections.csv").write_text("\n".join(projections) + "\n")
    (root / "r2gen_annotation.json").write_text(json.dumps(splits))
    (root / "labels20.json").write_text(json.dumps(labels))
    tree = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    for part, split in (("train", "train"), ("validation", "val")):
        tree["data"][part] = [{"path": "openi", "format": "openi", "split": [split]}]
    tree["model"]["language"]["path"] = str(language)
    tree["data"]["image_size"] = {"default": 64}
    tree["generation"]["max_new_tokens"] = 12
    (folder / "configs").mkdir()
    (folder / "configs" / "openi.yaml").write_text(yaml.safe_dump(tree))


def lay_finetune(folder: Path, language: Path) -> None:
    """Twenty-four studies in a list without splits, and a configuration of the shipped one's name that fits them."""
    rows = ["id,image,view,findings"]
    texts = ["The heart is normal. The lungs are clear.", "There is cardiomegaly. No pleural effusion."]
    for number in range(24):
        draw(folder / "films" / f"{number}.png", number)
        rows.append(f"s{number},films/{number}.png,frontal,{texts[number % 2]}")
    (folder / "studies.csv").write_text("\n".join(rows) + "\n")
    tree = yaml.safe_load((ROOT / "configs" / "tiny.yaml").read_text())
    own = yaml.safe_load((ROOT / "configs" / "finetune.yaml").read_text())
    tree["data"] |= {"train": own["data"]["train"], "validation": own["data"]["validation"]}
    tree["data"]["image_size"] = {"default": 64}
    tree["model"]["language"]["path"] = str(language)
    tree["generation"]["max_new_tokens"] = 12
    tree["training"]["stages"] = [own["training"]["stages"][-1] | {"epochs": 1, "batch_size": 8}]
    (folder / "configs").mkdir()
    (folder / "configs" / "finetune.yaml").write_text(yaml.safe_dump(tree))


def lay_evaluate(folder: Path, language: Path) -> None:
    texts = {"a": "The heart is enlarged.", "b": "The lungs are clear.", "c": "Small left pleural effusion."}
    for name in ("ours", "references"):
        lines = [json.dumps({"id": k, "text": v}) for k, v in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "theirs.csv").write_text("id,text\n" + "".join(f"{k},The lungs are clear.\n" for k in texts))


LAYOUTS: dict[str, Callable[[Path, Path], None]] = {
    "generate": lay_generate,
    "openi": lay_openi,
    "finetune": lay_finetune,
    "evaluate": lay_evaluate,
}
EXPECTED = {
    "generate": (
        "reports/index.html", "reports-scans/sr/0.dcm", "reports-scans/fhir/0.json", "reports-list/reports.jsonl",
    ),
    "openi": ("runs/openi/best/checkpoint.json", "out/openi/reports.jsonl", "out/openi/index.html"),
    "finetune": ("studies-split.csv", "runs/mine/best/checkpoint.json", "out/mine/reports.jsonl"),
    "evaluate": ("scores.json",),
}  # fmt: skip


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random decoder as a Hugging Face folder."""
    from tiny import write_language

    return write_language(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def tiny_checkpoint_folder(language_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved checkpoint of a tiny untrained model."""
    from tiny import tiny_config

    from vlm.assembly import starting_point
    from vlm.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(folder, starting_point(tiny_config(language_folder), None))
    return folder


def test_every_marked_block_has_a_layout() -> None:
    assert set(BLOCKS) == set(LAYOUTS) == set(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_commands_run_as_written(
    name: str, tmp_path: Path, language_folder: Path, tiny_checkpoint_folder: Path
) -> None:
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "vlm"
    shim.write_text(SHIM.format(python=sys.executable, root=str(ROOT), tiny=str(tiny_checkpoint_folder)))
    shim.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    LAYOUTS[name](work, language_folder)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RADSCRIBE")}
    environment |= {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    bash = shutil.which("bash")
    assert bash, "the README's commands are bash"
    done = subprocess.run(
        [bash, "-euc", BLOCKS[name]], cwd=work, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    missing = [file for file in EXPECTED[name] if not (work / file).is_file()]
    assert not missing, missing


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", README) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert not missing, missing


def test_no_number_is_missing() -> None:
    gaps = [f"line {n}: {line.strip()[:80]}" for n, line in enumerate(README.splitlines(), 1) if "GAP" in line]
    assert not gaps, "\n".join(gaps)


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets
