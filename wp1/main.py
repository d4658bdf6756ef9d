"""The entry point: compose, check, run, publish. What each word of the configuration means is in conf/."""

import logging
import os
import re
import shutil
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wp1 import __version__
from wp1.config import checks, schema
from wp1.core import command, locks, redaction
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.identity import RUN_ID, new_run_id, new_sweep_id
from wp1.core.paths import CONF, project_root, reports_of
from wp1.core.run_files import METADATA
from wp1.runner import resume
from wp1.sweep.callbacks import failed_elsewhere, sweep_began, sweep_closed
from wp1.sweep.launcher import engines_of_sweep

schema.register()
OmegaConf.register_new_resolver("wp1_run_id", new_run_id, use_cache=True)
# Kept with a configuration and the copies that Hydra makes of it: one id for all jobs of a sweep.
OmegaConf.register_new_resolver("wp1_sweep_id", new_sweep_id, use_cache=True)
OmegaConf.register_new_resolver("wp1_doubling", schema.doubling)
OmegaConf.register_new_resolver("wp1_root", lambda: str(project_root()))


# What went wrong in each job of this process. Kept here and not raised through Hydra, which would print more lines
# about it, and in a sweep drop the later jobs' results.
_failures: list[BaseException] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(composed: DictConfig) -> WP1Error | None:
    """One run of what Hydra composed. Returns what went wrong, which Hydra passes on to `wp1.sweep.callbacks`."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        _run(composed, run_dir)
        return None
    except ConfigError as caught:
        error: WP1Error = caught
        discard_if_empty(run_dir)
    except WP1Error as caught:
        error = caught
    except Exception as caught:
        logging.getLogger(__name__).exception("not foreseen")
        where = f"traceback in {run_dir / 'wp1.log'}"
        error = WP1Error(f"{type(caught).__name__}: {schema.one_line(str(caught))} ({where})")
    number = "" if (sweep := _sweep()) is None else f"job {sweep['job']}: "
    _failures.append(type(error)(f"{number}{error}"))
    return error


def _run(composed: DictConfig, run_dir: Path) -> None:
    """Raises ConfigError for bad input, WP1Error for a run that failed, KeyboardInterrupt for one that was stopped."""
    cfg = schema.resolve(composed)
    checks.check(cfg)
    checks.check_overrides(cfg, list(HydraConfig.get().overrides.task))
    from wp1.runner.console import Screen
    from wp1.runner.run import run
    from wp1.tracking.mlflow_store import check_uri, publish_or_say

    if cfg.tracking.enabled:
        check_uri(cfg.tracking.uri, Path(cfg.root))
    resuming = cfg.resume is not None and METADATA.at(run_dir).is_file()
    if resuming:
        resume.check_same(cfg, run_dir)
    cfg.resume = None
    run_id = run_dir.name if RUN_ID.fullmatch(run_dir.name) else new_run_id()
    with locks.written(run_dir), Screen() as screen:
        if resuming and resume.is_complete(run_dir, reports_of(run_dir, cfg)):
            screen.say(f"{run_dir} is complete: nothing is left to measure")
            return
        if (why := schema.same_tokens_aside(composed)) is not None:
            screen.say(f"experiment.same_tokens is left aside: {why}")
        outcome = run(cfg, run_dir, run_id, screen, _sweep(), engines_of_sweep(), resuming)
        published = publish_or_say(run_dir, cfg.tracking, screen) if cfg.tracking.enabled else None
        screen.end(outcome, published)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.status != "completed":
        raise WP1Error(outcome.reason or "the run failed")


def discard_if_empty(run_dir: Path) -> None:
    """Removes the folder of a run that never began; one with anything but logs in it stays."""
    if run_dir.is_dir() and all(file.name in ("wp1.log", "engine.log") for file in run_dir.iterdir()):
        shutil.rmtree(run_dir)


@locks.command()
def main() -> None:
    """`python -m wp1` and `wp1`. Exit codes: 0 done, 1 a run failed, 2 bad input, 130 interrupted."""
    # Hydra then hands us its errors, which we say in one line, instead of printing them over several.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        check_options(sys.argv[1:])
        words = resume.arguments(sys.argv[1:])
    except ConfigError as error:
        _leave(2, f"error: {error}")
    sys.argv[1:] = [schema.with_plus(word) for word in words]
    _stop_on_signals()
    try:
        with sweep_closed():
            _job()
    except KeyboardInterrupt:
        _leave(130, "interrupted; what was measured is kept")
    except BrokenPipeError:  # nobody reads what is printed
        raise
    except Exception as error:
        # Jobs keep their errors to themselves (`_failures`), so this is Hydra's, composing them, or a launcher's.
        if sweep_began() and not _is_bad_input(error):
            _tell_failures()
            _leave(1, f"failed: {type(error).__name__}: {schema.one_line(str(error))} (of hydra/launcher or sweeper)")
        _leave(2, f"error: {hydra_message(error)}")
    _leave(_tell_failures())


def _is_bad_input(error: Exception) -> bool:
    """Whether an error that ended a sweep is of what was typed: else a launcher or sweeper has failed."""
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError, ConfigError)):
        return True
    # Composing, Hydra also raises errors of other kinds: it asserts where a part without keys is given one.
    return any(frame.name == "load_sweep_config" for frame in traceback.extract_tb(error.__traceback__))


def _tell_failures() -> int:
    """Says what went wrong in each job, and returns the exit code: of several kinds a failed run's, but for Ctrl-C."""
    code = 0
    interrupted = False
    for error in [*_failures, *failed_elsewhere()]:
        if isinstance(error, KeyboardInterrupt):
            interrupted = True
            continue
        bad_input = isinstance(error, ConfigError)
        print("error:" if bad_input else "failed:", redaction.text(str(error)), file=sys.stderr)
        code = code if code == 1 else 2 if bad_input else 1
    if interrupted:
        print("interrupted; what was measured is kept", file=sys.stderr)
    return 130 if interrupted else code


