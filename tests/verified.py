"""What `dmole verify` says about a run, in this process."""

from dmole_cli.artifacts.image_digests import ImageDigests
from dmole_cli.artifacts.run import Run
from dmole_cli.backbones.lazy_model import LazyModel
from dmole_cli.data.recorded import Recorded
from dmole_cli.data.tasks import Tasks
from dmole_cli.verification.directory import check_files, files_of_run
from dmole_cli.verification.record import check_record
from dmole_cli.verification.verify import inspect


def problems(run: Run) -> list[str]:
    """What `dmole verify` finds in the headers and files of a run."""
    recorded = Recorded.read(run.root)
    names = (*recorded.settings.tasks, *recorded.settings.unseen)
    data = Tasks([recorded.paths[name] for name in names], data_root=None, image_digests=ImageDigests(None))
    inspection = inspect(recorded.settings, data, LazyModel.of(recorded.settings), run)
    check_record(inspection, {})
    check_files(inspection, files_of_run(run))
    return [str(problem.error) for problem in inspection.problems]
