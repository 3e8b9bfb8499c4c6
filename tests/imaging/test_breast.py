import csv
import hashlib

import numpy as np
import pytest
from dicom_files import half_disk

from mammo_pd.errors import ImageError
from mammo_pd.imaging.box import Box
from mammo_pd.imaging.breast import find_breast
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.grey_scale import apply_grey_scale, stretch_raster
from mammo_pd.imaging.raster import read_raster
from mammo_pd.imaging.settings import ALGORITHM_VERSION
from mammo_pd.terms import Reason

# (top, left, bottom, right) as measured by eye on a grid drawn over the image: all tissue that is
# joined to the breast, in pixels of the full frame.
BY_EYE = {
    "mg_dicom/fodicom_GH133_ge_R_MLO_voilut_sigmoid.dcm": (0, 1150, 2240, 2394),
    "mg_dicom/ge_essential_R_CC.dcm": (400, 1140, 2210, 1914),
    "mg_dicom/ge_essential_R_XCCL.dcm": (0, 440, 2294, 1914),
    "mg_dicom/nema_MG1_J2KI.dcm": (0, 0, 4480, 2050),
    "mg_dicom/nema_MG1_JPLY_bad_sos.dcm": (0, 0, 4480, 2050),
    "mg_dicom/train_images_10011_1031443799.dcm": (0, 1090, 2776, 2082),
    "mg_dicom/train_images_10011_220375232.dcm": (130, 0, 2555, 1020),
    "mg_dicom/train_images_10011_270344397.dcm": (0, 0, 2700, 955),
    "mg_dicom/train_images_10011_541722628.dcm": (40, 1020, 2430, 2082),
    "nyu_png/bcc_1_L_CC.png": (220, 0, 2790, 1180),
    "nyu_png/bcc_1_R_CC.png": (590, 1490, 3000, 2560),
    "mias/images/mdb001.png": (0, 310, 913, 766),
    "mias/images/mdb002.png": (0, 187, 1010, 680),
    "mias/images/mdb012.png": (0, 187, 1024, 697),
    "mias/images/mdb018.png": (0, 310, 1018, 602),
    "mias/images/mdb037.png": (0, 340, 917, 712),
    "mias/images/mdb054.png": (0, 310, 905, 626),
    "mias/images/mdb066.png": (0, 257, 1024, 640),
    "mias/images/mdb070.png": (0, 187, 980, 738),
    "mias/images/mdb083.png": (0, 266, 1000, 836),
    "mias/images/mdb104.png": (0, 254, 1018, 684),
    "mias/images/mdb112.png": (0, 187, 990, 787),
    "mias/images/mdb122.png": (0, 187, 985, 745),
    "mias/images/mdb137.png": (0, 266, 924, 836),
    "mias/images/mdb138.png": (0, 187, 1024, 762),
    "mias/images/mdb140.png": (0, 12, 1024, 785),
    "mias/images/mdb198.png": (0, 254, 931, 715),
    "mias/images/mdb213.png": (0, 362, 973, 710),
    "mias/images/mdb226.png": (0, 254, 896, 685),
    "mias/images/mdb245.png": (0, 320, 1006, 712),
    "mias/images/mdb274.png": (0, 10, 930, 755),
    "mias/images/mdb303.png": (0, 288, 1008, 766),
}

# The breast alone, where a strip of the abdominal wall hangs from it.
WITH_ABDOMEN = {
    "mias/images/mdb166.png": (0, 310, 893, 672),
    "mias/images/mdb179.png": (0, 362, 725, 712),
}


def whole_range(path):
    if path.suffix == ".png":
        return stretch_raster(read_raster(path).pixels).full_range
    dataset = read_dataset(path)
    return apply_grey_scale(decode(dataset).values, dataset).full_range


def breast(side="left", shape=(960, 640)):
    return half_disk(shape, side=side) * np.uint16(16)


