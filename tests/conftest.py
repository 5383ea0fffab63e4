"""What holds for all tests."""

from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair, not the code's: a busy one must not fail a property.
settings.register_profile("poplin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("poplin")


def pytest_sessionfinish():
    """The directories that labs stand in are not needed without one; another checkout's lab keeps them."""
    with suppress(OSError):
        Path("/run/poplin/labs").rmdir()
        Path("/run/poplin").rmdir()
