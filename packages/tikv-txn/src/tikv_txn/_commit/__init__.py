"""Committing: what is sent, what is known after each answer, and what goes on in the background."""
