"""Reports and studies as a pipeline would give them, for the tests of the exports."""

from __future__ import annotations

import numpy as np

from knowledge.ontology import Certainty
from vlm.types import Box, Finding, Modality, Report, Sentence, Study, StudyImage, View

NODULE = "There is a nodule in the right lung."
HOSTILE = "Cut </script><img src=x onerror=alert(1)> & <!-- here."


def make_study(identity: str = "s1") -> Study:
    """Two views of 60x40 (width x height) pixels, with a reference."""
    rng = np.random.default_rng(0)
    images = [
        StudyImage(pixels=rng.random((40, 60), dtype=np.float32), view=view, modality=Modality.XRAY)
        for view in (View.FRONTAL, View.LATERAL)
    ]
    return Study(
        identity,
        images,
        clinical={"indication": "Cough."},
        findings=(Finding("nodule", Certainty.PRESENT),),
        boxes=(Box((10.0, 5.0, 20.0, 15.0), "nodule"),),
        report={"findings": "A nodule.", "impression": "Nodule."},
    )


def make_report(identity: str = "s1", text: str = NODULE) -> Report:
    """One nodule with a box on the first view, one contradicted sentence, three labels with attention maps."""
    sentences = (
        Sentence(text, "findings", ("nodule",), (0,), "supported", 0.91),
        Sentence("The heart is enlarged.", "findings", ("cardiomegaly",), (), "contradicted", 0.06),
        Sentence("Nodule.", "impression", ("nodule",), (0,), "supported", 0.91),
    )
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 1, 1] = 1.0
    return Report(
        identity,
        {"findings": f"{text} The heart is enlarged.", "impression": "Nodule."},
        sentences,
        (
            Finding("nodule", Certainty.PRESENT, 0.91, "right", (0,)),
            Finding("cardiomegaly", Certainty.ABSENT, 0.06),
            Finding("scar", Certainty.UNCERTAIN, 0.12),
        ),
        (Box((11.0, 6.0, 21.0, 16.0), "nodule", 0, 0.88), Box((1.0, 2.0, 9.0, 12.0), "mass", 1, 0.2)),
        {"nodule": maps, "cardiomegaly": maps, "scar": maps},
        ("--must effusion",),
    )
