"""The commands that the pages and recipes of the repository tell a reader to type."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").glob("*.md"),
        *(
            ROOT / name
            for name in (
                "README.md",
                "CONTRIBUTING.md",
                "SECURITY.md",
                "docker/README.md",
                "data_manifests/README.md",
            )
        ),
    ]
)
# In the order of the site's navigation: what one page makes, a later one may use.
RUN_IN_ORDER = (
    "README.md",
    "docs/first-run.md",
    "docs/own-archive.md",
    "docs/splits.md",
    "docs/training.md",
    "docs/resolution.md",
    "docs/evaluation.md",
    "docs/extending.md",
    "docs/api.md",
)
# What stands in front of the words of `mammo-pd`, once shell variables have a value.
_OURS = re.compile(
    r"^(?:\S*/)?mammo-pd$|^mammo-pd\.sif$|^\S*mammo-pd:\S+$|^(?:\S*/)?apptainer\.sh$"
)
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    `why_not` is what the comment above it says after ``not run``; None where it is to be run.
    """

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page."""
    pattern = (
        r"(?:<!-- not run: (?P<why>[^\n]+?) -->\n)?"
        r"```(?P<language>[^\n]*)\n(?P<text>.*?)```"
    )
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("text")),
            found["language"].strip(),
            found["text"],
            found["why"],
        )
        for found in re.finditer(pattern, text, re.DOTALL)
    ]


def shell_lines(text: str) -> list[str]:
    """Lines of shell, continued ones joined, without comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    lines = (re.sub(r"^\s*\$ ", "", line).strip() for line in joined)
    return [line for line in lines if line and not line.startswith("#")]


def commands_of(file: Path) -> list[str]:
    """Every line with a command in a page, or in the head of a recipe."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        return re.findall(r"^# (mammo-pd .*)$", text, re.MULTILINE)
    found = []
    for block in blocks(file):
        if block.language in ("sh", "bash", "console"):
            found += shell_lines(block.text)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = re.findall(r"`(mammo-pd [a-z][^`\n]*)`", prose)
    # Prose also names an option without its value.
    found += [span for span in spans if not re.search(r" --(?!help)[a-z-]+$", span)]
    indented = "\n".join(re.findall(r"^    (.*)$", prose, re.MULTILINE))
    found += [line for line in shell_lines(indented) if line.startswith("mammo-pd ")]
    return found


def words_of(line: str) -> list[list[str]]:
    """The words of each simple command in a line of shell; a variable becomes 0."""
    line = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", "0", line)
    line = re.sub(r"\$\{?\w+(?::?[-+?][^}]*)?\}?", "0", line)
    words = shlex.split(line, comments=True)
    found: list[list[str]] = [[]]
    for word in words:
        if word in ("|", "||", "&&", "&", ";"):
            found.append([])
        else:
            found[-1].append(word.rstrip(";"))
    return [command for command in found if command]


def our_words(words: list[str]) -> list[str] | None:
    """The words after ``mammo-pd``, however it is started; None where it is another program."""
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    if not words or words[0] in ("alias", "export", "cat", "docker/image.sh", "echo"):
        return None
    if "--entrypoint" in words or words[1:2] in (["save"], ["load"], ["inspect"], ["build"]):
        return None
    if words[0] == "sbatch":
        return _in_a_job(words)
    if "-m" in words and words[words.index("-m") + 1 :][:1] == ["mammo_pd"]:
        return words[words.index("-m") + 2 :]
    starts = ("docker", "apptainer", "srun", "podman")
    if _OURS.match(words[0]):
        return words[1:]
    if words[0] in starts:
        positions = [number for number, word in enumerate(words) if _OURS.match(word)]
        return words[positions[-1] + 1 :] if positions else None
    return None


def _in_a_job(words: list[str]) -> list[str] | None:
    if "--wrap" in words:
        return our_words(shlex.split(words[words.index("--wrap") + 1]))
    script = next((n for n, word in enumerate(words) if word.endswith("train.sbatch")), None)
    return None if script is None else ["train", *words[script + 1 :]]
