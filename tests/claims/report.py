"""Runs each experiment with three seeds (of weights, crops and, for cars, the split) and judges it.

The data is generated, VGG is the included one. Where the environment variable LESSON_DATA
names a folder (from the project's root) with imagenet_sample/, style/, carvana/ and torch_home/,
each experiment runs on those too, and has columns of its own.

A row says "yes" if "with" differs from "without" as claimed in every seed, and the difference is
1.7 times its standard deviation over seeds (a one-sided t-test of three pairs at 5 %: of forty rows
without any effect, two would still say yes); "opposite" if the reverse is so; else "unclear".
A claim holds if all of its rows say yes, else only where they do; not, if none does.
"""
import argparse
import math
import os
import statistics
import time

import torch

import sr
from claims import ROOT, lab, segmentation, style_transfer, super_resolution

SOURCES = (super_resolution.CLAIMS | style_transfer.CLAIMS | segmentation.CLAIMS |
           super_resolution.LATER | segmentation.LATER)
CLAIMS = {function.__name__: function for function in SOURCES}


def verdict(with_, without, better):
    """Of one row, over seeds: yes, opposite or unclear; of equal times: yes or no."""
    if better == "time":  # within a sixth, in the mean: what clocks on a shared machine allow
        return "yes" if 6 / 7 < statistics.mean(with_) / statistics.mean(without) < 7 / 6 else "no"
    sign = 1 if better == "higher" else -1
    gain = [sign * (a - b) for a, b in zip(with_, without, strict=True)]
    if better == "same":
        return "yes" if all(abs(g) <= 1e-5 for g in gain) else "opposite"
    sure = len(gain) > 2 and abs(statistics.mean(gain)) > 1.7 * statistics.stdev(gain)
    if sure and min(gain) > 0:
        return "yes"
    return "opposite" if sure and max(gain) < 0 else "unclear"


def summary(rows):
    """{row: (with, without, better)} -> the claim's verdict, in words."""
    words = {what: verdict(*row) for what, row in rows.items()}
    if "no" in words.values():
        return "unclear: the times were not equal"
    words = {what: word for what, word in words.items() if rows[what][2] != "time"}
    yes = [what for what, word in words.items() if word == "yes"]
    opposite = [what for what, word in words.items() if word == "opposite"]
    if len(yes) == len(words):
        return "holds"
    if yes:
        return "holds only for " + "; ".join(yes)
    return "does not hold: opposite for " + "; ".join(opposite) if opposite else "unclear"


def cells(with_, without, better):
    """The columns of one row."""
    def mean(values, digits="#.4g"):
        spread = statistics.stdev(values) if len(values) > 1 else 0
        return f"{statistics.mean(values):{digits}} ± {spread:.1g}"

    ratio = statistics.mean(with_) / statistics.mean(without) if any(without) else math.nan
    difference = [a - b for a, b in zip(with_, without, strict=True)]
    return (f"{mean(with_):>16} |{mean(without):>16} |{ratio:>8.3g} |"
            f"{mean(difference, '+.2g'):>17} |{verdict(with_, without, better):>9} |")


def run(name, sets, seeds):
    """One claim on each data set: prints its rows, and a verdict each."""
    claim = CLAIMS[name]
    verdicts = []
    columns = []
    for real in sets:
        data = lab.material(real)
        start = time.perf_counter()
        results = [claim(data, seed) for seed in range(seeds)]
        duration = time.perf_counter() - start
        rows = {}
        for what, (*_, better) in results[0].items():
            with_, without, _ = zip(*(result[what] for result in results), strict=True)
            rows[what] = with_, without, better
        kind = "real" if real else "generated"
        verdicts.append(f"{kind} data, {duration:.0f} s: {summary(rows)}")
        columns.append([cells(*row) for row in rows.values()])
    number = [*CLAIMS].index(name) + 1  # as README numbers them
    print(f"\n{number} {name}: {claim.__doc__} ({SOURCES[claim]})")
    for what, *texts in zip(rows, *columns, strict=True):
        print(f"| {what:75} |" + "".join(texts))
    print(*verdicts, sep="\n", flush=True)  # as they come


def get_args(argv=None):
    parser = argparse.ArgumentParser(description="What the course claims, measured.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {' '.join(CLAIMS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each experiment")
    parser.add_argument("--fraction", type=float, default=1,
                        help="of steps, batches and data, for a quick look")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in CLAIMS]
    sr.check(not unknown, f"no claim {' '.join(unknown)}: there are {' '.join(CLAIMS)}")
    sr.check(args.seeds > 0 and args.fraction > 0, "--seeds and --fraction take more than 0")
    return args


def main(argv=None):
    args = get_args(argv)
    lab.fraction = args.fraction
    folder = os.environ.get("LESSON_DATA")
    if folder:
        missing = [name for name in lab.REAL if not (ROOT / folder / name).exists()]
        sr.check(not missing, f"LESSON_DATA: {ROOT / folder} has no {' '.join(missing)}")
        os.environ["TORCH_HOME"] = str(ROOT / folder / "torch_home")
    sets = [False, True] if folder else [False]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; mean ± standard "
          f"deviation of {args.seeds} seeds" + "; real data in the second columns" * bool(folder))
    columns = f"{'with':>16} |{'without':>16} |{'ratio':>8} |{'difference':>17} |{'as said':>9} |"
    print(f"| {'measured: with / without':75} |" + len(sets) * columns)
    start = time.perf_counter()
    for name in args.names or CLAIMS:
        run(name, sets, args.seeds)
    print(f"\n{(time.perf_counter() - start) / 60:.1f} min in all")
