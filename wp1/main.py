"""The entry point: compose, check, run, publish. The configuration keys are explained in conf/."""

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
from wp1.core import command, locks, parts, redaction
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.identity import RUN_ID, new_run_id, new_sweep_id
from wp1.core.paths import CONF, project_root, reports_of
from wp1.core.run_files import ENGINE_LOG, LOG, METADATA
from wp1.runner import resume
from wp1.sweep.callbacks import failed_elsewhere, sweep_began, sweep_closed
from wp1.sweep.launcher import engines_of_sweep

schema.register()
OmegaConf.register_new_resolver("wp1_run_id", new_run_id, use_cache=True)
# Cached in the configuration and in Hydra's copies of it: all jobs of a sweep share one id.
OmegaConf.register_new_resolver("wp1_sweep_id", new_sweep_id, use_cache=True)
OmegaConf.register_new_resolver("wp1_doubling", schema.doubling)
OmegaConf.register_new_resolver("wp1_root", lambda: str(project_root()))


KEPT = "what was measured is kept"
# The errors of this process's jobs. They are collected rather than raised through Hydra, which would print several
# lines for each and, in a sweep, drop the results of later jobs.
_failures: list[BaseException] = []


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(composed: DictConfig) -> WP1Error | None:
    """Runs what Hydra composed. Returns the error, if any; Hydra passes it on to `wp1.sweep.callbacks`."""
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
        logging.getLogger(__name__).exception("unexpected error")
        log_note = f"traceback in {LOG.at(run_dir)}"
        error = WP1Error(f"{type(caught).__name__}: {parts.one_line(str(caught))} ({log_note})")
    number = "" if (sweep := _sweep()) is None else f"job {sweep['job']}: "
    _failures.append(type(error)(f"{number}{error}"))
    return error


def _run(composed: DictConfig, run_dir: Path) -> None:
    """Raises ConfigError for bad input, WP1Error if the run failed, KeyboardInterrupt if it was interrupted."""
    cfg = schema.resolve(composed)
    checks.check(cfg)
    checks.check_overrides(cfg, list(HydraConfig.get().overrides.task))
    from wp1.runner.console import Screen
    from wp1.runner.run import run
    from wp1.tracking.mlflow_store import publish_or_say
    from wp1.tracking.store import check_uri

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
            screen.say(f"experiment.same_tokens is turned off: {why}")
        outcome = run(cfg, run_dir, run_id, screen, _sweep(), engines_of_sweep(), resuming)
        published = publish_or_say(run_dir, cfg.tracking, screen) if cfg.tracking.enabled else None
        screen.end(outcome, published)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt
    if outcome.status != "completed":
        raise WP1Error(outcome.reason or "the run failed")


def discard_if_empty(run_dir: Path) -> None:
    """Removes the folder of a run that never began, that is, one that contains only logs."""
    if run_dir.is_dir() and all(file.name in (LOG.name, ENGINE_LOG.name) for file in run_dir.iterdir()):
        shutil.rmtree(run_dir)


def main() -> None:
    """`python -m wp1` and `wp1`."""
    _leave(command.exit_code(_main))


@locks.command()
def _main() -> int:
    # Makes Hydra raise its errors instead of printing them over several lines, so that we can report them in one.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    check_options(sys.argv[1:])
    args = resume.arguments(sys.argv[1:])
    sys.argv[1:] = [schema.with_plus(arg) for arg in args]
    find_packages(args)
    _stop_on_signals()
    try:
        with sweep_closed():
            _job()
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(KEPT) from stop
    except BrokenPipeError:  # the reader of our output has gone
        raise
    except Exception as error:
        # Jobs' own errors are in `_failures`, so this one came from Hydra composing a job, or from a launcher.
        if sweep_began() and not _is_bad_input(error):
            _report_failures()
            message = f"{type(error).__name__}: {parts.one_line(str(error))}"
            print(redaction.text(f"failed: {message} (in hydra/launcher or hydra/sweeper)"), file=sys.stderr)
            return command.FAILED
        raise ConfigError(hydra_message(error)) from error
    return _report_failures()


def _is_bad_input(error: Exception) -> bool:
    """Whether the error that ended a sweep is due to the command line, rather than to a launcher or sweeper."""
    if isinstance(error, (HydraException, OmegaConfBaseException, OSError, ConfigError)):
        return True
    # Hydra also raises other types while composing, such as AssertionError if a part without keys is given one.
    return any(frame.name == "load_sweep_config" for frame in traceback.extract_tb(error.__traceback__))


