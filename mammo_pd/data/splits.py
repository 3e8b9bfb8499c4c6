"""Patient-level splits: made, hashed, written, read and checked; a leak is an error.

A patient is more than a patient ID: archives give one woman several IDs and one film several names,
so IDs that share an exam or a pixel-identical image are joined.

scikit-learn's ``StratifiedGroupKFold`` is not used. Stratified by label it leaves vendors
unbalanced, by label and vendor together it deals positives out less evenly (both measured, see
docs/log.md), and splits already made, by which runs are compared, would change.
"""

import hashlib
import json
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mammo_pd.errors import InputError, cause_of
from mammo_pd.files import atomic_write, load_json, write_text
from mammo_pd.table_file import write_csv
from mammo_pd.terms import Split, Status
from mammo_pd.wording import counted

# Two images that share a value in any of these columns belong to one patient.
_LINKS = ("patient_id", "exam_id", "pixel_hash")
_STRATIFY = ("manufacturer", "site_id")
# As text, or pandas would read digits as numbers.
_TEXT_COLUMNS = ("image_id", "patient_id", "val_of")
# Of the patients of the folds that are not tested.
VAL_SHARE = 0.15


@dataclass(frozen=True)
class SplitTable:
    """Which image belongs to train, val or test, or to which fold.

    Attributes:
        name: its name in the store.
        table: ``image_id``, ``patient_id`` and ``split``, or in its place ``fold`` and ``val_of``,
            sorted by ``image_id``. ``val_of`` lists the folds, separated by spaces, in whose runs
            the image validates; tables of earlier versions lack it.
        hash: of the table; it changes if a single image changes sides.
    """

    name: str
    table: pd.DataFrame
    hash: str

    @classmethod
    def of(cls, name: str, table: pd.DataFrame) -> "SplitTable":
        """A split of that table, in any order of rows, with its hash."""
        table = table.sort_values("image_id", ignore_index=True)
        return cls(name, table, _hash(table))

    @property
    def folds(self) -> int | None:
        """Number of folds; None for train, val and test."""
        return int(self.table["fold"].max()) + 1 if "fold" in self.table else None

    def parts(self, fold: int | None = None) -> pd.Series:
        """``train``, ``val`` or ``test`` for each row of `table`.

        With folds, ``fold`` is the test part, and of the others val is what ``val_of`` says; in
        tables without that column, the whole next fold.

        Raises:
            InputError: a fold is given for a split without folds, or none for one with folds.
        """
        if self.folds is None:
            if fold is not None:
                raise InputError(
                    f"the split {self.name} has no folds; leave out --fold, or make folds with: "
                    "mammo-pd split --folds 5 --name folds"
                )
            return self.table["split"]
        if fold is None or not 0 <= fold < self.folds:
            raise InputError(
                f"the split {self.name} has folds 0 to {self.folds - 1}; choose the one to test on "
                "with --fold" + ("." if fold is None else f" (got {fold}).")
            )
        numbers = self.table["fold"]
        parts = pd.Series(str(Split.TRAIN), index=numbers.index, name="split")
        if "val_of" in self.table:
            validates = [str(fold) in listed.split() for listed in self.table["val_of"]]
            parts[validates] = str(Split.VAL)
        else:
            parts[numbers == (fold + 1) % self.folds] = str(Split.VAL)
        parts[numbers == fold] = str(Split.TEST)
        return parts