def test_a_plain_breast():
    region = find_breast(breast())
    assert (region.verdict, region.side) == ("ok", "left")
    assert region.box.overlap(Box(96, 0, 768, 384)) > 0.9
    assert region.solidity > 0.95


def test_left_mirrored_equals_right():
    left, right = find_breast(breast()), find_breast(breast("right"))
    assert right.side == "right"
    assert (right.box.top, right.box.height, right.box.width) == (
        left.box.top, left.box.height, left.box.width
    )  # fmt: skip
    np.testing.assert_array_equal(left.mask, right.mask[:, ::-1])


def with_marker(pixels):
    pixels[60:140, 500:600] = 65535


def with_vertical_line(pixels):
    pixels[:, 560:568] = 65535


def with_tape_at_the_far_edge(pixels):
    pixels[:, 600:] = 65535


def with_paddle_edge(pixels):
    pixels[-20:, :] = 40000


def with_film_background(pixels):
    noise = np.random.default_rng(0).normal(4000, 400, pixels.shape)
    pixels[:] = np.maximum(pixels, noise.astype(np.uint16))


def with_letters(pixels):
    pixels[30:60, 420:600:12] = 60000


DISTURBANCES = [
    with_marker,
    with_vertical_line,
    with_tape_at_the_far_edge,
    with_paddle_edge,
    with_film_background,
    with_letters,
]


@pytest.mark.parametrize("disturb", DISTURBANCES)
def test_what_is_not_breast_does_not_move_the_crop(disturb):
    pixels = breast()
    plain = find_breast(pixels)
    disturb(pixels)
    region = find_breast(pixels)
    assert region.verdict == "ok"
    assert region.box.overlap(plain.box) > 0.9
    crop = region.cut_out(pixels)
    assert crop[-1, -1] == 0  # the corner beyond the nipple