def _report_failures() -> int:
    """Prints each job's error and returns the exit code. Raises KeyboardInterrupt if a job was interrupted."""
    codes = []
    interrupted = False
    for error in [*_failures, *failed_elsewhere()]:
        if isinstance(error, KeyboardInterrupt):
            interrupted = True
            continue
        bad_input = isinstance(error, ConfigError)
        print("error:" if bad_input else "failed:", redaction.text(str(error)), file=sys.stderr)
        codes.append(command.BAD_INPUT if bad_input else command.FAILED)
    if interrupted:
        raise KeyboardInterrupt(KEPT)
    return command.worst(codes)


def find_packages(args: list[str]) -> None:
    """Makes packages next to --config-dir importable, so that it can name their classes, as examples/conf does."""
    folder = get_args_parser().parse_known_args(args)[0].config_dir
    if folder and (beside := str(Path(folder).resolve().parent)) not in sys.path:
        sys.path.append(beside)


def check_options(args: list[str]) -> None:
    """Raises ConfigError for options that Hydra does not accept. Hydra itself would print its whole usage text."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}: see python -m wp1 --hydra-help")

    parser = get_args_parser()
    parser.error = refuse
    for action in parser._actions:
        if "--version" in action.option_strings:
            # By default this prints Hydra's version.
            action.version = f"wp1 {__version__}"  # type: ignore[attr-defined]
    known, unknown = parser.parse_known_args(args)
    for arg in unknown:
        if not arg.startswith("-"):
            # argparse accepts positionals in one contiguous group only.
            raise ConfigError(f"{arg}: put all key=value settings together, before or after the options")
        if "=" in arg:
            raise ConfigError(f"unknown option {arg}: write settings without dashes, as in {arg.lstrip('-')}")
        refuse(f"unknown option {arg}")
    for arg in known.overrides:
        if arg.lstrip("+~").startswith("="):
            raise ConfigError(f"{arg} has no key: write settings as key=value, see python -m wp1 --help")
        if "=" not in arg and not arg.startswith("~"):
            if arg in command.NAMES:
                raise ConfigError(f"{arg} is a command, not a setting: put it first, as in python -m wp1 {arg} ...")
            raise ConfigError(f"{arg} is not a setting: write settings as key=value, see python -m wp1 --help")


def _sweep() -> dict[str, Any] | None:
    """The `sweep` entry of run_metadata.json: the sweep's name, job number and overrides; None for a single run."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN:
        return None
    overrides = redaction.words(word for word in hydra.overrides.task if not word.startswith("resume="))
    return {"name": Path(hydra.sweep.dir).name, "job": hydra.job.num, "overrides": overrides}


def _stop_on_signals() -> None:
    """Makes SIGTERM and SIGHUP act like Ctrl-C, even if no engine is running, so that a sweep is closed in MLflow.

    A signal that nohup ignores stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


def hydra_message(error: Exception) -> str:
    """Hydra's error as one line. For an unknown key it is our own text: Hydra suggests what wp1 refuses."""
    message = str(error)
    if key := re.search(r"Could not (?:override|append to config.*at) '([^']+)'", message):
        return schema.unknown_key_message(key[1])
    if option := re.search(
        r"Could not find '([^']+)/([^/']+)'\s*Available options in '[^']+':\s*(.*?)\s*Config search", message, re.DOTALL
    ):
        return f"{option[1]}={option[2]} does not exist: {option[1]} can be {', '.join(option[3].split())}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; runs are written under root, set root=FOLDER to a writable one"
    cause = str(error.__cause__ or "").splitlines()
    line = (parts.one_line(message) or type(error).__name__) + (f": {cause[0]}" if cause else "")
    settings = [argument.removeprefix("++") for argument in sys.argv[1:] if "=" in argument]
    # Hydra does not always name the setting it means. "root" proves nothing: Hydra uses it for the whole configuration.
    keys = [argument.partition("=")[0] for argument in settings]
    return line if any(key in line for key in keys if key != "root") else f"{line} (in {' '.join(settings)})"


def _leave(code: int) -> NoReturn:
    """Ends the process, skipping the interpreter's clean-up if engines ran in it.

    By now everything is on disk and no engine is alive. The clean-up of vLLM and ZeroMQ was seen to hang for more than
    half a minute after a signal had ended an engine.
    """
    if "vllm" not in sys.modules:
        sys.exit(code)
    logging.shutdown()
    with suppress(OSError):  # the reader may have gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
