import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mammo_pd.cli.app import main
from mammo_pd.config import RunConfig, dump_config
from mammo_pd.errors import InputError
from mammo_pd.inference.reconstruct import reconstruct
from mammo_pd.training.runs import RunFolder
from mammo_pd.training.setup import RunSetup

SETTINGS = ("--res", "96x64", "--model", "test_vit", "--epochs", "1", "--batch-size", "12")
ON_CPU = ("--set", "device.accelerator=cpu", "--set", "training.warmup_epochs=0")


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """What a run is set up with, in place of a training."""
    configs: list[RunConfig] = []

    def note(_: Path, config: RunConfig, **__: Any) -> None:
        configs.append(config)
        raise InputError("prepared")

    monkeypatch.setattr(RunSetup, "build", note)
    monkeypatch.setattr("mammo_pd.cli.train.check_training", lambda *_: None)
    return configs


def test_settings_are_pretrainings_own_unless_they_are_given(
    prepared: list[RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain"]) == 2
    file = tmp_path / "of train.yaml"
    file.write_text(
        "training: {epochs: 7, objective: binary_label, positive_share: 0.1, monitor: val_auroc,\n"
        "  balance_within: machine_id}\nmodel: {drop_path_rate: 0.3}\n"
        "patch_dropout: {score_on: tissue}\n"
    )
    assert main(["pretrain", "--config", str(file), "--set", "training.warmup_epochs=1"]) == 2
    whole = tmp_path / "whole.yaml"
    whole.write_text(dump_config(RunConfig()))
    assert main(["pretrain", "--config", str(whole), "--epochs", "9", "--keep", "0.1"]) == 2
    found = [
        (one.training.epochs, one.training.warmup_epochs, one.model.drop_path_rate)
        for one in prepared
    ]
    assert found == [(200, 10.0, 0.0), (7, 1.0, 0.3), (9, 2.0, 0.1)]
    trained = [one.training for one in prepared]
    assert {one.objective for one in trained} == {"masked_autoencoder"}
    assert prepared[2].patch_dropout.keep_rate == 0.1
    # Of labels nothing is left, and what is given by hand is not passed over in silence.
    of_labels = {(one.positive_share, one.balance_within, one.monitor) for one in trained}
    assert of_labels == {(None, None, None)}
    # Nothing is scored either.
    assert {str(one.patch_dropout.score_on) for one in prepared} == {"all"}
    for given in (
        "training.objective=binary_label",
        "training.positive_share=0.5",
        "training.monitor=val_auroc",
        "patch_dropout.score_on=tissue",
    ):
        assert main(["pretrain", "--set", given]) == 2
        assert f"{given.partition('=')[0]} has no effect" in capsys.readouterr().err
    assert len(prepared) == 3


def test_from_a_store_to_weights_and_a_page_to_look_at(
    phantom_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs = ["--runs", str(tmp_path)]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # All is trained, and nothing is trained again for the page.
        patch.setattr("mammo_pd.inference.reconstruct.reconstruct", interrupted)
        words = ["pretrain", "--store", str(phantom_store), *runs, *SETTINGS, *ON_CPU]
        assert main(words) == 130
    run = RunFolder.latest(tmp_path)
    resume = ["pretrain", *runs, "--resume", str(run.path)]
    assert f"mammo-pd {' '.join(resume)} continues from there" in capsys.readouterr().err
    weights = run.chosen.read_bytes()
    assert not run.reconstructions.exists()
    assert main(resume) == 0
    assert run.chosen.read_bytes() == weights
    told = capsys.readouterr().out
    assert f"mammo-pd train --weights {run.chosen} --model test_vit --res 96x64" in told
    page = run.reconstructions.read_text()
    assert "These images are phantoms" in page
    pictures = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        for text in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]
    found = reconstruct(run)
    assert len(pictures) == 4 * len(found) > 0
    assert f"error {found[0].error:.3f}" in page
    for one, (original, kept, predicted, means) in zip(
        found, zip(*[iter(pictures)] * 4, strict=True), strict=True
    ):
        assert original.shape == (96, 64)
        assert np.array_equal(original, one.original)
        # What was kept is shown as it is in all of them, and the rest is not.
        same = kept == original
        of_patches = same.reshape(6, 16, 4, 16).all(axis=(1, 3))
        assert of_patches.sum() >= run.info.num_keep
        seen = np.kron(of_patches, np.ones((16, 16), bool))
        assert (predicted[seen] == original[seen]).all()
        assert not np.array_equal(means, original)
    # MLflow has it, on this machine.
    assert list(tmp_path.glob("mlartifacts/*/artifacts/reconstructions.html"))
    # There is nothing to evaluate, and nothing of another kind to go on with.
    assert main(["evaluate", *runs]) == 2
    assert f"mammo-pd train --weights {run.chosen}" in capsys.readouterr().err
    words = ["cv", "--store", str(phantom_store), "--out", str(tmp_path / "cv"), *SETTINGS]
    assert main([*words, "--set", "training.objective=masked_autoencoder"]) == 2
    assert "mammo-pd pretrain --fold I" in capsys.readouterr().err
    # A finished run that is gone on with stays as it is.
    assert main(["pretrain", "--resume", *runs]) == 0
    assert run.reconstructions.read_text() == page
    capsys.readouterr()
    assert main(["train", "--resume", *runs]) == 0
    told = capsys.readouterr().out
    assert f"next: mammo-pd train --weights {run.chosen}" in told
    assert "mammo-pd evaluate" not in told
    settings = run.path / "config.yaml"
    settings.write_text(settings.read_text().replace("masked_autoencoder", "binary_label"))
    assert main(["pretrain", "--resume", *runs]) == 2
    assert "mammo-pd train --resume" in capsys.readouterr().err
    assert main(["pretrain", *runs, "--resume", "--keep", "0.5"]) == 2
    assert f"(mammo-pd pretrain --runs {tmp_path} --resume)" in capsys.readouterr().err
