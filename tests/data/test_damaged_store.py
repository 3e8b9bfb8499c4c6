"""A store of which something is lost or damaged: a sentence with the remedy, and it stays so."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from mammo_pd.cli.app import main
from mammo_pd.data.manifest import read_manifest
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import StorePaths, create_or_match, open_store, read_store_info
from mammo_pd.errors import InputError


@pytest.fixture
def copy(phantom_store: Path, tmp_path: Path) -> StorePaths:
    """Of the phantoms' store, with pixels, but its pixels are linked."""
    root = tmp_path / "store"
    shutil.copytree(phantom_store, root, ignore=shutil.ignore_patterns("pixels"))
    (root / "pixels").symlink_to(phantom_store / "pixels")
    return StorePaths(root)


def files_of(paths: StorePaths) -> dict[str, bytes]:
    found = [file for file in paths.root.rglob("*") if file.is_file()]
    return {str(file.relative_to(paths.root)): file.read_bytes() for file in found}


def lose_private(paths: StorePaths) -> None:
    shutil.rmtree(paths.private)


def lose_key(paths: StorePaths) -> None:
    (paths.private / "key").unlink()


def lose_record(paths: StorePaths) -> None:
    (paths.private / "images.sqlite").unlink()


def empty_record(paths: StorePaths) -> None:
    (paths.private / "images.sqlite").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lose_private, "was copied without its folder private"),
        (lose_key, "key is missing, and the names of the store's images depend on it"),
        (lose_record, "images.sqlite is missing or truncated"),
        (empty_record, "images.sqlite is missing or truncated"),
    ],
)
@pytest.mark.parametrize("command", ["preprocess", "forget"])
def test_store_without_its_owner_only_part_is_not_changed(
    command: str,
    damage: object,
    sentence: str,
    copy: StorePaths,
    phantoms: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(damage)
    damage(copy)
    before = files_of(copy)
    words = {
        # A folder that holds none of the store's images.
        "preprocess": ["preprocess", str(tmp_path / "other"), "--out", str(copy.root)],
        "forget": ["forget", str(copy.root), "--missing"],
    }
    (tmp_path / "other").mkdir()
    shutil.copy(next(phantoms.rglob("*.dcm")), tmp_path / "other")
    assert main(words[command]) == 2
    printed = capsys.readouterr().err
    # forget has looked for the record before.
    assert sentence in printed or (command == "forget" and "has no record of its files" in printed)
    assert printed.count("\n") == 1
    assert files_of(copy) == before


def test_store_that_was_handed_on_can_be_read(copy: StorePaths) -> None:
    lose_private(copy)
    assert read_store_info(open_store(copy.root))["fingerprint"]
    assert len(read_manifest(copy.manifest)) == 48
    assert main(["split", str(copy.root)]) == 0


@pytest.mark.parametrize("size", [1, 50, 100, 1000, 4096, 5000, 20000, -4096])
def test_truncated_record_is_said_to_be_damaged(
    size: int, copy: StorePaths, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copy.private / "images.sqlite"
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    manifest = copy.manifest.read_bytes()
    assert main(["forget", str(copy.root), "--missing", "--dry-run"]) == 2
    printed = capsys.readouterr().err
    assert "images.sqlite" in printed
    assert "is damaged" in printed or "truncated" in printed
    assert "restore it from a copy" in printed
    assert printed.count("\n") == 1
    assert copy.manifest.read_bytes() == manifest


def test_store_killed_in_its_first_run_is_gone_on_with(tmp_path: Path) -> None:
    """It has a record and no manifest."""
    paths = create_or_match(tmp_path / "s", {})
    with Record(paths):
        pass
    with Record(paths) as record:
        image = RecordedImage(ImageOrigin(Path("a")), "x", {"status": "ok"}, {}, 8)
        record.put(Path("a"), (1, 1), [image])
    (paths.private / "key").unlink()
    with pytest.raises(InputError, match="key is missing"):
        Record(paths)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", '{"format": 1', '{"format": 1}', "[]", '{"format": 1, "settings": {}}'),
        '{"format": 1, "settings": {}, "fingerprint": "x", "labels": 3}',
        '{"format": 2, "settings": {}, "fingerprint": "x", "compression": "zip"}',
    ],
)
def test_half_of_store_json_is_said_to_be_damaged(text: str, tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    paths.info.write_text(text)
    for read in (lambda: read_store_info(paths), lambda: create_or_match(tmp_path, {})):
        with pytest.raises(InputError, match=r"store\.json is damaged .* restore it from a copy"):
            read()
    assert paths.info.read_text() == text


def test_database_error_further_down_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr("mammo_pd.data.store.open_store", fail)
    assert main(["split"]) == 2
    assert "the record of the store, private/images.sqlite, is damaged" in capsys.readouterr().err
