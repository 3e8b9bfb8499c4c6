"""What can be refused before torch, MONAI or MLflow is imported, which takes seconds."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mammo_pd.errors import InputError, cause_of

if TYPE_CHECKING:
    from mammo_pd.config import RunConfig
    from mammo_pd.data.store import StorePaths
    from mammo_pd.training.runs import RunFolder

_KEY_BYTES = 32


def check_training(store: Path, config: "RunConfig", stopped: "RunFolder | None" = None) -> None:
    """Check what a run is to be trained on, as far as it takes no model and no manifest.

    Args:
        store: that was named, or is taken by default.
        config: of the run.
        stopped: the run to continue; None for a new one.

    Raises:
        InputError: no store, split, fold, model or file of weights as named, or an impossible image
            size.
    """
    from mammo_pd.data.splits import list_splits, read_split

    split = config.data.split
    paths = check_store(store)
    # Of a store without any, training makes the default split.
    if split != "default" or split in list_splits(paths.splits):
        read_split(paths.splits, split).parts(config.data.fold)
    check_resolutions([str(config.data.res)])
    check_models([config.model.name])
    if stopped is None or not stopped.has_checkpoint:
        check_weights_file(config.model.weights)


def check_folds(store: Path, config: "RunConfig") -> None:
    """Check the store and the split of a cross-validation.

    Raises:
        InputError: there is no such store, model, or split of that name with folds.
    """
    from mammo_pd.data.splits import read_folds

    paths = check_store(store)
    if config.training.objective != "masked_autoencoder":
        # Which no split could be cross-validated by; that is told later.
        read_folds(paths.splits, config.data.split)
    check_resolutions([str(config.data.res)])
    check_models([config.model.name])
    check_weights_file(config.model.weights)


def check_store(store: Path) -> "StorePaths":
    """Check that there is a store.

    Raises:
        InputError: there is none, or what it says of itself is damaged or of another version.
    """
    from mammo_pd.data.store import open_store, read_store_info

    paths = open_store(store)
    read_store_info(paths)
    return paths


def check_resolutions(resolutions: Iterable[str]) -> None:
    """Check that sizes are written as ``--res`` takes them, whatever patches the model has.

    Raises:
        InputError: one of them is not.
    """
    from mammo_pd.config import resolve_img_size

    for res in resolutions:
        resolve_img_size(res, 1, (1, 1))


def check_models(names: Iterable[str]) -> None:
    """Check timm's names of models, as far as its sources tell.

    Raises:
        InputError: there is no such model.
    """
    from mammo_pd.backbones.model_names import refuse_unknown_model

    for name in names:
        refuse_unknown_model(name)


def check_keep_rates(rates: Iterable[float]) -> None:
    """Check constant keep rates.

    Raises:
        InputError: one of them is not in (0, 1].
    """
    for rate in rates:
        if not 0 < rate <= 1:
            raise InputError(f"--keep {rate:g} is not above 0 and at most 1.")


def check_weights_file(weights: str | None) -> None:
    """Check that a file of weights is there, where no more than a file can be meant.

    Raises:
        InputError: it is not.
    """
    from mammo_pd.backbones.weights.named import refuse_missing_file

    if weights is not None:
        refuse_missing_file(weights)


def read_key(file: Path | None) -> bytes | None:
    """Read what was given with ``--key``, before a store takes it over; None for nothing.

    Raises:
        InputError: there is no such file, or it holds no key.
    """
    if file is None:
        return None
    if not file.is_file():
        raise InputError(f"the key {file} does not exist; give a store's private/key.")
    try:
        key = file.read_bytes()
    except OSError as error:
        raise InputError(f"the key {file} cannot be read: {cause_of(error)}") from error
    if len(key) != _KEY_BYTES:
        raise InputError(
            f"--key {file} is not a key of {_KEY_BYTES} bytes; give a store's private/key."
        )
    return key


def check_output_folder(option: str, folder: Path | None) -> None:
    """Check that a folder is there or can be made.

    Raises:
        InputError: a file is in its place, or on the way to it.
    """
    if folder is not None:
        _refuse_file_among(option, folder, (folder, *folder.absolute().parents))


def check_output_file(option: str, file: Path | None) -> None:
    """Check that a file is not asked for where a folder is.

    Raises:
        InputError: it is a folder, or a file is on the way to it.
    """
    if file is None:
        return
    if file.is_dir():
        raise InputError(f"{option} {file} is a folder; name a file.")
    _refuse_file_among(option, file, file.absolute().parents)


def _refuse_file_among(option: str, given: Path, places: Iterable[Path]) -> None:
    """Refuse what would lie in a file: the innermost of the places that exists must be a folder."""
    innermost = next((place for place in places if place.exists()), None)
    if innermost is not None and not innermost.is_dir():
        raise InputError(f"{option} {given}: {innermost} is a file; name a folder.")
