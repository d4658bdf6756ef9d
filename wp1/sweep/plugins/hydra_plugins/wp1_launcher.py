"""Where Hydra looks for launchers: in packages called hydra_plugins alone, of which many may be on Python's path."""

from wp1.sweep import launcher


class SharedEnginesLauncher(launcher.SharedEnginesLauncher):
    """`wp1.sweep.launcher` has it all; Hydra knows a launcher by the module in which its class is made."""
