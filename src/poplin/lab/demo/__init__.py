"""A demonstration: an application in a lab, and what makes its pods reach each other."""
