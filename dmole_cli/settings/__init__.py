"""One declaration per setting: `dmole.toml`, command-line options, `--help` and artifact headers derive from it."""
