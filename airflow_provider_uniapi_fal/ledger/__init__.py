"""The durable record of what was submitted, and what the next try makes of it."""
