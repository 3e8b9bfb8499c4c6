"""What an image shows besides lesions: breast tissue, air, noise and the burnt-in marker.

Images are float32 grey values, white is 1, of shape (rows, columns) of their `PixelGrid`.
"""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import expit

from mammo_pd.phantoms.vendors import Vendor
from mammo_pd.phantoms.women import Body, Lengths

FloatImage = NDArray[np.float32]

# Above this threshold of the noise, tissue is glandular.
_GLAND_THRESHOLD = MappingProxyType({"A": 2.4, "B": 1.3, "C": 0.4, "D": -0.4})
_LARGEST_STRUCTURE = 60.0  # mm; the spectrum is flat for anything larger
_TISSUE_SPACING = 0.2  # mm; finer detail of f^-3 noise drowns in quantum noise
_PADDLE_EDGE = 0.72  # of the image's width


@dataclass(frozen=True)
class PixelGrid:
    """Pixels on the detector: ``rows`` by ``columns``, ``spacing`` mm apart."""

    rows: int
    columns: int
    spacing: float

    @property
    def y(self) -> Lengths:
        """Pixel centres from the top, (rows, 1), mm."""
        return ((np.arange(self.rows) + 0.5) * self.spacing)[:, None]

    @property
    def x(self) -> Lengths:
        """Pixel centres from the chest wall, (1, columns), mm."""
        return ((np.arange(self.columns) + 0.5) * self.spacing)[None]

    def coarser(self, spacing: float) -> "PixelGrid":
        """The grid of at least this spacing that covers the same field of view."""
        ratio = max(spacing / self.spacing, 1.0)
        return PixelGrid(
            int(np.ceil(self.rows / ratio)),
            int(np.ceil(self.columns / ratio)),
            self.spacing * ratio,
        )

    def resample(self, image: FloatImage, spacing: float, margin: float = 0.0) -> FloatImage:
        """Resample an image of another spacing, whose origin lies ``margin`` mm up and left."""
        # Pixel centres coincide in mm, not in index: half a pixel is another length on each grid.
        first = (0.5 * self.spacing + margin) / spacing - 0.5
        ratio = self.spacing / spacing
        resampled: FloatImage = ndimage.affine_transform(
            image,
            [ratio, ratio],
            offset=first,
            output_shape=(self.rows, self.columns),
            order=1,
            mode="nearest",
        )
        return resampled


def draw_breast(
    body: Body, image_grid: PixelGrid, density: str, rng: np.random.Generator
) -> FloatImage:
    """Draw fat, glandular tissue, muscle and skin; 0 outside the breast."""
    grid = image_grid.coarser(_TISSUE_SPACING)
    y, x = grid.y, grid.x
    coarse, texture = anatomical_noise(grid, rng)
    distance = _distance_to_skin(body, grid)

    # Glandular tissue is likeliest in the middle of the breast: a paraboloid plus noise, softly
    # thresholded.
    disc = (
        1
        - ((x - 0.5 * body.depth) / (0.5 * body.depth)) ** 2
        - ((y - body.nipple_y) / (0.8 * body.half_height)) ** 2
    )
    gland = expit((1.5 * disc + coarse - _GLAND_THRESHOLD[density]) / 0.5)
    strands = np.exp(-np.abs(texture) / 0.15)
    tissue = 0.24 + 0.21 * gland + 0.04 * texture + 0.04 * strands
    muscle = expit(body.pectoral(y) - x)
    tissue += muscle * (0.46 + 0.02 * texture - tissue)

    # The compressed breast thins out towards the skin, round like the edge of a cushion.
    thickness = np.sqrt(1 - (1 - np.clip(distance / (0.3 * body.depth), 0, 1)) ** 2)
    skin = 0.1 * np.exp(-(((distance - 1) / 0.8) ** 2)) * (distance > 0)
    grey: FloatImage = (thickness * tissue + skin).astype(np.float32)
    return image_grid.resample(grey, grid.spacing)


