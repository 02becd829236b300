"""tests/claims: what it measures, how it judges, and that every experiment runs."""
import re

import numpy as np
import pytest
import torch
from claims import lab, report, segmentation
from PIL import Image
from test_seg import LightBlock
from torch import nn

import seg

def test_period_2_sees_a_checkerboard_and_nothing_smooth():
    y = torch.full((2, 3, 96, 96), 0.5)
    h, w = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    board, stripes = (10 / 255 * (-1.0) ** t for t in (h + w, w))
    for pattern in (board, stripes):
        assert lab.period_2(y + pattern, y) == pytest.approx(10, rel=0.01)
    slow = 10 / 255 * torch.sin(h / 8)
    assert lab.period_2(y + slow, y) < 0.01 and lab.period_2(y, y) == 0


def test_flat_measures_a_net():
    class Uneven(nn.Module):
        def forward(self, x):
            out = torch.zeros(*x.shape[:2], 160, 160) + x[..., :1, :1]
            out[..., ::2] += 4 / 255
            return out
    assert lab.flat(Uneven()) == pytest.approx(2, rel=0.01)  # 4 in every second column: +-2
    assert lab.flat(nn.Upsample(scale_factor=2)) < 1e-4


def test_iou_near_the_border():
    truth = np.zeros((40, 40), np.uint8)
    truth[10:30, 10:30] = 1
    pred = truth.copy()
    pred[18:22, 18:22] = 0  # a hole in the middle, more than 3 px from the border
    photo, mask = Image.new("RGB", (40, 40)), Image.fromarray(truth)

    def iou(mask):
        return seg.evaluate(lambda photo: pred, [(photo, mask)], ["not", "it"])["mean IoU"]
    assert iou(mask) == pytest.approx((384 / 400 + 1200 / 1216) / 2)
    assert iou(segmentation.near(mask, 3)) == 1
    pred[10, 10:30] = 0
    assert iou(segmentation.near(mask, 3)) < 0.98


YES, OPPOSITE = ([1, 1.1, 0.9], [2, 2.2, 1.9], "lower"), ([1, 1.1, 0.9], [2, 2.2, 1.9], "higher")
UNCLEAR = [2, 2.1, 0.8], [1, 1.1, 0.9], "higher"


@pytest.mark.parametrize("row, word", [
    (YES, "yes"), (OPPOSITE, "opposite"), (UNCLEAR, "unclear"),
    (([2, 2.2, 1.9], [1, 1.1, 0.9], "higher"), "yes"),
    (([1.01, 1.01, 3], [1, 1, 1], "higher"), "unclear"),  # in each seed, but by chance as well
    (([2, 2], [1, 1], "higher"), "unclear"),  # two seeds are not enough
    (([1, 1, 1], [1, 1, 1], "lower"), "unclear"), (([1, 1], [1, 1], "same"), "yes"),
    (([1, 1], [1, 2], "same"), "opposite"), (([10, 10], [11, 9], "time"), "yes"),
    (([10, 10], [13, 12], "time"), "no")])
def test_verdict(row, word):
    assert report.verdict(*row) == word


def test_summary():
    assert report.summary({"a": YES, "b": YES}) == "holds"
    assert report.summary({"a": OPPOSITE, "b": UNCLEAR}) == "does not hold: opposite for a"
    assert report.summary({"b": UNCLEAR}) == "unclear"
    assert report.summary({"a": OPPOSITE, "b": YES}) == "holds only for b"
    equal, longer = ([10, 10], [11, 9], "time"), ([10, 10], [20, 20], "time")
    assert report.summary({"a": YES, "seconds": equal}) == "holds"
    assert report.summary({"a": YES, "seconds": longer}) == "unclear: the times were not equal"


def test_no_effect_seldom_says_yes():
    rng = np.random.default_rng(0)
    words = [report.verdict([*rng.normal(size=3)], [*rng.normal(size=3)], "lower")
             for _ in range(2000)]
    assert 0.03 < words.count("yes") / 2000 < 0.07


def test_the_split_has_no_group_on_both_sides_and_differs_by_seed():
    data = lab.SimpleNamespace(groups={f"car {n}": [(n, 0), (n, 1)] for n in range(10)})
    kept = []
    for seed in (0, 1):
        train, val = ({n for n, _ in side} for side in segmentation.split(data, seed))
        assert len(train) == 8 and len(val) == 2 and not train & val
        kept.append(val)
    assert not kept[0] & kept[1]


def test_steps_that_take_as_long_even_after_a_stall():
    def seconds(n):
        return 3 + 0.5 * n
    n, a_step = lab.steps_in(20, seconds)
    assert n == 34 and a_step == pytest.approx(0.5) and seconds(n) == 20
    stalled = iter([4, 100, 11, 4])  # to warm up, 4 steps, 16 steps, 2 steps
    n, _ = lab.steps_in(20, lambda n: next(stalled))
    assert 34 < n < 100


def test_an_unknown_claim():
    with pytest.raises(SystemExit, match="no claim nonsense: there are icnr"):
        report.main(["nonsense"])


def test_every_experiment_runs(claims_output):
    """On a hundredth of the steps and the data: numbers for all, which say nothing."""
    for name, claim in report.CLAIMS.items():
        block = re.search(rf"^\d+ {name}: {re.escape(claim.__doc__)} .*?data, \d+ s: (.*?)$",
                          claims_output, re.M | re.S)
        assert block, name
        assert re.match("holds|unclear|does not hold", block[1]), name
        assert re.search(r"^\|.*±.*±.*\|", block[0], re.M), name


if __name__ == "__main__":  # what claims_output is made of
    segmentation.seg.BasicBlock = LightBlock
    report.main(["--seeds", "1", "--fraction", "0.01"])
