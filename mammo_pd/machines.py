"""Names of mammography machines: map the spellings of headers and tables to fixed names.

Manufacturer (0008,0070) and Manufacturer's Model Name (0008,1090) are free text, into which
anything can be typed. Only names from the tables below are ever shown; any other text is replaced
by a hash, which keeps different texts distinguishable (`machine_name`).

Sources: headers of the public sets (RSNA, VinDr-Mammo, EMBED, CMMD, INbreast, CSAW, OPTIMAM as
their papers and loaders list them) and the vendors' DICOM conformance statements.
"""

import re
from collections.abc import Callable
from functools import lru_cache

# A known name and how texts of that manufacturer begin, once punctuation and case are gone.
_MANUFACTURERS = {
    "Adani": ("adani",),
    "Agfa": ("agfa",),
    "Allengers": ("allengers",),
    "Angell": ("angell", "shenzhen angell"),
    "Anke": ("anke", "shenzhen anke"),
    "Array": ("array corporation", "array corp"),
    "Canon": ("canon",),
    "Carestream": ("carestream",),
    "DRTECH": ("drtech",),
    "Faxitron": ("faxitron",),
    "Fischer": ("fischer",),
    "Fujifilm": ("fujifilm", "fuji", "fuji photo film"),
    "GE": ("ge", "gems", "g e", "general electric"),
    "Genoray": ("genoray",),
    "GMM": ("gmm", "general medical merate"),
    "Hologic": ("hologic",),
    "Howtek": ("howtek",),
    "iCAD": ("icad",),
    "IMS Giotto": ("ims", "i m s", "giotto", "internazionale medico scientifica"),
    "Instrumentarium": ("instrumentarium",),
    "Italray": ("italray",),
    "Kodak": ("kodak", "eastman kodak"),
    "Konica Minolta": ("konica", "konicaminolta", "minolta"),
    "Koning": ("koning",),
    "Lorad": ("lorad", "trex medical lorad"),
    "Lumisys": ("lumisys",),
    "Medi-Future": ("medi future", "medifuture"),
    "Metaltronica": ("metaltronica",),
    "Neusoft": ("neusoft",),
    "Perlove": ("perlove", "nanjing perlove"),
    "Philips": ("philips",),
    "Planmed": ("planmed",),
    "Rayence": ("rayence",),
    "Roentgenprom": ("roentgenprom",),
    "Sectra": ("sectra",),
    "Shimadzu": ("shimadzu",),
    "Siemens": ("siemens",),
    "Toshiba": ("toshiba",),
    "Trex": ("trex",),
    "Trivitron": ("trivitron",),
    "United Imaging": ("united imaging", "uih", "shanghai united imaging"),
    "Vidar": ("vidar",),
    "Vieworks": ("vieworks",),
    "Villa": ("villa",),
    "Wandong": ("wandong", "beijing wandong"),
    "XCounter": ("xcounter",),
    # Those of our own phantoms.
    **{f"Phantom vendor {letter}": (f"phantom vendor {letter.lower()}",) for letter in "ABCDEF"},
}

