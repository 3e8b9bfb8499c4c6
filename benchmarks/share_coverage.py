"""The exact coverage of 95 % limits of a share of n independent patients, without simulation.

    python benchmarks/share_coverage.py

For true shares from .5 to .9995: how many of them have limits that cover 93 to 97 %, more or fewer.
"""

import numpy as np
from scipy.stats import beta, binom, norm

from mammo_pd.evaluation.intervals import share_limits

SIZES = (5, 12, 18, 36, 100)
SHARES = np.linspace(0.5, 0.9995, 4000)


def mid_p(count: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The report's own."""
    low, high = share_limits(count / n, np.full(len(count), float(n)))
    return np.asarray(low), np.asarray(high)


def jeffreys(count: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the posterior of Jeffreys' prior; 0 and 1 at the ends (Brown et al. 2001)."""
    low = np.where(count == 0, 0.0, beta.ppf(0.025, count + 0.5, n - count + 0.5))
    high = np.where(count == n, 1.0, beta.ppf(0.975, count + 0.5, n - count + 0.5))
    return low, high


def wilson(count: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The score interval."""
    z, share = norm.ppf(0.975), count / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - reach, middle + reach


def main() -> None:
    """Print a Markdown table."""
    print("| patients | limits | least | mean | below 93 % | 93 to 97 % | above 97 % |")
    print("|---|---|---|---|---|---|---|")
    for n in SIZES:
        count = np.arange(n + 1)
        probability = binom.pmf(count[:, None], n, SHARES)
        for limits in (mid_p, jeffreys, wilson):
            low, high = limits(count, n)
            holds = (low[:, None] <= SHARES) & (high[:, None] >= SHARES)
            covered = 100 * (probability * holds).sum(axis=0)
            below, above = 100 * (covered < 93).mean(), 100 * (covered > 97).mean()
            print(
                f"| {n} | {limits.__name__.replace('_', '-')} | {covered.min():.1f} | "
                f"{covered.mean():.1f} | {below:.0f} | {100 - below - above:.0f} | {above:.0f} |"
            )


if __name__ == "__main__":
    main()
