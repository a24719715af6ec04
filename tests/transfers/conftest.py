from tests.fakes import start
from tests.storage import bucket, s3_server, store

__all__ = ["bucket", "s3_server", "start", "store"]
