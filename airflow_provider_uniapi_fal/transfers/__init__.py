"""From a result to object storage."""
