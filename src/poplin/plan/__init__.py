"""(desired, actual) -> ordered operations. Pure."""
