"""File names from ids."""

from __future__ import annotations

import pytest

from vlm.export.files import file_stem


@pytest.mark.parametrize("name", ["s1", "CXR12_IM-3.a", "phantom-0-00001"])
def test_a_plain_id_is_kept(name: str) -> None:
    assert file_stem(name) == name


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "..", "", "a\0b", "Ünïcode", "x" * 300, "a.", ".hidden"])
def test_any_other_id_becomes_one_safe_name(name: str) -> None:
    stem = file_stem(name)
    assert "/" not in stem
    assert "\0" not in stem
    assert not stem.startswith(".")
    assert 0 < len(stem) < 120


def test_different_ids_have_different_names() -> None:
    assert len({file_stem(n) for n in ("a/b", "a_b", "a b", "a\\b")}) == 4
