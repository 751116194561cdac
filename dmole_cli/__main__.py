"""`dmole` and `python -m dmole_cli`."""

from dmole_cli.cli.ending import run


def _command() -> None:
    # Imported here, where an interruption is handled already.
    from dmole_cli.commands.app import command

    command()


def main() -> None:
    """Entry point of `dmole`."""
    run(_command)


if __name__ == "__main__":
    main()
