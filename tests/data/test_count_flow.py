import pandas as pd

from mammo_pd.data.split_store import count_flow


def test_the_flow_loses_no_image():
    manifest = pd.DataFrame(
        {
            "image_id": [f"i{n}" for n in range(10)],
            "patient_id": ["a", "a", "b", "b", "c", "c", "d", None, "e", "e"],
            "exam_id": ["1", "2", "1", "1", None, None, "1", None, "1", "1"],
            "status": ["ok"] * 6 + ["excluded", "failed", "ok", "ok"],
            "reason": [None] * 6 + ["not_mammography", "decode_failed", None, None],
            "label": pd.array([1, 0, 0, 0, None, 1, None, None, 0, 1], dtype="Int8"),
        }
    )
    parts = pd.Series(
        {"i0": "test", "i1": "test", "i2": "train", "i3": "train", "i4": "val", "i5": "val"}
    )
    rows = pd.DataFrame(count_flow(manifest, parts))
    steps = ["found", "excluded", "excluded", "usable", "unassigned", "train", "val", "test"]
    assert rows["step"].tolist() == steps
    images = rows.groupby("step")["images"].sum()
    assert images["found"] == images["excluded"] + images["usable"] == 10
    assert images["usable"] == images[["unassigned", "train", "val", "test"]].sum() == 8
    positives = rows.groupby("step")["positives"].sum()
    assert positives["usable"] == positives[["unassigned", "train", "val", "test"]].sum() == 3
    found, test = rows.iloc[0], rows.iloc[-1]
    assert (found["patients"], test["patients"], test["exams"]) == (5, 1, 2)
    assert rows[rows["step"] == "val"]["unlabelled"].item() == 1
    assert rows[rows["step"] == "excluded"]["reason"].tolist() == [
        "decode_failed",
        "not_mammography",
    ]
