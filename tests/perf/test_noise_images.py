from pathlib import Path

import pytest

from mammo_pd.data.manifest import read_manifest
from mammo_pd.perf import noise_images
from mammo_pd.perf.noise_images import write_noise_store


def test_a_store_of_noise_knows_of_each_image_what_a_report_draws_it_by(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the frame that `preprocess` always knows is missing: cv's report draws images."""
    monkeypatch.setattr(noise_images, "_MOST_IMAGES", 4)
    noise = read_manifest(write_noise_store(tmp_path / "store", (64, 48), 40).manifest)
    real = read_manifest(phantom_store / "manifest.parquet")
    assert len(noise) == 40
    for column in ("crop_height", "crop_width", "flipped"):
        assert real[column].notna().all()
        assert noise[column].notna().all()
