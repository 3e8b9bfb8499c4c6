"""Options that several commands share, and helpers for the commands they suggest next."""

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from mammo_pd.cli.container import warn_unless_mounted
from mammo_pd.errors import InputError

if TYPE_CHECKING:
    from cyclopts import Token

    from mammo_pd.training.runs import RunFolder

DEFAULT_STORE = Path("store")
DEFAULT_RUNS = Path("runs")


def _would_be_kept(_: object, folder: Path) -> None:
    warn_unless_mounted(folder)


def _whole(_: object, tokens: "tuple[Token, ...]") -> int:
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text} is not a whole number.") from None


# Cyclopts itself would round 1.5 to 2.
WholeNumber = Annotated[int, Parameter(converter=_whole)]
StoreOption = Annotated[
    Path, Parameter(env_var="MAMMO_PD_STORE", metavar="STORE", validator=_would_be_kept)
]
# For commands about a store: a positional argument that --store also sets, as elsewhere.
StoreArgument = Annotated[
    Path, Parameter(name="--store", env_var="MAMMO_PD_STORE", metavar="STORE")
]
RunsOption = Annotated[
    Path, Parameter(env_var="MAMMO_PD_RUNS", metavar="DIR", validator=_would_be_kept)
]
# None by default, to distinguish an explicit store from the default one.
NamedStoreOption = Annotated[
    Path | None, Parameter(metavar="STORE", show_default="$MAMMO_PD_STORE, else store")
]
SeedOption = Annotated[WholeNumber | None, Parameter(metavar="N", show_default="0")]
FoldOption = Annotated[WholeNumber | None, Parameter(metavar="I")]
ResumeOption = Annotated[list[Path] | None, Parameter(metavar="[RUN]", consume_multiple=(0, 1))]
LabelsOption = Annotated[Path | None, Parameter(metavar="TABLE")]
SourceOption = Annotated[str | None, Parameter(metavar="NAME")]
ColumnOption = Annotated[list[str] | None, Parameter(metavar="NAME=COLUMN")]
WorkersOption = Annotated[WholeNumber | None, Parameter(metavar="N", show_default="one per core")]
# Kept for older scripts: intervals are now in closed form, so it only prints a note.
ResamplesOption = Annotated[WholeNumber | None, Parameter(metavar="N", show_default=False)]
# The values of `mammo_pd.evaluation.levels.Aggregation`, whose module is too heavy for --help.
AggregationOption = Literal["mean", "max", "noisy_or"]
# The codes of `mammo_pd.evaluation.thresholds.choose_thresholds`, for the same reason.
OperatingPointOption = Literal[
    "youden",
    "cost",
    "specificity_80",
    "specificity_90",
    "specificity_95",
    "sensitivity_80",
    "sensitivity_90",
    "sensitivity_95",
]

ResolutionsOption = Annotated[
    tuple[str, ...], Parameter(consume_multiple=1, metavar="RES...", show_default=" ".join)
]
KeepRatesOption = Annotated[
    tuple[float, ...],
    Parameter(
        consume_multiple=1,
        metavar="RATE...",
        show_default=lambda rates: " ".join(map(str, rates)),
    ),
]
ModelsOption = Annotated[
    tuple[str, ...], Parameter(consume_multiple=1, metavar="NAME...", show_default=" ".join)
]


def default_store() -> Path:
    """The store that a command uses if none is named."""
    return Path(os.environ.get("MAMMO_PD_STORE", DEFAULT_STORE))


def default_runs() -> Path:
    """The folder of runs that a command uses if none is named."""
    return Path(os.environ.get("MAMMO_PD_RUNS", DEFAULT_RUNS))


def unless_default(flag: str, value: object, default: object) -> str:
    """An option to append to a suggested command; empty if its value is the default."""
    return "" if value == default else f" {flag} {shlex.quote(str(value))}"


def is_first_process() -> bool:
    """Whether this process speaks: of several that train together the first one alone."""
    # torchrun counts over all machines, Lightning over those that it started on this one.
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def find_run(runs: Path, named: Path | None) -> "RunFolder":
    """Find a run by its folder, or its ID in ``runs``; None finds the latest and says which it is.

    Raises:
        InputError: there is no such run.
    """
    from mammo_pd.training import runs as run_folders

    if named is None:
        latest = run_folders.RunFolder.latest(runs)
        # show --json has stdout for programs to read.
        if is_first_process():
            print(f"no run was named: taking the latest, {latest.path}", file=sys.stderr)
        return latest
    return run_folders.RunFolder.find(runs, named)


def find_checkpoint(runs: Path, named: Path) -> Path:
    """Find a checkpoint file: the one named, or that of a run.

    Raises:
        InputError: there is no such run.
    """
    if named.is_file():
        return named
    file = named if named.suffix == ".safetensors" else find_run(runs, named).chosen
    if not file.is_file():
        raise InputError(f"there is no checkpoint at {file}; name a run that has one.")
    return file


def parse_columns(given: list[str]) -> dict[str, str]:
    """Read the ``NAME=COLUMN`` pairs of ``--column``.

    Raises:
        InputError: no equals sign, or a name or a column given twice.
    """
    columns: dict[str, str] = {}
    for pair in given:
        name, equals, column = (part.strip() for part in pair.partition("="))
        if not (name and equals and column):
            raise InputError(f"--column {pair}: write NAME=COLUMN, such as laterality=side.")
        if name in columns or column in columns.values():
            raise InputError(
                f"--column {pair}: {name} or {column} is already given; give each once."
            )
        columns[name] = column
    return columns


def source_without_table(source: str) -> InputError:
    """The error of ``--source`` without ``--labels``."""
    return InputError(f"--source {source} reads the data set's own table; name it with --labels.")


def tell_of_resamples(resamples: int | None) -> None:
    """Say that ``--resamples`` no longer has an effect, if it was given."""
    if resamples is not None:
        print("note: --resamples has no effect, since the intervals are in closed form; drop it.")
