"""What the clients in front of the engine are made of: arguments, sessions, scans page by page, the blocking portal."""
