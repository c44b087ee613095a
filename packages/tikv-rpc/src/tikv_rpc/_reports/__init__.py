"""What is told of calls: to observers, in logs and counters."""
