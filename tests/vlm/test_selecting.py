"""Choosing what is annotated next: scores against hand-worked values, the choice, what is kept, and the list."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import draw_study, tiny_config

from vlm.assembly import starting_point
from vlm.checkpoint import Checkpoint
from vlm.data.sources import read_studies
from vlm.selecting.listing import check_out, write_list
from vlm.selecting.looking import Committee, Look, Member, Unread, dropping_parts
from vlm.selecting.picking import Kept, Pick, choose, kept_beside, make_pool, select, summary
from vlm.selecting.scores import around_cut, disagreement, entropy, k_centre, over_labels, uncertainty
from vlm.types import InputError, Modality, Study, StudyImage


def test_entropy_is_in_bits() -> None:
    # H(0.5) = 1; H(0.25) = 2 - 0.75 log2 3 (by hand).
    assert entropy(np.array([0.5, 0.25])) == pytest.approx([1.0, 2 - 0.75 * np.log2(3)])
    assert entropy(np.array([0.0, 1.0])) == pytest.approx([0.0, 0.0], abs=1e-4)
    assert np.isnan(entropy(np.array([np.nan]))[0])


def test_a_finding_at_its_cut_is_as_unsure_as_a_coin() -> None:
    # Odds are divided by the cut's: 0.1 at a cut of 0.1 is even; 0.5 at 0.2 has odds of 4.
    assert around_cut(np.array([0.1, 0.5]), np.array([0.1, 0.2])) == pytest.approx([0.5, 0.8])
    rare, common = uncertainty(np.array([[[0.15, 0.15]]]), np.array([0.15, 0.5]))[0]
    assert rare == pytest.approx(1.0)
    assert common == pytest.approx(entropy(np.array(0.15)))


def test_an_unsure_box_counts_for_its_label_and_nothing_is_said_of_unspoken_ones() -> None:
    probability = np.array([[[0.99, 0.5, np.nan]]])
    values = uncertainty(probability, np.full(3, 0.5), np.array([[0.9, 0.2, 1.0]]))
    assert values[0, :2] == pytest.approx([0.9, 1.0])
    assert np.isnan(values[0, 2])
    assert over_labels(values) == pytest.approx([0.95])


def test_disagreement_is_the_jensen_shannon_divergence() -> None:
    # Opposite and sure: 1 bit. Alike, however unsure: 0. (0.75, 0.25): H(0.5) - H(0.25) = 0.75 log2 3 - 1.
    members = np.array([[[1.0, 0.5, 0.75]], [[0.0, 0.5, 0.25]]])
    assert disagreement(members)[0] == pytest.approx([1.0, 0.0, 0.75 * np.log2(3) - 1], abs=1e-4)


def test_k_centre_takes_the_farthest_each_time() -> None:
    line = np.array([[0.0], [1.0], [4.0], [10.0], [10.0]])
    rows, apart, of = k_centre(line, 3, labelled=np.array([[0.0]]))
    assert rows.tolist() == [3, 2, 1]  # 10 away; then 4 from 0 (6 from 10); then 1
    assert apart.tolist() == [10.0, 4.0, 1.0]
    assert of.tolist() == [-1, -1, -1]
    rows, apart, of = k_centre(line, 5)
    assert rows.tolist() == [2, 3, 0, 1, 4]  # 4 is nearest to the mean, 5; the twin of 3 comes last
    assert np.isinf(apart[0])
    assert of[1:].tolist() == [2, 2, 0, 3]


def looks_of(probability: np.ndarray, features: np.ndarray) -> list[Look]:
    """Looks from (M, N, F) and (N, D)."""
    rows = range(len(features))
    return [Look(f"s{i}", probability[:, i], np.zeros(probability.shape[2]), features[i]) for i in rows]


@pytest.fixture(scope="module")
def checkpoint(language_folder: Path) -> Checkpoint:
    config = tiny_config(language_folder, model__dropout=0.2)
    made = starting_point(config, None)
    made.model.eval()
    return made


def test_twins_are_not_chosen_together(checkpoint: Checkpoint) -> None:
    committee = Committee([Member(checkpoint)])
    labels = len(committee.labels)
    level = np.array([0.5, 0.5, 0.4, 0.3, 0.01, 0.01])
    features = np.array([[0.0], [0.0], [5.0], [9.0], [50.0], [70.0]])
    looks = looks_of(np.tile(level[None, :, None], (1, 1, labels)), features)
    studies = [Study(f"s{i}", []) for i in range(6)]
    plain = choose(committee, studies, looks, [], 2, "uncertainty", breadth=1)
    assert [p.study.id for p in plain] == ["s0", "s1"]
    spread = choose(committee, studies, looks, [], 2, "uncertainty", breadth=2)
    assert [p.study.id for p in spread] == ["s0", "s3"]  # far and among the four least sure; s5 is farther, but sure
    assert spread[0].score == 1.0
    assert spread[0].finding == committee.labels[0]
    assert spread[0].why.startswith(f"{committee.labels[0]} 0.50")


def test_diversity_keeps_away_from_what_is_labelled(checkpoint: Checkpoint) -> None:
    committee = Committee([Member(checkpoint)])
    looks = looks_of(np.full((1, 3, len(committee.labels)), 0.5), np.array([[0.0], [4.0], [10.0]]))
    centre = Look("old", looks[0].probability, looks[0].boxes, np.array([9.0]))
    studies = [Study(f"s{i}", []) for i in range(3)]
    picks = choose(committee, studies, looks, [centre], 2, "diversity")
    assert [(p.study.id, p.score, p.why) for p in picks] == [
        ("s0", 9.0, "nearest chosen or labelled: old"),
        ("s1", 4.0, "nearest chosen or labelled: s0"),
    ]


def test_a_look_does_not_know_what_the_pool_said(checkpoint: Checkpoint, tmp_path: Path) -> None:
    committee = Committee([Member(checkpoint)])
    study = draw_study(tmp_path, 1)
    bare = replace(study, findings=None, boxes=None, report=None)
    (_, told), (_, untold) = committee.looks([study, bare])
    assert isinstance(told, Look)
    assert isinstance(untold, Look)
    assert np.array_equal(told.probability, untold.probability)
    assert np.array_equal(told.features, untold.features)
    assert told.features.shape == (2 * checkpoint.config.model.width,)


def test_passes_differ_by_drop_out_and_repeat_by_seed_whoever_is_looked_at_before(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    studies = [draw_study(tmp_path, number) for number in (1, 2)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    both = [look for _, look in Committee([Member(checkpoint)], 4, 0).looks(studies)]
    (_, alone), *_ = Committee([Member(checkpoint)], 4, 0).looks(studies[1:])
    (_, other), *_ = Committee([Member(checkpoint)], 4, 1).looks(studies[1:])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(both[1].probability, alone.probability)
    assert not np.array_equal(other.probability, alone.probability)
    assert alone.probability.shape == (4, len(checkpoint.labels))
    assert np.ptp(alone.probability, axis=0).max() > 1e-4
    assert not any(module.training for module in checkpoint.model.modules())


def test_without_drop_out_passes_equal_the_plain_look(language_folder: Path, tmp_path: Path) -> None:
    checkpoint = starting_point(tiny_config(language_folder), None)
    checkpoint.model.eval()
    for module in checkpoint.model.queries.modules():  # what `drop_passes` computes, with masks that drop nothing
        if isinstance(module, torch.nn.Dropout):
            module.p = 1e-9
    assert dropping_parts(checkpoint.model)
    ((_, plain),) = Committee([Member(checkpoint)]).looks([draw_study(tmp_path, 1)])
    ((_, passed),) = Committee([Member(checkpoint)], 2).looks([draw_study(tmp_path, 1)])
    assert isinstance(plain, Look)
    assert isinstance(passed, Look)
    np.testing.assert_allclose(passed.probability, np.repeat(plain.probability, 2, axis=0), atol=1e-5)


def test_labels_of_other_modalities_are_not_counted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    calibration = replace(checkpoint.calibration, modalities={"xray": [checkpoint.labels[1]], "ct": []})
    member = Member(replace(checkpoint, calibration=calibration))
    xray = draw_study(tmp_path, 1)
    ct = replace(xray, id="ct", images=[replace(i, modality=Modality.CT) for i in xray.images])
    (_, seen), (_, unseen) = Committee([member]).looks([xray, ct])
    assert isinstance(seen, Look)
    assert np.flatnonzero(~np.isnan(seen.probability[0])).tolist() == [1]
    assert isinstance(unseen, Unread)
    assert "speaks of no finding in ct" in unseen.message


def test_committees_that_cannot_disagree_are_refused(checkpoint: Checkpoint, language_folder: Path) -> None:
    sure = starting_point(tiny_config(language_folder), None)
    with pytest.raises(InputError, match="without drop-out agrees with itself"):
        Committee([Member(sure)], 4)
    with pytest.raises(InputError, match="share one image half"):
        Committee([Member(checkpoint), Member(checkpoint)])
    short = Member(sure)
    short.checkpoint = replace(sure, labels=tuple(name for name in sure.labels if name != "nodule"))
    with pytest.raises(InputError, match=r"finding lists differ \(nodule\)"):
        Committee([Member(checkpoint), short])


def test_two_members_are_asked_in_turn(checkpoint: Checkpoint, language_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(language_folder, training__seed=1)
    other = starting_point(config, None)
    other.model.eval()
    study = draw_study(tmp_path, 1)
    ((_, both),) = Committee([Member(checkpoint), Member(other)]).looks([study])
    alone = [next(Committee([Member(c)]).looks([study]))[1] for c in (checkpoint, other)]
    assert np.array_equal(both.probability, np.concatenate([look.probability for look in alone]))


def test_an_interrupted_call_is_taken_up(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = [draw_study(tmp_path, number) for number in range(4)]
    kept = kept_beside(tmp_path / "chosen.csv")
    pool = make_pool(studies, [], 2)
    committee = Committee([Member(checkpoint)])
    whole = select(committee, pool, 2, "uncertainty")
    seen: list[str] = []

    def stop(study: Study, _: Look | Unread) -> None:
        seen.append(study.id)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(committee, pool, 2, "uncertainty", kept, stop)
    with kept.open("a") as stream:
        stream.write('{"stamp": "cut off')
    looked: list[str] = []
    monkeypatch.setattr(Member, "look", counting(Member.look, looked))
    again = select(committee, pool, 2, "uncertainty", kept)
    assert looked == ["study3"]
    assert [(p.study.id, p.score) for p in again.picks] == [(p.study.id, p.score) for p in whole.picks]
    Path(studies[0].images[0].path or "").touch()  # an image that was changed is looked at again
    select(committee, pool, 2, "uncertainty", kept)
    assert looked[1:] == ["study0"]
    with Kept(kept, "another committee's") as other:
        assert not other.found


def counting(look, looked: list[str]):  # type: ignore[no-untyped-def]
    """`Member.look` that writes down whom it looked at."""

    def wrapped(self, example, *rest):  # type: ignore[no-untyped-def]
        looked.append(example.id)
        return look(self, example, *rest)

    return wrapped


def test_a_study_that_cannot_be_read_is_left_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    studies = [draw_study(tmp_path, number) for number in range(3)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = Study("broken", [StudyImage(path=tmp_path / "broken.png")])
    committee = Committee([Member(checkpoint)])
    found = select(committee, make_pool([broken, *studies], studies[:1], 3), 3, "uncertainty")
    assert {p.study.id for p in found.picks} == {"study1", "study2"}
    assert [f.study_id for f in found.failed] == ["broken"]
    assert summary(found, "uncertainty").startswith("2 of 3 studies (1 labelled ones left out) by uncertainty")
    with pytest.raises(InputError, match=r"no study of the pool could be looked at; the first: .*broken"):
        select(committee, make_pool([broken], [], 1), 1, "uncertainty")


def test_more_than_the_pool_holds_is_refused(tmp_path: Path) -> None:
    studies = [Study(f"s{i}", []) for i in range(5)]
    with pytest.raises(InputError, match="--n 6: the pool has 5 studies; ask for at most 5"):
        make_pool(studies, [], 6)
    with pytest.raises(InputError, match="5 studies, 2 of them labelled already; ask for at most 3"):
        make_pool(studies, [*studies[:2], Study("elsewhere", [])], 4)


@pytest.mark.parametrize("name", ["chosen.csv", "chosen.jsonl"])
def test_the_list_is_read_back_without_labels(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    study = replace(draw_study(tmp_path / "images", 1), patient="p-17")
    out = tmp_path / name
    write_list(out, [Pick(study, 1, 0.5, "nodule 0.48, mass 0.3", "nodule")])
    (read,) = read_studies(out)
    assert read.id == study.id
    assert [i.path for i in read.images] == [i.path for i in study.images]
    assert [(i.view, i.modality) for i in read.images] == [(i.view, i.modality) for i in study.images]
    assert read.clinical == study.clinical
    assert (read.findings, read.boxes, read.report, read.patient, read.split) == (None, None, None, None, "train")
    text = out.read_text()
    assert "p-17" not in text
    assert "right lung" not in text
    if name.endswith(".csv"):
        (row,) = csv.DictReader(text.splitlines())
        assert (row["rank"], row["score"], row["why"]) == ("1", "0.5", "nodule 0.48, mass 0.3")
        assert row["findings"] == row["impression"] == ""
    else:
        assert json.loads(text)["selection"] == {"rank": 1, "score": 0.5, "why": "nodule 0.48, mass 0.3"}


def test_a_list_that_could_not_be_written_is_refused_before_anything_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    study = draw_study(tmp_path / "images", 1)
    sliced = replace(study, images=[replace(i, frame=3) for i in study.images])
    (tmp_path / "there.csv").touch()
    cases = [
        ("images.csv", [study], None),
        ("images.jsonl", [sliced], None),
        ("images.csv", [sliced], "a CSV cannot hold study study1's slices; write images.jsonl"),
        ("lists/images.csv", [study], f"the list must lie above its images: {tmp_path}/images/images.csv"),
        ("there.csv", [study], "is there already"),
        ("images.txt", [study], "is a .csv or .jsonl file"),
        ("images", [study], "is a .csv or .jsonl file"),
    ]
    for name, studies, message in cases:
        if message is None:
            check_out(tmp_path / name, studies, overwrite=False)
            continue
        with pytest.raises(InputError) as refused:
            check_out(tmp_path / name, studies, overwrite=False)
        assert message in str(refused.value)
    check_out(tmp_path / "there.csv", [study], overwrite=True)
