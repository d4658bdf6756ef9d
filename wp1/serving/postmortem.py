"""Explains in one line why an engine died, from its log and its processes' exit codes.

vLLM reports to its client only that the engine core met "an issue". The error itself is in the log. The first traceback
there is the cause; later ones come from the processes that passed the error on:

    (Worker pid=7) ERROR 11-29 09:22:18 [multiproc_executor.py:1063] WorkerProc hit an exception.
    (Worker pid=7) ERROR 11-29 09:22:18 [multiproc_executor.py:1063] Traceback (most recent call last):
    ...
    (Worker pid=7) ERROR 11-29 09:22:18 [multiproc_executor.py:1063] RuntimeError: CPU Generator does not use offset
    (EngineCore pid=5) ERROR 11-29 09:22:18 [core.py:1512] EngineCore encountered a fatal error.
    ...
    (EngineCore pid=5) ERROR 11-29 09:22:18 [core.py:1512] RuntimeError: Worker failed with error 'CPU Generator ...
"""

import re
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

# Bytes to read from the end of a log: one traceback of a core and of each of its workers takes about 20 KB.
LAST_BYTES = 2 << 20
LONGEST = 300  # characters of a message

_PROCESS = re.compile(r"^\((?P<name>[^()]*?) ?pid=(?P<pid>\d+)\) ?")
_LOGGED = re.compile(r"^(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?")
_TRACEBACK = "Traceback (most recent call last):"
# The line after a traceback's frames; frames are indented.
_EXCEPTION = re.compile(r"^(?:\w+\.)*(?P<kind>\w+)(?:: (?P<text>.*))?$")
_PASSED_ON = re.compile(r"Worker failed with error '(?P<text>.*)', please check", re.DOTALL)
_WORKER_ENDED = re.compile(r"Worker proc (?P<name>\S+) died unexpectedly(?: \(exit code: (?P<code>-?\d+)\))?")
_FATAL = re.compile(r"EngineCore (encountered a fatal error|failed to start)")
# Logged by a core whose worker did not start, and by that worker; the worker's own error follows the second.
_NO_WORKER, _WORKER_FATAL = "WorkerProc initialization failed", "WorkerProc failed to start"


@dataclass(frozen=True)
class _Line:
    pid: int | None
    text: str


def cause_of_death(log: Path, start: int, pids: Collection[int] | None, exit_code: int | None) -> str | None:
    """Why an engine died, in one line; None if neither its log nor its exit code shows it.

    start: byte offset in the log at which the engine started. pids: its processes, if known; lines of others are
    skipped. exit_code: of the engine's core, negative for a signal as in Python; None if it is not known.
    """
    lines = _lines(log, start, pids)
    fatal = next((n for n, line in enumerate(lines) if _FATAL.search(line.text)), len(lines))
    # A killed worker counts only before the fatal error: after it, the core ends its workers itself.
    return _worker_ended(lines[:fatal]) or _raised(lines, fatal) or ended(exit_code, "its process")


def ended(exit_code: int | None, who: str) -> str | None:
    """How a process ended, as text; None if the exit code is unknown or 0. who: the sentence's subject."""
    if not exit_code:
        return None
    if exit_code > 0:
        return f"{who} ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (by the system if memory ran out)" if name == "SIGKILL" else ""
    return f"{who} was killed by {name}{hint}"


def _lines(log: Path, start: int, pids: Collection[int] | None) -> list[_Line]:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        process = _PROCESS.match(line)
        pid = int(process["pid"]) if process else None
        if pids is None or pid in pids:
            rest = line[process.end() :] if process else line
            lines.append(_Line(pid, _LOGGED.sub("", rest)))
    return lines


def _raised(lines: list[_Line], begin: int) -> str | None:
    """The error that ended the core, or the worker's error that it passed on. begin: index of the core's fatal line."""
    if begin == len(lines):
        return None
    first = _first_error(lines, begin)
    if first is None:
        return None
    text = first["text"] or ""
    if text.startswith(_NO_WORKER):
        worker = next((n for n, line in enumerate(lines[:begin]) if _WORKER_FATAL in line.text), None)
        return _text_of((_first_error(lines, worker) if worker is not None else None) or first)
    match = _PASSED_ON.search(text)
    if match is None:
        return _text_of(first)
    # The worker's own log also has the error's class.
    passed_on, core = match["text"], lines[begin].pid
    errors = [_EXCEPTION.match(line.text) for line in lines[:begin] if line.pid != core]
    same = [
        error for error in errors if error and passed_on and (error["text"] or "").startswith(passed_on.splitlines()[0])
    ]
    return _text_of(same[-1]) if same else _cut(passed_on)


def _first_error(lines: list[_Line], begin: int) -> re.Match[str] | None:
    """The first error after line `begin` from the process that wrote that line; in a chain of errors, the cause."""
    following = [line.text for line in lines[begin + 1 :] if line.pid == lines[begin].pid]
    if _TRACEBACK not in following:
        return None
    traceback = following[following.index(_TRACEBACK) + 1 :]
    return next((_EXCEPTION.match(text) for text in traceback if text and not text[0].isspace()), None)


def _text_of(error: re.Match[str]) -> str:
    return _cut(error["kind"] + (f": {error['text']}" if error["text"] else ""))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _worker_ended(lines: list[_Line]) -> str | None:
    worker = next((match for line in lines if (match := _WORKER_ENDED.search(line.text))), None)
    if worker is None:
        return None
    return ended(int(worker["code"] or 0), "its worker") or "its worker ended"


def last_lines(log: Path, start: int, count: int = 12) -> str:
    """The last lines that are not blank of what was logged from byte `start` on, to end a message with."""
    try:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.strip()]
    return "; its last lines:" + "".join(f"\n  {line}" for line in said[-count:]) if said else ""
