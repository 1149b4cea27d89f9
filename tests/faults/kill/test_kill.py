"""A command that is killed leaves its old output or a new one, and the next run tidies up."""

import sys
from pathlib import Path

import pytest

from .commands import COMMANDS, WritingCommand
from .harness import kill_at_random_moments

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork and SIGKILL"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_killed_command_leaves_old_or_new(command: WritingCommand, tmp_path: Path) -> None:
    if command.name == "build":
        pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX, which builds without a GPU")
    # torch.export takes ten seconds a run.
    moments = 1 if command.name.startswith("export wav2vec") else 4
    outcome = kill_at_random_moments(command, tmp_path, moments=moments)
    assert outcome.half == []
    assert outcome.left_over == []
    assert outcome.old + outcome.new == moments