def patient_groups(manifest: pd.DataFrame) -> pd.Series:
    """Number the groups of images that must stay on one side of every split.

    Args:
        manifest: rows with ``patient_id``, ``exam_id`` and ``pixel_hash``; missing values link
            nothing.

    Returns:
        One integer per row, aligned with ``manifest``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A graph of images and the values that they hold. Patients are its connected components: if A
    # is joined to B and B to C, all three are one.
    rows, nodes, count = [], [], len(manifest)
    for name in _LINKS:
        codes, values = pd.factorize(manifest[name])
        known = codes >= 0  # pandas numbers missing values -1
        rows.append(np.flatnonzero(known))
        nodes.append(codes[known] + count)
        count += len(values)
    row, node = np.concatenate(rows), np.concatenate(nodes)
    graph = coo_array((np.ones(len(row), dtype=np.int8), (row, node)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return pd.Series(pd.factorize(component[: len(manifest)])[0], index=manifest.index)


def with_joined_patients(manifest: pd.DataFrame) -> pd.DataFrame:
    """The manifest with one ``patient_id`` for each patient: the first of those that are hers.

    Args:
        manifest: all rows; also those that are not usable join patients.
    """
    names = manifest["patient_id"].groupby(patient_groups(manifest)).transform("min")
    return manifest.assign(patient_id=names)


def make_split(
    manifest: pd.DataFrame,
    *,
    name: str = "default",
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    folds: int | None = None,
    val: float = VAL_SHARE,
    seed: int = 0,
    may_lack_labels: bool = False,
) -> SplitTable:
    """Split patients into train, val and test, or into folds, stratified by label and vendor.

    The same manifest and seed give the same split, whatever the order of the rows.

    Args:
        manifest: all rows. Those with status ``ok`` are split; the others still help to join
            patients.
        name: name of the split.
        fractions: shares of patients in train, val and test; they add up to 1.
        folds: number of equal folds, in place of fractions.
        val: with folds, the share of the other folds' patients that validates when one is tested;
            drawn for each fold from the seed and its number.
        seed: of the shuffle.
        may_lack_labels: accept a manifest without any label, for what learns from none.

    Returns:
        The split, checked for leaks.

    Raises:
        InputError: impossible fractions, folds or share, or too few patients of a class to have
            one in every part.
    """
    if folds is None and (min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6):
        raise InputError(
            f"the fractions {fractions} are not three positive numbers that add up to 1; give "
            "fractions such as --fractions 0.7 0.1 0.2"
        )
    if folds is not None and folds < 2:
        raise InputError(
            f"--folds {folds}: at least 2 are needed, one to train on and one to test on."
        )
    _refuse_share(val)
    manifest, groups = _usable(manifest)
    patients = _one_row_per_group(manifest, groups)
    ids = manifest["patient_id"].nunique()
    _refuse_too_few(patients, ids, folds, may_lack_labels=may_lack_labels)
    table = manifest[["image_id", "patient_id"]]
    if folds:
        fold_of = _deal_out(patients, [1 / folds] * folds, seed)
        val_of = _draw_validation(patients, fold_of, folds, val, seed)
        table = table.assign(fold=groups.map(fold_of), val_of=groups.map(val_of))
    else:
        part_of = _deal_out(patients, fractions, seed).map(dict(enumerate(map(str, Split))))
        table = table.assign(split=groups.map(part_of))
    split = SplitTable.of(name, table)
    check_split(split, manifest)
    return split


def with_validation(
    table: pd.DataFrame, manifest: pd.DataFrame, share: float, seed: int
) -> pd.DataFrame:
    """Draw patients to validate on, stratified by label and vendor.

    Args:
        table: of a split without a leak, with the parts train and test alone, or with folds.
        manifest: all rows.
        share: of the patients that are trained on, in each fold's run if there are folds.
        seed: of the draw.

    Returns:
        The table, with some images of train as val, or with the column ``val_of``.

    Raises:
        InputError: the share is not between 0 and 1.
    """
    _refuse_share(share)
    usable, groups = _usable(manifest)
    patients = _one_row_per_group(usable, groups)
    group_of = table["image_id"].map(groups.set_axis(usable["image_id"]))
    if "fold" in table:
        fold_of = table["fold"].groupby(group_of).first()
        patients = patients.loc[fold_of.index]
        val_of = _draw_validation(patients, fold_of, int(fold_of.max()) + 1, share, seed)
        return table.assign(val_of=group_of.map(val_of))
    trained = patients.loc[sorted(group_of[table["split"] == Split.TRAIN].unique())]
    dealt = _deal_out(trained, (1 - share, share), seed)
    validates = group_of.isin(dealt.index[dealt == 1])
    return table.assign(split=table["split"].mask(validates, str(Split.VAL)))


def count_leaks(split: SplitTable, manifest: pd.DataFrame) -> int:
    """Patients on more than one side of a split.

    Args:
        split: the split.
        manifest: all rows, also those that the split does not name.
    """
    return _count_leaks(_with_groups(split, manifest))


def _with_groups(split: SplitTable, manifest: pd.DataFrame) -> pd.DataFrame:
    """The usable images of a split, each with its ``side`` and its ``group``."""
    sides = split.table[["image_id"]].assign(side=_sides(split.table))
    usable, groups = _usable(manifest)
    return usable.assign(group=groups).merge(sides, on="image_id")


def _count_leaks(joined: pd.DataFrame) -> int:
    return int((joined.groupby("group")["side"].nunique() > 1).sum())


def check_split(split: SplitTable, manifest: pd.DataFrame) -> None:
    """Refuse a split with a patient on two sides.

    Args:
        split: the split.
        manifest: all rows, also those that the split does not name.

    Raises:
        InputError: a leak, or an image that is not in the manifest or not usable.
    """
    joined = _with_groups(split, manifest)
    if len(joined) < len(split.table):
        raise InputError(
            f"the split {split.name} names {counted(len(split.table) - len(joined), 'image')} that "
            "are not usable images of the store; it was made for another state of the store. Make "
            "a new one: mammo-pd split --name NEW"
        )
    leaks = _count_leaks(joined)
    if leaks:
        raise InputError(
            f"the split {split.name} has {counted(leaks, 'patient')} on more than one side (by "
            "patient, exam or identical pixels), so its results would be too good; make a new one "
            "with: mammo-pd split --name NEW"
        )


def check_name(name: str) -> None:
    """Refuse a name of a split that would lie elsewhere than among the splits, or be hidden there.

    Raises:
        InputError: the name is no name of a file.
    """
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\"):
        raise InputError(
            f"{name!r} cannot be the name of a split; give letters, digits, - and _, such as "
            "--name five."
        )


def write_split(split: SplitTable, folder: Path, made_with: dict[str, Any]) -> Path:
    """Write ``NAME.csv``, and ``NAME.json`` with its hash and what it was made with."""
    path = folder / f"{split.name}.csv"
    # The hash first, so that a crash never leaves a table without one.
    write_text(
        path.with_suffix(".json"), json.dumps({"hash": split.hash, **made_with}, indent=2) + "\n"
    )
    with atomic_write(path) as beside:
        write_csv(split.table, beside)
    return path


def list_splits(folder: Path) -> list[str]:
    """The names of the splits of a store."""
    return sorted(file.stem for file in folder.glob("*.csv"))


def read_split(folder: Path, name: str) -> SplitTable:
    """Read a split and check that nobody has edited it.

    Raises:
        InputError: there is no split of that name, or it was changed after it was made.
    """
    split, made_with = _read(folder, name)
    if split.hash != made_with["hash"]:
        raise _edited(folder, split, made_with)
    return split


def read_folds(folder: Path, name: str) -> SplitTable:
    """Read a split that must have folds.

    Raises:
        InputError: as `read_split`, or it has none.
    """
    if name in list_splits(folder):
        split = read_split(folder, name)
        if split.folds is not None:
            return split
    raise InputError(
        f"there is no split {name!r} with folds in {folder}; name one with --split, or make one "
        f"with: {_split_command(folder)} --folds 5 --name five"
    )


def read_split_and_past(folder: Path, name: str) -> tuple[SplitTable, frozenset[str]]:
    """Read a split, and the hashes that it has had: removing images gives it another.

    Also one whose removal of images was cut short, which `remove_from_split` then completes.

    Raises:
        InputError: there is no split of that name, or somebody has edited it.
    """
    split, made_with = _read(folder, name)
    hashes = frozenset([made_with["hash"], *made_with.get("earlier_hashes", [])])
    if split.hash not in hashes:
        raise _edited(folder, split, made_with)
    return split, hashes


def has_lost_images(folder: Path, name: str, split_hash: str) -> bool:
    """Whether the split with this hash became the present one by losing images alone.

    The others are on the sides that they were on, so no patient has changed hers.

    Args:
        folder: of the store's splits.
        name: of the split, which need not be there.
        split_hash: of its content, once.
    """
    try:
        split, hashes = read_split_and_past(folder, name)
    except InputError:
        return False
    return split_hash != split.hash and split_hash in hashes


def remove_from_split(folder: Path, name: str, image_ids: Collection[str]) -> SplitTable | None:
    """Write a split without some of its images; the sides of the others stay.

    A split that would have a part or a fold without any image is removed.

    Returns:
        The split as it is now; None if it was removed.

    Raises:
        InputError: there is no split of that name, or somebody has edited it.
    """
    split, hashes = read_split_and_past(folder, name)
    _, made_with = _read(folder, name)
    rest = split.table[~split.table["image_id"].isin(list(image_ids))].reset_index(drop=True)
    side = "fold" if split.folds else "split"
    if set(rest[side]) != set(split.table[side]):
        (folder / f"{name}.csv").unlink()
        (folder / f"{name}.json").unlink()
        return None
    smaller = SplitTable.of(name, rest)
    made_with |= {"earlier_hashes": sorted(hashes - {smaller.hash})}
    write_split(smaller, folder, {key: made_with[key] for key in made_with if key != "hash"})
    return smaller


def _split_command(folder: Path) -> str:
    """The command that makes a split beside the others in ``folder``, to complete with a name."""
    return f"mammo-pd split --store {shlex.quote(str(folder.parent))}"


def _read(folder: Path, name: str) -> tuple[SplitTable, dict[str, Any]]:
    """The split as its table is, and what its JSON file says."""
    path = folder / f"{name}.csv"
    check_name(name)
    if not path.is_file():
        made = list_splits(folder)
        raise InputError(
            f"there is no split {name!r} in {folder}"
            + (f" (there are: {', '.join(made)})" if made else "")
            + f"; make it with: {_split_command(folder)} --name {shlex.quote(name)}"
        )
    if not path.with_suffix(".json").is_file():
        raise InputError(
            f"{path} has no {name}.json beside it, which holds its hash; restore that file, or "
            f"make a new split: {_split_command(folder)} --name NEW (one made elsewhere is taken "
            "over with --from-column)"
        )
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT_COLUMNS, "string"))
        made_with: dict[str, Any] = load_json(path.with_suffix(".json").read_text("utf-8"))
        if not isinstance(made_with["hash"], str):
            raise TypeError("its hash is not text")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the split {path} cannot be read ({cause_of(error)}); make a new one: "
            f"{_split_command(folder)} --name NEW"
        ) from error
    missing = {"image_id", "patient_id"} - set(table.columns)
    if missing or not {"split", "fold"} & set(table.columns):
        raise InputError(f"{path} needs the columns image_id, patient_id and split or fold.")
    if "val_of" in table:
        table["val_of"] = table["val_of"].fillna("")
    if table.isna().to_numpy().any():
        raise InputError(
            f"{path} has rows without an image_id, a patient_id or a side: it was truncated or "
            f"edited; restore it, or make a new one: {_split_command(folder)} --name NEW"
        )
    unknown = [] if "fold" in table else sorted(set(table["split"].astype(str)) - {*Split})
    if unknown:
        raise InputError(
            f"{path} has {', '.join(map(repr, unknown[:3]))} in the column split; the parts are "
            f"{', '.join(Split)}."
        )
    return SplitTable.of(name, table), made_with


def _edited(folder: Path, split: SplitTable, made_with: dict[str, Any]) -> InputError:
    return InputError(
        f"{folder / split.name}.csv was changed after it was made (hash {split.hash[:12]}, was "
        f"{made_with['hash'][:12]}); restore it, or make a new one: "
        f"{_split_command(folder)} --name NEW"
    )


def _usable(manifest: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """The rows to be split and their groups, sorted so that row order does not matter."""
    manifest = manifest.sort_values("image_id", ignore_index=True)
    usable = manifest["status"] == Status.OK
    # Grouped before the unusable rows are dropped, since they join patients too.
    groups = patient_groups(manifest)
    return manifest[usable], groups[usable]


def _refuse_share(val: float) -> None:
    if not 0 < val < 1:
        raise InputError(
            f"a validation share of {val:g} is not between 0 and 1; give a share such as --val 0.1"
        )


def _hash(table: pd.DataFrame) -> str:
    lines = sorted(table["image_id"] + "," + _sides(table))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sides(table: pd.DataFrame) -> pd.Series:
    """Everything that a split says of each image, as one text; a patient has one alone."""
    sides = table["fold" if "fold" in table else "split"].astype(str)
    return sides + "," + table["val_of"].astype(str) if "val_of" in table else sides


def _one_row_per_group(manifest: pd.DataFrame, groups: pd.Series) -> pd.DataFrame:
    """``label`` (1 if any image is positive) and ``vendor`` (with site, of the first image)."""
    vendor = [manifest[name].fillna("") for name in _STRATIFY if name in manifest]
    label = manifest["label"].astype("Float64")
    return pd.DataFrame(
        {
            "label": label.groupby(groups).max().map({0.0: "0", 1.0: "1"}).fillna("unknown"),
            "vendor": pd.concat(vendor, axis=1)
            .astype(str)
            .agg("/".join, axis=1)
            .groupby(groups)
            .first(),
        }
    )


def _refuse_too_few(
    patients: pd.DataFrame, ids: int, folds: int | None, *, may_lack_labels: bool
) -> None:
    why = ""
    if ids > len(patients):
        why = (
            f" ({ids} patient IDs make {counted(len(patients), 'patient')}, for IDs that share an "
            "exam or pixels are one's: an exam_id of the label table must be of one exam alone, "
            "and not a number within each patient)"
        )
    counts = patients["label"].value_counts()
    # One in each fold; and of two folds, either must hold one to train on and one to validate on.
    least = 4 if folds == 2 else folds or len(Split)
    parts = "of a split" if folds is None else f"of each of {folds} folds' runs"
    if may_lack_labels and not {"0", "1"} & set(counts.index):
        if len(patients) < least:
            raise InputError(
                f"the store has {counted(len(patients), 'patient')}, and at least {least} are "
                f"needed for one in train, val and test {parts}{why}; add patients."
            )
        return
    for label, word in (("1", "positive"), ("0", "negative")):
        found = int(counts.get(label, 0))
        if found < least:
            have = "no patient is"
            if found:
                have = f"only {counted(found, 'patient is', 'patients are')}"
            raise InputError(
                f"{have} {word}, and at least {least} "
                f"are needed for one in train, val and test {parts}{why}; check the label table "
                "and its label column (--labels, --label-column, --positive), or add patients."
            )


def _draw_validation(
    patients: pd.DataFrame, fold_of: pd.Series, folds: int, share: float, seed: int
) -> pd.Series:
    """For each patient the folds in whose runs she validates, separated by spaces."""
    val_of = pd.Series("", index=patients.index)
    for fold in range(folds):
        others = patients[fold_of.reindex(patients.index) != fold]
        dealt = _deal_out(others, (1 - share, share), (seed, fold))
        drawn = dealt.index[dealt == 1]
        val_of[drawn] = (val_of[drawn] + f" {fold}").str.strip()
    return val_of


def _deal_out(
    patients: pd.DataFrame, shares: Sequence[float], seed: int | tuple[int, int]
) -> pd.Series:
    """The part of each patient, by number.

    Sorted by label, then vendor, then at random, and dealt out in that order: each part gets its
    share of each label, and within a label its share of each vendor.
    """
    order = np.random.default_rng(seed).permutation(len(patients))
    patients = patients.assign(order=order).sort_values(["label", "vendor", "order"])
    by_label = [_deal(len(same), shares) for _, same in patients.groupby("label", sort=True)]
    return pd.Series(np.concatenate(by_label), index=patients.index)


def _deal(count: int, shares: Sequence[float]) -> list[int]:
    """The part of each of ``count`` patients; the next one goes to the part furthest behind."""
    # A part whose share is less than one patient is served first, so that no class is absent.
    start = [part for part, share in enumerate(shares) if count * share < 1][:count]
    dealt = list(start)
    held = [start.count(part) for part in range(len(shares))]
    for _ in range(count - len(start)):
        total = len(dealt) + 1
        part = max(range(len(shares)), key=lambda i: (shares[i] * total - held[i], -i))
        held[part] += 1
        dealt.append(part)
    return dealt
