"""Versions of the libraries that compute a cell: another release may give other bytes."""

from importlib.metadata import version


def versions(*packages: str) -> dict[str, str]:
    """Installed version of each distribution, by name."""
    return {package: version(package) for package in packages}
