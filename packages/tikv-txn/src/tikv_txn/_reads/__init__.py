"""Reading at a timestamp: requests, what to do about locks in the way, and what need not be read again."""
