"""Why an engine died, from logs in vLLM's format."""

from pathlib import Path

import pytest

from wp1.serving.postmortem import cause_of_death, ended

WORKER = "(Worker pid=7) ERROR 11-29 09:26:01 [multiproc_executor.py:1063] "
CORE = "(EngineCore pid=5) ERROR 11-29 09:26:01 [core.py:1512] "
PASSED_ON = "RuntimeError: Worker failed with error '{}', please check the stack trace above for the root cause"
CLIENT = """(MainProcess pid=1) ERROR 11-29 09:26:01 [async_llm.py:906] AsyncLLM output_handler failed.
(MainProcess pid=1) ERROR 11-29 09:26:01 [async_llm.py:906] Traceback (most recent call last):
(MainProcess pid=1) ERROR 11-29 09:26:01 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore \
encountered an issue. See stack trace (above) for the root cause.
"""


def _raised(prefix: str, head: str, *errors: str) -> str:
    traceback = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    f()", "    ^^^"]
    lines = [head]
    for error in errors:
        lines += [*traceback, error, "", "The above exception was the direct cause of the following exception:", ""]
    return "".join(f"{prefix}{line}\n" for line in lines)


def _worker(error: str) -> str:
    return _raised(WORKER, "WorkerProc hit an exception.", error)


def _core(*errors: str) -> str:
    return _raised(CORE, "EngineCore encountered a fatal error.", *errors)


def _cause(folder: Path, text: str, pids: tuple[int, ...] | None = (5, 7), code: int | None = None) -> str | None:
    log = folder / "engine.log"
    log.write_text(text)
    return cause_of_death(log, 0, pids, code)


OFFSET = "CPU Generator does not use offset"
# A failed call that the engine survived.
SURVIVED = _worker("AttributeError: no such method") + "(EngineCore pid=5) INFO 11-29 09:26:00 [core.py:9] going on\n"
OTHER = _core("KeyError: 'another engine'").replace("pid=5", "pid=6")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (_worker(f"RuntimeError: {OFFSET}") + _core(PASSED_ON.format(OFFSET)) + CLIENT, f"RuntimeError: {OFFSET}"),
        (_core("ValueError: bad block", "RuntimeError: step failed") + CLIENT, "ValueError: bad block"),
        (_core("torch.OutOfMemoryError: CUDA out of memory. Tried"), "OutOfMemoryError: CUDA out of memory. Tried"),
        (_core("AssertionError"), "AssertionError"),
        (_core("queue.Empty"), "Empty"),
        (_raised(CORE, "EngineCore failed to start.", "ValueError: no room", "RuntimeError: x"), "ValueError: no room"),
        (
            _raised(WORKER, "WorkerProc failed to start.", "OSError: no weights")
            + _raised(CORE, "EngineCore failed to start.", "Exception: WorkerProc initialization failed due to an exc"),
            "OSError: no weights",
        ),
        (_core(PASSED_ON.format("gone from the log")), "gone from the log"),
        (SURVIVED + _worker("OSError: disk") + _core(PASSED_ON.format("disk")), "OSError: disk"),
        (OTHER + _core("KeyError: 'mine'"), "KeyError: 'mine'"),
        (
            "(EngineCore pid=5) ERROR 11-29 09:26:01 [multiproc_executor.py:316] Worker proc VllmWorker-0 died "
            "unexpectedly (exit code: -9), shutting down executor.\n" + _core("RuntimeError: Executor failed."),
            "its worker was killed by SIGKILL (by the system if memory ran out)",
        ),
    ],
)
def test_the_root_cause_is_found(tmp_path: Path, text: str, cause: str) -> None:
    assert _cause(tmp_path, text) == cause


def test_it_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    found = _cause(tmp_path, _core("ValueError: " + "x" * 5000))
    assert found is not None and len(found) == 300 and found.endswith("…")


def test_without_an_error_in_the_log_the_exit_code_counts(tmp_path: Path) -> None:
    assert _cause(tmp_path, CLIENT, code=-9) == "its process was killed by SIGKILL (by the system if memory ran out)"
    assert _cause(tmp_path, "", code=3) == "its process ended with exit code 3"
    assert _cause(tmp_path, "", code=None) is None
    assert cause_of_death(tmp_path / "no.log", 0, None, -11) == "its process was killed by SIGSEGV"
    assert ended(0, "it") is None


def test_lines_of_an_earlier_engine_are_ignored(tmp_path: Path) -> None:
    before = _core("ValueError: of the first")
    log = tmp_path / "engine.log"
    log.write_text(before + _core("ValueError: of the second"))
    assert cause_of_death(log, len(before), None, None) == "ValueError: of the second"
