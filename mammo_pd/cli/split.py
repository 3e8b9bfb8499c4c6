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
    from_column: Annotated[str | None, Parameter(metavar="COLUMN")] = None,
    val: Annotated[float | None, Parameter(metavar="SHARE", show_default="0.15")] = None,
    seed: Annotated[WholeNumber, Parameter(metavar="N")] = 0,
) -> None:
    """Split a store by patient: into train, val and test, or into folds.

    For example:

        mammo-pd split --fractions 0.6 0.1 0.3
        mammo-pd split --folds 5 --val 0.1 --name five
        mammo-pd split --from-column published_split --name published

    Args:
        store: The store to split.
        name: Name of the split.
        fractions: Fractions of the patients.
        folds: Make K folds instead of three parts.
        from_column: Take over a split that the label table brought along, such as a data set's
            own: a column with train, val and test, or with the numbers of folds.
        val: With folds, the fraction of the patients outside the test fold that is used for
            validation; with --from-column the fraction of those that are trained on, if the column
            names no part for validation.
        seed: Seed of the shuffle.
    """
    from mammo_pd.data.manifest import read_manifest
    from mammo_pd.data.split_store import FRACTIONS, count_parts, split_store
    from mammo_pd.data.store import open_store
    from mammo_pd.data.usual_res import usual_res

    ways = {"--fractions": fractions, "--folds": folds, "--from-column": from_column}
    given_ways = [option for option, value in ways.items() if value is not None]
    if len(given_ways) > 1:
        raise InputError(f"{' and '.join(given_ways)} exclude each other; give only one.")
    if val is not None and folds is None and from_column is None:
        raise InputError(
            "--val needs --folds or --from-column; without them, set the validation share with "
            "--fractions TRAIN VAL TEST."
        )
    paths = open_store(store)
    made = split_store(
        paths,
        name=name,
        fractions=fractions or FRACTIONS,
        folds=folds,
        column=from_column,
        val=val,
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
