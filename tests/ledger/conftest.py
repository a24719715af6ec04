from tests.batch.stores import place, s3_place, s3_url

__all__ = ["place", "s3_place", "s3_url"]
