"""Output files are whole or absent, and checked before the work: pytest tests/unit/test_files.py"""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from unifusion_core.errors import ConfigError
from unifusion_core.files import check_writable, write_whole


def test_a_file_is_replaced_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    assert write_whole(path, b"one")
    assert write_whole(path, b"two")
    assert not write_whole(path, b"three", replace=False)
    assert path.read_bytes() == b"two"
    assert [each.name for each in path.parent.iterdir()] == ["a.bin"]


def test_a_file_has_the_usual_permissions_and_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "real", b"one")
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "plain").stat().st_mode
    )
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", b"two")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"two"


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.bin", b"old")
    code = (
        "import sys, resource, signal; from pathlib import Path; from unifusion_core.files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_whole(Path(sys.argv[1]), bytes(5000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.bin")], capture_output=True, text=True, check=False
    )
    assert "a.bin cannot be written (File too large)" in done.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.parametrize("name", ["", "file/a.png", "folder", "x" * 300 + ".png", "a\0b.png"])
def test_an_impossible_place_is_named_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError):
        check_writable(tmp_path / name)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_a_possible_place_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "ü.png")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "old.png").write_text("old")
    check_writable(tmp_path / "old.png")
    assert (tmp_path / "old.png").read_text() == "old"
    check_writable(Path(os.devnull))
    assert write_whole(Path(os.devnull), b"x")
    assert Path(os.devnull).is_char_device()
