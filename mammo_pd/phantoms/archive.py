"""An archive of phantoms: DICOM files in PATIENT/DATE folders, and the table of their labels."""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pandas as pd

from mammo_pd.files import atomic_write
from mammo_pd.main_guard import refuse_unguarded_script
from mammo_pd.phantoms.dicom import dicom_dataset
from mammo_pd.phantoms.phantom import make_phantom
from mammo_pd.phantoms.settings import VIEWS, PhantomSettings
from mammo_pd.table_file import write_csv
from mammo_pd.terms import Laterality

LABEL_TABLE = "labels.csv"


def write_phantoms(folder: Path, settings: PhantomSettings, processes: int) -> Path:
    """Write the images of all women as DICOM files, then the table of their labels.

    The same settings give the same files, byte for byte. The table is written last: if it exists,
    so does every file that it names.

    Args:
        folder: where PATIENT/DATE/IMAGE.dcm and labels.csv go; created if missing.
        settings: which women, and at what resolution.
        processes: number of worker processes; with 1 the work is done in this one.

    Returns:
        Path of the table. Columns: path (relative to ``folder``), sop_instance_uid, patient_id,
        exam_id (the Study Instance UID), laterality, view, label, lesion (none, mass or
        calcification), density, vendor, and lesion_row, lesion_column, lesion_radius in pixels of
        the stored image (empty without a lesion).
    """
    # Each woman depends on the seed and her own index alone, so the order of work does not matter.
    write = partial(_write_patient, folder, settings)
    patients = range(settings.patients)
    if processes == 1:
        written = [write(patient) for patient in patients]
    else:
        refuse_unguarded_script()
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            written = list(pool.map(write, patients))
    table = pd.DataFrame([row for rows in written for row in rows])
    path = folder / LABEL_TABLE
    with atomic_write(path) as beside:
        write_csv(table, beside)
    return path


def _write_patient(
    folder: Path, settings: PhantomSettings, patient: int
) -> list[dict[str, object]]:
    rows = []
    for laterality in Laterality:
        for view in VIEWS:
            phantom = make_phantom(settings, patient, laterality, view)
            ds = dicom_dataset(settings, phantom)
            path = Path(ds.PatientID, ds.StudyDate, f"{laterality}_{view}.dcm")
            with atomic_write(folder / path) as beside:
                ds.save_as(beside, enforce_file_format=True)
            lesion = phantom.lesions[0] if phantom.lesions else None
            rows.append(
                {
                    "path": path.as_posix(),
                    "sop_instance_uid": ds.SOPInstanceUID,
                    "patient_id": ds.PatientID,
                    "exam_id": ds.StudyInstanceUID,
                    "laterality": laterality.value,
                    "view": view,
                    "label": phantom.label,
                    "lesion": lesion.kind.value if lesion else "none",
                    "density": phantom.density,
                    "vendor": phantom.vendor.name,
                    "lesion_row": round(lesion.row, 1) if lesion else None,
                    "lesion_column": round(lesion.column, 1) if lesion else None,
                    "lesion_radius": round(lesion.radius, 1) if lesion else None,
                }
            )
    return rows
