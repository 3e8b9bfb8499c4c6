"""Checks that run before torch, MONAI or MLflow is imported, which takes seconds."""

import os
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
    """Check a run's inputs, as far as possible without building a model or reading the manifest.

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
    # If the store has no split, training makes the default one.
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
        # A masked autoencoder has no scores to cross-validate; that error comes later.
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
    """Check that sizes have a form that ``--res`` accepts, whatever the model's patch size.

    Raises:
        InputError: one of them is not.
    """
    from mammo_pd.config import resolve_img_size

    for res in resolutions:
        resolve_img_size(res, 1, (1, 1))


def check_models(names: Iterable[str]) -> None:
    """Check timm model names, as far as timm's source files show.

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
    """Check that a weights file exists, if the value can only mean a file.

    Raises:
        InputError: it is not.
    """
    from mammo_pd.backbones.weights.named import refuse_missing_file

    if weights is not None:
        refuse_missing_file(weights)


def read_key(file: Path | None) -> bytes | None:
    """Read and check the file given with ``--key``; None if none was given.

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
    """Check that a folder can be written to, or created.

    Raises:
        InputError: a file is in its place, or on the way to it; or there is no permission.
    """
    if folder is not None:
        _refuse_unwritable(option, folder, (folder, *folder.absolute().parents))


def check_output_file(option: str, file: Path | None) -> None:
    """Check that a file can be written.

    Raises:
        InputError: it is a folder, or a file is on the way to it; or there is no permission.
    """
    if file is None:
        return
    if file.is_dir():
        raise InputError(f"{option} {file} is a folder; name a file.")
    _refuse_unwritable(option, file, file.absolute().parents)


def _refuse_unwritable(option: str, given: Path, places: Iterable[Path]) -> None:
    """Refuse a path whose innermost existing place is a file, or a folder closed to this user."""
    innermost = next((place for place in places if place.exists()), None)
    if innermost is None:
        return
    if not innermost.is_dir():
        raise InputError(f"{option} {given}: {innermost} is a file; name a folder.")
    if not os.access(innermost, os.W_OK | os.X_OK):
        raise InputError(
            f"{option} {given}: there is no permission to write in {innermost}; name another place."
        )
