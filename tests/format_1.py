"""Stores as the versions before format 2 left them: a folder of .npy files for each image."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def as_format_1(store: Path) -> None:
    """Turn a store into one of format 1, whose record tells the sizes of its files together."""
    sizes = {}
    for file in sorted((store / "pixels").glob("??/*.safetensors")):
        folder = file.with_suffix("")
        folder.mkdir()
        for name, pixels in load_file(file).items():
            if not name.startswith("padding."):
                np.save(folder / f"{name}.npy", pixels)
        file.unlink()
        sizes[folder.name] = sum(level.stat().st_size for level in folder.iterdir())
    record = store / "private" / "images.sqlite"
    with closing(sqlite3.connect(record)) as database, database:
        database.executemany(
            "UPDATE images SET stored_bytes = ? WHERE image_id = ?",
            [(size, image_id) for image_id, size in sizes.items()],
        )
    info = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps({**info, "format": 1}))
