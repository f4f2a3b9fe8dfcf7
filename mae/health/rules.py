"""Rules that find faults in a run's readings. Each states the source of its threshold.

A false alarm costs more than a late one, because after a false alarm nobody reads the next warning. So a finding needs
many readings, a cause that a config key can remove, and a size that noise does not reach. Runs of a few minutes get no
findings about time.
"""

from __future__ import annotations

import statistics
from typing import Any, Literal, NamedTuple, Optional

import numpy as np
from pydantic import BaseModel

from mae.config.sections import Config, PretrainConfig
from mae.runs.history import Past

RECENT = 20  # number of last readings that a rule about the current state uses
LOST_SECONDS = 60.0  # losses of less than a minute are not reported

Rows = list[dict[str, Any]]
Fault = tuple[str, str, dict[str, Any]]  # message, config key that helps, figures


class Finding(BaseModel, extra="forbid"):
    """A fault: when it occurred, its figures, and the config key that helps."""

    name: str
    about: Literal["loss", "speed"]
    message: str
    key: str  # of the config
    figures: dict[str, float]
    first_step: int
    last_step: int  # last step at which it was still found


class Band(BaseModel, extra="forbid"):
    """The range of the loss at this point in earlier runs of this recipe."""

    low: float
    high: float
    loss: float  # of this run
    first_epoch: float
    last_epoch: float
    origin: str


class Course(NamedTuple):
    """Readings as columns (N,) float64, with NaN where a value is missing."""

    config: Config
    step: np.ndarray
    epoch: np.ndarray
    loss: np.ndarray
    lr: np.ndarray
    grad_norm: np.ndarray
    overflows: np.ndarray
    seconds: np.ndarray  # of the interval
    step_seconds: np.ndarray
    data_wait: np.ndarray  # seconds
    device_wait: np.ndarray  # seconds
    data_lost: np.ndarray  # seconds of data_wait since the start

    def upto(self, count: int) -> Course:
        """Return the first `count` readings."""
        return Course(self.config, *(column[:count] for column in self[1:]))

    @property
    def warm(self) -> int:
        """The number of the first reading after the warm-up."""
        return int(np.searchsorted(self.epoch, self.config.recipe.warmup_epochs))

    @property
    def progress(self) -> float:
        """The completed share of the training."""
        return float(self.epoch[-1]) / self.config.recipe.epochs


def course(config: Config, lines: Rows) -> Course:
    """Return the readings of metrics.jsonl as columns."""

    def column(name: str) -> np.ndarray:
        return np.array([np.nan if line.get(name) is None else line[name] for line in lines], float)

    step, step_seconds = column("step"), column("step_seconds")
    seconds = np.diff(step, prepend=0) * step_seconds
    data_wait, device_wait = column("data_wait") * seconds, column("device_wait") * seconds
    epoch, loss, lr, grad_norm, overflows = map(column, ("epoch", "loss", "lr", "grad_norm", "overflows"))
    lost = np.nancumsum(data_wait)
    return Course(
        config, step, epoch, loss, lr, grad_norm, overflows, seconds, step_seconds, data_wait, device_wait, lost
    )


class RankCourse(NamedTuple):
    """The lines of one rank as columns (N,)."""

    step: np.ndarray
    waited: np.ndarray  # seconds that it waited for batches since the start
    late: np.ndarray  # seconds that it was later than the other ranks since the start, up to a constant
    took: np.ndarray  # seconds since the start
    host: str


def rank_course(lines: Rows) -> RankCourse:
    """Return the lines of metrics/rank_<n>.jsonl, at least one, as columns."""
    took = np.array([line["seconds"] for line in lines])
    waited = took * [line["data_wait"] for line in lines]
    for_ranks = np.array([line.get("rank_wait") for line in lines], float)
    late = np.where(np.isfinite(for_ranks), -for_ranks * took, waited)
    step = np.array([line["step"] for line in lines])
    return RankCourse(step, waited.cumsum(), late.cumsum(), took.cumsum(), lines[-1]["host"])


