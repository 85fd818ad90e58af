"""How a command ends: its status, or 1 and one sentence."""

import pytest

from m3lib.errors import InputError, exit_status


def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("params.yaml", "seed: too large"), "error: params.yaml, seed: too large\n"),
        (PermissionError(13, "Permission denied", "data/a\n.json"), "error: data/a\\n.json: Permission denied\n"),
        (OSError("no more files"), "error: data: no more files\n"),
    ],
)
def test_an_input_error_or_a_fault_of_the_system_is_one_sentence(error, sentence, capsys):
    assert exit_status(lambda: fail(error)) == 1
    assert capsys.readouterr() == ("", sentence)


def test_the_status_of_a_command_that_ends_well_is_its_own():
    assert (exit_status(lambda: None), exit_status(lambda: 1)) == (0, 1)
    with pytest.raises(ZeroDivisionError):  # our own fault keeps its traceback
        exit_status(lambda: 1 // 0)
