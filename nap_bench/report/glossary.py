"""What the report's numbers mean: definition, formula, how to read it. docs/metrics.md holds the same table (a test compares)."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """name: as people say it. reading: what is good, what is bad, what to beware of."""

    name: str
    definition: str
    formula: str
    reading: str


GLOSSARY: dict[str, Entry] = {
    "accuracy": Entry(
        "accuracy",
        "Share of a task's examples that are classified as the task labels them, at the task's end unless said otherwise.",
        "correct / all",
        "Higher is better. On re-drawn labels it is memorisation: chance is one over the number of classes.",
    ),
    "online_accuracy": Entry(
        "online accuracy",
        "Accuracy on each batch before the update on it, averaged over all updates.",
        "mean over updates t of accuracy(batch t, parameters t)",
        "Higher is better. It rewards learning fast, task after task: what plasticity is for.",
    ),
    "test_accuracy": Entry(
        "test accuracy",
        "Accuracy on images that were never trained on, or on the tokens of such documents.",
        "correct / all",
        "Higher is better.",
    ),
    "loss": Entry(
        "loss",
        "Mean cross-entropy of the labels.",
        "\u2212mean log p(label)",
        "Lower is better; it rises before accuracy falls.",
    ),
    "loss_gap": Entry(
        "loss gap",
        "How far two twins' losses are apart during training.",
        "mean over updates of |log loss a \u2212 log loss b|",
        "0: the same run. Chaos makes small gaps grow, so compare gaps, not a gap with 0.",
    ),
    "gap_to_fresh": Entry(
        "gap to a fresh network",
        "Online accuracy of a network just initialised, on the last task's very batches, less the aged network's.",
        "fresh \u2212 aged",
        "0: nothing was lost. Positive: plasticity was lost; negative: earlier tasks helped.",
    ),
    "dead_fraction": Entry(
        "dead units",
        "Share of hidden ReLU units that are zero on every example of a batch.",
        "#{units: h(x) = 0 for all x} / units",
        "Dead units get no gradient without a norm. A high share with full accuracy is no harm by itself.",
    ),
    "dormant": Entry(
        "dormant units",
        "Share of hidden units whose mean activation is at most 0.1 of their layer's mean (Sokar et al. 2023).",
        "#{i: mean|h_i| / mean over the layer \u2264 0.1} / units",
        "Softer than dead. Depends on the layer's own scale.",
    ),
    "linearised_fraction": Entry(
        "linearised units",
        "Share of penultimate ReLU units that are zero on all examples of a batch, or positive on all.",
        "#{units on one side for all x} / units",
        "Such a unit is a linear one: the network has lost that nonlinearity.",
    ),
    "feature_rank": Entry(
        "feature rank",
        "Number of singular values of the penultimate features that exceed 1 % of the largest, as a share of the units.",
        "#{i: s_i > 0.01 s_1} / units",
        "Low: the features point few ways. Higher is more room, not always more accuracy.",
    ),
    "parameter_norm": Entry(
        "parameter norm",
        "2-norm of all parameters that train, as one vector.",
        "\u221a\u03a3 \u03b8\u00b2",
        "Growth under a norm lowers the effective learning rate: the implicit schedule.",
    ),
    "gradient_norm": Entry(
        "gradient norm",
        "2-norm of the gradient of a batch's mean loss.",
        "\u2016\u2207L\u2016",
        "Near 0 with a high loss: stuck.",
    ),
    "jacobian_norm": Entry(
        "Jacobian norm",
        "Norm of the derivative of the outputs by the parameters, over a batch.",
        "\u2016\u2202f/\u2202\u03b8\u2016",
        "Explodes without a norm; under one it falls as the parameter norm grows.",
    ),
    "effective_learning_rate": Entry(
        "effective learning rate",
        "The rate at which a scale-invariant layer turns: the set rate over the layer's norm (over its square for plain "
        "gradient descent; Definition 1 of the paper).",
        "\u03b7 / \u2016W\u2016 (Adam), \u03b7 / \u2016W\u2016\u00b2 (SGD)",
        "What learning sees. NaP holds it at the set rate's schedule; without projection it decays as norms grow.",
    ),
    "learning_rate": Entry(
        "explicit learning rate",
        "The rate that the optimizer is given at a step.",
        "\u03b7(t)",
        "What the experimenter set.",
    ),
    "relative_update": Entry(
        "relative update",
        "Length of an update over the length of what it updates.",
        "\u2016\u0394\u03b8\u2016 / \u2016\u03b8\u2016",
        "The effective learning rate as measured rather than derived.",
    ),
    "one_step_plasticity": Entry(
        "one-step plasticity",
        "Share of a batch's loss that the update on it takes away (Elsayed & Mahmood 2024).",
        "1 \u2212 loss after / loss before",
        "Higher: the network still reacts to what it sees.",
    ),
    "rotation_angle": Entry(
        "turn of a layer",
        "Angle between a layer's weights before and after an update.",
        "arccos(W\u00b7W' / \u2016W\u2016\u2016W'\u2016)",
        "The effective step.",
    ),
    "negative_fraction": Entry(
        "negative coordinates",
        "Share of the random walk's coordinates below zero: its dead units.",
        "#{v_i < 0} / d",
        "Half at the start.",
    ),
    "inactive_fraction": Entry(
        "inactive units",
        "Share of a walk's units that are off after its norm.",
        "#{units off} / d",
        "Lower keeps more units alive.",
    ),
    "collapse": Entry(
        "collapse",
        "Share of seeds whose mean reward over the last quarter is below half of their best mean over an eighth, or that diverged.",
        "mean over seeds of [last quarter < best eighth / 2]",
        "What was learned, or was there at the start, was lost. A policy that never had a reward cannot collapse.",
    ),
    "effective_sample_size": Entry(
        "effective sample size",
        "How many of a batch's examples count, as a share of the batch, by the weights that a rule gives them (Kish 1965).",
        "(\u03a3 w)\u00b2 / (N \u03a3 w\u00b2)",
        "1: all count alike; 1/N: one example decides the update; 0: none counts.",
    ),
    "drift": Entry(
        "drift",
        "How far a policy has gone from the pre-trained one: mean difference of the bounds on its completions, by the same masks.",
        "mean (ELBO under the policy \u2212 ELBO under the reference), nats per completion",
        "0: nowhere. Were the bounds tight, it would be the Kullback-Leibler divergence; as they are not, it can be negative.",
    ),
    "spikes": Entry(
        "spikes",
        "Share of a seed's bins whose largest gradient norm is above five times the median over its bins of their mean norms.",
        "#{bins: max \u2016g\u2016 > 5 median of mean \u2016g\u2016} / bins",
        "Lower is calmer. Gradient norms are compared with the seed's own, so arms of other sizes stand beside each other.",
    ),
    "normalised_return": Entry(
        "normalised return",
        "Return less that of a policy that does not look, over what the best policy gains.",
        "(R \u2212 R_blind) / (R_best \u2212 R_blind)",
        "0: has learned nothing, 1: cannot be better.",
    ),
    "human_normalised": Entry(
        "human-normalised score",
        "Return less a random policy's over a human's less a random policy's.",
        "(R \u2212 R_random) / (R_human \u2212 R_random)",
        "1 is the human of the Atari literature; games differ by orders of magnitude, so read the IQM, not the mean.",
    ),
    "normalised_score": Entry(
        "normalised score",
        "A score of any task between chance and the best there can be, so that tasks can be pooled.",
        "(score \u2212 chance) / (best \u2212 chance)",
        "0: guessing, 1: perfect. A diverged seed counts as the score 0: \u2212chance / (best \u2212 chance), the worst possible.",
    ),
    "iqm": Entry(
        "IQM",
        "Interquartile mean: the mean of the middle half of the values, over seeds (and tasks) together.",
        "mean after dropping \u230an/4\u230b values at either end",
        "Ignores rare collapses and rare triumphs alike; look at the mean for those.",
    ),
    "median": Entry(
        "median", "Median over tasks of the mean over seeds.", "median_t mean_s x_st", "With few tasks it jumps."
    ),
    "optimality_gap": Entry(
        "optimality gap",
        "How far scores fall short of 1; above 1 nothing is gained.",
        "1 \u2212 mean min(x, 1)",
        "Lower is better.",
    ),
    "profile": Entry(
        "performance profile",
        "For each score x, the share of seeds and tasks above it.",
        "mean [score > x]",
        "A line that is above another everywhere is better everywhere; where lines cross, it depends on the task.",
    ),
    "improvement": Entry(
        "probability of improvement",
        "Chance that a run of one method beats a run of another on a task, averaged over tasks; ties count half.",
        "mean_t P(X_t > Y_t)",
        "0.5: no difference. It says how often, not by how much.",
    ),
    "interval": Entry(
        "95 % interval",
        "Where the true value lies for 95 of 100 such experiments with other seeds.",
        "estimate \u00b1 t \u00d7 standard error",
        "It is about seeds, not about other networks or data. It covers too little where rare seeds decide a mean.",
    ),
    "paired": Entry(
        "paired difference",
        "Difference of two methods on the same seed: same initial draw, same tasks, same batches.",
        "a_s \u2212 b_s",
        "What seeds share cancels, so small differences show.",
    ),
    "holm": Entry(
        "adjusted p",
        "p-value of a difference, adjusted for the number of pairs that were looked at (Holm 1979).",
        "max over smaller ones of (m \u2212 k + 1) p_(k)",
        "Below 0.05: the chance that any of the pairs called different is not, is below 0.05.",
    ),
    "verdict": Entry(
        "verdict",
        "Where the 95 % interval of the effect lies against a zone fixed before the runs.",
        "superiority (m, \u221e); non-inferiority (\u2212m, \u221e); equivalence (\u2212m, m)",
        "Supported: inside. Contradicted: outside. Inconclusive: neither; it is not \u201cno difference\u201d.",
    ),
}


def entry_of(measure: str) -> str | None:
    """The key of the entry that explains a measure of an exhibit: the longest one that its name contains."""
    name = measure.replace(" ", "_")
    found = [key for key in GLOSSARY if key in name]
    return max(found, key=len, default=None)


def markdown() -> str:
    """The glossary as a table of docs/metrics.md."""
    lines = ["| name | what it is | formula | how to read it |", "|---|---|---|---|"]
    for entry in GLOSSARY.values():
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in entry) + " |")
    return "\n".join(lines) + "\n"
