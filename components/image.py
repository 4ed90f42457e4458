"""The container image that compiled components name: a compile-time setting."""

import os

from calib_core.version import __version__

IMAGE = os.environ.get("CALIB_IMAGE") or f"calib:{__version__}"
"""`$CALIB_IMAGE` where it is set when components are imported; else `calib:<package version>`."""
