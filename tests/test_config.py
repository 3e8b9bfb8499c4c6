import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from mammo_pd.backbones.build import describe_backbone
from mammo_pd.config import (
    AugmentSettings,
    Given,
    RunConfig,
    TrainingSettings,
    dump_config,
    dump_schema,
    load_config,
    parse_assignments,
    resolve_img_size,
)
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
        ("1: {}", r"no key 1; the top level has"),
        ("training: {epoch: 3}", "there is no key epoch; training has objective, epochs"),
        ("training: {accumulate: 2, grad_accum_steps: 2}", "there is no key accumulate"),
        ("training: {epochs: three}", r"training\.epochs is 'three'; it must be an integer\."),
        ("training: {epochs: '3'}", r"training\.epochs is '3'; it must be an integer\."),
        ("training: {epochs: 2.5}", r"training\.epochs is 2\.5; it must be an integer\."),
        ("training: {epochs: true}", r"training\.epochs is True; it must be an integer\."),
        ("training: {epochs: 0}", r"training\.epochs is 0; it must be at least 1\."),
        ("training: {lr: 0}", r"training\.lr is 0; it must be above 0\."),
        ("training: {lr: .nan}", r"training\.lr is nan; it must be finite\."),
        ("training: {batch_size: x}", r"batch_size is 'x'; it must be an integer or 'auto'\."),
        ("training: {batch_size: -1}", r"batch_size is -1; it must be at least 1\."),
        ("augment: {scale: 1}", r"augment\.scale is 1; it must be below 1\."),
        ("data: {workers: x}", r"data\.workers is 'x'; it must be an integer or null\."),
        ("model: {name: 3}", r"model\.name is 3; it must be text\."),
        ("training: 3", "training is a section with the keys objective, epochs"),
        ("patch_dropout: {keep_rate: 0}", r"patch_dropout\.keep_rate 0\.0 is not in \(0, 1\]"),
        ("patch_dropout: {keep_rate: abc}", r"patch_dropout\.keep_rate abc is not a keep rate"),
        ("patch_dropout: {keep_rate: null}", r"keep_rate is None; it must be a number or text\."),
        ("patch_dropout: {score_on: air}", "is 'air'; it must be 'all' or 'tissue'"),
        ("patch_dropout: {keep_rate: 0.5+30}", r"keep_rate 0\.5\+30 keeps every patch in the last"),
        ("device: {compile: maybe}", r"device\.compile is 'maybe'; it must be a boolean or null"),
        ("[1, 2]", "not a mapping"),
        ("a: [", "cannot be read"),
    ],
)
def test_mistakes_are_named_by_their_path(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch_dropout.keep_rate": Given("2", "--keep")}, r"^--keep 2\.0 is not in \(0, 1\]"),
        ({"training.batch_size": Given(0, "--batch-size")}, r"^--batch-size is 0; it must be"),
        ({"patch_dropout.keep_rate": Given("1+30", "--keep")}, r"^--keep 1\+30 keeps every patch"),
        (
            parse_assignments(["training.lr=-1"]),
            r"^--set training\.lr is -1; it must be above 0",
        ),
        (parse_assignments(["trainig.lr=1"]), r"^--set trainig\.lr: there is no key trainig"),
        (parse_assignments(["training.epoch=1"]), r"^--set training\.epoch: there is no key epoch"),
        (parse_assignments(["training.lr={a: 1}"]), r"^--set training\.lr is \{'a': 1\}; it must"),
        (parse_assignments(["training.lr.x=1"]), r"^--set training\.lr\.x cannot be set"),
        ({"training.lr": 0.0}, r"^\S+c\.yaml: training\.lr is 0\.0; it must be above 0"),
    ],
)
def test_error_names_what_was_typed(
    tmp_path: Path, overrides: dict[str, object], message: str
) -> None:
    """And not the configuration's key, nor the file that the value did not come from."""
    file = written(tmp_path, "training: {lr: 0.1}\n")
    with pytest.raises(InputError, match=message):
        load_config(file, overrides)


def test_configuration_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config().training.epochs = 3


def test_replaced_field_is_checked_like_a_given_one() -> None:
    config = load_config()
    changed = config.replace(training=config.training.replace(epochs=3))
    assert changed.training.epochs == 3
    assert changed.training.lr == config.training.lr
    assert config.training.epochs == 30
    for wrong in ({"epochs": 0}, {"epochs": "3"}, {"epoch": 3}):
        with pytest.raises(ValueError, match="epoch"):
            config.training.replace(**wrong)
    # What is checked over several sections is checked again.
    with pytest.raises(ValueError, match="keeps every patch"):
        config.replace(patch_dropout=config.patch_dropout.replace(keep_rate="0.5+30"))


