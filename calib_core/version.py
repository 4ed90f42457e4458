"""The one place that holds the version, and the versions of what results depend on."""

import platform

__version__ = "0.1.0"

DEPENDENCIES = ("numpy", "scipy", "torch", "transformers", "peft", "accelerate", "trl")
"""Packages whose version may change a figure; those of extras only if they are installed."""


def versions() -> dict[str, str]:
    """Versions of this package, Python and what figures depend on; nothing is imported for it."""
    from importlib import metadata  # noqa: PLC0415 - which is slow, and most programs never ask

    found = {"calib-core": __version__, "python": platform.python_version()}
    for name in DEPENDENCIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
