from pathlib import Path

import pytest

from mammo_pd.data.kept_levels import (
    ALL_LEVELS,
    keep_levels,
    kept_levels,
    levels_of,
    parse_levels,
    refuse_missing_levels,
)
from mammo_pd.data.store import StorePaths, choose_pyramid_level, create_or_match
from mammo_pd.errors import InputError


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return create_or_match(tmp_path / "a store", {"voi": "auto"})


def test_levels_are_read_in_the_order_of_their_size() -> None:
    assert parse_levels("1024, native,2048,1024") == ("native", "2048", "1024")


@pytest.mark.parametrize("text", ["", "1000", "1024,", "1024 2048", "Native"])
def test_what_is_no_level_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(InputError, match=r"native, 4096, 2048, 1024, 512, separated by commas"):
        parse_levels(text)


def test_a_store_that_names_no_levels_keeps_all(paths: StorePaths) -> None:
    before = paths.info.read_bytes()
    keep_levels(paths, ALL_LEVELS)
    assert paths.info.read_bytes() == before
    assert kept_levels(paths) == ALL_LEVELS
    keep_levels(paths, ("1024",))
    assert kept_levels(paths) == ("1024",)
    create_or_match(paths.root, {"voi": "auto"})


@pytest.mark.parametrize(
    ("long_side", "kept", "levels"),
    [
        (3000, ALL_LEVELS, ["native", "2048", "1024", "512"]),
        (3000, ("1024",), ["1024"]),
        (3000, ("native",), ["native"]),
        (3000, ("4096", "1024"), ["native", "1024"]),
        (1024, ("1024",), ["native"]),
        (900, ("2048", "1024", "512"), ["native", "512"]),
    ],
)
def test_an_image_has_native_pixels_in_place_of_levels_that_are_not_smaller(
    long_side: int, kept: tuple[str, ...], levels: list[str]
) -> None:
    assert levels_of(long_side, kept) == levels


@pytest.mark.parametrize("size", [(3000, 2000), (1500, 900), (1000, 1000), (5000, 3000)])
@pytest.mark.parametrize("img_size", [(512, 408), (1024, 816), (2048, 1640), (4992, 4000)])
def test_the_command_that_is_named_adds_what_is_missing(
    paths: StorePaths, size: tuple[int, int], img_size: tuple[int, int]
) -> None:
    wanted = [(choose_pyramid_level(*size, img_size), max(size))]
    keep_levels(paths, ("1024",))
    try:
        refuse_missing_levels(paths, wanted, "this")
    except InputError as error:
        assert wanted[0][0] not in levels_of(max(size), ("1024",))
        told = str(error)
        assert f"of 1 image, and the store {paths.root} keeps 1024 only" in told
        added = parse_levels(told.split("--levels ")[1])
        assert f"--out '{paths.root}'" in told
        keep_levels(paths, (*added, "1024"))
        refuse_missing_levels(paths, wanted, "this")
    else:
        assert wanted[0][0] in levels_of(max(size), ("1024",))
