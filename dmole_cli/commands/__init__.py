"""What the user types: signatures, help and exit codes; nothing heavy at module scope."""
