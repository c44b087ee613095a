"""What is between a request and one store: connections, streams, how it fares, and which replica is asked."""
