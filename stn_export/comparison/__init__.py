"""Comparing numbers: tolerances, element-wise comparison, means with intervals."""
