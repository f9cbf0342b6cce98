"""A tiny `hf-xtc compress` for the stress harnesses: its inputs, and a run in a forked process.

The fork saves the time of importing. It runs `hf_xtc.cli.main` with two things replaced: the clock, so that everything
published can be compared byte for byte, and the new process that measures the packed file, which is a fork, too. Each
run reports its phase through a pipe and counts its file operations.
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tqdm import tqdm
from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

import hf_xtc.runs.compress_run as compress_run
import hf_xtc.runs.finalize as outcome
import hf_xtc.runs.stage as stages
from hf_xtc.cli import main
from hf_xtc.distillation.cache import Teaching
from hf_xtc.distillation.cache import format as cache_format
from hf_xtc.training.trainer import XTCTrainer

WORDS = ["good", "great", "nice", "bad", "awful", "sad", "movie", "film", "plot", "is"]
VOCAB = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
ENDS = ("packing", "measuring", "card")
PHASES = (
    "start",
    *(f"teacher: {part}" for part in ("training", "checkpoint", "signing")),
    "cache",
    *(f"{stage}: {part}" for stage in ("reduced", "student") for part in ("training", "checkpoint", "signing")),
    *ENDS,
)


def make_inputs(folder: Path, rows: int = 64) -> None:
    """A random base encoder, and data files."""
    set_seed(0)
    shape = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 28}
    BertModel(BertConfig(vocab_size=len(VOCAB), max_position_embeddings=16, **shape)).save_pretrained(folder / "base")
    BertTokenizerFast(vocab=VOCAB, model_max_length=16).save_pretrained(folder / "base")
    chance = random.Random(0)
    for split, count in (("train", rows), ("validation", 16)):
        lines = ["text,label"]
        for _ in range(count):
            label = chance.choice([0, 1])
            words = chance.choices(WORDS[6:], k=4) + chance.choices(WORDS[3:6] if label else WORDS[:3], k=2)
            lines.append(f"{' '.join(words)},{('good', 'bad')[label]}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def command(inputs: Path, place: Path, **options: Any) -> list[str]:
    """The arguments of the run: its output folder and its teacher cache are in `place`."""
    chosen: dict[str, Any] = {
        "teacher": inputs / "base",
        "train_file": inputs / "train.csv",
        "validation_file": inputs / "validation.csv",
        "output_dir": place / "student",
        "teacher_cache": place / "cache",
        "keep_layers": 1,
        "fine_tune_epochs": 2,
        "num_train_epochs": 2,
        "reduction_epochs": 2,
        "fine_tune_learning_rates": 1e-3,
        "reduction_learning_rate": 1e-3,
        "selection_share": 0.25,
        "student_dropout": 0.1,
        "max_length": 16,
        "per_device_train_batch_size": 16,
        "logging_steps": 1000,
        "save_total_limit": 2,
        "disable_tqdm": True,
        **options,
    }
    words = [f"--{name}={value}" for name, value in chosen.items() if value is not None]
    return ["compress", "--fine_tune", "--use_cpu", *words]


@dataclass
class Watched:
    """A forked run: each phase it entered, with the seconds and file operations spent there."""

    pid: int
    pipe: int
    log: Path
    phase: str = "start"
    spent: dict[str, tuple[float, int]] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)
    _rest: bytes = b""

    def read(self, timeout: float | None) -> bool:
        """Reads the run's reports for this many seconds; false if the run has ended."""
        if not select.select([self.pipe], [], [], timeout)[0]:
            return True
        got = os.read(self.pipe, 65536)
        lines = (self._rest + got).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            operations, phase = line.decode().split(" ", 1)
            seconds, counted = self.spent.get(self.phase, (0.0, 0))
            now = time.monotonic()
            self.spent[self.phase] = seconds + now - self._since, counted + int(operations)
            self.phase, self._since = phase, now
        return bool(got)

    def seconds(self, phase: str) -> float:
        """Seconds that the run has spent in a phase, in total."""
        now = time.monotonic() - self._since if phase == self.phase else 0.0
        return self.spent.get(phase, (0.0, 0))[0] + now

    def kill(self) -> None:
        """Sends SIGKILL to the whole process group."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit status; for a signal its negative number."""
        while self.read(None):
            pass
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def start(
    words: list[str], log: Path, stop: tuple[str, int] | None = None, before: Callable[[], Any] = bool
) -> Watched:
    """Starts a run in a forked process, in its own process group.

    Args:
        words (`list[str]`): Of the command line, without the program.
        log (`Path`): File for its standard output and error.
        stop (`tuple[str, int]`, *optional*): A phase, and the number of the file operation there before which the run
            kills its own process group.
        before (`Callable`, *optional*): Called in the new process first.
    """
    pipe, inner = os.pipe()
    pid = os.fork()
    if pid:
        os.close(inner)
        with suppress(OSError):  # whoever of the two comes first
            os.setpgid(pid, pid)
        return Watched(pid, pipe, log)
    try:
        os.setpgid(0, 0)
        os.close(pipe)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        tqdm.set_lock(threading.RLock())  # the inherited one is shared with runs that were killed holding it
        _Reporter(inner, stop).install()
        before()
        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")


