import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest

from mammo_pd.files import atomic_write, each_file, is_gone, remove_leftovers, write_text


def test_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="killed"), atomic_write(path) as beside:
        beside.write_text("ne")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_begun_is_named_as_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str, suffix: str, dir: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(dir / f"{prefix}9xq0{suffix}"))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only") as refused, atomic_write(tmp_path / "a.json"):
        pass
    assert refused.value.filename == str(tmp_path / "a.json")


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    names = ("a.txt", "b.txt", "a", "a.txt.gz")
    # As killed: the blocks are left only after the test.
    writers = [atomic_write(tmp_path / name) for name in names]
    left = [writer.__enter__() for writer in writers]
    (tmp_path / ".a.txt.notes").touch()
    write_text(tmp_path / "a.txt", "")
    before = {*tmp_path.iterdir()}
    remove_leftovers(tmp_path, "a.txt", "a")
    assert before - {*tmp_path.iterdir()} == {left[0], left[2]}
    remove_leftovers(tmp_path, "*.txt")
    assert before - {*tmp_path.iterdir()} == {*left[:3]}


def test_written_file_has_ordinary_rights(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").touch()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_files_come_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/9", "a/10", "c"):
        write_text(tmp_path / name, "")
    found = [path.relative_to(tmp_path).as_posix() for path in each_file(tmp_path, closed=print)]
    assert found == ["c", "a/10", "a/9", "b/2"]


def test_what_is_renamed_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may otherwise keep the rename and lose the content."""
    synced: set[int] = set()
    sync, rename = os.fsync, Path.replace

    def watched_sync(handle: int) -> None:
        sync(handle)
        synced.add(os.fstat(handle).st_ino)

    def watched_rename(self: Path, target: Path) -> Path:
        assert self.stat().st_ino in synced
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    write_text(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"


def test_what_cannot_be_reached_is_not_gone(tmp_path: Path) -> None:
    """As on a disk that answers with an error: what is gone is forgotten, with its pixels."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    gone = {name: is_gone(tmp_path / name) for name in ("file", "loop", "x" * 300)}
    assert gone == dict.fromkeys(gone, False)
    gone = {name: is_gone(tmp_path / name) for name in ("nothing", "file/below", "broken")}
    assert gone == dict.fromkeys(gone, True)
