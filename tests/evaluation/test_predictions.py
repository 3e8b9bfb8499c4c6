import numpy as np
import pandas as pd
import pytest

from mammo_pd.errors import InputError
from mammo_pd.evaluation.cutoffs import folds_of_patients
from mammo_pd.evaluation.predictions import check_predictions, read_predictions
from mammo_pd.evaluation.strata import known_strata


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


WRITTEN = """image_id,patient_id,exam_id,laterality,view,label,score,age
a,p,e,L,CC,1,0.25,61.5
b,p,e,R,MLO,0,0.5,61.5
"""


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN.replace(",", ";").replace(".", ","),
        WRITTEN.replace(",", "\t"),
        WRITTEN.replace("image_id,patient_id", "Image ID,PatientID").replace("score", "SCORE"),
        WRITTEN.replace("\n", ",\n"),
        WRITTEN.replace("\n", ",\n").replace("age,", "age", 1),
        WRITTEN.replace("CC", "cc").replace("MLO", "mlo").replace(",L,", ",left,"),
        WRITTEN.replace(",0.25,", ',"0,25",'),
    ],
)
def test_tables_of_any_spreadsheet_are_read(tmp_path, text):
    table, expected = (read_predictions(write(tmp_path, one)) for one in (text, WRITTEN))
    pd.testing.assert_frame_equal(table.drop(columns="age"), expected.drop(columns="age"))
    assert known_strata(table) == known_strata(expected)
    assert table["age"].str.replace(",", ".").tolist() == ["61.5", "61.5"]


def test_two_columns_of_one_name_are_refused(predictions):
    with pytest.raises(InputError, match="column score more than once"):
        check_predictions(pd.concat([predictions, predictions["score"]], axis=1))


def test_one_name_in_two_spellings_is_one_patient(tmp_path):
    # The letters are one in the first spelling and two in the other, and look alike.
    text = "image_id,patient_id,exam_id,label,score\na,M\u00fcller,\u00e4,1,.3\n"
    table = read_predictions(write(tmp_path, text + "b,Mu\u0308ller,a\u0308,0,.4\n"))
    assert table[["patient_id", "exam_id"]].nunique().tolist() == [1, 1]
    with pytest.raises(InputError, match="same image_id more than once"):
        read_predictions(write(tmp_path, text.replace("\na,", "\n\u00fc,") + "u\u0308,p,e,0,.4\n"))


def test_an_empty_fold_is_none_in_a_file_as_in_a_frame(tmp_path):
    frame = pd.DataFrame(
        {"image_id": list("abc"), "patient_id": list("abc"), "label": [0, 1, 0], "score": 0.5}
    ).assign(fold=["0", None, "1"])
    frame.to_csv(tmp_path / "of.csv", index=False)
    for table in (check_predictions(frame), read_predictions(tmp_path / "of.csv")):
        assert table["fold"].isna().tolist() == [False, True, False]
        assert folds_of_patients(table) is None


def test_checking_twice_changes_nothing(predictions):
    once = check_predictions(predictions)
    pd.testing.assert_frame_equal(once, check_predictions(once))


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        ("score", "", r"1 row \(row 2\) without a score"),
        ("score", "nan", "without a score"),
        ("score", "high", r"score is not a number \(such as high\)"),
        ("score", "-1.7", "logits.*sigmoid"),
        ("score", "3", "outside.*percentages, divide.*logits"),
        ("score", "73.1", "look like percentages; divide them by 100"),
        ("score", "512", "no probabilities"),
        ("score", "inf", "outside.*logarithm of 0 or an overflow"),
        ("score", "1.0000001", r"to 1\.0000001\): this is an error of rounding"),
        ("score", "12 %", "write percentages as fractions"),
        ("score", "4A", "BI-RADS categories are no probabilities"),
        ("label", "2", "neither 0 nor 1"),
        ("label", "malignant", r"neither 0 nor 1 \(such as malignant\)"),
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
        (
            "image_id,patient_id,label,score\na,b,0,4\nc,d,1,5\ne,f,0,1\n",
            "look like BI-RADS categories",
        ),
        (
            "image_id,patient_id,label,score\na,b,4,.4\nc,d,5,.5\ne,f,1,.1\n",
            "BI-RADS categories.*biopsy",
        ),
        ("image_id,patient_id,label,score\na,b,0,0.1\nc,d,1\n", "row 2 below the header has 3"),
        ("image_id,patient_id,label,score\na,b,0,0,1\n", "5 cells and the header 4.*decimal comma"),
        ("image_id,patient_id,label,score,score\na,b,0,.1,.2\n", "two columns named score"),
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
    with pytest.raises(InputError, match=r"cannot be read as CSV|lacks the columns|not UTF-8"):
        read_predictions(path)


def test_unlabelled_rows_stay(predictions):
    predictions["label"] = predictions["label"].astype(float)
    predictions.loc[3, "label"] = np.nan
    assert check_predictions(predictions)["label"].isna().sum() == 1
