"""A journal keeps what was found for the same purpose, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgerun.calibration.journal import Journal
from edgerun.errors import EdgerunError


def test_what_was_found_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    first = Journal(path, {"text": "a"})
    assert first.find("x", lambda: [1, 2.5]) == [1, 2.5]
    again = Journal(path, {"text": "a"})
    assert again.find("x", lambda: pytest.fail("it is known")) == [1, 2.5]
    other = Journal(path, {"text": "b"})
    assert other.find("x", lambda: 3) == 3
    other.close()
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"purpose": {"text": "a"}, "found": 3}', b"\xff"])
def test_a_damaged_journal_is_begun_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.json"
    path.write_bytes(content)
    assert Journal(path, {"text": "a"}).find("x", lambda: 3) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["journal.json"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EdgerunError, match="cannot be written"):
        Journal(tmp_path / "no" / "journal.json", {})
