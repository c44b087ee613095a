"""Locks of other transactions: what they mean, what is asked about them, and how they are put away."""
