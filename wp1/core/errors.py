"""The two ways a run ends early, each told to the user in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class WP1Error(Exception):
    """The run failed; what was measured before is kept. Exit code 1."""


class ConfigError(WP1Error):
    """The input is wrong: names the key or file and what to do. Raised before any engine starts. Exit code 2."""


def unforeseen(error: Exception) -> str:
    """Formats an unexpected exception on one line, such as one caused by a damaged folder."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def unreadable(error: OSError, where: object) -> ConfigError:
    """The error for a file or folder that cannot be read. where: named if the OSError has no file name."""
    return ConfigError(
        f"{error.filename or where} cannot be read ({error.strerror or error}): ask for access to it, or name another"
    )


@contextmanager
def reading(where: object, advice: str = "") -> Iterator[None]:
    """Context for reading a run's folder, which may be damaged in any way. where: the folder, named in errors.

    A PermissionError becomes a ConfigError, an unforeseen error a WP1Error that ends with `advice`.
    """
    try:
        yield
    except PermissionError as error:
        raise ConfigError(
            f"no access to {error.filename or where} ({error.strerror or error}): ask for it, or name another folder"
        ) from error
    except (WP1Error, OSError):
        raise
    except Exception as error:
        raise WP1Error(f"{where} is not a complete run folder ({unforeseen(error)}){advice}") from error
