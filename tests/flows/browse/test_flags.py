"""Where flags may be kept, and that a person may edit the file."""

import pytest

from flows.browse.flags import Flags, default_file


def test_never_inside_the_output(tmp_path):
    with pytest.raises(ValueError, match="never writes"):
        Flags(tmp_path / "out" / "flags.txt", tmp_path / "out")


def test_outputs_of_the_same_name_have_their_own_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    one, other = default_file(tmp_path / "a" / "demo"), default_file(tmp_path / "b" / "demo")
    assert one != other
    assert one.is_relative_to(tmp_path)


def test_a_file_that_a_person_edited_is_read(tmp_path):
    flags = Flags(tmp_path / "flags.txt", tmp_path / "out")
    flags.file.write_text("# look again\n b-2 \n\na-1\n")
    assert flags.mark("c-3", True) == {"a-1", "b-2", "c-3"}
