"""Prepared sets: the same bytes for any number of workers, gone on with after a kill, read as the sources are."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from knowledge.ontology import Certainty
from vlm.cli.data import app
from vlm.data import prepare as prepare_module
from vlm.data.images import load_image
from vlm.data.layouts.tabular import write_studies
from vlm.data.packing import Packing
from vlm.data.prepare import index_only, prepare
from vlm.data.prepared import PreparedSet
from vlm.data.sources import layout_of, read_studies
from vlm.data.transforms import letterbox
from vlm.types import Box, Finding, InputError, Modality, Study, StudyImage, View

RUN = CliRunner()


def make_list(folder: Path, count: int = 10) -> Path:
    """Studies of one or two images with every kind of "unknown" among them; two splits, interleaved."""
    studies = []
    for number in range(count):
        images = []
        for view in (View.FRONTAL, View.LATERAL)[: 1 + number % 2]:
            path = folder / f"{number}-{view}.png"
            cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (100, 80), dtype=np.uint8))
            images.append(StudyImage(path, view=view, modality=Modality.XRAY, spacing_mm=(0.5, 0.25)))
        known = number % 3
        studies.append(
            Study(
                id=f"s{number}",
                images=images,
                clinical={"indication": "Cough."} if known else {},
                boxes=[None, (), (Box((10, 20, 40, 60), "nodule", len(images) - 1),)][known],
                findings=[None, (), (Finding("nodule", Certainty.PRESENT, side="left", boxes=(0,)),)][known],
                report={"findings": f"A nodule of {number} mm."} if known else None,
                patient=f"p{number // 2}" if known else None,
                split=("train", "val")[number % 2],
            )
        )
    write_studies(folder / "studies.jsonl", studies)
    return folder / "studies.jsonl"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return make_list(tmp_path / "source")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def without_images(study: Study) -> tuple[object, ...]:
    return (
        study.id, study.clinical, study.findings, study.boxes, study.report, study.patient, study.split,
        [(i.view, i.modality, i.spacing_mm) for i in study.images],
    )  # fmt: skip


def test_a_prepared_set_reads_as_its_source_does(source: Path, tmp_path: Path) -> None:
    done = prepare([(source, "auto")], tmp_path / "out", Packing(size=512), shard=3)
    assert (done.studies, done.images, done.failed, done.shards) == (10, 15, (), 4)
    assert layout_of(tmp_path / "out").name == "prepared"
    before = {s.id: s for s in read_studies(source)}
    after = read_studies(tmp_path / "out")
    assert [s.split for s in after] == ["train"] * 5 + ["val"] * 5
    for study in after:
        assert without_images(study) == without_images(before[study.id])
        for mine, theirs in zip(study.images, before[study.id].images, strict=True):
            assert np.array_equal(load_image(mine).pixels, load_image(theirs).pixels)


def test_scaling_down_to_the_models_size_changes_nothing_the_model_sees(source: Path, tmp_path: Path) -> None:
    prepare([(source, "auto")], tmp_path / "out", Packing(size=64))
    before = {s.id: s for s in read_studies(source)}
    for study in PreparedSet(tmp_path / "out"):
        for mine, theirs in zip(study.images, before[study.id].images, strict=True):
            small, placement = letterbox(load_image(mine).pixels, 64)
            large, full = letterbox(load_image(theirs).pixels, 64)
            assert np.array_equal(np.round(small * 255), np.round(large * 255))
            for box, original in zip(study.boxes or (), before[study.id].boxes or (), strict=True):
                assert np.allclose(placement.to_model([box.xyxy]), full.to_model([original.xyxy]), atol=1e-4)
        rows, columns = study.images[0].spacing_mm
        assert (rows, columns) == pytest.approx((0.5 * 100 / 64, 0.25 * 80 / 51))


def test_any_number_of_workers_writes_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        prepare([(source, "auto")], tmp_path / str(workers), Packing(size=64), shard=2, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == 6 + 3


def test_a_broken_study_is_recorded_and_the_rest_goes_on(source: Path, tmp_path: Path) -> None:
    good = (source.parent / "3-frontal.png").read_bytes()
    (source.parent / "3-frontal.png").write_bytes(good[:200])
    done = RUN.invoke(app, ["prepare", str(source), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert done.exit_code == 1
    assert "9 studies" in done.output
    assert "1 studies were left out" in done.output
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "s3"
    assert "truncated" in json.loads(line)["error"]
    # Mended, the same command tries its shard again.
    (source.parent / "3-frontal.png").write_bytes(good)
    done = RUN.invoke(app, ["prepare", str(source), "--out", str(tmp_path / "out"), "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert "10 studies, 15 images, 2 shards (1 from before)" in done.output
    assert not (tmp_path / "out" / "failures.jsonl").exists()


def test_a_killed_run_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    prepare([(source, "auto")], tmp_path / "whole", Packing(size=64), shard=1)
    # The first three shards, then killed without a chance to tidy up, in the middle of the fourth.
    program = (
        "import os, signal, sys; from pathlib import Path; from vlm.data import prepare as p, shards;"
        "from vlm.data.packing import Packing\n"
        "real = shards._row; count = 0\n"
        "def row(*a):\n global count; count += 1\n"
        " if count == 4: os.kill(os.getpid(), signal.SIGKILL)\n return real(*a)\n"
        "shards._row = row\n"
        "p.prepare([(Path(sys.argv[1]), 'auto')], Path(sys.argv[2]), Packing(size=64), shard=1)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(source), str(tmp_path / "out")], check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out" / "data").glob("*.parquet"))) == 3
    assert list((tmp_path / "out" / "data").glob(".*.tmp"))
    with pytest.raises(InputError, match=r"out: its preparation was not finished; run the same vlm data prepare"):
        read_studies(tmp_path / "out")
    assert prepare([(source, "auto")], tmp_path / "out", Packing(size=64), shard=1).earlier == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_interrupted_workers_leave_whole_shards(source: Path, tmp_path: Path) -> None:
    program = "import sys; from vlm.cli.main import main; main(sys.argv[1:])"
    call = ["data", "prepare", str(source), "--out", str(tmp_path / "out"), "--shard", "1", "--workers", "2"]
    run = subprocess.Popen([sys.executable, "-c", program, *call], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 100
    while not list((tmp_path / "out" / "data").glob("*.parquet")) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=100)
    assert run.returncode in (0, 130)
    assert "Traceback" not in said
    assert prepare([(source, "auto")], tmp_path / "out", shard=1).studies == 10


def test_a_full_disk_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/x")

    monkeypatch.setattr(prepare_module, "write_shard", full)
    with pytest.raises(InputError, match=r"out: No space left on device; what is written stays"):
        prepare([(source, "auto")], tmp_path / "out")


def test_hounsfield_units_are_kept_on_request(tmp_path: Path, write_dicom) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "source").mkdir()
    stored = np.arange(64 * 64, dtype=np.int16).reshape(64, 64) - 1000
    path = write_dicom(tmp_path / "source" / "a.dcm", stored, Modality="CT", RescaleSlope=1, RescaleIntercept=0)
    prepare([(tmp_path / "source", "auto")], tmp_path / "hu", Packing(hu=True))
    prepare([(tmp_path / "source", "auto")], tmp_path / "lung", Packing(window="lung"))
    (study,) = read_studies(tmp_path / "hu")
    for window in (None, "lung", (40.0, 400.0)):
        kept = load_image(StudyImage(study.images[0].path, frame=0, window=window)).pixels
        assert np.allclose(kept, load_image(StudyImage(path, window=window)).pixels, atol=1e-3)
    (study,) = read_studies(tmp_path / "lung")
    assert np.allclose(
        load_image(study.images[0]).pixels, load_image(StudyImage(path, window="lung")).pixels, atol=0.002
    )


def test_datasets_reads_the_shards(source: Path, tmp_path: Path) -> None:
    import datasets

    prepare([(source, "auto")], tmp_path / "out", Packing(size=64), shard=3)
    found = datasets.load_dataset(str(tmp_path / "out"), split="val", streaming=True)
    rows = list(found)
    assert [row["id"] for row in rows] == ["s1", "s3", "s5", "s7", "s9"]
    assert rows[0]["images"][1].size == (51, 64)


@pytest.mark.parametrize("scheme", ["memory://sets/out", "file"])
def test_a_set_elsewhere_streams(source: Path, tmp_path: Path, scheme: str) -> None:
    prepare([(source, "auto")], tmp_path / "out", shard=2)
    address = scheme if "://" in scheme else f"file://{tmp_path / 'out'}"
    if scheme.startswith("memory"):
        fsspec.filesystem("memory").put(str(tmp_path / "out") + "/", "/sets/out", recursive=True)
    there = PreparedSet(Path(address), kept=2)
    here = PreparedSet(tmp_path / "out")
    for mine, theirs in zip(there, here, strict=True):
        assert without_images(mine) == without_images(theirs)
        pixels = [load_image(image).pixels for image in mine.images]
        assert all(np.array_equal(p, load_image(i).pixels) for p, i in zip(pixels, theirs.images, strict=True))
        assert len(list((there.store.folder / "data").iterdir())) <= 2


def test_an_index_names_files_where_they_lie(source: Path, tmp_path: Path) -> None:
    done = index_only([(source, "auto")], tmp_path / "out")
    assert (done.studies, done.images, done.shards) == (10, 15, 0)
    before = read_studies(source)
    for mine, theirs in zip(PreparedSet(tmp_path / "out"), before, strict=True):
        assert mine == theirs
    columns = PreparedSet(tmp_path / "out").columns("modality", "findings_chars").to_pydict()
    assert columns["modality"] == ["xray"] * 10
    assert columns["findings_chars"][:3] == [0, 17, 17]


def test_what_is_wrong_with_a_set_is_one_line(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([(source, "auto")], out, shard=5)
    with pytest.raises(InputError, match=r"out: holds a set prepared from other settings; choose another --out"):
        prepare([(source, "auto")], out, Packing(size=64), shard=5)
    with pytest.raises(InputError, match=r"source: holds files that are no prepared set"):
        prepare([(source, "auto")], source.parent)
    shard = out / "data" / "train-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-300])
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet: the shard is cut or broken .*prepare again"):
        [load_image(image) for study in PreparedSet(out) for image in study.images]
    assert prepare([(source, "auto")], out, shard=5).earlier == 1  # the cut one is made again
    manifest = json.loads((out / "prepared.json").read_text())
    for change, message in (
        ({"version": 7}, r"is of format radscribe-prepared 7, this program reads radscribe-prepared 1"),
        ({"studies": 99}, r"index\.parquet holds 10 studies and prepared\.json says 99"),
        ({"shards": [{"file": "../../x.parquet"}]}, r"prepared\.json is broken"),
    ):
        (out / "prepared.json").write_text(json.dumps(manifest | change))
        with pytest.raises(InputError, match=message):
            PreparedSet(out)
    (out / "prepared.json").write_text("{")
    with pytest.raises(InputError, match=r"prepared\.json is broken"):
        PreparedSet(out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: is no prepared set"):
        PreparedSet(tmp_path / "empty")
    with pytest.raises(InputError, match=r"nowhere: cannot be reached|nowhere: prepared\.json cannot be read"):
        PreparedSet("nosuch://nowhere")
    other = tmp_path / "other.parquet"
    import pyarrow.parquet
    from pyarrow import table

    pyarrow.parquet.write_table(table({"a": [1]}), other)
    with pytest.raises(InputError, match=r"no shard of a prepared set"):
        load_image(StudyImage(other, frame=0))
