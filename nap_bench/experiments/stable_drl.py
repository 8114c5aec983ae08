"""Ours, after StableDRL: what keeps policy optimisation of a diffusion language model from collapsing under noisy ratios?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nap_bench.experiments.base import Entry, Labelled, curve, make_run, scalar
from nap_bench.report.claims import Claim, Paired
from nap_bench.report.figures import Panel, look
from nap_bench.report.scores import Score, Scores
from nap_bench.report.tables import amounts

TITLE = "Noisy ratios in reinforcing a diffusion language model"
PAPER = (
    "Not NaP's paper but Zhong et al. 2026 (arXiv 2603.06743): a diffusion language model's likelihood has to be "
    "estimated, so importance ratios are noisy. GRPO's clip depends on the advantage's sign, and an outlier can pass "
    "it: the gradient spikes, the policy drifts, ratios become noisier. Ratios that are clipped whatever the sign "
    "and divided by their sum (StableDRL) keep the update within the convex hull of the examples' gradients. That "
    "NaP helps or hurts here nobody has claimed: it is our question."
)
DEVIATIONS = (
    "Scale: theirs is LLaDA-8B on mathematics, Countdown and Sudoku, completions of 256 tokens; ours a transformer "
    "of some thousand parameters that sees both ways, on puzzles of a few digits with a reward of 0 or 1, "
    "pre-trained here on English and on such puzzles, half of them solved. No block diffusion, so no staircase "
    "attention. What is seen here says nothing of 8 billion.",
    "Only the abstract and the code of the paper were available to us. The two-sided clip of the ratio to 1 +- 0.2, "
    "unconditional and then self-normalised, is secondary sources' equation; their code caps a ratio at 5 and has no "
    "lower bound. Both are run: the setting `cap 5` is the code's. Where ratios are as noisy as here nearly all of "
    "them are at one of the bounds 1 +- 0.2, so examples count nearly alike: the rule is then close to a policy "
    "gradient without ratios. Ratios are clipped; summaries that have gradients clipped are wrong.",
    "Self-normalisation is over the batch of an update, as in the code; there it is one puzzle's completions, here "
    "those of four.",
    "Log-likelihoods are ELBOs summed over tokens; the code takes their mean. Ours are noisier for a given number of "
    "masks M, and are what bounds the sampler's likelihood. M averages the gradient as well as the ratio, as in the "
    "paper. The setting `common masks` takes the same masks for both sides of a ratio, so that its noise is gone; "
    "all updates of a rollout read these masks, too. Rewarded and unrewarded completions have the same bound (the "
    "code has an upper bound for the latter, SPG); the prompt is never masked.",
    "Advantages are rewards less their mean over a puzzle's 8 completions, not divided by their spread, as in the "
    "code. A rollout is read four times (theirs twice), its 32 completions together.",
    "Adam at its defaults, a rate for all arms, without weight decay and without clipping of the gradient's norm "
    "(theirs: 0.2), which would hide the spikes that are asked about. Adam divides by its own estimate of the "
    "gradient's size: a spike costs it direction and then pace, and not a step as long as the spike.",
    "Gradient scaling is our reading of the general technique: the batch's gradient divided by the root mean square "
    "of what multiplies its examples' gradients, without a clip (nap_bench/weights.py).",
    "NaP is LayerNorm before the nonlinearities, RMSNorm on queries and keys, and projection, from pre-training on; "
    "scale and offset are free. Arms without it have the usual norms at the branches' entrances. What helps or hurts "
    "is not told apart, norm or projection, pre-training or training by reward: at the same rates NaP may begin from "
    "another policy (the table has the first bin). Adam's state starts anew with the training by reward, in every "
    "arm.",
    "Rate, sizes and lengths were chosen on seeds from 1000 on, with the arms `conditional`, `stable` and, for the "
    "rate, `unconditional` in view (and NaP's at the end, when nothing was changed any more), so that the question "
    "can be seen: at 2e-3 StableDRL learns and conditional clipping collapses within 160 to 200 updates. Of the "
    "rates tried (3e-4, 1e-3, 2e-3, 3e-3) StableDRL was best at 1e-3; conditional clipping gained at none, and lost "
    "least at 3e-4, which is the setting `low rate`. The reported seeds had not been looked at.",
    "Declared here: an arm has collapsed at a seed if its mean reward over the last quarter is below half of its "
    "best mean over an eighth of the training by reward, or it diverged; a spike is a bin whose largest gradient "
    "norm is above five times the median over the seed's bins of their mean norms.",
    "Workstation and paper scale, both ours and alike: Countdown with four digits, wider, every arm at six numbers "
    "of masks. Nothing was tuned or run there.",
)

RULES = ("conditional", "unconditional", "self_normalised", "stable", "gradient_scaling")
ARMS = {f"{rule}{plus}": (rule, stack) for plus, stack in (("", ""), ("+nap", "+nap")) for rule in RULES}
LR, LOW_LR, PRETRAIN_LR = 2e-3, 3e-4, 1e-2
CLIP, CAP = (0.8, 1.2), (0.0, 5.0)
SPIKE = 5.0
NOISY, COMMON, CODE, LOW = "M=1", "M=1 common masks", "M=1 cap 5", "M=1 low rate"
SIZES: dict[str, dict[str, Any]] = {
    "laptop": dict(
        task=dict(puzzle="sorting", size=3, pretrain_steps=300, text=0.1, num_rollouts=40, bins=20),
        net=dict(d_model=16, heads=1, widths=(32, 32)),
        samples=(1, 4, 16),
        of_all_samples=("conditional", "stable"),
        seeds=tuple(range(400, 408)),
    ),
    "workstation": dict(
        task=dict(
            puzzle="countdown", size=4, pretrain_steps=4000, pretrain_batch=256, num_rollouts=1000, bins=100, prompts=16
        ),
        net=dict(d_model=64, heads=2, widths=(256, 256, 256)),
        samples=(1, 2, 4, 8, 16, 32),
        of_all_samples=tuple(ARMS),
        seeds=tuple(range(400, 416)),
    ),
}
SIZES["paper"] = SIZES["workstation"]


def entry(scale: str, arm: str, setting: str, *, seeds: tuple[int, ...] | None = None, **task: object) -> Entry:
    """One run of an arm. setting: "M=" and the number of masks, then what else differs.  task: what differs from the scale's."""
    from nap_bench.benchmarks import DiffusionPolicy
    from nap_bench.optimizers import Adam
    from nap_bench.schedules import Steps
    from nap_bench.spec import ModelSpec

    size, (rule, stack) = SIZES[scale], ARMS[arm]
    lr = LOW_LR if setting == LOW else LR
    benchmark = DiffusionPolicy(
        rule=rule,
        samples=samples_of(setting),
        clip=CAP if setting == CODE else CLIP,
        common_masks=setting == COMMON,
        **{**size["task"], **task},
    )
    run = make_run(
        benchmark=benchmark,
        model=ModelSpec(
            family="transformer", size=tuple(sorted({"entrance": "layer", **size["net"]}.items())), causal=False
        ),
        stack=f"optimizer_reset{stack}",
        optimizer=Adam(),
        schedule=Steps(PRETRAIN_LR, at=(benchmark.pretrain_steps / benchmark.num_steps,), factor=lr / PRETRAIN_LR),
        seeds=size["seeds"] if seeds is None else seeds,
    )
    return Entry(arm, setting, run)


