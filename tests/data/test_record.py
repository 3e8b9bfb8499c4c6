import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from mammo_pd.data.record import Hasher, ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import StorePaths, create_or_match
from mammo_pd.errors import InputError

SETTINGS = {"voi": "auto", "algorithm": 1}


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_or_match(tmp_path / "s", SETTINGS)


def image(path: Path, image_id: str, frame: int | None = None) -> RecordedImage:
    return RecordedImage(
        ImageOrigin(path, frame), image_id, {"status": "ok"}, {"patient_id": "P"}, 8
    )


@pytest.mark.parametrize("kind", ["patient", "exam"])
def test_unicode_forms_of_one_identifier_are_one(kind: str) -> None:
    hasher = Hasher(b"k" * 32)
    assert hasher.hash(kind, "M\u00fcller^1") == hasher.hash(kind, "Mu\u0308ller^1")
    assert hasher.hash(kind, "M\u00fcller^1") != hasher.hash(kind, "Muller^1")


def test_hashes_are_keyed_and_differ_by_kind() -> None:
    one, other = Hasher(b"k" * 32), Hasher(b"l" * 32)
    assert one.hash("patient", "10011") == one.hash("patient", "10011")
    assert one.hash("patient", "10011") != other.hash("patient", "10011")
    assert one.hash("patient", "10011") != one.hash("exam", "10011")


@pytest.mark.parametrize(
    ("kind", "value", "name"),
    [
        ("patient", "M\u00fcller^1", "6a1638af9084e2026062"),
        ("exam", "1.2.3", "cf1a5fd501513fca7448"),
        ("image", "1.2.3", "43085d275144ff92e159"),
        ("pixels", b"abc", "029e368d435956ea9656"),
    ],
)
def test_names_are_those_of_the_stores_that_there_are(
    kind: str, value: str | bytes, name: str
) -> None:
    """Under another name a woman would come into an old store, and its split, a second time."""
    assert Hasher(b"k" * 32).hash(kind, value) == name


def test_record_is_for_the_owner_only_and_its_key_stays(paths: StorePaths) -> None:
    with Record(paths) as record:
        first = record.hasher.hash("patient", "a")
    with Record(paths) as record:
        assert record.hasher.hash("patient", "a") == first
    assert stat.S_IMODE(paths.private.stat().st_mode) == 0o700
    for file in paths.private.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"k" * 33])
def test_damaged_key_is_refused(paths: StorePaths, content: bytes) -> None:
    with Record(paths):
        pass
    (paths.private / "key").write_bytes(content)
    with pytest.raises(InputError, match="not a key of 32 bytes"):
        Record(paths)


def test_key_of_another_store_gives_its_names_and_is_not_replaced(
    paths: StorePaths, tmp_path: Path
) -> None:
    with Record(paths, b"k" * 32) as record:
        assert record.hasher.hash("patient", "a") == Hasher(b"k" * 32).hash("patient", "a")
    with pytest.raises(InputError, match=r"drop --key, or make another store with --out"):
        Record(paths, b"l" * 32)


def test_a_record_that_was_refused_is_free_for_the_next(paths: StorePaths) -> None:
    with Record(paths, b"k" * 32):
        pass
    # Whoever catches the error may hold it, and all that it refers to.
    with pytest.raises(InputError) as refused:
        Record(paths, b"l" * 32)
    with Record(paths, b"k" * 32):
        assert "a key other than the one given" in str(refused.value)


def test_images_of_a_file_are_recorded_together_and_keep_its_labels(paths: StorePaths) -> None:
    scan, other = Path("a/scan.dcm"), Path("a/scan.dcm2")
    with Record(paths) as record:
        record.put(scan, (10, 1), [image(scan, "x"), image(scan, "y", 2)])
        record.put(other, (20, 2), [image(other, "z")])
        record.put_labels(scan, {"label": 1})
    with Record(paths) as record:
        assert record.source_of("y") == ImageOrigin(scan, 2)
        assert record.source_of("none") is None
        # A file's name that only begins like another's is another file's.
        assert [row[2] for row in record.known(other)] == ["z"]
        record.put(scan, (11, 3), [image(scan, "w", 1)])
        assert record.known(scan) == [(11, 3, "w", "ok", None, 8, None, None)]
        assert record.source_of("y") is None
        rows = {row.image_id: row for row in record.rows()}
    assert list(rows) == ["w", "z"]
    assert rows["w"].labels == {"label": 1}
    assert rows["z"].labels == {}


