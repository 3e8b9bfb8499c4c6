import hashlib
import sys

import mammo_pd
from mammo_pd.cli.provenance import provenance


def test_the_hash_is_of_the_file_and_no_folder_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "Jane Doe 1961"
    folder.mkdir()
    table = folder / "predictions.csv"
    table.write_bytes(b"image_id\n")
    monkeypatch.setattr(
        sys, "argv", ["mammo-pd", "evaluate", "--predictions", str(table), f"--out={folder}/r"]
    )
    made = provenance({"predictions": table})
    assert made == {
        "version": mammo_pd.__version__,
        "command": "mammo-pd evaluate --predictions predictions.csv --out=r",
        "predictions, SHA-256": hashlib.sha256(b"image_id\n").hexdigest(),
    }