def look(
    c: Course, ranks: dict[int, RankCourse], past: list[Past], lost_seconds: float = LOST_SECONDS
) -> tuple[list[Finding], Optional[Band]]:
    """Return the findings of all rules at the last reading of a course, and the expected band there."""
    band, step = expected_band(c, past), int(c.step[-1])
    stuck = not_learning(c)
    rules: dict[str, Optional[Fault]] = {
        "data_starvation": data_starvation(c, lost_seconds),
        "slow_rank": slow_rank(c, ranks, lost_seconds),
        "not_learning": stuck,
        "plateau": plateau(c) if stuck is None else None,
        "exploding_gradient": exploding_gradient(c),
        "repeated_overflows": repeated_overflows(c),
        "loss_above_band": above_band(c, band),
    }
    found = []
    for name, fault in rules.items():
        if fault is not None:
            message, key, given = fault
            about: Literal["loss", "speed"] = "speed" if name in ("data_starvation", "slow_rank") else "loss"
            figures = {figure: round(float(value), 6) for figure, value in given.items()}
            place = {"first_step": step, "last_step": step}
            found.append(Finding(name=name, about=about, message=message, key=key, figures=figures, **place))
    return found, band


def data_starvation(c: Course, lost_seconds: float = LOST_SECONDS) -> Optional[Fault]:
    """The loop waited for batches in at least a fifth of the last RECENT intervals.

    With fast enough input the run would take four fifths of the time, which justifies a few more threads. A host that
    is ahead of its device waits for batches although the device does not. It then also waits for the device at each
    reading, for longer than one step. Such intervals are not counted.
    """
    timed = np.flatnonzero(np.isfinite(c.data_wait))[-RECENT:]
    if len(timed) < RECENT:
        return None
    took, waited = c.seconds[timed].sum(), c.data_wait[timed].sum()
    ahead = c.device_wait[timed].sum() > 1.5 * c.step_seconds[timed].sum()
    if waited < 0.2 * took or ahead or c.data_lost[-1] < lost_seconds:
        return None
    workers = c.config.data.workers
    return (
        f"the loop waited for batches {waited / took:.0%} of the time, {c.data_lost[-1]:,.0f} s so far: raise "
        f"data.workers ({workers}); if no core is free, store smaller images (data.short_side)",
        "data.workers",
        {"data_wait": waited / took, "seconds_lost": c.data_lost[-1], "workers": workers},
    )


def slow_rank(c: Course, ranks: dict[int, RankCourse], lost_seconds: float = LOST_SECONDS) -> Optional[Fault]:
    """The other ranks wait for one rank, for a tenth of the step longer than it waits for them.

    The threshold is a tenth because eight devices are published to be 4 % slower than one (ModelZoo-PyTorch, MAE on
    910A). On Ascend the ranks' wait for each other is inside calls of the device and unknown. There the waits for
    batches are compared, so a rank that only computes slowly is not found.
    """
    now = {rank: int(np.searchsorted(r.step, c.step[-1], side="right")) for rank, r in ranks.items()}
    now = {rank: n for rank, n in now.items() if n > RECENT and ranks[rank].step[n - 1] == c.step[-1]}
    if len(now) < 2:  # the other files may be of an earlier attempt with more ranks
        return None

    def recent(column: str) -> dict[int, float]:
        columns = {rank: getattr(ranks[rank], column) for rank in now}
        return {rank: columns[rank][n - 1] - columns[rank][n - 1 - RECENT] for rank, n in now.items()}

    late, took = recent("late"), statistics.median(recent("took").values())
    slowest = max(late, key=lambda rank: late[rank])
    behind = late[slowest] - _others(late, slowest)
    whole = {rank: ranks[rank].late[n - 1] for rank, n in now.items()}
    lost = whole[slowest] - _others(whole, slowest)
    if behind < 0.1 * took or lost < lost_seconds:
        return None
    waited, workers = recent("waited"), c.config.data.workers
    own, others = waited[slowest] / took, _others(waited, slowest) / took
    figures = {"rank": slowest, "behind": behind / took, "data_wait": own, "others": others, "seconds_lost": lost}
    which = f"rank {slowest} on {ranks[slowest].host} is {behind / took:.0%} of the time behind the others"
    cost = f"and they wait for it, {lost:,.0f} s so far"
    if own - others > 0.5 * behind / took:
        key = "data.workers"
        message = (
            f"{which}, because it waits for batches {own:.0%} of the time and they {others:.0%}, {cost}: check what "
            f"else uses its cores and disk, or raise data.workers ({workers})"
        )
    else:
        key = "device.ranks"
        message = (
            f"{which} although its batches are ready: it computes slowly, {cost}: check what else uses its cores, or "
            f"train without it (device.ranks, {c.config.device.ranks})"
        )
    return message, key, figures


