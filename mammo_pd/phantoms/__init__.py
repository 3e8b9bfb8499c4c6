"""Phantom mammograms: synthetic breasts and lesions from a seed, written as valid DICOM files.

They stand in for real images, so that every stage can be run and tested anywhere. Results on them
say nothing about results on women.

    settings.py   which women to make, and the random streams that make them
    women.py      age, density, vendor, lesion status, and the outline of each breast
    tissue.py     fat, glandular tissue, muscle, skin, air, noise and the burnt-in marker
    lesions.py    masses and calcification clusters, at matching places in both views
    vendors.py    how six invented manufacturers store grey values
    phantom.py    one image, from the above
    dicom.py      its DICOM data set
    archive.py    a folder of DICOM files with their label table

Lengths are in mm and grey values in [0, 1] as a viewer should show them, until `vendors` turns them
into stored values. Images are drawn with the chest wall on the left and mirrored last.
"""

from mammo_pd.phantoms.archive import LABEL_TABLE, write_phantoms
from mammo_pd.phantoms.dicom import dicom_dataset
from mammo_pd.phantoms.lesions import Lesion
from mammo_pd.phantoms.phantom import Phantom, make_phantom
from mammo_pd.phantoms.settings import VIEWS, PhantomSettings
from mammo_pd.phantoms.vendors import VENDORS, Vendor, Voi
from mammo_pd.phantoms.women import LesionKind

__all__ = [
    "LABEL_TABLE",
    "VENDORS",
    "VIEWS",
    "Lesion",
    "LesionKind",
    "Phantom",
    "PhantomSettings",
    "Vendor",
    "Voi",
    "dicom_dataset",
    "make_phantom",
    "write_phantoms",
]
