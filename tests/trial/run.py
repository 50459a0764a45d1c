"""The trial: damage everything that vqcomp reads, at random, and see what comes of it.

    python tests/trial/run.py --time 20m --jobs 2 --seed 7
    python tests/trial/run.py --only "zip: bits/7/1234"      one case again, as a failure's line names it

Prints a table of cases by kind and verdict, and the failures; exits with 1 if any came out silent, as a traceback or
as a hang. Needs POSIX.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

TRIAL = Path(__file__).resolve().parent
for _place in (TRIAL, TRIAL.parent, TRIAL.parent.parent):
    sys.path.insert(0, str(_place))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ["PYTHONWARNINGS"] = "ignore"  # those who are ended leave semaphores behind
os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (TRIAL, TRIAL.parent, TRIAL.parent.parent)))

from verdicts import FAILURES, Outcome, Verdict


class Trial:
    """Runs cases until the time is up: always of the kind that is furthest behind its share."""

    def __init__(self, seed: int, kinds: list[str], seconds: float, scratch: Path) -> None:
        from cases import SHARES

        self.seed, self.kinds, self.scratch = seed, kinds, scratch
        self.end = time.monotonic() + seconds
        self.shares = {kind: SHARES[kind] for kind in kinds}
        self.spent = dict.fromkeys(kinds, 0.0)
        self.started = dict.fromkeys(kinds, 0)
        self.counts: dict[str, Counter[Verdict]] = defaultdict(Counter)
        self.failures: dict[str, list[str]] = defaultdict(list)
        self.slowest = (0.0, "")
        self._lock = threading.Lock()

    def work(self) -> None:
        """What each thread does with a worker of its own."""
        from cases import LIMIT
        from pool import Worker

        worker = Worker(self.scratch)
        try:
            while time.monotonic() < self.end:
                with self._lock:
                    kind = min(self.kinds, key=lambda k: self.spent[k] / self.shares[k])
                    self.started[kind] += 1
                    seed = f"{kind}/{self.seed}/{self.started[kind]}"
                    self.spent[kind] += 0.01  # so that two workers do not take the same kind for the time of a case
                start = time.monotonic()
                outcome = worker.run(kind, seed, LIMIT)
                self.note(kind, seed, outcome, time.monotonic() - start)
        finally:
            worker.close()

    def note(self, kind: str, seed: str, outcome: Outcome, seconds: float) -> None:
        with self._lock:
            self.spent[kind] += seconds
            self.counts[kind][outcome.verdict] += 1
            self.slowest = max(self.slowest, (seconds, seed))
            if outcome.verdict in FAILURES:
                fault = f"{outcome.verdict.value}: {outcome.detail}"
                if fault not in self.failures:
                    print(f'{fault}\n    --only "{seed}"', flush=True)
                self.failures[fault].append(seed)

    def table(self) -> str:
        """Markdown."""
        head = ["kind", "cases", *(v.value for v in Verdict)]
        rows = [[k, sum(self.counts[k].values()), *(self.counts[k][v] for v in Verdict)] for k in self.kinds]
        rows.append(["all", *(sum(int(row[i]) for row in rows) for i in range(1, len(head)))])
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        return "\n".join(
            "| " + " | ".join(f"{c:,}" if isinstance(c, int) else c for c in line) + " |" for line in lines
        )


def seconds_of(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError("expected a time such as 90s, 20m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def main() -> int:
    from cases import KINDS, LIMIT

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--time", type=seconds_of, default="20m", help="such as 90s or 20m (default: 20m)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="default: at random; it is printed")
    parser.add_argument("--kinds", default="", help="only kinds whose name holds this")
    parser.add_argument("--only", metavar="CASE", help="run one case here, and show all of its traceback")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if options.kinds in kind]
    with tempfile.TemporaryDirectory(prefix="vqcomp-trial-") as scratch:
        if options.only:
            from pool import Worker

            kind = options.only.partition("/")[0]
            worker = Worker(Path(scratch))
            print(*worker.run(kind, options.only, LIMIT))
            worker.close()
            return 0
        print(f"seed {options.seed}", flush=True)
        trial = Trial(options.seed, kinds, options.time, Path(scratch))
        threads = [threading.Thread(target=trial.work) for _ in range(options.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"\n{trial.table()}\n\nthe slowest case took {trial.slowest[0]:.1f} s: {trial.slowest[1]}")
    for fault, seeds in sorted(trial.failures.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):6} x {fault}")
    return 1 if trial.failures else 0


if __name__ == "__main__":
    sys.exit(main())
