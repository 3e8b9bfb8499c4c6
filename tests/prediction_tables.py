import numpy as np
import pandas as pd


def made_up(n_patients, seed=0, prevalence=0.3, shift=1.2):
    """Four images per patient, scores alike within; one breast of a sick patient is positive."""
    draw = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 4)
    laterality = np.tile(["L", "L", "R", "R"], n_patients)
    sick = draw.random(n_patients) < prevalence
    sick[:4] = [True, True, False, False]
    side = np.where(draw.random(n_patients) < 0.5, "L", "R")
    label = (sick[patient] & (side[patient] == laterality)).astype(int)
    logit = shift * label - 1 + draw.normal(0, 0.7, n_patients)[patient]
    logit += draw.normal(0, 0.6, len(patient))
    return pd.DataFrame(
        {
            "image_id": [f"image{i:05d}" for i in range(len(patient))],
            "patient_id": [f"patient{i:04d}" for i in patient],
            "exam_id": [f"exam{i:04d}" for i in patient],
            "laterality": laterality,
            "view": np.tile(["CC", "MLO"], 2 * n_patients),
            "label": label,
            "score": 1 / (1 + np.exp(-logit)),
        }
    )


def equal_on_paper():
    """Exams whose mean scores are equal on paper and, added up in some order, not in binary."""
    high, low = (0.1, 0.2, 0.3, 0.7), (0.2, 0.1, 0.7, 0.3)
    exams = [(f"pos{i}", 1, high) for i in range(6)] + [(f"neg{i}", 0, low) for i in range(6)]
    exams += [("even", 0, (0.15, 0.15, 0.5, 0.5)), ("sure", 1, (0.9, 0.8, 0.9, 0.9))]
    exams += [("odd", 1, (0.1, 0.1, 0.1, 0.3)), ("well", 0, (0.1, 0.1, 0.2, 0.1))]
    rows = [
        (f"{name}_{i}", name, "e", "LLRR"[i], ("CC", "MLO")[i % 2], label, score)
        for name, label, scores in exams
        for i, score in enumerate(scores)
    ]
    columns = ["image_id", "patient_id", "exam_id", "laterality", "view", "label", "score"]
    return pd.DataFrame(rows, columns=columns)


def tables():
    """A table of each kind, by name."""
    plain = made_up(30)
    draw = np.random.default_rng(4)
    return {
        "plain": plain,
        "tied": plain.assign(score=plain["score"].round(1)),
        "equal on paper": equal_on_paper(),
        "partly labelled": plain.assign(label=plain["label"].where(draw.random(120) < 0.8)),
        "keys missing": plain.assign(
            exam_id=plain["exam_id"].where(draw.random(120) < 0.7),
            laterality=plain["laterality"].where(draw.random(120) < 0.7),
        ),
        "split and folds": plain.assign(
            split=["val"] * 48 + ["test"] * 72, fold=plain.index // 4 % 2
        ),
        "groups": plain.assign(
            site=draw.choice(["a", "b"], 120), age=draw.integers(30, 80, 120), density="b"
        ),
        "constant": plain.assign(score=0.5),
        "one class": plain.assign(label=0),
    }
