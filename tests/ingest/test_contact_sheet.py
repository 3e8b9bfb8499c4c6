import numpy as np
from PIL import Image

from mammo_pd.imaging.box import Box
from mammo_pd.ingest.contact_sheet import draw_contact_sheet


def test_pages_boxes_and_captions(tmp_path):
    thumbnail = np.full((256, 160), 60, np.uint8)
    items = [(thumbnail, Box(20, 10, 200, 100), f"image {i}") for i in range(41)]
    written = draw_contact_sheet(iter(items), tmp_path / "out" / "sheet.png")
    assert [path.name for path in written] == ["sheet.png", "sheet-2.png"]
    page = np.asarray(Image.open(written[0]))
    yellow = (page == (255, 200, 0)).all(axis=-1)
    assert yellow.sum() == 40 * (2 * 200 + 2 * 100 - 4)
    second = np.asarray(Image.open(written[1]))
    assert (second == (255, 200, 0)).all(axis=-1).sum() == 2 * 200 + 2 * 100 - 4
    # A page is as high as its rows of eight.
    assert page.shape[0] == 5 * second.shape[0]


def test_the_last_line_is_below_the_last_page(tmp_path):
    thumbnail = np.full((256, 256), 60, np.uint8)
    for count in (8, 40, 41):
        items = [(thumbnail, None, "x")] * count
        plain = draw_contact_sheet(items, tmp_path / f"{count}" / "plain.png")
        lined = draw_contact_sheet(items, tmp_path / f"{count}" / "lined.png", last_line="2 more")
        pages = [[np.asarray(Image.open(page)) for page in pages] for pages in (plain, lined)]
        for before, after in zip(pages[0][:-1], pages[1][:-1], strict=True):
            assert np.array_equal(before, after)
        height = len(pages[0][-1])
        assert np.array_equal(pages[0][-1], pages[1][-1][:height])
        assert (pages[1][-1][height:] > 200).any()


def test_nothing_to_draw(tmp_path):
    assert draw_contact_sheet([], tmp_path / "sheet.png") == []
    assert not list(tmp_path.iterdir())


def test_16_bit_thumbnails_and_no_box(tmp_path):
    thumbnail = np.full((64, 64), 40000, np.uint16)
    [path] = draw_contact_sheet([(thumbnail, None, "x")], tmp_path / "s.png")
    assert (np.asarray(Image.open(path))[40, 30] == 40000 >> 8).all()
