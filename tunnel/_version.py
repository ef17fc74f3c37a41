"""The version, in the one place that the package, the wheel and `--version` read."""

__version__ = "0.1.0"
