"""``mammo-pd split``: divide a store's patients into train, val and test, or into folds."""

from typing import Annotated

from cyclopts import Parameter

from mammo_pd.cli.options import (
    DEFAULT_STORE,
    StoreArgument,
    WholeNumber,
    default_store,
    unless_default,
)
from mammo_pd.errors import InputError


def split(
    store: StoreArgument = DEFAULT_STORE,
    *,
    name: Annotated[str, Parameter(metavar="NAME")] = "default",
    fractions: Annotated[
        tuple[float, float, float] | None,
        Parameter(metavar="TRAIN VAL TEST", show_default="0.7 0.1 0.2"),
    ] = None,
    folds: Annotated[WholeNumber | None, Parameter(metavar="K")] = None,
    val: Annotated[float | None, Parameter(metavar="SHARE", show_default="0.15")] = None,
    seed: Annotated[WholeNumber, Parameter(metavar="N")] = 0,
) -> None:
    """Split a store by patient: into train, val and test, or into folds.

    For example:

        mammo-pd split --fractions 0.6 0.1 0.3
        mammo-pd split --folds 5 --val 0.1 --name five

    Args:
        store: The store to split.
        name: Name of the split.
        fractions: Fractions of the patients.
        folds: Make K folds instead of three parts.
        val: With folds, the fraction of the patients outside the test fold that is used for
            validation.
        seed: Seed of the shuffle.
    """
    from mammo_pd.data.manifest import read_manifest
    from mammo_pd.data.split_store import FRACTIONS, count_parts, split_store
    from mammo_pd.data.splits import VAL_SHARE
    from mammo_pd.data.store import open_store
    from mammo_pd.data.usual_res import usual_res

    if fractions is not None and folds is not None:
        raise InputError("--fractions and --folds exclude each other; give only one.")
    if val is not None and folds is None:
        raise InputError(
            "--val needs --folds; without folds, set the validation share with --fractions TRAIN "
            "VAL TEST."
        )
    paths = open_store(store)
    made = split_store(
        paths,
        name=name,
        fractions=fractions or FRACTIONS,
        folds=folds,
        val=VAL_SHARE if val is None else val,
        seed=seed,
        # Unlabelled stores can be pretrained on or embedded; a warning says that nothing is
        # labelled.
        may_lack_labels=True,
    )
    counts = count_parts(read_manifest(paths.manifest, status=None), made)
    print("part    patients   images  positive  unlabelled")
    for row in counts:
        print(
            f"{row['part']:<6}{row['patients']:>10}{row['images']:>9}{row['positives']:>10}"
            f"{row['unlabelled']:>12}"
        )
    print(f"\nwrote {paths.splits / (made.name + '.csv')} (hash {made.hash[:12]})")
    given = unless_default("--store", store, default_store())
    given += unless_default("--split", made.name, "default")
    if all(row["unlabelled"] == row["images"] for row in counts):
        command = "pretrain"  # which, with folds, takes one of them at a time
        given += " --fold 0" if made.folds else ""
    else:
        command = "cv" if made.folds else "train"
    print(f"next: mammo-pd {command}{given} --res {usual_res(paths)} --keep 0.25")
