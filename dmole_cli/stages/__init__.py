"""What each subcommand does: read artifacts, compute, write one artifact."""
