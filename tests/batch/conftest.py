from tests.batch.stores import place, s3_place, s3_url
from tests.fakes import start

__all__ = ["place", "s3_place", "s3_url", "start"]
