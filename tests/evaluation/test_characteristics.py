import numpy as np
import pandas as pd
from prediction_tables import made_up

from mammo_pd.evaluation.characteristics import describe_parts
from mammo_pd.evaluation.predictions import check_predictions


def test_every_unit_of_a_part_is_counted_once():
    table = made_up(100)
    draw = np.random.default_rng(0)
    table["age"] = np.repeat(draw.integers(30, 90, 100), 4)
    table["density"] = np.repeat(draw.choice(["a", "B", ""], 100), 4)
    table["manufacturer"] = ""
    checked = check_predictions(table)
    part = pd.Series(np.where(checked.index < 240, "train", "test"))
    rows = pd.DataFrame(describe_parts(checked, part, ["train", "test"]))
    # Nothing is known of the machines, and nothing is said.
    assert list(dict.fromkeys(rows["characteristic"])) == ["age", "density", "view"]
    assert list(dict.fromkeys(rows["part"])) == ["train", "test"]
    units = rows.groupby(["characteristic", "part"], sort=False)["n"].sum()
    assert units.to_dict() == {
        ("age", "train"): 60,
        ("age", "test"): 40,
        ("density", "train"): 60,
        ("density", "test"): 40,
        ("view", "train"): 240,
        ("view", "test"): 160,
    }
    shares = rows.groupby(["characteristic", "part"])["share"].sum()
    assert np.allclose(shares, 1.0)
    density = table["density"][240::4].str.upper().replace("", "not known").value_counts()
    here = rows[(rows["characteristic"] == "density") & (rows["part"] == "test")]
    assert dict(zip(here["value"], here["n"], strict=True)) == density.to_dict()
