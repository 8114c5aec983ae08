"""The paper's own claims, numbered, in our words; each gets exactly one verdict row, whatever has been run.

An exhibit's `Claim` says by `paper_claim` which of them it measures: that is the only place where the two are tied. One
rule makes a row's verdict from the claims that measure it, at the scale of the page:

    CONTRADICTED    one of them is contradicted: the sentence claims all of it
    SUPPORTED       all of them are supported
    NOT RUN         none of them was decided at this scale
    INCONCLUSIVE    otherwise; so a sentence of which a part was not run is never supported by the rest

"All of them" are the claims of the exhibits that are planned at this scale: one that the page leaves out counts as NOT RUN. Claims
of exhibits of other scales are named in the row and decide nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nap_bench.report.claims import CONTRADICTED, INCONCLUSIVE, NOT_RUN, SUPPORTED


class PaperClaim(NamedTuple):
    """A claim of Lyle et al. 2024. kind: what it takes, in the terms of nap_bench/report/claims.py."""

    source: str
    sentence: str
    kind: str


PAPER_CLAIMS: dict[int, PaperClaim] = {
    1: PaperClaim(
        "Sec. 3.1, Fig. 1",
        "With LayerNorm or RMSNorm, networks get over bursts of dead units; without, dead units pile up. So under each of "
        "three optimisers.",
        "superiority",
    ),
    2: PaperClaim(
        "App. A.4, C.4",
        "What revives units is the division, not the centring: RMSNorm does as well as LayerNorm.",
        "equivalence",
    ),
    3: PaperClaim(
        "Sec. 3.2, Fig. 2",
        "As labels are re-drawn, a network without normalisation lets its parameter and Jacobian norms explode, and late tasks "
        "suffer.",
        "superiority",
    ),
    4: PaperClaim(
        "Sec. 3.2, Fig. 2",
        "With LayerNorm the parameter norm grows while the Jacobian norm shrinks; late tasks suffer, too.",
        "superiority",
    ),
    5: PaperClaim(
        "Sec. 3.2, Fig. 2",
        "With LayerNorm and projected weights, late tasks go as well as for a network just initialised.",
        "noninferiority",
    ),
    6: PaperClaim(
        "Sec. 4.1, Fig. 3",
        "A projected twin follows the free one closest when rates are rescaled layer by layer, less with one global "
        "factor, least without rescaling.",
        "superiority",
    ),
    7: PaperClaim(
        "Sec. 4.2, Fig. 4",
        "In Rainbow, NaP at a constant rate falls behind LayerNorm, whose growing norms anneal the rate unseen.",
        "superiority",
    ),
    8: PaperClaim(
        "Sec. 4.2, Fig. 4",
        "In Rainbow, NaP whose rate decays linearly beats that hidden schedule over several games.",
        "superiority",
    ),
    9: PaperClaim(
        "App. C.1, Fig. 7",
        "Of four lengths of the decay, the one that ends halfway through training is best.",
        "superiority",
    ),
    10: PaperClaim(
        "Sec. 5.1, Fig. 5",
        "Methods against plasticity loss differ widely without NaP; with it the differences shrink.",
        "superiority",
    ),
    11: PaperClaim("Sec. 5.1, Fig. 5", "NaP improves every one of these methods but ReDo.", "superiority"),
    12: PaperClaim(
        "Sec. 5.1, Fig. 5", "Without NaP, regenerative regularisation and ReDo come out on top.", "superiority"
    ),
    13: PaperClaim(
        "Sec. 5.3, Fig. 6 right",
        "Over the 57 games of Atari, Rainbow with NaP and a linear schedule is the best of four agents.",
        "superiority",
    ),
    14: PaperClaim(
        "Sec. 5.3, Fig. 6 left",
        "Over a sequence of games played twice, an agent with NaP learns a game the second time as well as a fresh agent.",
        "noninferiority",
    ),
    15: PaperClaim(
        "Sec. 5.3, Fig. 6 left", "Over that sequence, plain Rainbow does poorly when games come back.", "superiority"
    ),
    16: PaperClaim(
        "Sec. 5.2, Table 1",
        "On images and on text that do not change, NaP costs nothing, and it transfers slightly better.",
        "noninferiority",
    ),
    17: PaperClaim(
        "App. C.3, Fig. 10",
        "Transformers that memorise ever new random strings lose plasticity; projection, or weight decay, prevents it.",
        "superiority",
    ),
    18: PaperClaim(
        "App. C.3, Fig. 9",
        "A norm makes transformers learn to copy sooner, and projection sooner still.",
        "superiority",
    ),
    19: PaperClaim(
        "App. C.4, Figs. 11, 12",
        "In a random-walk model, a norm slows the dying of units under gradient descent and stops it under sign updates.",
        "superiority",
    ),
    20: PaperClaim(
        "Sec. 3.3",
        "Whether one projects at every step or at every thousandth makes next to no difference.",
        "equivalence",
    ),
    21: PaperClaim(
        "App. E, Figs. 13, 14",
        "In continuous control, norm, projection and linear decay together are among the best; against dead units a norm helps "
        "most, a decaying rate less, projection least.",
        "superiority",
    ),
}


def combined(verdicts: Iterable[str]) -> str:
    """The verdict of a row from those of the claims that measure it, by the rule above."""
    found = set(verdicts)
    if CONTRADICTED in found:
        return CONTRADICTED
    if found <= {NOT_RUN}:
        return NOT_RUN
    return SUPPORTED if found == {SUPPORTED} else INCONCLUSIVE


def measured_by(modules: Mapping[str, Any]) -> dict[int, list[tuple[str, str]]]:
    """Number of a paper's claim -> (exhibit, id) of the claims of ours that measure it."""
    found: dict[int, list[tuple[str, str]]] = {number: [] for number in PAPER_CLAIMS}
    for exhibit, module in modules.items():
        for claim in module.CLAIMS:
            number = getattr(claim, "paper_claim", None)
            if number is not None:
                found[number].append((exhibit, claim.id))
    return found


def rows(
    scale: str, sections: Iterable[Mapping[str, Any]], modules: Mapping[str, Any], scales: Mapping[str, Iterable[str]]
) -> list[dict[str, Any]]:
    """One row per claim of the paper, in its order: number, source, sentence, kind, verdict, the judged claims, and elsewhere.

    scale: of the page.  sections: of the page, each with name, title and claims as dicts.  modules: every exhibit there is.
    scales: exhibit -> scales at which it is planned.  elsewhere: exhibits that measure it, but not on this page, with those scales.
    """
    sections = {section["name"]: section for section in sections}
    found = []
    for number, measured in measured_by(modules).items():
        here = [
            {**claim, "exhibit": name, "title": sections[name]["title"]}
            for name, wanted in measured
            if name in sections
            for claim in sections[name]["claims"]
            if claim["id"] == wanted
        ]
        left_out = [NOT_RUN for name, _ in measured if name not in sections and scale in scales.get(name, ())]
        found.append(
            {
                "number": number,
                **PAPER_CLAIMS[number]._asdict(),
                "verdict": combined([*(claim["verdict"] for claim in here), *left_out]),
                "partial": any(claim["partial"] for claim in here),
                "claims": here,
                "elsewhere": [
                    {"title": modules[name].TITLE, "scales": list(scales.get(name, ()))}
                    for name in dict.fromkeys(name for name, _ in measured)
                    if name not in sections
                ],
            }
        )
    return found
