"""Versions of the libraries that compute a cell: another release may give other bytes."""

import functools
from importlib.metadata import PackageNotFoundError, version


@functools.cache  # a stage asks for each of its thousands of cells
def versions(*packages: str) -> dict[str, str]:
    """Installed version of each distribution, by name."""
    return {package: version(package) for package in packages}


def installed(package: str) -> bool:
    """Whether a distribution is there."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
