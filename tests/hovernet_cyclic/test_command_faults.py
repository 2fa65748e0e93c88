import pytest

import run_eval
import run_train
from hovernet_cyclic.command_faults import path_fault


def test_a_full_disk_is_told_as_one():
    assert path_fault(OSError(28, "No space left on device")).startswith("No space is left on the disk: free some")
    assert "for /data/net.tar:" in path_fault(OSError(28, "No space left on device", "/data/net.tar"))


def test_a_fault_of_a_path_names_it():
    assert path_fault(PermissionError(13, "Permission denied", "/data")).startswith("/data cannot be used (Permission")
    assert path_fault(OSError(5, "Input/output error")).startswith("A file could not be read or written to its end")


def test_a_reader_of_a_pipe_that_has_gone_is_no_fault():
    with pytest.raises(BrokenPipeError):
        path_fault(BrokenPipeError(32, "Broken pipe"))


@pytest.mark.parametrize("script", [run_eval, run_train])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--bogus"], "There is no option --bogus."),
        (["--seed=1", "--bogus=2"], "There is no option --bogus."),
        (["stray"], "Options are missing, or there are words that belong to none."),
        (["--seed"], "--seed requires argument"),
    ],
)
def test_a_wrong_command_line_is_told_what_is_wrong_and_the_usage(script, words, sentence, capsys):
    assert script.main(words) == 2
    said, usage, *_ = capsys.readouterr().err.splitlines()
    assert (said, usage) == (sentence, "Usage:")
