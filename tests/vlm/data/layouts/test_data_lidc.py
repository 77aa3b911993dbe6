"""LIDC-IDRI: a miniature series with an XML of four readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowledge.ontology import Certainty
from vlm.data.layouts.lidc import nodules_in
from vlm.data.sources import layout_of, read_studies
from vlm.types import InputError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SERIES = "1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192"
FOLDER = f"LIDC-IDRI-0001/1.3.6.1.4.1.14519.5.2.1.6279.6001.298806137288633453246975630178/{SERIES}"


def outline(uid: int, x1: int, y1: int, x2: int, y2: int, inclusion: str = "TRUE") -> str:
    points = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)] if (x1, y1) != (x2, y2) else [(x1, y1)]
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    return (
        f"<roi><imageZposition>-{uid}.0</imageZposition><imageSOP_UID>1.2.{uid}</imageSOP_UID>"
        f"<inclusion>{inclusion}</inclusion>{edges}</roi>"
    )


def nodule(name: str, *rois: str, malignancy: int = 5, calcification: int = 6) -> str:
    ratings = (
        f"<subtlety>5</subtlety><internalStructure>1</internalStructure><calcification>{calcification}</calcification>"
        f"<sphericity>3</sphericity><margin>3</margin><lobulation>3</lobulation><spiculation>4</spiculation>"
        f"<texture>5</texture><malignancy>{malignancy}</malignancy>"
    )
    return (
        f"<unblindedReadNodule><noduleID>{name}</noduleID><characteristics>{ratings}</characteristics>{''.join(rois)}"
        "</unblindedReadNodule>"
    )


def small(name: str, uid: int) -> str:
    return f"<unblindedReadNodule><noduleID>{name}</noduleID>{outline(uid, 40, 40, 40, 40)}</unblindedReadNodule>"


def xml(*sessions: str) -> str:
    body = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion>"
        f"<servicingRadiologistID>540461523</servicingRadiologistID>{s}</readingSession>" for s in sessions
    )  # fmt: skip
    return (
        '<?xml version="1.0" encoding="UTF-8"?><LidcReadMessage uid="1.3.6.1.4.1.14519.5.2.1.6279.6001.1307390361" '
        'xmlns="http://www.nih.gov" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><ResponseHeader>'
        f"<Version>1.8.1</Version><SeriesInstanceUid>{SERIES}</SeriesInstanceUid></ResponseHeader>{body}"
        "</LidcReadMessage>"
    )


READ = xml(
    nodule("a", outline(3, 9, 9, 20, 20), outline(4, 10, 10, 21, 21)) + small("s", 7),
    nodule("b", outline(3, 10, 10, 22, 20), outline(3, 14, 14, 16, 16, "FALSE")),
    nodule("c", outline(3, 11, 9, 24, 20), malignancy=3),
    nodule("minority", outline(1, 50, 50, 60, 60)),
)


@pytest.fixture
def root(tmp_path: Path, write_dicom: Any) -> Path:
    folder = tmp_path / "LIDC-IDRI" / FOLDER
    folder.mkdir(parents=True)
    for number in range(10):
        write_dicom(
            folder / f"1-{10 - number:03d}.dcm", RAMP, Modality="CT", SeriesInstanceUID=SERIES,
            SOPInstanceUID=f"1.2.{number}", ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, -100 + 2.5 * number],
        )  # fmt: skip
    (folder / "069.xml").write_text(READ)
    return tmp_path / "LIDC-IDRI"


def test_readers_are_brought_together(root: Path) -> None:
    reading = nodules_in(root / FOLDER / "069.xml")
    assert reading is not None
    (found,) = reading.nodules
    assert (found.readers, found.ratings["malignancy"], reading.series) == (3, 5, SERIES)
    assert found.boxes == {"1.2.3": (11, 10, 22, 20)}, "the median of the corners, inside the outline"
    assert reading.unclear == {"1.2.1", "1.2.4", "1.2.7"}, "a minority's, one of three readers', and one below 3 mm"


def test_a_series_is_a_study_whose_boxes_name_their_slices(root: Path) -> None:
    assert layout_of(root).name == "lidc"
    (study,) = read_studies(root, slices="uniform:20")
    assert (study.id, study.patient, len(study.images)) == ("LIDC-IDRI-0001", "LIDC-IDRI-0001", 7)
    (box,) = study.boxes or ()
    place = study.images[box.image].place
    assert (box.label, place and (place.first, place.count, place.position_mm)) == ("nodule", (3, 10, -92.5))
    assert [(f.label, f.certainty, f.boxes) for f in study.findings or ()] == [
        ("nodule", Certainty.PRESENT, (0,)), ("lung_cancer", Certainty.UNCERTAIN, (0,)),
        ("normal", Certainty.ABSENT, ()),
    ]  # fmt: skip
    (few,) = read_studies(root, slices="boxes:2")
    assert [few.images[b.image].place.first for b in few.boxes or ()] == [3]  # type: ignore[union-attr]


def test_xml_may_lie_apart(root: Path) -> None:
    apart = root / "tcia-lidc-xml" / "157"
    apart.mkdir(parents=True)
    (root / FOLDER / "069.xml").rename(apart / "158.xml")
    (study,) = read_studies(root)
    assert len(study.boxes or ()) == 1


def test_nothing_marked_is_absent_and_disagreement_is_unknown(root: Path) -> None:
    file = root / FOLDER / "069.xml"
    file.write_text(xml("", "", "", ""))
    (study,) = read_studies(root)
    assert [(f.label, f.certainty) for f in study.findings or ()] == [("nodule", Certainty.ABSENT)]
    file.write_text(xml("", "", "", small("s", 7)))
    (study,) = read_studies(root)
    assert (study.findings, study.boxes) == (None, ())


NO_POINTS = xml("<unblindedReadNodule><roi><imageSOP_UID>1</imageSOP_UID></roi></unblindedReadNodule>")
ENTITY = "<!DOCTYPE a [<!ENTITY b 'c'>]><LidcReadMessage>&b;</LidcReadMessage>"


@pytest.mark.parametrize("text", ["<a", ENTITY, NO_POINTS])
def test_a_broken_xml_is_refused(root: Path, text: str) -> None:
    (root / FOLDER / "069.xml").write_text(text)
    with pytest.raises(InputError, match=r"069\.xml"):
        read_studies(root)