# The same of models. The manufacturer's name in front of them is passed over.
_MODELS = {
    # Hologic, Lorad
    "3Dimensions": ("3dimensions", "3 dimensions", "selenia 3dimensions"),
    "Affirm Prone": ("affirm prone",),
    "Affirm": ("affirm",),
    "Brevera": ("brevera",),
    "Clearview CSm": ("clearview csm",),
    "DSM": ("dsm",),
    "Envision": ("envision",),
    "Lorad Selenia": ("lorad selenia",),
    "M-IV": ("m iv", "lorad m iv", "lorad miv"),
    "MultiCare": ("multicare", "lorad multicare"),
    "Selenia Dimensions": ("selenia dimensions", "dimensions"),
    "Selenia Encore": ("selenia encore",),
    "Selenia Performance": ("selenia performance",),
    "Selenia": ("selenia",),
    "Trident": ("trident",),
    # GE
    "Senographe 2000D": ("senographe 2000d", "senograph 2000d", "seno 2000d"),
    "Senographe 600T": ("senographe 600t",),
    "Senographe 700T": ("senographe 700t",),
    "Senographe 800T": ("senographe 800t",),
    "Senographe Care": ("senographe care", "senograph care"),
    "Senographe Crystal Nova": ("senographe crystal nova", "crystal nova"),
    "Senographe Crystal": ("senographe crystal", "senograph crystal"),
    "Senographe DMR": ("senographe dmr", "senograph dmr"),
    "Senographe DS": ("senographe ds", "senograph ds"),
    "Senographe Essential": ("senographe essential", "senograph essential", "seno essential"),
    "Senographe Pristina": ("senographe pristina", "senograph pristina", "pristina"),
    # Siemens
    "Mammomat 1000": ("mammomat 1000",),
    "Mammomat 3000 Nova": ("mammomat 3000 nova",),
    "Mammomat 3000": ("mammomat 3000",),
    "Mammomat B.brilliant": ("mammomat b brilliant", "mammomat bbrilliant", "b brilliant"),
    "Mammomat Balance": ("mammomat balance",),
    "Mammomat Fusion": ("mammomat fusion",),
    "Mammomat Inspiration Prime": ("mammomat inspiration prime",),
    "Mammomat Inspiration": ("mammomat inspiration",),
    "Mammomat Novation": ("mammomat novation", "mammomat novationdr", "mammonovation"),
    "Mammomat Revelation": ("mammomat revelation",),
    "Mammomat Select": ("mammomat select",),
    "Opdima": ("opdima",),
    # Fujifilm
    "Amulet f": ("amulet f",),
    "Amulet Harmony": ("amulet harmony",),
    "Amulet Innovality": ("amulet innovality", "innovality"),
    "Amulet s": ("amulet s",),
    "Amulet Sophinity": ("amulet sophinity", "sophinity"),
    "Amulet": ("amulet",),
    "Aspire Bellus": ("aspire bellus",),
    "Aspire Cristalle": ("aspire cristalle",),
    "Aspire HD": ("aspire hd",),
    "CR 5000": ("5000", "5000ma"),
    "CR 5501ES": ("5501es",),
    "CR 9000": ("9000",),
    "CR IRS": ("irs",),
    "CR-IR 363AWS": ("cr ir363aws", "cr ir 363aws"),
    "FDR MS-1000": ("fdr ms 1000",),
    "FDR MS-2000": ("fdr ms 2000",),
    "FDR MS-2500": ("fdr ms 2500",),
    "FDR MS-3000": ("fdr ms 3000",),
    "FDR MS-3500": ("fdr ms 3500",),
    "FDR-1000AWS": ("fdr 1000aws",),
    "FDR-2000AWS": ("fdr 2000aws",),
    "FDR-3000AWS": ("fdr 3000aws",),
    "Profect": ("profect", "fcr profect"),
    # Philips, Sectra
    "MammoDiagnost DR": ("mammodiagnost dr",),
    "MammoDiagnost": ("mammodiagnost",),
    "MicroDose D40": ("microdose mammography d40", "microdose d40", "d40"),
    "MicroDose L30": ("microdose mammography l30", "microdose l30", "l30"),
    "MicroDose SI L50": ("microdose si l50", "microdose mammography l50", "microdose l50", "l50"),
    "MicroDose SI": ("microdose si", "microdose mammography si"),
    "MicroDose": ("microdose", "mdm"),
    # IMS Giotto
    "Giotto Class": ("giotto class", "class s"),
    "Giotto Image 3DL": ("giotto image 3dl", "image 3dl"),
    "Giotto Image 3D": ("giotto image 3d", "image 3d"),
    "Giotto Image": ("giotto image",),
    "Giotto Tomo": ("giotto tomo",),
    "Giotto": ("giotto",),
    # Planmed
    "Clarity 2D": ("clarity 2d",),
    "Clarity 3D": ("clarity 3d",),
    "Clarity S": ("clarity s",),
    "Clarity": ("clarity",),
    "Nuance Classic": ("nuance classic",),
    "Nuance Excel": ("nuance excel",),
    "Nuance": ("nuance",),
    "Sophie": ("sophie",),
    # Computed radiography of others
    "ADC 5146": ("adc 5146",),
    "ADC Compact": ("adc compact",),
    "Classic CR": ("classic cr", "directview classic cr"),
    "CR 35-X": ("cr 35 x",),
    "CR 85-X": ("cr 85 x",),
    "CS-7": ("cs 7",),
    "DirectView CR 850": ("directview cr 850", "cr 850", "cr850"),
    "DirectView CR 950": ("directview cr 950", "cr 950", "cr950"),
    "DirectView CR 975": ("directview cr 975", "cr 975", "cr975"),
    "DX-M": ("dx m",),
    "Elite CR": ("elite cr", "directview elite cr"),
    "Regius 110": ("regius 110", "regius model 110"),
    "Regius 170": ("regius 170", "regius model 170"),
    "Regius 190": ("regius 190", "regius model 190"),
    "Regius 210": ("regius 210", "regius model 210"),
    "Regius": ("regius",),
    # Others
    "Aidia": ("aidia",),
    "Diamond": ("diamond",),
    "DMX-600": ("dmx 600",),
    "Helianthus C": ("helianthus c",),
    "Helianthus DBT": ("helianthus dbt",),
    "Helianthus": ("helianthus",),
    "Hestia": ("hestia",),
    "Lilyum": ("lilyum", "lilium"),
    "Mammo-RP": ("mammo rp",),
    "Mammorex": ("mammorex", "pe ru ru"),
    "Mammoscan": ("mammoscan",),
    "Melody": ("melody",),
    "NeuCare Mammo": ("neucare mammo",),
    "SenoScan": ("senoscan",),
    "Symphony": ("symphony",),
    "TotalLook": ("totallook",),
    "uMammo 590i": ("umammo 590i",),
    "uMammo 890i": ("umammo 890i",),
    "Phantom": ("phantom",),
}

