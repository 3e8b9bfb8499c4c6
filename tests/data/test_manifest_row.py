from pathlib import Path

import pytest

from mammo_pd.data.manifest_row import manifest_row
from mammo_pd.data.record import Hasher, ImageOrigin, RecordedImage


@pytest.mark.parametrize(
    ("tag", "table", "written"),
    [(61.0, None, 61.0), (89.0, None, 89.0), (93.0, None, 90.0), (61.0, 104.0, 90.0)],
)
def test_ages_above_89_are_one_class(tag: float, table: float | None, written: float) -> None:
    origin = ImageOrigin(Path("a.dcm"))
    image = RecordedImage(origin, "i", {"status": "ok", "age": tag}, {}, 0, {"age": table})
    assert manifest_row(image, Hasher(b"k" * 32))["age"] == written
