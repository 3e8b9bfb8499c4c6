import numpy as np
import pytest

from mammo_pd.phantoms.tissue import PixelGrid, anatomical_noise


def test_anatomical_noise_has_the_published_spectrum() -> None:
    grid = PixelGrid(rows=512, columns=512, spacing=0.25)
    for field in anatomical_noise(grid, np.random.default_rng(0)):
        power = np.abs(np.fft.rfft2(field)) ** 2
        f = np.hypot(np.fft.fftfreq(512, 0.25)[:, None], np.fft.rfftfreq(512, 0.25)[None])
        band = (f > 0.1) & (f < 1)
        slope = np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0]
        assert slope == pytest.approx(-3, abs=0.1)
        assert field.std() == pytest.approx(1, rel=1e-3)
