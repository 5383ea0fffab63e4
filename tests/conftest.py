"""No test fails because the machine was busy."""

from hypothesis import settings

settings.register_profile("poplin", deadline=None)
settings.load_profile("poplin")