def check_options(words: list[str]) -> None:
    """Raises ConfigError for options that Hydra does not have, or not so: it would print its usage, over many lines."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see python -m wp1 --hydra-help")

    parser = get_args_parser()
    parser.error = refuse
    for action in parser._actions:
        if "--version" in action.option_strings:
            # Hydra's would print Hydra's own.
            action.version = f"wp1 {__version__}"  # type: ignore[attr-defined]
    known, unknown = parser.parse_known_args(words)
    for word in unknown:
        if not word.startswith("-"):
            # argparse takes what is no option from one place alone.
            raise ConfigError(f"{word} stands apart from other settings: name all of them before the options, or after")
        if "=" in word:
            raise ConfigError(f"unknown option {word}: settings have no dashes before them, as {word.lstrip('-')}")
        refuse(f"unknown option {word}")
    for word in known.overrides:
        if word.lstrip("+~").startswith("="):
            raise ConfigError(f"{word} names no key: settings are key=value, see python -m wp1 --help")
        if "=" not in word and not word.startswith("~"):
            if word in command.NAMES:
                raise ConfigError(f"{word} is a command, not a setting: name it first, as in python -m wp1 {word} ...")
            raise ConfigError(f"{word} is no setting: those are key=value, see python -m wp1 --help")


def _sweep() -> dict[str, Any] | None:
    """Which job of which sweep this is, as it goes into run_metadata.json; None of a single run."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    overrides = redaction.words(word for word in hydra.overrides.task if not word.startswith("resume="))
    return {"name": Path(hydra.sweep.dir).name, "job": hydra.job.num, "overrides": overrides}


def _stop_on_signals() -> None:
    """SIGTERM and SIGHUP stop us as Ctrl-C does, also where no engine runs, so that a sweep is closed in MLflow.

    What nohup has us ignore stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def hydra_message(error: Exception) -> str:
    """Hydra's message in one line of ours: of an unknown key, Hydra says to do what wp1 refuses."""
    message = str(error)
    if key := re.search(r"Could not (?:override|append to config.*at) '([^']+)'", message):
        return schema.unknown_key_message(key[1])
    if option := re.search(
        r"Could not find '([^']+)/([^/']+)'\s*Available options in '[^']+':\s*(.*?)\s*Config search", message, re.DOTALL
    ):
        return f"{option[1]}={option[2]} does not exist: {option[1]} can be {', '.join(option[3].split())}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; runs land under root, set root=FOLDER to one that can be written"
    cause = str(error.__cause__ or "").splitlines()
    told = (schema.one_line(message) or type(error).__name__) + (f": {cause[0]}" if cause else "")
    given = [argument.removeprefix("++") for argument in sys.argv[1:] if "=" in argument]
    # Hydra does not always say which of them it means; "root" is also its word for the whole.
    keys = [argument.partition("=")[0] for argument in given]
    return told if any(key in told for key in keys if key != "root") else f"{told} (in {' '.join(given)})"


def _leave(code: int, message: str = "") -> NoReturn:
    """Ends the process, at once where engines ran in it.

    Everything is on disk and no engine lives by then. The interpreter's own way out then runs the clean-up of vLLM and
    ZeroMQ, which was seen to hang for more than half a minute after an engine had been ended by a signal.
    """
    if message:
        print(redaction.text(message), file=sys.stderr)
    if "vllm" not in sys.modules:
        sys.exit(code)
    logging.shutdown()
    with suppress(OSError):  # nobody reads it any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