@pytest.mark.parametrize("level", [45000, 65535])
@pytest.mark.parametrize("darker", [1, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_an_implant_is_part_of_the_breast_and_not_all_of_it(level, darker, side):
    pixels = breast() // darker
    row, column = np.mgrid[:960, :640]
    pixels[((row - 500) / 280) ** 2 + (column / 250) ** 2 < 1] = level
    pixels = pixels if side == "left" else pixels[:, ::-1]
    region = find_breast(pixels)
    assert (region.verdict, region.side) == ("ok", side)
    assert region.box.overlap(find_breast(breast(side)).box) > 0.9


@pytest.mark.parametrize("darker", [4, 16])
def test_tissue_beside_an_implant_at_the_end_of_the_range_may_be_nearly_black(darker):
    pixels = breast() // darker
    row, column = np.mgrid[:960, :640]
    pixels[((row - 500) / 280) ** 2 + (column / 250) ** 2 < 1] = 65535
    region = find_breast(pixels)
    assert (region.verdict, region.side) == ("ok", "left")
    assert region.box.overlap(find_breast(breast()).box) > 0.9


@pytest.mark.parametrize("level", [64000, 65535])
def test_tape_that_is_larger_than_the_breast_is_not_taken_for_it(level):
    pixels = np.hstack([breast(), np.zeros((960, 400), np.uint16)])
    plain = find_breast(pixels)
    pixels[:, -300:] = level
    pixels[5:60, 600:610] = 65535  # letters, by which tape may fall short of the brightest
    region = find_breast(pixels)
    assert (region.verdict, region.side) == ("ok", "left")
    assert region.box.overlap(plain.box) > 0.9


@pytest.mark.parametrize("frame", [(752, 640), (960, 640), (757, 380)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_crop_and_a_sample_are_of_the_masks_blocks_and_no_others(frame, side):
    """Rows and columns left over by the blocks go by the last ones."""
    pixels = on_film(breast("left"))[: frame[0], : frame[1]] + np.uint16(1)
    pixels = pixels if side == "left" else pixels[:, ::-1]
    region = find_breast(pixels)
    assert region.verdict == "ok"
    left_over = [(0, full % region.block) for full in frame]
    inside = np.kron(region.mask, np.ones((region.block, region.block), bool))
    inside = np.pad(inside, left_over, mode="edge")
    # All of the breast, and as little else as a box of blocks can hold.
    assert inside.sum() == inside[region.box.slices].sum()
    cropped = inside[region.box.slices]
    for edge in (cropped[0], cropped[-1], cropped[:, 0], cropped[:, -1]):
        assert edge.any()
    crop = region.cut_out(pixels)
    np.testing.assert_array_equal(crop, np.where(cropped, pixels[region.box.slices], 0))
    found = region.sample(pixels)
    np.testing.assert_array_equal(found, crop[::4, ::4][crop[::4, ::4] > 0])


def ellipse(centre, radii, shape=(960, 640)):
    row, column = np.mgrid[: shape[0], : shape[1]]
    return ((row - centre[0]) / radii[0]) ** 2 + ((column - centre[1]) / radii[1]) ** 2 < 1


OTHER_PARTS = {
    "abdomen": ellipse((960, 300), (150, 500)),
    "chin": ellipse((0, 260), (120, 150)),
    "arm": ellipse((0, 100), (125, 540)),
    "abdomen and arm": ellipse((960, 300), (150, 500)) | ellipse((0, 100), (125, 540)),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("part", OTHER_PARTS)
def test_another_part_of_the_body_at_an_edge_is_cut_off(part, side):
    pixels = breast()
    texture = 24000 + 4000 * np.sin(np.arange(960) / 9)[:, None] * np.cos(np.arange(640) / 7)
    pixels = np.where(OTHER_PARTS[part] & (pixels == 0), texture.astype(np.uint16), pixels)
    region = find_breast(pixels if side == "left" else pixels[:, ::-1])
    assert (region.verdict, region.side) == ("ok", side)
    plain = find_breast(breast(side)).box
    # What is cut is never the breast's own, but where the other part lies on it.
    assert region.box.top <= plain.top + 40
    assert region.box.bottom >= plain.bottom - 60
    # One of two may stay, where what is left is a breast beyond doubt.
    assert region.box.overlap(plain) > (0.6 if part == "abdomen and arm" else 0.85)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_was_cut_off_is_no_second_breast(side):
    """An abdomen may have a breast's shape, and half of its area."""
    pixels = breast()
    pixels[ellipse((960, 300), (200, 300)) & (pixels == 0)] = 24000
    region = find_breast(pixels if side == "left" else pixels[:, ::-1])
    assert (region.verdict, region.side) == ("ok", side)


@pytest.mark.parametrize("width", [4, 10, 20, 40])
@pytest.mark.parametrize("level", [20000, 40000, 65535])
@pytest.mark.parametrize("edges", ["upper", "lower", "all"])
def test_a_bright_line_along_an_edge_is_cut_off(width, level, edges):
    pixels = breast()
    # Up to the upper edge, as in an oblique view: the line touches the breast.
    pixels = np.maximum(pixels, np.roll(pixels, -300, axis=0))
    pixels[-300:] = breast()[-300:]
    plain = find_breast(pixels)
    if edges in ("upper", "all"):
        pixels[:width] = level
    if edges in ("lower", "all"):
        pixels[-width:] = level
    if edges == "all":
        pixels[:, -width:] = level
    region = find_breast(pixels)
    assert (region.verdict, region.side) == ("ok", "left")
    assert region.box.overlap(plain.box) > 0.85


def test_an_inverted_breast_is_not_made_one_by_a_cut():
    """Air that is white has necks too, where the breast comes near an edge."""
    pixels = breast()
    pixels[OTHER_PARTS["abdomen and arm"] & (pixels == 0)] = 24000
    for image in (65535 - pixels, np.where(pixels == 0, 65535, 20000 - pixels // 4)):
        region = find_breast(image.astype(np.uint16))
        assert region.verdict != "ok"
        assert region.box == Box.whole(image.shape)


def test_a_breast_of_one_brightness_in_plain_air():
    # Small enough that no pixel is the mean of breast and air.
    region = find_breast(np.where(half_disk((240, 160)) > 0, np.uint16(40000), np.uint16(0)))
    assert region.verdict == "ok"
    assert region.box.overlap(Box(24, 0, 192, 96)) > 0.9


def test_a_breast_cut_off_at_the_frames_edge():
    region = find_breast(breast()[400:])
    assert region.verdict == "ok"
    assert region.box.top == 0


def test_a_spot_view_is_kept_whole_and_flagged():
    pixels = breast()[350:600, :200].copy()
    region = find_breast(pixels)
    assert region.verdict == "fills_frame"
    assert region.box == Box.whole(pixels.shape)
    np.testing.assert_array_equal(region.cut_out(pixels), pixels)


def test_a_small_breast_is_kept_whole_and_flagged():
    pixels = np.zeros((960, 640), np.uint16)
    pixels[300:560, :180] = breast(shape=(260, 180))
    assert find_breast(pixels).verdict == "small"


def test_two_breasts_are_kept_whole_and_flagged():
    region = find_breast(np.maximum(breast(shape=(960, 560)), breast("right", shape=(960, 560))))
    assert region.verdict == "two_sided"


def side_by_side(first, second, gap):
    """Two images on one, a black strip of ``gap`` columns between them."""
    height = max(len(first), len(second))
    between = [np.zeros((height - len(one), one.shape[1]), np.uint16) for one in (first, second)]
    return np.hstack(
        [
            np.vstack([first, between[0]]),
            np.zeros((height, gap), np.uint16),
            np.vstack([second, between[1]]),
        ]
    )


def above_each_other(first, second, gap):
    return side_by_side(first.T, second.T, gap).T


def with_implant(pixels):
    row, column = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    wall = column if pixels[pixels.shape[0] // 2, 0] else pixels.shape[1] - 1 - column
    radii = 0.29 * pixels.shape[0], 0.39 * pixels.shape[1]
    implant = ((row - 0.5 * pixels.shape[0]) / radii[0]) ** 2 + (wall / radii[1]) ** 2 < 1
    return np.where(implant, np.uint16(65535), pixels)


def on_film(pixels):
    noise = np.random.default_rng(0).normal(3000, 300, pixels.shape)
    return np.maximum(pixels, noise.astype(np.uint16))


ARRANGEMENTS = {
    "facing": (side_by_side, "left", "right"),
    "back to back": (side_by_side, "right", "left"),
    "both to the left": (side_by_side, "left", "left"),
    "above each other": (above_each_other, "left", "left"),
    "above each other, turned": (above_each_other, "right", "left"),
}
OF_TWO = {
    "alike": (lambda pixels: pixels, lambda pixels: pixels),
    "one half as bright": (lambda pixels: pixels // 2, lambda pixels: pixels),
    "one of 0.4 of the area": (lambda pixels: pixels, lambda pixels: breast_like(pixels, 0.63)),
    "with implants": (with_implant, with_implant),
    "one with an implant": (with_implant, lambda pixels: pixels),
    "on film": (on_film, on_film),
    "with markers": (lambda pixels: marked(pixels), lambda pixels: marked(pixels)),
}


def breast_like(pixels, scale):
    side = "left" if pixels[pixels.shape[0] // 2, 0] else "right"
    return breast(side, tuple(round(scale * length) for length in pixels.shape))


def marked(pixels):
    pixels = pixels.copy()
    pixels[20:60, pixels.shape[1] // 2 - 30 : pixels.shape[1] // 2 + 30] = 65535
    return pixels


@pytest.mark.parametrize("gap", [40, 200])
@pytest.mark.parametrize("kind", OF_TWO)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_neither_of_two_breasts_is_lost(arrangement, kind, gap):
    join, *sides = ARRANGEMENTS[arrangement]
    first, second = (make(breast(side)) for make, side in zip(OF_TWO[kind], sides, strict=True))
    for pixels in (join(first, second, gap), join(second, first, gap)):
        region = find_breast(pixels)
        assert region.verdict == "two_breasts"
        assert region.box == Box.whole(pixels.shape)
        np.testing.assert_array_equal(region.cut_out(pixels), pixels)


@pytest.mark.parametrize("width", [40, 100, 180])
@pytest.mark.parametrize("level", [20000, 40000, 65535])
@pytest.mark.parametrize("where", ["far edge", "bar below", "label"])
def test_a_strip_or_a_label_is_no_second_breast(where, level, width):
    pixels = np.hstack([breast(), np.zeros((960, 240), np.uint16)])
    box = {
        "far edge": np.s_[:, -width:],
        "bar below": np.s_[-width // 2 :, 20:],
        "label": np.s_[40 : 40 + width, -300:-20],
    }[where]
    pixels[box] = level
    region = find_breast(pixels)
    assert (region.verdict, region.side) == ("ok", "left")


def test_a_part_of_another_breast_at_an_edge_is_no_second_one():
    """As in a craniocaudal view that shows the other breast's inner edge."""
    pixels = np.hstack([breast(), np.zeros((960, 120), np.uint16)])
    part = ellipse((960, 0), (240, 230), pixels.shape) & (pixels == 0)
    pixels[part] = 22000
    assert find_breast(pixels).verdict == "ok"


@pytest.mark.parametrize("content", ["letters", "lines", "noise"])
def test_what_is_no_breast_is_refused(content):
    pixels = np.zeros((960, 640), np.uint16)
    if content == "letters":
        pixels[50:900:40, 50:600:7] = 65535
    elif content == "lines":
        pixels[::60, :] = 65535
    else:
        pixels[:] = np.random.default_rng(0).integers(0, 65536, pixels.shape)
        pixels[::8, ::8] = 0
        pixels[np.indices(pixels.shape).sum(0) % 40 < 22] = 0
    with pytest.raises(ImageError) as caught:
        find_breast(pixels)
    assert caught.value.reason == Reason.NO_BREAST


@pytest.mark.parametrize("odd", [0, 1])
def test_a_plain_image_is_no_breast(odd):
    pixels = np.full((960, 640), 1000, np.uint16)
    pixels[5, 5] += odd  # lost when the image is reduced
    with pytest.raises(ImageError) as caught:
        find_breast(pixels)
    assert caught.value.reason == Reason.NO_BREAST


def test_masks_move_with_the_algorithms_version_only():
    """What lies outside the mask is 0 in a store: another mask makes other pixels of one file."""
    digest = hashlib.sha256()
    for disturb in DISTURBANCES:
        for side in ("left", "right"):
            pixels = breast(side) // 2
            disturb(pixels)
            digest.update(find_breast(pixels).mask.tobytes())
    assert (ALGORITHM_VERSION, digest.hexdigest()[:16]) == (8, "b6e6fcdcd792c7ff")


def test_a_strip_of_an_image_is_refused():
    with pytest.raises(ImageError, match="too narrow"):
        find_breast(np.ones((2000, 5), np.uint16))


@pytest.mark.corpus
@pytest.mark.parametrize("name", BY_EYE)
def test_boxes_as_measured_by_eye(corpus, name):
    top, left, bottom, right = BY_EYE[name]
    region = find_breast(whole_range(corpus / name))
    assert region.verdict == "ok"
    assert region.box.overlap(Box(top, left, bottom - top, right - left)) >= 0.9


@pytest.mark.corpus
@pytest.mark.parametrize("name", WITH_ABDOMEN)
def test_a_strip_of_abdomen_is_followed_a_little_way(corpus, name):
    """Growth to dim skin cannot tell it from skin, so 0.9 is missed here; its reach is bounded."""
    top, left, bottom, right = WITH_ABDOMEN[name]
    region = find_breast(whole_range(corpus / name))
    assert region.verdict == "ok"
    assert bottom < region.box.bottom < bottom + 0.08 * 1024
    assert region.box.overlap(Box(top, left, bottom - top, right - left)) >= 0.85


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("hologic_dsm_stereo_scout_mono1", "no_chest_wall"),
        ("fodicom_OutOfBoundsOverlay_siemens_stereo", "two_sided"),
    ],
)
def test_spot_views_of_the_corpus_are_kept_whole(corpus, name, verdict):
    pixels = whole_range(corpus / "mg_dicom" / f"{name}.dcm")
    region = find_breast(pixels)
    assert region.verdict == verdict
    assert region.box == Box.whole(pixels.shape)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["ge_essential_R_CC", "train_images_10011_220375232"])
def test_an_inverted_film_is_flagged(corpus, name):
    pixels = 65535 - whole_range(corpus / "mg_dicom" / f"{name}.dcm")
    pixels[:, 200:208] = 0
    region = find_breast(pixels)
    assert region.verdict != "ok"
    assert region.box == Box.whole(pixels.shape)


@pytest.mark.corpus
def test_a_page_of_text_is_no_breast(corpus):
    with pytest.raises(ImageError) as caught:
        find_breast(whole_range(corpus / "mg_dicom" / "clunie_MG_text_page_not_a_breast.dcm"))
    assert caught.value.reason == Reason.NO_BREAST


@pytest.mark.corpus
def test_no_lesion_of_mias_lies_outside_its_crop(corpus):
    lesions = 0
    verdicts = set()
    for row in csv.DictReader((corpus / "mias" / "labels.csv").open()):
        pixels = whole_range(corpus / "mias" / row["file"])
        region = find_breast(pixels)
        verdicts.add(region.verdict)
        if region.verdict != "ok":
            assert row["image_id"] in ("mdb151", "mdb152")  # they fill the film
        else:
            # Odd films show the one breast, even films the other: the sides alternate.
            assert region.side == ("right" if int(row["image_id"][3:]) % 2 else "left")
        if not row["x"].isdigit():
            continue
        x, y = int(row["x"]), 1023 - int(row["y_from_bottom"])
        assert region.box.top <= y < region.box.bottom, row["image_id"]
        assert region.box.left <= x < region.box.right, row["image_id"]
        height, width = region.mask.shape
        assert region.mask[min(y // region.block, height - 1), min(x // region.block, width - 1)]
        lesions += 1
    assert lesions > 70
    assert verdicts == {"ok", "two_sided"}


@pytest.mark.corpus
@pytest.mark.parametrize("join", [side_by_side, above_each_other])
def test_the_two_films_of_every_woman_of_mias_scanned_together(corpus, join):
    films = {}
    for row in csv.DictReader((corpus / "mias" / "labels.csv").open()):
        films.setdefault(row["patient_id"], []).append(whole_range(corpus / "mias" / row["file"]))
    pairs = [pair for pair in films.values() if len(pair) == 2]
    assert len(pairs) > 100
    verdicts = [find_breast(join(*pair, 100)).verdict for pair in pairs]
    # One woman's breasts fill their films, so that both sides are cut straight.
    assert verdicts.count("two_breasts") >= len(verdicts) - 1
    assert "ok" not in verdicts


def test_detector_air_at_a_quarter_of_the_range_is_air() -> None:
    """Padding is 0 and the detector's own air far above it: the frame must not count as breast."""
    row, column = np.mgrid[:800, :600]
    breast = ((row - 400) / 330) ** 2 + (column / 300) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 300, breast.shape)
    pixels = np.where(breast, 26_000 + 20 * (300 - column), 14_000) + noise
    pixels[:, 570:] = 0
    region = find_breast(pixels.clip(0, 65535).astype(np.uint16))
    assert region.verdict == "ok"
    assert region.side == "left"
    assert region.box.overlap(Box(70, 0, 660, 300)) > 0.9
