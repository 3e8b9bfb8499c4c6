import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mammo_pd.data.forget import Forgotten, forget, plan_forgetting, take_again
from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.manifest import read_manifest, write_manifest
from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.record import ImageOrigin, Record, RecordedImage
from mammo_pd.data.split_store import split_store
from mammo_pd.data.splits import check_split, read_split, read_split_and_past
from mammo_pd.data.store import StorePaths, create_or_match
from mammo_pd.errors import InputError

WOMEN = 12


def record_image(
    paths: StorePaths, record: Record, file: Path, woman: str, columns: dict[str, object]
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    image_id = record.hasher.hash("image", str(file))
    facts = {"status": "ok", "pixel_hash": image_id, **columns}
    if facts["status"] == "ok":
        paths.image(image_id).parent.mkdir(parents=True, exist_ok=True)
        write_image_file(paths.image(image_id), {"native": np.ones((2, 2), np.uint16)})
        thumbnail = paths.thumbnail(image_id)
        thumbnail.parent.mkdir(parents=True, exist_ok=True)
        thumbnail.touch()
    identifiers = {"patient_id": woman, "sop_instance_uid": f"1.2.{file.stem}"}
    origin = ImageOrigin(file)
    record.put(file, (0, 1), [RecordedImage(origin, image_id, facts, identifiers, 1)])


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    """A store of twelve women with two images each, split twice."""
    paths = create_or_match(tmp_path / "store", {})
    with Record(paths) as record:
        record.put_folder(tmp_path / "d")
        for woman in range(WOMEN):
            for view in ("CC", "MLO"):
                file = tmp_path / "d" / f"W{woman:02}" / f"{view}.dcm"
                record_image(paths, record, file, f"W{woman:02}", {"view": view})
                record.put_labels(file, {"label": woman % 2})
        write(paths, record)
    split_store(paths, say=lambda _: None)
    split_store(paths, name="five", folds=5, say=lambda _: None)
    return paths


def write(paths: StorePaths, record: Record) -> None:
    rows = (manifest_row(image, record.hasher) for image in record.rows())
    write_manifest(paths.manifest, rows, pa.schema([]))


@pytest.fixture
def record(paths: StorePaths) -> Iterator[Record]:
    with Record(paths) as record:
        yield record


def ids_in_store(paths: StorePaths, record: Record) -> list[set[str]]:
    """The images that each part of the store holds."""
    return [
        {file.stem for file in paths.root.rglob("*.safetensors")},
        {file.stem for file in (paths.private / "thumbnails").rglob("*.npy")},
        set(read_manifest(paths.manifest, status=None)["image_id"]),
        *(set(read_split(paths.splits, name).table["image_id"]) for name in ("default", "five")),
        {image.image_id for image in record.rows()},
    ]


def test_a_woman_who_withdraws_leaves_nothing_and_moves_no_other(
    paths: StorePaths, record: Record
) -> None:
    before = {name: read_split(paths.splits, name) for name in ("default", "five")}
    everyone = ids_in_store(paths, record)[0]
    plan = plan_forgetting(paths, record, patients=["W03"])
    assert (len(plan.image_ids), plan.patients, plan.files_left) == (2, 1, 2)
    # As a store of format 1 has it.
    folder = paths.image_folder(min(plan.image_ids))
    folder.mkdir()
    (folder / "native.npy").touch()
    # As a killed run leaves them, half way and before they were recorded.
    paths.partial.mkdir()
    for left in (paths.partial / "0f3c.safetensors", paths.image("0" * 20)):
        left.parent.mkdir(exist_ok=True)
        write_image_file(left, {"native": np.ones((2, 2), np.uint16)})
    assert len({split.hash for split, _ in plan.splits} & {b.hash for b in before.values()}) == 2
    done = forget(paths, record, plan)
    assert dict(done.shortened) == {"default": 2, "five": 2}
    assert not folder.exists()
    for holds in ids_in_store(paths, record):
        assert holds == everyone - plan.image_ids
    manifest = read_manifest(paths.manifest, status=None)
    for name, split in before.items():
        after, hashes = read_split_and_past(paths.splits, name)
        check_split(after, manifest)
        assert hashes == {split.hash, after.hash}
        rest = split.table[~split.table["image_id"].isin(plan.image_ids)]
        pd.testing.assert_frame_equal(after.table, rest.reset_index(drop=True))
    # It is committed: a caller that is killed takes nothing back.
    record.discard()
    assert ids_in_store(paths, record)[-1] == everyone - plan.image_ids
    for file in paths.root.rglob("*"):
        assert not file.is_file() or b"W03" not in file.read_bytes()


@pytest.mark.parametrize("spelling", ["W03", " W03 ", "hash", " hash ", "table"])
def test_a_woman_is_found_by_each_of_her_names(
    paths: StorePaths, record: Record, spelling: str
) -> None:
    given = spelling.replace("hash", record.hasher.hash("patient", "W03"))
    if spelling == "table":
        for image in list(record.rows()):
            if image.identifiers["patient_id"] == "W03":
                record.put_labels(image.source.path, {"patient_id": "table"})
    images = plan_forgetting(paths, record, patients=[given]).image_ids
    assert len(images) == 2
    if spelling == "table":
        # Her files' own name finds her, too, and then keeps her out under both.
        by_tag = plan_forgetting(paths, record, patients=["W03"])
        assert by_tag.image_ids == images
        names = {record.hasher.hash("patient", name) for name in ("W03", "table")}
        assert names <= {*by_tag.keep_out}


def test_who_was_named_is_kept_out_and_what_was_missing_is_not(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    (tmp_path / "d" / "W05" / "CC.dcm").unlink()
    image_id = record.hasher.hash("image", str(tmp_path / "d" / "W04" / "CC.dcm"))
    plan = plan_forgetting(paths, record, patients=["W03"], images=[image_id], missing=True)
    forget(paths, record, plan)
    hers, missing = record.hasher.hash("patient", "W03"), tmp_path / "d" / "W05" / "CC.dcm"
    assert all(map(record.is_kept_out, [image_id, hers]))
    assert not record.is_kept_out(record.hasher.hash("image", str(missing)))
    assert not record.is_kept_out(record.hasher.hash("patient", "W05"))
    with pytest.raises(
        InputError, match=r"given with --patient .*: she has already been forgotten"
    ):
        plan_forgetting(paths, record, patients=["W03"])
    take_again(paths, record, patients=["W03"], images=[image_id])
    assert not record.keeps_anyone_out
    with pytest.raises(InputError, match="patient number 1 of --patient was not forgotten"):
        take_again(paths, record, patients=["W03"])


@pytest.mark.parametrize("spelling", ["W03", " W03 ", "{hash}", " {hash} "])
def test_each_is_taken_again_by_the_name_that_it_was_forgotten_by(
    tmp_path: Path, paths: StorePaths, record: Record, spelling: str
) -> None:
    """An image that was named itself stays out when its woman is taken again."""
    hers, hers_too, alone = (
        record.hasher.hash("image", str(tmp_path / "d" / name))
        for name in ("W03/CC.dcm", "W03/MLO.dcm", "W04/CC.dcm")
    )
    forget(paths, record, plan_forgetting(paths, record, patients=["W03"], images=[hers, alone]))
    with pytest.raises(InputError, match="patient number 1 of --patient was not forgotten"):
        take_again(paths, record, patients=["W04"])
    assert all(map(record.is_kept_out, [hers, hers_too, alone]))
    given = spelling.format(hash=record.hasher.hash("patient", "W03"))
    take_again(paths, record, patients=[given])
    assert [record.is_kept_out(name) for name in (hers, hers_too, alone)] == [True, False, True]
    take_again(paths, record, images=[hers, alone])
    assert not record.keeps_anyone_out


def test_who_is_taken_again_is_read_by_the_next_preprocess(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    passed_over = {"status": "excluded", "reason": "forgotten", "pixel_hash": None}
    record.keep_out({record.hasher.hash("patient", "W99"): None})
    record_image(paths, record, tmp_path / "d" / "new.dcm", "W99", passed_over)
    write(paths, record)
    take_again(paths, record, patients=["W99"])
    assert not record.known(tmp_path / "d" / "new.dcm")
    assert {len(holds) for holds in ids_in_store(paths, record)} == {2 * WOMEN}


def test_what_was_deleted_is_found_and_nothing_else(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    (tmp_path / "d" / "W05" / "CC.dcm").unlink()
    for file in (tmp_path / "d" / "W06").iterdir():
        file.unlink()
    plan = plan_forgetting(paths, record, missing=True)
    assert (len(plan.image_ids), plan.patients, plan.files_left) == (3, 2, 0)
    forget(paths, record, plan)
    assert {len(holds) for holds in ids_in_store(paths, record)} == {2 * WOMEN - 3}
    assert not plan_forgetting(paths, record, missing=True).image_ids


def test_a_disk_that_is_not_mounted_is_not_taken_for_deleted_files(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    record.put_folder(tmp_path / "disk")
    record_image(paths, record, tmp_path / "disk" / "x.dcm", "X", {})
    (tmp_path / "disk" / "x.dcm").unlink()
    with pytest.raises(
        InputError, match=r"none of the files of the 1 image .*disk is left; is its disk mounted\?"
    ):
        plan_forgetting(paths, record, missing=True)
    plan = plan_forgetting(paths, record, missing=True, whole_folders=True)
    assert len(plan.image_ids) == 1


def test_a_disk_that_is_not_mounted_is_told_where_no_folder_is_recorded(tmp_path: Path) -> None:
    """As in stores of earlier versions."""
    paths = create_or_match(tmp_path / "store", {})
    with Record(paths) as record:
        for name in ("x", "y"):
            record_image(paths, record, tmp_path / "d" / name, "X", {})
        (tmp_path / "d" / "x").unlink()
        assert len(plan_forgetting(paths, record, missing=True).image_ids) == 1
        (tmp_path / "d" / "y").unlink()
        with pytest.raises(InputError, match=r"2 images that came from / is left; is its disk"):
            plan_forgetting(paths, record, missing=True)


def test_copies_go_with_their_image_or_take_its_place(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    original = tmp_path / "d" / "W07" / "CC.dcm"
    image_id = record.hasher.hash("image", str(original))
    duplicate = {"status": "excluded", "reason": "duplicate_image", "pixel_hash": image_id}
    copy = tmp_path / "d" / "copy.dcm"
    record_image(paths, record, copy, "W07", duplicate)
    copy_id = record.hasher.hash("image", str(copy))
    assert plan_forgetting(paths, record, images=[image_id]).image_ids == {image_id, copy_id}
    original.unlink()
    plan = plan_forgetting(paths, record, missing=True)
    assert (plan.image_ids, plan.to_read_again) == ({image_id}, {copy_id})
    with_copy = plan_forgetting(paths, record, images=[copy_id], missing=True)
    assert (with_copy.image_ids, with_copy.to_read_again) == ({image_id, copy_id}, frozenset())
    copy.unlink()
    both = plan_forgetting(paths, record, missing=True)
    assert (both.image_ids, both.to_read_again) == ({image_id, copy_id}, frozenset())
    forget(paths, record, plan)
    assert not record.known(copy)


@pytest.mark.parametrize("compared", [False, True])
def test_a_shared_uid_makes_copies_of_images_whose_pixels_were_never_compared(
    tmp_path: Path, paths: StorePaths, record: Record, compared: bool
) -> None:
    """Stores of earlier versions left images out by their UID, and kept no hash of them."""
    pixels = {"pixel_hash": "others" if compared else None}
    copy = tmp_path / "d" / "copy" / "MLO.dcm"
    record_image(
        *(paths, record, copy, "W99"), {"status": "excluded", "reason": "duplicate_image", **pixels}
    )
    image_id = record.hasher.hash("image", str(tmp_path / "d" / "W07" / "MLO.dcm"))
    copies = set() if compared else {record.hasher.hash("image", str(copy))}
    assert plan_forgetting(paths, record, images=[image_id]).image_ids == {image_id, *copies}
    # That two images have no hash does not make one a copy of the other.
    record_image(paths, record, tmp_path / "d" / "old.dcm", "W98", {"pixel_hash": None})
    old = record.hasher.hash("image", str(tmp_path / "d" / "old.dcm"))
    assert plan_forgetting(paths, record, images=[old]).image_ids == {old}


def test_frames_of_one_file_are_one_file_that_is_left(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    file = tmp_path / "d" / "frames.dcm"
    file.touch()
    columns = {"status": "failed", "reason": "damaged_pixel_data"}
    frames = [
        RecordedImage(ImageOrigin(file, frame), str(frame), columns, {"patient_id": "F"}, 0)
        for frame in (1, 2)
    ]
    record.put(file, (0, 1), frames)
    plan = plan_forgetting(paths, record, patients=["F"])
    assert (len(plan.image_ids), plan.files_left) == (2, 1)
    # They are in no split.
    assert forget(paths, record, plan) == Forgotten((), ())


def test_a_woman_under_two_names_is_pointed_out(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    shared = record.hasher.hash("image", str(tmp_path / "d" / "W03" / "CC.dcm"))
    record_image(paths, record, tmp_path / "d" / "again.dcm", "W99", {"pixel_hash": shared})
    plan = plan_forgetting(paths, record, patients=["W03"])
    assert plan.relatives == (record.hasher.hash("patient", "W99"),)
    assert len(plan.image_ids) == 2
    assert plan_forgetting(paths, record, images=list(plan.image_ids)).relatives == ()


def test_a_split_left_without_a_part_is_removed(paths: StorePaths, record: Record) -> None:
    table = read_split(paths.splits, "default").table
    plan = plan_forgetting(paths, record, images=list(table.query("split == 'val'")["image_id"]))
    assert forget(paths, record, plan).removed == ("default",)
    assert [file.name for file in sorted(paths.splits.iterdir())] == ["five.csv", "five.json"]


@pytest.mark.parametrize("at", ["drop_from_manifest", "remove_from_split", "table"])
def test_killed_and_typed_again_it_completes(
    paths: StorePaths, record: Record, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    plan = plan_forgetting(paths, record, patients=["W03"])
    with monkeypatch.context() as patch:
        if at == "table":  # between the split's hash and its table
            patch.setattr(pd.DataFrame, "to_csv", killed)
        else:
            patch.setattr(f"mammo_pd.data.forget.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(paths, record, plan)
    forget(paths, record, plan_forgetting(paths, record, patients=["W03"]))
    assert {len(holds) for holds in ids_in_store(paths, record)} == {2 * WOMEN - 2}


def test_what_is_not_there_is_refused_and_not_repeated(paths: StorePaths, record: Record) -> None:
    with pytest.raises(InputError, match="no image of patient number 2 of those given") as refused:
        plan_forgetting(paths, record, patients=["W03", "SECRET"])
    assert "SECRET" not in str(refused.value)
    with pytest.raises(InputError, match="no image 'x'; give the manifest's image_id"):
        plan_forgetting(paths, record, images=["x"])
    table = (paths.splits / "five.csv").read_text()
    for text, message in (
        (table[:-30], "truncated or edited"),
        (table.replace(",0,", ",1,", 1), "was changed after it was made"),
    ):
        (paths.splits / "five.csv").write_text(text)
        with pytest.raises(InputError, match=rf"five\.csv .*{message}"):
            plan_forgetting(paths, record, patients=["W03"])


@pytest.mark.parametrize("recorded", [0, 3, WOMEN], ids=["nothing", "others", "all but hers"])
def test_pixels_that_a_killed_preprocess_left_unrecorded_go_with_her(
    recorded: int, tmp_path: Path
) -> None:
    """Placed in the store, but not in the record yet: nothing tells whose they are."""
    paths = create_or_match(tmp_path / "store", {})
    with Record(paths) as record:
        for woman in range(recorded):
            record_image(paths, record, tmp_path / f"{woman}.dcm", f"W{woman:02}", {})
        kept = {image.image_id for image in record.rows()}
        hers = record.hasher.hash("patient", "W99")
        for place in (paths.image("abc"), paths.thumbnail("abc"), paths.partial / "abd.part"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"pixels of hers")
        plan = plan_forgetting(paths, record, patients=["W99"])
        assert (plan.image_ids, plan.not_found, plan.unrecorded) == (frozenset(), 1, 2)
        forget(paths, record, plan)
        assert record.is_kept_out(hers) and not record.is_kept_out("W99")
        # It may be another woman's, whom the next preprocess takes in.
        assert not record.is_kept_out("abc")
        left = {file.stem for file in paths.root.rglob("*") if b"hers" in _content(file)}
        assert not left
        assert {file.stem for file in paths.root.rglob("*.safetensors")} == kept
        # Now that nothing is unrecorded, a name that is not there is an error again.
        message = "already been forgotten" if recorded else "holds no image"
        with pytest.raises(InputError, match=message):
            plan_forgetting(paths, record, patients=["W99"])


def test_images_that_a_killed_preprocess_had_recorded_stay(
    tmp_path: Path, paths: StorePaths, record: Record
) -> None:
    """They are in no manifest yet, but it is known whose they are."""
    record_image(paths, record, tmp_path / "d" / "new.dcm", "W99", {})
    new = record.hasher.hash("image", str(tmp_path / "d" / "new.dcm"))
    plan = plan_forgetting(paths, record, patients=["W03"])
    assert plan.unrecorded == 0
    forget(paths, record, plan)
    assert paths.image(new).is_file() and record.source_of(new) is not None


def test_an_identifier_that_looks_like_a_hash_is_kept_out_all_the_same(
    paths: StorePaths, record: Record
) -> None:
    """Another system's pseudonym may have as many hexadecimal digits as the manifest's."""
    given = "0123456789abcdef0123"
    paths.image("abc").parent.mkdir(parents=True, exist_ok=True)
    paths.image("abc").write_bytes(b"pixels")
    plan = plan_forgetting(paths, record, patients=[given, given])
    assert plan.not_found == 1
    forget(paths, record, plan)
    assert record.is_kept_out(record.hasher.hash("patient", given))
    assert record.is_kept_out(given)


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def test_an_unrecorded_image_is_forgotten_by_its_name(paths: StorePaths, record: Record) -> None:
    place = paths.image("abc")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"pixels")
    forget(paths, record, plan_forgetting(paths, record, images=["abc"]))
    assert not place.exists() and record.is_kept_out("abc")
    assert {len(holds) for holds in ids_in_store(paths, record)} == {2 * WOMEN}


def test_pixels_that_cannot_be_removed_are_not_said_to_be_gone(
    paths: StorePaths, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_forgetting(paths, record, patients=["W03"])
    folder = paths.image_folder(min(plan.image_ids))
    folder.mkdir()
    (folder / "native.npy").touch()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOTEMPTY, "as on a network disk, while somebody reads a file in it")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rmdir", refuse)
        with pytest.raises(OSError, match="network"):
            forget(paths, record, plan)
    again = plan_forgetting(paths, record, patients=["W03"])
    assert again.image_ids == plan.image_ids
    forget(paths, record, again)
    assert not folder.exists()
    assert not plan.image_ids & ids_in_store(paths, record)[-1]


@pytest.mark.parametrize("prefix", ["../", "..", "../../", "/", ".", "", "\0"])
def test_a_name_that_leads_out_of_the_store_removes_nothing(
    paths: StorePaths, record: Record, prefix: str, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    for folder in (victim, tmp_path / "store" / "victim", tmp_path / "store" / "..victim"):
        folder.mkdir()
        (folder / "thesis.txt").touch()
    named = {"/": str(victim), ".": ".", "": ""}.get(prefix, f"{prefix}victim")
    before = {file for file in tmp_path.rglob("*") if not file.is_relative_to(paths.private)}
    # As a store can be whose private folder somebody else made.
    hers = next(record.rows())
    images = [RecordedImage(hers.source, named, hers.columns, hers.identifiers, 1)]
    record.put(hers.source.path, (0, 1), images)
    plan = plan_forgetting(paths, record, images=[named])
    with pytest.raises(InputError, match=r"leads away from its pixels.*do not trust the store"):
        forget(paths, record, plan)
    assert before <= {*tmp_path.rglob("*")}


@pytest.mark.parametrize("private", [False, True])
def test_a_link_in_place_of_a_folder_of_images_is_not_followed(
    paths: StorePaths, record: Record, private: bool, tmp_path: Path
) -> None:
    image_id = next(record.rows()).image_id
    folder = (paths.thumbnail(image_id) if private else paths.image(image_id)).parent
    victim = folder.rename(tmp_path / "victim")
    folder.symlink_to(victim)
    (victim / f"{image_id[:2]}-thesis").mkdir()
    before = sorted(victim.iterdir())
    with pytest.raises(InputError, match="is a link, and mammo-pd makes none"):
        forget(paths, record, plan_forgetting(paths, record, images=[image_id]))
    assert sorted(victim.iterdir()) == before
