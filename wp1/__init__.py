"""wp1 measures long-context serving on vLLM. Start with `python -m wp1 --help`."""

__version__ = "0.1.0"
