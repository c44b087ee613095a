"""Transactions on TiKV."""
