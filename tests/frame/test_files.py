"""Files are complete or not there, each writer has its own, links are written through."""

import os
import subprocess
import sys
import time

import pytest

from orrery.files import is_gone, writer, written_atomically


def test_two_writers_of_one_file_do_not_meet_and_an_error_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    with written_atomically(path) as one, written_atomically(path) as two:
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    with pytest.raises(KeyError), written_atomically(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def test_what_a_dead_writer_left_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    path = tmp_path / "a.txt"
    code = (
        "import os; from orrery.files import written_atomically\n"
        "with written_atomically('a.txt') as part: part.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    elsewhere = tmp_path / ".a.txt.0123abcd-1-89abcdef.part"  # of another machine
    old = tmp_path / ".a.txt.0123abcd-2-89abcdef.part"
    for part in (elsewhere, old):
        part.write_text("half")
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    with written_atomically(path) as mine:
        mine.write_text("mine")
        with written_atomically(path) as other:
            other.write_text("other")
    assert path.read_text() == "mine" and set(tmp_path.iterdir()) == {path, elsewhere}
    assert not is_gone(writer()) and not is_gone("0123abcd-1")


def test_a_link_is_written_through_to_its_target(tmp_path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "a.txt", tmp_path / "there/b.txt"
    link.symlink_to(target)
    with written_atomically(link) as part:
        part.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"
