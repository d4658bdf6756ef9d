"""`python -m wp1` and the command `wp1`: a run, or another command by its name, as in `wp1 report RUN_DIR`."""

import sys

from wp1.core import command


@command.guarded
def main() -> None:
    # Imported here so that Ctrl-C during the import is handled by `guarded`.
    if sys.argv[1:] and sys.argv[1] in command.NAMES:
        from importlib import import_module

        module = import_module(f"wp1.{sys.argv.pop(1)}")
        module.main()
    else:
        from wp1.main import main as run_main

        run_main()


# Spawned engine processes import this module again under another name.
if __name__ == "__main__":
    main()
