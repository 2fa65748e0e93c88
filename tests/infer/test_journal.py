import pytest

from infer.journal import CLUSTER, TILE, Journal, Key


def keys(count):
    return [Key(TILE, i // 3, i % 3) for i in range(count)]


def test_what_was_written_is_there_again(tmp_path):
    journal = Journal(tmp_path / "j", {"a": [1, 2]})
    for i, key in enumerate(keys(5)):
        journal.append(key, bytes([i]) * (100 * i))
    journal.append(Key(CLUSTER, 0, 0), b"cluster")
    journal.close()
    again = Journal(tmp_path / "j", {"a": (1, 2)})
    assert list(again) == [*keys(5), Key(CLUSTER, 0, 0)] and not again.started_over
    assert [again.read(key) for key in keys(5)] == [bytes([i]) * (100 * i) for i in range(5)]
    assert again.read(keys(5)[3], 10, 4) == b"\3" * 4
    assert keys(5)[2] in again and Key(CLUSTER, 1, 0) not in again
    again.remove()
    assert not (tmp_path / "j").exists()


def test_any_torn_end_costs_no_more_than_its_record(tmp_path):
    journal = Journal(tmp_path / "j", {})
    for i, key in enumerate(keys(3)):
        journal.append(key, bytes([65 + i]) * 40)
    journal.close()
    whole = (tmp_path / "j" / "records").read_bytes()
    size = len(whole) // 3
    for length in range(2 * size, 3 * size):
        (tmp_path / "j" / "records").write_bytes(whole[:length])
        torn = Journal(tmp_path / "j", {})
        assert list(torn) == keys(2)
        torn.append(keys(3)[2], b"C" * 40)
        torn.close()
        assert (tmp_path / "j" / "records").read_bytes() == whole
    (tmp_path / "j" / "records").write_bytes(whole[:-1] + b"?")  # of full length, but not what was written
    assert list(Journal(tmp_path / "j", {})) == keys(2)


def test_another_plan_starts_over(tmp_path):
    journal = Journal(tmp_path / "j", {"window": 1})
    journal.append(keys(1)[0], b"x")
    journal.close()
    other = Journal(tmp_path / "j", {"window": 2})
    assert other.started_over and list(other) == []
    other.close()
    (tmp_path / "j" / "plan.json").write_text("{")
    assert Journal(tmp_path / "j", {"window": 2}).started_over


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j", {})
    journal.append(keys(2)[0], b"first")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.append(keys(2)[1], b"second")
    assert list(journal) == keys(1)
    journal.append(keys(2)[1], b"second again")
    assert journal.read(keys(2)[1]) == b"second again" and journal.read(keys(2)[0]) == b"first"
    journal.close()
    assert list(Journal(tmp_path / "j", {})) == keys(2)


@pytest.mark.skipif(not __import__("os").path.exists("/dev/full"), reason="no /dev/full")
def test_a_disk_that_is_truly_full(tmp_path):
    journal = Journal(tmp_path / "j", {})
    journal.append(keys(2)[0], b"first")
    journal._file.close()
    journal._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115, PTH123
    with pytest.raises(OSError, match="No space"):
        journal.append(keys(2)[1], b"second")
    assert list(journal) == keys(1) and journal.read(keys(2)[0]) == b"first"
