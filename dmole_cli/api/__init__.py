"""dmole in Python programs: `dmole_cli.open_run`."""