# Shown in place of an unknown name, followed by a hash if one can be made.
OTHER = "other"

# GE's version of the acquisition software, which decides the grey scale and stands in the model.
_SOFTWARE = re.compile(r"\bADS_\d{1,2}(?:\.\d{1,2}){0,4}\b")
_HASHED = re.compile(rf"{OTHER}-[0-9a-f]{{1,16}}")
_SITE_OR_MACHINE = re.compile(r"\d{1,3}(?:\.0+)?")

# Columns of a label table that say the same.
MANUFACTURER_COLUMNS = frozenset({"manufacturer", "vendor"})
MODEL_COLUMNS = frozenset({"model", "scanner"})
# Columns of codes, which may contain a hospital's name or a machine's serial number.
CODE_COLUMNS = frozenset({"site_id", "machine_id"})


@lru_cache(maxsize=4096)
def machine_column(name: str) -> str | None:
    """Which of these columns a label table's column is, case and punctuation aside; None for none.

    They are `MANUFACTURER_COLUMNS`, `MODEL_COLUMNS` and `CODE_COLUMNS`.
    """
    columns = MANUFACTURER_COLUMNS | MODEL_COLUMNS | CODE_COLUMNS
    plain = _plain(name).replace(" ", "")
    return next((column for column in columns if column.replace("_", "") == plain), None)


@lru_cache(maxsize=4096)
def known_manufacturer(text: str) -> str | None:
    """The known manufacturer that a text begins with, such as Hologic; None if there is none."""
    return _find(_plain(text), _beginnings(manufacturers=True))


@lru_cache(maxsize=4096)
def known_model(text: str) -> str | None:
    """The known model that a text begins with, with GE's software version; None without one."""
    plain = _plain(text)
    models = _beginnings(manufacturers=False)
    found = _find(plain, models)
    while found is None and plain:
        # "Planmed Nuance", "GE MEDICAL SYSTEMS Senographe DS": a word at a time, since a company's
        # name has more of them, but only behind one that is a manufacturer's.
        if known_manufacturer(text) is None:
            return None
        plain = plain.partition(" ")[2]
        found = _find(plain, models)
    software = _SOFTWARE.search(text)
    return found if found is None or software is None else f"{found} {software[0]}"


def machine_name(column: str, text: str, hash_of: Callable[[str, str], str]) -> str:
    """What a store shows for a manufacturer, model, site or machine code.

    Args:
        column: one of `MANUFACTURER_COLUMNS`, `MODEL_COLUMNS` and `CODE_COLUMNS`.
        text: as the header or the label table writes it.
        hash_of: the store's keyed hash of a kind and a text.

    Returns:
        The known name; a site's or machine's code of at most three digits as it is; else ``other-``
        and eight hexadecimal digits, equal for texts that differ in case and punctuation alone. A
        name returned by this function maps to itself.
    """
    if _HASHED.fullmatch(text):
        return text
    if column in CODE_COLUMNS:
        kind, known = column, text if _SITE_OR_MACHINE.fullmatch(text) else None
    elif column in MANUFACTURER_COLUMNS:
        kind, known = "manufacturer", known_manufacturer(text)
    else:
        kind, known = "model", known_model(text)
    return known or f"{OTHER}-{hash_of(kind, _plain(text) or text)[:8]}"


def machine_key(manufacturer: str | None, model: str | None) -> str | None:
    """Manufacturer and model as one text that can be compared between stores; None without either.

    An unknown name is ``other``, since its hash differs from store to store.
    """
    known = (OTHER if _HASHED.fullmatch(name) else name for name in (manufacturer, model) if name)
    return " ".join(known) or None


def is_machine_name(column: str, text: str) -> bool:
    """Whether a text was returned by `machine_name`, rather than read from a header."""
    return text == OTHER or text == machine_name(column, text, lambda *_: "-")


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())


def _find(plain: str, beginnings: tuple[tuple[str, str], ...]) -> str | None:
    padded = f"{plain} "
    return next((name for start, name in beginnings if padded.startswith(f"{start} ")), None)


@lru_cache(maxsize=2)
def _beginnings(*, manufacturers: bool) -> tuple[tuple[str, str], ...]:
    """(how a text begins, the name), the longest first, so that no name hides a longer one."""
    table = _MANUFACTURERS if manufacturers else _MODELS
    pairs = {start: name for name, starts in table.items() for start in starts}
    # A name stays what it is when it is read again.
    pairs |= {_plain(name): name for name in table}
    return tuple(sorted(pairs.items(), key=lambda pair: -len(pair[0])))
