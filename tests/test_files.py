"""Files that are whole or not there."""
import json

import pytest

from lib import files


def test_a_failing_write_leaves_what_was_there(tmp_path):
    files.write_json(tmp_path / "new/a.json", {"x": 1})
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises((TypeError, ValueError)):
            files.write_json(tmp_path / "new/a.json", bad)
    assert json.loads((tmp_path / "new/a.json").read_text()) == {"x": 1} == files.read_json(tmp_path / "new/a.json")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"] and files.read_json(tmp_path / "no.json") is None


def test_digest_keeps_borders():
    assert files.digest("ab", "c") != files.digest("a", "bc") and files.digest("a") == files.digest(b"a")
