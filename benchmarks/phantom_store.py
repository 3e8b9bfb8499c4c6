"""Phantoms with masses and microcalcification clusters, drawn straight into a store.

They lack what preprocessing is for (headers, grey scales, markers, air): each image is one breast,
CC, cropped to its box and scaled to a native height of 2,048 pixels. Half of the breasts have a
lesion, half of these a mass, which is many patches wide at any input size, and half a cluster of
microcalcifications, each 2 to 5 pixels wide at the native height and a fraction of a pixel at a
small one. How much a lesion stands out is drawn from a wide range, so that no input size finds all
or none; `difficulty` divides it.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from mammo_pd.data.image_file import write_image_file
from mammo_pd.data.manifest import write_manifest
from mammo_pd.data.splits import SplitTable, check_split, write_split
from mammo_pd.data.store import StorePaths, create_or_match, read_store_info, take_in
from mammo_pd.imaging.pyramid import build_pyramid
from mammo_pd.phantoms.lesions import Lesion, add_calcifications, add_mass
from mammo_pd.phantoms.settings import PhantomSettings, Stream, random_stream
from mammo_pd.phantoms.tissue import PixelGrid, draw_breast, quantum_noise
from mammo_pd.phantoms.women import Body, LesionKind, draw_body, draw_woman
from mammo_pd.terms import Laterality, Split, Status

NATIVE_HEIGHT = 2048
# A crop is at most this wide, as a share of its height: about what a CC view's box is.
ASPECT = 0.6
# Lowest and highest contrast of a lesion, as a share of what `mammo_pd.phantoms` draws (a mass .30
# to .42 of the grey scale, a calcification .35 to .50); between them it is log-uniform.
_CONTRAST = {LesionKind.MASS: (0.2, 1.0), LesionKind.CALCIFICATION: (0.3, 1.2)}
# Radii in mm, as `mammo_pd.phantoms` draws them.
_RADIUS = {LesionKind.MASS: (4.0, 10.0), LesionKind.CALCIFICATION: (3.0, 5.0)}
# Width of a calcification in native pixels, as `add_calcifications` draws it.
_SPECK = (2.0, 5.0)
_CLEAR = 3.0  # mm between a lesion and the skin or the chest wall
_FURTHER = pa.schema(
    [
        ("lesion_type", pa.string()),
        ("lesion_contrast", pa.float64()),
        ("lesion_row", pa.float64()),
        ("lesion_column", pa.float64()),
        ("lesion_radius", pa.float64()),
        ("density", pa.string()),
    ]
)


@dataclass(frozen=True)
class Drawn:
    """One image.

    Attributes:
        pixels: (2048, W) uint16, 0 outside the breast.
        lesion: in native pixels; None without one.
        contrast: share of the phantoms' own contrast; 0 without a lesion.
        spacing: mm of a native pixel.
        density: BI-RADS composition.
    """

    pixels: np.ndarray
    lesion: Lesion | None
    contrast: float
    spacing: float
    density: str


def draw(settings: PhantomSettings, woman: int, side: Laterality, difficulty: float) -> Drawn:
    """Draw one breast; the same breast without its lesion differs only where that lies."""
    body, density = _body(settings, woman, side)
    spacing = 2 * body.half_height / NATIVE_HEIGHT
    grid = PixelGrid(NATIVE_HEIGHT, int(np.ceil(body.depth / spacing)), spacing)
    grey = draw_breast(body, grid, density, random_stream(settings, woman, Stream.TISSUE, side))
    lesion, contrast = _place(settings, woman, side, body, spacing, difficulty)
    if lesion is not None:
        rng = random_stream(settings, woman, Stream.LESION, side)
        own = np.zeros_like(grey)
        if lesion.kind is LesionKind.MASS:
            add_mass(own, lesion, bool(rng.random() < 0.5), grid, rng)
        else:
            add_calcifications(own, lesion, rng)
        grey += np.float32(contrast) * own
    grey += quantum_noise(grey, grid, random_stream(settings, woman, Stream.NOISE, side))
    pixels = np.rint(np.clip(grey, 0, 1) * 65535).astype(np.uint16)
    # What is breast stays above 0, which is air.
    inside = grid.x < body.edge(grid.y)
    pixels = np.where(inside, np.maximum(pixels, 1), 0).astype(np.uint16)
    return Drawn(pixels, lesion, contrast, spacing, density)


def _body(settings: PhantomSettings, woman: int, side: Laterality) -> tuple[Body, str]:
    body = draw_body(settings, woman, side, "CC")
    # Its box begins at the top of the breast.
    depth = min(body.depth, ASPECT * 2 * body.half_height)
    return replace(body, nipple_y=body.half_height, depth=depth), draw_woman(
        settings, woman
    ).density


def _place(
    settings: PhantomSettings,
    woman: int,
    side: Laterality,
    body: Body,
    spacing: float,
    difficulty: float,
) -> tuple[Lesion | None, float]:
    """Whether this breast has a lesion, of which kind, where, and how much it stands out."""
    rng = random_stream(settings, woman, Stream.CASE, side)
    has_one = rng.random() < settings.prevalence
    kind = list(LesionKind)[rng.integers(2)]
    radius = rng.uniform(*_RADIUS[kind])
    low, high = np.log(_CONTRAST[kind])
    contrast = float(np.exp(rng.uniform(low, high))) / difficulty
    if not has_one:
        return None, 0.0
    around = np.array([-radius, 0.0, radius])
    # Rejection sampling: most places fit, so the limit is only reached by a bug.
    for _ in range(1000):
        y = body.nipple_y + body.half_height * rng.uniform(-0.8, 0.8)
        x = rng.uniform(radius + _CLEAR, body.depth)
        if np.all(x + radius + _CLEAR < body.edge(y + around)):
            return Lesion(kind, y / spacing - 0.5, x / spacing - 0.5, radius / spacing), contrast
    raise AssertionError("no place in this breast for its lesion")


# ---- the store


def make_store(
    out: Path,
    *,
    images: dict[Split, int],
    seed: int,
    difficulty: float,
    processes: int,
) -> None:
    """Draw train, val and test images of different women, two of each woman.

    Args:
        out: the store; images that are there from a call that was killed are not drawn again.
        images: of each part.
        seed: another one makes other women.
        difficulty: divides the contrast of every lesion.
        processes: at work.
    """
    made_with = {"phantoms": 1, "seed": seed, "difficulty": difficulty, "height": NATIVE_HEIGHT}
    paths = create_or_match(out, made_with)
    fingerprint = read_store_info(paths)["fingerprint"]
    # Each part has its own seed, and its women are numbered from 0.
    jobs = [
        (part, woman, side)
        for part in Split
        for woman in range(-(-images[part] // 2))
        for side in Laterality
    ]
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    write = partial(_write, paths, fingerprint, seed, difficulty)
    paths.partial.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if processes == 1:
        rows = list(map(write, jobs))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(write, jobs, chunksize=4))
    shutil.rmtree(paths.partial)
    parts = pd.DataFrame(
        {"image_id": row["image_id"], "patient_id": row["patient_id"], "split": str(part)}
        for row, (part, _, _) in zip(rows, jobs, strict=True)
    ).sort_values("image_id", ignore_index=True)
    write_manifest(paths.manifest, rows, _FURTHER)
    paths.splits.mkdir(exist_ok=True)
    split = SplitTable.of("default", parts)
    check_split(split, pd.DataFrame(rows))
    write_split(split, paths.splits, {"drawn": made_with})
    print(f"wrote {out}: {len(rows)} images in {time.monotonic() - started:.0f} s")
    _tell(rows)


def _write(
    paths: StorePaths,
    fingerprint: str,
    seed: int,
    difficulty: float,
    job: tuple[Split, int, Laterality],
) -> dict[str, Any]:
    part, woman, side = job
    # Parts are of different seeds.
    settings = PhantomSettings(
        patients=woman + 1, seed=3 * seed + list(Split).index(part), prevalence=0.5
    )
    name = f"{settings.seed} {woman}"
    image_id, patient_id = (_name(name, kind) for kind in (str(side), "woman"))
    drawn_before = paths.image(image_id).is_file()
    body, density = _body(settings, woman, side)
    spacing = 2 * body.half_height / NATIVE_HEIGHT
    if drawn_before:
        lesion, contrast = _place(settings, woman, side, body, spacing, difficulty)
    else:
        drawn = draw(settings, woman, side, difficulty)
        lesion, contrast = drawn.lesion, drawn.contrast
        partial_file = paths.partial / image_id
        write_image_file(partial_file, build_pyramid(drawn.pixels))
        take_in(paths, partial_file, image_id)
    width = int(np.ceil(body.depth / spacing))
    return {
        "image_id": image_id,
        "patient_id": patient_id,
        "exam_id": _name(name, "exam"),
        "laterality": str(side),
        "view": "CC",
        "label": int(lesion is not None),
        "status": str(Status.OK),
        "reason": None,
        "rows": NATIVE_HEIGHT,
        "columns": width,
        "crop_top": 0,
        "crop_left": 0,
        "crop_height": NATIVE_HEIGHT,
        "crop_width": width,
        "flipped": False,
        "imager_pixel_spacing_row": spacing,
        "imager_pixel_spacing_column": spacing,
        "phantom": True,
        "pixel_hash": image_id,
        "fingerprint": fingerprint,
        "lesion_type": None if lesion is None else str(lesion.kind),
        "lesion_contrast": None if lesion is None else contrast,
        "lesion_row": None if lesion is None else lesion.row,
        "lesion_column": None if lesion is None else lesion.column,
        "lesion_radius": None if lesion is None else lesion.radius,
        "density": density,
    }


def _name(*parts: str) -> str:
    return hashlib.blake2b("/".join(parts).encode(), digest_size=10).hexdigest()


def _tell(rows: list[dict[str, Any]]) -> None:
    """What was drawn, and how large a calcification is at each input height."""
    table = pd.DataFrame(rows)
    kinds = table["lesion_type"].fillna("none").value_counts().to_dict()
    print(f"lesions: {', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}")
    spacing = table["imager_pixel_spacing_row"]
    print("| height | mm of a pixel | a calcification, pixels | a mass, pixels |")
    print("|---|---|---|---|")
    for height in (256, 512, 1024, 2048):
        scale = height / NATIVE_HEIGHT
        cells = [f"{height}", f"{spacing.min() / scale:.2f} to {spacing.max() / scale:.2f}"]
        cells.append(" to ".join(f"{scale * width:.2g}" for width in _SPECK))
        low, high = (2 * r / (spacing.mean() / scale) for r in _RADIUS[LesionKind.MASS])
        cells.append(f"{low:.0f} to {high:.0f}")
        print("| " + " | ".join(cells) + " |")


def counts(train: int, val_women: int, test_women: int) -> dict[Split, int]:
    """Images of each part; of a woman there are two."""
    numbers: Iterable[int] = (train, 2 * val_women, 2 * test_women)
    return dict(zip(Split, numbers, strict=True))
