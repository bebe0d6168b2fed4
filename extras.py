"""Optional packages: imported when they are asked for; an error names the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from .errors import UsageError


def import_extra(package: str, what: str) -> ModuleType:
    """The package ``package``, which ``what`` needs. Raises UsageError where it is not installed.

    The extra of this project that brings a package has the package's name.
    """
    try:
        return import_module(package)
    except ImportError:
        raise UsageError(
            f"{what} needs the package {package}", hint=f"pip install 'nemoconv[{package}]'"
        ) from None
