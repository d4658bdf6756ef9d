"""The two ways a run ends early, each told to the user in one line."""

from collections.abc import Iterator
from contextlib import contextmanager


class WP1Error(Exception):
    """The run failed; what was measured before is kept. Exit code 1."""


class ConfigError(WP1Error):
    """The input is wrong: names the key or file and what to do. Raised before any engine starts. Exit code 2."""


def unforeseen(error: Exception) -> str:
    """An unexpected exception on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def unreadable(error: OSError, where: object) -> ConfigError:
    """A file or folder that the machine does not let us read, in one line; where: what was being read."""
    return ConfigError(
        f"{error.filename or where} cannot be read ({error.strerror or error}): ask for access to it, or name another"
    )


@contextmanager
def reading(where: object, advice: str = "") -> Iterator[None]:
    """Names the run's folder, `where`, in what goes wrong while it is read: a damaged folder can raise any error.

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
