"""Operators that submit jobs."""