def test_no_augmentation_is_all_zeros() -> None:
    assert set(AugmentSettings.none().model_dump().values()) == {0.0}


def test_configuration_of_an_older_run_is_read(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it, which called gradient accumulation otherwise."""
    old = dump_config(RunConfig()).replace("grad_accum_steps: 1", "accumulate: 4")
    assert "accumulate: 4" in old
    config = load_config(written(tmp_path, old))
    assert config == RunConfig(training=TrainingSettings(grad_accum_steps=4))


def test_configuration_imports_nothing_heavy() -> None:
    """It is read where there is no GPU to be set up: by budget, by editors' tools, by tests."""
    program = "import sys, mammo_pd.config\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not {"torch", "numpy", "pandas", "timm", "lightning"} & set(done.stdout.split())
    assert "pydantic" in done.stdout


def test_schema_for_editors_is_the_codes() -> None:
    assert (CONFIGS / "schema.json").read_text() == dump_schema(), (
        "the configuration has changed; write its schema anew: python -c "
        "'from mammo_pd.config import dump_schema; print(dump_schema(), end=str())' "
        "> configs/schema.json"
    )
    schema = json.loads(dump_schema())
    for section in schema["$defs"].values():
        for name, field in section.get("properties", {}).items():
            assert field.get("description"), name
    with pytest.raises(jsonschema.ValidationError, match="epoch"):
        jsonschema.validate({"training": {"epoch": 3}}, schema)
    with pytest.raises(jsonschema.ValidationError, match="less than"):
        jsonschema.validate({"training": {"epochs": 0}}, schema)


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
def test_image_size_is_a_multiple_of_the_patch(
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
        (0, "an image cannot have 0 pixels"),
    ],
)
def test_image_size_that_does_not_fit_is_refused(res: int | str, message: str) -> None:
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
    jsonschema.validate(given, json.loads((CONFIGS / "schema.json").read_text()))
    head = file.read_text().split("\n\n")[0]
    assert head.startswith("# yaml-language-server: $schema=schema.json\n")
    for word in (f"mammo-pd train --config configs/{file.name}", "Hardware:", "Hours:", "Expect:"):
        assert word in head


def test_override_by_the_new_name_wins_over_the_old_one_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("training: {accumulate: 4, epochs: 3}\n")
    assert load_config(file).training.grad_accum_steps == 4
    config = load_config(file, parse_assignments(["training.grad_accum_steps=2"]))
    assert (config.training.grad_accum_steps, config.training.epochs) == (2, 3)


@pytest.mark.parametrize(
    "res",
    [
        *("0", "16", "-1024", "1e3", "²", "١٠٢٤", "1024x", "x1024", "1024x1024x3", "", "1_024"),
        *("inf", "99999999", "1024x99999984", "1" * 5000, "1024x" + "9" * 5000, 10**30, -16, 0),
    ],
)
def test_absurd_sizes_are_refused_in_a_sentence(res: int | str) -> None:
    with pytest.raises(InputError, match="--res") as raised:
        resolve_img_size(res, 32, (3000, 2000))
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    "value",
    [
        "9" * 5000,
        "2001-13-45",
        "[" * 3000,
        "{a: " * 3000,
        '"unclosed',
        "!!python/object/apply:os.getcwd []",
        "*unknown",
    ],
)
def test_what_is_no_yaml_is_told_in_a_sentence(tmp_path: Path, value: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(f"training: {{lr: {value}}}\n")
    with pytest.raises(InputError, match=r"a\.yaml cannot be read: ") as of_file:
        load_config(file)
    with pytest.raises(InputError, match=r"^--set training\.lr: the value is not YAML") as of_flag:
        parse_assignments([f"training.lr={value}"])
    assert max(len(str(one.value)) for one in (of_file, of_flag)) < len(str(file)) + 300


def test_aliases_within_aliases_are_not_written_out(tmp_path: Path) -> None:
    """A billion elements in 700 bytes."""
    lines = ["_0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"_{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    file = tmp_path / "a.yaml"
    for use in ("model: {name: *a8}", "training: {targets: *a8}", "training: *a8", "data: [*a8]"):
        file.write_text("\n".join([*lines, use]))
        with pytest.raises(InputError) as refused:
            load_config(file)
        assert len(str(refused.value)) < len(str(file)) + 1000