class _Reporter:
    """Inside the run: reports the phases, counts file operations, and ends the run before a given one."""

    def __init__(self, pipe: int, stop: tuple[str, int] | None):
        self.pipe, self.stop, self.count = pipe, stop, 0
        self.counts: Counter[str] = Counter()
        self.stack = ["start"]

    def install(self) -> None:
        sys.addaudithook(self.hear)
        cache_format.SHARD_BYTES = 20_000  # several shards even of so few rows
        stages.time = SimpleNamespace(perf_counter=lambda: 0.0)
        outcome.subprocess = SimpleNamespace(run=_forked)
        self.wrap(compress_run, "run_stage", lambda stage, run: f"{stage.name}: training")
        self.wrap(XTCTrainer, "_save_checkpoint", lambda *_: f"{self.stack[1].split(':')[0]}: checkpoint")
        self.wrap(stages, "_finish", lambda *_: f"{self.stack[1].split(':')[0]}: signing")
        self.wrap(Teaching, "_complete", lambda *_: "cache")
        for phase, name in zip(ENDS, ("write_packed", "packed_row", "write_card"), strict=True):
            self.wrap(outcome, name, lambda *_, phase=phase, **__: phase)

    def wrap(self, owner: Any, name: str, phase: Callable[..., str]) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            self.enter(phase(*args, **kwargs), 1)
            result = inner(*args, **kwargs)
            self.enter("", -1)  # a run that stops stays in the phase where it stopped
            return result

        setattr(owner, name, outer)

    def enter(self, phase: str, step: int) -> None:
        if step > 0:
            self.stack.append(phase)
        else:
            self.stack.pop()
        count, self.count = self.count, 0
        os.write(self.pipe, f"{count} {self.stack[-1]}\n".encode())

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_OPERATIONS:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        self.count += 1
        self.counts[self.stack[-1]] += 1
        if self.stop is not None and self.stop[0] == self.stack[-1] and self.counts[self.stack[-1]] >= self.stop[1]:
            os.killpg(0, signal.SIGKILL)


def _forked(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
    """Replaces `subprocess.run([python, "-m", "hf_xtc", ...])` by a fork, without importing again."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        os._exit(main(words[3:]))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return subprocess.CompletedProcess(words, code, "", "see the log")


def about() -> dict[str, Any]:
    """Facts about the machine and versions, for a results file."""
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
    from machine import facts

    packages = ("hf_xtc", "torch", "transformers", "accelerate", "safetensors")
    words = ["python", f"tests/stress/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return {**facts(torch.get_num_threads(), *packages), "command": " ".join(words)}


def tell(result: dict[str, Any], file: str | None) -> None:
    """Logs the results, and writes them to a file if one is given."""
    text = json.dumps(result, indent=2)
    print(text, file=sys.stderr, flush=True)
    if file is not None:
        Path(file).write_text(text + "\n", encoding="utf-8")