def test_path_that_is_no_text_comes_back_as_it_was(paths: StorePaths) -> None:
    path = Path("caf\udce9/1.dcm")  # a Latin-1 name, as Python reads it
    with Record(paths) as record:
        record.put(path, (1, 1), [image(path, "x", 7)])
        assert record.source_of("x") == ImageOrigin(path, 7)


def test_what_was_not_committed_is_forgotten(paths: StorePaths) -> None:
    with Record(paths) as record:
        record.put(Path("a"), (1, 1), [image(Path("a"), "x")])
        record.commit()
        record.put(Path("b"), (1, 1), [image(Path("b"), "y")])
        # A killed process does not leave the block: its copy of the database is what is left.
        copy = StorePaths(paths.root.with_name("killed"))
        copy.private.mkdir(parents=True)
        for file in paths.private.iterdir():
            (copy.private / file.name).write_bytes(file.read_bytes())
    with Record(copy) as record:
        assert record.known(Path("a"))
        assert not record.known(Path("b"))


def test_an_interrupt_right_after_a_commit_is_no_damage(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before what is written next has begun."""
    begin, file = Record._begin, Path("/images/a.dcm")

    def be_interrupted(record: Record) -> None:
        monkeypatch.setattr(Record, "_begin", begin)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Record(paths) as record:
        record.put(file, (1, 1), [image(file, "a")])
        monkeypatch.setattr(Record, "_begin", be_interrupted)
        record.commit()
    with Record(paths) as record:
        assert record.known(file)


def test_a_record_of_an_earlier_version_is_read_and_goes_on(paths: StorePaths) -> None:
    paths.private.mkdir()
    (paths.private / "key").write_bytes(b"k" * 32)
    with closing(sqlite3.connect(paths.private / "images.sqlite")) as database, database:
        database.execute(
            "CREATE TABLE images (source BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, "
            "image_id TEXT, status TEXT, reason TEXT, stored_bytes INTEGER, facts TEXT, "
            "identifiers TEXT, labels TEXT)"
        )
        values = (b"a", 10, 1, "x", "ok", None, 8, "{}", "{}", None)
        database.execute(f"INSERT INTO images VALUES ({','.join('?' * 10)})", values)
    for _ in range(2):
        with Record(paths) as record:
            record.put(Path("b"), (20, 2), [image(Path("b"), "y")], b"digest")
            assert list(record.contents()) == [(Path("a"), 10, b""), (Path("b"), 20, b"digest")]
            assert record.folders() == []


def test_second_writer_is_refused_at_any_moment_and_the_first_never(paths: StorePaths) -> None:
    """Also between a COMMIT and the next BEGIN, when SQLite's own lock is free."""
    refused: list[str] = []
    done = threading.Event()

    def try_again_and_again() -> None:
        while not done.is_set():
            try:
                with Record(paths):
                    refused.append("taken in")
            except InputError as error:
                refused.append(str(error))

    with Record(paths) as record:
        other = threading.Thread(target=try_again_and_again)
        other.start()
        try:
            for number in range(100):
                record.put(Path("a"), (1, number), [image(Path("a"), "x")])
                record.commit()
        finally:
            done.set()
            other.join()
    assert len(refused) > 10
    assert all("is another mammo-pd preprocess working" in sentence for sentence in refused)


def test_first_two_writers_of_a_store_do_not_make_two_keys(paths: StorePaths) -> None:
    with Record(paths):
        key = (paths.private / "key").read_bytes()
        with pytest.raises(InputError, match="preprocess working"):
            Record(paths)
    assert (paths.private / "key").read_bytes() == key


def test_program_that_keeps_the_record_open_is_named_as_the_cause(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mammo_pd.data.record._READERS_MS", 50)
    with Record(paths):
        pass
    with (
        closing(sqlite3.connect(paths.private / "images.sqlite")) as reader,
        pytest.raises(InputError, match="another program, such as a backup, has it open"),
        Record(paths) as record,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM images").fetchall()
        record.put(Path("a"), (1, 1), [image(Path("a"), "x")])
        record.commit()


def test_who_looks_at_the_record_for_a_moment_is_waited_for(paths: StorePaths) -> None:
    with Record(paths):
        pass
    with (
        closing(
            sqlite3.connect(paths.private / "images.sqlite", check_same_thread=False)
        ) as reader,
        Record(paths) as record,
    ):
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM images").fetchall()
        # For longer than SQLite waits of itself here.
        leaves = threading.Timer(1.5, reader.rollback)
        leaves.start()
        record.put(Path("a"), (1, 1), [image(Path("a"), "x")])
        record.commit()
        leaves.join()


def test_second_writer_is_refused(paths: StorePaths) -> None:
    with Record(paths), pytest.raises(InputError, match="is another mammo-pd preprocess working"):
        Record(paths)