def samples_of(setting: str) -> int:
    return int(setting.split()[0].removeprefix("M="))


def runs(scale: str) -> list[Entry]:
    size = SIZES[scale]
    made = [entry(scale, arm, NOISY) for arm in ARMS]
    made += [entry(scale, arm, f"M={samples}") for arm in size["of_all_samples"] for samples in size["samples"][1:]]
    made += [entry(scale, arm, LOW) for arm in ("conditional", "stable")]
    return [*made, entry(scale, "conditional", COMMON), entry(scale, "stable", CODE)]


def cells(arm: str, setting: str, scale: str) -> list[tuple[str, str]]:
    """Where the scores of a run stand: its own setting, and over numbers of masks."""
    return [(arm, setting)] if setting in (COMMON, CODE, LOW) else [(arm, setting), (arm, "")]


CURVES = {
    "reward": "reward/mean",
    "log_ratio_spread": "ratio/log_std",
    "effective_sample_size": "ess/coefficients",
    "effective_sample_size_of_ratios": "ess/ratios",
    "gradient_norm": "gradient/norm",
    "largest_gradient_norm": "gradient/largest",
    "drift": "drift/reference",
    "effective_learning_rate": "probe/effective_learning_rate",
}


def policy_bins(labelled: Labelled, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Updates by reward so far [T], and values [T, S], of the bins after denoising."""
    steps, values_TS = labelled.series(metric)
    first = labelled.params["pretrain_steps"]
    return steps[steps > first] - first, values_TS[steps > first]


def levels(reward_TS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean reward over the last quarter of the bins, best mean over an eighth of them in a row), each [S].

    The first is NaN for a diverged seed, the second is of the bins that it lived through.
    """
    num_bins = len(reward_TS)
    window = max(1, num_bins // 8)
    means = [reward_TS[start : start + window].mean(axis=0) for start in range(num_bins - window + 1)]
    return reward_TS[-max(1, num_bins // 4) :].mean(axis=0), np.fmax.reduce(means)


def score(results: Iterable[Labelled]) -> Iterator[Score]:
    """Curves over updates by reward; of each seed what DEVIATIONS declare; and both again over the number of masks."""
    for labelled in results:
        for measure, metric in CURVES.items():
            yield from curve(labelled, measure, *policy_bins(labelled, metric))
        reward_TS, largest_TS, norm_TS, spread_TS, ess_TS, drift_TS = (
            policy_bins(labelled, CURVES[measure])[1]
            for measure in (
                "reward",
                "largest_gradient_norm",
                "gradient_norm",
                "log_ratio_spread",
                "effective_sample_size",
                "drift",
            )
        )
        last_S, best_S = levels(reward_TS)
        is_spike_TS = np.where(np.isfinite(largest_TS), largest_TS > SPIKE * np.median(norm_TS, axis=0), np.nan)
        found = {
            "first_reward": reward_TS[0],
            "best_reward": best_S,
            "last_reward": last_S,
            "collapsed": (~(last_S >= 0.5 * best_S)).astype(float),
            "spikes": is_spike_TS.mean(axis=0),
            "mean_log_ratio_spread": spread_TS.mean(axis=0),
            "mean_effective_sample_size": ess_TS.mean(axis=0),
            "last_drift": drift_TS[-1],
        }
        for measure, values_S in found.items():
            yield from scalar(labelled, measure, values_S)
        if (labelled.arm, "") in cells(labelled.arm, labelled.setting, ""):
            over_masks = Labelled(labelled.arm, "", labelled.result)
            for measure in ("last_reward", "collapsed", "mean_log_ratio_spread"):
                x = np.array([samples_of(labelled.setting)])
                yield from curve(over_masks, f"{measure}_by_masks", x, found[measure][None])


COLUMNS = {
    "first bin": "first_reward",
    "best": "best_reward",
    "last quarter": "last_reward",
    "spread of log-ratios": "mean_log_ratio_spread",
    "ESS / N": "mean_effective_sample_size",
    "spikes": "spikes",
    "drift, nats": "last_drift",
}


def tables(scores: Scores) -> list[dict[str, Any]]:
    rows = []
    for setting in sorted(filter(None, scores.settings()), key=lambda setting: (samples_of(setting), setting)):
        for arm in filter(lambda arm: scores.has("collapsed", arm, setting), ARMS):
            collapsed = scores.values("collapsed", arm, setting)
            means = [np.mean(list(scores.values(measure, arm, setting).values())) for measure in COLUMNS.values()]
            share = f"{sum(collapsed.values()):.0f} of {len(collapsed)}"
            rows.append([look(arm).label, setting, share, *amounts(means)])
    note = (
        "Means over seeds. Collapsed: mean reward of the last quarter below half of the best mean over an eighth, or diverged. "
        f"Spread: standard deviation. Spikes: bins whose largest gradient norm is above {SPIKE:g} times the median of their means. "
        "ESS: of what the rule makes of the ratios."
    )
    columns = ("arm", "setting", "collapsed", *COLUMNS)
    return [{"title": "What became of the policy", "columns": columns, "rows": rows, "note": note}] if rows else []


def _paired(
    label: str, arm: str, against: str, setting: str = NOISY, measure: str = "last_reward", **more: str
) -> Paired:
    better, worst = ("higher", 0.0) if measure == "last_reward" else ("lower", 1.0)
    return Paired(
        label=label,
        measure=measure,
        better=better,
        arm=arm,
        against=against,
        setting=setting,
        if_diverged=worst,
        **more,
    )


_SOURCE = "Zhong et al. 2026 (ours)"
_UNIT = "reward, last quarter"
CLAIMS = (
    Claim(
        id="conditional_clipping_collapses_under_noise",
        source=_SOURCE,
        sentence="With ratios from one mask each, conditional clipping collapses in more seeds than StableDRL does.",
        kind="superiority",
        margin=0.25,
        unit="share of seeds that collapsed",
        measurements=(_paired("conditional - StableDRL", "stable", "conditional", measure="collapsed"),),
    ),
    Claim(
        id="stable_drl_is_better_than_conditional_clipping",
        source=_SOURCE,
        sentence="With ratios from one mask each, StableDRL ends at a higher reward than conditional clipping, at a low rate, too.",
        kind="superiority",
        margin=0.1,
        unit=_UNIT,
        measurements=(
            _paired("StableDRL - conditional", "stable", "conditional"),
            _paired("StableDRL - conditional, low rate", "stable", "conditional", LOW),
        ),
    ),
    Claim(
        id="stable_drl_learns",
        source="control (ours)",
        sentence="StableDRL ends at a higher reward than it began with, so that there is something to lose.",
        kind="superiority",
        margin=0.1,
        unit="reward",
        measurements=(_paired("last quarter - first bin", "stable", "stable", against_measure="first_reward"),),
    ),
    Claim(
        id="common_masks_help_conditional_clipping",
        source=_SOURCE,
        sentence="Conditional clipping ends at a higher reward where both sides of a ratio share a mask and its noise.",
        kind="superiority",
        margin=0.1,
        unit=_UNIT,
        measurements=(_paired("common - own masks", "conditional", "conditional", COMMON, against_setting=NOISY),),
    ),
    Claim(
        id="more_masks_are_better_for_conditional_clipping",
        source=_SOURCE,
        sentence="Conditional clipping is better with sixteen masks, in ratio and gradient, than with one.",
        kind="superiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("16 masks - 1", "conditional", "conditional", "M=16", against_setting=NOISY),),
    ),
    Claim(
        id="gradients_spike_less_under_stable_drl",
        source=_SOURCE,
        sentence="Gradient norms spike in fewer bins under StableDRL than under conditional clipping.",
        kind="superiority",
        margin=0.1,
        unit="share of bins",
        measurements=(_paired("conditional - StableDRL", "stable", "conditional", measure="spikes"),),
    ),
    Claim(
        id="both_parts_are_needed",
        source=_SOURCE,
        sentence="Unconditional clipping and self-normalisation are better together than either alone.",
        kind="superiority",
        margin=0.02,
        unit=_UNIT,
        measurements=(
            _paired("StableDRL - clipping only", "stable", "unconditional"),
            _paired("StableDRL - self-normalisation only", "stable", "self_normalised"),
        ),
    ),
    Claim(
        id="a_cap_alone_is_as_good_as_two_bounds",
        source="their code (ours)",
        sentence="With a cap of 5 and no lower bound, as in the authors' code, StableDRL is as good as with 1 +- 0.2, or better.",
        kind="noninferiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("cap 5 - 1 +- 0.2", "stable", "stable", CODE, against_setting=NOISY),),
    ),
    Claim(
        id="scaling_the_gradient_is_as_good",
        source="ours",
        sentence="Dividing the batch's gradient by its own scale, without a clip, is as good as StableDRL, or better.",
        kind="noninferiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("gradient scaling - StableDRL", "gradient_scaling", "stable"),),
    ),
    Claim(
        id="nap_helps_conditional_clipping",
        source="ours",
        sentence="Where conditional clipping collapses, NaP ends at a higher reward.",
        kind="superiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("with NaP - without", "conditional+nap", "conditional"),),
    ),
    Claim(
        id="nap_helps_stable_drl",
        source="ours",
        sentence="NaP helps where ratios are tamed, too: StableDRL ends at a higher reward with it.",
        kind="superiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("with NaP - without", "stable+nap", "stable"),),
    ),
    Claim(
        id="nap_does_not_hurt_stable_drl",
        source="ours",
        sentence="With NaP StableDRL is as good as without, or better.",
        kind="noninferiority",
        margin=0.05,
        unit=_UNIT,
        measurements=(_paired("with NaP - without", "stable+nap", "stable"),),
    ),
)
_X = "updates by reward"
PANELS = (
    Panel(
        kind="curve",
        measure="reward",
        title="Reward, ratios from one mask",
        xlabel=_X,
        ylabel="reward",
        arms=RULES,
        setting=NOISY,
    ),
    Panel(
        kind="curve",
        measure="reward",
        title="The same, with NaP",
        xlabel=_X,
        ylabel="reward",
        arms=tuple(f"{rule}+nap" for rule in RULES),
        setting=NOISY,
    ),
    Panel(
        kind="interval",
        measure="last_reward",
        title="Reward, last quarter",
        xlabel="reward",
        arms=tuple(ARMS),
        setting=NOISY,
    ),
    Panel(
        kind="curve",
        measure="collapsed_by_masks",
        title="Collapse, over the number of masks",
        xlabel="masks a ratio is estimated from",
        ylabel="share of seeds",
        arms=RULES,
        logx=True,
    ),
    Panel(
        kind="curve",
        measure="last_reward_by_masks",
        title="Reward, over the number of masks",
        xlabel="masks a ratio is estimated from",
        ylabel="reward, last quarter",
        arms=RULES,
        logx=True,
    ),
    Panel(
        kind="curve",
        measure="log_ratio_spread",
        title="Spread of log-ratios",
        xlabel=_X,
        ylabel="standard deviation, nats",
        arms=RULES,
        setting=NOISY,
    ),
    Panel(
        kind="curve",
        measure="effective_sample_size",
        title="Effective sample size of the weights",
        xlabel=_X,
        ylabel="share of the batch",
        arms=RULES,
        setting=NOISY,
    ),
    Panel(
        kind="curve",
        measure="largest_gradient_norm",
        title="Largest gradient norm of a bin",
        xlabel=_X,
        ylabel="2-norm",
        arms=RULES,
        setting=NOISY,
        logy=True,
    ),
    Panel(
        kind="curve",
        measure="drift",
        title="Drift from the pre-trained policy",
        xlabel=_X,
        ylabel="nats per completion",
        arms=RULES,
        setting=NOISY,
    ),
)
