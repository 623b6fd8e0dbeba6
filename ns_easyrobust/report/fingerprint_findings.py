"""What the numbers of ``fingerprint`` say, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .fingerprint_numbers import METRICS, ON_IMAGES, ROWS, WEIGHTED, FingerprintNumbers, Rate, Tested, span
from .presentable import presentable

_FAR = 4  # standard deviations
_SAME = 0.999  # S/k from which two row spaces are shared
_EPSILON = 2.0**-52  # of float64: no less can be said of 1 less a likeness


def findings(numbers: FingerprintNumbers) -> list[str]:
    """One sentence or two a finding, with n and interval."""
    return [
        _haar(numbers),
        _shared(numbers),
        *(_derived(numbers, metric) for metric in METRICS),
        *(_false_positives(numbers, metric) for metric in METRICS),
        *_crossed(numbers),
        *_judgement(numbers),
        *(_copies(numbers, metric) for metric in METRICS),
        *(_attack(numbers, name) for name in numbers.attacks),
    ]


def _haar(numbers: FingerprintNumbers) -> str:
    found = numbers.independent_likenesses(ROWS)
    chance = [numbers.haar(*pair) for pair in numbers.independent_pairs]
    scores = [(value - haar.mean) / haar.sd for value, haar in zip(found, chance, strict=True)]
    beyond = sum(score > _FAR for score in scores)
    return (
        f"{len(found)} pairs of independently trained models have S/k = {span(found)}, where uniformly random "
        f"subspaces (Haar) have {_ends([haar.mean for haar in chance], 3)} with a standard deviation of "
        f"{_ends([haar.sd for haar in chance], 4)}: {beyond} of {len(found)} pairs lie more than {_FAR} of them above "
        f"it, the mean {sum(scores) / len(scores):+.0f}"
        + ("; with that null they would be taken for derived." if beyond else ".")
        + _trained(numbers)
    )


def _ends(values: Sequence[float], digits: int) -> str:
    """The least and the greatest, or one number where all are equal."""
    return " to ".join(dict.fromkeys(f"{value:.{digits}f}" for value in (min(values), max(values))))


def _trained(numbers: FingerprintNumbers) -> str:
    starts = [value for name in numbers.independent if (value := numbers.models[name]["start"]) is not None]
    low = [numbers.models[name]["low_pass"] for name in numbers.independent]
    text = f" S/k with the k directions in which images vary most is {span(low)} (n={len(low)} models)"
    if starts:
        text += f"; with their own random starts it is {span(starts)}, where 1 would be no training"
    return text + "."


def _shared(numbers: FingerprintNumbers) -> str:
    found = numbers.independent_likenesses(ROWS)
    changes = [line["mixed"] for line in numbers.models.values() if "mixed" in line]
    text = (
        "The paper calls the nullspace a unique property of any set of weights. Of pairs of independent models "
        f"{sum(value > _SAME for value in found)} of {len(found)} share it (S/k above {_SAME:g}; the largest is "
        f"{max(found):.3f})."
    )
    if changes:
        worst = [max(_EPSILON, *(values[metric] for values in changes)) for metric in METRICS]
        text += (
            " But many sets of weights share one: under W -> A W with a random A, 1 - S/k is at most "
            f"{worst[ROWS]:.0e} (n={len(changes)} models). Under Q W + 1 v', Q orthogonal with Q 1 = 1, which is what "
            f"a transformer can undo, 1 less the weighted likeness is at most {max(worst[1:]):.0e}."
        )
    return text


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
            total = numbers.told(_joined({kind: tests[kind] for kind in kinds}))
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
    return (
        f"False positives by {METRICS[metric]}: {_rate(numbers, tests)}, {_rate(numbers, tests, parametric=True)}, "
        "over ordered pairs of independent models whose null has none of the suspect's recipe. At most "
        f"{100 * numbers.alpha:g}% would be where suspects are drawn as the null is." + _worst(numbers, tests)
    )


def _rate(numbers: FingerprintNumbers, tests: Sequence[Tested], parametric: bool = False) -> str:
    """Of the tests that could reject; how many could not is said."""
    way, rate = "by t" if parametric else "by rank", numbers.told(tests, parametric)
    if rate is None:
        return f"no test of {len(tests)} can tell {way}"
    unable = len(tests) - rate.n
    return f"{rate}% {way}" + (
        f" ({unable} of {len(tests)} tests could not reject, and do not count)" if unable else ""
    )


def _worst(numbers: FingerprintNumbers, tests: Sequence[Tested]) -> str:
    recipes: dict[str, list[Tested]] = {}
    for test in tests:
        recipes.setdefault(numbers.models[test.suspect]["kind"], []).append(test)
    rates = {recipe: rate for recipe, found in recipes.items() if (rate := numbers.told(found)) is not None}
    if not any(rate.hits for rate in rates.values()):
        return ""
    recipe, worst = max(rates.items(), key=lambda item: item[1].hits / item[1].n)
    return f" Most by rank: suspects of the recipe {presentable(recipe)}, {worst}%."


def _crossed(numbers: FingerprintNumbers) -> list[str]:
    """Derived models against claimed ones of another origin: nothing where there is one claimed model."""
    texts = []
    for metric, name in METRICS.items():
        tests = {kind: numbers.crossed(kind, metric) for kind in numbers.kinds}
        total = numbers.told(_joined(tests))
        if total is None:
            continue
        rates = {kind: numbers.told(found) for kind, found in tests.items()}
        wrong = [f"{presentable(kind)} {rate}%" for kind, rate in rates.items() if rate is not None and rate.hits]
        texts.append(f"{name} {total}%" + (f" ({', '.join(wrong)})" if wrong else ""))
    if not texts:
        return []
    return [f"Derived models against claimed models of another origin, called derived: {'; '.join(texts)}."]


def _joined(tests: Mapping[str, Sequence[Tested]]) -> list[Tested]:
    return [test for found in tests.values() for test in found]


def _judgement(numbers: FingerprintNumbers) -> list[str]:
    """Each statistic at a glance: what it finds and what it costs; the default first."""
    texts = []
    for metric in (WEIGHTED, ROWS, ON_IMAGES):
        found = numbers.told(_joined({kind: numbers.tested(kind, metric) for kind in numbers.kinds}))
        wrong = numbers.told(numbers.falsely_tested(metric))
        if found is None or wrong is None:
            continue
        low, high = wrong.interval
        level = 100 * numbers.alpha
        against = "more than" if low > level else "less than" if high < level else "not told apart from"
        texts.append(
            f"{METRICS[metric]}{', the default,' if metric == WEIGHTED else ''} calls {found}% of the derived models "
            f"derived, and {100 * wrong.hits / wrong.n:.1f}% of independent ones [{low:.0f}, {high:.0f}], {against} "
            f"the nominal {level:g}%"
        )
    return [f"All in all, {'; '.join(texts)}."] if texts else []


def _copies(numbers: FingerprintNumbers, metric: int) -> str:
    """How near a model's own mirrored copies come, and which derived models are no nearer."""
    found = numbers.copies(metric)
    tests = {kind: numbers.tested(kind, metric) for kind in numbers.kinds}
    tops = {claimed: max(numbers.copies(metric, claimed)) for claimed in numbers.claimed}
    beyond = sum(
        value > max(numbers.null(claimed, metric)) for claimed in tops for value in numbers.copies(metric, claimed)
    )
    below = {kind: sum(test.likeness <= tops[test.claimed] for test in each) for kind, each in tests.items()}
    shown = [f"{presentable(kind)} {count}/{len(tests[kind])}" for kind, count in below.items() if count]
    count = len(numbers.models[numbers.claimed[0]]["copies"])
    return (
        f"By {METRICS[metric]} a model's own {count} symmetric copies (mirrored, turned, channels in another order), "
        f"which have its spectrum and no origin of their own, have {span(found, 4)}; {beyond} of {len(found)} "
        "are more alike to it than each independent model is. No more alike to "
        f"the claimed model than the most alike of its copies: {', '.join(shown) or 'no derived model'}."
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
    same = Rate(step["unchanged"], step["n"], step["n"])
    text = f"{100 * step['strength']:g}%, where the prediction stays on {same}% of the images"
    if step["right"] is not None:
        before, after = (100 * each["right"] / each["n"] for each in (clean, step))
        text += f" and accuracy goes from {before:.1f} to {after:.1f}%"
    return text


def how(protocol: Mapping[str, Any], numbers: FingerprintNumbers) -> str:
    """How it was measured."""
    recipes = dict.fromkeys(numbers.models[name]["kind"] for name in numbers.independent)
    return (
        f"{len(numbers.claimed)} claimed models, {sum(map(len, numbers.kinds.values()))} derived ones and "
        f"{len(numbers.independent)} independent ones of {len(recipes)} recipes "
        f"({', '.join(map(presentable, recipes))}), patches of {protocol['patch']} pixels, "
        f"n={protocol['input_dim']}, k={_ends(numbers.ranks, 0)}, row spaces in "
        f"{'pixels' if protocol['space'] == 'pixel' else 'normalised patches'}. Row space: S / k (of two widths, "
        "S / sqrt(k1 k2)), S the sum of squared cosines of the principal angles. Weighted: tr(|V1| |V2|) / (||V1|| "
        "||V2||), |V| = (V'V)^(1/2), V being W without its mean over features. On images: of V C^(1/2), C the "
        f"covariance of patches of {protocol['synthesis_n']} images ({protocol['synthesis_from']}). Rank p: of the "
        "suspect among the independent models by likeness to the claimed one, which is left out of them. Called "
        f"derived: p of at most {protocol['alpha']:g}, of n tests, and Wilson's 95% interval in percent, in which all "
        "tests of one origin count as one, as do those of one independent suspect (whose are false positives): as if "
        f"they always agreed, which is the widest. Accuracies: n={protocol['n']} images ({protocol['images_from']}; "
        f"{protocol['preprocessing']})."
    )