def _others(values: dict[int, float], rank: int) -> float:
    """Return the median over all ranks except one."""
    return statistics.median(value for other, value in values.items() if other != rank)


def not_learning(c: Course) -> Optional[Fault]:
    """After a fifth of the training and the warm-up, the loss has not fallen by 2 %.

    A MAE that predicts each patch's mean stays at its first loss, and so does a classifier at chance. Every run that
    learns is below that by then: the demo's loss falls by 30 %, the published ViT-B's by half.
    """
    if c.progress < 0.2 or len(c.step) - c.warm < RECENT or len(c.step) < 2 * RECENT:
        return None
    first, now = c.loss[:5].mean(), c.loss[-RECENT:].mean()
    if not now > 0.98 * first:
        return None
    key = f"{c.config.task}.blr"
    return (
        f"the loss is {now:.4g} after {c.progress:.0%} of the training and was {first:.4g} at its start: try "
        f"another {key} ({c.config.recipe.blr:.3g}), or a longer warm-up ({c.config.task}.warmup_epochs)",
        key,
        {"loss": now, "first_loss": first, "grad_norm": float(np.nanmedian(c.grad_norm[-RECENT:]))},
    )


def plateau(c: Course) -> Optional[Fault]:
    """In pre-training, the loss of the last tenth of the training is not lower than that of the tenth before.

    Not lower means: the fall is below 0.2 % by three standard errors. The rule applies between a fifth and three fifths
    of the training, while the learning rate is above half of its peak. Later a flat curve is normal, because the
    learning rate falls. The loss of a ViT-B of 800 epochs still falls by more than 0.5 % per tenth there. Tenths of
    fewer than 100 readings are not compared.
    """
    recipe = c.config.recipe
    if not isinstance(recipe, PretrainConfig) or not 0.2 <= c.progress <= 0.6 or c.lr[-1] < 0.5 * c.lr.max():
        return None
    end, tenth = c.epoch[-1], recipe.epochs / 10
    edges = np.searchsorted(c.epoch, [end - 2 * tenth, end - tenth], side="right")
    before, now = c.loss[edges[0] : edges[1]], c.loss[edges[1] :]
    if edges[0] < c.warm or min(len(before), len(now)) < 100:
        return None
    fall = (before.mean() - now.mean()) / before.mean()
    error = np.sqrt(before.var() / len(before) + now.var() / len(now)) / before.mean()
    if fall + 3 * error >= 0.002:
        return None
    return (
        f"the loss stays at {now.mean():.4g}: it fell by {fall:.2%} (standard error {error:.2%}) in the last "
        f"{tenth:.3g} epochs, with the learning rate near its peak: try another pretrain.blr ({recipe.blr:.3g})",
        "pretrain.blr",
        {"loss": now.mean(), "fall": fall, "standard_error": error, "epochs": tenth},
    )


