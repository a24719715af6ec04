"""The only code that opens a socket: requests for workers, aiohttp for triggers, and the fetching of media."""
