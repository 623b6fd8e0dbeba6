"""What the numbers of ``fingerprint`` say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .fingerprint_numbers import METRICS, ROWS, FingerprintNumbers, Rate, Tested, span
from .presentable import presentable


def findings(numbers: FingerprintNumbers) -> list[str]:
    """One sentence or two a finding, with n and interval."""
    return [
        _haar(numbers),
        _unique(numbers),
        *(_derived(numbers, metric) for metric in METRICS),
        *(_false_positives(numbers, metric) for metric in METRICS),
        *_crossed(numbers),
        _copies(numbers),
        *(_attack(numbers, name) for name in numbers.attacks),
        _adversary(),
    ]


def _haar(numbers: FingerprintNumbers) -> str:
    found, haar = numbers.independent_likenesses(ROWS), numbers.haar
    beyond = sum(value > haar.mean + 4 * haar.sd for value in found)
    mean = sum(found) / len(found)
    return (
        f"Haar is the wrong null: {len(found)} pairs of independently trained models have S/k = {span(found)}, where "
        f"uniformly random subspaces have {haar.mean:.3f} with a standard deviation of {haar.sd:.4f}; {beyond} of "
        f"{len(found)} pairs lie more than 4 of them above it, the mean {(mean - haar.mean) / haar.sd:.0f}."
        + _trained(numbers)
    )


def _trained(numbers: FingerprintNumbers) -> str:
    starts = [value for name in numbers.independent if (value := numbers.models[name]["start"]) is not None]
    low = [numbers.models[name]["low_pass"] for name in numbers.independent]
    text = (
        f" What they share is low-pass: S/k with the k directions in which images vary most is {span(low)}"
        f" (n={len(low)} models)"
    )
    if starts:
        text += f"; with their own random starts it is {span(starts)}, where 1 would be no training"
    return text + "."


def _unique(numbers: FingerprintNumbers) -> str:
    found = numbers.independent_likenesses(ROWS)
    changes = [line["rotated"] for line in numbers.models.values() if "rotated" in line]
    text = (
        "The paper calls the nullspace a unique property of any set of weights. Unique it is among the independent "
        f"models: no two of {len(numbers.independent)} share it (largest S/k {max(found):.3f} of {len(found)} pairs). "
        "It is not one of a set of weights, as many sets share one: "
    )
    if changes:
        worst = [max(0.0, *(1 - values[metric] for values in changes)) for metric in METRICS]
        text += (
            f"W -> A W with a random A leaves it as it is (1 - S/k at most {worst[ROWS]:.1e}, n={len(changes)} models; "
            "the weighted one stays under Q W + 1 v', Q orthogonal with Q 1 = 1, which is what a transformer can "
            f"undo: at most {max(worst[1:]):.1e}), and "
        )
    return text + "weight decay, scaling and training with a frozen embedding do by construction."


def _derived(numbers: FingerprintNumbers, metric: int) -> str:
    tests = {kind: numbers.tested(kind, metric) for kind in numbers.kinds}
    rates = {kind: numbers.told(tests[kind]) for kind in numbers.kinds}
    told = {kind: rate for kind, rate in rates.items() if rate is not None}
    if not told:
        return _untold(numbers, metric)
    groups = {
        "all": {kind: rate for kind, rate in told.items() if rate.hits == rate.n},
        "some": {kind: rate for kind, rate in told.items() if 0 < rate.hits < rate.n},
        "none": {kind: rate for kind, rate in told.items() if rate.hits == 0},
    }
    texts = []
    for word, kinds in groups.items():
        if kinds:
            total = Rate(sum(rate.hits for rate in kinds.values()), sum(rate.n for rate in kinds.values()))
            texts.append(f"{word} of {', '.join(map(presentable, kinds))} ({total}%)")
    return f"Called derived by {METRICS[metric]}, by rank at {numbers.alpha:g}: {'; '.join(texts)}."


def _untold(numbers: FingerprintNumbers, metric: int) -> str:
    tests = [test for kind in numbers.kinds for test in numbers.tested(kind, metric)]
    least = max(test.least for test in tests)
    shown = "; ".join(
        f"{presentable(test.suspect)} {test.likeness:.3f} to {presentable(test.claimed)} (rank p "
        + ("-" if test.p is None else f"{test.p:.3f}")
        + (")" if test.p_t is None else f", Student's t {test.p_t:.1e})")
        for test in tests[:6]
    )
    null = [value for claimed in numbers.claimed for value in numbers.null(claimed, metric)]
    return (
        f"By {METRICS[metric]} nothing can be said at {numbers.alpha:g}, as no rank p-value can be below {least:.3f} "
        f"here: likenesses are {shown}; to the independent models {span(null)}."
    )


def _false_positives(numbers: FingerprintNumbers, metric: int) -> str:
    tests = numbers.falsely_tested(metric)
    rates = numbers.told(tests), numbers.told(tests, parametric=True)
    by_rank = "none can be told by rank" if rates[0] is None else f"{rates[0]}% by rank"
    return (
        f"False positives by {METRICS[metric]}: {by_rank}, {rates[1]}% by t, over ordered pairs of independent "
        "models whose null has none of the suspect's recipe (pairs share models: these intervals are too narrow). At "
        f"most {100 * numbers.alpha:g}% would be where suspects are drawn as the null is." + _worst(numbers, tests)
    )


def _worst(numbers: FingerprintNumbers, tests: Sequence[Tested]) -> str:
    counts: dict[str, list[bool]] = {}
    for test in tests:
        is_told = test.p is not None and test.p <= numbers.alpha
        counts.setdefault(numbers.models[test.suspect]["kind"], []).append(is_told)
    if not any(map(any, counts.values())):
        return ""
    recipe, found = max(counts.items(), key=lambda item: sum(item[1]) / len(item[1]))
    return f" Most by rank: suspects of the recipe {presentable(recipe)}, {Rate(sum(found), len(found))}%."


def _crossed(numbers: FingerprintNumbers) -> list[str]:
    """Derived models against claimed ones that are not their origin: nothing where there is one claimed model."""
    texts = []
    for metric, name in METRICS.items():
        tests = {kind: numbers.crossed(kind, metric) for kind in numbers.kinds}
        rates = {kind: numbers.told(found) for kind, found in tests.items()}
        told = {kind: rate for kind, rate in rates.items() if rate is not None}
        if not told:
            continue
        total = Rate(sum(rate.hits for rate in told.values()), sum(rate.n for rate in told.values()))
        wrong = [f"{presentable(kind)} {rate}%" for kind, rate in told.items() if rate.hits]
        texts.append(f"{name} {total}%" + (f" ({', '.join(wrong)})" if wrong else ""))
    if not texts:
        return []
    return [
        f"Derived models against claimed models that they are not derived from, called derived: {'; '.join(texts)}. "
        "What is told of its origin alone is no matter of how it was trained."
    ]


def _copies(numbers: FingerprintNumbers) -> str:
    texts = []
    for metric, name in METRICS.items():
        texts.append(f"{name} {span(numbers.copies(metric))}")
    count = len(numbers.models[numbers.claimed[0]]["copies"])
    return (
        f"A stand-in where no independent models are at hand: a model's own {count} symmetric copies (mirrored, "
        f"turned, channels in another order) have its spectrum and no origin of their own. Likenesses: "
        f"{'; '.join(texts)} (n={len(numbers.copies(ROWS))}). They are no null with a guarantee."
    )


def _attack(numbers: FingerprintNumbers, name: str) -> str:
    steps = numbers.attacks[name]
    texts = []
    for metric, title in METRICS.items():
        lost = next(
            (
                step
                for step in steps
                if (p := numbers.attack_tested(name, step["likeness"][metric], metric).p) is not None
                and p > max(numbers.alpha, numbers.attack_tested(name, 1.0, metric).least)
            ),
            None,
        )
        texts.append(f"{title} is lost at {_cost(lost, steps[0])}" if lost else f"{title} is not lost by any")
    return (
        f"Evasion of {presentable(name)} by noise in the directions that images hardly have: {'; '.join(texts)}. "
        "(Strengths: rms of the embedding's change relative to the embedding's.)"
    )


def _cost(step: Mapping[str, Any], clean: Mapping[str, Any]) -> str:
    same = Rate(step["unchanged"], step["n"])
    text = f"{100 * step['strength']:g}%, where the prediction stays on {same}% of the images"
    if step["right"] is not None:
        before, after = (100 * each["right"] / each["n"] for each in (clean, step))
        text += f" and accuracy goes from {before:.1f} to {after:.1f}%"
    return text


def _adversary() -> str:
    return (
        "What an adversary can do. Evade: yes, with the weights in hand: by hidden noise without any training, or by a "
        "new patch embedding before the old blocks. Claim falsely: also. A fingerprint "
        "bears no time stamp, and whoever holds weights can make one, so that it tells that two models are of one "
        "origin, not whose is first. And two models finetuned from one public backbone match each other, with no theft."
    )


def how(protocol: Mapping[str, Any], numbers: FingerprintNumbers) -> str:
    """How it was measured."""
    recipes = dict.fromkeys(numbers.models[name]["kind"] for name in numbers.independent)
    return (
        f"{len(numbers.claimed)} claimed models, {sum(map(len, numbers.kinds.values()))} derived ones and "
        f"{len(numbers.independent)} independent ones of {len(recipes)} recipes "
        f"({', '.join(map(presentable, recipes))}), patches of {protocol['patch']} pixels, "
        f"n={protocol['input_dim']}, k={numbers.rank}, row spaces in "
        f"{'pixels' if protocol['space'] == 'pixel' else 'normalised patches'}. Row space: S / k, S the sum of squared "
        "cosines of the principal angles. Weighted: tr(|V1| |V2|) / (||V1|| ||V2||), |V| = (V'V)^(1/2), V being W "
        "without its mean over features. On images: of V C^(1/2), C the covariance of patches of "
        f"{protocol['synthesis_n']} images ({protocol['synthesis_from']}). Rank p: of the suspect among the "
        "independent models by likeness to the claimed one, which is left out of them. Called derived: "
        f"p of at most {protocol['alpha']:g}, of n, and Wilson's 95% interval in percent; of independent models, false "
        f"positives. Accuracies: n={protocol['n']} images ({protocol['images_from']}; {protocol['preprocessing']})."
    )
