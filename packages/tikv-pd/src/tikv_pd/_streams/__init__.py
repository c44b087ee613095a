"""Streams that many callers share: timestamps, Region queries, tokens, watches."""
