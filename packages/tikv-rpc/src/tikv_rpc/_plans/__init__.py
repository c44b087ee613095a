"""Plans: frozen objects that each know one thing about how an operation is done."""