def exploding_gradient(c: Course) -> Optional[Fault]:
    """After the warm-up, the median of the last 5 gradient norms is ten times that of the 200 readings before.

    Single high norms are common and harmless. In healthy runs the median changes by a factor of 2 to 3 over the whole
    training. Norms that are not finite are overflows, which have their own rule.
    """
    norms = c.grad_norm[c.warm :]
    norms = norms[np.isfinite(norms)]
    if len(norms) < 5 + RECENT:
        return None
    now, before = float(np.median(norms[-5:])), float(np.median(norms[-205:-5]))
    if now <= 10 * before or before == 0:
        return None
    recipe, task = c.config.recipe, c.config.task
    key = f"{task}.clip_grad" if recipe.clip_grad is None else f"{task}.blr"
    what = f"set {key} to about {2 * before:.2g}" if recipe.clip_grad is None else f"lower {key} ({recipe.blr:.3g})"
    return (
        f"the gradient norm is {now:.3g} and was {before:.3g} before: {what}, and start from an earlier checkpoint "
        "(mae train --from)",
        key,
        {"grad_norm": now, "before": before},
    )


def repeated_overflows(c: Course) -> Optional[Fault]:
    """At least 1 % of the last 1,000 updates, and at least 10, were skipped because float16 overflowed.

    The loss scale is doubled after 2,000 good updates, so one skipped update in 2,000 is normal. The first 200 updates
    of a run, in which the scale falls from 2^16, are not counted.
    """
    start = int(np.searchsorted(c.step, max(200.0, c.step[-1] - 1000), side="right"))
    if start >= len(c.step) - 1:
        return None
    skipped, updates = c.overflows[-1] - c.overflows[start], c.step[-1] - c.step[start]
    if not skipped >= max(10, 0.01 * updates):
        return None
    pretrain = c.config.task == "pretrain" and not c.config.compute.decoder_float32
    key, to = ("compute.decoder_float32", "true") if pretrain else ("compute.dtype", "float32")
    return (
        f"{skipped:.0f} of the last {updates:.0f} updates were skipped because float16 overflowed: set {key} to {to}, "
        f"or lower {c.config.task}.blr ({c.config.recipe.blr:.3g}), and start from a checkpoint (mae train --from)",
        key,
        {"skipped": skipped, "updates": updates},
    )


def expected_band(c: Course, past: list[Past]) -> Optional[Band]:
    """Return the range of the recent mean loss in all earlier runs; none during the warm-up or without earlier runs.

    Recent are the last 20 readings or the last twentieth of the training, whichever is more. The range is extended on
    both sides by the largest of: the distance between the lowest and the highest earlier run, 5 % of their median
    (seeds of one recipe differ by 1 to 2 %), and four standard errors of this run's mean.
    """
    window = max(RECENT, int(np.sum(c.epoch > c.epoch[-1] - c.config.recipe.epochs / 20)))
    if not past or len(c.step) - c.warm <= window:
        return None
    loss, first, last = c.loss[-window:], float(c.epoch[-window - 1]), float(c.epoch[-1])
    means = [run.mean(first, last) for run in past]
    error = float(loss.std() / np.sqrt(window))
    margin = max(max(means) - min(means), 0.05 * statistics.median(means), 4 * error)
    names = ", ".join(run.run for run in past[:3]) + (f" and {len(past) - 3} more" if len(past) > 3 else "")
    return Band(
        low=round(min(means) - margin, 5),
        high=round(max(means) + margin, 5),
        loss=round(float(loss.mean()), 5),
        first_epoch=round(first, 4),
        last_epoch=last,
        origin=f"{len(past)} finished run{'s' if len(past) > 1 else ''} of this recipe: {names}",
    )


def above_band(c: Course, band: Optional[Band]) -> Optional[Fault]:
    """The loss is above the band of earlier runs of the recipe."""
    if band is None or band.loss <= band.high:
        return None
    return (
        f"the loss is {band.loss:.4g} and {band.low:.4g} to {band.high:.4g} was expected from {band.origin}. The "
        f"recipe is the same, so check what else changed: code, libraries, device; the seed is {c.config.seed}",
        "seed",
        {"loss": band.loss, "low": band.low, "high": band.high},
    )