def _distance_to_skin(body: Body, grid: PixelGrid) -> FloatImage:
    """Depth below the skin in mm, 0 outside the breast; chest wall and axilla have no skin."""
    step, margin = 0.5, 40.0
    # The margin continues the breast beyond the chest wall and the top, so that the image's own
    # edges are not taken for skin.
    coarse = PixelGrid(
        round((grid.rows * grid.spacing + margin) / step),
        round((grid.columns * grid.spacing + margin) / step),
        step,
    )
    inside = coarse.x - margin < body.edge(np.clip(coarse.y - margin, 0.0, None))
    distance = ndimage.distance_transform_edt(inside, sampling=step).astype(np.float32)
    return grid.resample(ndimage.gaussian_filter(distance, 1.0), step, margin)


def anatomical_noise(grid: PixelGrid, rng: np.random.Generator) -> tuple[FloatImage, FloatImage]:
    """Two independent fields of mean 0 and variance 1 whose power falls as f^-3.

    Source: Burgess, Jacobson and Judy, Human observer detection experiments with mammograms and
    power-law noise, Medical Physics 28 (2001).
    """
    shape = (scipy.fft.next_fast_len(grid.rows), scipy.fft.next_fast_len(grid.columns))
    f_squared = (
        np.fft.fftfreq(shape[0], grid.spacing)[:, None] ** 2
        + np.fft.fftfreq(shape[1], grid.spacing)[None] ** 2
    )
    f_squared += _LARGEST_STRUCTURE**-2
    f_squared[0, 0] = np.inf  # no power at frequency 0: mean 0
    # Power f^-3 is amplitude f^-1.5.
    amplitude = (f_squared**-0.75).astype(np.float32)
    white = rng.standard_normal((*shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
    # Complex noise: the real and the imaginary part are the two independent fields.
    both = scipy.fft.ifft2(white * amplitude)[: grid.rows, : grid.columns]
    return both.real / both.real.std(), both.imag / both.imag.std()


def draw_air(grid: PixelGrid, vendor: Vendor) -> FloatImage:
    """Draw the background: dark, uneven, never constant."""
    y = np.linspace(-1, 1, grid.rows, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, grid.columns, dtype=np.float32)[None]
    air = 0.02 + 0.008 * x * y**2
    if vendor.paddle_edge:
        air += 0.05 * np.exp(-(((x - _PADDLE_EDGE) * grid.columns * grid.spacing / 0.6) ** 2))
    return air


def quantum_noise(grey: FloatImage, grid: PixelGrid, rng: np.random.Generator) -> FloatImage:
    """Draw noise whose variance grows with the grey value: fewer quanta reach a whiter pixel.

    Its standard deviation is inversely proportional to the pixel's side: larger pixels collect
    more quanta.
    """
    deviation = 0.1 / grid.spacing * (0.003 + 0.02 * np.sqrt(np.clip(grey, 0, 1)))
    return deviation.astype(np.float32) * rng.standard_normal(grey.shape, dtype=np.float32)


# The letters of the lead markers, 5 dots wide and 7 high.
_LETTERS = MappingProxyType(
    {
        "L": "10000 10000 10000 10000 10000 10000 11111",
        "R": "11110 10001 10001 11110 10100 10010 10001",
        "C": "01111 10000 10000 10000 10000 10000 01111",
        "M": "10001 11011 10101 10101 10001 10001 10001",
        "O": "01110 10001 10001 10001 10001 10001 01110",
        " ": "00000 00000 00000 00000 00000 00000 00000",
    }
)


def burn_in_marker(grey: FloatImage, text: str, grid: PixelGrid, mirrored: bool) -> None:
    """Write the marker into the background near the axilla, in place."""
    letters = [
        np.array([[int(dot) for dot in line] + [0] for line in _LETTERS[letter].split()])
        for letter in text
    ]
    dots = np.hstack(letters)
    if mirrored:  # as the whole image will be mirrored, too
        dots = dots[:, ::-1]
    side = max(1, round(0.9 / grid.spacing))
    marker = np.kron(dots, np.ones((side, side)))
    top = round(0.06 * grid.rows)
    left = round(0.95 * grid.columns) - marker.shape[1]
    window = grey[top : top + marker.shape[0], left : left + marker.shape[1]]
    window[marker > 0] = 0.95


def outside_collimation(grid: PixelGrid) -> NDArray[np.bool_]:
    """True in the 3 mm rim, right and below, that the collimator shadows."""
    rim = round(3.0 / grid.spacing)
    outside = np.ones((grid.rows, grid.columns), bool)
    outside[:-rim, :-rim] = False
    return outside
