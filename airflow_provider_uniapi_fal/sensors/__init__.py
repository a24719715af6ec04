"""Waiting for a job."""
