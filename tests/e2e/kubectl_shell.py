"""kubectl in a lab as a person at a terminal uses it: a command line, and what is to be seen."""

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

TIMEOUT_S = 40


class Shell:
    """Runs command lines in `directory`, which holds its files; `namespace` is kubectl's default there."""

    def __init__(self, kubeconfig: str, directory: Path, namespace: str) -> None:
        self.directory = directory
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(directory / "kubeconfig"),
            "HOME": str(directory),
            "TERM": "xterm",
        }
        (directory / "kubeconfig").write_text(Path(kubeconfig).read_text())
        self(f"kubectl config set-context --current --namespace={namespace}", "modified")

    def file(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def __call__(self, line: str, *expected: str, given: str = "", code: int = 0) -> str:
        """Run a command line; its output has each of `expected` (regular expressions), in this order."""
        done = subprocess.run(
            ["sh", "-c", line],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=self.directory,
            env=self.environment,
        )
        shown = f"\n$ {line}\n{done.stdout}"
        assert done.returncode == code, f"{shown}ended with {done.returncode}, not {code}"
        position = 0
        for pattern in expected:
            found = re.compile(pattern, re.MULTILINE).search(done.stdout, position)
            assert found is not None, f"{shown}has no {pattern!r} after its first {position} characters"
            position = found.end()
        return done.stdout

    def until(self, line: str, *expected: str, within_s: float = 20) -> None:
        """Run a command line until its output is as expected."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                self(line, *expected)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    @contextmanager
    def running(self, line: str) -> Iterator["subprocess.Popen[str]"]:
        """A command that goes on meanwhile."""
        process = subprocess.Popen(
            shlex.split(line),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.directory,
            env=self.environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def read_line(self, process: "subprocess.Popen[str]", pattern: str) -> str:
        """The next line of a running command that has `pattern`."""
        assert process.stdout is not None
        deadline = time.monotonic() + TIMEOUT_S
        seen = ""
        while time.monotonic() < deadline:
            ready, _, _ = select.select([process.stdout], [], [], 1)
            if not ready:
                continue
            line = process.stdout.readline()
            seen += line
            if re.search(pattern, line):
                return line
            if not line:
                break
        raise AssertionError(f"no {pattern!r} in:\n{seen}")

    def terminal(
        self, line: str, script: Sequence[tuple[str, str | tuple[int, int]]], *, code: int = 0
    ) -> str:
        """Run a command line in a terminal of 40 x 120 characters and type into it.

        `script` is what to wait for, and what to type then or, as (rows, columns), the size to give the terminal.
        """
        child, master = pty.fork()
        if child == 0:
            os.chdir(self.directory)
            os.execvpe("sh", ["sh", "-c", f"stty rows 40 cols 120; exec {line}"], self.environment)
        output, position = "", 0
        try:
            for pattern, action in script:
                output = self._read_until(master, output, position, pattern)
                position = len(output)
                if isinstance(action, str):
                    os.write(master, action.encode())
                else:
                    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *action, 0, 0))
            output = self._read_until(master, output, position, None)
            _, status = os.waitpid(child, 0)
            child = 0
        finally:
            if child:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            os.close(master)
        assert os.waitstatus_to_exitcode(status) == code, output
        return output.replace("\r", "")

    def _read_until(self, master: int, output: str, position: int, pattern: str | None) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        while pattern is None or not re.search(pattern, output[position:]):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{output}"
            ready, _, _ = select.select([master], [], [], 1)
            if ready:
                data = b""
                with suppress(OSError):  # EIO: the command has ended
                    data = os.read(master, 4096)
                if not data:
                    assert pattern is None, f"no {pattern!r} in:\n{output}"
                    return output
                output += data.decode()
        return output
