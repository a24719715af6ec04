"""The durable record of what was submitted, by a task, a batch or a command line, and what the next try makes of it."""
