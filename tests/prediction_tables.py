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
