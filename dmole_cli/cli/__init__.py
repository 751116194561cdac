"""From a command line to a workspace: options derived from settings, lazily imported subcommands, messages, hints."""
