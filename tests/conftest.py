"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's affair, not the code's: a busy one must not fail a property.
settings.register_profile("poplin", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("poplin")
