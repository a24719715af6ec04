from tests.batch.stores import place, s3_place, s3_url
from tests.fakes import start
from tests.storage import bucket, s3_server, store

__all__ = ["bucket", "place", "s3_place", "s3_server", "s3_url", "start", "store"]
