from tests.fakes import start

__all__ = ["start"]
