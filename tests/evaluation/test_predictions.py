import numpy as np
import pandas as pd
import pytest

from mammo_pd.errors import InputError
from mammo_pd.evaluation.predictions import check_predictions, read_predictions


def write(tmp_path, text):
    path = tmp_path / "predictions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_identifiers_as_text_and_keeps_further_columns(tmp_path):
    path = write(
        tmp_path,
        "image_id,patient_id,exam_id,laterality,view,label,score,density\n"
        "007,NA,1,l,CC,1,0.25,b\n008,2,,,,,1e-3,\n",
    )
    table = read_predictions(path)
    assert table["image_id"].tolist() == ["007", "008"]
    assert table["patient_id"].tolist() == ["NA", "2"]
    assert table["laterality"].iloc[0] == "L"
    assert table[["exam_id", "laterality", "view", "label"]].iloc[1].isna().all()
    assert table["score"].tolist() == [0.25, 0.001]
    assert table["density"].tolist() == ["b", ""]


def test_only_four_columns_are_needed(tmp_path):
    table = read_predictions(write(tmp_path, "score,label,patient_id,image_id\n0.5,0,p,i\n"))
    assert table[["exam_id", "laterality", "view"]].isna().all(axis=None)


def test_checking_twice_changes_nothing(predictions):
    once = check_predictions(predictions)
    pd.testing.assert_frame_equal(once, check_predictions(once))


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        ("score", "", r"1 row \(row 2\) without a score"),
        ("score", "nan", "without a score"),
        ("score", "high", "score is not a number.*'high'"),
        ("score", "-1.7", "logits.*sigmoid"),
        ("score", "3", "outside.*logits"),
        ("score", "inf", "outside"),
        ("label", "2", "neither 0 nor 1"),
        ("label", "malignant", "neither 0 nor 1.*'malignant'"),
        ("image_id", "a", "same image_id"),
        ("image_id", "", "without image_id"),
        ("patient_id", " ", "without patient_id"),
        ("laterality", "links", "neither L nor R"),
    ],
)
def test_a_bad_row_is_one_sentence_that_names_the_file(tmp_path, column, value, cause):
    rows = [
        {"image_id": i, "patient_id": i, "laterality": "L", "label": "1", "score": "0.5"}
        for i in "abc"
    ]
    rows[1][column] = value
    path = tmp_path / "predictions.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    with pytest.raises(InputError, match=cause) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "cannot be read"),
        ("image_id,patient_id,label,score\n", "no rows"),
        ("image_id,patient_id,probability\na,b,0.1\n", "lacks the columns label, score"),
        ("image_id,patient_id,label,score\na,b,,0.1\n", "no label in any row"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, text, cause):
    with pytest.raises(InputError, match=cause):
        read_predictions(write(tmp_path, text))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="There is no predictions file"):
        read_predictions(tmp_path / "none.csv")


def test_binary_file(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match=r"cannot be read as CSV|lacks the columns"):
        read_predictions(path)


def test_unlabelled_rows_stay(predictions):
    predictions["label"] = predictions["label"].astype(float)
    predictions.loc[3, "label"] = np.nan
    assert check_predictions(predictions)["label"].isna().sum() == 1
