"""DICOM files: from a path to a dataset whose transfer syntax is known.

Whatever is wrong with a file comes out as an ``ImageError`` with a reason code, whose sentence
quotes neither a path nor an identifier.
"""

import warnings
from pathlib import Path

import pydicom
from pydicom import config, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError

from mammo_pd.errors import ImageError
from mammo_pd.imaging.bounds import refuse_unbounded
from mammo_pd.terms import Reason

# Bytes of a file in which elements are read only when they are asked for, and of those elements.
_LARGE_FILE = 2**28
_DEFERRED = 2**26


def read_dataset(path: Path) -> Dataset:
    """Read a DICOM file, with or without preamble and file meta information.

    Args:
        path: the file.

    Returns:
        The dataset, pixel data included. Its file meta information always names a transfer
        syntax: if the file names none, the one the dataset turned out to be encoded in.

    Raises:
        ImageError: the file is not DICOM, or cannot be parsed (``not_an_image``,
            ``unreadable_file``).
    """
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            refuse_unbounded(path)
            # Large private elements stay on the disk until they are asked for, which nobody does.
            defer = _DEFERRED if path.stat().st_size > _LARGE_FILE else None
            try:
                dataset = pydicom.dcmread(path, defer_size=defer)
            except InvalidDicomError:
                dataset = pydicom.dcmread(path, force=True)
                if "SOPClassUID" not in dataset and "Rows" not in dataset:
                    raise ImageError(
                        Reason.NOT_AN_IMAGE, "The file holds no DICOM dataset."
                    ) from None
            if not len(dataset):
                # pydicom returns an empty dataset where compressed pixel data are cut off.
                raise ImageError(
                    Reason.UNREADABLE, "The file is cut off; copy it again from its source."
                )
            _complete_file_meta(dataset)
        except ImageError:
            raise
        except FileNotFoundError:
            raise ImageError(Reason.UNREADABLE, "The file is no longer there.") from None
        except PermissionError:
            raise ImageError(
                Reason.UNREADABLE, "Permission to read the file is denied; grant it."
            ) from None
        except (Exception, RecursionError) as error:  # a bad file can raise almost anything
            raise ImageError(
                Reason.UNREADABLE, f"pydicom cannot parse the file ({type(error).__name__})."
            ) from error
    return dataset


def _complete_file_meta(dataset: Dataset) -> None:
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    dataset.file_meta.TransferSyntaxUID = (
        uid.ImplicitVRLittleEndian
        if implicit
        else uid.ExplicitVRLittleEndian
        if little
        else uid.ExplicitVRBigEndian
    )
