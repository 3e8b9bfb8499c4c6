"""What a report was made with: version, command and hashes of the inputs."""

import hashlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import mammo_pd


def provenance(inputs: Mapping[str, Path]) -> dict[str, str]:
    """The provenance shown on the page.

    Args:
        inputs: files to hash, by what they are.

    Returns:
        ``version``, ``command`` and, by the names given, SHA-256 hashes.
    """
    hashes = {}
    for name, path in inputs.items():
        with path.open("rb") as file:
            hashes[f"{name}, SHA-256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"version": mammo_pd.__version__, "command": _command(sys.argv[1:]), **hashes}


def _command(words: list[str]) -> str:
    """The command as typed, with paths cut to their last component: folders can contain names."""
    return shlex.join(["mammo-pd", *map(_without_folder, words)])


def _without_folder(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + (Path(value).name if "/" in value else value)
