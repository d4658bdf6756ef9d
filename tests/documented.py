"""The commands in all texts for users: README, docs/, comments in conf/ and the Makefile, launch/, and `--help`."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests import REPO

TEXTS = [
    REPO / "README.md",
    *sorted((REPO / "docs").rglob("*.md")),
    REPO / "launch" / "README.md",
    REPO / "Makefile",
    *sorted((REPO / "conf").rglob("*.yaml")),
    # `--help` prints the modules' docstrings.
    *sorted((REPO / "wp1").glob("*.py")),
]
COMMAND = re.compile(r"(?:\.venv/bin/)?(?:python -m (wp1(?:\.\w+)?)|make(?= [a-z])|(launch/\w+\.sh))")
# Groups of conf/ that a user chooses from.
GROUPS = sorted(path.name for path in (REPO / "conf").iterdir() if path.is_dir() and path.name != "hydra")
SETTINGS = re.compile(rf"`((?:{'|'.join(GROUPS)})=\w+(?: [\w.]+=[^`\s]+)*)`")


@dataclass(frozen=True)
class Documented:
    """A command in a text."""

    place: str  # file and line
    program: str  # wp1, wp1.report, make or launch/packet.sh
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {' '.join((self.program, *self.words))}"


def commands() -> list[Documented]:
    """All commands, without duplicates."""
    by_words: dict[tuple[str, ...], Documented] = {}
    for path in TEXTS:
        for number, text in _statements(path):
            match = COMMAND.match(text)
            if match is None:
                continue
            program = match[1] or match[2] or "make"
            words = _words(text[match.end() :])
            one = Documented(f"{path.relative_to(REPO)}:{number}", program, words)
            by_words.setdefault((program, *words), one)
    return list(by_words.values())


def settings() -> list[Documented]:
    """Settings in running text that begin with the choice of a group, such as `workload=text`."""
    by_text: dict[str, Documented] = {}
    for path in (path for path in TEXTS if path.suffix == ".md"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for words in SETTINGS.findall(line):
                if not re.search(r"[|…]", words):
                    by_text.setdefault(words, Documented(f"{path.relative_to(REPO)}:{number}", "wp1", _words(words)))
    return list(by_text.values())


def yaml_files() -> dict[str, str]:
    """Name and text of each file shown in a YAML block that names it in a comment at its top.

    The text is the whole block, as a reader copies it.
    """
    shown = re.compile(r"(?ms)^```yaml\n(?P<text>(?:# @package \S+\n)?# (?P<name>\S+\.yaml)\n.*?)^```$")
    pages = (path.read_text(encoding="utf-8") for path in TEXTS if path.suffix == ".md")
    return {block["name"]: block["text"] for page in pages for block in shown.finditer(page)}


def _statements(path: Path) -> list[tuple[int, str]]:
    """Line number and text of each possible command in a file: code spans, lines of code, and comments."""
    statements = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        spans = re.findall(r"`+([^`]+)`+", line)
        bare = re.sub(r"`[^`]*`", "", line)
        # A comment in a YAML file or Makefile, a docstring's first line, or a line of a code block.
        bare = re.sub(r'^\s*(#\s*|""")?', "", bare)
        statements += [(number, text) for text in (*spans, bare) if COMMAND.match(text)]
    return statements


def _words(text: str) -> tuple[str, ...]:
    """The words of a command. What follows two blanks, a `#`, a colon or the end of a sentence describes it."""
    text = text.replace("…", "").replace("...", "").rstrip()
    text = re.split(r"\s{2,}|\s#|:\s|:$|;|\)|\.$|, ", text, maxsplit=1)[0]
    return tuple(word.rstrip(",") for word in shlex.split(text))
