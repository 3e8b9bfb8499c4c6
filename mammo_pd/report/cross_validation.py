"""A cross-validation's runs and seeds as tables for the terminal."""

from collections.abc import Sequence

from mammo_pd.report.content import Row
from mammo_pd.report.numbers import fixed
from mammo_pd.terms import Level


def run_table(runs: Sequence[Row]) -> str:
    """One line for each run; rows as in ``ReportContext``."""
    auc_columns = [
        f"{part}_auc_{level}" for part in ("val", "test") for level in (Level.IMAGE, Level.BREAST)
    ]
    lines = [
        f"{'':18}{'val AUC':>12}{'':6}{'test AUC':>12}",
        f"{'fold':>4} {'seed':>5} {'epoch':>6}"
        + f"{Level.IMAGE:>9}{Level.BREAST:>9}" * 2
        + f"{'seconds':>10}",
    ]
    for row in runs:
        aucs = "".join(f"{fixed(row[name]):>9}" for name in auc_columns)
        lines.append(
            f"{row['fold']:>4} {row['seed']:>5} {row['epoch']:>6}{aucs}"
            f"{fixed(row['seconds'], digits=0):>10}"
        )
    return "\n".join(lines)


def seed_table(seeds: Sequence[Row]) -> str:
    """One line for each seed, then mean and range; rows as in ``ReportContext``."""
    head = "".join(f"{level:>9}" for level in Level)
    return "\n".join(
        [
            f"{'':5}{'AUC within folds':^{len(head)}}".rstrip(),
            f"{'seed':>5}{head}",
            *(
                f"{row['seed']:>5}" + "".join(f"{fixed(row[level]):>9}" for level in Level)
                for row in seeds
            ),
        ]
    )
