"""A GPU's memory as a user writes it, in bytes."""

import re

from mammo_pd.errors import InputError

_UNITS = {"": 1e9, "GB": 1e9, "G": 1e9, "GIB": 2.0**30, "MB": 1e6, "MIB": 2.0**20}


def parse_memory(text: str) -> float:
    """Bytes of a size such as ``24GB``; a number alone is in GB.

    Raises:
        InputError: it is not understood, or not above 0.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    try:
        size = float(match[1]) * unit if match and unit else 0.0
    except ValueError:
        size = 0.0
    if not size > 0:
        raise InputError(f"--memory {text} is not understood; give a size such as 24GB.")
    return size
