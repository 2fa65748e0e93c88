"""Two processes train as one does: the same rows, loss, gradients and statistics, the same pseudo masks."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from hovernet_cyclic.training.processes import run_processes
from models.ranks import ALONE

REPOSITORY = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("in_ranks.py")


@pytest.fixture(scope="module")
def found(drawn_once, tmp_path_factory, cpu):
    """(what one process found, what each of two did), and the folder of their runs."""
    out = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(REPOSITORY))
        patched.setenv("OMP_NUM_THREADS", "1")
        assert run_processes([sys.executable, str(SCRIPT), str(drawn_once), str(out)], 2) == 0
    spec = importlib.util.spec_from_file_location("in_ranks", SCRIPT)
    in_ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(in_ranks)
    alone = in_ranks.everything(str(drawn_once), out, ALONE)
    shares = [dict(np.load(out / f"rank_{rank}.npz")) for rank in range(2)]
    return alone, shares, out


def of(values, prefix):
    chosen = {name: value for name, value in values.items() if name.startswith(prefix)}
    assert chosen
    return chosen


@pytest.mark.parametrize("name", ["rows.patches", "rows.images", "rows.hv"])
def test_the_rows_of_all_processes_are_the_batch_of_one(found, name):
    alone, shares, _ = found
    count = len(alone[name])
    assert count % 2 and [len(share[name]) for share in shares] == [count // 2 + 1, count // 2]
    for rank, share in enumerate(shares):
        np.testing.assert_array_equal(share[name], alone[name][rank::2])


@pytest.mark.parametrize("end", ["front", "back"])
def test_the_loss_is_that_of_the_whole_batch(found, end):
    alone, shares, _ = found
    for name, value in of(alone, f"{end}.").items():
        if not name.startswith((f"{end}.grad", f"{end}.buffer")):
            assert value.item() > 0
            for share in shares:
                assert share[name].item() == pytest.approx(value.item(), abs=1e-5), name


@pytest.mark.parametrize("end", ["front", "back"])
def test_gradients_are_those_of_the_whole_batch(found, end):
    """To float32's last digits where the network computes in float64, for in float32 they are noisy themselves."""
    alone, shares, _ = found
    for precision, tolerance in (("64", 1e-5), ("", 2e-2)):
        for name, value in of(alone, f"{end}{precision}.grad.").items():
            assert np.linalg.norm(value) > 0
            for share in shares:
                assert np.linalg.norm(share[name] - value) < tolerance * np.linalg.norm(value), name


@pytest.mark.parametrize("end", ["front", "back"])
def test_batch_norm_notes_the_statistics_of_the_whole_batch(found, end):
    alone, shares, _ = found
    for name, value in of(alone, f"{end}.buffer.").items():
        for share in shares:
            np.testing.assert_allclose(share[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_some_steps_later_losses_and_weights_still_agree(found):
    alone, shares, _ = found
    for share in shares:
        np.testing.assert_allclose(share["losses"], alone["losses"], rtol=2e-3)
    for name, value in of(alone, "taught.").items():
        np.testing.assert_array_equal(shares[0][name], shares[1][name], err_msg=name)
        assert np.abs(shares[0][name] - value).mean() < 1e-3 + 1e-3 * np.abs(value).mean(), name


def test_given_the_same_networks_pseudo_masks_and_scores_are_the_same(found):
    alone, shares, _ = found
    assert any(value.any() for name, value in of(alone, "mask.").items() if name.endswith("inst_map"))
    for share in shares:
        for name, value in (of(alone, "mask.") | of(alone, "score") | of(alone, "accuracy")).items():
            np.testing.assert_array_equal(share[name], value, err_msg=name)


def test_what_is_exchanged(found):
    alone, (first, second), _ = found
    for share in (alone, first, second):
        assert "".join(share["gathered"]) == "ABCDE" and list(share["any"]) == [True, False]
        assert share["mean"] == 1.0 and share["of none"] == 0.0
    assert "".join(first["to_lead"]) == "abcde" and not len(second["to_lead"])


def test_a_whole_run_leaves_one_product(found):
    *_, out = found
    files = [
        {str(path.relative_to(out / run)) for path in (out / run).rglob("*") if path.is_file()}
        for run in ("run_1", "run_2")
    ]
    alone, together = ({name for name in names if not name.startswith("tensorboard")} for names in files)
    assert alone == together and {"net.tar", "state.tar", "cycles.json", "cycle_1/gallery.png"} <= together
    assert len([name for name in files[1] if name.startswith("tensorboard")]) == 1, "one process writes"
