import os
import signal
import subprocess
import sys

from poplin.lab.isolation import ProcessIdentity, identify, read_identity


def test_a_process_is_identified_until_it_ends():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        identity = identify(child.pid)
        assert identity == read_identity(child.pid)
        assert identity is not None
        assert identity.pid == child.pid
        assert identity.lives()
        assert not ProcessIdentity(child.pid, identity.started - 1).lives(), "another life of that number"
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not identity.lives(), "a zombie is dead"
        child.wait()
        assert identify(child.pid) is None
        assert read_identity(child.pid) is None


def test_a_programs_name_may_hold_what_separates_fields(tmp_path):
    program = tmp_path / ") 1 ("
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        identity = identify(child.pid)
        child.kill()
    assert identity is not None
    assert identity.pid == child.pid
    assert identity.started > 0
