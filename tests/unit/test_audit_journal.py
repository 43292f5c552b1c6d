"""The audit log's journal: what was written is found again, whatever happened to the process, the disk or the file."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from citadel_llm.api.audit.journal import Journal, JournalError, Options, sync

SMALL = Options(segment_bytes=4096, spool_bytes=16384)


class Told(list):
    """A log: [(level, event, fields)]."""

    def __call__(self, level, event, **fields):
        self.append((level, event, fields))

    @property
    def events(self):
        return [event for _, event, _ in self]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def journal(tmp_path, told):
    """`journal()`: opened, again where it was; each is let go of at the end."""
    opened = []

    def made(options=SMALL, name="1"):
        opened.append(Journal.open(tmp_path, name, options, told))
        return opened[-1]

    yield made
    for one in opened:
        if one._fd >= 0:
            one.close()


def synced(journal):
    ticket = journal.begin_sync()
    if ticket is not None:
        sync(ticket)
        journal.end_sync(ticket)


def everything(journal, at_once=7):
    """[(sequence, payload)] of all that is there, which is done then."""
    synced(journal)
    found = []
    while batch := journal.read(at_once):
        found += [(entry.sequence, entry.payload) for entry in batch]
        journal.done(batch[-1].sequence, sum(entry.size_bytes for entry in batch))
    return found


def segments(folder):
    return sorted(path.name for path in folder.glob("*.journal"))


@pytest.mark.parametrize("gone", [0, 2, -1])
def test_a_segment_whose_file_was_removed_is_told_and_the_others_are_read(journal, tmp_path, told, gone):
    one = journal(Options(segment_bytes=4096))
    wanted = {n: b"record %d " % n + b"x" * 100 for n in range(1, 201)}
    for payload in wanted.values():
        one.append(payload)
    names = segments(tmp_path / "1")
    firsts = [*(int(name.removesuffix(".journal")) for name in names), 201]
    (tmp_path / "1" / names[gone]).unlink()
    lost = range(firsts[gone], firsts[gone + 1]) if gone >= 0 else range(firsts[-2], firsts[-1])
    found = everything(one)
    if gone == -1:
        assert found.pop() == (200, b""), "the end of what is lost"
    for n in (201, 202):
        wanted[n] = b"later"
        one.append(b"later")
    found += everything(one)
    assert found == [(n, payload) for n, payload in wanted.items() if n not in lost]
    assert told.events == ["audit_removed"]
    assert (one.pending_bytes, len(segments(tmp_path / "1"))) == (0, 1)


def test_all_of_a_journals_files_may_be_removed(journal, tmp_path, told):
    one = journal(Options(segment_bytes=4096))
    for _ in range(100):
        one.append(b"x" * 100)
    synced(one)
    for name in segments(tmp_path / "1"):
        (tmp_path / "1" / name).unlink()
    assert everything(one) == [(100, b"")]
    assert (one.done_to, one.pending_bytes) == (100, 0)
    one.append(b"later")
    assert everything(one) == [(101, b"later")]
    assert set(told.events) == {"audit_removed"}


def test_what_was_written_is_read_in_its_order_over_many_segments(journal, tmp_path):
    one = journal(Options(segment_bytes=4096))
    wanted = [(n + 1, b"record %d " % n + b"x" * (n % 300)) for n in range(500)]
    for _, payload in wanted:
        one.append(payload)
    assert len(segments(tmp_path / "1")) > 10
    assert everything(one) == wanted
    assert len(segments(tmp_path / "1")) == 1
    assert one.pending_bytes == 0


def test_nothing_is_read_before_it_is_on_the_disk(journal):
    one = journal()
    one.append(b"a")
    assert one.read(10) == []
    synced(one)
    assert [entry.payload for entry in one.read(10)] == [b"a"]


def test_a_journal_that_is_opened_again_goes_on_where_it_ended_and_reads_what_was_not_done(journal):
    one = journal()
    for n in range(30):
        one.append(b"%d" % n)
    mark = one.mark
    one.close()
    again = journal()
    again.append(b"new")
    assert again.mark == mark
    assert everything(again) == [*((n + 1, b"%d" % n) for n in range(30)), (31, b"new")]
    again.close()
    third = journal()
    third.append(b"last")
    assert everything(third)[-1] == (32, b"last")


def test_a_record_that_was_written_survives_the_processs_end_by_signal_9(journal, tmp_path):
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from citadel_llm.api.audit.journal import Journal, Options\n"
        "j = Journal.open(Path(sys.argv[1]), '1', Options(), print)\n"
        "for n in range(1000): j.append(b'%d' % n)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert everything(journal(Options())) == [(n + 1, b"%d" % n) for n in range(1000)]


@pytest.mark.parametrize("cut", [1, 5, 8, 9, 12])
def test_a_record_that_was_torn_is_cut_and_told_and_the_next_is_written_in_its_place(journal, tmp_path, told, cut):
    one = journal()
    one.append(b"whole")
    one.append(b"torn!")
    one.close()
    path = tmp_path / "1" / segments(tmp_path / "1")[0]
    os.truncate(path, path.stat().st_size - cut)
    again = journal()
    again.append(b"after")
    assert everything(again) == [(1, b"whole"), (2, b"after")]
    assert told.events == ["audit_torn"]


def test_damage_inside_a_segment_costs_what_follows_it_there_and_shows_as_a_gap(journal, tmp_path, told):
    one = journal()
    for n in range(200):
        one.append(b"%03d" % n + b"x" * 97)
    one.close()
    first = tmp_path / "1" / segments(tmp_path / "1")[0]
    data = bytearray(first.read_bytes())
    data[108 * 10 + 50] ^= 1  # in the eleventh record
    first.write_bytes(data)
    found = everything(journal())
    numbers = [sequence for sequence, _ in found]
    following = int(segments(tmp_path / "1")[-1][:20])
    assert numbers[:10] == list(range(1, 11))
    assert numbers[-1] == 200
    assert [payload for _, payload in found] == [b"%03d" % (n - 1) + b"x" * 97 for n in numbers]
    assert len(numbers) == 200 - (len(data) // 108 - 10) < 200 <= following + 199
    assert told.events == ["audit_damaged"]
    assert len(list((tmp_path / "1").glob("*.damaged"))) == 1


def test_damage_in_the_segment_that_is_written_ends_it(journal, tmp_path, told):
    one = journal(Options())
    for n in range(5):
        one.append(b"record %d" % n)
    path = tmp_path / "1" / segments(tmp_path / "1")[0]
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    assert everything(one) == [(1, b"record 0"), (5, b"")]
    assert (one.done_to, one.pending_bytes) == (5, 0)
    one.append(b"after")
    assert everything(one) == [(6, b"after")]
    assert told.events == ["audit_damaged"]


def test_what_is_lost_is_told_again_where_it_was_not_carried(journal, tmp_path):
    one = journal()
    for _ in range(3):
        one.append(b"record")
    synced(one)
    (tmp_path / "1" / segments(tmp_path / "1")[0]).unlink()
    assert [one.read(10) for _ in range(2)] == [[(3, b"", 0)], []]
    one.rewind()
    assert [one.read(10) for _ in range(2)] == [[(3, b"", 0)], []]
    one.done(3, 0)
    one.rewind()
    assert one.read(10) == []


def test_zeros_that_a_machines_end_left_behind_the_last_record_are_no_records(journal, tmp_path, told):
    one = journal()
    one.append(b"record")
    one.close()
    with (tmp_path / "1" / segments(tmp_path / "1")[0]).open("ab") as file:
        file.write(bytes(400))
    again = journal()
    again.append(b"after")
    assert everything(again) == [(1, b"record"), (2, b"after")]
    assert told == [
        ("warning", "audit_torn", {"file": str(next((tmp_path / "1").glob("*.journal"))), "cut_bytes": 400})
    ]


def test_zeros_in_a_segment_that_is_complete_are_damage(journal, tmp_path, told):
    one = journal()
    for _ in range(100):
        one.append(b"x" * 100)
    path = tmp_path / "1" / segments(tmp_path / "1")[0]
    with path.open("r+b") as file:
        file.seek(108 * 5)
        file.write(bytes(108 * 3))
    numbers = [sequence for sequence, _ in everything(one)]
    assert numbers[:5] == [1, 2, 3, 4, 5]
    assert numbers[5] == int(segments(tmp_path / "1")[0][:20]) or numbers[5] > 8
    assert numbers[-1] == 100
    assert told.events == ["audit_damaged"]


def test_it_is_full_at_its_bound_and_has_room_again_once_some_of_it_is_done(journal):
    one = journal()
    count = 0
    while not one.full:
        one.append(b"x" * 92)
        count += 1
    assert count == 164  # of 100 bytes each
    assert len(everything(one)) == 164
    assert not one.full


def test_without_a_database_the_oldest_records_make_room(journal):
    one = journal()
    removed = 0
    for n in range(1000):
        one.append(b"%0100d" % n)
        removed += one.trim()
    assert one.pending_bytes <= SMALL.spool_bytes
    found = everything(one)
    assert removed == 1000 - len(found)
    assert [int(payload) for _, payload in found] == list(range(removed, 1000))


def test_a_disk_that_takes_no_more_costs_no_record(journal, told):
    """A limit of the process' own stands for the disk's end: what write(2) says differs in one word."""
    one = journal(Options())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        for n in range(30):
            one.append(b"%0092d" % n)
        assert one.full
        assert one.waiting == 20
        one.retry()
        assert one.waiting == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one.retry()
    assert not one.full
    assert [int(payload) for _, payload in everything(one)] == list(range(30))
    assert told.events == ["audit_unwritable", "audit_writable"]


def test_half_a_record_at_the_disks_end_is_taken_back(journal, tmp_path):
    one = journal(Options())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, before[1]))  # one record and a half
        one.append(b"a" * 92)
        one.append(b"b" * 92)
        assert (tmp_path / "1" / segments(tmp_path / "1")[0]).stat().st_size == 100
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    one.retry()
    assert [payload[:1] for _, payload in everything(one)] == [b"a", b"b"]


def test_a_real_disk_that_is_full_refuses_and_takes_again(tmp_path, told):
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=True)
    try:
        one = Journal.open(folder, "1", Options(), told)
        for n in range(1000):
            one.append(b"%0192d" % n)
        assert one.full
        assert one.stalled == "No space left on device"
        written = 1000 - one.waiting
        subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
        one.retry()
        assert not one.full
        assert [int(payload) for _, payload in everything(one)] == list(range(1000))
        assert 0 < written < 1000
        one.close()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_two_processes_never_write_one_journal(journal, tmp_path, told):
    first, second = journal(), journal()
    assert (first.folder, second.folder) == (tmp_path / "1", tmp_path / "1.1")
    assert first.mark.chain != second.mark.chain
    assert Journal.adopt(first.folder, SMALL, told) is None
    first.close()
    adopted = Journal.adopt(first.folder, SMALL, told)
    assert adopted is not None
    adopted.close()


def test_a_journal_that_was_carried_is_removed_with_its_folder_and_one_that_was_not_stays(journal, tmp_path):
    one, two = journal(name="1"), journal(name="2")
    for one_of in (one, two):
        one_of.append(b"a")
    everything(one)
    one.close(remove=True)
    two.close(remove=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2"]


def test_what_the_database_refused_stays_beside_it(journal, tmp_path):
    one = journal()
    one.append(b"a")
    everything(one)
    one.reject({"sequence": 1, "why": "it would not"})
    one.close(remove=True)
    assert (tmp_path / "1" / "rejected").read_text() == '{"sequence":1,"why":"it would not"}\n'


def test_a_folder_that_cannot_be_used_is_told_by_name(tmp_path, told):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file"):
        Journal.open(tmp_path / "file", "1", SMALL, told)


def test_nothing_is_given_to_be_carried_before_the_disk_has_it_and_its_folder(journal, tmp_path, monkeypatch):
    """What fdatasync has not brought there may be gone with the machine, and would be missed in the chain."""
    on_disk, folders = {}, []
    datasync, fsync = os.fdatasync, os.fsync

    def brought(fd):
        datasync(fd)
        on_disk[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    def brought_folder(fd):
        fsync(fd)
        folders.append({path.name for path in (tmp_path / "1").glob("*.journal")})

    monkeypatch.setattr(os, "fdatasync", brought)
    monkeypatch.setattr(os, "fsync", brought_folder)
    one = journal()
    for number in range(100):
        one.append(b"record %d " % number + b"x" * 100)
        assert one.read(10) == [], "not synced"
    synced(one)
    paths = [tmp_path / "1" / name for name in segments(tmp_path / "1")]
    assert len(paths) > 2
    assert {path.stat().st_ino: path.stat().st_size for path in paths}.items() <= on_disk.items()
    assert folders[-1] == {path.name for path in paths}
    assert len(one.read(1000)) == 100


@pytest.mark.parametrize(
    ("names", "carried"),
    [
        (["lock", "chain", "00000000000000000001.journal"], False),
        (["lock", "chain", "rejected", "00000000000000000001.journal"], False),
        (["lock", "chain", "rejected"], True),
        (["lock", "chain", "00000000000000000001.damaged"], True),
        (["lock", "chain"], False),  # an empty one is to be removed
        (None, True),
    ],
)
def test_a_folder_in_which_only_what_is_for_people_is_left_is_not_carried_away_again(tmp_path, names, carried):
    folder = tmp_path / "3"
    if names is not None:
        folder.mkdir()
    for name in names or ():
        (folder / name).touch()
    assert Journal.is_carried(folder) is carried
