"""Find a set's images in a folder, for sets whose tables do not name the files."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mammo_pd.errors import InputError
from mammo_pd.files import each_file
from mammo_pd.wording import counted

_SUFFIXES = (".dcm", ".dicom", ".png", ".pgm", ".tif", ".tiff")


def image_files(folder: Path) -> Iterator[Path]:
    """The files under a folder, or one it links to, with an image suffix; links are resolved."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the mammograms.")
    files = each_file(folder, closed=partial(_refuse, folder))
    return (file.resolve() for file in files if file.suffix.lower() in _SUFFIXES)


def _refuse(folder: Path, error: OSError) -> None:
    # Not its name, which may be a woman's.
    raise InputError(
        f"a folder under {folder} cannot be listed ({error.strerror}); make all folders readable."
    ) from error


def one_file_each(
    folder: Path, name_of: Callable[[Path], str | None], expected: str
) -> dict[str, Path]:
    """Map each image's name to its file.

    Args:
        folder: searched at any depth.
        name_of: from a file to the set's name of its image, or None.
        expected: how the set names its files, for the error.

    Raises:
        InputError: no file is an image of the set, or two files are the same image.
    """
    found: dict[str, Path] = {}
    repeated = 0
    for file in image_files(folder):
        name = name_of(file)
        if name is None:
            continue
        if name in found:
            repeated += 1
        found[name] = file
    if repeated:
        # Not which: a file's name may be a woman's.
        raise InputError(
            f"{counted(repeated, 'file')} under {folder} "
            f"{'has' if repeated == 1 else 'have'} the name of an image that another file has "
            "(a second copy of the set, or its pictures in another format); give a folder that "
            "holds each image once."
        )
    if not found:
        raise InputError(f"no file under {folder} is {expected}; keep the names as downloaded.")
    return found
