"""Grey values of DICOM files against pydicom's and SimpleITK's, in one table.

    python benchmarks/grey_values.py FOLDER [FOLDER ...] > benchmarks/results/grey_values_DATE.md

Every DICOM file of one grey frame below the folders. Stored values: mammo-pd's decoder against
pydicom's own way to the pixels and against SimpleITK's (which applies the rescale; it is taken
back out). Grey values: mammo-pd's against pydicom's ``apply_modality_lut`` and ``apply_voi_lut``,
both scaled to 0..65535; the largest difference. Whatever only one of them reads is said.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from mammo_pd.errors import ImageError
from mammo_pd.imaging.decode import decode
from mammo_pd.imaging.dicom_file import read_dataset
from mammo_pd.imaging.grey_scale import apply_grey_scale
from mammo_pd.wording import percent


def main() -> None:
    """Print the table of the folders that were named."""
    warnings.simplefilter("ignore")
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    rows = [
        _row(path, folder)
        for folder in map(Path, sys.argv[1:])
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _is_dicom(path)
    ]
    taken = [row for row in rows if row]
    head = ["file", "size", "VOI", "stored, pydicom", "stored, SimpleITK", "grey, pydicom"]
    for row in [head, ["---"] * len(head), *taken]:
        print("| " + " | ".join(row) + " |")
    print(f"\n{len(taken)} files of one grey frame; {len(rows) - len(taken)} others.")


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


def _row(path: Path, folder: Path) -> list[str] | None:
    """One line of the table; None for a file that is not of one grey frame."""
    name = str(path.relative_to(folder))
    try:
        dataset = read_dataset(path)
        size = f"{dataset.get('Rows')} x {dataset.get('Columns')}"
        if int(dataset.get("NumberOfFrames") or 1) > 1 or dataset.get("SamplesPerPixel") != 1:
            return None
        stored = decode(dataset).values
        grey = apply_grey_scale(stored, dataset)
    except ImageError as error:
        theirs = "reads it" if _pydicoms(path) is not None else "refuses it too"
        return [name, "", f"refused: {error.reason}", f"pydicom {theirs}", "", ""]
    except (ValueError, TypeError):
        return None
    pydicoms, sitks = _pydicoms(path), _simpleitks(path)
    grey_difference = ""
    if pydicoms is not None and np.array_equal(pydicoms, stored):
        grey_difference = _grey_difference(stored, grey.pixels, dataset, grey.voi_applied)
    return [
        name,
        size,
        grey.voi_applied,
        _compared(stored, pydicoms),
        _compared(stored, sitks),
        grey_difference,
    ]


def _pydicoms(path: Path) -> np.ndarray | None:
    try:
        return np.asarray(pydicom.dcmread(path, force=True).pixel_array)
    except Exception:
        return None


def _simpleitks(path: Path) -> np.ndarray | None:
    """SimpleITK's pixels without the rescale that it applies."""
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        image = reader.Execute()
        values = sitk.GetArrayFromImage(image).squeeze().astype(np.float64)
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        slope, intercept = (
            float(header.get(keyword, default))
            for keyword, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
        )
        return np.rint((values - intercept) / slope)
    except Exception:
        return None


def _compared(stored: np.ndarray, other: np.ndarray | None) -> str:
    if other is None:
        return "not read"
    if other.shape != stored.shape:
        return f"of {other.shape}"
    if np.ptp(other + stored) == 0:
        return "equal, inverted"  # as SimpleITK's GDCM does with MONOCHROME1
    differing = np.count_nonzero(other != stored)
    return "equal" if not differing else f"{percent(differing / stored.size, 1)} differ"


def _grey_difference(
    stored: np.ndarray, grey: np.ndarray, dataset: pydicom.Dataset, voi_applied: str
) -> str:
    """The largest difference to pydicom's grey values, outside the padding, of 65535."""
    kind = voi_applied.partition(":")[0]
    bits = dataset.BitsStored
    low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if dataset.PixelRepresentation
        else (
            0,
            2**bits - 1,
        )
    )
    try:
        # The ends take the same way, since a rescale moves the range.
        values = np.concatenate([stored.ravel(), [low, high]]).astype(stored.dtype)
        modality = apply_modality_lut(values, dataset)
        if kind == "full_range":
            shown = np.asarray(modality, np.float64)
            first, last = shown[-2:].min(), shown[-2:].max()
        else:
            shown = np.asarray(
                apply_voi_lut(modality, dataset, prefer_lut=kind == "lut"), np.float64
            )
            first, last = _range_of(dataset, shown, modality, kind)
        expected = (shown[:-2].reshape(stored.shape) - first) / (last - first) * 65535
    except Exception as error:
        return f"pydicom: {type(error).__name__}"
    if dataset.PhotometricInterpretation == "MONOCHROME1" or (
        dataset.get("PresentationLUTShape") == "INVERSE"
    ):
        expected = 65535 - expected
    seen = np.ones(stored.shape, bool)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        ends = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        seen = (stored < ends[0]) | (stored > ends[1])
    return f"{np.abs(expected - grey)[seen].max():.1f}" if seen.any() else ""


def _range_of(
    dataset: pydicom.Dataset, shown: np.ndarray, modality: np.ndarray, kind: str
) -> tuple[float, float]:
    """The ends of what ``apply_voi_lut`` can return."""
    if kind == "lut":
        descriptor = dataset.VOILUTSequence[0].LUTDescriptor
        return 0.0, float(2 ** int(descriptor[2]) - 1)
    # As pydicom's apply_windowing: the range of the stored values after the rescale.
    ends = sorted((float(modality[-2]), float(modality[-1])))
    return ends[0], ends[1]


if __name__ == "__main__":
    main()
