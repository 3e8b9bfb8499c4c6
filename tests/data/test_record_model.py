"""The record does what dictionaries do, whatever is written to it and in whatever order."""

import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.store import create_or_match

# The path of one begins another's, and the bytes that follow come next to the separator of frames.
FILES = st.sampled_from([Path(name) for name in ("d/a", "d/a\1", "d/a.dcm", "d/b", "d")])
PIXELS = "of all images that have any"
NAMES = st.sampled_from(["image", "another", "woman"])
IMAGE = st.fixed_dictionaries(
    {"status": st.sampled_from(["ok", "ok", "failed"])},
    optional={
        "reason": st.just("decode_failed"),
        "pixel_hash": st.just(PIXELS),
        "photometric_interpretation": st.just("MONOCHROME1"),
        "photometric_interpretation_source": st.just("table"),
    },
)


@dataclass
class Written:
    """What a record is to hold."""

    images: dict[ImageOrigin, dict[str, Any]] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)
    forgotten: dict[str, str | None] = field(default_factory=dict)

    def of(self, file: Path) -> list[dict[str, Any]]:
        return [image for source, image in self.images.items() if source.path == file]

    def by_path(self) -> Iterator[tuple[ImageOrigin, dict[str, Any]]]:
        def place(source: ImageOrigin) -> tuple[bytes, bytes]:
            return os.fsencode(source.path), str(source.frame or "").encode()

        yield from ((source, self.images[source]) for source in sorted(self.images, key=place))


class RecordMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.paths = create_or_match(Path(self._folder.name) / "store", {})
        self.record = Record(self.paths)
        self.now, self.committed = Written(), Written()
        self.names_given = 0

    def teardown(self) -> None:
        self.record.__exit__()
        self._folder.cleanup()

    @rule(
        file=FILES,
        each=st.lists(IMAGE, min_size=1, max_size=3),
        frames=st.booleans(),
        content=st.sampled_from([b"", b"digest"]),
        version=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    )
    def put(
        self,
        file: Path,
        each: list[dict[str, Any]],
        frames: bool,
        content: bytes,
        version: tuple[int, int],
    ) -> None:
        labels = next((image["labels"] for image in self.now.of(file)), {})
        self.now.images = {of: one for of, one in self.now.images.items() if of.path != file}
        images = []
        for number, columns in enumerate(each if frames else each[:1], start=1):
            self.names_given += 1
            # In another order than the paths.
            image_id = f"{-self.names_given % 7}.{self.names_given}"
            source = ImageOrigin(file, number if frames else None)
            told = {"patient_id": str(number)}, number, {"native": number}
            identifiers, size, checksums = told
            images.append(
                RecordedImage(source, image_id, columns, identifiers, size, checksums=checksums)
            )
            self.now.images[source] = {
                "image_id": image_id,
                "columns": dict(columns),
                "status": columns["status"],
                "identifiers": identifiers,
                "stored_bytes": size,
                "labels": labels,
                "checksums": checksums,
                "version": version,
                "content": content,
            }
        self.record.put(file, version, images, content)

    @rule(file=FILES, labels=st.sampled_from([None, {"label": 0}, {"label": 1, "age": 50}]))
    def put_labels(self, file: Path, labels: dict[str, int] | None) -> None:
        self.record.put_labels(file, labels)
        for image in self.now.of(file):
            image["labels"] = labels or {}

    @rule(file=FILES, value=st.sampled_from(["ffdm", "synthetic"]))
    def put_column(self, file: Path, value: str) -> None:
        self.record.put_column(file, "image_kind", value)
        for image in self.now.of(file):
            image["columns"]["image_kind"] = value

    @precondition(lambda self: self.now.images)
    @rule(data=st.data(), score=st.integers(0, 9))
    def add_to_one(self, data: st.DataObject, score: int) -> None:
        image = data.draw(st.sampled_from(list(self.now.images.values())))
        self.record.add_columns(image["image_id"], {"score": score})
        image["columns"]["score"] = score
        self.record.put_levels(image["image_id"], {"512": score}, score + 100)
        image.update(checksums={"512": score}, stored_bytes=score + 100)

    @rule(before=FILES, after=FILES, mtime_ns=st.integers(10, 19))
    def move(self, before: Path, after: Path, mtime_ns: int) -> None:
        if self.now.of(after):
            return
        self.record.move(before, after, mtime_ns)
        for source in [source for source in self.now.images if source.path == before]:
            image = self.now.images.pop(source)
            image["version"] = image["version"][0], mtime_ns
            self.now.images[ImageOrigin(after, source.frame)] = image

    @precondition(lambda self: self.now.images)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        sources = data.draw(st.lists(st.sampled_from(list(self.now.images)), unique=True))
        self.record.remove([self.now.images.pop(source)["image_id"] for source in sources])

    @rule(folder=FILES)
    def put_folder(self, folder: Path) -> None:
        self.record.put_folder(folder)
        self.now.folders.add(folder)

    @rule(names=st.dictionaries(NAMES, st.none() | NAMES))
    def keep_out(self, names: dict[str, str | None]) -> None:
        self.record.keep_out(names)
        self.now.forgotten |= names

    @rule(names=st.lists(NAMES))
    def let_in(self, names: list[str]) -> None:
        count = 0
        for name in names:
            count += name in self.now.forgotten
            self.now.forgotten = {
                kept: patient
                for kept, patient in self.now.forgotten.items()
                if name not in (kept, patient)
            }
        assert self.record.let_in(names) == count

    @rule()
    def commit(self) -> None:
        self.record.commit()
        self.committed = deepcopy(self.now)

    @rule()
    def discard(self) -> None:
        self.record.discard()
        self.now = deepcopy(self.committed)

    @rule()
    def close_and_open(self) -> None:
        self.record.__exit__()
        self.record = Record(self.paths)
        self.committed = deepcopy(self.now)

    @invariant()
    def images_are_what_was_written(self) -> None:
        rows = [
            RecordedImage(
                source,
                image["image_id"],
                image["columns"],
                image["identifiers"],
                image["stored_bytes"],
                image["labels"],
                image["checksums"],
            )
            for source, image in self.now.images.items()
        ]
        assert list(self.record.rows()) == sorted(rows, key=lambda row: row.image_id)
        for source, image in self.now.images.items():
            assert self.record.source_of(image["image_id"]) == source
            found = self.record.pixel_hash_of(image["image_id"])
            assert found == image["columns"].get("pixel_hash")
        assert self.record.source_of("another") is self.record.pixel_hash_of("another") is None
        usable = any(image["status"] == "ok" for image in self.now.images.values())
        assert self.record.holds_pixels == usable

    @invariant()
    def files_are_what_was_written(self) -> None:
        contents = {
            source.path: (image["version"][0], image["content"])
            for source, image in self.now.by_path()
        }
        assert list(self.record.contents()) == [(path, *told) for path, told in contents.items()]
        for file in {*contents, Path("d/a"), Path("d/a\1")}:
            told = "photometric_interpretation", "photometric_interpretation_source"
            expected = [
                (
                    *image["version"],
                    image["image_id"],
                    image["status"],
                    image["columns"].get("reason"),
                    image["stored_bytes"],
                    *map(image["columns"].get, told),
                )
                for image in self.now.of(file)
            ]
            assert sorted(self.record.known(file), key=str) == sorted(expected, key=str)
            twins = [
                image["image_id"]
                for source, image in self.now.by_path()
                if source.path != file
                and image["status"] == "ok"
                and "pixel_hash" in image["columns"]
            ]
            assert self.record.with_pixels(PIXELS, file) == next(iter(twins), None)
            assert self.record.with_pixels("of none", file) is None

    @invariant()
    def the_rest_is_what_was_written(self) -> None:
        assert self.record.folders() == sorted(self.now.folders, key=os.fsencode)
        assert self.record.keeps_anyone_out == bool(self.now.forgotten)
        for name in ("image", "another", "woman"):
            assert self.record.is_kept_out(name) == (name in self.now.forgotten)


TestRecord = RecordMachine.TestCase
TestRecord.settings = settings(deadline=None, max_examples=25, stateful_step_count=60)
