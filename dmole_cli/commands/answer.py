"""`dmole answer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dmole_cli.artifacts.kinds import D_MOLE
from dmole_cli.artifacts.usage import Usage
from dmole_cli.cli import console
from dmole_cli.cli.derive import HOW, MODEL, OUTPUT, WHAT
from dmole_cli.cli.shared_options import MethodOption
from dmole_cli.cli.workspace import Workspace
from dmole_cli.data.card import Generation

SETTINGS = (
    *(f"evaluate.{name}" for name in ("batch_size", "routing", "threshold_scale")),
    *MODEL,
    "data_root",
    "shared",
    "workers",
    "cuda_graphs",
)
WRITES = False


QuestionArgument = Annotated[
    str | None, typer.Argument(help="The whole question, as the model receives it.", metavar="QUESTION")
]
IMAGE = "Image file; repeatable. `<image>` in the question is the place of the next one."
ImageOption = Annotated[list[Path] | None, typer.Option(help=IMAGE, metavar="FILE", rich_help_panel=WHAT)]
FILE = "Answer the questions of a file, .jsonl or .parquet: each row has `question`, and `image` or `images`."
FileOption = Annotated[Path | None, typer.Option(help=FILE, metavar="FILE", rich_help_panel=WHAT)]
OUT = "File of the answers, .jsonl or .parquet; rows have the order and the keys of --file."
OutOption = Annotated[Path | None, typer.Option(help=OUT, metavar="FILE", rich_help_panel=OUTPUT)]
LENGTH = "Maximum number of tokens of an answer; by default that of the task card of its first expert."
LengthOption = Annotated[int | None, typer.Option(min=1, help=LENGTH, rich_help_panel=HOW)]


def run(
    work: Workspace,
    question: QuestionArgument = None,
    *,
    image: ImageOption = None,
    file: FileOption = None,
    out: OutOption = None,
    method: MethodOption = D_MOLE,
    max_new_tokens: LengthOption = None,
) -> None:
    """Answer one question about images, or a file of questions, with the experts that the routers choose."""
    if (question is None) == (file is None) or (file is None) != (out is None) or (file and image):
        raise typer.BadParameter("pass a QUESTION with its --image, or --file with --out")
    limits = Generation(max_new_tokens=max_new_tokens) if max_new_tokens else None
    if question is not None:
        _one(work, question, image or [], method, limits)
        return
    assert file is not None and out is not None
    from dmole_cli.data.questions import read_questions, write_answers
    from dmole_cli.stages.answer import answer_all

    questions = read_questions(file, out)
    replies = answer_all(questions, method, **work.parts, limits=limits, track=work.track)
    write_answers(out, questions, [reply.as_dict() for reply in replies])
    Usage(work.run.usage(method)).record([reply.experts for reply in replies])
    unknown = sum(not reply.experts for reply in replies)
    console.say(f"answer: wrote {out} ({len(replies):,} answers, {unknown:,} without an expert)")


def _one(work: Workspace, text: str, images: list[Path], method: str, limits: Generation | None) -> None:
    from dmole_cli.stages.answer import answer_one, answering, question

    sample = question(text, images)
    with answering(method, **work.parts) as (opened, _):
        reply = answer_one(sample, opened, limits=limits)
    Usage(work.run.usage(method)).record([reply.experts])
    if work.json:
        console.data(reply.as_dict())
    else:
        print(reply.answer)
