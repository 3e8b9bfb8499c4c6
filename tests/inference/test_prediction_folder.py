from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mammo_pd.errors import InputError
from mammo_pd.imaging.settings import ImagingSettings
from mammo_pd.inference import new_studies
from mammo_pd.inference.new_studies import PredictionFolder
from mammo_pd.terms import VoiPolicy


def test_a_folder_holds_the_scores_of_one_model_and_one_preprocessing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def model(digest: str = "a", voi: VoiPolicy = VoiPolicy.AUTO) -> Any:
        return SimpleNamespace(digest=digest, settings=ImagingSettings(voi))

    folder = PredictionFolder(tmp_path / "out")
    folder.claim(model())
    folder.claim(model())
    for other in (model("b"), model(voi=VoiPolicy.RAW)):
        with pytest.raises(InputError, match="of another model, or of other preprocessing"):
            folder.claim(other)
    monkeypatch.setattr(new_studies, "ALGORITHM_VERSION", new_studies.ALGORITHM_VERSION + 1)
    with pytest.raises(InputError, match="of another model, or of other preprocessing"):
        folder.claim(model())
