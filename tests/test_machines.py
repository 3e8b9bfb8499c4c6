"""Names of machines: what is known gets one name, and what is not stays unreadable and apart."""

import hashlib

import pytest

from mammo_pd import machines
from mammo_pd.machines import (
    is_machine_name,
    known_manufacturer,
    known_model,
    machine_column,
    machine_name,
)


def hash_of(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind}{text}".encode()).hexdigest()


# As headers of real files and of public sets have them.
@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("HOLOGIC, Inc.", "Hologic"),
        ("HOLOGIC", "Hologic"),
        ("Hologic Inc", "Hologic"),
        ("LORAD, A Hologic Company", "Lorad"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("GE Healthcare", "GE"),
        ("G.E. Medical Systems", "GE"),
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("FUJIFILM Corporation", "Fujifilm"),
        ("FUJI PHOTO FILM Co., ltd.", "Fujifilm"),
        ("Fuji Photo Film Co.,Ltd.", "Fujifilm"),
        ("Philips Medical Systems", "Philips"),
        ("Sectra Imtec AB", "Sectra"),
        ("IMS GIOTTO S.p.A.", "IMS Giotto"),
        ("I.M.S. s.r.l.", "IMS Giotto"),
        ("Planmed", "Planmed"),
        ("Carestream Health", "Carestream"),
        ("EASTMAN KODAK COMPANY", "Kodak"),
        ("KONICA MINOLTA", "Konica Minolta"),
        ("Agfa-Gevaert AG", "Agfa"),
        ("Metaltronica S.p.A.", "Metaltronica"),
        ("Gene Smith", None),
        ("Jane Doe at Hologic", None),
        ("Imsland clinic", None),
        ("", None),
        ("???", None),
    ],
)
def test_manufacturer(text: str, name: str | None) -> None:
    assert known_manufacturer(text) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Selenia Dimensions", "Selenia Dimensions"),
        ("SELENIA DIMENSIONS 9000 of Dr. Jekyll", "Selenia Dimensions"),
        ("Lorad Selenia", "Lorad Selenia"),
        ("Hologic Selenia", "Selenia"),
        ("3Dimensions", "3Dimensions"),
        ("Senograph 2000D ADS_17.4.5", "Senographe 2000D ADS_17.4.5"),
        (
            "Senographe Essential VERSION ADS_53.10.1.1",
            "Senographe Essential ADS_53.10.1.1",
        ),
        ("GE MEDICAL SYSTEMS Senographe DS", "Senographe DS"),
        ("Senographe Pristina", "Senographe Pristina"),
        ("Senographe Crystal Nova", "Senographe Crystal Nova"),
        ("Mammomat Inspiration", "Mammomat Inspiration"),
        ("MAMMOMAT Revelation", "Mammomat Revelation"),
        ("MammoNovation DR", "Mammomat Novation"),
        ("MAMMOMAT B.brilliant", "Mammomat B.brilliant"),
        ("AMULET Innovality", "Amulet Innovality"),
        ("FDR-3000AWS", "FDR-3000AWS"),
        ("Microdose Mammography L30", "MicroDose L30"),
        ("L30", "MicroDose L30"),
        ("GIOTTO IMAGE 3DL", "Giotto Image 3DL"),
        ("GIOTTO CLASS", "Giotto Class"),
        ("Planmed Nuance", "Nuance"),
        ("Clarity 3D", "Clarity 3D"),
        ("DirectView CR975", None),
        ("DirectView CR 975", "DirectView CR 975"),
        ("DSM", "DSM"),
        ("for Mrs. Smith ADS_53", None),
        ("Acme Senographe DS", None),
    ],
)
def test_model(text: str, name: str | None) -> None:
    assert known_model(text) == name


def test_every_known_name_stays_what_it_is() -> None:
    for name in machines._MANUFACTURERS:
        assert known_manufacturer(name) == name
        assert machine_name("manufacturer", name, hash_of) == name
    for name in machines._MODELS:
        assert known_model(name) == name
        assert machine_name("model", name, hash_of) == name


def test_what_is_not_known_is_told_apart_by_a_hash_alone() -> None:
    doe, smith = (machine_name("model", text, hash_of) for text in ("Dr. Doe 7", "Dr. Smith 7"))
    assert doe != smith
    assert doe == machine_name("model", "DR DOE, 7", hash_of)
    assert doe.startswith("other-") and len(doe) == len("other-") + 8
    assert machine_name("manufacturer", "Dr. Doe 7", hash_of) != doe
    assert machine_name("model", doe, hash_of) == doe
    assert is_machine_name("model", doe)
    assert not is_machine_name("model", "Dr. Doe 7")
    # Nothing but punctuation is a text, too.
    assert machine_name("model", "???", hash_of) != machine_name("model", "!", hash_of)


@pytest.mark.parametrize("column", ["machine_id", "site_id"])
def test_codes_are_kept_and_serial_numbers_and_hospitals_are_not(column: str) -> None:
    assert [machine_name(column, text, hash_of) for text in ("29", "210", "1.0")] == [
        "29",
        "210",
        "1.0",
    ]
    for text in ("SN-81231", "20481", "St. Mary's"):
        assert machine_name(column, text, hash_of).startswith("other-")


def test_columns_of_a_label_table() -> None:
    assert machine_column("MachineID") == "machine_id"
    assert machine_column("Vendor") == "vendor"
    assert machine_column("density") is None
