"""`dmole serve`: an HTTP service whose batches consist of requests with different experts."""
