"""The native operator's own threads (csrc/pool.cpp), which it has where PyTorch is not loaded: each test is a process
that answers with as many threads as it says, and compares with the answers of one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hf_xtc.native import library as native_library

pytestmark = pytest.mark.skipif(not native_library.variants(), reason="the native operator is not built")
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "minilm-3l-1bit-sst2"
START = f"""
import os, sys, threading, time
import numpy as np
from hf_xtc.runtime import Pipeline

texts = ["a joy from start to end", "dull", "the film is not bad at all " * 4] * 5
expected = Pipeline({str(EXAMPLE)!r}, threads=1).logits(texts)
pipe = Pipeline({str(EXAMPLE)!r}, threads=3)


def check():
    assert np.array_equal(pipe.logits(texts), expected)


def count():
    return len(os.listdir("/proc/self/task"))


"""


def run(script: str) -> None:
    environment = {
        **os.environ,
        "XTC_NATIVE": next(iter(native_library.variants())),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-c", START + textwrap.dedent(script) + "\nassert 'torch' not in sys.modules"]
    subprocess.run(command, env=environment, check=True, timeout=120)


def test_threads_live_as_long_as_their_caller():
    run(
        """
        before = count()
        check()
        assert count() == before + 2
        caller = threading.Thread(target=check)
        caller.start()
        caller.join()
        end = time.monotonic() + 30  # the thread itself ends a little after Python has joined it
        while count() != before + 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert count() == before + 2
        """
    )


def test_callers_at_once():
    run(
        """
        failed = []
        threading.excepthook = failed.append
        callers = [threading.Thread(target=lambda: [check() for _ in range(20)]) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not failed, failed
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own():
    run(
        """
        check()
        child = os.fork()
        if not child:
            try:
                check()
            except BaseException:
                os._exit(1)
            sys.exit(0 if count() == 3 else 2)
        assert os.waitpid(child, 0)[1] == 0
        check()
        """
    )


def test_fewer_threads_than_before_and_more():
    run(
        """
        for threads in (3, 1, 2, 5, 2):
            assert np.array_equal(Pipeline(pipe_folder, threads=threads).logits(texts), expected)
        """.replace("pipe_folder", repr(str(EXAMPLE)))
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_where_no_thread_can_be_had():
    """The caller then computes alone."""
    run(
        """
        import resource
        status = open("/proc/self/status").read()
        size = int(status.split("VmSize:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size + 7 * 2**20, -1))  # a thread's stack takes 8 MiB
        before = count()
        check()
        assert count() == before
        """
    )
