from pathlib import Path

import pytest
import yaml

from mammo_pd.backbones.build import describe_backbone
from mammo_pd.config import RunConfig, dump_config, load_config, parse_assignments, resolve_img_size
from mammo_pd.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"


def written(folder: Path, text: str) -> Path:
    path = folder / "c.yaml"
    path.write_text(text)
    return path


def test_defaults_are_read_back_from_what_is_dumped(tmp_path: Path) -> None:
    assert load_config() == RunConfig()
    config = load_config(None, {"training.lr": 0.5, "data.res": "full", "data.fold": 2})
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "training: {epochs: 7, lr: 1e-4}\npatch_dropout: {keep_rate: 1}\n")
    config = load_config(file, parse_assignments(["training.epochs=9", "model.weights=null"]))
    assert config.training.epochs == 9
    assert config.training.lr == 1e-4
    assert config.patch_dropout.keep_rate == 1.0
    assert config.model.weights is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig: {}", r"no key trainig; the top level has data, patch_dropout"),
        ("training: {epoch: 3}", r"no key training\.epoch; training has epochs"),
        ("training: {epochs: three}", r"training\.epochs is 'three'; it must be int"),
        ("training: {epochs: 2.5}", r"training\.epochs is 2\.5"),
        ("training: {epochs: true}", r"training\.epochs is True"),
        ("training: {epochs: 0}", r"training\.epochs is 0; allowed is 1 and above"),
        ("training: 3", "training is a section"),
        ("patch_dropout: {keep_rate: 0}", r"patch_dropout\.keep_rate 0\.0 is not in \(0, 1\]"),
        ("device: {compile: maybe}", r"device\.compile is 'maybe'; it must be bool or null"),
        ("[1, 2]", "not a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_mistakes_are_named_by_their_path(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(written(tmp_path, text))


def test_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        load_config().training.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("res", "patch", "img_size"),
    [
        (1024, 16, (1024, 816)),
        ("512", 16, (512, 416)),
        ("384x240", 16, (384, 240)),
        ("full", 16, (3008, 1712)),
        ("full", 14, (3010, 1708)),
        (518, 14, (518, 420)),
    ],
)
def test_canvas_is_a_multiple_of_the_patch(
    res: int | str, patch: int, img_size: tuple[int, int]
) -> None:
    assert resolve_img_size(res, patch, (3001, 1700)) == img_size


@pytest.mark.parametrize(
    ("res", "message"),
    [
        (1000, "1000 is not a multiple .* 992 and 1008"),
        ("1024x830", "830 is not a multiple .* 816 and 832"),
        ("big", "not understood"),
        ("-16", "not understood"),
        (0, "not a multiple"),
    ],
)
def test_canvas_that_does_not_fit_is_refused(res: int | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_img_size(res, 16, (3000, 1700))


def test_there_are_recipes() -> None:
    assert len(list(CONFIGS.glob("*.yaml"))) >= 3


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_builds_and_says_how_to_run_it(file: Path) -> None:
    config = load_config(file)
    resolve_img_size(config.data.res, describe_backbone(config.model.name).patch_size, (3328, 2560))
    # Complete: nothing is left to a default that could change under it.
    given, whole = (yaml.safe_load(text) for text in (file.read_text(), dump_config(config)))
    assert given == whole
    head = file.read_text().split("\n\n")[0]
    for word in (f"mammo-pd train --config configs/{file.name}", "Hardware:", "Expect:"):
        assert word in head
