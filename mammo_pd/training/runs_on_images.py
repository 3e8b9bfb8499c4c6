"""Which runs were trained on some images: what to know when images are taken back."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mammo_pd.data.splits import SplitTable
from mammo_pd.errors import InputError
from mammo_pd.terms import Split
from mammo_pd.training.runs import RunFolder


@dataclass(frozen=True)
class RunOnImages:
    """How many of the images a run used.

    Attributes:
        path: the run's folder.
        train: images of the part that it was trained on; an unlabelled one is read by no step.
        val: images by which its epoch may have been chosen.
        test: images that it is tested on.
    """

    path: Path
    train: int
    val: int
    test: int

    def __bool__(self) -> bool:
        return bool(self.train or self.val or self.test)


def runs_on_images(
    runs: Path,
    store: Path,
    splits: Sequence[tuple[SplitTable, frozenset[str]]],
    image_ids: Collection[str],
) -> tuple[list[RunOnImages], list[Path]]:
    """Find the runs that were trained, chosen or tested on some images.

    Args:
        runs: the folder of runs, and of cross-validations.
        store: that the images are in.
        splits: of the store, each with all hashes that it has had.
        image_ids: of the images.

    Returns:
        Those runs, and the runs of this store that were made with a split it no longer has, of
        which it cannot be told.
    """
    by_hash = {hash_: split for split, hashes in splits for hash_ in hashes}
    found, unknown = [], []
    for file in sorted(runs.rglob("run.json")) if runs.is_dir() else []:
        try:
            run = RunFolder.open(file.parent)
        except InputError:
            unknown.append(file.parent)
            continue
        split = by_hash.get(run.info.split_hash)
        if split is None:
            if Path(run.info.store) == store.resolve():
                unknown.append(run.path)
            continue
        parts = split.parts(run.info.fold)[split.table["image_id"].isin(list(image_ids))]
        counts = parts.value_counts()
        used = RunOnImages(run.path, *(int(counts.get(str(part), 0)) for part in Split))
        if used:
            found.append(used)
    return found, unknown
